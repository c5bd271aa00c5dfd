package uart_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

var builds = []string{fixtures.Build112, fixtures.Build111, fixtures.BuildTextMode}

// refusals are lines that end an answer in words that TI's firmware does not
// have.
var refusals = []string{
	"ERROR", "error", "Error:", "error: -4", "ERROR : PROCESS COMMAND , -12290", "ERROR -1", "+error", "+CME ERROR: 4", "ERR", "ERR!", "FAIL", "fail 7", "unknown command",
	"command not exist,0", "not supported", "?", "nope", "Befehl unbekannt", "at+x: command not found", "\x15", "-1",
}

// Forms that identify no board do not change what is read, on every build, with
// the dialect named and with auto, and a board that stays is still known.
func TestTIATForms(t *testing.T) {
	optional := []string{"version", "mac_addr", "public_key"}
	cases := map[string]fixtures.Forms{
		"upper-case hex": {Hex: fixtures.HexUpper}, "padded hex": {Hex: fixtures.HexPadded}, "padded upper-case hex": {Hex: fixtures.HexUpperPadded},
		"title": {Names: fixtures.NamesTitle}, "capitals": {Names: fixtures.NamesUpper}, "spaces": {Spaces: true}, "line ends": {LineEnd: "\r\n"}, "line feeds": {LineEnd: "\n"},
		"ok": {OK: "ok"}, "Ok and a tab": {OK: "Ok\t "}, "a blank before OK": {OK: "  OK"}, "other prompt": {Prompt: "AT> "}, "short prompt": {Prompt: "#"},
		"all": {Hex: fixtures.HexUpper, Names: fixtures.NamesTitle, Spaces: true, OK: "ok ", Refuse: optional, Refusal: "Error:", Prompt: "cmd>", LineEnd: "\r\n"},
	}
	for _, text := range refusals {
		cases["refusal "+text] = fixtures.Forms{Refuse: optional, Refusal: text}
	}
	cases["no at+test"] = fixtures.Forms{Refuse: append([]string{"at+test"}, optional...), Refusal: "unknown command"}
	for name, forms := range cases {
		t.Run(name, func(t *testing.T) {
			for _, build := range builds {
				for _, dialect := range []string{"ti-at", "auto"} {
					synctest.Test(t, func(t *testing.T) {
						b := newBoard()
						b.Build, b.Forms = build, forms
						formed(t, mustDialect(t, dialect), b, 3*time.Second)
					})
				}
			}
		})
	}
}

// formed reads a board whole, within a time after it was detected, and watches
// it for a while.
func formed(t *testing.T, d uart.Dialect, b *fixtures.Board, limit time.Duration) {
	l := plug(t, b)
	if err := d.Detect(t.Context(), l); err != nil {
		t.Fatalf("%s on build %s: %v", d.Name(), b.Build, err)
	}
	start := time.Now()
	report, err := d.Read(t.Context(), l)
	if err != nil || report.Device != b.Device || string(report.SPKI) != string(b.SPKI()) {
		t.Fatalf("%s on build %s: device %x, %v", d.Name(), b.Build, report.Device, err)
	}
	if took := time.Since(start); took > limit {
		t.Errorf("%s on build %s: it took %v", d.Name(), b.Build, took)
	}
	stay, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := d.Gone(stay, l); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s on build %s: a board that stays is gone: %v", d.Name(), b.Build, err)
	}
}

// A refusal in any words is a failure at once where the command is needed.
func TestTIATRefusalInOtherWords(t *testing.T) {
	for command, want := range map[string]error{"sign_msg": uart.ErrNoProof, "iot,udid": uart.ErrGarbled} {
		for _, text := range refusals {
			for _, build := range builds {
				synctest.Test(t, func(t *testing.T) {
					b := newBoard()
					b.Build, b.Forms = build, fixtures.Forms{Refuse: []string{command}, Refusal: text}
					l := plug(t, b)
					if err := (uart.TIAT{}).Detect(t.Context(), l); err != nil {
						t.Fatal(err)
					}
					l.Mark()
					start := time.Now()
					_, err := (uart.TIAT{}).Read(t.Context(), l)
					took := time.Since(start)
					if command == "sign_msg" { // from the command
						for _, c := range l.Transcript().Chunks {
							if c.Direction == uart.Sent && strings.Contains(string(c.Bytes), command) {
								took -= c.At
							}
						}
					}
					if !errors.Is(err, want) || took > 1500*time.Millisecond || want == uart.ErrNoProof && took > time.Second {
						t.Errorf("%s refused with %q on build %s: %v after %v, want %v", command, text, build, err, took, want)
					}
				})
			}
		}
	}
}

