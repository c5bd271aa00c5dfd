package uart_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

// read has the whole dialogue with a board that is plugged in.
func read(t *testing.T, d uart.Dialect, b *fixtures.Board) (uart.Report, error) {
	t.Helper()
	l := plug(t, b)
	if err := d.Detect(t.Context(), l); err != nil {
		return uart.Report{}, err
	}
	return d.Read(t.Context(), l)
}

// mustRead fails unless the report is b's, whole.
func mustRead(t *testing.T, d uart.Dialect, b *fixtures.Board) uart.Report {
	t.Helper()
	report, err := read(t, d, b)
	if err != nil {
		t.Fatal(err)
	}
	if report.Device != b.Device || string(report.SPKI) != string(b.SPKI()) || report.Proof == nil {
		t.Fatalf("read %x with key %x", report.Device, report.SPKI)
	}
	return report
}

// Every build, with every form that device.md leaves open, gives the same
// identity, and the facts tell them apart.
func TestTIATBuilds(t *testing.T) {
	for name, c := range map[string]struct {
		board func(b *fixtures.Board)
		facts map[string]string
	}{
		"1.1.2": {func(b *fixtures.Board) {}, map[string]string{"build": "1.1.2", "prompt": "once", "line-ends": "lf-cr", "key-1": ""}},
		"1.1.2 met late": {func(b *fixtures.Board) { b.Quiet, b.Boot = true, 0 },
			map[string]string{"build": "", "prompt": "once", "line-ends": "lf-cr"}},
		"1.1.1": {func(b *fixtures.Board) { b.Build = fixtures.Build111 },
			map[string]string{"build": "1.1.1", "prompt": "every-command", "line-ends": "lf-cr"}},
		"1.1.1 met late": {func(b *fixtures.Board) { b.Build, b.Quiet, b.Boot = fixtures.Build111, true, 0 },
			map[string]string{"build": "", "prompt": "every-command", "line-ends": "lf-cr"}},
		"text mode": {func(b *fixtures.Board) { b.Build = fixtures.BuildTextMode },
			map[string]string{"build": "1.1.2", "prompt": "once", "line-ends": "lf-cr-cr"}},
		"SHA-256":           {func(b *fixtures.Board) { b.Hash = "sha256" }, map[string]string{"hash": "sha256", "signature": "der"}},
		"SHA-256, raw":      {func(b *fixtures.Board) { b.Hash, b.RawSignatures = "sha256", true }, map[string]string{"hash": "sha256", "signature": "raw"}},
		"OK's end is late":  {func(b *fixtures.Board) { b.LateEnd = 7 * time.Millisecond }, map[string]string{"build": "1.1.2"}},
		"late on text mode": {func(b *fixtures.Board) { b.Build, b.LateEnd = fixtures.BuildTextMode, 7*time.Millisecond }, nil},
		"late on 1.1.1":     {func(b *fixtures.Board) { b.Build, b.LateEnd = fixtures.Build111, 7*time.Millisecond }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				c.board(b)
				report := mustRead(t, uart.TIAT{}, b)
				for fact, value := range c.facts {
					if report.Facts[fact] != value {
						t.Errorf("fact %s is %q, want %q", fact, report.Facts[fact], value)
					}
				}
			})
		})
	}
}

// An event may come after any character of any echo, and before any answer, on
// every build.
func TestTIATEventsAnywhere(t *testing.T) {
	events := []string{
		event, "+eventwlan:connect,OK,0xa:0x0:0x1:0x2:0x3:0x4", "+eventwlan:connect,+get:0x1,0x2",
		"+eventwlan:connect,+netutilcmd:1,4,abcd,0xa", "+eventgeneral:error,-6,", "+eventwlan:connect,ERROR: process command,-1",
	}
	for _, build := range []string{fixtures.Build112, fixtures.Build111, fixtures.BuildTextMode} {
		t.Run(build, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for at := range 60 {
					b := newBoard()
					b.Build, b.Quiet, b.Boot, b.Event, b.EventAt = build, true, 0, events[at%len(events)], at
					mustRead(t, uart.TIAT{}, b)
				}
				for _, e := range events {
					b := newBoard()
					b.Build, b.Event, b.EventIn = build, e, fixtures.InAnswer
					mustRead(t, uart.TIAT{}, b)
				}
				for at := range len("Enter AT Command:") + 1 {
					b := newBoard()
					b.Build, b.Quiet, b.Boot, b.Event, b.EventIn, b.EventAt = build, true, 0, event, fixtures.InPrompt, at
					mustRead(t, uart.TIAT{}, b)
				}
			})
		})
	}
}

