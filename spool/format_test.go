package spool

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

var update = flag.Bool("update", false, "write testdata/format<N> of the newest format, if it is not there")

// knownIdentity is that of what lies in testdata. Its key follows from a word,
// so that none has to lie there.
func knownIdentity(t *testing.T, origin string) journal.Identity {
	t.Helper()
	seed := sha256.Sum256([]byte("a station in testdata"))
	public := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	key, err := note.NewEd25519VerifierKey(origin, public)
	if err != nil {
		t.Fatal(err)
	}
	hash := strings.Split(key, "+")[1]
	signer, err := note.NewSigner("PRIVATE+KEY+" + origin + "+" + hash + "+" + base64.StdEncoding.EncodeToString(append([]byte{1}, seed[:]...)))
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	return journal.Identity{Signer: signer, Verifier: verifier, Key: key}
}

// A journal of the format opens, verifies, proves its records and goes on.
func TestFormats(t *testing.T) {
	id := knownIdentity(t, "widgiot/line3-a")
	if *update {
		writeFormat(t, id)
	}
	for _, from := range []string{filepath.Join("testdata", "format2")} {
		t.Run(filepath.Base(from), func(t *testing.T) {
			dir := tempDir(t)
			if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
				t.Fatal(err)
			}
			report, err := journal.VerifyDir(dir, id.Verifier)
			if err != nil || report.Records != 12 || report.Repeats != 1 || report.Failed != 2 || report.Rejections != 1 || report.Signed != report.Entries {
				t.Fatalf("VerifyDir: %+v, %v", report, err)
			}
			var last board.Sealed
			for e, err := range journal.Walk(dir) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Record() != nil {
					if last, err = board.OpenEnvelope(e.Record(), id.Verifier); err != nil {
						t.Fatal(err)
					}
				}
			}
			data, err := journal.Prove(dir, last.Record().Device)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := journal.VerifyProof(data, id.Verifier); err != nil {
				t.Error(err)
			}
			s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if receipt, err := s.Append(t.Context(), reading(last.Record())); err != nil || !receipt.Repeat {
				t.Errorf("a board again: %+v, %v", receipt, err)
			}
			if _, err := s.Append(t.Context(), reading(newRecord(t))); err != nil {
				t.Error(err)
			}
			if err := s.Checkpoint(); err != nil {
				t.Error(err)
			}
			if _, err := journal.VerifyDir(dir, id.Verifier); err != nil {
				t.Error(err)
			}
		})
	}
}

func writeFormat(t *testing.T, id journal.Identity) {
	t.Helper()
	to := filepath.Join("testdata", "format"+string(rune('0'+journal.Format)))
	if _, err := os.Stat(to); err == nil {
		return
	}
	dir := tempDir(t)
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink(), SegmentSize: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first := newRecord(t)
	for i := range 12 {
		r := first
		if i > 0 {
			r = newRecord(t)
		}
		if _, err := s.Append(t.Context(), reading(r)); err != nil {
			t.Fatal(err)
		}
	}
	other := first
	other.Key = newRecord(t).Key
	s.Append(t.Context(), reading(first))
	s.Append(t.Context(), reading(other))
	if _, err := s.Append(t.Context(), Reading{Reason: "timeout", Slot: "B", WorkOrder: "WO-7", Label: "SN 42", Operator: "Kim", Transcript: "t.uart", Took: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	_, err = s.journalAnswers([]*item{{outcome: outcome{seq: 1, dev: first.Device, key: first.Fingerprint(), dead: fmt.Errorf("the registry: %w", board.ErrUntrusted)}}})
	s.unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(to, "journal"), os.DirFS(journal.Dir(dir))); err != nil {
		t.Fatal(err)
	}
}

// What a station gives away, a stick with its receipt and a proof, are read for
// ever, in every format that was ever released.
func TestEvidenceFormats(t *testing.T) {
	id, hq := knownIdentity(t, "widgiot/line3-a"), knownIdentity(t, "import/hq")
	if *update {
		writeEvidence(t, id, hq)
	}
	for _, from := range []string{filepath.Join("testdata", "evidence2")} {
		t.Run(filepath.Base(from), func(t *testing.T) {
			proof, err := os.ReadFile(filepath.Join(from, "board.tlog-proof"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := journal.VerifyProof(proof, id.Verifier); err != nil {
				t.Errorf("the proof: %v", err)
			}
			dir, stick := tempDir(t), tempDir(t)
			journal := filepath.Join("testdata", "format2")
			if err := errors.Join(os.CopyFS(dir, os.DirFS(journal)), os.CopyFS(stick, os.DirFS(filepath.Join(from, "stick")))); err != nil {
				t.Fatal(err)
			}

			sink := newMemorySink()
			im := &importer{ImportConfig{Media: stick, SKU: "widgiot", Stations: []note.Verifier{id.Verifier}, Sink: sink, Identity: hq, Again: true}, t}
			if confirmed, refused := im.mustRun(); confirmed != 12 || refused != 0 || len(sink.have) != 12 {
				t.Errorf("the bundle: %d confirmed, %d refused", confirmed, refused)
			}
			s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
			if err != nil {
				t.Fatal(err)
			}
			receipts, err := Receipts(filepath.Join(from, "stick"), "widgiot/line3-a")
			if err != nil || len(receipts) != 1 {
				t.Fatalf("%d receipts, %v", len(receipts), err)
			}
			if settled, err := s.ApplyReceipt(receipts[0].Data, note.VerifierList(hq.Verifier)); err != nil || settled.Confirmed != 12 {
				t.Errorf("the receipt: %+v, %v", settled, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

		})
	}
}

// writeEvidence makes it of the journal of the newest format.
func writeEvidence(t *testing.T, id, hq journal.Identity) {
	t.Helper()
	to := filepath.Join("testdata", "evidence"+string(rune('0'+journal.Format)))
	if _, err := os.Stat(to); err == nil {
		return
	}
	dir, stick := tempDir(t), filepath.Join(to, "stick")
	if err := errors.Join(os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "format"+string(rune('0'+journal.Format))))), os.MkdirAll(stick, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(dir, id.Verifier, stick, 0); err != nil {
		t.Fatal(err)
	}
	im := &importer{ImportConfig{Media: stick, SKU: "widgiot", Stations: []note.Verifier{id.Verifier}, Sink: newMemorySink(), Identity: hq}, t}
	im.mustRun()
	var device board.DeviceID
	for e, err := range journal.Walk(dir) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record() != nil {
			sealed, err := board.ParseEnvelope(e.Record())
			if err != nil {
				t.Fatal(err)
			}
			device = sealed.Record().Device
		}
	}
	proof, err := journal.Prove(dir, device)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "board.tlog-proof"), proof, 0o444); err != nil {
		t.Fatal(err)
	}
}

// A journal of the older format is refused with a sentinel, and nothing in it
// is changed.
func TestOlderFormat(t *testing.T) {
	id, dir := knownIdentity(t, "widgiot/line3-a"), tempDir(t)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "format1"))); err != nil {
		t.Fatal(err)
	}
	k := &kit{t: t, dir: dir}
	before := k.files()
	if _, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()}); !errors.Is(err, journal.ErrFormat) {
		t.Errorf("Open: %v, want %v", err, journal.ErrFormat)
	}
	if _, err := journal.VerifyDir(dir, id.Verifier); !errors.Is(err, journal.ErrFormat) {
		t.Errorf("VerifyDir: %v, want %v", err, journal.ErrFormat)
	}
	if !sameFiles(before, k.files()) {
		t.Error("a file was changed")
	}
}