// A command that is not answered costs its fact and its time, and no more.
func TestTIATUnansweredFactIsSkipped(t *testing.T) {
	for _, command := range []string{"version", "mac_addr", "public_key"} {
		synctest.Test(t, func(t *testing.T) {
			b := newBoard()
			b.Mute = command
			formed(t, uart.TIAT{}, b, 4*time.Second)
		})
	}
}

// Lines that are no part of an answer do not end the wait for one that comes
// soon after.
func TestTIATLogLines(t *testing.T) {
	for _, line := range []string{"wlan: connected", "ERROR: wlan down", "fail", "[0] OK is not all", "+foo: bar"} {
		synctest.Test(t, func(t *testing.T) {
			b := newBoard()
			b.Event, b.EventIn, b.Sign = line, fixtures.InAnswer, 0
			report := mustRead(t, uart.TIAT{}, b)
			if report.Facts["chip"] == "" || report.Facts["mac"] == "" {
				t.Errorf("%q: facts %v", line, report.Facts)
			}
		})
	}
}

// The facts in other forms, and what is kept of those in none.
func TestTIATFacts(t *testing.T) {
	for _, c := range []struct {
		version, mac string
		want         map[string]string
	}{
		{"0X3100001A, 3.1.0.5, 3.1.0.19, 4.4.1.3, 0X2222", "08:00:28:5B:55:E0",
			map[string]string{"chip": "0x3100001a", "nwp-version": "4.4.1.3", "rom-version": "0x2222", "version-raw": "", "mac": "08:00:28:5b:55:e0"}},
		{"0x31000019,3.1.0.5,3.1.0.19,4.4.1.3,8738,3.0.1.71", "08-00-28-5b-55-e0",
			map[string]string{"rom-version": "8738", "version-raw": "0x31000019,3.1.0.5,3.1.0.19,4.4.1.3,8738,3.0.1.71", "mac": "08:00:28:5b:55:e0"}},
		{"0x31000019,3.1.0.5,3.1.0.19,4.4.1.3", "0800285B55E0", map[string]string{"nwp-version": "4.4.1.3", "rom-version": "", "mac": "08:00:28:5b:55:e0"}},
		{"v7 beta", "0x8:0x0:0x28", map[string]string{"chip": "", "version-raw": "v7 beta", "mac": "", "mac-raw": "0x8:0x0:0x28"}},
		{strings.Repeat("9", 199), "0x8, 0x0, 0x28, 0x5B, 0x55, 0xE0", map[string]string{"version-raw": strings.Repeat("9", 120), "mac": "08:00:28:5b:55:e0"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBoard()
			b.Forms.Version, b.Forms.MAC = c.version, c.mac
			report := mustRead(t, uart.TIAT{}, b)
			for name, value := range c.want {
				if report.Facts[name] != value {
					t.Errorf("version %q, address %q: fact %s is %q, want %q", c.version, c.mac, name, report.Facts[name], value)
				}
			}
		})
	}
}

// Another board in the place of one that was read is seen, in whatever form it
// explainDevice its serial number.
func TestTIATOtherSerialMeansGone(t *testing.T) {
	for _, forms := range []fixtures.Forms{{Hex: fixtures.HexUpper, Spaces: true, OK: "ok "}, {Names: fixtures.NamesTitle, LineEnd: "\r\n"}} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			defer theirs.Close()
			l := uart.NewLine(ours, uart.LineOptions{})
			serveFor := func() (remove func()) {
				b := newBoard()
				b.Quiet, b.Boot, b.Forms = true, 0, forms
				ctx, cancel := context.WithCancel(context.Background())
				served := make(chan error, 1)
				go func() { served <- b.Serve(ctx, theirs) }()
				return func() { cancel(); <-served }
			}
			remove := serveFor()
			d := uart.TIAT{}
			if err := d.Detect(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Read(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			remove()
			remove = serveFor()
			defer remove()
			start := time.Now()
			if err := d.Gone(t.Context(), l); err != nil || time.Since(start) > 10*time.Second {
				t.Errorf("Gone: %v after %v", err, time.Since(start))
			}
		})
	}
}
