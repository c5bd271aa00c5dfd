package board

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	_ "crypto/sha1" // what stock firmware signs with; possession evidence only, never a certificate
	_ "crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"secretfree/station/board/certreq"
)

// ProofMethod names how a board proved that it owns its key, and so what a
// signature covers.
type ProofMethod string

const (
	// ProofSignMsg: each signature is ECDSA in DER (RFC 3279, 2.2.3) over the
	// hash of one nonce. It takes at least two nonces: the key is recovered
	// from the signatures themselves, and from a single one a key can be
	// recovered that nobody owns.
	ProofSignMsg ProofMethod = "sign-msg"
	// ProofCSR: Request is a certificate signing request (PKCS #10, DER) of the
	// board. The one nonce is its one organizational unit. Its common name, if
	// it has one, is not made of the digits of another device id: padded, run
	// together without padding, or cut short as TI's example does, after the
	// first byte of one digit. The one signature is a copy of the request's
	// own, which is ECDSA over the hash of the request's
	// CertificationRequestInfo.
	ProofCSR ProofMethod = "csr"
	// ProofReport: the one signature is ECDSA in DER over the hash of what
	// ReportMessage returns.
	ProofReport ProofMethod = "report"
)

// Hash names the hash function under a signature.
type Hash string

// The hashes that boards use.
const (
	SHA1   Hash = "sha1"
	SHA256 Hash = "sha256"
)

// Proof shows, with the device id and the key of its record and nothing else,
// that the board owned the private key when it was read: the station chose the
// nonces at random and the board signed them. Its form depends on the method;
// each method has one form.
type Proof struct {
	Method     ProofMethod `json:"method"`
	Hash       Hash        `json:"hash"`
	Nonces     [][]byte    `json:"nonces"`
	Signatures [][]byte    `json:"signatures"`
	Request    []byte      `json:"request,omitempty"` // of ProofCSR, and nil otherwise
}

// ErrProof says that a proof of possession does not hold.
var ErrProof = errors.New("proof of possession does not hold")

const (
	minNonce  = 12 // bytes
	maxNonce  = 128
	maxSig    = 1024
	maxProofs = 8
)

// ReportMessage is what a board of the dialect "report" signs: "secretfree 1 ",
// the nonce, a space, the device id as text. Neither a bare nonce nor a request
// can be taken for it.
func ReportMessage(device DeviceID, nonce []byte) []byte {
	return fmt.Appendf(nil, "secretfree 1 %s %s", nonce, device)
}

func (h Hash) sum(message []byte) ([]byte, error) {
	var f crypto.Hash
	switch h {
	case SHA1:
		f = crypto.SHA1
	case SHA256:
		f = crypto.SHA256
	default:
		return nil, fmt.Errorf("%w: unknown hash %q", ErrProof, h)
	}
	w := f.New()
	w.Write(message)
	return w.Sum(nil), nil
}

// check looks at the form alone.
func (p *Proof) check() error {
	least, most := 1, 1
	switch p.Method {
	case ProofSignMsg:
		least, most = 2, maxProofs
	case ProofCSR, ProofReport:
	default:
		return fmt.Errorf("%w: unknown method %q", ErrProof, p.Method)
	}
	if _, err := p.Hash.sum(nil); err != nil {
		return err
	}
	if len(p.Nonces) < least || len(p.Nonces) > most || len(p.Nonces) != len(p.Signatures) {
		return fmt.Errorf("%w: %d nonces and %d signatures, want %d to %d of each", ErrProof, len(p.Nonces), len(p.Signatures), least, most)
	}
	for i, nonce := range p.Nonces {
		if len(nonce) < minNonce || len(nonce) > maxNonce {
			return fmt.Errorf("%w: a nonce of %d bytes, want %d to %d", ErrProof, len(nonce), minNonce, maxNonce)
		}
		// Where other text surrounds a nonce, nothing in the nonce may be taken
		// for that text.
		if p.Method != ProofSignMsg && bytes.ContainsFunc(nonce, notAlphanumeric) {
			return fmt.Errorf("%w: a nonce that is not of letters and digits", ErrProof)
		}
		if len(p.Signatures[i]) == 0 || len(p.Signatures[i]) > maxSig {
			return fmt.Errorf("%w: a signature of %d bytes", ErrProof, len(p.Signatures[i]))
		}
		for _, other := range p.Nonces[:i] {
			if bytes.Equal(nonce, other) {
				return fmt.Errorf("%w: the same nonce twice", ErrProof)
			}
		}
	}
	if p.Method != ProofCSR {
		if p.Request != nil {
			return fmt.Errorf("%w: method %s has no request", ErrProof, p.Method)
		}
		return nil
	}
	_, err := p.parseRequest()
	return err
}

