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

// plug runs a board on one end of a pipe and returns the line at the other end.
func plug(t *testing.T, b *fixtures.Board) *uart.Line {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		err := b.Serve(ctx, theirs)
		if errors.Is(err, fixtures.ErrCut) {
			theirs.Close()
		}
		served <- err
	}()
	t.Cleanup(func() {
		ours.Close()
		cancel()
		<-served
		theirs.Close()
	})
	return uart.NewLine(ours, uart.LineOptions{})
}

func newBoard() *fixtures.Board {
	return &fixtures.Board{Device: fixtures.NewDevice(), Key: fixtures.NewKey(), Boot: time.Second, Think: 5 * time.Millisecond, Sign: 100 * time.Millisecond}
}

const event = "+eventnetapp:ipv4_acquired,192.0.2.7,192.0.2.1,192.0.2.1"

func TestTIAT(t *testing.T) {
	dialect, err := uart.DialectByName("ti-at")
	if err != nil {
		t.Fatal(err)
	}
	one, two := fixtures.NewDevice(), fixtures.NewDevice()
	for name, c := range map[string]struct {
		fault func(*fixtures.Board)
		want  error
		words string
		facts map[string]string
	}{
		"good":                      {fault: func(b *fixtures.Board) {}},
		"good, attached late":       {fault: func(b *fixtures.Board) { b.Quiet = true }},
		"raw signatures":            {fault: func(b *fixtures.Board) { b.RawSignatures = true }, facts: map[string]string{"signature": "raw"}},
		"event at the echo's start": {fault: func(b *fixtures.Board) { b.Event, b.EventAt = event, 0 }},
		"event in the echo":         {fault: func(b *fixtures.Board) { b.Event, b.EventAt = event, 8 }},
		"refuses key 0":             {fault: func(b *fixtures.Board) { b.RefuseKey0 = -12290 }, want: uart.ErrNoProof, words: "-12290"},
		"signs something else":      {fault: func(b *fixtures.Board) { b.WrongSignatures = true }, want: uart.ErrNoProof, words: "one key"},
		// The second try reads the second board, whole.
		"swapped once":    {fault: func(b *fixtures.Board) { b.Serials = [][16]byte{one, b.Device} }},
		"swapped twice":   {fault: func(b *fixtures.Board) { b.Serials = [][16]byte{one, two, one, two} }, want: uart.ErrGarbled, words: "another one at the end"},
		"version refused": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"version": "ERROR: process command,-2\n\r"} }, facts: map[string]string{"chip": "", "mac-version": "", "phy-version": "", "nwp-version": "", "rom-version": ""}},
		"version of a strange form": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"version": "+get:hello\xff\n\rOK\n\r"} },
			facts: map[string]string{"chip": "", "mac-version": "", "phy-version": "", "nwp-version": "", "rom-version": "", "version-raw": "hello?"}},
		"serial number refused": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"udid": "ERROR: process command,-1\n\r"} }, want: uart.ErrGarbled, words: "process command,-1"},
		"serial number of 15 bytes": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+get:" + strings.Repeat("0x1,", 14) + "0x1\n\rOK\n\r"}
		}, want: uart.ErrGarbled, words: "16 bytes"},
		"serial number of 17 bytes": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+get:" + strings.Repeat("0x1,", 16) + "0x1\n\rOK\n\r"}
		}, want: uart.ErrGarbled, words: "16 bytes"},
		"something after the number": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+get:" + strings.Repeat("0x1,", 15) + "0x1.\n\rOK\n\r"}
		}, want: uart.ErrGarbled, words: "16 bytes"},
		"a blank inside a number": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+get:" + strings.Repeat("0x1,", 15) + "0x1 f\n\rOK\n\r"}
		}, want: uart.ErrGarbled, words: "16 bytes"},
		"numbers without 0x": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+get:" + strings.Repeat("10,", 15) + "10\n\rOK\n\r"}
		}, want: uart.ErrGarbled, words: "16 bytes"},
		"OK without an answer": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"udid": "OK\n\r"} }, want: uart.ErrGarbled, words: "without an answer"},
		"two answers":          {fault: func(b *fixtures.Board) { b.Print = map[string]string{"udid": "+get:0x1\n\r+get:0x1\n\rOK\n\r"} }, want: uart.ErrGarbled, words: "two answers"},
		"an answer without OK": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+get:" + strings.Repeat("0x1,", 15) + "0x1\n\r"}
		}, want: uart.ErrTimeout},
		"an answer cut off": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+get:" + strings.Repeat("0x1,", 15) + "0x"}
		}, want: uart.ErrTimeout},
		"no answer":    {fault: func(b *fixtures.Board) { b.Mute = "udid" }, want: uart.ErrTimeout, words: "serial number"},
		"no signature": {fault: func(b *fixtures.Board) { b.Mute = "sign_msg" }, want: uart.ErrTimeout, words: "signed"},
		"network processor dead": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+eventfatalerror:device_abort,5,4660\n\r"}
		}, want: uart.ErrGarbled, words: "reset"},
		"started anew": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"sign_msg": "\n\r AT Commands Example Ver: 1.1.2\n\r"}
		}, want: uart.ErrGarbled, words: "anew"},
		"signature of a strange form":   {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign_msg": "+netutilcmd:0,4,abcd\n\rOK\n\r"} }, want: uart.ErrGarbled, words: "documented form"},
		"signature of another length":   {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign_msg": "+netutilcmd:1,8,abcd\n\rOK\n\r"} }, want: uart.ErrGarbled, words: "announced"},
		"signature not base64":          {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign_msg": "+netutilcmd:1,5,abcde\n\rOK\n\r"} }, want: uart.ErrGarbled, words: "base64"},
		"signature neither DER nor raw": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"sign_msg": "+netutilcmd:1,4,abcd\n\rOK\n\r"} }, want: uart.ErrGarbled, words: "raw"},
		"a line without end":            {fault: func(b *fixtures.Board) { b.Print = map[string]string{"udid": strings.Repeat("x", 3000)} }, want: uart.ErrGarbled, words: "2048"},
		"lines without end":             {fault: func(b *fixtures.Board) { b.Print = map[string]string{"udid": strings.Repeat("x\n\r", 100)} }, want: uart.ErrGarbled, words: "no OK"},
		"private key": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"version": "-----BEGIN EC PRIVATE KEY-----\n\rAAAA\n\r"}
		}, want: uart.ErrPrivateKey},
		"end of a private key": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"version": "AAAA\n\r-----END PRIVATE\n\rKEY-----\n\r"}
		}, want: uart.ErrPrivateKey},
		"unplugged": {fault: func(b *fixtures.Board) { b.CutAfter = 700 }, want: uart.ErrUnplugged},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				c.fault(b)
				l := plug(t, b)
				if err := dialect.Detect(t.Context(), l); err != nil {
					t.Fatalf("Detect: %v", err)
				}
				report, err := dialect.Read(t.Context(), l)
				if !errors.Is(err, c.want) {
					t.Fatalf("Read: %v, want %v", err, c.want)
				}
				text, encodeErr := l.Transcript().Encode()
				if encodeErr != nil {
					t.Fatalf("the recording does not encode: %v", encodeErr)
				}
				if _, err := uart.ParseTranscript(text); err != nil {
					t.Fatalf("the recording does not parse: %v\n%s", err, text)
				}
				if c.want != nil {
					if !strings.Contains(err.Error(), c.words) {
						t.Errorf("error %q does not say %q", err, c.words)
					}
					if strings.Contains(string(text), "AAAA") || strings.Contains(err.Error(), "AAAA") {
						t.Errorf("private key material was kept: %v\n%s", err, text)
					}
					return
				}
				if report.Device != b.Device {
					t.Errorf("device %x, want %x", report.Device, b.Device)
				}
				if string(report.SPKI) != string(b.SPKI()) {
					t.Errorf("another key was recovered")
				}
				facts := map[string]string{
					"dialect": "ti-at", "chip": "0x31000019", "mac-version": "3.1.0.5", "phy-version": "3.1.0.19",
					"nwp-version": "4.4.1.3", "rom-version": "8738", "hash": "sha1", "signature": "der",
				}
				for name, value := range c.facts {
					facts[name] = value
				}
				for name, value := range facts {
					if report.Facts[name] != value {
						t.Errorf("fact %s is %q, want %q", name, report.Facts[name], value)
					}
				}
				if !strings.HasPrefix(report.Facts["mac"], "08:00:28:") {
					t.Errorf("fact mac is %q", report.Facts["mac"])
				}
				if p := report.Proof; p == nil || p.Method != "sign-msg" || len(p.Nonces) != 3 || len(p.Signatures) != 3 {
					t.Errorf("proof %+v", report.Proof)
				}
			})
		})
	}
}

func TestTIATDetectAndGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := uart.TIAT{}
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		l := uart.NewLine(ours, uart.LineOptions{})

		// Nobody there: the other end only swallows.
		swallowed := make(chan int)
		go func() {
			n, buf := 0, make([]byte, 64)
			for {
				k, err := theirs.Read(buf)
				if n += k; err != nil {
					swallowed <- n
					return
				}
			}
		}()
		detected := make(chan error, 1)
		go func() { detected <- d.Detect(t.Context(), l) }()
		time.Sleep(10 * time.Second)
		select {
		case err := <-detected:
			t.Fatalf("Detect on an empty slot: %v", err)
		default:
		}
		theirs.SetReadDeadline(time.Unix(1, 0))
		if n := <-swallowed; n < 10 || n > 30 {
			t.Errorf("an empty slot was sent %d bytes in 10 s", n)
		}
		// A board comes.
		b := newBoard()
		ctx, remove := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- b.Serve(ctx, theirs) }()
		if err := <-detected; err != nil {
			t.Fatalf("Detect: %v", err)
		}
		if _, err := d.Read(t.Context(), l); err != nil {
			t.Fatalf("Read: %v", err)
		}
		// It stays, and goes.
		gone := make(chan error, 1)
		go func() { gone <- d.Gone(t.Context(), l) }()
		time.Sleep(5 * time.Second)
		select {
		case err := <-gone:
			t.Fatalf("Gone while the board is there: %v", err)
		default:
		}
		// A short silence is not its end.
		remove()
		<-served
		stop := swallow(theirs)
		time.Sleep(2 * time.Second)
		stop()
		select {
		case err := <-gone:
			t.Fatalf("Gone after 2 s without an echo: %v", err)
		default:
		}
		b.Quiet, b.Boot = true, 0
		ctx, remove = context.WithCancel(t.Context())
		go func() { served <- b.Serve(ctx, theirs) }()
		time.Sleep(10 * time.Second)
		select {
		case err := <-gone:
			t.Fatalf("Gone, and the board is there again: %v", err)
		default:
		}
		remove()
		<-served
		stop = swallow(theirs)
		start := time.Now()
		if err := <-gone; err != nil {
			t.Fatalf("Gone: %v", err)
		}
		if took := time.Since(start); took < 2*time.Second || took > 4*time.Second {
			t.Errorf("Gone took %v", took)
		}
		stop()
	})
}

