package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"secretfree/station/board"
	"strings"
	"testing"
	"time"
)

func FuzzEntry(f *testing.F) {
	t := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	for _, e := range []Entry{
		{Seq: 0, Time: t, Kind: KindSegment, Segment: &Segment{1, "a/b", "k"}},
		{Seq: 7, Time: t, Kind: KindRecord, Record: []byte(`{"payload":"<&>"}`)},
		{Seq: 8, Time: t, Kind: KindRefusal, Refusal: &Refusal{Reason: reasonKey, Device: board.DeviceID{1}, KnownDevice: board.DeviceID{2}}},
		{Seq: 9, Time: t, Kind: KindRepeat, Repeat: &Repeat{Device: board.DeviceID{1}, Of: 7}},
	} {
		data, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEntry(data)
		if err != nil {
			return
		}
		if again, err := e.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q encodes to %q (%v)", data, again, err)
		}
		line := encodeLine(data)
		if got, err := checkLine(line[:len(line)-1]); err != nil || !bytes.Equal(got, data) {
			t.Errorf("its line reads as %q (%v)", got, err)
		}
	})
}

func TestEntryRefusals(t *testing.T) {
	good := `{"seq":9,"time":"2026-01-02T03:04:05.006Z","kind":"repeat","repeat":{"device":"01000000000000000000000000000000","fingerprint":"` + strings.Repeat("0", 64) + `","of":7}}`
	if _, err := ParseEntry([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"an unknown field":    {`"of":7`, `"of":7,"more":1`},
		"an unknown kind":     {`"kind":"repeat"`, `"kind":"other"`},
		"another kind":        {`"kind":"repeat"`, `"kind":"refusal"`},
		"no body":             {`,"repeat":{`, `,"x":{`},
		"microseconds":        {`05.006Z`, `05.000006Z`},
		"another zone":        {`05.006Z`, `05.006+01:00`},
		"white space":         {`"of":7`, `"of": 7`},
		"something behind":    {`}}`, `}}{}`},
		"a short device id":   {`"0100`, `"00`},
		"another order":       {`"seq":9,"time":"2026-01-02T03:04:05.006Z"`, `"time":"2026-01-02T03:04:05.006Z","seq":9`},
		"a negative sequence": {`"seq":9`, `"seq":-9`},
	} {
		text := strings.Replace(good, c[0], c[1], 1)
		if text == good {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := ParseEntry([]byte(text)); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v, want %v", name, err, ErrEntry)
		}
	}
	if _, err := ParseEntry(make([]byte, maxEntryLine+1)); !errors.Is(err, ErrEntry) {
		t.Errorf("too long: %v", err)
	}
}

// A line reads as it was written, and nothing else does.
func FuzzLine(f *testing.F) {
	f.Add(encodeLine([]byte(`{"seq":7,"time":"2026-01-02T03:04:05.006Z"}`)))
	f.Add(encodeLine([]byte(`{"seq":07,`)))
	f.Add([]byte("x 00000000\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		data, seq, err := readLine(line)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeLine(data), line) {
			t.Errorf("%q reads as %q", line, data)
		}
		if got, err := seqOf(fmt.Appendf(nil, `{"seq":%d,`, seq)); err != nil || got != seq {
			t.Errorf("seq %d reads as %d (%v)", seq, got, err)
		}
	})
}

// What the index needs of an entry is the same, however it is read.
func FuzzGlance(f *testing.F) {
	id, err := LoadIdentity(f.TempDir(), "widgiot/line3-a")
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := board.Seal(newRecord(f), id.Signer)
	if err != nil {
		f.Fatal(err)
	}
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	for _, e := range []Entry{
		{Seq: 7, Time: t0, Kind: KindRecord, Record: sealed.Envelope},
		{Seq: 9, Time: t0, Kind: KindRepeat, Repeat: &Repeat{Device: board.DeviceID{1}, Of: 7}},
		{Seq: 9, Time: t0, Kind: KindLost, Lost: &Lost{Reason: `a "reason"`}},
	} {
		data, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEntry(data)
		if err != nil {
			return
		}
		var want *indexed
		if e.Kind == KindRecord {
			sealed, err := board.ParseEnvelope(e.Record)
			if err != nil {
				return
			}
			want = &indexed{sealed.Record.Device, sealed.Record.Fingerprint(), e.Seq, position{}, e.Time.UnixMilli(), 0, macOf(sealed.Record.Facts["mac"])}
		}
		got, err := indexedOf(position{}, e.Seq, data)
		if err != nil || (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%q: %+v, %v, want %+v", data, got, err, want)
		}
		if r, kind, ok := glance(data); ok && (kind != e.Kind || want != nil && r.device != want.device) {
			t.Errorf("%q: a glance says %+v, %s", data, r, kind)
		}
		wantTold, tells := toldBy(&e, position{})
		if got, ok, err := toldOf(position{}, e.Seq, data); err != nil || ok != tells || ok && got != wantTold {
			t.Errorf("%q: tells %+v, %v, %v, want %+v, %v", data, got, ok, err, wantTold, tells)
		}
		if at, err := timeOf(data); err != nil || !at.Equal(e.Time) {
			t.Errorf("%q: time %v, %v", data, at, err)
		}
	})
}

// An ordinary record is read at a glance: otherwise a rebuild is slow.
func TestGlance(t *testing.T) {
	k := newKit(t)
	r := k.mustAppend()
	text, err := os.ReadFile(segment(k))
	if err != nil {
		t.Fatal(err)
	}
	data, _, err := readLine(bytes.SplitAfter(text, []byte("\n"))[1])
	if err != nil {
		t.Fatal(err)
	}
	got, kind, ok := glance(data)
	if !ok || kind != KindRecord || got.device != r.Device || got.key != r.Fingerprint() || got.time == 0 {
		t.Errorf("%+v, %s, %v", got, kind, ok)
	}
}
