package issuer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"strings"

	"secretfree/station/board"
	"secretfree/station/board/certreq"
)

// Caps on a request, in bytes. The base64 of the PEM of a request of MaxDER
// bytes fits into MaxText.
const (
	MaxDER  = certreq.MaxBytes
	MaxText = 8192
)

// Request is a certificate signing request (PKCS #10, RFC 2986) that was
// parsed, and nothing more: nothing in it is believed yet. It is parsed once;
// Decide, logs and certificates use this value.
type Request struct {
	csr        *certreq.Request
	challenges []string // that stand in the request, under its signature
	detached   *detached
	peer       *x509.Certificate
	renewal    bool
}

// detached is a signature over a challenge that stands beside the request.
type detached struct {
	challenge string
	signature []byte
}

// ParseHeader reads the value of a device-csr header: the base64 of a PEM
// block, in one line.
func ParseHeader(value string) (Request, error) {
	if len(value) > MaxText {
		return Request{}, fmt.Errorf("%w: a header of %d bytes, at most %d are read", TooLarge, len(value), MaxText)
	}
	if strings.ContainsAny(value, "\r\n") { // which the decoder would skip
		return Request{}, fmt.Errorf("%w: a line break in the header", NotBase64)
	}
	if strings.ContainsAny(value, " \t") { // a folded header arrives with blanks
		return Request{}, fmt.Errorf("%w: a blank in the header: the base64 was wrapped; write it in one line (base64 -w 0)", NotBase64)
	}
	text, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil {
		return Request{}, fmt.Errorf("%w: the header: %v", NotBase64, err)
	}
	der, err := decodePEM(text)
	if err != nil {
		return Request{}, err
	}
	return parseDER(der)
}

// ParseRequest reads a body: PEM, DER, or the base64 of the DER with or without
// line breaks. A text may begin with the byte order mark of UTF-8 and end with
// the NUL of a string in C. Its errors wrap a Refusal that is Malformed.
func ParseRequest(data []byte) (Request, error) {
	if len(data) > MaxText {
		return Request{}, fmt.Errorf("%w: %d bytes, at most %d are read", TooLarge, len(data), MaxText)
	}
	switch {
	case len(data) == 0:
		return Request{}, NoRequest
	case data[0] == 0x30: // a SEQUENCE; in base64 it would start with M
		return parseDER(data)
	}
	text := bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimPrefix(data, []byte("\ufeff")), []byte{0}))
	switch begin := bytes.Index(text, []byte("-----BEGIN ")); {
	case begin == 0:
		der, err := decodePEM(text)
		if err != nil {
			return Request{}, err
		}
		return parseDER(der)
	case begin > 0:
		return Request{}, fmt.Errorf("%w: text before the block, as openssl req -text and certutil -a write it: send the block alone", NotOnePEM)
	}
	der, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return Request{}, fmt.Errorf("%w: neither PEM nor DER: %v", NotBase64, err)
	}
	return parseDER(der)
}

// decodePEM takes one block (RFC 7468) with white space around it and nothing
// else; the standard decoder would step over a block that it cannot read and
// take the next. Carriage returns go anywhere, because the boards' own firmware
// puts them anywhere.
func decodePEM(text []byte) ([]byte, error) {
	text = bytes.TrimSpace(bytes.ReplaceAll(text, []byte("\r"), nil))
	for _, label := range []string{"CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"} {
		inner, begins := bytes.CutPrefix(text, []byte("-----BEGIN "+label+"-----\n"))
		inner, ends := bytes.CutSuffix(inner, []byte("\n-----END "+label+"-----"))
		if !begins || !ends {
			continue
		}
		der, err := base64.StdEncoding.Strict().DecodeString(string(inner)) // skips line breaks only
		if err != nil {
			return nil, fmt.Errorf("%w: in the block: %v", NotOnePEM, err)
		}
		return der, nil
	}
	return nil, fmt.Errorf("%w: want one block CERTIFICATE REQUEST, nothing around it", NotOnePEM)
}

func parseDER(der []byte) (Request, error) {
	if len(der) > MaxDER {
		return Request{}, fmt.Errorf("%w: %d bytes of DER, at most %d are read", TooLarge, len(der), MaxDER)
	}
	csr, err := certreq.Parse(der)
	if err != nil {
		return Request{}, fmt.Errorf("%w: %w", NotARequest, err)
	}
	if len(csr.Subject) > maxAttributes || len(csr.Attributes) > maxAttributes || len(csr.Extensions) > maxAttributes {
		return Request{}, fmt.Errorf("%w: more than %d attributes or extensions", TooLarge, maxAttributes)
	}
	asked := map[string]bool{}
	for _, extension := range csr.Extensions {
		if asked[extension.ID] { // which of them counts is anyone's guess
			return Request{}, fmt.Errorf("%w: it asks for the extension %s twice", NotARequest, extension.ID)
		}
		asked[extension.ID] = true
	}
	r := Request{csr: csr}
	if r.challenges, err = challengesIn(csr); err != nil {
		return Request{}, err
	}
	return r, nil
}

