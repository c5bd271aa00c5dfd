package board

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"secretfree/station/board/certreq"
)

// proofBoard is a board with a key in software, for the proofs that cover a
// device id.
type proofBoard struct {
	id      DeviceID
	private *ecdsa.PrivateKey
	key     Key
}

func newProofBoard(t *testing.T) proofBoard {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey(private.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var id DeviceID
	rand.Read(id[:])
	return proofBoard{id, private, key}
}

func (b proofBoard) request(t *testing.T, subject pkix.Name, algorithm x509.SignatureAlgorithm) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, SignatureAlgorithm: algorithm}, b.private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func csrProof(t *testing.T, hash Hash, nonce string, der []byte) Proof {
	t.Helper()
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return Proof{Method: ProofCSR, Hash: hash, Nonces: [][]byte{[]byte(nonce)}, Signatures: [][]byte{request.Signature}, Request: der}
}

const proofNonce = "Zx81kPq0aaBcDeFgHiJkL"

func TestProofCSR(t *testing.T) {
	b, other := newProofBoard(t), newProofBoard(t)
	name := pkix.Name{CommonName: b.id.String(), OrganizationalUnit: []string{proofNonce}, Country: []string{"US"}}
	for hash, algorithm := range map[Hash]x509.SignatureAlgorithm{SHA1: x509.ECDSAWithSHA1, SHA256: x509.ECDSAWithSHA256} {
		p := csrProof(t, hash, proofNonce, b.request(t, name, algorithm))
		if err := p.Verify(b.id, b.key); err != nil {
			t.Errorf("%s: %v", hash, err)
		}
	}
	// What TI's example makes of a device id.
	for _, c := range []struct {
		id, name string
		ok       bool
	}{
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a0b", true}, {"a00bc0ffee0a0b0c0d0e0f1011121314", "a0bc0ffeeabcdef1011121314", true},
		{"010bc0ffee0a0b0c0d0e0f1011121314", "1", true}, {"000bc0ffee0a0b0c0d0e0f1011121314", "0", true},
		{"a01bc0ffee1a1b1c1d1e1f1011121314", "a01bc0ffee1a1b1c1d1e1f1011121314", true},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a1b", false}, {"a00bc0ffee0a0b0c0d0e0f1011121314", "a00", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a0bc0ffee0ab0c0d", false}, {"a01bc0ffee1a1b1c1d1e1f1011121314", "a01bc0ffee1a1b1c1d1e1f1011121315", false},
		// Names that are no digits of a device id.
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "none", true}, {"a00bc0ffee0a0b0c0d0e0f1011121314", "cc3220", true},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "", true}, {"a00bc0ffee0a0b0c0d0e0f1011121314", "A00BC0FFEE0A0B0C0D0E0F1011121314", true},
	} {
		id, err := ParseDeviceID(c.id)
		if err != nil {
			t.Fatal(err)
		}
		p := csrProof(t, SHA1, proofNonce, b.request(t, pkix.Name{CommonName: c.name, OrganizationalUnit: []string{proofNonce}}, x509.ECDSAWithSHA1))
		if err := p.Verify(id, b.key); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrProof) {
			t.Errorf("%s under the name %s: %v", c.id, c.name, err)
		}
	}
	good := func() Proof { return csrProof(t, SHA1, proofNonce, b.request(t, name, x509.ECDSAWithSHA1)) }
	with := func(change func(n *pkix.Name)) Proof {
		n := name
		change(&n)
		return csrProof(t, SHA1, proofNonce, b.request(t, n, x509.ECDSAWithSHA1))
	}
	altered := good()
	altered.Request = bytes.Replace(altered.Request, []byte(proofNonce), []byte(strings.ToLower(proofNonce)), 1)
	altered.Nonces = [][]byte{[]byte(strings.ToLower(proofNonce))}
	wide, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wideRequest, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name}, wide)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		proof  Proof
		change func(p *Proof)
		device DeviceID
		key    Key
		words  string
	}{
		"another nonce":        {change: func(p *Proof) { p.Nonces = [][]byte{[]byte("Another01234567890abc")} }, words: "another organizational unit"},
		"another key":          {key: other.key, words: "another key"},
		"another device":       {device: other.id, words: "another common name"},
		"signature of another": {change: func(p *Proof) { p.Signatures = good().Signatures }, words: "not the request's"},
		"content exchanged":    {proof: altered, words: "not by this key"},
		"bytes after it": {change: func(p *Proof) {
			p.Request = append(p.Request, 0)
		}, words: "the request: "},
		"cut":          {change: func(p *Proof) { p.Request = p.Request[:len(p.Request)-1] }, words: "the request: "},
		"no request":   {change: func(p *Proof) { p.Request = nil }, words: "the request: "},
		"too long":     {change: func(p *Proof) { p.Request = make([]byte, certreq.MaxBytes+1) }, words: "at most"},
		"another hash": {change: func(p *Proof) { p.Hash = SHA256 }, words: "not with ECDSA and sha256"},
		"SHA-384":      {proof: csrProof(t, SHA256, proofNonce, wideRequest), words: "not with ECDSA and sha256"},
		"two nonces": {change: func(p *Proof) {
			p.Nonces = append(p.Nonces, []byte("Another01234567890abc"))
			p.Signatures = append(p.Signatures, p.Signatures[0])
		}, words: "want 1 to 1"},
		"nonce with a space": {change: func(p *Proof) { p.Nonces = [][]byte{[]byte("Zx81kPq0aaB DeFgHiJkL")} }, words: "letters and digits"},
		"two units": {proof: with(func(n *pkix.Name) { n.OrganizationalUnit = []string{proofNonce, proofNonce} }),
			words: "2 of organizational unit"},
		"no unit": {proof: with(func(n *pkix.Name) { n.OrganizationalUnit = nil }), words: "0 of organizational unit"},
		"two names": {proof: with(func(n *pkix.Name) {
			n.ExtraNames = []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "none"}, {Type: []int{2, 5, 4, 3}, Value: "none"}}
		}), words: "2 of common name"},
		"name in capitals":            {proof: with(func(n *pkix.Name) { n.CommonName = strings.ToUpper(n.CommonName) + "A" }), words: "another common name"},
		"request in sign-msg":         {change: func(p *Proof) { p.Method = ProofReport }, words: "has no request"},
		"empty request in report":     {change: func(p *Proof) { p.Method, p.Request = ProofReport, []byte{} }, words: "has no request"},
		"a method that nobody knows":  {change: func(p *Proof) { p.Method = "word" }, words: "unknown method"},
		"a signature longer than any": {change: func(p *Proof) { p.Signatures = [][]byte{make([]byte, maxSig+1)} }, words: "a signature of"},
	} {
		t.Run(what, func(t *testing.T) {
			p, device, key := c.proof, b.id, b.key
			if p.Method == "" {
				p = good()
			}
			if c.change != nil {
				c.change(&p)
			}
			if c.device != (DeviceID{}) {
				device = c.device
			}
			if c.key != (Key{}) {
				key = c.key
			}
			if err := p.Verify(device, key); !errors.Is(err, ErrProof) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v, want %v with %q", err, ErrProof, c.words)
			}
		})
	}
}

