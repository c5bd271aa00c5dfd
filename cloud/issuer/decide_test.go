package issuer_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/server"
	"secretfree/station/board"
)

// scene is what Decide looks at; each case spoils one thing in it.
type scene struct {
	t       *testing.T
	station issuertest.Station
	board   issuertest.Board
	csr     issuertest.CSR
	record  board.Record
	seal    func(r board.Record) board.Enrolment
	item    func(e *board.Enrolment)
	absent  bool
	policy  issuer.Policy
	beside  func(r issuer.Request) issuer.Request // adds what comes beside the request
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, station: issuertest.NewStation(t, issuertest.SKU, "line3-a"), board: issuertest.NewBoard(t)}
	s.csr = s.board.CSR()
	s.record = s.board.Record(t, s.station)
	s.seal = func(r board.Record) board.Enrolment { return issuertest.Enrolment(t, r, s.station) }
	s.policy = issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{s.station.Verifier}, Challenges: issuertest.Challenges(t)}
	return s
}

// challenge is one that can be answered.
func (s *scene) challenge() string {
	text, _ := s.policy.Challenges.New(time.Now())
	return text
}

// detach puts a signature over a challenge beside the request.
func (s *scene) detach(challenge, signature string) {
	s.beside = func(r issuer.Request) issuer.Request {
		r, err := r.WithSignature(challenge, signature)
		if err != nil {
			s.t.Fatal(err)
		}
		return r
	}
}

func (s *scene) inputs() (issuer.Request, *board.Enrolment) {
	request, item := s.plainInputs()
	if s.beside != nil {
		request = s.beside(request)
	}
	return request, item
}

func (s *scene) plainInputs() (issuer.Request, *board.Enrolment) {
	if s.absent {
		return s.csr.Request(s.t), nil
	}
	e := s.seal(s.record)
	if s.item != nil {
		s.item(&e)
	}
	return s.csr.Request(s.t), &e
}

