package board_test

import (
	"bytes"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"secretfree/station/board"
)

// envelope writes the canonical form by hand, so that anything in it can be
// wrong.
func envelope(payloadType string, payload []byte, keyID string, signature []byte) string {
	return fmt.Sprintf(`{"payloadType":"%s","payload":"%s","signatures":[{"keyid":"%s","sig":"%s"}]}`,
		payloadType, base64.StdEncoding.EncodeToString(payload), keyID, base64.StdEncoding.EncodeToString(signature))
}

// pae is what DSSE signs (protocol version 1).
func pae(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// signed is an envelope of anything, signed by s.
func signed(t testing.TB, payloadType string, payload []byte, keyID string, s board.Signer) string {
	t.Helper()
	signature, err := s.Sign(pae(payloadType, payload))
	must(t, err)
	return envelope(payloadType, payload, keyID, signature)
}

func TestSeal(t *testing.T) {
	r, s := fixedRecord(t), fixedStation(t)
	sealed := seal(t, r, s)
	keyID := board.KeyID(s.Name(), s.KeyHash())
	if want := signed(t, board.PayloadType, encode(t, r), keyID, s); string(sealed.Envelope()) != want {
		t.Errorf("sealed as\n%s\nwant\n%s", sealed.Envelope(), want)
	}
	if sealed.KeyID() != keyID || !reflect.DeepEqual(sealed.Record(), r) {
		t.Errorf("sealed by %s: %+v", sealed.KeyID(), sealed.Record())
	}
	for name, open := range map[string]func() (board.Sealed, error){
		"ParseEnvelope": func() (board.Sealed, error) { return board.ParseEnvelope(sealed.Envelope()) },
		"OpenEnvelope":  func() (board.Sealed, error) { return board.OpenEnvelope(sealed.Envelope(), s) },
		"OpenEnvelope, among other": func() (board.Sealed, error) {
			return board.OpenEnvelope(sealed.Envelope(), newStation(t, "widgiot/line4", 1), newStation(t, s.Name(), 2), s, s)
		},
	} {
		got, err := open()
		if err != nil || !reflect.DeepEqual(got, sealed) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, sealed)
		}
	}
	// What is returned does not hang on the caller's bytes.
	text := bytes.Clone(sealed.Envelope())
	got, err := board.ParseEnvelope(text)
	must(t, err)
	clear(text)
	if !bytes.Equal(got.Envelope(), sealed.Envelope()) {
		t.Error("ParseEnvelope keeps the caller's bytes")
	}
}

func TestKeyID(t *testing.T) {
	if got := board.KeyID("widgiot/line3-a", 0xab); got != "widgiot/line3-a+000000ab" {
		t.Errorf("got %s", got)
	}
}

// brokenSigner has a name and cannot sign.
type brokenSigner struct{ station }

var errBroken = errors.New("no such key")

func (brokenSigner) Sign([]byte) ([]byte, error) { return nil, errBroken }

func TestSealRefusals(t *testing.T) {
	r := fixedRecord(t)
	for _, name := range []string{"widgiot/line3-b", "widgets/line3-a", "line3-a", "line3-a/widgiot", "widgiot/line3-a/x", ""} {
		sealed, err := board.Seal(r, renamed{fixedStation(t), name})
		if !errors.Is(err, board.ErrRecord) || !strings.Contains(err.Error(), "cannot be signed by the key of "+name) || sealed.Envelope() != nil {
			t.Errorf("the key of %q: got %q, %v", name, sealed.Envelope(), err)
		}
	}
	if sealed, err := board.Seal(r, brokenSigner{fixedStation(t)}); !errors.Is(err, errBroken) || sealed.Envelope() != nil {
		t.Errorf("a broken signer: got %q, %v", sealed.Envelope(), err)
	}
}

// renamed claims another name, or another hash, for the same key.
type renamed struct {
	station
	name string
}

func (r renamed) Name() string { return r.name }

type rehashed struct {
	station
	hash uint32
}

func (r rehashed) KeyHash() uint32 { return r.hash }

