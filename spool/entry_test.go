package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"secretfree/spool/journal"
	"secretfree/station/board"
	"strings"
	"testing"
	"time"
)

func FuzzEntry(f *testing.F) {
	t := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	for _, e := range []journal.Entry{
		{Seq: 0, Time: t, Kind: journal.KindSegment, Segment: &journal.Segment{Format: 1, Origin: "a/b", Key: "k"}},
		{Seq: 7, Time: t, Kind: journal.KindVerdict, Verdict: &journal.Verdict{Result: journal.Passed, Slot: "A", Device: board.DeviceID{1}, Fingerprint: board.Fingerprint{1}, Record: []byte(`{"payload":"<&>"}`)}},
		{Seq: 8, Time: t, Kind: journal.KindVerdict, Verdict: &journal.Verdict{Result: journal.Failed, Reason: journal.ReasonKeyConflict, Device: board.DeviceID{1}, Known: &journal.Known{Device: "02"}, WorkOrder: "W 7", Label: "a \"label\"", Operator: "é", LeftOut: 3}},
		{Seq: 9, Time: t, Kind: journal.KindVerdict, Verdict: repeatOf(7)},
		{Seq: 10, Time: t, Kind: journal.KindRejection, Rejection: &journal.Rejection{Of: 7, Device: board.DeviceID{1}, Reason: journal.ReasonUntrusted, Text: "no such station"}},
		{Seq: 11, Time: t, Kind: journal.KindLost, Lost: &journal.Lost{Reason: "noise"}},
	} {
		data, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := journal.ParseEntry(data)
		if err != nil {
			return
		}
		if again, err := e.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q encodes to %q (%v)", data, again, err)
		}
		line := journal.EncodeLine(data)
		if got, err := journal.CheckLine(line[:len(line)-1]); err != nil || !bytes.Equal(got, data) {
			t.Errorf("its line reads as %q (%v)", got, err)
		}
	})
}