func (s *scene) rsaKey(bits int) *rsa.PrivateKey {
	s.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

func (s *scene) ecKey(curve elliptic.Curve) *ecdsa.PrivateKey {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

func oid(ids ...int) asn1.ObjectIdentifier { return ids }

// refusals has a case, or several, for every rule of Decide.
var refusals = []struct {
	name  string
	want  issuer.Refusal
	spoil func(s *scene)
}{
	{"RSA 1024", issuer.KeyType, func(s *scene) { s.csr.Key = s.rsaKey(1024); s.policy.Algorithms = []board.Algorithm{board.RSA} }},
	{"RSA where the policy is silent", issuer.KeyType, func(s *scene) { s.csr.Key = s.rsaKey(2048) }},
	{"P-384 where the policy is silent", issuer.KeyType, func(s *scene) { s.csr.Key = s.ecKey(elliptic.P384()) }},
	{"P-521", issuer.KeyType, func(s *scene) { s.csr.Key = s.ecKey(elliptic.P521()) }},
	{"Ed25519", issuer.KeyType, func(s *scene) {
		public, _, _ := ed25519.GenerateKey(rand.Reader)
		s.csr.Public = public
	}},
	{"SHA-1 where the policy refuses it", issuer.SignatureAlgorithm, func(s *scene) { s.policy.RefuseSHA1 = true }},
	{"another device's key spliced in", issuer.CSRSignature, func(s *scene) { s.csr.Key = issuertest.NewBoard(s.t).Key; s.csr.Public = s.board.Key.Public() }},
	{"no subject", issuer.NoCN, func(s *scene) { s.csr.Subject = nil }},
	{"a subject without a CN", issuer.NoCN, func(s *scene) {
		s.csr.Subject = [][]issuertest.NameAttribute{issuertest.Name(oid(2, 5, 4, 10), asn1.TagPrintableString, "Widgets")}
	}},
	{"two CNs", issuer.SeveralCN, func(s *scene) {
		s.csr.Subject = append(s.csr.Subject, issuertest.CN(issuertest.NewBoard(s.t).ID.String()))
	}},
	{"the same CN twice", issuer.SeveralCN, func(s *scene) { s.csr.Subject = append(s.csr.Subject, s.csr.Subject[0]) }},
	{"two CNs in one set", issuer.SeveralCN, func(s *scene) { s.csr.Subject[0] = append(s.csr.Subject[0], issuertest.CN("x")...) }},
	{"CN in upper case", issuer.CNNotADeviceID, func(s *scene) {
		s.board.ID[0] = 0xab
		s.csr.Subject[0] = issuertest.CN(strings.ToUpper(s.board.ID.String()))
	}},
	{"empty CN", issuer.CNNotADeviceID, func(s *scene) { s.csr.Subject[0] = issuertest.CN("") }},
	{"CN cut short", issuer.CNNotADeviceID, func(s *scene) { s.csr.Subject[0] = issuertest.CN(s.board.ID.String()[:31]) }},
	{"CN with a space", issuer.CNNotADeviceID, func(s *scene) { s.csr.Subject[0] = issuertest.CN(s.board.ID.String() + " ") }},
	{"CN with a NUL", issuer.CNNotADeviceID, func(s *scene) {
		s.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), asn1.TagUTF8String, s.board.ID.String()+"\x00")
	}},
	{"CN with a look-alike", issuer.CNNotADeviceID, func(s *scene) {
		s.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), asn1.TagUTF8String, "а"+s.board.ID.String()[2:])
	}},
	{"CN of all zeros", issuer.CNNotADeviceID, func(s *scene) { s.csr.Subject[0] = issuertest.CN(strings.Repeat("0", 32)) }},
	{"CN in two-byte characters", issuer.CNNotADeviceID, func(s *scene) {
		s.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), asn1.TagBMPString, s.board.ID.String())
	}},
	{"a serial number in the subject", issuer.ExtraNames, func(s *scene) {
		s.csr.Subject = append(s.csr.Subject, issuertest.Name(oid(2, 5, 4, 5), asn1.TagPrintableString, "1111"))
	}},
	{"a domain component in the subject", issuer.ExtraNames, func(s *scene) {
		s.csr.Subject = append(s.csr.Subject, issuertest.Name(oid(0, 9, 2342, 19200300, 100, 1, 25), asn1.TagIA5String, "example"))
	}},
	{"an alternative name", issuer.ExtraNames, func(s *scene) {
		// a GeneralNames with one dNSName
		s.csr.Extensions = []issuertest.Extension{{ID: oid(2, 5, 29, 17), Value: append([]byte{0x30, 0x0d, 0x82, 0x0b}, "example.com"...)}}
	}},
	{"an alternative name of a kind unknown to crypto/x509", issuer.ExtraNames, func(s *scene) {
		// a GeneralNames with one registeredID
		s.csr.Extensions = []issuertest.Extension{{ID: oid(2, 5, 29, 17), Value: []byte{0x30, 0x05, 0x88, 0x03, 0x2a, 0x03, 0x04}}}
	}},
	{"CA:TRUE", issuer.CARequested, func(s *scene) {
		s.csr.Extensions = []issuertest.Extension{{ID: oid(2, 5, 29, 19), Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}
	}},
	{"basic constraints that are none", issuer.CARequested, func(s *scene) {
		s.csr.Extensions = []issuertest.Extension{{ID: oid(2, 5, 29, 19), Value: []byte{0x04, 0x00}}}
	}},
	{"not enrolled", issuer.NotEnrolled, func(s *scene) { s.absent = true }},
	{"enrolled with another key", issuer.KeyMismatch, func(s *scene) {
		other := issuertest.NewBoard(s.t)
		other.ID = s.board.ID
		s.record = other.Record(s.t, s.station)
	}},
	{"an item without a key", issuer.KeyMismatch, func(s *scene) { s.item = func(e *board.Enrolment) { e.Key = board.Key{} } }},
	{"the item of another device", issuer.ItemMismatch, func(s *scene) { s.item = func(e *board.Enrolment) { e.Device = issuertest.NewBoard(s.t).ID } }},
	{"an item that no station wrote", issuer.NoEnvelope, func(s *scene) { s.item = func(e *board.Enrolment) { e.Envelope = nil } }},
	{"a torn envelope", issuer.BadRecord, func(s *scene) { s.item = func(e *board.Enrolment) { e.Envelope = e.Envelope[:100] } }},
	{"a station that is not trusted", issuer.UntrustedRecord, func(s *scene) {
		rogue := issuertest.NewStation(s.t, issuertest.SKU, "rogue")
		s.record = s.board.Record(s.t, rogue)
		s.seal = func(r board.Record) board.Enrolment { return issuertest.Enrolment(s.t, r, rogue) }
	}},
	{"a rogue key under a trusted station's name", issuer.UntrustedRecord, func(s *scene) {
		rogue := issuertest.NewStation(s.t, issuertest.SKU, "line3-a")
		s.seal = func(r board.Record) board.Enrolment { return issuertest.Enrolment(s.t, r, rogue) }
	}},
	{"a record changed after it was signed", issuer.UntrustedRecord, func(s *scene) {
		s.item = func(e *board.Enrolment) {
			r := s.record
			r.Facts = map[string]string{"x": "y"}
			forged, err := r.Encode()
			if err != nil {
				s.t.Fatal(err)
			}
			was, err := s.record.Encode()
			if err != nil {
				s.t.Fatal(err)
			}
			b64 := base64.StdEncoding.EncodeToString
			e.Envelope = bytes.Replace(e.Envelope, []byte(b64(was)), []byte(b64(forged)), 1)
		}
	}},
	{"no trusted station at all", issuer.UntrustedRecord, func(s *scene) { s.policy.Stations = nil }},
	{"a record of another SKU", issuer.ForeignSKU, func(s *scene) {
		s.station = issuertest.NewStation(s.t, "gadget", "line3-a")
		s.record = s.board.Record(s.t, s.station)
		s.policy.Stations = []board.Verifier{s.station.Verifier}
	}},
	{"a true record of another device in this item", issuer.RecordMismatch, func(s *scene) {
		other := issuertest.NewBoard(s.t).Record(s.t, s.station)
		s.item = func(e *board.Enrolment) { e.Envelope = s.seal(other).Envelope }
	}},
	{"a true record of this device with another key", issuer.RecordMismatch, func(s *scene) {
		twin := issuertest.NewBoard(s.t)
		twin.ID = s.board.ID
		s.item = func(e *board.Enrolment) { e.Envelope = s.seal(twin.Record(s.t, s.station)).Envelope }
	}},
	{"a generation raised without a record", issuer.RecordMismatch, func(s *scene) { s.item = func(e *board.Enrolment) { e.Generation = 2 } }},
	{"a record without proof", issuer.RecordProof, func(s *scene) { s.record.Proof = nil }},
	{"a record with another board's proof", issuer.RecordProof, func(s *scene) { s.record.Proof = issuertest.NewBoard(s.t).Record(s.t, s.station).Proof }},
	{"another board's proof where none is needed", issuer.RecordProof, func(s *scene) {
		s.record.Proof = issuertest.NewBoard(s.t).Record(s.t, s.station).Proof
		s.policy.AllowNoProof = true
	}},
	{"held", issuer.StateHeld, func(s *scene) { s.item = func(e *board.Enrolment) { e.State = board.Held } }},
	{"scrapped", issuer.StateScrapped, func(s *scene) { s.item = func(e *board.Enrolment) { e.State = board.Scrapped } }},
	{"revoked", issuer.StateRevoked, func(s *scene) { s.item = func(e *board.Enrolment) { e.State = board.Revoked } }},
	{"no state", issuer.StateUnknown, func(s *scene) { s.item = func(e *board.Enrolment) { e.State = "" } }},
	{"a generation that was replaced", issuer.GenerationTooOld, func(s *scene) { s.policy.MinGeneration = 2 }},
	{"a lot that is held, of one station", issuer.LotHeld, func(s *scene) {
		s.policy.Holds = []issuer.LotHold{
			{Station: "widgiot/other", Why: "not this one"},
			{From: s.record.ReadAt.Add(time.Second), Why: "not yet"}, {To: s.record.ReadAt, Why: "no longer"},
			{Station: "widgiot/line3-a", From: s.record.ReadAt, To: s.record.ReadAt.Add(time.Second), Why: "a bad fixture"},
		}
	}},
	{"two challenges", issuer.SeveralChallenges, func(s *scene) { s.csr.Passwords = []string{s.challenge()}; s.detach(s.challenge(), "AAAA") }},
	{"a challenge of another issuer", issuer.BadChallenge, func(s *scene) {
		other, err := issuer.NewChallenges(issuertest.SKU, make([]byte, 32), time.Minute)
		if err != nil {
			s.t.Fatal(err)
		}
		text, _ := other.New(time.Now())
		s.csr.Passwords = []string{text}
	}},
	{"a challenge of another SKU", issuer.BadChallenge, func(s *scene) {
		other, err := issuer.NewChallenges("gadget", bytes.Repeat([]byte("k"), 32), time.Minute)
		if err != nil {
			s.t.Fatal(err)
		}
		text, _ := other.New(time.Now())
		s.csr.Passwords = []string{text}
	}},
	{"a password that is no challenge", issuer.BadChallenge, func(s *scene) { s.csr.Passwords = []string{"hunter2"} }},
	{"a challenge where none are made", issuer.BadChallenge, func(s *scene) {
		s.csr.Passwords = []string{s.challenge()}
		s.policy.Challenges = nil
	}},
	{"a challenge from the future", issuer.BadChallenge, func(s *scene) {
		text, _ := s.policy.Challenges.New(time.Now().Add(48 * time.Hour))
		s.csr.Passwords = []string{text}
	}},
	{"a challenge in a unit that was changed", issuer.BadChallenge, func(s *scene) {
		text := s.challenge()
		s.csr.Subject = append(s.csr.Subject, issuertest.Name(oid(2, 5, 4, 11), asn1.TagPrintableString, text[:len(text)-2]+"AA"))
	}},
	{"a nonce that is replayed too late", issuer.ChallengeExpired, func(s *scene) {
		text, _ := s.policy.Challenges.New(time.Now().Add(-issuer.DefaultChallengeLife))
		s.csr.Passwords = []string{text}
	}},
	{"another key's answer to a challenge", issuer.ChallengeSignature, func(s *scene) {
		text := s.challenge()
		s.detach(text, issuertest.NewBoard(s.t).Answer(s.t, text, crypto.SHA256))
	}},
	{"the answer to another challenge", issuer.ChallengeSignature, func(s *scene) {
		s.detach(s.challenge(), s.board.Answer(s.t, s.challenge(), crypto.SHA256))
	}},
	{"an answer with SHA-1 where the policy refuses it", issuer.ChallengeSignature, func(s *scene) {
		text := s.challenge()
		s.csr.SHA256, s.policy.RefuseSHA1 = true, true
		s.detach(text, s.board.Answer(s.t, text, crypto.SHA1))
	}},
	{"no challenge where the policy asks for one", issuer.NoChallenge, func(s *scene) { s.policy.RequireFresh = true }},
}

