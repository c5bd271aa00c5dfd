package reconcile

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"flag"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

var reconcileRecords = flag.Int("reconcile.records", 20_000, "how many records BenchmarkReconcile compares")

// made is a synthetic factory: as many records as are wanted, each made anew
// from its number whenever it is asked for, so that nothing but Reconcile needs
// memory. Their signatures do not hold, and boards share a few keys.
type made struct {
	id      journal.Identity
	n       int
	payload string // of a record, in which the device and the key are to be replaced
	first   board.Record
	keys    []board.Key
	sig     string
	at      time.Time
}

func newMade(b *testing.B, id journal.Identity, n int) *made {
	m := &made{id: id, n: n, first: newRecord(b)}
	m.at = m.first.ReadAt
	for range 64 {
		m.keys = append(m.keys, newRecord(b).Key)
	}
	sealed, err := board.Seal(m.first, id.Signer)
	if err != nil {
		b.Fatal(err)
	}
	payload, err := m.first.Encode()
	if err != nil {
		b.Fatal(err)
	}
	m.payload = string(payload)
	_, m.sig, _ = strings.Cut(string(sealed.Envelope()), `","signatures"`)
	return m
}

func (m *made) device(i int) (d board.DeviceID) {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	return board.DeviceID(sum[:16])
}

func (m *made) envelope(i int) []byte {
	key := m.keys[i%len(m.keys)]
	payload := strings.NewReplacer(m.first.Device.String(), m.device(i).String(),
		base64.StdEncoding.EncodeToString(m.first.Key.SPKI()), base64.StdEncoding.EncodeToString(key.SPKI()),
		m.first.Fingerprint().String(), key.Fingerprint().String()).Replace(m.payload)
	return fmt.Appendf(nil, `{"payloadType":%q,"payload":%q,"signatures"%s`, board.PayloadType, base64.StdEncoding.EncodeToString([]byte(payload)), m.sig)
}

func (m *made) verdict(i int) *journal.Verdict {
	return &journal.Verdict{Result: journal.Passed, Slot: "A", Device: m.device(i), Fingerprint: m.keys[i%len(m.keys)].Fingerprint(), Record: m.envelope(i)}
}

