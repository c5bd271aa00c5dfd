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
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
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

// csr is a request built by hand, so that anything in it can be wrong.
type csr struct {
	key        crypto.Signer
	subject    [][]attribute // relative distinguished names
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

func name(oid asn1.ObjectIdentifier, tag int, value string) []attribute {
	return []attribute{{oid, asn1.RawValue{Tag: tag, Bytes: []byte(value)}}}
}

func cn(value string) []attribute {
	return name(asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.TagPrintableString, value)
}

// csr is the plain request of s.
func (s simulated) csr() csr { return csr{key: s.key, subject: [][]attribute{cn(s.id.String())}} }

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
	var subject []relativeNameSET
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
		Subject    []relativeNameSET
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

const testPassphrase = "correct horse"

// caDir is a local CA that the tests share. Making one is slow by intent, so its keys are stretched less.
var caDir = sync.OnceValues(func() (string, error) {
	parent, err := os.MkdirTemp("", "issuer-test-*")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(parent, "passphrase"), []byte(testPassphrase+"\n"), 0o600); err != nil {
		return "", err
	}
	return parent, InitLocalCA(LocalCAInit{Dir: filepath.Join(parent, "ca"), Name: "Test", Passphrase: []byte(testPassphrase), iterations: 1000})
})

var sharedCA = sync.OnceValues(func() (*LocalCA, error) {
	parent, err := caDir()
	if err != nil {
		return nil, err
	}
	return OpenLocalCA(LocalCAConfig{Dir: filepath.Join(parent, "ca"), PassphraseFile: filepath.Join(parent, "passphrase")})
})

func TestMain(m *testing.M) {
	if setting := os.Getenv(servedSetting); setting != "" { // a server of a benchmark
		if err := serveAsTold(setting); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if parent, err := caDir(); err == nil {
		_ = os.RemoveAll(parent)
	}
	os.Exit(code)
}

func localCA(t testing.TB) *LocalCA {
	t.Helper()
	ca, err := sharedCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// world is one factory and one issuer, with one enrolled board.
type world struct {
	station  station
	board    simulated
	registry *memRegistry
	claims   *memClaims
	ca       *countingCA
	policy   Policy
	issuer   *Issuer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		station: newStation(t, testSKU, "line3-a"), board: newSimulated(t),
		registry: &memRegistry{}, claims: &memClaims{}, ca: &countingCA{CA: localCA(t)},
	}
	w.policy = Policy{SKU: testSKU, Stations: []board.Verifier{w.station.verifier}}
	w.registry.put(enrolment(t, w.board.record(t, w.station), w.station))
	w.open(t, w.claims)
	t.Cleanup(func() { w.check(t) })
	return w
}

func (w *world) open(t testing.TB, claims Claims) {
	t.Helper()
	var err error
	w.issuer, err = New(Config{
		Policy: w.policy, Registry: w.registry, CAs: map[string]CA{testCA: w.ca}, Claims: claims,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// check looks at all that is stored: every claim is of an enrolled board, and what is finished is its certificate;
// for each claim at most one certificate was ever signed.
func (w *world) check(t testing.TB) {
	t.Helper()
	trust := newTrust(localCA(t).Profile().Roots)
	stored := w.claims.all()
	serials := map[Serial]string{}
	for id, issuance := range stored {
		if other, ok := serials[issuance.Claim.Serial]; ok {
			t.Errorf("the claims %s and %s have one serial", id, other)
		}
		serials[issuance.Claim.Serial] = id
		item, ok := w.registry.items[issuance.Claim.Device]
		if !ok || item.Key.Fingerprint() != issuance.Claim.Fingerprint {
			t.Errorf("claim %s is of no enrolled board", id)
			continue
		}
		if issuance.Certificate == nil {
			continue
		}
		a := Approved{device: item.Device, key: item.Key}
		if err := verifyIssued(*issuance.Certificate, a, issuance.Claim, localCA(t).Profile(), trust, time.Now()); err != nil {
			t.Errorf("claim %s: %v", id, err)
		}
	}
	signed := map[string]bool{}
	for leaf := range w.ca.issued {
		certificate, err := x509.ParseCertificate([]byte(leaf))
		if err != nil {
			t.Error(err)
			continue
		}
		serial := certificate.SerialNumber.String()
		if signed[serial] {
			t.Errorf("serial %s was signed with two contents", serial)
		}
		signed[serial] = true
	}
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
