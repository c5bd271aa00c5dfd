package uart_test

import (
	"context"
	"errors"
	"flag"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

var update = flag.Bool("update", false, "record the transcripts of fixtures/transcripts anew")

const transcripts = "../fixtures/transcripts"

// words is the verdict of a reading as a transcript states it; the station has
// the same words.
func words(err error) string {
	for _, c := range []struct {
		err  error
		word string
	}{
		{nil, "passed"}, {uart.ErrPrivateKey, "failed private-key-leak"}, {uart.ErrUnplugged, "failed unplugged"},
		{uart.ErrTimeout, "failed timeout"}, {uart.ErrNoProof, "failed no-proof"}, {uart.ErrNeedsReset, "failed needs-reset"},
		{uart.ErrNoDialect, "failed no-dialect"}, {uart.ErrWrongSpeed, "failed wrong-speed"}, {uart.ErrGarbled, "failed garbled"},
	} {
		if errors.Is(err, c.err) {
			return c.word
		}
	}
	return "failed " + err.Error()
}

// TestReplay replays every file in the folder: a new one needs nothing but to
// be there.
func TestReplay(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(transcripts, "*"))
	if err != nil || len(paths) < 40 {
		t.Fatalf("%d transcripts, %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			if filepath.Ext(path) != ".uart" {
				t.Fatal("not a .uart file")
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			transcript, err := uart.ParseTranscript(text)
			if err != nil {
				t.Fatal(err)
			}
			for _, speed := range []float64{1, 0} {
				synctest.Test(t, func(t *testing.T) { replay(t, transcript, speed) })
			}
		})
	}
}

func replay(t *testing.T, transcript *uart.Transcript, speed float64) {
	d := mustDialect(t, transcript.Header["dialect"])
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	played := make(chan error, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	conn, until := fixtures.Watch(ours)
	go func() {
		err := fixtures.Replay(ctx, transcript, theirs, fixtures.ReplayOptions{Speed: speed, Until: until, Stay: 20 * time.Second})
		if err != nil {
			cancel(err)
		}
		if fixtures.Unplugs(transcript) {
			theirs.Close()
		}
		played <- err
	}()
	l := uart.NewLine(conn, uart.LineOptions{Nonce: fixtures.ReplayNonces(transcript)})
	var report uart.Report
	readErr := d.Detect(ctx, l)
	if readErr == nil {
		report, readErr = d.Read(ctx, l)
	}
	want := transcript.Header["expect"]
	if transcript.Header["given"] != "" {
		want = "passed" // the dialogue is good; what else the verdict rested on is the station's business
	}
	if got := words(readErr); got != want {
		t.Errorf("at speed %v: verdict %q, the transcript expects %q (%v)", speed, got, want, readErr)
	}
	if device, ok := transcript.Header["device"]; ok && device != hexID(report.Device) {
		t.Errorf("at speed %v: device %x, the transcript says %s", speed, report.Device, device)
	}
	if readErr == nil {
		proven(t, report)
	}
	ours.Close()
	cancel(nil)
	if err := <-played; errors.Is(err, fixtures.ErrDeviation) {
		t.Errorf("at speed %v: %v", speed, err)
	}
}

// TestReplayDeviationFails: a reader that says something else is told where.
func TestReplayDeviationFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transcript := &uart.Transcript{Chunks: []uart.Chunk{
			{Direction: uart.Sent, Bytes: []byte("\r")},
			{At: 10 * time.Millisecond, Direction: uart.Received, Bytes: []byte("\r\n\r")},
			{At: 20 * time.Millisecond, Direction: uart.Sent, Bytes: []byte("at+test\r")},
		}}
		for sent, want := range map[string]*fixtures.DeviationError{
			"\r\r\rat+test\r": nil,
			"\rat+text\r":     {Chunk: 3, Line: 5, Byte: 5, Sent: []byte("at+text\r"), Recorded: []byte("at+test\r")},
			"\rb":             {Chunk: 3, Line: 5, Byte: 0, Sent: []byte("b"), Recorded: []byte("at+test\r")},
			"x\r":             {Chunk: 1, Line: 3, Byte: 0, Sent: []byte("x\r"), Recorded: []byte("\r")},
		} {
			ours, theirs := net.Pipe()
			played := make(chan error, 1)
			go func() { played <- fixtures.Replay(t.Context(), transcript, theirs) }()
			go ours.Read(make([]byte, 16))
			if _, err := ours.Write([]byte(sent)); err != nil {
				t.Fatal(err)
			}
			err := <-played
			var departs *fixtures.DeviationError
			switch {
			case want == nil && err != nil:
				t.Errorf("%q: %v", sent, err)
			case want != nil && (!errors.As(err, &departs) || !errors.Is(err, fixtures.ErrDeviation)):
				t.Errorf("%q: %v, want %v", sent, err, want)
			case want != nil && departs.Error() != want.Error():
				t.Errorf("%q: %v, want %v", sent, departs, want)
			}
			ours.Close()
			theirs.Close()
		}
		for _, speed := range []float64{-1, math.NaN(), math.Inf(1)} {
			if err := fixtures.Replay(t.Context(), transcript, nil, fixtures.ReplayOptions{Speed: speed}); err == nil || !strings.Contains(err.Error(), "speed") {
				t.Errorf("speed %v: %v", speed, err)
			}
		}
		if err := fixtures.Replay(t.Context(), transcript, nil, fixtures.ReplayOptions{}, fixtures.ReplayOptions{}); err == nil {
			t.Error("two speeds were taken")
		}
	})
}

