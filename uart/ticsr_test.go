package uart_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

func newCSRBoard() *fixtures.Board {
	b := newBoard()
	b.Dialect = fixtures.DialectCSR
	return b
}

const csrEvent = "[NETAPP EVENT] IP Acquired: IP=192.0.2.7 , Gateway=192.0.2.1"

// proven checks the proof as anybody can who has the record alone.
func proven(t *testing.T, report uart.Report) {
	t.Helper()
	key, err := board.ParseKey(report.SPKI)
	if err != nil {
		t.Fatal(err)
	}
	p := board.Proof{
		Method: board.ProofMethod(report.Proof.Method), Hash: board.Hash(report.Proof.Hash),
		Nonces: report.Proof.Nonces, Signatures: report.Proof.Signatures, Request: report.Proof.Request,
	}
	if err := p.Verify(board.DeviceID(report.Device), key); err != nil {
		t.Error(err)
	}
}

// pemOf is somebody else's request.
func pemOf(t *testing.T, key any, name pkix.Name) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name}, key)
	if err != nil {
		t.Fatal(err)
	}
	return "\r\n" + strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "\n", "\r\n\r")
}

func TestTICSR(t *testing.T) {
	wide, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		fault func(*fixtures.Board)
		want  error
		words string
		facts map[string]string
	}{
		"good": {fault: func(b *fixtures.Board) {}, facts: map[string]string{"dialect": "ti-csr", "hash": "sha1", "signature": "der",
			"key-form": "spki", "csr-label": "CERTIFICATE REQUEST", "build": "1.0.0.2", "chip": "0x31000019", "nwp-version": "4.4.1.3", "serial-readings": "2", "common-name": "cut-short"}},
		"SHA-256":                 {fault: func(b *fixtures.Board) { b.Hash = "sha256" }, facts: map[string]string{"hash": "sha256"}},
		"NEW in the marker lines": {fault: func(b *fixtures.Board) { b.Label = "NEW CERTIFICATE REQUEST" }, facts: map[string]string{"csr-label": "NEW CERTIFICATE REQUEST"}},
		"event in the echo":       {fault: func(b *fixtures.Board) { b.Event, b.EventAt = csrEvent, 3 }},
		"event in the PEM":        {fault: func(b *fixtures.Board) { b.Event, b.EventAt, b.EventIn = csrEvent, 20, fixtures.InAnswer }},
		"another kind of event": {fault: func(b *fixtures.Board) {
			b.Event, b.EventIn = "[WLAN ERROR] Device disconnected from AP", fixtures.InPrompt
		}},
		"reset at a question": {fault: func(b *fixtures.Board) { b.ResetIn, b.ResetAt = "locality", 9 }},
		"reset in the PEM": {fault: func(b *fixtures.Board) {
			b.ResetIn, b.ResetAt = "request", 200
		}},
		"reset, started slowly": {fault: func(b *fixtures.Board) { b.ResetIn, b.ResetAt, b.Boot = "email", 1, 4*time.Second }},
		"shorter serial number": {fault: func(b *fixtures.Board) {
			b.Quiet, b.Print = true, map[string]string{"validity": "\r\n\nUnique device ID = " + strings.Repeat("0a ", 15) + "\r\n\n-Enter validity period (days):"}
		}, want: uart.ErrGarbled, words: "16 bytes"},
		"serial number without padding": {fault: func(b *fixtures.Board) {
			b.Quiet, b.Print = true, map[string]string{"validity": "\r\n\nUnique device ID = " + strings.Repeat("a ", 16) + "\r\n\n-Enter validity period (days):"}
		}, want: uart.ErrGarbled, words: "16 bytes"},
		"serial number in capitals": {fault: func(b *fixtures.Board) {
			b.Device = [16]byte(bytes.Repeat([]byte{0x0a}, 16))
			b.Quiet, b.Print = true, map[string]string{"validity": "\r\n\nUnique device ID = " + strings.Repeat("0A ", 16) + "\r\n\n-Enter validity period (days):"}
		}, facts: map[string]string{"second-reading": "default"}},
		"a key that is refused": {fault: func(b *fixtures.Board) { b.RefuseKey0 = -12290 }, want: uart.ErrNoProof, words: "report"},
		"content altered":       {fault: func(b *fixtures.Board) { b.WrongSignatures = true }, want: uart.ErrNoProof, words: "signature does not hold"},
		"an older request":      {fault: func(b *fixtures.Board) { b.Unit = "N0nce0fAnotherReading" }, want: uart.ErrNoProof, words: "nonce of this reading"},
		"another name":          {fault: func(b *fixtures.Board) { b.CommonName = strings.Repeat("0a", 16) }, want: uart.ErrGarbled, words: "another serial number"},
		"name of all digits":    {fault: func(b *fixtures.Board) { b.DefaultName = fixtures.NameJoined }, facts: map[string]string{"common-name": "joined"}},
		"corrected firmware":    {fault: func(b *fixtures.Board) { b.DefaultName = fixtures.NamePadded }, facts: map[string]string{"common-name": "padded"}},
		"no small byte":         {fault: func(b *fixtures.Board) { copy(b.Device[:], "0123456789abcdef") }, facts: map[string]string{"common-name": "padded"}},
		"zeros first":           {fault: func(b *fixtures.Board) { b.Device[0], b.Device[1] = 0, 0 }, facts: map[string]string{"common-name": "cut-short"}},
		"another serial number": {fault: func(b *fixtures.Board) { b.Serials = [][16]byte{b.Device, fixtures.NewDevice()} }, want: uart.ErrGarbled, words: "another serial number"},
		"no second serial number": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"common name": "\r\n\n-Enter subject email:"}
		}, facts: map[string]string{"serial-readings": "1", "second-reading": "", "common-name": ""}},
		"no request":         {fault: func(b *fixtures.Board) { b.Mute = "request" }, want: uart.ErrGarbled, words: "asks for the certificate"},
		"a question missing": {fault: func(b *fixtures.Board) { b.Mute = "state" }, want: uart.ErrTimeout, words: "next question"},
		"an unknown question": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"state": "\r\n\n-Enter subject shoe size:"} },
			facts: map[string]string{"serial-readings": "2"}},
		"every answer refused": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"-Is certificate": "\r\n\n-Enter subject country (i.e US):", "country": "\r\n\n-Enter subject country (i.e US):",
				"state": "\r\n\n-Enter subject country (i.e US):", "locality": "\r\n\n-Enter subject country (i.e US):", "surname": "\r\n\n-Enter subject country (i.e US):"}
		}, want: uart.ErrGarbled, words: "refuses every answer"},
		"it gives up at once": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"validity": "ERROR: strtok - there is not token \r\n"}
		},
			want: uart.ErrGarbled, words: "reset"},
		"marker lines that differ": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"request": "\r\n-----BEGIN NEW CERTIFICATE REQUEST-----\r\nMIIB\r\n-----END CERTIFICATE REQUEST-----\r\n"}
		}, want: uart.ErrGarbled, words: "not a certificate signing request"},
		"not base64": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"request": "\r\n-----BEGIN CERTIFICATE REQUEST-----\r\nMIIBA\r\n-----END CERTIFICATE REQUEST-----\r\n"}
		}, want: uart.ErrGarbled, words: "base64"},
		"not a request": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"request": "\r\n-----BEGIN CERTIFICATE REQUEST-----\r\nMIIB\r\n-----END CERTIFICATE REQUEST-----\r\n"}
		}, want: uart.ErrGarbled, words: "not a certificate signing request"},
		"a request by P-384": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"request": pemOf(t, wide, pkix.Name{CommonName: b.ID()})}
		}, want: uart.ErrNoProof, words: "ECDSA on P-256"},
		"a request of somebody else": {fault: func(b *fixtures.Board) {
			b.Print = map[string]string{"request": pemOf(t, fixtures.NewKey(), pkix.Name{CommonName: b.ID()})}
		}, want: uart.ErrNoProof, words: "nonce of this reading"},
		"endless text": {fault: func(b *fixtures.Board) { b.Print = map[string]string{"country": strings.Repeat("word ", 4000)} },
			want: uart.ErrGarbled, words: "no prompt"},
		"private key":         {fault: func(b *fixtures.Board) { b.Leak = "request" }, want: uart.ErrPrivateKey},
		"private key earlier": {fault: func(b *fixtures.Board) { b.Leak = "surname" }, want: uart.ErrPrivateKey},
		"unplugged":           {fault: func(b *fixtures.Board) { b.CutAfter = 1100 }, want: uart.ErrUnplugged},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newCSRBoard()
				c.fault(b)
				l := plug(t, b)
				d := uart.TICSR{}
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
				if typed := b.Typed(); len(typed) > 0 && typed[0] == "" || strings.Contains(strings.Join(typed, ""), "BEGIN") {
					t.Errorf("typed %q", typed)
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

// noKey fails if any part of the board's private key was kept.
func noKey(t *testing.T, b *fixtures.Board, err error, text []byte) {
	t.Helper()
	der, _ := x509.MarshalECPrivateKey(b.Key)
	secret := base64.StdEncoding.EncodeToString(der)[12:52] // of SEC 1: what follows the header, and before the public key
	for _, kept := range []string{err.Error(), string(text)} {
		for i := range len(secret) - 8 {
			if strings.Contains(kept, secret[i:i+8]) {
				t.Fatalf("private key material was kept: %v\n%s", err, text)
			}
		}
	}
}

// An event may cut any prompt at any place.
func TestTICSREventsAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for at := range 36 {
			b := newCSRBoard()
			b.Event, b.EventIn, b.EventAt = csrEvent, fixtures.InPrompt, at
			mustRead(t, uart.TICSR{}, b)
			b = newCSRBoard()
			b.Event, b.EventAt = csrEvent, at
			mustRead(t, uart.TICSR{}, b)
			b = newCSRBoard()
			b.Event, b.EventIn, b.EventAt = csrEvent, fixtures.InAnswer, 2*at
			mustRead(t, uart.TICSR{}, b)
		}
	})
}

