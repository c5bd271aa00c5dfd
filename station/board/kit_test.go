package board_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// device is a board with its key in software.
type device struct {
	*ecdsa.PrivateKey
}

func newDevice(t testing.TB, curve elliptic.Curve) device {
	t.Helper()
	private, err := ecdsa.GenerateKey(curve, rand.Reader)
	must(t, err)
	return device{private}
}

// fixedDevice always has the same key.
func fixedDevice(t testing.TB) device {
	t.Helper()
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{0x5e}, 32))
	must(t, err)
	return device{private}
}

func (d device) key(t testing.TB) board.Key {
	t.Helper()
	key, err := board.NewKey(d.Public(), nil)
	must(t, err)
	return key
}

func (d device) spki(t testing.TB) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(d.Public())
	must(t, err)
	return spki
}

// proof signs the nonces. The same nonces give the same signatures (RFC 6979).
func (d device) proof(t testing.TB, hash board.Hash, nonces ...string) *board.Proof {
	t.Helper()
	p := &board.Proof{Method: board.ProofSignMsg, Hash: hash}
	f := map[board.Hash]crypto.Hash{board.SHA1: crypto.SHA1, board.SHA256: crypto.SHA256}[hash]
	for _, nonce := range nonces {
		w := f.New()
		w.Write([]byte(nonce))
		signature, err := d.Sign(nil, w.Sum(nil), f)
		must(t, err)
		p.Nonces = append(p.Nonces, []byte(nonce))
		p.Signatures = append(p.Signatures, signature)
	}
	return p
}

// fixedNonce is what fixedDevice signs where there is one nonce.
const fixedNonce = "Zx81kPq0aaBcDeFgHiJkL"

// requestProof is that of a board whose firmware makes requests.
func (d device) requestProof(t testing.TB, id board.DeviceID, nonce string) *board.Proof {
	t.Helper()
	name := pkix.Name{CommonName: id.String(), OrganizationalUnit: []string{nonce}}
	der, err := x509.CreateCertificateRequest(nil, &x509.CertificateRequest{Subject: name, SignatureAlgorithm: x509.ECDSAWithSHA1}, d.PrivateKey)
	must(t, err)
	request, err := x509.ParseCertificateRequest(der)
	must(t, err)
	return &board.Proof{
		Method: board.ProofCSR, Hash: board.SHA1, Nonces: [][]byte{[]byte(nonce)},
		Signatures: [][]byte{request.Signature}, Request: der,
	}
}

// reportProof is that of a board whose firmware reports by itself.
func (d device) reportProof(t testing.TB, id board.DeviceID, nonce string) *board.Proof {
	t.Helper()
	p := d.proof(t, board.SHA256, string(board.ReportMessage(id, []byte(nonce))))
	p.Method, p.Nonces = board.ProofReport, [][]byte{[]byte(nonce)}
	return p
}

func parseID(t testing.TB, s string) board.DeviceID {
	t.Helper()
	id, err := board.ParseDeviceID(s)
	must(t, err)
	return id
}

// fixedRecord is the record of the golden files.
func fixedRecord(t testing.TB) board.Record {
	t.Helper()
	d := fixedDevice(t)
	return board.Record{
		SKU: "widgiot", Station: "line3-a",
		Device: parseID(t, "4d1f000ab3c05a9e61f2d47788aabbcc"), Key: d.key(t),
		ReadAt: time.Date(2024, 2, 29, 23, 59, 59, 40_000_000, time.UTC), Generation: 1,
		Facts: map[string]string{
			"dialect": "ti-at", "chip": "0x31000019", "nwp-version": "4.4.1.3", "mac": "08:00:28:5b:55:e0",
			"remark": `<"quoted" & \ ~>.`,
		},
		Proof: d.proof(t, board.SHA1, "cdpNhkYF8kg8qPsjkBbit", "Qm3kZ0a9TtYw2LxV7uHsP", "e5R1nJcG6oDfB4iKqXvMz"),
	}
}

func encode(t testing.TB, r board.Record) []byte {
	t.Helper()
	data, err := r.Encode()
	must(t, err)
	return data
}

// station signs with an Ed25519 key; it is a board.Signer.
type station struct {
	note.Verifier
	private ed25519.PrivateKey
}

func (s station) Sign(message []byte) ([]byte, error) { return ed25519.Sign(s.private, message), nil }

// newStation always makes the same key of the same seed.
func newStation(t testing.TB, origin string, seed byte) station {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	text, err := note.NewEd25519VerifierKey(origin, private.Public().(ed25519.PublicKey))
	must(t, err)
	verifier, err := note.NewVerifier(text)
	must(t, err)
	return station{verifier, private}
}

// fixedStation is the station of the golden files.
func fixedStation(t testing.TB) station { return newStation(t, "widgiot/line3-a", 0x5f) }

func seal(t testing.TB, r board.Record, s board.Signer) board.Sealed {
	t.Helper()
	sealed, err := board.Seal(r, s)
	must(t, err)
	return sealed
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	must(t, err)
	return b
}