// A board that starts while the last one is waited for is another one, however
// quick the hands.
func TestTIATBannerMeansGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		l := uart.NewLine(ours, uart.LineOptions{})
		first, remove := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- newBoard().Serve(first, theirs) }()
		d := uart.TIAT{}
		if err := d.Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		gone := make(chan error, 1)
		go func() { gone <- d.Gone(t.Context(), l) }()
		time.Sleep(5 * time.Second)
		remove()
		<-served
		second, stop := context.WithCancel(t.Context())
		b := newBoard()
		b.Boot = 300 * time.Millisecond // less than it takes to be missed
		go func() { served <- b.Serve(second, theirs) }()
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		stop()
		<-served
	})
}

func TestTIATEndlessOutputFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.Mute = "test"
		l := plug(t, b)
		if err := (uart.TIAT{}).Detect(t.Context(), l); !errors.Is(err, uart.ErrNoDialect) {
			t.Fatalf("Detect: %v, want %v", err, uart.ErrNoDialect)
		}
	})
}

func TestTIATCancelled(t *testing.T) {
	why := errors.New("the slot is being closed")
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.Mute = "sign_msg"
		l := plug(t, b)
		ctx, cancel := context.WithCancelCause(t.Context())
		if err := (uart.TIAT{}).Detect(ctx, l); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() { cancel(why) })
		start := time.Now()
		if _, err := (uart.TIAT{}).Read(ctx, l); !errors.Is(err, why) {
			t.Fatalf("Read: %v, want %v", err, why)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("it took %v to notice", took)
		}
	})
}

// After a leak the line stays deaf until the board is gone: the rest of the key
// must not be recorded.
func TestLeakStaysSuppressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.Print = map[string]string{"version": "-----BEGIN PRIVATE KEY-----\n\r"}
		l := plug(t, b)
		d := uart.TIAT{}
		if err := d.Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read(t.Context(), l); !errors.Is(err, uart.ErrPrivateKey) {
			t.Fatalf("Read: %v", err)
		}
		l.Mark()
		if err := l.Send(t.Context(), "at+get=iot,udid\r"); err != nil {
			t.Fatal(err)
		}
		if heard, err := l.AwaitBytes(t.Context(), time.Second); !heard || err != nil {
			t.Fatalf("Heard: %v, %v", heard, err)
		}
		text, err := l.Transcript().Encode()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "udid") {
			t.Errorf("recorded after a leak:\n%s", text)
		}
		l.Forget()
		if got := l.Transcript().Chunks; len(got) != 0 {
			t.Errorf("Forget left %v", got)
		}
	})
}