// A board whose start nobody heard is told from an empty slot, and is read once
// it is reset.
func TestTICSRStartMissedNeedsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		b := newCSRBoard()
		b.Quiet, b.Boot = true, 0
		ctx, remove := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- b.Serve(ctx, theirs) }()
		l := uart.NewLine(ours, uart.LineOptions{})
		d := uart.TICSR{}
		if err := d.Detect(t.Context(), l); !errors.Is(err, uart.ErrNeedsReset) {
			t.Fatalf("Detect: %v, want %v", err, uart.ErrNeedsReset)
		}
		if typed := b.Typed(); len(typed) > 0 {
			t.Errorf("typed %q", typed)
		}
		gone := make(chan error, 1)
		go func() { gone <- d.Gone(t.Context(), l) }()
		time.Sleep(10 * time.Second)
		select {
		case err := <-gone:
			t.Fatalf("Gone while the board is there: %v", err)
		default:
		}
		remove() // the reset button
		<-served
		ctx, remove = context.WithCancel(t.Context())
		b.Quiet, b.Boot = false, 300*time.Millisecond
		go func() { served <- b.Serve(ctx, theirs) }()
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		if err := d.Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		report, err := d.Read(t.Context(), l)
		if err != nil || report.Device != b.Device {
			t.Fatalf("after the reset: %v", err)
		}
		remove()
		<-served
	})
}

