package uart_test

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

var swaps = flag.Int("swaps", 0, "how many swaps TestSwapProperty makes; 0 is a few")

// swapWords are wordings of the CSR example: with serial numbers under every
// kind of label, and with and without a second reading.
var swapWords = []string{
	"{}", csrCapitals, csrOpenSSL, csrShowsNothing, csrFew, csrLineEnds, csrColons, csrConstant,
	`{"banner": "\r\nACME Sensor 4\r\n", "serial": "Seriennummer / serial number: {id}\r\n", "questions": [{"subject": "validity", "ask": "Tage (days):"}, {"subject": "organization unit", "ask": "Abteilung (unit):"}]}`,
	`{"banner": "\r\n", "serial": "Device ID {ID}\r\n", "questions": [{"subject": "organization unit", "ask": "OU:"}, {"subject": "common name", "ask": "CN:", "default": "node"}]}`,
	`{"banner": "\r\n", "serial": "UDID={0x}\r\n", "questions": [{"subject": "common name", "ask": "CN:", "default": "node"}, {"subject": "organization unit", "ask": "OU:"}]}`,
	`{"banner": "\r\n", "serial": "Serial no. {bytes}\r\n", "questions": [{"subject": "common name", "ask": "CN:", "shown": "name {id}\r\n"}, {"subject": "organization unit", "ask": "OU:"}, {"ask": "Colour:", "default": "blue"}]}`,
}

// A board that takes the place of another one, or starts anew, after any byte
// and in any words: what passes is the serial number and the key of one board.
func TestSwapProperty(t *testing.T) {
	n := *swaps
	if n == 0 {
		if n = 1500; testing.Short() {
			n = 150
		}
	}
	passed, second, refused := 0, 0, 0
	for seed := range uint64(n) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 15))
			firmware := []string{fixtures.DialectCSR, fixtures.DialectCSR, fixtures.DialectCSR, fixtures.DialectAT, fixtures.DialectReport}[r.IntN(5)]
			other := func() *fixtures.Board {
				b := newBoard()
				b.Dialect, b.Boot = firmware, time.Duration(r.IntN(3)*r.IntN(900))*time.Millisecond
				b.Think, b.Sign = 0, 0
				switch firmware {
				case fixtures.DialectCSR:
					worded(swapWords[r.IntN(len(swapWords))])(b)
					b.DefaultName = []string{fixtures.NameShort, fixtures.NameJoined, fixtures.NamePadded}[r.IntN(3)]
				case fixtures.DialectAT:
					b.Build = []string{fixtures.Build112, fixtures.Build111, fixtures.BuildTextMode}[r.IntN(3)]
					b.Forms.Hex = []string{"", fixtures.HexUpper, fixtures.HexPadded}[r.IntN(3)]
				}
				return b
			}
			one, two := other(), other()
			if r.IntN(4) == 0 { // the same board starts anew, perhaps with other firmware
				two.Device, two.Key = one.Device, one.Key
			}
			one.CutAfter = 1 + r.IntN([]int{300, 1200, 2400}[r.IntN(3)])
			ours, theirs := net.Pipe()
			ctx, remove := context.WithCancel(t.Context())
			served := make(chan struct{})
			go func() {
				defer close(served)
				if err := one.Serve(ctx, theirs); errors.Is(err, fixtures.ErrCut) {
					two.Serve(ctx, theirs)
				}
			}()
			name := []string{firmware, "auto", "auto/" + firmware}[r.IntN(3)]
			d, l := mustDialect(t, name), uart.NewLine(ours, uart.LineOptions{})
			reading, stop := context.WithTimeout(t.Context(), 2*time.Minute)
			err := d.Detect(reading, l)
			var report uart.Report
			if err == nil {
				report, err = d.Read(reading, l)
			}
			stop()
			remove()
			<-served
			ours.Close()
			theirs.Close()
			if err != nil {
				refused++
				return
			}
			isOne := report.Device == one.Device && string(report.SPKI) == string(one.SPKI())
			isTwo := report.Device == two.Device && string(report.SPKI) == string(two.SPKI())
			if !isOne && !isTwo {
				text, _ := l.Transcript().Encode()
				t.Errorf("seed %d, %s: the identity of no board passed\n%s", seed, name, text)
			}
			if passed++; isTwo {
				second++
			}
		})
		if t.Failed() {
			break
		}
	}
	t.Logf("%d swaps: %d passed, %d of them the second board; %d refused", n, passed, second, refused)
	if passed == 0 || second == 0 || refused == 0 {
		t.Error("a kind of verdict does not occur")
	}
}

