package issuer

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"strings"

	"secretfree/station/board"
)

// Caps on a request, in bytes. The base64 of the PEM of a request of MaxDER bytes fits into MaxText.
const (
	MaxDER  = 4096
	MaxText = 8192
)

// Request is a certificate signing request (PKCS #10, RFC 2986) that was parsed, and nothing more: nothing in it
// is believed yet. It is parsed once; Decide, logs and certificates use this value.
type Request struct {
	csr        *x509.CertificateRequest
	attributes []attribute // of the subject, in order
}

// attribute is one AttributeTypeAndValue of a distinguished name. The value stays raw, because decoders
// fold the string types into one.
type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type relativeNameSET []attribute // the suffix tells encoding/asn1 that it is a SET OF

// ParseHeader reads the value of a device-csr header: the base64 of a PEM block, in one line.
func ParseHeader(value string) (Request, error) {
	if len(value) > MaxText {
		return Request{}, fmt.Errorf("%w: a header of %d bytes, at most %d are read", TooLarge, len(value), MaxText)
	}
	if strings.ContainsAny(value, "\r\n") { // which the decoder would skip
		return Request{}, fmt.Errorf("%w: a line break in the header", NotBase64)
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

// ParseRequest reads a body: PEM, DER, or the base64 of the DER with or without line breaks. Its errors wrap a
// Refusal that is Malformed.
func ParseRequest(data []byte) (Request, error) {
	if len(data) > MaxText {
		return Request{}, fmt.Errorf("%w: %d bytes, at most %d are read", TooLarge, len(data), MaxText)
	}
	switch {
	case len(data) == 0:
		return Request{}, NoRequest
	case data[0] == 0x30: // a SEQUENCE; in base64 it would start with M
		return parseDER(data)
	case bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN ")):
		der, err := decodePEM(data)
		if err != nil {
			return Request{}, err
		}
		return parseDER(der)
	}
	der, err := base64.StdEncoding.Strict().DecodeString(string(bytes.TrimSpace(data)))
	if err != nil {
		return Request{}, fmt.Errorf("%w: neither PEM nor DER: %v", NotBase64, err)
	}
	return parseDER(der)
}

// decodePEM takes one block (RFC 7468) with white space around it and nothing else; the standard
// decoder would step over a block that it cannot read and take the next. Carriage returns go
// anywhere, because the boards' own firmware puts them anywhere.
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
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return Request{}, fmt.Errorf("%w: %v", NotARequest, err)
	}
	var names []relativeNameSET
	if rest, err := asn1.Unmarshal(csr.RawSubject, &names); err != nil || len(rest) > 0 {
		return Request{}, fmt.Errorf("%w: its subject cannot be read", NotARequest)
	}
	r := Request{csr: csr}
	for _, name := range names {
		r.attributes = append(r.attributes, name...)
	}
	return r, nil
}

// DER returns a fresh copy of the request.
func (r Request) DER() []byte {
	if r.csr == nil {
		return nil
	}
	return bytes.Clone(r.csr.Raw)
}

// Claimed is the device that r says it comes from: what to look up, and nothing to believe. It is false
// where r does not have exactly one common name that is a device id; Decide refuses such a
// request by name.
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
	for _, a := range r.attributes {
		if a.Type.String() == oidCommonName {
			names = append(names, a.Value)
		}
	}
	return names
}

// deviceIDOf takes the string types with one byte a character; of the others no value is a device id, byte for byte.
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