// An empty slot stays empty; a board that comes is read, whatever was typed at
// it while it started; one that is taken away is gone.
func TestTICSRDetectAndGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		l := uart.NewLine(ours, uart.LineOptions{})
		stop := swallow(theirs)
		d := uart.TICSR{}
		detected := make(chan error, 1)
		go func() { detected <- d.Detect(t.Context(), l) }()
		time.Sleep(10 * time.Second)
		select {
		case err := <-detected:
			t.Fatalf("Detect on an empty slot: %v", err)
		default:
		}
		stop()
		b := newCSRBoard()
		b.Boot = 5 * time.Second // meanwhile letters are typed at it
		ctx, remove := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- b.Serve(ctx, theirs) }()
		if err := <-detected; err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if typed := b.Typed(); len(typed) != 11 || !strings.HasPrefix(typed[0], "x") || typed[1] != "3650" || typed[9] != "" {
			t.Errorf("typed %q", typed)
		}
		gone := make(chan error, 1)
		go func() { gone <- d.Gone(t.Context(), l) }()
		time.Sleep(10 * time.Minute)
		select {
		case err := <-gone:
			t.Fatalf("Gone while the board is there: %v", err)
		default:
		}
		if typed := b.Typed(); len(typed) != 11 {
			t.Errorf("typed after the end: %q", typed[11:])
		}
		remove()
		<-served
		stop = swallow(theirs)
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		stop()
	})
}

