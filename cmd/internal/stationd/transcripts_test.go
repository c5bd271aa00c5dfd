package stationd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"secretfree/cmd/internal/stationconf"
	"secretfree/uart"
)

func transcript(slot, expect string, size int) *uart.Transcript {
	return &uart.Transcript{
		Header: map[string]string{"dialect": "ti-at", "expect": expect, "slot": slot},
		Chunks: []uart.Chunk{{At: time.Millisecond, Direction: uart.Received, Bytes: slices.Repeat([]byte("x"), size)}},
	}
}

// keepNext keeps a transcript under a name behind the others.
func keepNext(s *transcriptStore, t *uart.Transcript) error {
	return s.keep(fmt.Sprintf("%s-x.uart", time.Now().UTC().Format("20060102T150405.000000000Z")), t)
}

// onShelf lists the verdicts of what is there, oldest first, and checks that
// each is whole.
func onShelf(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.uart"))
	if err != nil {
		t.Fatal(err)
	}
	var verdicts []string
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := uart.ParseTranscript(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		verdicts = append(verdicts, strings.TrimPrefix(kept.Header["expect"], "failed "))
	}
	return verdicts
}

func TestShelfKeepsTheNewestOfEachKind(t *testing.T) {
	dir := t.TempDir()
	s, err := openTranscripts(dir, stationconf.Transcripts{Failed: 3, Passed: 2, MaxMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, expect := range []string{"failed timeout", "failed garbled", "passed", "passed", "passed", "failed unplugged", "passed", "failed no-proof"} {
		if err := keepNext(s, transcript(fmt.Sprintf("slot %d/", i), expect, 10)); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"garbled", "passed", "unplugged", "passed", "no-proof"}
	if got := onShelf(t, dir); !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}

	// With smaller limits after a restart the oldest go; what is no transcript
	// stays.
	if _, err = openTranscripts(dir, stationconf.Transcripts{Failed: 1, Passed: 0, MaxMiB: 1}); err != nil {
		t.Fatal(err)
	}
	if got := onShelf(t, dir); !slices.Equal(got, []string{"no-proof"}) {
		t.Errorf("after a restart: %v", got)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

func TestShelfHasABudgetOfBytes(t *testing.T) {
	dir := t.TempDir()
	s, err := openTranscripts(dir, stationconf.Transcripts{Failed: 100, Passed: 100, MaxMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range 9 {
		if err := keepNext(s, transcript("A", "failed timeout", 200<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if got := onShelf(t, dir); len(got) != 5 {
		t.Errorf("%d transcripts of 200 KiB are kept in 1 MiB, want 5", len(got))
	}
}

func TestShelfWithoutPasses(t *testing.T) {
	dir := t.TempDir()
	s, err := openTranscripts(dir, stationconf.Transcripts{Failed: 1, Passed: 0, MaxMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := keepNext(s, transcript("A", "passed", 10)); err != nil {
		t.Fatal(err)
	}
	if got := onShelf(t, dir); len(got) != 0 {
		t.Errorf("kept %v", got)
	}
}