func TestDecideRefuses(t *testing.T) {
	reached := map[issuer.Refusal]bool{}
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t)
			c.spoil(s)
			request, item := s.inputs()
			approved, err := issuer.Decide(request, item, s.policy, time.Now())
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %s", err, c.want)
			}
			if approved != (issuer.Approved{}) {
				t.Fatal("a refusal came with something to sign")
			}
			if outcome, _ := server.Classify(err); outcome != server.Refused {
				t.Fatalf("a stranger would read %q", outcome)
			}
			reached[c.want] = true

			// The same, told rule by rule.
			verdicts, again := issuer.Explain(request, item, s.policy, time.Now())
			if again == nil || again.Error() != err.Error() {
				t.Fatalf("Explain says %v, Decide %v", again, err)
			}
			at := slices.IndexFunc(verdicts, func(v issuer.Verdict) bool { return v.Rule == c.want })
			for i, v := range verdicts {
				want := "passed"
				switch {
				case i == at:
					want = "refused"
				case i > at:
					want = "not reached"
				}
				if v.Verdict != want || (v.Detail != "") != (i == at) {
					t.Errorf("rule %s: %+v, want %s", v.Rule, v, want)
				}
			}
		})
	}
	s := newScene(t)
	request, item := s.inputs()
	verdicts, err := issuer.Explain(request, item, s.policy, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range verdicts {
		if v.Verdict != "passed" {
			t.Errorf("%+v of a good request", v)
		}
		if !reached[v.Rule] {
			t.Errorf("no case reaches the rule %s", v.Rule)
		}
	}
	if len(verdicts) != len(reached) {
		t.Errorf("%d rules, %d refusals", len(verdicts), len(reached))
	}
}