// swallow is a slot without a board.
func swallow(c net.Conn) (stop func()) {
	c.SetDeadline(time.Time{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 64); ; {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	}()
	return func() {
		c.SetDeadline(time.Unix(1, 0))
		<-done
		c.SetDeadline(time.Time{})
	}
}

// A firmware that fell silent is not taken for an empty slot, and the next
// board is read whole.
func TestTICSRSilentBoardIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		l := uart.NewLine(ours, uart.LineOptions{})
		d := uart.TICSR{}
		b := newCSRBoard()
		b.RefuseKey0 = -12290
		ctx, remove := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- b.Serve(ctx, theirs) }()
		if err := d.Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read(t.Context(), l); !errors.Is(err, uart.ErrNoProof) {
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
		remove()
		<-served
		b = newCSRBoard()
		ctx, remove = context.WithCancel(t.Context())
		go func() { served <- b.Serve(ctx, theirs) }()
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		if err := d.Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if report, err := d.Read(t.Context(), l); err != nil || report.Device != b.Device {
			t.Fatal(err)
		}
		remove()
		<-served
	})
}

// After a board that leaked its key the line is usable again, whether that
// board was seen to go or fell silent.
func TestTICSRReadsNextBoardAfterLeak(t *testing.T) {
	for _, dialect := range []string{"ti-csr", "auto"} {
		for _, silent := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer ours.Close()
				defer theirs.Close()
				l := uart.NewLine(ours, uart.LineOptions{})
				d := mustDialect(t, dialect)
				b := newCSRBoard()
				b.Leak = "request"
				remove := serve(t, b, theirs)
				if err := d.Detect(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				if _, err := d.Read(t.Context(), l); !errors.Is(err, uart.ErrPrivateKey) {
					t.Fatal(err)
				}
				stop := func() {}
				if silent { // from now on
					remove()
					stop = swallow(theirs)
				}
				gone := make(chan error, 1)
				go func() { gone <- d.Gone(t.Context(), l) }()
				time.Sleep(10 * time.Second)
				if !silent {
					remove()
					stop = swallow(theirs)
					if err := <-gone; err != nil {
						t.Fatal(err)
					}
				}
				stop()
				b = newCSRBoard()
				b.Boot = 2 * time.Second
				remove = serve(t, b, theirs)
				if silent {
					if err := <-gone; err != nil {
						t.Fatal(err)
					}
				}
				if err := d.Detect(t.Context(), l); err != nil {
					t.Fatalf("%s, silent %t: Detect: %v", dialect, silent, err)
				}
				if report, err := d.Read(t.Context(), l); err != nil || report.Device != b.Device {
					t.Fatalf("%s, silent %t: Read: %v", dialect, silent, err)
				}
				remove()
			})
		}
	}
}

// More of a key after a long silence is not taken for another board's words:
// only a start is.
func TestTICSRLongLeakStaysSuppressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		defer swallow(theirs)()
		l := uart.NewLine(ours, uart.LineOptions{})
		d := uart.TICSR{}
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
		time.Sleep(time.Minute)
		say("BBBB\r\n")
		time.Sleep(time.Second)
		say("CCCC\r\n-----END EC PRIVATE")
		time.Sleep(time.Second)
		say(" KEY-----\r\n\r\nUnique device ID = ")
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		text, err := l.Transcript().Encode()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "BBBB") || strings.Contains(string(text), "CCCC") || !strings.Contains(string(text), "Unique device ID = ") {
			t.Errorf("kept:\n%s", text)
		}
	})
}