// TestReplaySpeed: pauses of the board are divided, and without them it is as
// fast as the reader lets it be.
func TestReplaySpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transcript := &uart.Transcript{Chunks: []uart.Chunk{
			{At: 2 * time.Second, Direction: uart.Received, Bytes: []byte("a")},
			{At: 3 * time.Second, Direction: uart.Sent, Bytes: []byte("b")},
			{At: 7 * time.Second, Direction: uart.Received, Bytes: []byte("c")},
		}}
		for speed, want := range map[float64]time.Duration{1: 6 * time.Second, 2: 3 * time.Second, 0.5: 12 * time.Second, 0: 0} {
			ours, theirs := net.Pipe()
			played := make(chan error, 1)
			start := time.Now()
			go func() {
				played <- fixtures.Replay(t.Context(), transcript, theirs, fixtures.ReplayOptions{Speed: speed})
			}()
			buf := make([]byte, 4)
			ours.Read(buf)
			ours.Write([]byte("b"))
			ours.Read(buf)
			if err := <-played; err != nil || time.Since(start) != want {
				t.Errorf("at speed %v it took %v, want %v (%v)", speed, time.Since(start), want, err)
			}
			ours.Close()
			theirs.Close()
		}
	})
}

// TestRecordings: the simulated boards still have the verdicts of the
// transcripts that were made with them; with -update the transcripts are made
// anew.
func TestRecordings(t *testing.T) {
	var names []string
	for _, r := range recordings() {
		names = append(names, r.name)
		t.Run(r.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { record(t, r) })
		})
	}
	slices.Sort(names)
	if n := len(slices.Compact(names)); n != len(recordings()) || n < 40 {
		t.Errorf("%d recordings, %d different ones", len(recordings()), n)
	}
}

func record(t *testing.T, r recording) {
	b := newBoard()
	b.Boot, b.Think, b.Sign = 1300*time.Millisecond, 9*time.Millisecond, 180*time.Millisecond
	if *update {
		b.Baud = 115200
	}
	b.Dialect = strings.TrimPrefix(r.dialect, "auto/")
	if r.dialect == "auto" {
		b.Dialect = ""
	}
	r.fault(b)
	d := mustDialect(t, r.dialect)
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		err := b.Serve(ctx, theirs)
		if errors.Is(err, fixtures.ErrCut) {
			theirs.Close()
		}
		served <- err
	}()
	if r.typed != "" { // by somebody else
		if _, err := ours.Write([]byte(r.typed)); err != nil {
			t.Fatal(err)
		}
	}
	l := uart.NewLine(ours, uart.LineOptions{})
	name := d.Name()
	var report uart.Report
	err := d.Detect(ctx, l)
	if err == nil {
		report, err = d.Read(ctx, l)
	}
	if got := words(err); got != r.expect {
		t.Fatalf("verdict %q, want %q (%v)", got, r.expect, err)
	}
	ours.Close()
	cancel()
	<-served
	transcript := l.Transcript()
	transcript.Header["dialect"] = name
	transcript.Header["expect"] = r.expect
	transcript.Header["note"] = r.note
	if err == nil {
		transcript.Header["device"] = hexID(report.Device)
		if string(report.SPKI) != string(b.SPKI()) {
			t.Fatal("another key")
		}
	}
	text, err := transcript.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(transcripts, r.name+".uart")
	if *update {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "\nexpect: " + r.expect + "\n"; !strings.Contains(string(kept), want) {
		t.Errorf("%s does not say %q: record it anew with -update", path, want)
	}
}

// TestUnknownDeviceRecordings does for what is no board what TestRecordings
// does for boards.
func TestUnknownDeviceRecordings(t *testing.T) {
	for _, device := range fixtures.OtherDevices() {
		t.Run(device.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { recordOtherDevice(t, device) })
		})
	}
}

func recordOtherDevice(t *testing.T, device fixtures.OtherDevice) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	defer ours.Close()
	defer attach(device, theirs)()
	l := uart.NewLine(ours, uart.LineOptions{})
	err := mustDialect(t, "auto").Detect(t.Context(), l)
	verdict := words(err)
	if verdict != "failed no-dialect" && verdict != "failed wrong-speed" {
		t.Fatal(err)
	}
	transcript := l.Transcript()
	transcript.Header["dialect"], transcript.Header["expect"], transcript.Header["note"] = "auto", verdict, "no board: "+device.Name
	text, err := transcript.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(transcripts, "no-board-"+device.Name+".uart")
	if *update {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(kept), "\nexpect: "+verdict+"\n") {
		t.Errorf("%s does not say %q: record it anew with -update", path, verdict)
	}
}