// On build 1.1.1 the answer to sign_msg comes inside the prompt, at any place;
// so does a refusal.
func TestTIATAnswerInPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for cut := range len("Enter AT Command:") + 1 {
			b := newBoard()
			b.Build, b.PromptCut = fixtures.Build111, cut
			mustRead(t, uart.TIAT{}, b)
			b = newBoard()
			b.Build, b.PromptCut, b.RefuseKey0 = fixtures.Build111, cut, -12290
			if _, err := read(t, uart.TIAT{}, b); !errors.Is(err, uart.ErrNoProof) || !strings.Contains(err.Error(), "-12290") {
				t.Fatalf("refusal after %d characters of the prompt: %v", cut, err)
			}
		}
		// The prompt cut between the answer and its OK.
		b := newBoard()
		b.Build = fixtures.Build111
		b.Print = map[string]string{"at+test": "Enter AT ComOK\n\rmand:"}
		mustRead(t, uart.TIAT{}, b)
	})
}

// A board that starts anew in the middle of any answer is read again, whole,
// from the start.
func TestTIATReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, build := range []string{fixtures.Build112, fixtures.Build111, fixtures.BuildTextMode} {
			for _, command := range []string{"udid", "version", "get_mac_addr", "public_key", "sign_msg"} {
				for _, at := range []int{1, 5, 12, 30, 60, 80} {
					b := newBoard()
					b.Build, b.ResetIn, b.ResetAt, b.Boot = build, command, at, 3500*time.Millisecond
					mustRead(t, uart.TIAT{}, b)
				}
			}
		}
	})
}

// Key 1 is never the identity: it is a fact, and a board that signs with it
// fails.
func TestTIATKey1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.Key1 = fixtures.NewKey()
		other := &fixtures.Board{Key: b.Key1}
		report := mustRead(t, uart.TIAT{}, b)
		if len(report.Facts["key-1"]) != 64 {
			t.Errorf("fact key-1 is %q", report.Facts["key-1"])
		}
		b = newBoard()
		b.Key1, b.SignWithKey1 = other.Key, true
		if _, err := read(t, uart.TIAT{}, b); !errors.Is(err, uart.ErrNoProof) || !strings.Contains(err.Error(), "index 1") {
			t.Errorf("signed with key 1: %v", err)
		}
		offCurve := base64.StdEncoding.EncodeToString(append([]byte{4}, make([]byte, 64)...))
		for _, value := range []string{"1,4,AAAA", "1,88,AAAA", "0,4,AAAA", "1,5,AAAAA", "1,88," + offCurve} {
			b = newBoard()
			b.Print = map[string]string{"public_key": "+netutilget:" + value + "\n\rOK\n\r"}
			report := mustRead(t, uart.TIAT{}, b)
			if report.Facts["key-1"] != "" || report.Facts["key-1-raw"] != value {
				t.Errorf("%q: facts %v", value, report.Facts)
			}
		}
	})
}

// What to do is said to whoever meets a board that does not sign with key 0.
func TestTIATRefusalNamesRemedy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.RefuseKey0 = -12290
		_, err := read(t, uart.TIAT{}, b)
		for _, words := range []string{"service pack", "report", "ti-csr", "-12290"} {
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%v does not say %q", err, words)
			}
		}
	})
}
