package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// journaled is a state directory with a journal in which every third board is
// read twice and every fifth has failed before.
func journaled(t *testing.T, boards int) (dir string, devices []board.DeviceID) {
	t.Helper()
	dir = t.TempDir()
	identity, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	must(t, err)
	s, err := spool.Open(spool.Config{Dir: dir, Identity: identity, Sink: control.NoSink{Why: "none"}, SegmentSize: 4 << 10})
	must(t, err)
	defer s.Close()
	for n := range boards {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		key, err := board.NewKey(private.Public(), nil)
		must(t, err)
		r := board.Record{SKU: "widgiot", Station: "line3-a", Key: key, ReadAt: board.Timestamp(time.Now()), Generation: 1}
		rand.Read(r.Device[:])
		devices = append(devices, r.Device)
		if n%5 == 0 {
			_, err := s.Append(t.Context(), spool.Reading{Device: r.Device, Reason: "no-proof", Slot: "A"})
			must(t, err)
		}
		for range 1 + n%3%2 {
			_, err := s.Append(t.Context(), spool.Reading{Record: &r, Slot: "A"})
			must(t, err)
		}
	}
	must(t, s.Checkpoint())
	return dir, devices
}

func output(run func(out *cli.Output) error) (string, error) {
	var out bytes.Buffer
	err := run(&cli.Output{Out: &out, People: &out, Err: &out, JSON: true})
	return out.String(), err
}

// What the index says of a board is what the whole journal says; without an
// index, or with one that is wrong, it is the same.
func TestSpoolShow(t *testing.T) {
	dir, devices := journaled(t, 30)
	in := place{StateDir: dir}
	show := func(what string, whole bool) string {
		t.Helper()
		text, err := output(func(out *cli.Output) error {
			return (&spoolShow{place: in, What: what, Whole: whole}).Run(t.Context(), out)
		})
		if err != nil {
			text += err.Error()
		}
		return text
	}
	prove := func(device board.DeviceID) {
		t.Helper()
		text, err := output(func(out *cli.Output) error {
			return (&proof{place: in, Device: device.String()}).Run(t.Context(), out)
		})
		must(t, err)
		var said struct{ Proof string }
		must(t, json.Unmarshal([]byte(text), &said))
		identity, err := journal.OpenIdentity(dir)
		must(t, err)
		if proven, err := journal.VerifyProof([]byte(said.Proof), identity.Verifier); err != nil || proven.Sealed.Record().Device != device {
			t.Errorf("%s: %+v, %v", device, proven.Entry, err)
		}
	}
	whole := map[string]string{}
	for n, device := range devices {
		want := 1 + n%3%2
		if n%5 == 0 {
			want++
		}
		text := show(device.String(), true)
		if got := strings.Count(text, "\n"); got != want {
			t.Errorf("board %d has %d entries, want %d:\n%s", n, got, want, text)
		}
		whole[device.String()] = text
	}
	for seq := range 60 {
		whole[strconv.Itoa(seq)] = show(strconv.Itoa(seq), true)
	}
	same := func(when string) {
		t.Helper()
		for what, want := range whole {
			if got := show(what, false); got != want {
				t.Errorf("%s, %s:\n%s\nwant\n%s", when, what, got, want)
			}
		}
		prove(devices[7])
	}
	same("with the index")
	index := filepath.Join(dir, "index.bbolt")
	data, err := os.ReadFile(index)
	must(t, err)
	must(t, os.WriteFile(index, data[:len(data)/2], 0o600))
	same("with half of the index")
	must(t, os.Remove(index))
	same("without the index")
}