func notAlphanumeric(r rune) bool {
	return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

// parseRequest reads the request and checks that the hash and the signature
// beside it are the request's.
func (p *Proof) parseRequest() (*certreq.Request, error) {
	request, err := certreq.Parse(p.Request)
	if err != nil {
		return nil, fmt.Errorf("%w: the request: %w", ErrProof, err)
	}
	if !bytes.Equal(request.Signature, p.Signatures[0]) {
		return nil, fmt.Errorf("%w: the signature is not the request's", ErrProof)
	}
	signedWith := map[x509.SignatureAlgorithm]Hash{x509.ECDSAWithSHA1: SHA1, x509.ECDSAWithSHA256: SHA256}[request.SignatureAlgorithm]
	if signedWith != p.Hash {
		return nil, fmt.Errorf("%w: the request is signed with the algorithm %s, not with ECDSA and %s", ErrProof, request.SignatureOID, p.Hash)
	}
	return request, nil
}

// Verify checks every signature of p under key, and, where the method covers
// the device id, that it is device.
func (p *Proof) Verify(device DeviceID, key Key) error {
	if err := p.check(); err != nil {
		return err
	}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("%w: method %s needs an ECDSA key", ErrProof, p.Method)
	}
	messages := p.Nonces
	switch p.Method {
	case ProofCSR:
		message, err := p.requestMessage(device, key)
		if err != nil {
			return err
		}
		messages = [][]byte{message}
	case ProofReport:
		messages = [][]byte{ReportMessage(device, p.Nonces[0])}
	}
	for i, message := range messages {
		digest, err := p.Hash.sum(message)
		if err != nil {
			return err
		}
		if !ecdsa.VerifyASN1(public, digest, p.Signatures[i]) {
			return fmt.Errorf("%w: signature %d of %d is not by this key", ErrProof, i+1, len(messages))
		}
	}
	return nil
}

// requestMessage checks what the request says, and returns what its signature
// covers.
func (p *Proof) requestMessage(device DeviceID, key Key) ([]byte, error) {
	request, err := p.parseRequest()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(request.SPKI, key.SPKI()) {
		return nil, fmt.Errorf("%w: the request is for another key", ErrProof)
	}
	unit, units := request.SubjectText("2.5.4.11")
	if units != 1 {
		return nil, fmt.Errorf("%w: the request has %d of organizational unit, want 1", ErrProof, units)
	}
	if unit != string(p.Nonces[0]) {
		return nil, fmt.Errorf("%w: the request has another organizational unit", ErrProof)
	}
	name, names := request.SubjectText("2.5.4.3")
	if names > 1 {
		return nil, fmt.Errorf("%w: the request has %d of common name, want at most 1", ErrProof, names)
	}
	if namesAnother(device, name) {
		return nil, fmt.Errorf("%w: the request has another common name", ErrProof)
	}
	return request.TBS, nil
}

// namesAnother tells whether a common name is the digits of another device id.
// Firmware may have any other name: it is decoration.
func namesAnother(device DeviceID, name string) bool {
	digits := strings.ToLower(name)
	if slices.Contains(commonNames(device), digits) || strings.Trim(digits, "0123456789abcdef") != "" {
		return false
	}
	if len(digits) >= len(device) { // the least that 16 bytes take
		return true
	}
	// TI's code cuts a name short: bytes of two digits, and one of one.
	for i := 0; i+1 < len(digits); i += 2 {
		if digits[i] == '0' {
			return false
		}
	}
	return len(digits)%2 == 1
}

// commonNames are the forms in which a request can hold a device id.
func commonNames(device DeviceID) []string {
	joined, short := "", ""
	for _, b := range device {
		joined += strconv.FormatUint(uint64(b), 16)
		if short == "" && b < 0x10 {
			short = joined
		}
	}
	if short == "" {
		short = joined
	}
	return []string{device.String(), joined, short}
}
