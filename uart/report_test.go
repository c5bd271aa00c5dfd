package uart_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

func newReportBoard() *fixtures.Board {
	b := newBoard()
	b.Dialect = fixtures.DialectReport
	return b
}

// sumUp ends an answer of the dialect report.
func sumUp(text string) string {
	return fmt.Sprintf("\r\n%s %08x\r\n", text, crc32.ChecksumIEEE([]byte(text)))
}

func TestReportLine(t *testing.T) {
	one, two := fixtures.NewDevice(), fixtures.NewDevice()
	for name, c := range map[string]struct {
		fault func(*fixtures.Board)
		want  error
		words string
		facts map[string]string
	}{
		"good":             {fault: func(b *fixtures.Board) {}, facts: map[string]string{"dialect": "report", "version": "1", "hash": "sha1", "signature": "der", "key-form": "spki"}},
		"SHA-256, raw":     {fault: func(b *fixtures.Board) { b.Hash, b.RawSignatures = "sha256", true }, facts: map[string]string{"hash": "sha256", "signature": "raw"}},
		"a log before it":  {fault: func(b *fixtures.Board) { b.Event = "[12] wlan: connected to secretfree 1" }},
		"refuses key 0":    {fault: func(b *fixtures.Board) { b.RefuseKey0 = -1 }, want: uart.ErrNoProof, words: "answers error"},
		"signs another":    {fault: func(b *fixtures.Board) { b.WrongSignatures = true }, want: uart.ErrNoProof, words: "does not hold"},
		"no answer":        {fault: func(b *fixtures.Board) { b.Mute = "sign" }, want: uart.ErrTimeout, words: "report"},
		"swapped once":     {fault: func(b *fixtures.Board) { b.Boot, b.Serials = 0, [][16]byte{one, one, b.Device} }},
		"swapped for good": {fault: func(b *fixtures.Board) { b.Boot, b.Serials = 0, [][16]byte{one, one, two, one, two} }, want: uart.ErrGarbled, words: "another one"},
		"reset in its line": {fault: func(b *fixtures.Board) {
			b.ResetIn, b.ResetAt = "sign", 100
		}},
		"checksum wrong": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign": "\r\nsecretfree 1 ready 00 00000000\r\n"} }, want: uart.ErrGarbled, words: "checksum"},
		"checksum short": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign": "\r\nsecretfree 1 ready 00 0\r\n"} }, want: uart.ErrGarbled, words: "checksum"},
		"version 2":      {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign": sumUp("secretfree 2 x")} }, want: uart.ErrGarbled, words: "version 2"},
		"form":           {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign": sumUp("secretfree 1 00 11 22")} }, want: uart.ErrGarbled, words: "specified form"},
		"half a byte": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"sign": sumUp("secretfree 1 " + b.ID() + " " + strings.Repeat("0", 129) + " " + strings.Repeat("0", 64))}
		}, want: uart.ErrGarbled, words: "half a byte"},
		"no point": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"sign": sumUp("secretfree 1 " + b.ID() + " " + strings.Repeat("0", 128) + " " + strings.Repeat("0", 128))}
		}, want: uart.ErrGarbled, words: "not a point"},
		"key of 70 bytes": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"sign": sumUp("secretfree 1 " + b.ID() + " " + strings.Repeat("0", 140) + " " + strings.Repeat("0", 128))}
		}, want: uart.ErrGarbled, words: "70 bytes"},
		"no signature": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"sign": sumUp(fmt.Sprintf("secretfree 1 %s %x %s", b.ID(), b.SPKI(), strings.Repeat("0", 32)))}
		}, want: uart.ErrGarbled, words: "neither DER nor"},
		"a signature of zeros": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"sign": sumUp(fmt.Sprintf("secretfree 1 %s %x %s", b.ID(), b.SPKI(), strings.Repeat("0", 128)))}
		}, want: uart.ErrNoProof, words: "does not hold"},
		"a log that never ends": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign": strings.Repeat("log\r\n", 600)} },
			want: uart.ErrGarbled, words: "no answer"},
		"private key": {fault: func(b *fixtures.Board) { b.Leak = "sign" }, want: uart.ErrPrivateKey},
		"unplugged":   {fault: func(b *fixtures.Board) { b.CutAfter = 300 }, want: uart.ErrUnplugged},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newReportBoard()
				c.fault(b)
				l := plug(t, b)
				d := uart.ReportLine{}
				if err := d.Detect(t.Context(), l); err != nil {
					t.Fatalf("Detect: %v", err)
				}
				report, err := d.Read(t.Context(), l)
				if !errors.Is(err, c.want) {
					t.Fatalf("Read: %v, want %v", err, c.want)
				}
				text, encodeErr := l.Transcript().Encode()
				if encodeErr != nil {
					t.Fatalf("the recording does not encode: %v", encodeErr)
				}
				if c.want != nil {
					if !strings.Contains(err.Error(), c.words) {
						t.Errorf("error %q does not say %q", err, c.words)
					}
					noKey(t, b, err, text)
					return
				}
				if report.Device != b.Device || string(report.SPKI) != string(b.SPKI()) {
					t.Errorf("another identity")
				}
				proven(t, report)
				for fact, value := range c.facts {
					if report.Facts[fact] != value {
						t.Errorf("fact %s is %q, want %q", fact, report.Facts[fact], value)
					}
				}
			})
		})
	}
}

