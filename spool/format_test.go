package spool

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

var update = flag.Bool("update", false, "write testdata/format<N> of the newest format, if it is not there")

// knownIdentity is that of the journals in testdata. Its key follows from a word, so that none has to lie there.
func knownIdentity(t *testing.T) Identity {
	t.Helper()
	const origin = "widgiot/line3-a"
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
	return Identity{Signer: signer, Verifier: verifier, Key: key}
}

// Journals of every format that was ever released open, verify, prove their records and go on.
func TestFormats(t *testing.T) {
	id := knownIdentity(t)
	if *update {
		writeFormat(t, id)
	}
	dirs, err := filepath.Glob(filepath.Join("testdata", "format*"))
	if err != nil || len(dirs) != Format {
		t.Fatalf("%v (%v), want one of each format up to %d", dirs, err, Format)
	}
	for _, from := range dirs {
		t.Run(filepath.Base(from), func(t *testing.T) {
			dir := tempDir(t)
			if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
				t.Fatal(err)
			}
			report, err := VerifyDir(dir, id.Verifier)
			if err != nil || report.Records != 12 || report.Repeats != 1 || report.Refusals != 1 || report.Signed != report.Entries {
				t.Fatalf("VerifyDir: %+v, %v", report, err)
			}
			var last board.Sealed
			for e, err := range Walk(dir) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Kind == KindRecord {
					if last, err = board.OpenEnvelope(e.Record, id.Verifier); err != nil {
						t.Fatal(err)
					}
				}
			}
			data, err := Prove(dir, last.Record.Device)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := VerifyProof(data, id.Verifier); err != nil {
				t.Error(err)
			}
			s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if receipt, err := s.Append(t.Context(), last.Record); err != nil || !receipt.Repeat {
				t.Errorf("a board again: %+v, %v", receipt, err)
			}
			if _, err := s.Append(t.Context(), newRecord(t)); err != nil {
				t.Error(err)
			}
			if err := s.Checkpoint(); err != nil {
				t.Error(err)
			}
			if _, err := VerifyDir(dir, id.Verifier); err != nil {
				t.Error(err)
			}
		})
	}
}

func writeFormat(t *testing.T, id Identity) {
	t.Helper()
	to := filepath.Join("testdata", "format"+string(rune('0'+Format)))
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
		if _, err := s.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	other := first
	other.Key = newRecord(t).Key
	s.Append(t.Context(), first)
	s.Append(t.Context(), other)
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(to, "journal"), os.DirFS(journalDir(dir))); err != nil {
		t.Fatal(err)
	}
}
