package issuer

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

	"secretfree/station/board"
)

const (
	testSKU = "widgiot"
	testCA  = "main"
)

// station is a signing station with its note key.
type station struct {
	note.Signer
	verifier note.Verifier
	name     string
	sku      string
	public   string // the text of its key
}

func newStation(t testing.TB, sku, name string) station {
	t.Helper()
	return stationFrom(t, rand.Reader, sku, name)
}

func stationFrom(t testing.TB, random io.Reader, sku, name string) station {
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
	return station{signer, verifier, name, sku, public}
}

// simulated is a board with its key in software.
type simulated struct {
	id  board.DeviceID
	key crypto.Signer
}

func newSimulated(t testing.TB) simulated {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := simulated{key: key}
	_, _ = rand.Read(s.id[:])
	return s
}

// fuzzed are a station and two boards, the same in each of the processes that a fuzzer starts.
func fuzzed(f *testing.F) (st station, boards [2]simulated) {
	f.Helper()
	random := mathrand.NewChaCha8([32]byte{1})
	st = stationFrom(f, random, testSKU, "line3-a")
	for i := range boards {
		scalar := make([]byte, 32)
		_, _ = random.Read(scalar[1:])
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
		if err != nil {
			f.Fatal(err)
		}
		boards[i].key = key
		_, _ = random.Read(boards[i].id[:])
	}
	return st, boards
}

