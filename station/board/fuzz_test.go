package board_test

import (
	"bytes"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"secretfree/station/board"
)

// What parses encodes to the same bytes: that is the property of all of these.

func FuzzParseDeviceID(f *testing.F) {
	for _, text := range []string{
		"4d1f000ab3c05a9e61f2d47788aabbcc", "4D1F000AB3C05A9E61F2D47788AABBCC", "4d1f0ab3c05a9e61f2d47788aabbcc",
		strings.Repeat("0", 32), strings.Repeat("f", 32), strings.Repeat("0", 31) + "1", "", " 4d1f000ab3c05a9e61f2d47788aabbc",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := board.ParseDeviceID(text)
		if err != nil {
			if !errors.Is(err, board.ErrDeviceID) || id != (board.DeviceID{}) {
				t.Errorf("refused, but with %s, %v", id, err)
			}
			return
		}
		again, err := id.MarshalText()
		if err != nil || string(again) != text || id.String() != text {
			t.Errorf("parsed, but encodes to %q (%v)", again, err)
		}
		if made, err := board.NewDeviceID(id); err != nil || made != id {
			t.Errorf("parsed, but NewDeviceID says %v", err)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		f.Add(newDevice(f, curve).spki(f))
	}
	for _, bits := range []int{1024, 2048, 8192} {
		f.Add(marshal(f, rsaKey(f, bits, 65537)))
	}
	good := fixedDevice(f).spki(f)
	f.Add(good[:len(good)-1])
	f.Add(append(bytes.Clone(good), 5, 0))
	f.Add(append([]byte{0x30, 0x81}, good[1:]...))
	f.Add([]byte(fixedDevice(f).key(f).PEM()))
	f.Fuzz(func(t *testing.T, spki []byte) {
		key, err := board.ParseKey(spki)
		if err != nil {
			if !errors.Is(err, board.ErrKey) || key != (board.Key{}) {
				t.Errorf("refused, but with %v", err)
			}
			return
		}
		if !bytes.Equal(key.SPKI(), spki) {
			t.Errorf("parsed, but encodes to %x", key.SPKI())
		}
		if again, err := board.NewKey(key.Public(), spki); err != nil || again != key {
			t.Errorf("parsed, but NewKey says %v", err)
		}
		if again, err := board.ParseKeyPEM(key.PEM()); err != nil || again != key {
			t.Errorf("parsed, but its PEM does not: %v", err)
		}
		switch key.Algorithm() {
		case board.P256, board.P384, board.RSA:
		default:
			t.Errorf("parsed as %q", key.Algorithm())
		}
	})
}

func addRecords(f *testing.F, add func([]byte)) {
	r := fixedRecord(f)
	good := encode(f, r)
	add(good)
	add(append(bytes.Clone(good), '\n'))
	add(bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1))
	add(bytes.Replace(good, []byte(`"sku"`), []byte(`"SKU"`), 1))
	add(bytes.Replace(good, []byte(`widgiot`), []byte(`\u0077idgiot`), 1))
	add(bytes.Replace(good, []byte(`.040Z`), []byte(`,040Z`), 1))
	r.Proof = fixedDevice(f).requestProof(f, r.Device, fixedNonce)
	add(encode(f, r))
	add(bytes.Replace(encode(f, r), []byte(`"request":"`), []byte(`"request":"\n`), 1))
	r.Proof = fixedDevice(f).reportProof(f, r.Device, fixedNonce)
	add(encode(f, r))
	r.Facts, r.Proof = nil, nil
	add(encode(f, r))
	key, err := board.NewKey(rsaKey(f, 2048, 65537), nil)
	must(f, err)
	r.Key = key
	add(encode(f, r))
}

func FuzzParseRecord(f *testing.F) {
	addRecords(f, func(data []byte) { f.Add(data) })
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := board.ParseRecord(data)
		if err != nil {
			if errors.Is(err, board.ErrRecord) == errors.Is(err, board.ErrNewer) {
				t.Errorf("refused, but with %v", err)
			}
			return
		}
		if again, err := r.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("parsed, but encodes to %q (%v)", again, err)
		}
		if len(data) > board.MaxRecord {
			t.Errorf("parsed %d bytes", len(data))
		}
		if r.Proof != nil {
			_ = r.Proof.Verify(r.Device, r.Key) // whatever it says, it comes back
		}
	})
}

// FuzzParseEnvelope holds one thing more: nobody without the station's key
// makes an envelope that opens.
func FuzzParseEnvelope(f *testing.F) {
	s := fixedStation(f)
	keyID := board.KeyID(s.Name(), s.KeyHash())
	sealed := map[string]bool{}
	addRecords(f, func(payload []byte) {
		text := signed(f, board.PayloadType, payload, keyID, s)
		sealed[text] = true
		f.Add([]byte(text))
	})
	good := string(seal(f, fixedRecord(f), s).Envelope())
	f.Add([]byte(strings.Replace(good, `"sig":"`, `"sig":"\n`, 1)))
	f.Add([]byte(strings.Replace(good, `"signatures":[`, `"signatures":[null,`, 1)))
	f.Add([]byte(strings.Replace(good, `"payload":`, `"payload": `, 1)))
	f.Add([]byte(good + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := board.ParseEnvelope(text)
		opened, openErr := board.OpenEnvelope(text, s)
		if err != nil {
			if !errors.Is(err, board.ErrEnvelope) || !errors.Is(openErr, board.ErrEnvelope) {
				t.Errorf("refused, but with %v and %v", err, openErr)
			}
			return
		}
		var wire struct {
			Signatures []struct{ KeyID, Sig string }
		}
		if err := json.Unmarshal(text, &wire); err != nil || len(wire.Signatures) != 1 || wire.Signatures[0].KeyID != got.KeyID() {
			t.Fatalf("parsed, but %v, %+v", err, wire)
		}
		var id bytes.Buffer
		e := json.NewEncoder(&id)
		e.SetEscapeHTML(false)
		must(t, e.Encode(got.KeyID()))
		signature, err := base64.StdEncoding.Strict().DecodeString(wire.Signatures[0].Sig)
		must(t, err)
		again := envelope(board.PayloadType, encode(t, got.Record()), "", signature)
		again = strings.Replace(again, `"keyid":""`, `"keyid":`+strings.TrimSpace(id.String()), 1)
		if again != string(text) || !bytes.Equal(got.Envelope(), text) {
			t.Errorf("parsed, but encodes to %q", again)
		}
		switch {
		case openErr == nil && (!sealed[string(text)] || opened.KeyID() != keyID):
			t.Error("an envelope that the station did not seal opens")
		case openErr != nil && !errors.Is(openErr, board.ErrUntrusted):
			t.Errorf("parsed, but does not open: %v", openErr)
		}
	})
}
