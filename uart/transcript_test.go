package uart_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

var update = flag.Bool("update", false, "record the transcripts of fixtures/transcripts anew")

// recorded are the dialogues that the repository keeps, with the board that made each.
var recorded = map[string]func(*fixtures.Board){
	"ti-at-good":          func(b *fixtures.Board) {},
	"ti-at-event-in-echo": func(b *fixtures.Board) { b.Event, b.EventAt = event, 8 },
	"ti-at-no-key-0":      func(b *fixtures.Board) { b.RefuseKey0 = -12290 },
	"ti-at-private-key": func(b *fixtures.Board) {
		b.Print = map[string]string{"version": "-----BEGIN EC PRIVATE KEY-----\n\rAAAA\n\r"}
	},
	"ti-at-unplugged": func(b *fixtures.Board) { b.CutAfter = 1000 },
	"ti-at-muted":     func(b *fixtures.Board) { b.Mute = "udid" },
	"ti-at-garbled": func(b *fixtures.Board) {
		b.Print = map[string]string{"udid": "+get:0x4d,0x1f,0x0,0xa,0x8re,0x27s\n\rOK\n\r"}
	},
}

// words is the verdict of a reading as a transcript states it; the station has the same words.
func words(err error) string {
	for _, c := range []struct {
		err  error
		word string
	}{
		{nil, "passed"}, {uart.ErrPrivateKey, "failed private-key-leak"}, {uart.ErrUnplugged, "failed unplugged"},
		{uart.ErrTimeout, "failed timeout"}, {uart.ErrNoProof, "failed no-proof"}, {uart.ErrGarbled, "failed garbled"},
	} {
		if errors.Is(err, c.err) {
			return c.word
		}
	}
	return "failed " + err.Error()
}

func TestReplay(t *testing.T) {
	for name, fault := range recorded {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("..", "fixtures", "transcripts", name+".uart")
			if *update {
				synctest.Test(t, func(t *testing.T) { record(t, path, fault) })
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			transcript, err := uart.ParseTranscript(text)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) { replay(t, transcript) })
		})
	}
}

func record(t *testing.T, path string, fault func(*fixtures.Board)) {
	b := newBoard()
	fault(b)
	l := plug(t, b)
	d := uart.TIAT{}
	if err := d.Detect(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	report, err := d.Read(t.Context(), l)
	transcript := l.Transcript()
	transcript.Header["dialect"] = d.Name()
	transcript.Header["expect"] = words(err)
	if err == nil {
		transcript.Header["device"] = b.ID()
		if report.Device != b.Device {
			t.Fatal("another device")
		}
	}
	text, err := transcript.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func replay(t *testing.T, transcript *uart.Transcript) {
	d, err := uart.DialectByName(transcript.Header["dialect"])
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	played := make(chan error, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		err := fixtures.Replay(ctx, transcript, theirs)
		if err != nil {
			cancel(err)
		}
		if transcript.Header["expect"] == "failed unplugged" {
			theirs.Close()
		}
		played <- err
	}()
	l := uart.NewLine(ours, uart.LineOptions{Nonce: fixtures.ReplayNonces(transcript)})
	readErr := d.Detect(ctx, l)
	if readErr == nil {
		_, readErr = d.Read(ctx, l)
	}
	if got, want := words(readErr), transcript.Header["expect"]; got != want {
		t.Errorf("verdict %q, the transcript expects %q (%v)", got, want, readErr)
	}
	ours.Close()
	cancel(nil)
	if err := <-played; errors.Is(err, fixtures.ErrDeparts) {
		t.Error(err)
	}
}

func TestTranscriptRefusals(t *testing.T) {
	const good = "transcript: 1\ndialect: ti-at\nexpect: passed\n\n0.000000 > \"at\\r\"\n0.001204 < \"\\x00\\\"\\\\ \"\n"
	if _, err := uart.ParseTranscript([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ from, to, want string }{
		"no version":             {"transcript: 1\n", "", "line 1"},
		"another version":        {"transcript: 1", "transcript: 2", "line 1"},
		"unknown key":            {"expect: passed", "expects: passed", "line 3"},
		"key twice":              {"expect: passed", "dialect: ti-at", "line 3"},
		"keys in another order":  {"dialect: ti-at\nexpect: passed", "expect: passed\ndialect: ti-at", "line 2"},
		"key without value":      {"expect: passed", "expect: ", "empty"},
		"no time":                {"0.000000 >", ">", "line 5"},
		"five digits":            {"0.001204", "0.00120", "line 6"},
		"time runs back":         {"0.000000", "0.100000", "chunk 2"},
		"unknown direction":      {"0.000000 >", "0.000000 =", "chunk 1"},
		"nothing in the quotes":  {`"at\r"`, `""`, "chunk 1"},
		"no quotes":              {`"at\r"`, `at\r`, "line 5"},
		"unknown escape":         {`at\r`, `at\q`, "line 5"},
		"half an escape":         {`at\r`, `at\`, "line 5"},
		"hex that is none":       {`\x00`, `\x0g`, "line 6"},
		"escape without need":    {`at\r`, `\x61t\r`, "line 5"},
		"upper case hex":         {`\x00`, `\x0A`, "line 6"},
		"line ends of two bytes": {"passed\n", "passed\r\n", "ASCII"},
		"no end of line":         {"\\ \"\n", "\\ \"", "line 6"},
		"too large":              {"at", strings.Repeat("x", uart.MaxTranscript), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, c.from, c.to, 1)
			if text == good {
				t.Fatal("the case changes nothing")
			}
			_, err := uart.ParseTranscript([]byte(text))
			if !errors.Is(err, uart.ErrTranscript) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, uart.ErrTranscript, c.want)
			}
		})
	}
}

func FuzzTranscript(f *testing.F) {
	paths, _ := filepath.Glob("../fixtures/transcripts/*.uart")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		transcript, err := uart.ParseTranscript(text)
		if err != nil {
			return
		}
		again, err := transcript.Encode()
		if err != nil || !bytes.Equal(again, text) {
			t.Errorf("parsed, but encodes to %q (%v)", again, err)
		}
	})
}

// FuzzTIAT: whatever a board prints in place of one answer, the reading ends in time, and passes only with the key and
// the serial number of the board.
func FuzzTIAT(f *testing.F) {
	f.Add("udid", "+get:0x4d,0x1f\n\rOK\n\r")
	f.Add("sign_msg", "+netutilcmd:1,4,MAYC\n\rOK\n\r")
	f.Add("version", "ERROR: process command,-5\n\r")
	f.Add("mac", "Enter AT CommanERROR: parse parameters,-1\n\rd:\n\r")
	key, device := fixtures.NewKey(), fixtures.NewDevice()
	f.Fuzz(func(t *testing.T, command, answer string) {
		if command == "" || strings.Contains("at+test", command) {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			b := &fixtures.Board{Device: device, Key: key, Print: map[string]string{command: answer}}
			l := plug(t, b)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			d := uart.TIAT{}
			if err := d.Detect(ctx, l); err != nil {
				t.Fatal(err)
			}
			report, err := d.Read(ctx, l)
			if ctx.Err() != nil {
				t.Error("the reading does not end")
			}
			// The link has no checksum: a serial number that is wrong in the one documented form, twice, is the board's own.
			if err == nil && string(report.SPKI) != string(b.SPKI()) {
				t.Error("passed with another key")
			}
		})
	})
}
