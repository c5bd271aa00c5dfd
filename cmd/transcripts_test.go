package cmd_test

import (
	"os"
	"path/filepath"
	"testing"

	"secretfree/station"
	"secretfree/uart"
)

const transcripts = "../fixtures/transcripts"

// Every verdict that a technician can meet has a recorded board: QA can see
// each, and each is a test.
func TestEveryReasonHasATranscript(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(transcripts, "*.uart"))
	if err != nil || len(files) < 40 {
		t.Fatalf("%d transcripts, %v; want 40 or more", len(files), err)
	}
	have := map[string]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		transcript, err := uart.ParseTranscript(text)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		have[transcript.Header["expect"]]++
	}
	want := []string{"passed"}
	for _, reason := range station.Reasons() {
		want = append(want, "failed "+string(reason))
	}
	for _, expect := range want {
		if have[expect] == 0 {
			t.Errorf("no transcript expects %q", expect)
		}
		delete(have, expect)
	}
	for expect := range have {
		t.Errorf("a transcript expects %q, which no station says", expect)
	}
}
