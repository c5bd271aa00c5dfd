package spool

import (
	"bytes"
	"errors"
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