// A key may come in any of the documented forms, in hex of either case.
func TestReportLineKeyForms(t *testing.T) {
	for form, cut := range map[string]int{"spki": 0, "point": 26, "xy": 27} {
		synctest.Test(t, func(t *testing.T) {
			b := newReportBoard()
			signer := newReportBoard()
			signer.Device, signer.Key = b.Device, b.Key
			ours, theirs := net.Pipe()
			defer ours.Close()
			nonce := "0123456789abcdefABCDE"
			go func() {
				defer theirs.Close()
				buf := make([]byte, 256)
				for {
					n, err := theirs.Read(buf)
					if err != nil {
						return
					}
					answer := sumUp("secretfree 1 ready " + strings.ToUpper(b.ID()))
					if strings.Contains(string(buf[:n]), nonce) {
						signature, err := signer.Signature(fmt.Appendf(nil, "secretfree 1 %s %s", nonce, b.ID()))
						if err != nil {
							t.Error(err)
						}
						answer = sumUp(fmt.Sprintf("secretfree 1 %s %X %x", b.ID(), b.SPKI()[cut:], signature))
					}
					theirs.Write([]byte(answer))
				}
			}()
			l := uart.NewLine(ours, uart.LineOptions{Nonce: func(int) string { return nonce }})
			d := uart.ReportLine{}
			if err := d.Detect(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			report, err := d.Read(t.Context(), l)
			if err != nil || report.Facts["key-form"] != form || string(report.SPKI) != string(b.SPKI()) || report.Device != b.Device {
				t.Errorf("%s: %v, %v", form, report.Facts, err)
			}
		})
	}
}

func TestReportLineDetectAndGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		l := uart.NewLine(ours, uart.LineOptions{})
		stop := swallow(theirs)
		d := uart.ReportLine{}
		detected := make(chan error, 1)
		go func() { detected <- d.Detect(t.Context(), l) }()
		time.Sleep(10 * time.Second)
		stop()
		serve := func(b *fixtures.Board) (remove func()) {
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error)
			go func() { served <- b.Serve(ctx, theirs) }()
			return func() { cancel(); <-served }
		}
		b := newReportBoard()
		remove := serve(b)
		if err := <-detected; err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		gone := make(chan error, 1)
		go func() { gone <- d.Gone(t.Context(), l) }()
		time.Sleep(time.Minute)
		select {
		case err := <-gone:
			t.Fatalf("Gone while the board is there: %v", err)
		default:
		}
		// Another one in its place, too quick to be missed.
		remove()
		b = newReportBoard()
		b.Boot = 0
		remove = serve(b)
		start := time.Now()
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("another board was noticed after %v", took)
		}
		if err := d.Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if report, err := d.Read(t.Context(), l); err != nil || report.Device != b.Device {
			t.Fatal(err)
		}
		go func() { gone <- d.Gone(t.Context(), l) }()
		time.Sleep(3 * time.Second)
		remove()
		stop = swallow(theirs)
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		stop()

		// A board of another dialect is not waited for for ever.
		remove = serve(newBoard())
		if err := d.Detect(t.Context(), l); !errors.Is(err, uart.ErrNoDialect) {
			t.Errorf("a board with AT commands: %v", err)
		}
		remove()
	})
}

// cutting loses the end of the first request that is sent through it.
type cutting struct {
	net.Conn
	cut bool
}

func (c *cutting) Write(p []byte) (int, error) {
	if n := len(p) - 10; !c.cut && bytes.HasPrefix(p, []byte(";secretfree 1 ")) && n > 0 {
		c.cut = true
		_, err := c.Conn.Write(p[:n])
		return len(p), err
	}
	return c.Conn.Write(p)
}

// A request that lost its end is ended by the next one: its error is not the
// answer to that.
func TestReportAfterARequestWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		b := newBoard()
		b.Dialect = fixtures.DialectReport
		unplug := serve(t, b, theirs)
		defer unplug()
		line := &cutting{Conn: ours}
		l := uart.NewLine(line, uart.LineOptions{})
		d := mustDialect(t, "report")
		if err := d.Detect(t.Context(), l); err != nil {
			t.Fatalf("Detect: %v", err)
		}
		report, err := d.Read(t.Context(), l)
		if err != nil || report.Device != b.Device || !line.cut {
			t.Errorf("Read: %x, %v; a request was cut: %t", report.Device, err, line.cut)
		}
	})
}