func TestProofReport(t *testing.T) {
	b, other := newProofBoard(t), newProofBoard(t)
	sign := func(hash Hash, message []byte) []byte {
		var digest []byte
		switch hash {
		case SHA1:
			d := sha1.Sum(message)
			digest = d[:]
		default:
			d := sha256.Sum256(message)
			digest = d[:]
		}
		der, err := b.private.Sign(rand.Reader, digest, map[Hash]crypto.Hash{SHA1: crypto.SHA1, SHA256: crypto.SHA256}[hash])
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	if got, want := string(ReportMessage(b.id, []byte("abc"))), "secretfree 1 abc "+b.id.String(); got != want {
		t.Fatalf("the message is %q, want %q", got, want)
	}
	good := func(hash Hash) Proof {
		return Proof{Method: ProofReport, Hash: hash, Nonces: [][]byte{[]byte(proofNonce)},
			Signatures: [][]byte{sign(hash, ReportMessage(b.id, []byte(proofNonce)))}}
	}
	for _, hash := range []Hash{SHA1, SHA256} {
		p := good(hash)
		if err := p.Verify(b.id, b.key); err != nil {
			t.Errorf("%s: %v", hash, err)
		}
	}
	for what, c := range map[string]struct {
		change func(p *Proof)
		device DeviceID
		key    Key
		words  string
	}{
		"another nonce":       {change: func(p *Proof) { p.Nonces = [][]byte{[]byte("Another01234567890abc")} }, words: "not by this key"},
		"another device":      {device: other.id, words: "not by this key"},
		"another key":         {key: other.key, words: "not by this key"},
		"another hash":        {change: func(p *Proof) { p.Hash = SHA1 }, words: "not by this key"},
		"the nonce alone":     {change: func(p *Proof) { p.Signatures = [][]byte{sign(SHA256, p.Nonces[0])} }, words: "not by this key"},
		"bytes after it":      {change: func(p *Proof) { p.Signatures[0] = append(p.Signatures[0], 0) }, words: "not by this key"},
		"no nonce":            {change: func(p *Proof) { p.Nonces, p.Signatures = nil, nil }, words: "want 1 to 1"},
		"a short nonce":       {change: func(p *Proof) { p.Nonces = [][]byte{[]byte("short")} }, words: "a nonce of 5 bytes"},
		"a nonce with spaces": {change: func(p *Proof) { p.Nonces = [][]byte{[]byte("secretfree 1 abcdef")} }, words: "letters and digits"},
	} {
		t.Run(what, func(t *testing.T) {
			p, device, key := good(SHA256), b.id, b.key
			if c.change != nil {
				c.change(&p)
			}
			if c.device != (DeviceID{}) {
				device = c.device
			}
			if c.key != (Key{}) {
				key = c.key
			}
			if err := p.Verify(device, key); !errors.Is(err, ErrProof) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v, want %v with %q", err, ErrProof, c.words)
			}
		})
	}
}

// The new field has one form in JSON as well: absent unless there is a request.
func TestProofJSON(t *testing.T) {
	b := newProofBoard(t)
	der := b.request(t, pkix.Name{CommonName: b.id.String(), OrganizationalUnit: []string{proofNonce}}, x509.ECDSAWithSHA256)
	for what, p := range map[string]Proof{
		"csr":    csrProof(t, SHA256, proofNonce, der),
		"report": {Method: ProofReport, Hash: SHA1, Nonces: [][]byte{[]byte(proofNonce)}, Signatures: [][]byte{{1}}},
	} {
		text, err := json.Marshal(&p)
		if err != nil {
			t.Fatal(err)
		}
		if has := strings.Contains(string(text), `"request"`); has != (p.Method == ProofCSR) {
			t.Errorf("%s: %s", what, text)
		}
		var again Proof
		if err := decodeJSON(text, &again); err != nil || again.check() != nil || !bytes.Equal(again.Request, p.Request) {
			t.Errorf("%s: %v, %v", what, err, again.check())
		}
	}
}