// write makes the journal, in sealed segments, and its checkpoint.
func (m *made) write(b *testing.B, dir string) {
	if err := os.MkdirAll(journal.Dir(dir), 0o700); err != nil {
		b.Fatal(err)
	}
	var t journal.Tree
	var f *os.File
	var w *bufio.Writer
	size := 0
	put := func(e journal.Entry) {
		data, err := e.Encode()
		if err != nil {
			b.Fatal(err)
		}
		t.Add(tlog.RecordHash(data))
		n, _ := w.Write(journal.EncodeLine(data))
		size += n
	}
	done := func() {
		if f == nil {
			return
		}
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
	for i := range m.n {
		if f == nil || size > segmentSize {
			done()
			var err error
			if f, err = os.Create(journal.SegmentPath(dir, t.N)); err != nil {
				b.Fatal(err)
			}
			w, size = bufio.NewWriterSize(f, 1<<20), 0
			put(journal.Entry{Seq: t.N, Time: m.at, Kind: journal.KindSegment, Segment: &journal.Segment{Format: journal.Format, Origin: m.id.Signer.Name(), Key: m.id.Key}})
		}
		put(journal.Entry{Seq: t.N, Time: m.at.Add(time.Duration(i) * time.Second), Kind: journal.KindVerdict, Verdict: m.verdict(i)})
	}
	done()
	text, err := journal.Checkpoint{Size: t.N, Root: t.Root()}.Encode(m.id.Signer)
	if err == nil {
		err = os.WriteFile(journal.CheckpointPath(dir), text, 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// one record in lacking is missing in the table.
const lacking = 1000

func (m *made) Enrolments(context.Context) iter.Seq2[board.Enrolment, error] {
	return func(yield func(board.Enrolment, error) bool) {
		for i := range m.n {
			i = m.n - 1 - i
			if i%lacking == 0 {
				continue
			}
			e := board.Enrolment{Device: m.device(i), Key: m.keys[i%len(m.keys)], Envelope: m.envelope(i), Station: m.id.Signer.Name(), EnrolledAt: m.at.Add(time.Duration(i) * time.Second)}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (m *made) Objects(context.Context) iter.Seq2[board.KeyBinding, error] {
	return func(yield func(board.KeyBinding, error) bool) {
		for i := range m.n {
			if !yield(board.KeyBinding{Device: m.device(i), Key: m.keys[i%len(m.keys)].Fingerprint()}, nil) {
				return
			}
		}
	}
}

func (m *made) Guards(ctx context.Context) iter.Seq2[board.KeyBinding, error] { return m.Objects(ctx) }

func (m *made) Lookup(context.Context, board.DeviceID) (board.Enrolment, error) {
	return board.Enrolment{}, board.ErrNotEnrolled
}

func (m *made) KeyOwner(context.Context, board.Fingerprint) (board.DeviceID, error) {
	return board.DeviceID{}, fs.ErrNotExist
}

func (m *made) PublicKey(_ context.Context, b board.KeyBinding) ([]byte, error) {
	for _, key := range m.keys {
		if key.Fingerprint() == b.Key {
			return key.PEM(), nil
		}
	}
	return nil, fs.ErrNotExist
}

// BenchmarkReconcile compares a journal with a registry. of-reading is how long
// it takes as a multiple of reading the journal and making the registry's
// listings, which is the least that must be done; MiB is the most memory that
// the process had resident.
func BenchmarkReconcile(b *testing.B) {
	dir := b.TempDir()
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		b.Fatal(err)
	}
	m := newMade(b, id, *reconcileRecords)
	m.write(b, dir)
	debug.FreeOSMemory()
	resetPeak(b)
	var comparing, reading time.Duration
	for b.Loop() {
		began := time.Now()
		found := 0
		out, err := Run(b.Context(), Config{Dir: dir, Key: id.Verifier, Registry: m}, func(d Difference) {
			if d.Kind == DiffMissing {
				found++
			}
		})
		comparing += time.Since(began)
		if err != nil || found != (m.n+lacking-1)/lacking || out.Differences() != found || out.Total.Records != m.n || out.Total.Objects != m.n {
			b.Fatalf("%+v, %v", out.Total, err)
		}
		b.ReportMetric(peak(b), "MiB")
		began = time.Now()
		m.read(b, dir)
		reading += time.Since(began)
	}
	b.ReportMetric(float64(m.n)*float64(b.N)/comparing.Seconds(), "records/s")
	b.ReportMetric(comparing.Seconds()/reading.Seconds(), "of-reading")
	b.ReportMetric(0, "ns/op")
}

func (m *made) read(b *testing.B, dir string) {
	segments, err := journal.ListSegments(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, segment := range segments {
		f, err := os.Open(journal.SegmentPath(dir, segment.First))
		if err != nil {
			b.Fatal(err)
		}
		lines := bufio.NewReaderSize(f, journal.MaxEntryLine)
		for {
			line, err := lines.ReadSlice('\n')
			if err != nil {
				break
			}
			if data, _, err := journal.ReadLine(line); err != nil || tlog.RecordHash(data) == (tlog.Hash{}) {
				b.Fatal(err)
			}
		}
		f.Close()
	}
	n := 0
	for range m.Enrolments(b.Context()) {
		n++
	}
	for range m.Objects(b.Context()) {
		n++
	}
	for range m.Guards(b.Context()) {
		n++
	}
	if n < m.n {
		b.Fatal(n)
	}
}

// resetPeak has the kernel forget how much memory was resident.
func resetPeak(b *testing.B) {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Logf("the peak is that of the whole process: %v", err)
	}
}

func peak(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kib float64
	if _, err := fmt.Sscan(string(rest), &kib); err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}
