// Package issuertest has what tests of the issuer need: stations, boards,
// requests in which anything can be wrong, a registry and claims in memory, and
// an issuer with one enrolled board.
package issuertest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud/issuer"
	"secretfree/station/board"
)

const (
	SKU    = "widgiot"
	CAName = "main"
)

// Station is a signing station with its note key.
type Station struct {
	note.Signer
	Verifier note.Verifier
	name     string
	sku      string
	Public   string // the text of its key
}

func NewStation(t testing.TB, sku, name string) Station {
	t.Helper()
	return StationFrom(t, rand.Reader, sku, name)
}

func StationFrom(t testing.TB, random io.Reader, sku, name string) Station {
	t.Helper()
	secret, public, err := note.GenerateKey(random, board.Origin(sku, name))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return Station{signer, verifier, name, sku, public}
}

// Board is a board with its key in software.
type Board struct {
	ID  board.DeviceID
	Key crypto.Signer
}

func NewBoard(t testing.TB) Board {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := Board{Key: key}
	_, _ = rand.Read(s.ID[:])
	return s
}

// fuzzed are a station and two boards, the same in each of the processes that a
// fuzzer starts.
func Fuzzed(f *testing.F) (st Station, boards [2]Board) {
	f.Helper()
	random := mathrand.NewChaCha8([32]byte{1})
	st = StationFrom(f, random, SKU, "line3-a")
	for i := range boards {
		scalar := make([]byte, 32)
		_, _ = random.Read(scalar[1:])
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
		if err != nil {
			f.Fatal(err)
		}
		boards[i].Key = key
		_, _ = random.Read(boards[i].ID[:])
	}
	return st, boards
}

func (s Board) BoardKey(t testing.TB) board.Key {
	t.Helper()
	key, err := board.NewKey(s.Key.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// record is what the station wrote down about s.
func (s Board) Record(t testing.TB, st Station) board.Record {
	t.Helper()
	r := board.Record{
		SKU: st.sku, Station: st.name, Device: s.ID, Key: s.BoardKey(t), Generation: 1,
		ReadAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	if _, ok := s.Key.(*ecdsa.PrivateKey); ok {
		r.Proof = &board.Proof{Method: board.ProofSignMsg, Hash: board.SHA1}
		for range 2 {
			nonce := make([]byte, 20)
			_, _ = rand.Read(nonce)
			digest := sha1.Sum(nonce)
			signature, err := s.Key.Sign(rand.Reader, digest[:], crypto.SHA1)
			if err != nil {
				t.Fatal(err)
			}
			r.Proof.Nonces = append(r.Proof.Nonces, nonce)
			r.Proof.Signatures = append(r.Proof.Signatures, signature)
		}
	}
	return r
}

// enrolment is the registry's item of a record.
func Enrolment(t testing.TB, r board.Record, st Station) board.Enrolment {
	t.Helper()
	sealed, err := board.Seal(r, st)
	if err != nil {
		t.Fatal(err)
	}
	return EnrolmentOf(sealed)
}

func EnrolmentOf(sealed board.Sealed) board.Enrolment {
	r := sealed.Record()
	return board.Enrolment{
		Device: r.Device, Key: r.Key, Envelope: sealed.Envelope(), Station: r.Station,
		EnrolledAt: r.ReadAt, State: board.Active, Generation: r.Generation,
	}
}

// nameAttribute is one AttributeTypeAndValue of a distinguished name.
type NameAttribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type nameSET []NameAttribute // the suffix tells encoding/asn1 that it is a SET OF

// CSR is a request built by hand, so that anything in it can be wrong.
type CSR struct {
	Key        crypto.Signer
	Subject    [][]NameAttribute // relative distinguished names
	Extensions []Extension
	SHA256     bool             // else ECDSA with SHA-1, as the boards do
	Passwords  []string         // values of the attribute challengePassword
	Raw        [][]byte         // further attributes, as they are
	Public     crypto.PublicKey // spliced in, instead of the signing key's
}

type Extension struct {
	ID       asn1.ObjectIdentifier
	Critical bool `asn1:"optional"`
	Value    []byte
}

func Name(oid asn1.ObjectIdentifier, tag int, value string) []NameAttribute {
	return []NameAttribute{{oid, asn1.RawValue{Tag: tag, Bytes: []byte(value)}}}
}

func CN(value string) []NameAttribute {
	return Name(asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.TagPrintableString, value)
}

// CSR is the plain request of s.
func (s Board) CSR() CSR { return CSR{Key: s.Key, Subject: [][]NameAttribute{CN(s.ID.String())}} }

func MustASN1(t testing.TB, v any, params string) []byte {
	t.Helper()
	der, err := asn1.MarshalWithParams(v, params)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (c CSR) DER(t testing.TB) []byte {
	t.Helper()
	var subject []nameSET
	for _, n := range c.Subject {
		subject = append(subject, n)
	}
	public := c.Public
	if public == nil {
		public = c.Key.Public()
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	var attributes []asn1.RawValue
	if c.Extensions != nil {
		request := MustASN1(t, struct {
			ID     asn1.ObjectIdentifier
			Values [][]Extension `asn1:"set"`
		}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}, [][]Extension{c.Extensions}}, "")
		attributes = append(attributes, asn1.RawValue{FullBytes: request})
	}
	if c.Passwords != nil {
		attributes = append(attributes, asn1.RawValue{FullBytes: MustASN1(t, struct {
			ID     asn1.ObjectIdentifier
			Values []string `asn1:"set"`
		}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, c.Passwords}, "")})
	}
	for _, der := range c.Raw {
		attributes = append(attributes, asn1.RawValue{FullBytes: der})
	}
	info := MustASN1(t, struct {
		Version    int
		Subject    []nameSET
		Public     asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}{0, subject, asn1.RawValue{FullBytes: spki}, attributes}, "")

	type algorithm struct {
		ID         asn1.ObjectIdentifier
		Parameters asn1.RawValue `asn1:"optional"`
	}
	var digest []byte
	var hash crypto.Hash
	var alg algorithm
	if _, isRSA := c.Key.(*rsa.PrivateKey); isRSA || c.SHA256 {
		sum := sha256.Sum256(info)
		digest, hash = sum[:], crypto.SHA256
		alg.ID = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
		if isRSA {
			alg = algorithm{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, asn1.NullRawValue}
		}
	} else {
		sum := sha1.Sum(info)
		digest, hash = sum[:], crypto.SHA1
		alg.ID = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
	}
	signature, err := c.Key.Sign(rand.Reader, digest, hash)
	if err != nil {
		t.Fatal(err)
	}
	return MustASN1(t, struct {
		Info      asn1.RawValue
		Algorithm algorithm
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: info}, alg, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}, "")
}

func (c CSR) PEM(t testing.TB) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: c.DER(t)})
}