func (s simulated) boardKey(t testing.TB) board.Key {
	t.Helper()
	key, err := board.NewKey(s.key.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// record is what the station wrote down about s.
func (s simulated) record(t testing.TB, st station) board.Record {
	t.Helper()
	r := board.Record{
		SKU: st.sku, Station: st.name, Device: s.id, Key: s.boardKey(t), Generation: 1,
		ReadAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	if _, ok := s.key.(*ecdsa.PrivateKey); ok {
		r.Proof = &board.Proof{Method: board.ProofSignMsg, Hash: board.SHA1}
		for range 2 {
			nonce := make([]byte, 20)
			_, _ = rand.Read(nonce)
			digest := sha1.Sum(nonce)
			signature, err := s.key.Sign(rand.Reader, digest[:], crypto.SHA1)
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
func enrolment(t testing.TB, r board.Record, st station) board.Enrolment {
	t.Helper()
	sealed, err := board.Seal(r, st)
	if err != nil {
		t.Fatal(err)
	}
	return enrolmentOf(sealed)
}

func enrolmentOf(sealed board.Sealed) board.Enrolment {
	r := sealed.Record
	return board.Enrolment{
		Device: r.Device, Key: r.Key, Envelope: sealed.Envelope, Station: r.Station,
		EnrolledAt: r.ReadAt, State: board.Active, Generation: r.Generation,
	}
}

// nameAttribute is one AttributeTypeAndValue of a distinguished name.
type nameAttribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type nameSET []nameAttribute // the suffix tells encoding/asn1 that it is a SET OF

// csr is a request built by hand, so that anything in it can be wrong.
type csr struct {
	key        crypto.Signer
	subject    [][]nameAttribute // relative distinguished names
	extensions []extension
	sha256     bool             // else ECDSA with SHA-1, as the boards do
	passwords  []string         // values of the attribute challengePassword
	raw        [][]byte         // further attributes, as they are
	public     crypto.PublicKey // spliced in, instead of the signing key's
}

type extension struct {
	ID       asn1.ObjectIdentifier
	Critical bool `asn1:"optional"`
	Value    []byte
}

func name(oid asn1.ObjectIdentifier, tag int, value string) []nameAttribute {
	return []nameAttribute{{oid, asn1.RawValue{Tag: tag, Bytes: []byte(value)}}}
}

func cn(value string) []nameAttribute {
	return name(asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.TagPrintableString, value)
}

// csr is the plain request of s.
func (s simulated) csr() csr { return csr{key: s.key, subject: [][]nameAttribute{cn(s.id.String())}} }

func mustASN1(t testing.TB, v any, params string) []byte {
	t.Helper()
	der, err := asn1.MarshalWithParams(v, params)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (c csr) der(t testing.TB) []byte {
	t.Helper()
	var subject []nameSET
	for _, n := range c.subject {
		subject = append(subject, n)
	}
	public := c.public
	if public == nil {
		public = c.key.Public()
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	var attributes []asn1.RawValue
	if c.extensions != nil {
		request := mustASN1(t, struct {
			ID     asn1.ObjectIdentifier
			Values [][]extension `asn1:"set"`
		}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}, [][]extension{c.extensions}}, "")
		attributes = append(attributes, asn1.RawValue{FullBytes: request})
	}
	if c.passwords != nil {
		attributes = append(attributes, asn1.RawValue{FullBytes: mustASN1(t, struct {
			ID     asn1.ObjectIdentifier
			Values []string `asn1:"set"`
		}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, c.passwords}, "")})
	}
	for _, der := range c.raw {
		attributes = append(attributes, asn1.RawValue{FullBytes: der})
	}
	info := mustASN1(t, struct {
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
	if _, isRSA := c.key.(*rsa.PrivateKey); isRSA || c.sha256 {
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
	signature, err := c.key.Sign(rand.Reader, digest, hash)
	if err != nil {
		t.Fatal(err)
	}
	return mustASN1(t, struct {
		Info      asn1.RawValue
		Algorithm algorithm
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: info}, alg, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}, "")
}

func (c csr) pem(t testing.TB) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: c.der(t)})
}

// answer is the base64 of a signature over a challenge.
func (s simulated) answer(t testing.TB, challenge string, hash crypto.Hash) string {
	t.Helper()
	h := hash.New()
	h.Write([]byte(challenge))
	signature, err := s.key.Sign(rand.Reader, h.Sum(nil), hash)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(signature)
}

// challenges of a fixed key.
func challenges(t testing.TB) *Challenges {
	t.Helper()
	c, err := NewChallenges(testSKU, bytes.Repeat([]byte("k"), 32), DefaultChallengeLife)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c csr) header(t testing.TB) string { return base64.StdEncoding.EncodeToString(c.pem(t)) }

func (c csr) request(t testing.TB) Request {
	t.Helper()
	r, err := ParseRequest(c.der(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// memRegistry is a registry in memory.
type memRegistry struct {
	mu    sync.Mutex
	items map[board.DeviceID]board.Enrolment
	err   error
	fault func(step string) error
	calls int
}

func (m *memRegistry) Lookup(_ context.Context, id board.DeviceID) (board.Enrolment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.err != nil {
		return board.Enrolment{}, m.err
	}
	if m.fault != nil {
		if err := m.fault("lookup"); err != nil {
			return board.Enrolment{}, err
		}
	}
	e, ok := m.items[id]
	if !ok {
		return board.Enrolment{}, fmt.Errorf("memory: %w", board.ErrNotEnrolled)
	}
	return e, nil
}

func (m *memRegistry) put(e board.Enrolment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.items == nil {
		m.items = map[board.DeviceID]board.Enrolment{}
	}
	m.items[e.Device] = e
}

// memClaims is the plain model of Claims.
type memClaims struct {
	mu     sync.Mutex
	stored map[string]Issuance
	fault  func(step string) error
}

func (m *memClaims) step(name string) error {
	if m.fault == nil {
		return nil
	}
	return m.fault(name)
}

func (m *memClaims) Issuances(_ context.Context, device board.DeviceID) ([]Issuance, error) {
	if err := m.step("before read"); err != nil {
		return nil, err
	}
	var out []Issuance
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.stored {
		if i.Claim.Device == device {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b Issuance) int { return strings.Compare(a.Claim.sortKey(), b.Claim.sortKey()) })
	return out, nil
}

func (m *memClaims) Create(_ context.Context, i Issuance) (Issuance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step("before create"); err != nil {
		return Issuance{}, err
	}
	if m.stored == nil {
		m.stored = map[string]Issuance{}
	}
	if _, ok := m.stored[i.Claim.ID()]; !ok {
		m.stored[i.Claim.ID()] = i
	}
	return m.stored[i.Claim.ID()], m.step("after create")
}

func (m *memClaims) Replace(_ context.Context, next Issuance) (Issuance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step("before replace"); err != nil {
		return Issuance{}, err
	}
	stored, ok := m.stored[next.Claim.ID()]
	if !ok {
		return Issuance{}, ErrNoClaim
	}
	if stored.Version+1 == next.Version {
		stored = next
		m.stored[next.Claim.ID()] = next
	}
	return stored, m.step("after replace")
}

func (m *memClaims) Serial(_ context.Context, serial Serial) (Issuance, error) {
	for _, i := range m.all() {
		if i.Claim.Serial == serial {
			return i, nil
		}
	}
	return Issuance{}, ErrNoClaim
}

func (m *memClaims) All(context.Context) iter.Seq2[Issuance, error] {
	return func(yield func(Issuance, error) bool) {
		for _, i := range m.all() {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func (m *memClaims) all() map[string]Issuance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.stored)
}

// countingCA counts what is signed, and can fail before or after it.
type countingCA struct {
	CA
	mu     sync.Mutex
	issued map[string]int // by the certificate's bytes
	before func() error
	after  func(*Certificate) error
}

func (c *countingCA) Issue(ctx context.Context, a Approved, claim Claim, memo Memo) (Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.before != nil {
		if err := c.before(); err != nil {
			return Certificate{}, err
		}
	}
	out, err := c.CA.Issue(ctx, a, claim, memo)
	if err != nil {
		return out, err
	}
	if c.issued == nil {
		c.issued = map[string]int{}
	}
	c.issued[string(out.Leaf)]++
	if c.after != nil {
		err = c.after(&out)
	}
	return out, err
}

var errInjected = errors.New("injected")

// once fails the first call that matches.
func once(match string) func(step string) error {
	done := false
	return func(step string) error {
		if done || step != match {
			return nil
		}
		done = true
		return errInjected
	}
}

func equal(a, b Certificate) bool {
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

// memMemo is a memo in memory.
type memMemo struct {
	mu     sync.Mutex
	text   string
	writes int
	fail   func(text string) error // before it is kept
}

func (m *memMemo) Read() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text
}

func (m *memMemo) Write(_ context.Context, text string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.fail != nil {
		if err := m.fail(text); err != nil {
			return err
		}
	}
	m.text = text
	return nil
}

// approvedFor is what Decide gives for a new board.
func approvedFor(t testing.TB) Approved {
	t.Helper()
	st, b := newStation(t, testSKU, "line3-a"), newSimulated(t)
	item := enrolment(t, b.record(t, st), st)
	a, err := Decide(b.csr().request(t), &item, Policy{SKU: testSKU, Stations: []board.Verifier{st.verifier}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustClaim(t testing.TB, a Approved) Claim {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	c := Claim{
		Device: a.Device(), Fingerprint: a.Key().Fingerprint(), Generation: a.Generation(), Epoch: 1, CA: testCA,
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.AddDate(10, 0, 0), Created: now,
	}
	_, _ = rand.Read(c.Serial[:]) // never fails (crypto/rand)
	return c
}

// begun is the first version of an issuance.
func begun(c Claim) Issuance { return Issuance{Claim: c, Version: 1, State: Claimed} }

// deviceTemplate is what a local CA signs, for benchmarks that do no more than that.
func deviceTemplate(device board.DeviceID, key board.Key, serial Serial, from, to time.Time) *x509.Certificate {
	fingerprint := key.Fingerprint()
	return &x509.Certificate{
		SerialNumber: serial.Int(), Subject: pkix.Name{CommonName: device.String()}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, SubjectKeyId: fingerprint[:20],
	}
}