// After PASS, a board that takes the place without a pause is noticed by its
// start, whatever its words are, and is read.
func TestSwapAfterPass(t *testing.T) {
	for i, words := range swapWords {
		for _, dialect := range []string{"ti-csr", "auto"} {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer ours.Close()
				defer theirs.Close()
				l, d := uart.NewLine(ours, uart.LineOptions{}), mustDialect(t, dialect)
				boards := []*fixtures.Board{newCSRBoard(), newCSRBoard()}
				var remove func()
				for n, b := range boards {
					b.Boot, b.Think, b.Sign = 0, 0, 0
					worded(swapWords[(i+n)%len(swapWords)])(b)
					if n == 0 {
						worded(words)(b)
					} else {
						remove()
					}
					remove = serve(t, b, theirs)
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					if n > 0 {
						if err := d.Gone(ctx, l); err != nil {
							t.Fatalf("%s, wording %d: Gone: %v", dialect, i, err)
						}
					}
					err := d.Detect(ctx, l)
					if err != nil {
						t.Fatalf("%s, wording %d, board %d: Detect: %v", dialect, i, n, err)
					}
					if report, err := d.Read(ctx, l); err != nil || report.Device != b.Device || string(report.SPKI) != string(b.SPKI()) {
						t.Fatalf("%s, wording %d, board %d: Read: %v", dialect, i, n, err)
					}
					cancel()
				}
				remove()
			})
		}
	}
}

// A start in any words ends the wait after a leak. What came before it is not
// kept.
func TestNextBoardStartEndsLeak(t *testing.T) {
	for _, start := range []string{
		"UNIQUE DEVICE ID: 4d1f000a8e27b3c05a9e61f2d47788ab\r\n", "udid = 4d 1f", "Serial number 4d1f000a8e27b3c05a9e61f2d47788ab\r\n",
		"\tAT COMMANDS EXAMPLE VER: 2.1\r\n", "AT-Command Application, Version 3.40\r\n", "\tCHIP: 0x31000019\r\n",
	} {
		for _, dialect := range []string{"ti-csr", "ti-at", "auto"} {
			if csr := !strings.Contains(strings.ToUpper(start), "AT"); !strings.Contains(start, "CHIP") && (dialect == "ti-at" && csr || dialect == "ti-csr" && !csr) {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer ours.Close()
				defer theirs.Close()
				defer swallow(theirs)()
				l, d := uart.NewLine(ours, uart.LineOptions{}), mustDialect(t, dialect)
				say := func(text string) {
					if _, err := theirs.Write([]byte(text)); err != nil {
						t.Error(err)
					}
				}
				go say("-----BEGIN EC PRIVATE KEY-----\r\nAAAA\r\n")
				if err := d.Detect(t.Context(), l); !errors.Is(err, uart.ErrPrivateKey) {
					t.Fatal(err)
				}
				gone := make(chan error, 1)
				go func() { gone <- d.Gone(t.Context(), l) }()
				time.Sleep(time.Second)
				say("BBBB\r\n\r\n" + start)
				time.Sleep(time.Second)
				select {
				case err := <-gone:
					if err != nil {
						t.Fatal(err)
					}
				default:
					t.Fatalf("%s: %q is no start", dialect, start)
				}
				text, err := l.Transcript().Encode()
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(text), "BBBB") || !l.Pending() {
					t.Errorf("%s, %q: kept:\n%s", dialect, start, text)
				}
			})
		}
	}
}