func TestDecideApproves(t *testing.T) {
	for name, vary := range map[string]func(s *scene){
		"as stock firmware asks": func(*scene) {},
		"with SHA-256":           func(s *scene) { s.csr.SHA256 = true; s.policy.RefuseSHA1 = true },
		"with the names of the CSR example": func(s *scene) {
			for _, a := range []struct {
				oid   asn1.ObjectIdentifier
				value string
			}{
				{oid(2, 5, 4, 6), "US"}, {oid(2, 5, 4, 8), "Texas"}, {oid(2, 5, 4, 7), "Dallas"}, {oid(2, 5, 4, 4), "N"},
				{oid(2, 5, 4, 10), "TI"}, {oid(2, 5, 4, 11), "IoT"}, {oid(1, 2, 840, 113549, 1, 9, 1), "a@b.c"},
			} {
				s.csr.Subject = append(s.csr.Subject, issuertest.Name(a.oid, asn1.TagUTF8String, a.value))
			}
		},
		"with CA:FALSE and a key usage": func(s *scene) {
			s.csr.Extensions = []issuertest.Extension{
				{ID: oid(2, 5, 29, 19), Value: []byte{0x30, 0x00}},
				{ID: oid(2, 5, 29, 15), Value: []byte{0x03, 0x02, 0x07, 0x80}},
			}
		},
		"an older teletex string": func(s *scene) {
			s.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), asn1.TagT61String, s.board.ID.String())
		},
		"P-384 by policy": func(s *scene) {
			s.board.Key = s.ecKey(elliptic.P384())
			s.csr.Key, s.record = s.board.Key, s.board.Record(s.t, s.station)
			s.policy.Algorithms = []board.Algorithm{board.P256, board.P384}
		},
		"RSA without proof by policy": func(s *scene) {
			s.board.Key = s.rsaKey(2048)
			s.csr.Key, s.record = s.board.Key, s.board.Record(s.t, s.station)
			s.policy.Algorithms, s.policy.AllowNoProof = []board.Algorithm{board.RSA}, true
		},
		"a second generation": func(s *scene) { s.record.Generation, s.policy.MinGeneration = 2, 2 },
		"a challenge as password": func(s *scene) {
			s.csr.Passwords, s.policy.RequireFresh = []string{s.challenge()}, true
		},
		"a challenge as organizational unit": func(s *scene) {
			s.csr.Subject = append(s.csr.Subject, issuertest.Name(oid(2, 5, 4, 11), asn1.TagPrintableString, s.challenge()))
			s.policy.RequireFresh = true
		},
		"a challenge twice": func(s *scene) {
			text := s.challenge()
			s.csr.Passwords, s.policy.RequireFresh = []string{text}, true
			s.detach(text, s.board.Answer(s.t, text, crypto.SHA256))
		},
		"an answer beside the request": func(s *scene) {
			text := s.challenge()
			s.detach(text, s.board.Answer(s.t, text, crypto.SHA256))
			s.policy.RequireFresh = true
		},
		"an answer with SHA-1": func(s *scene) {
			text := s.challenge()
			s.detach(text, s.board.Answer(s.t, text, crypto.SHA1))
		},
		"an answer of an RSA key": func(s *scene) {
			s.board.Key = s.rsaKey(2048)
			s.csr.Key, s.record = s.board.Key, s.board.Record(s.t, s.station)
			s.policy.Algorithms, s.policy.AllowNoProof = []board.Algorithm{board.RSA}, true
			text := s.challenge()
			s.detach(text, s.board.Answer(s.t, text, crypto.SHA256))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			vary(s)
			request, item := s.inputs()
			now := time.Now()
			a, err := issuer.Decide(request, item, s.policy, now)
			if err != nil {
				t.Fatal(err)
			}
			if a.Device() != s.board.ID || a.Key() != s.board.BoardKey(t) || a.Generation() != s.record.Generation {
				t.Errorf("approved %+v", a)
			}
			if from, to := a.Validity(); from.After(now) || to.Sub(from) != issuer.DefaultValidity {
				t.Errorf("valid %v to %v", from, to)
			}
			if claimed, ok := request.Claimed(); !ok || claimed != s.board.ID {
				t.Errorf("claims to be %v", claimed)
			}
		})
	}
}