func TestEntryRefusals(t *testing.T) {
	good := `{"seq":9,"time":"2026-01-02T03:04:05.006Z","kind":"verdict","verdict":{"result":"repeated","slot":"A","device":"01000000000000000000000000000000","fingerprint":"01` + strings.Repeat("0", 62) + `","of":7}}`
	if _, err := journal.ParseEntry([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"an unknown field":             {`"of":7`, `"of":7,"more":1`},
		"an unknown kind":              {`"kind":"verdict"`, `"kind":"other"`},
		"another kind":                 {`"kind":"verdict"`, `"kind":"rejection"`},
		"no body":                      {`,"verdict":{`, `,"x":{`},
		"an unknown result":            {`"repeated"`, `"perhaps"`},
		"a pass without a record":      {`"repeated"`, `"passed"`},
		"a failure without a reason":   {`"repeated"`, `"failed"`},
		"a repeat with a reason":       {`"device"`, `"reason":"bad-key","device"`},
		"a repeat of nothing":          {`,"of":7`, ``},
		"a repeat of nobody":           {`"device":"01000000000000000000000000000000",`, ``},
		"a repeat without a key":       {`"fingerprint":"01`, `"fingerprint":"00`},
		"a control character":          {`"slot":"A"`, `"slot":"A\u0007"`},
		"a slot of many bytes":         {`"slot":"A"`, `"slot":"` + strings.Repeat("A", 257) + `"`},
		"a negative time":              {`"of":7`, `"of":7,"read_ms":-1`},
		"microseconds":                 {`05.006Z`, `05.000006Z`},
		"another zone":                 {`05.006Z`, `05.006+01:00`},
		"white space":                  {`"of":7`, `"of": 7`},
		"something behind":             {`}}`, `}}{}`},
		"a short device id":            {`"0100`, `"00`},
		"another order":                {`"seq":9,"time":"2026-01-02T03:04:05.006Z"`, `"time":"2026-01-02T03:04:05.006Z","seq":9`},
		"a negative sequence":          {`"seq":9`, `"seq":-9`},
		"a field that is empty":        {`"of":7`, `"of":7,"label":""`},
		"the entry of an older format": {`"kind":"verdict","verdict":{`, `"kind":"repeat","repeat":{`},
	} {
		text := strings.Replace(good, c[0], c[1], 1)
		if text == good {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := journal.ParseEntry([]byte(text)); !errors.Is(err, journal.ErrEntry) {
			t.Errorf("%s: %v, want %v", name, err, journal.ErrEntry)
		}
	}
	if _, err := journal.ParseEntry(make([]byte, journal.MaxEntryLine+1)); !errors.Is(err, journal.ErrEntry) {
		t.Errorf("too long: %v", err)
	}
}

// A line reads as it was written, and nothing else does.
func FuzzLine(f *testing.F) {
	f.Add(journal.EncodeLine([]byte(`{"seq":7,"time":"2026-01-02T03:04:05.006Z"}`)))
	f.Add(journal.EncodeLine([]byte(`{"seq":07,`)))
	f.Add([]byte("x 00000000\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		data, seq, err := journal.ReadLine(line)
		if err != nil {
			return
		}
		if !bytes.Equal(journal.EncodeLine(data), line) {
			t.Errorf("%q reads as %q", line, data)
		}
		if got, err := journal.SeqOf(fmt.Appendf(nil, `{"seq":%d,`, seq)); err != nil || got != seq {
			t.Errorf("seq %d reads as %d (%v)", seq, got, err)
		}
	})
}

// What the index needs of an entry is the same, however it is read.
func FuzzIndexedOf(f *testing.F) {
	id, err := journal.LoadIdentity(f.TempDir(), "widgiot/line3-a")
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := board.Seal(newRecord(f), id.Signer)
	if err != nil {
		f.Fatal(err)
	}
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	full := enrolmentOf(sealed)
	full.WorkOrder, full.Label, full.Operator, full.Transcript, full.ReadMS, full.LeftOut = "WO-7", "x,\"record\":{", "me", "t.uart", 7, 2
	for _, e := range []journal.Entry{
		{Seq: 7, Time: t0, Kind: journal.KindVerdict, Verdict: enrolmentOf(sealed)},
		{Seq: 7, Time: t0, Kind: journal.KindVerdict, Verdict: full},
		{Seq: 9, Time: t0, Kind: journal.KindVerdict, Verdict: repeatOf(7)},
		{Seq: 9, Time: t0, Kind: journal.KindVerdict, Verdict: &journal.Verdict{Result: journal.Failed, Reason: "timeout", Slot: "B", WorkOrder: "WO-7", After: new(uint64)}},
		{Seq: 9, Time: t0, Kind: journal.KindVerdict, Verdict: &journal.Verdict{Result: journal.Failed, Reason: journal.ReasonKeyConflict, Device: board.DeviceID{1}, Known: &journal.Known{Device: board.DeviceID{2}.String()}}},
		{Seq: 9, Time: t0, Kind: journal.KindRejection, Rejection: &journal.Rejection{Of: 7, Device: board.DeviceID{1}, Reason: journal.ReasonInvalid}},
		{Seq: 9, Time: t0, Kind: journal.KindLost, Lost: &journal.Lost{Reason: `a "reason"`}},
	} {
		data, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := journal.ParseEntry(data)
		if err != nil {
			return
		}
		want := journal.SummaryOf(&e, journal.Position{})
		if e.Record() != nil {
			sealed, err := board.ParseEnvelope(e.Record())
			if err != nil {
				return
			}
			want.MAC = journal.ParseMAC(sealed.Record().Facts["mac"])
		}
		got, err := journal.Summarize(journal.Position{}, e.Seq, data, journal.TagTable{})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v, want %+v", data, got, err, want)
		}
		if at, err := journal.TimeOf(data); err != nil || !at.Equal(e.Time) {
			t.Errorf("%q: time %v, %v", data, at, err)
		}
		front, err := journal.ParseFront(data)
		if e.Verdict != nil {
			e.Verdict.Record = nil
		}
		if err != nil || !reflect.DeepEqual(front, e) {
			t.Errorf("%q: its front is %+v, %v, want %+v", data, front, err, e)
		}
	})
}

// An ordinary record is read by its fixed order of fields: otherwise a rebuild
// is slow.
func TestScanVerdict(t *testing.T) {
	k := newKit(t)
	r := k.mustAppend()
	text, err := os.ReadFile(segment(k))
	if err != nil {
		t.Fatal(err)
	}
	data, _, err := journal.ReadLine(bytes.SplitAfter(text, []byte("\n"))[1])
	if err != nil {
		t.Fatal(err)
	}
	got, ok := journal.ScanVerdict(data, nil)
	if !ok || !got.IsRecord() || got.Device != r.Device || got.Key != r.Fingerprint() || got.Time == 0 || got.Tags.Slot != "A" {
		t.Errorf("%+v, %v", got, ok)
	}
}