func TestOpenEnvelopeUntrusted(t *testing.T) {
	r, s := fixedRecord(t), fixedStation(t)
	impostor := newStation(t, s.Name(), 2)
	other := newStation(t, "widgiot/line4", 3)
	keyID, otherID := board.KeyID(s.Name(), s.KeyHash()), board.KeyID(other.Name(), other.KeyHash())
	payload := encode(t, r)
	good := string(seal(t, r, s).Envelope())
	tampered := fixedRecord(t)
	tampered.Key = newDevice(t, elliptic.P256()).key(t)
	signature, err := s.Sign(pae(board.PayloadType, payload))
	must(t, err)
	flipped := bytes.Clone(signature)
	flipped[40] ^= 1
	bare, err := s.Sign(payload)
	must(t, err)
	for name, c := range map[string]struct {
		envelope string
		trusted  []board.Verifier
		want     string
	}{
		"nobody is trusted":             {good, nil, keyID},
		"others are trusted":            {good, []board.Verifier{other, newStation(t, "widgets/line3-a", 4)}, keyID},
		"the same name, another key":    {good, []board.Verifier{impostor}, keyID},
		"the same name and hash":        {good, []board.Verifier{rehashed{impostor, s.KeyHash()}}, "does not hold"},
		"sealed by an impostor":         {string(seal(t, r, impostor).Envelope()), []board.Verifier{s}, impostor.Name()},
		"an impostor under its key id":  {signed(t, board.PayloadType, payload, keyID, impostor), []board.Verifier{s}, "does not hold"},
		"another station about it":      {signed(t, board.PayloadType, payload, otherID, other), []board.Verifier{s, other}, otherID},
		"another station as if it":      {signed(t, board.PayloadType, payload, keyID, other), []board.Verifier{s, other}, "does not hold"},
		"the key of the other name":     {good, []board.Verifier{renamed{s, "widgiot/line4"}}, keyID},
		"no key id":                     {signed(t, board.PayloadType, payload, "", s), []board.Verifier{s}, `key ""`},
		"a long key id":                 {signed(t, board.PayloadType, payload, strings.Repeat("x", 500), s), []board.Verifier{s}, strings.Repeat("x", 100)},
		"another record":                {envelope(board.PayloadType, encode(t, tampered), keyID, signature), []board.Verifier{s}, "does not hold"},
		"a bit of the signature":        {envelope(board.PayloadType, payload, keyID, flipped), []board.Verifier{s}, "does not hold"},
		"no signature":                  {envelope(board.PayloadType, payload, keyID, nil), []board.Verifier{s}, "does not hold"},
		"a short signature":             {envelope(board.PayloadType, payload, keyID, signature[:63]), []board.Verifier{s}, "does not hold"},
		"a long signature":              {envelope(board.PayloadType, payload, keyID, append(bytes.Clone(signature), 0)), []board.Verifier{s}, "does not hold"},
		"signed without DSSE":           {envelope(board.PayloadType, payload, keyID, bare), []board.Verifier{s}, "does not hold"},
		"signed for another type":       {envelope(board.PayloadType, payload, keyID, mustSign(t, s, pae("text/plain", payload))), []board.Verifier{s}, "does not hold"},
		"signed in another DSSE":        {envelope(board.PayloadType, payload, keyID, mustSign(t, s, bytes.Replace(pae(board.PayloadType, payload), []byte("v1"), []byte("v2"), 1))), []board.Verifier{s}, "does not hold"},
		"its own origin in another key": {signed(t, board.PayloadType, payload, keyID, s), []board.Verifier{other, impostor}, keyID},
	} {
		t.Run(name, func(t *testing.T) {
			claimed, err := board.ParseEnvelope([]byte(c.envelope))
			if err != nil || claimed.Record().Device != r.Device {
				t.Fatalf("ParseEnvelope, which believes anything: %v", err)
			}
			sealed, err := board.OpenEnvelope([]byte(c.envelope), c.trusted...)
			if !errors.Is(err, board.ErrUntrusted) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, board.ErrUntrusted, c.want)
			}
			if !reflect.DeepEqual(sealed, board.Sealed{}) {
				t.Errorf("and a record: %+v", sealed)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func mustSign(t testing.TB, s board.Signer, message []byte) []byte {
	t.Helper()
	signature, err := s.Sign(message)
	must(t, err)
	return signature
}

// All of these are signed by the trusted station, where there is anything to
// sign.
func TestParseEnvelopeRefusals(t *testing.T) {
	r, s := fixedRecord(t), fixedStation(t)
	good := string(seal(t, r, s).Envelope())
	keyID := board.KeyID(s.Name(), s.KeyHash())
	payload := encode(t, r)
	text := base64.StdEncoding.EncodeToString(payload)
	start := strings.Index(good, `{"keyid"`)
	one := strings.TrimSuffix(good[start:], "]}")
	sig := one[strings.Index(one, `"sig":"`)+7 : len(one)-2]
	if !strings.HasSuffix(text, "=") || !strings.HasSuffix(sig, "==") {
		t.Fatal("the golden record does not end in padding")
	}
	loose := func(s string) string { // the same bytes, with a bit set that the padding leaves unused
		at := strings.IndexByte(s, '=') - 1
		return s[:at] + string(s[at]+1) + s[at+1:]
	}
	for name, c := range map[string]struct{ from, to, want string }{
		"another payload type":        {good, signed(t, "application/json", payload, keyID, s), `payload type "application/json"`},
		"a type in capitals":          {good, signed(t, strings.ToUpper(board.PayloadType), payload, keyID, s), "payload type"},
		"a later type":                {good, signed(t, strings.Replace(board.PayloadType, "v1", "v2", 1), payload, keyID, s), "record.v2"},
		"a long type":                 {good, signed(t, strings.Repeat("x", 5000), payload, keyID, s), "payload type"},
		"no type":                     {good, signed(t, "", payload, keyID, s), `payload type ""`},
		"two signatures":              {one, one + "," + one, "2 signatures, want 1"},
		"no signature":                {one, "", "0 signatures, want 1"},
		"signatures null":             {"[" + one + "]", "null", "0 signatures"},
		"a signature that is null":    {one, "null", "one encoding"},
		"a signature not in a list":   {"[" + one + "]", one, "signatures"},
		"a line break in the payload": {text, text[:76] + `\n` + text[76:], "one encoding"},
		"a return in the payload":     {text, text[:76] + `\r` + text[76:], "one encoding"},
		"a line break at the end":     {text, text + `\n`, "one encoding"},
		"a raw line break":            {text, text[:76] + "\n" + text[76:], ""},
		"a line break in the sig":     {sig, sig[:76] + `\n` + sig[76:], "one encoding"},
		"a space in the payload":      {text, text[:76] + " " + text[76:], "payload: illegal base64"},
		"the URL alphabet":            {text, "-_" + text[2:], "payload: illegal base64"},
		"a payload without padding":   {text, strings.TrimRight(text, "="), "payload: illegal base64"},
		"a sig without padding":       {sig, strings.TrimRight(sig, "="), "signature: illegal base64"},
		"loose bits in the payload":   {text, loose(text), "payload: illegal base64"},
		"loose bits in the sig":       {sig, loose(sig), "signature: illegal base64"},
		"something after the padding": {sig, sig + "AAAA", "signature: illegal base64"},
		"a record that is none":       {good, signed(t, board.PayloadType, []byte("{}"), keyID, s), board.ErrRecord.Error()},
		"a record with a space":       {good, signed(t, board.PayloadType, append(bytes.Clone(payload), ' '), keyID, s), board.ErrRecord.Error()},
		"an empty payload":            {good, signed(t, board.PayloadType, nil, keyID, s), board.ErrRecord.Error()},
		"a payload in hex":            {text, fmt.Sprintf("%x", payload), ""},
		"an unknown field":            {`"payload":`, `"_type":"x","payload":`, "unknown field"},
		"an unknown field inside":     {`"keyid":`, `"cert":"x","keyid":`, "unknown field"},
		"a field twice":               {`"payload":`, `"payload":"x","payload":`, "one encoding"},
		"a type of two minds":         {`{"payloadType":`, `{"payloadType":"x","payloadType":`, "one encoding"},
		"a key id twice":              {`"keyid":`, `"keyid":"x","keyid":`, "one encoding"},
		"a field in capitals":         {`"payload":`, `"Payload":`, "one encoding"},
		"no payload":                  {`"payload":"` + text + `",`, "", board.ErrRecord.Error()},
		"no key id":                   {`"keyid":"` + keyID + `",`, "", "one encoding"},
		"no sig":                      {`,"sig":"` + sig + `"`, "", "one encoding"},
		"sig first":                   {one, `{"sig":"` + sig + `","keyid":"` + keyID + `"}`, "one encoding"},
		"the payload first":           {`"payloadType":"` + board.PayloadType + `","payload":"` + text + `"`, `"payload":"` + text + `","payloadType":"` + board.PayloadType + `"`, "one encoding"},
		"an escape without need":      {`"keyid":"w`, `"keyid":"\u0077`, "one encoding"},
		"a key id that is not UTF-8":  {`"keyid":"w`, "\"keyid\":\"\xff", "one encoding"},
		"white space":                 {`"payload":`, `"payload": `, "one encoding"},
		"a line end":                  {good, good + "\n", "one encoding"},
		"another envelope after it":   {good, good + good, "follows"},
		"cut short":                   {good, good[:len(good)-1], ""},
		"nothing":                     {good, "", ""},
		"null":                        {good, "null", "payload type"},
		"a list":                      {good, "[" + good + "]", ""},
		"the record alone":            {good, string(payload), "unknown field"},
		"too large":                   {good, good + strings.Repeat(" ", board.MaxEnvelope), "at most 32768"},
		"too large a record":          {good, signed(t, board.PayloadType, append(bytes.Clone(payload), bytes.Repeat([]byte(" "), board.MaxRecord)...), keyID, s), "at most 16384"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, c.from, c.to, 1)
			if text == good {
				t.Fatal("the case changes nothing")
			}
			for name, open := range map[string]func() (board.Sealed, error){
				"ParseEnvelope": func() (board.Sealed, error) { return board.ParseEnvelope([]byte(text)) },
				"OpenEnvelope":  func() (board.Sealed, error) { return board.OpenEnvelope([]byte(text), s) },
			} {
				sealed, err := open()
				if !errors.Is(err, board.ErrEnvelope) || errors.Is(err, board.ErrNewer) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: got %v, want %v with %q", name, err, board.ErrEnvelope, c.want)
				}
				if !reflect.DeepEqual(sealed, board.Sealed{}) {
					t.Errorf("%s: and a record: %+v", name, sealed)
				}
			}
		})
	}
}

// The cause shows through: a record of a newer version, and one that is none.
func TestEnvelopeOfNewerRecord(t *testing.T) {
	s := fixedStation(t)
	newer := bytes.Replace(encode(t, fixedRecord(t)), []byte(`"version":1`), []byte(`"version":2`), 1)
	text := signed(t, board.PayloadType, newer, board.KeyID(s.Name(), s.KeyHash()), s)
	if _, err := board.OpenEnvelope([]byte(text), s); !errors.Is(err, board.ErrNewer) || errors.Is(err, board.ErrRecord) {
		t.Errorf("got %v, want %v", err, board.ErrNewer)
	}
}

// The largest record has an envelope that is read, whatever the names.
func TestEnvelopeOfLargestRecord(t *testing.T) {
	r := fixedRecord(t)
	r.SKU, r.Station = strings.Repeat("s", 63), strings.Repeat("t", 63)
	fill(t, &r)
	s := newStation(t, r.Origin(), 1)
	sealed := seal(t, r, s)
	if _, err := board.OpenEnvelope(sealed.Envelope(), s); err != nil {
		t.Errorf("a record of %d bytes in an envelope of %d: %v", len(encode(t, r)), len(sealed.Envelope()), err)
	}
}
