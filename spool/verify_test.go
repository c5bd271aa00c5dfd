package spool

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// writeJournal makes a journal of these records, whatever they are: a station
// would refuse some. change, if not nil, changes an entry before it is written.
func writeJournal(t *testing.T, dir string, id journal.Identity, records []board.Record, change func(seq uint64, v *journal.Verdict)) {
	t.Helper()
	if err := os.MkdirAll(journal.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	write := func(e journal.Entry) {
		t.Helper()
		data, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		out.Write(journal.EncodeLine(data))
	}
	at := board.Timestamp(time.Now())
	write(journal.Entry{Time: at, Kind: journal.KindSegment, Segment: &journal.Segment{Format: journal.Format, Origin: id.Signer.Name(), Key: id.Key}})
	for i, r := range records {
		sealed, err := board.Seal(r, id.Signer)
		if err != nil {
			t.Fatal(err)
		}
		v := &journal.Verdict{Result: journal.Passed, Slot: "A", Device: r.Device, Fingerprint: r.Fingerprint(), Record: sealed.Envelope()}
		seq := uint64(i + 1)
		if change != nil {
			change(seq, v)
		}
		write(journal.Entry{Seq: seq, Time: at, Kind: journal.KindVerdict, Verdict: v})
	}
	if err := os.WriteFile(journal.SegmentPath(dir, 0), out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A journal whose every line and signature is good may still name a device
// twice: verifying finds that, and the first fault of several.
func TestVerifyFindsTheFirstFault(t *testing.T) {
	dir := tempDir(t)
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := journal.LoadIdentity(tempDir(t), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	var good []board.Record
	for range 300 {
		good = append(good, newRecord(t))
	}
	with := func(at int, change func(r *board.Record)) []board.Record {
		out := append([]board.Record(nil), good...)
		change(&out[at])
		return out
	}
	forge := func(from uint64) func(uint64, *journal.Verdict) {
		return func(seq uint64, v *journal.Verdict) {
			if seq >= from {
				sealed, err := board.Seal(good[seq-1], other.Signer)
				if err != nil {
					t.Fatal(err)
				}
				v.Record = sealed.Envelope()
			}
		}
	}
	for name, c := range map[string]struct {
		records []board.Record
		change  func(seq uint64, v *journal.Verdict)
		want    error
		says    string
	}{
		"in order":               {good, nil, nil, ""},
		"a record twice":         {with(200, func(r *board.Record) { *r = good[3] }), nil, nil, ""},
		"a device with two keys": {with(200, func(r *board.Record) { r.Device = good[3].Device }), nil, board.ErrDeviceConflict, "entry 201"},
		"a key in two devices":   {with(200, func(r *board.Record) { r.Key = good[3].Key }), nil, board.ErrKeyConflict, "entry 201"},
		"another's signature":    {good, forge(100), board.ErrUntrusted, "entry 100:"},
		"and two keys before it": {with(50, func(r *board.Record) { r.Device = good[3].Device }), forge(100), board.ErrUntrusted, "entry 100:"},
		"another board's record": {good, func(seq uint64, v *journal.Verdict) {
			if seq == 150 {
				v.Device = good[3].Device
			}
		}, journal.ErrEntry, "entry 150:"},
		"a wrong proof": {with(120, func(r *board.Record) {
			r.Proof = provenRecord(t, newP256(t)).Proof // of another key
		}), nil, board.ErrProof, "entry 121:"},
	} {
		t.Run(name, func(t *testing.T) {
			writeJournal(t, dir, id, c.records, c.change)
			report, err := journal.VerifyDir(dir, id.Verifier)
			if !errors.Is(err, c.want) || c.want != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v with %q", err, c.want, c.says)
			}
			if err == nil && (report.Records != 300 || report.NoProof != 300 || report.Entries != 301) {
				t.Errorf("%+v", report)
			}
		})
	}
}