// answer is the base64 of a signature over a challenge.
func (s Board) Answer(t testing.TB, challenge string, hash crypto.Hash) string {
	t.Helper()
	h := hash.New()
	h.Write([]byte(challenge))
	signature, err := s.Key.Sign(rand.Reader, h.Sum(nil), hash)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(signature)
}

// challenges of a fixed key.
func Challenges(t testing.TB) *issuer.Challenges {
	t.Helper()
	c, err := issuer.NewChallenges(SKU, bytes.Repeat([]byte("k"), 32), issuer.DefaultChallengeLife)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c CSR) Header(t testing.TB) string { return base64.StdEncoding.EncodeToString(c.PEM(t)) }

func (c CSR) Request(t testing.TB) issuer.Request {
	t.Helper()
	r, err := issuer.ParseRequest(c.DER(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Registry is a registry in memory.
type Registry struct {
	Mu    sync.Mutex
	Items map[board.DeviceID]board.Enrolment
	Err   error
	Fault func(step string) error
	Calls int
}

func (m *Registry) Lookup(_ context.Context, id board.DeviceID) (board.Enrolment, error) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.Calls++
	if m.Err != nil {
		return board.Enrolment{}, m.Err
	}
	if m.Fault != nil {
		if err := m.Fault("lookup"); err != nil {
			return board.Enrolment{}, err
		}
	}
	e, ok := m.Items[id]
	if !ok {
		return board.Enrolment{}, fmt.Errorf("memory: %w", board.ErrNotEnrolled)
	}
	return e, nil
}

func (m *Registry) Put(e board.Enrolment) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	if m.Items == nil {
		m.Items = map[board.DeviceID]board.Enrolment{}
	}
	m.Items[e.Device] = e
}

// Claims is the plain model of Claims.
type Claims struct {
	mu     sync.Mutex
	Stored map[string]issuer.Issuance
	Fault  func(step string) error
}

func (m *Claims) step(name string) error {
	if m.Fault == nil {
		return nil
	}
	return m.Fault(name)
}

func (m *Claims) Issuances(_ context.Context, device board.DeviceID) ([]issuer.Issuance, error) {
	if err := m.step("before read"); err != nil {
		return nil, err
	}
	var out []issuer.Issuance
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.Stored {
		if i.Claim.Device == device {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b issuer.Issuance) int { return strings.Compare(a.Claim.SortKey(), b.Claim.SortKey()) })
	return out, nil
}

func (m *Claims) Create(_ context.Context, i issuer.Issuance) (issuer.Issuance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step("before create"); err != nil {
		return issuer.Issuance{}, err
	}
	if m.Stored == nil {
		m.Stored = map[string]issuer.Issuance{}
	}
	if _, ok := m.Stored[i.Claim.ID()]; !ok {
		m.Stored[i.Claim.ID()] = i
	}
	return m.Stored[i.Claim.ID()], m.step("after create")
}

func (m *Claims) Replace(_ context.Context, next issuer.Issuance) (issuer.Issuance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step("before replace"); err != nil {
		return issuer.Issuance{}, err
	}
	stored, ok := m.Stored[next.Claim.ID()]
	if !ok {
		return issuer.Issuance{}, issuer.ErrNoClaim
	}
	if stored.Version+1 == next.Version {
		stored = next
		m.Stored[next.Claim.ID()] = next
	}
	return stored, m.step("after replace")
}

func (m *Claims) Serial(_ context.Context, serial issuer.Serial) (issuer.Issuance, error) {
	for _, i := range m.Snapshot() {
		if i.Claim.Serial == serial {
			return i, nil
		}
	}
	return issuer.Issuance{}, issuer.ErrNoClaim
}

func (m *Claims) All(context.Context) iter.Seq2[issuer.Issuance, error] {
	return func(yield func(issuer.Issuance, error) bool) {
		for _, i := range m.Snapshot() {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func (m *Claims) Snapshot() map[string]issuer.Issuance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.Stored)
}

// CountingCA counts what is signed, and can fail before or after it.
type CountingCA struct {
	issuer.CA
	mu     sync.Mutex
	Issued map[string]int // by the certificate's bytes
	Before func() error
	After  func(*issuer.Certificate) error
}

func (c *CountingCA) Issue(ctx context.Context, a issuer.Approved, claim issuer.Claim, memo issuer.CAState) (issuer.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Before != nil {
		if err := c.Before(); err != nil {
			return issuer.Certificate{}, err
		}
	}
	out, err := c.CA.Issue(ctx, a, claim, memo)
	if err != nil {
		return out, err
	}
	if c.Issued == nil {
		c.Issued = map[string]int{}
	}
	c.Issued[string(out.Leaf)]++
	if c.After != nil {
		err = c.After(&out)
	}
	return out, err
}

var ErrInjected = errors.New("injected")

// Once fails the first call that matches.
func Once(match string) func(step string) error {
	done := false
	return func(step string) error {
		if done || step != match {
			return nil
		}
		done = true
		return ErrInjected
	}
}

func Equal(a, b issuer.Certificate) bool {
	if !bytes.Equal(a.Leaf, b.Leaf) || len(a.Chain) != len(b.Chain) {
		return false
	}
	for i := range a.Chain {
		if !bytes.Equal(a.Chain[i], b.Chain[i]) {
			return false
		}
	}
	return true
}

// MemCAState is a memo in memory.
type MemCAState struct {
	mu     sync.Mutex
	Text   string
	writes int
	Fail   func(text string) error // before it is kept
}

func (m *MemCAState) Read() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.Text
}

func (m *MemCAState) Write(_ context.Context, text string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.Fail != nil {
		if err := m.Fail(text); err != nil {
			return err
		}
	}
	m.Text = text
	return nil
}

// approvedFor is what Decide gives for a new board.
func Approved(t testing.TB) issuer.Approved {
	t.Helper()
	st, b := NewStation(t, SKU, "line3-a"), NewBoard(t)
	item := Enrolment(t, b.Record(t, st), st)
	a, err := issuer.Decide(b.CSR().Request(t), &item, issuer.Policy{SKU: SKU, Stations: []board.Verifier{st.Verifier}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func NewClaim(t testing.TB, a issuer.Approved) issuer.Claim {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	c := issuer.Claim{
		Device: a.Device(), Fingerprint: a.Key().Fingerprint(), Generation: a.Generation(), Epoch: 1, CA: CAName,
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.AddDate(10, 0, 0), Created: now,
	}
	_, _ = rand.Read(c.Serial[:]) // never fails (crypto/rand)
	return c
}

// begun is the first version of an issuance.
func Begun(c issuer.Claim) issuer.Issuance {
	return issuer.Issuance{Claim: c, Version: 1, State: issuer.Claimed}
}

// deviceTemplate is what a local CA signs, for benchmarks that do no more than
// that.
func DeviceTemplate(device board.DeviceID, key board.Key, serial issuer.Serial, from, to time.Time) *x509.Certificate {
	fingerprint := key.Fingerprint()
	return &x509.Certificate{
		SerialNumber: serial.Int(), Subject: pkix.Name{CommonName: device.String()}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, SubjectKeyId: fingerprint[:20],
	}
}