// Firmware of any dialect may print its serial number when it starts, in words
// like those of the CSR example: auto reads it all the same.
func TestAutoSerialInBanner(t *testing.T) {
	for _, banner := range []string{
		"\r\n[BOOT] Firmware 2.3\r\n[BOOT] UDID: {id}\r\n", "AT Commands Example Ver: 1.1.2\r\nUnique device ID = {id}\r\n",
		"\r\nunique device id = 00 01 02\r\nready> ", "Gerät bereit\r\nSeriennr. / serial number {id}\r\n[dbg] heap: 20480\r\n",
	} {
		for _, memory := range []string{"auto", "auto/ti-csr", "auto/report"} {
			for _, firmware := range []string{fixtures.DialectAT, fixtures.DialectReport} {
				synctest.Test(t, func(t *testing.T) {
					ours, theirs := net.Pipe()
					defer ours.Close()
					defer theirs.Close()
					b := newBoard()
					b.Dialect, b.Quiet, b.Boot = firmware, true, 0
					l, d := uart.NewLine(ours, uart.LineOptions{}), mustDialect(t, memory)
					ctx, remove := context.WithCancel(t.Context())
					served := make(chan struct{})
					go func() {
						defer close(served)
						stop := swallow(theirs)
						theirs.Write([]byte(strings.ReplaceAll(banner, "{id}", hex.EncodeToString(b.Device[:]))))
						stop()
						b.Serve(ctx, theirs)
					}()
					ctx, cancel := context.WithTimeout(ctx, time.Minute)
					defer cancel()
					start := time.Now()
					if err := d.Detect(ctx, l); err != nil {
						t.Fatalf("%s, %s, %q: Detect: %v after %v", memory, firmware, banner, err, time.Since(start))
					}
					if report, err := d.Read(ctx, l); err != nil || report.Device != b.Device {
						t.Fatalf("%s, %s, %q: Read: %v", memory, firmware, banner, err)
					}
					remove()
					<-served
				})
			}
		}
	}
}

// A board that is taken out in the middle of a line of its first banner is
// gone; one that prints whole lines and falls silent is named.
func TestRemovedDuringBanner(t *testing.T) {
	for _, firmware := range []string{fixtures.DialectAT, fixtures.DialectCSR} {
		for _, dialect := range []string{firmware, "auto"} {
			removed, all := 0, 0
			for cut := 1; cut < 300; cut += 7 {
				synctest.Test(t, func(t *testing.T) {
					ours, theirs := net.Pipe()
					defer ours.Close()
					defer theirs.Close()
					b := newBoard()
					b.Dialect, b.Boot, b.CutAfter = firmware, 0, cut
					stopped := make(chan func(), 1)
					go func() {
						b.Serve(t.Context(), theirs)
						stopped <- swallow(theirs)
					}()
					l, d := uart.NewLine(ours, uart.LineOptions{}), mustDialect(t, dialect)
					start := time.Now()
					err := d.Detect(t.Context(), l)
					var unknown *uart.UnknownError
					if all++; errors.Is(err, uart.ErrRemoved) {
						removed++
					} else if !errors.As(err, &unknown) || !unknown.Silent {
						t.Errorf("%s, %s, cut after %d: %v", firmware, dialect, cut, err)
					}
					if took := time.Since(start); took > decidedIn {
						t.Errorf("%s, %s, cut after %d: it took %v", firmware, dialect, cut, took)
					}
					(<-stopped)()
				})
			}
			if 10*removed < 8*all {
				t.Errorf("%s, %s: %d of %d boards are gone", firmware, dialect, removed, all)
			}
		}
	}
}

// A board that does not tell its serial number needs other firmware, not
// another try, whatever words it refuses in.
func TestTIATSerialRefusedIsFirmwareFault(t *testing.T) {
	for _, refusal := range []string{"", "ERROR", "unbekannter Befehl", "-1", "udid: not available"} {
		for _, dialect := range []string{"ti-at", "auto"} {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				b.Forms.Refuse, b.Forms.Refusal = []string{"udid"}, refusal
				if _, err := read(t, mustDialect(t, dialect), b); !errors.Is(err, uart.ErrFirmware) {
					t.Errorf("%s, %q: %v", dialect, refusal, err)
				}
			})
		}
	}
}