// maxAttributes caps those of a subject, those of a request, and its
// extensions.
const maxAttributes = 24

// challengesIn finds what a device answers under the request's own signature:
// in the attribute challengePassword (RFC 2985, 5.4.1), or, for firmware that
// can only fill in a subject, as an organizational unit. The reader of a unit
// that is no challenge leaves it alone.
func challengesIn(csr *certreq.Request) (found []string, err error) {
	for _, a := range csr.Subject {
		if a.Type == oidOrganizationalUnit && bytes.HasPrefix(a.Value.Bytes, []byte(challengePrefix)) {
			found = append(found, string(a.Value.Bytes))
		}
	}
	for _, a := range csr.Attributes {
		if a.Type != oidChallengePassword {
			continue
		}
		if len(a.Values) != 1 {
			return nil, fmt.Errorf("%w: its challengePassword has not one value", NotARequest)
		}
		found = append(found, string(a.Values[0].Bytes))
	}
	return found, nil
}

// WithSignature adds a signature over a challenge that stands beside the
// request: base64 of ECDSA in DER, with SHA-256 or SHA-1, over the text of the
// challenge. The errors wrap a Refusal that is Malformed.
func (r Request) WithSignature(challenge, signature string) (Request, error) {
	if len(challenge) > maxChallenge || len(signature) > MaxText {
		return r, fmt.Errorf("%w: the challenge or its signature", TooLarge)
	}
	if (challenge == "") != (signature == "") {
		return r, fmt.Errorf("%w: a challenge and its signature go together", NoSignature)
	}
	if challenge == "" {
		return r, nil
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(signature)
	if err != nil || strings.ContainsAny(signature, "\r\n") {
		return r, fmt.Errorf("%w: the signature over the challenge", NotBase64)
	}
	r.detached = &detached{challenge, raw}
	return r, nil
}

// WithPeer adds the certificate with which the sender authenticated itself in
// TLS, whose handshake showed that it has the key. Whether it counts is decided
// later.
func (r Request) WithPeer(certificate *x509.Certificate) Request {
	r.peer = certificate
	return r
}

// AsRenewal asks for no more than to renew: without a peer that has a
// certificate of the device it is refused (NoPeer).
func (r Request) AsRenewal() Request {
	r.renewal = true
	return r
}

// DER returns a fresh copy of the request.
func (r Request) DER() []byte {
	if r.csr == nil {
		return nil
	}
	return bytes.Clone(r.csr.Raw)
}

// Claimed is the device that r says it comes from: what to look up, and nothing
// to believe. It is false where r does not have exactly one common name that is
// a device id; Decide refuses such a request by name.
func (r Request) Claimed() (board.DeviceID, bool) {
	names := r.commonNames()
	if len(names) != 1 {
		return board.DeviceID{}, false
	}
	id, err := deviceIDOf(names[0])
	return id, err == nil
}

func (r Request) commonNames() []asn1.RawValue {
	var names []asn1.RawValue
	if r.csr == nil {
		return nil
	}
	for _, a := range r.csr.Subject {
		if a.Type == oidCommonName {
			names = append(names, a.Value)
		}
	}
	return names
}

// deviceIDOf takes the string types with one byte a character; of the others no
// value is a device id, byte for byte.
func deviceIDOf(value asn1.RawValue) (board.DeviceID, error) {
	if value.Class != asn1.ClassUniversal || value.IsCompound {
		return board.DeviceID{}, fmt.Errorf("the common name is not a string")
	}
	switch value.Tag {
	case asn1.TagPrintableString, asn1.TagUTF8String, asn1.TagT61String, asn1.TagIA5String:
		return board.ParseDeviceID(string(value.Bytes))
	}
	return board.DeviceID{}, fmt.Errorf("the common name is of string type %d", value.Tag)
}

// answered is the challenge that r answers in whatever way; empty if none. once
// is false if there are several that differ.
func (r Request) answered() (challenge string, once bool) {
	all := r.challenges
	if r.detached != nil {
		all = append(all[:len(all):len(all)], r.detached.challenge)
	}
	for _, text := range all {
		if challenge != "" && text != challenge {
			return "", false
		}
		challenge = text
	}
	return challenge, true
}

// verify checks the signature over the challenge's text; nil is good.
func (d *detached) verify(key board.Key, refuseSHA1 bool) error {
	if d == nil {
		return nil
	}
	message := []byte(d.challenge)
	if public, ok := key.Public().(*ecdsa.PublicKey); ok {
		old, sum := sha1.Sum(message), sha256.Sum256(message)
		return unless(ecdsa.VerifyASN1(public, sum[:], d.signature) || !refuseSHA1 && ecdsa.VerifyASN1(public, old[:], d.signature),
			"the signature over the challenge is not of this key")
	}
	signer := x509.Certificate{PublicKey: key.Public()}
	return signer.CheckSignature(x509.SHA256WithRSA, message, d.signature)
}