// A request that was not parsed, and what no decision approved, get nowhere.
func TestNothingButApproved(t *testing.T) {
	s := newScene(t)
	_, item := s.inputs()
	if _, err := issuer.Decide(issuer.Request{}, item, s.policy, time.Now()); !errors.Is(err, issuer.KeyType) {
		t.Errorf("deciding on no request: %v", err)
	}
	if _, err := issuer.NewClaim(issuer.Approved{}, 1, issuertest.CAName, time.Now()); err == nil {
		t.Error("the zero Approved was claimed")
	}
	claim := issuer.Claim{Device: s.board.ID, Fingerprint: s.record.Fingerprint(), Generation: 1, Serial: issuer.Serial{1}, NotAfter: time.Now().Add(time.Hour)}
	if _, err := catest.Local(t).Issue(t.Context(), issuer.Approved{}, claim, nil); err == nil {
		t.Error("the zero Approved was signed")
	}
	request, item := s.inputs()
	a, err := issuer.Decide(request, item, s.policy, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(c *issuer.Claim){
		"another device":     func(c *issuer.Claim) { c.Device = issuertest.NewBoard(t).ID },
		"another key":        func(c *issuer.Claim) { c.Fingerprint[0]++ },
		"another generation": func(c *issuer.Claim) { c.Generation++ },
		"no serial":          func(c *issuer.Claim) { c.Serial = issuer.Serial{} },
		"beyond the CA":      func(c *issuer.Claim) { c.NotAfter = catest.Local(t).NotAfter().Add(time.Second) },
	} {
		claim, err := issuer.NewClaim(a, 1, issuertest.CAName, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		spoil(&claim)
		if _, err := catest.Local(t).Issue(t.Context(), a, claim, nil); err == nil {
			t.Errorf("%s: signed under a claim that is not for it", name)
		}
	}
}

func TestPolicyCheck(t *testing.T) {
	good := issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{issuertest.NewStation(t, issuertest.SKU, "a").Verifier}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(p *issuer.Policy){
		"SKU":                   func(p *issuer.Policy) { p.SKU = "Widget" },
		"no trusted station":    func(p *issuer.Policy) { p.Stations = nil },
		"unknown key algorithm": func(p *issuer.Policy) { p.Algorithms = []board.Algorithm{"P-521"} },
		"a validity of 1s":      func(p *issuer.Policy) { p.Validity = time.Second },
		"a validity of -1h":     func(p *issuer.Policy) { p.Validity = -time.Hour },
		"a validity of 876000h": func(p *issuer.Policy) { p.Validity = 876000 * time.Hour },
	} {
		p := good
		spoil(&p)
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

// An alternative name is one name for each device: a URN or the name of a host.
func TestAlternativeName(t *testing.T) {
	p := issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{issuertest.NewStation(t, issuertest.SKU, "a").Verifier}}
	for setting, good := range map[string]bool{
		"": true, "urn:dev:ops:widgiot-{device}": true, "{device}.devices.example.com": true, "{device}": true, "d-{device}.example": true,
		"urn:dev:ops:widgiot": false, "example.com": false, "{device}.{device}": false, "{device} ": false, "{device}.Example.com": false,
		"{device}..com": false, "-{device}.com": false, "{device}.com-": false, "*.{device}": false, "http://{device}": false, "urn:{device}": false,
		"urn:dev:{device}#x y": false, "é{device}": false, "{device}." + strings.Repeat("a", 64): false, "{device}" + strings.Repeat(".aa", 80): false,
	} {
		p.AlternativeName = setting
		if err := p.Check(); (err == nil) != good {
			t.Errorf("%q: %v, want good %v", setting, err, good)
		}
	}
}

// What a CA returns must have just the name of its claim.
func TestWrongAlternativeNameDoesNotLeave(t *testing.T) {
	for name, lie := range map[string]func(c *x509.Certificate){
		"none":            func(c *x509.Certificate) { c.URIs = nil },
		"another":         func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "urn", Opaque: "dev:ops:other"}} },
		"one more":        func(c *x509.Certificate) { c.DNSNames = []string{"x.example.com"} },
		"the same twice":  func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"as another kind": func(c *x509.Certificate) { c.DNSNames, c.URIs = []string{c.URIs[0].String()}, nil },
		"nothing wrong":   func(*x509.Certificate) {},
	} {
		t.Run(name, func(t *testing.T) {
			w := issuertest.NewEnv(t, catest.Local(t))
			w.Policy.AlternativeName = "urn:dev:ops:widgiot-{device}"
			w.CA.CA = &lyingCA{CA: catest.Local(t), lie: func(c *x509.Certificate) {
				c.ExtraExtensions = nil
				lie(c)
			}}
			w.Open(t, w.Claims)
			_, err := w.Issuer.Issue(t.Context(), w.Board.CSR().Request(t), issuertest.CAName)
			if good := name == "nothing wrong"; good != (err == nil) || !good && !errors.Is(err, issuer.ErrWrongCertificate) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	s := newScene(t)
	der, text := s.csr.DER(t), s.csr.PEM(t)
	b64 := base64.StdEncoding.EncodeToString
	big := s.csr
	big.Extensions = []issuertest.Extension{{ID: oid(1, 2, 3), Value: make([]byte, issuer.MaxDER)}}
	many := s.csr
	for i := range issuer.MaxAttributes + 1 {
		many.Raw = append(many.Raw, issuertest.MustASN1(t, struct {
			ID     asn1.ObjectIdentifier
			Values []int `asn1:"set"`
		}{oid(1, 2, 3, i), []int{1}}, ""))
	}
	offCurve := bytes.Clone(der)
	point := bytes.Index(offCurve, []byte{0x03, 0x42, 0x00, 0x04})
	offCurve[point+10] ^= 1

	for _, c := range []struct {
		name string
		data []byte
		want issuer.Refusal
	}{
		{"nothing", nil, issuer.NoRequest},
		{"DER of more than 4096 bytes", big.DER(t), issuer.TooLarge},
		{"many attributes", many.DER(t), issuer.TooLarge},
		{"text of more than 8192 bytes", bytes.Repeat([]byte("A"), issuer.MaxText+1), issuer.TooLarge},
		{"no base64", []byte("hello, world"), issuer.NotBase64},
		{"base64 without padding", []byte("TUE"), issuer.NotBase64},
		{"base64 with bits left over", []byte("TUF="), issuer.NotBase64},
		{"trailing bytes", append(bytes.Clone(der), 0), issuer.NotARequest},
		{"cut short", der[:len(der)-1], issuer.NotARequest},
		{"base64 of no request", []byte(b64([]byte("hello"))), issuer.NotARequest},
		{"a point off the curve", offCurve, issuer.NotARequest},
		{"two blocks", append(bytes.Clone(text), text...), issuer.NotOnePEM},
		{"a broken block before a good one", append([]byte("-----BEGIN CERTIFICATE REQUEST-----\n!\n-----END CERTIFICATE REQUEST-----\n"), text...), issuer.NotOnePEM},
		{"text before the block", append([]byte("-----BEGIN \n"), text...), issuer.NotOnePEM},
		{"text after the block", append(bytes.Clone(text), "x"...), issuer.NotOnePEM},
		{"PEM headers", bytes.Replace(text, []byte("-----\n"), []byte("-----\nProc-Type: 4,ENCRYPTED\n\n"), 1), issuer.NotOnePEM},
		{"another block", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), issuer.NotOnePEM},
		{"labels that differ", bytes.Replace(text, []byte("BEGIN C"), []byte("BEGIN NEW C"), 1), issuer.NotOnePEM},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := issuer.ParseRequest(c.data)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if !c.want.Malformed() {
				t.Errorf("%s is not malformed", c.want)
			}
		})
	}
	for _, c := range []struct {
		name, value string
		want        issuer.Refusal
	}{
		{"12 KB", b64(make([]byte, 9<<10)), issuer.TooLarge},
		{"empty", "", issuer.NotOnePEM},
		{"base64 of DER", b64(der), issuer.NotOnePEM},
		{"PEM itself", string(text[:40]), issuer.NotBase64},
		{"base64url", strings.NewReplacer("+", "-", "/", "_", "=", "-").Replace(b64(text)) + "-", issuer.NotBase64},
		{"a line break inside", b64(text)[:76] + "\r\n" + b64(text)[76:], issuer.NotBase64},
	} {
		t.Run("header/"+c.name, func(t *testing.T) {
			if _, err := issuer.ParseHeader(c.value); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestParseForms(t *testing.T) {
	c := issuertest.NewBoard(t).CSR()
	der := c.DER(t)
	b64 := base64.StdEncoding.EncodeToString
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	// What the CSR example of the boards' maker prints: a first row of 63
	// characters, line ends of every kind.
	whole := b64(der)
	odd := "-----BEGIN CERTIFICATE REQUEST-----\r\n\r" + whole[:63] + "\r\n"
	for row := range slices.Chunk([]byte(whole[63:]), 64) {
		odd += string(row) + "\r\n"
	}
	odd += "\r-----END CERTIFICATE REQUEST-----\r\n\r\r\n\r\n"

	for name, data := range map[string][]byte{
		"DER":                  der,
		"PEM":                  text,
		"PEM with CR LF":       bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")),
		"PEM as boards print":  []byte(odd),
		"PEM with NEW":         bytes.ReplaceAll(text, []byte("CERTIFICATE REQUEST"), []byte("NEW CERTIFICATE REQUEST")),
		"base64":               []byte(whole),
		"base64 in lines":      append([]byte(whole[:64]+"\n"+whole[64:]), '\n'),
		"base64 in CR LF":      []byte(whole[:64] + "\r\n" + whole[64:] + "\r\n"),
		"PEM with white space": append([]byte("\n\n"), text...),
	} {
		r, err := issuer.ParseRequest(data)
		if err != nil || !bytes.Equal(r.DER(), der) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, inner := range [][]byte{text, []byte(odd)} {
		if r, err := issuer.ParseHeader(b64(inner)); err != nil || !bytes.Equal(r.DER(), der) {
			t.Errorf("header: %v", err)
		}
	}
	// The largest request fits into the largest header.
	if n := len(b64(pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: make([]byte, issuer.MaxDER)}))); n > issuer.MaxText {
		t.Errorf("%d bytes", n)
	}
}

// What parses is the same request in each of its forms.
func FuzzParseRequest(f *testing.F) {
	_, boards := issuertest.Fuzzed(f)
	c := boards[0].CSR()
	f.Add(c.DER(f))
	f.Add(c.PEM(f))
	f.Add([]byte(base64.StdEncoding.EncodeToString(c.DER(f))))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	_, _, bodies := corpus(f)
	for _, body := range bodies {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := issuer.ParseRequest(data)
		if err != nil {
			if refusal, ok := errors.AsType[issuer.Refusal](err); !ok || !refusal.Malformed() {
				t.Fatalf("an error without a name: %v", err)
			}
			return
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.DER()})
		again, err := issuer.ParseRequest(text)
		if err != nil || !bytes.Equal(again.DER(), r.DER()) {
			t.Fatalf("as PEM: %v", err)
		}
		again, err = issuer.ParseHeader(base64.StdEncoding.EncodeToString(text))
		if err != nil || !bytes.Equal(again.DER(), r.DER()) {
			t.Fatalf("as a header: %v", err)
		}
	})
}

// Whatever is done to a request or to a record, only this board's key is
// approved, under this board's id.
func FuzzDecide(f *testing.F) {
	st, boards := issuertest.Fuzzed(f)
	b := boards[0]
	item := issuertest.Enrolment(f, b.Record(f, st), st)
	policy := issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{st.Verifier}}
	good := b.CSR().DER(f)
	f.Add(good, item.Envelope)
	f.Add(boards[1].CSR().DER(f), item.Envelope)
	f.Add(good, []byte("{}"))
	for _, at := range []int{10, 40, len(good) / 2, len(good) - 5} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		f.Add(bad, item.Envelope)
	}
	_, _, bodies := corpus(f)
	for _, body := range bodies {
		f.Add(body, item.Envelope)
	}
	f.Fuzz(func(t *testing.T, der, envelope []byte) {
		request, err := issuer.ParseRequest(der)
		if err != nil {
			return
		}
		e := item
		e.Envelope = envelope
		a, err := issuer.Decide(request, &e, policy, time.Now())
		if err != nil {
			if _, ok := errors.AsType[issuer.Refusal](err); !ok || a != (issuer.Approved{}) {
				t.Fatalf("refused as %v, with %+v", err, a)
			}
			return
		}
		csr, err := x509.ParseCertificateRequest(request.DER())
		if err != nil || csr.CheckSignature() != nil || a.Device() != b.ID || a.Key() != item.Key || csr.Subject.CommonName != b.ID.String() {
			t.Fatalf("approved %+v", a)
		}
	})
}
