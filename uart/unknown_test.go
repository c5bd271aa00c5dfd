package uart_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

const (
	noticedIn = 3 * time.Second // something is connected
	decidedIn = 10 * time.Second
)

// attach puts a device on a line until it is removed.
func attach(s fixtures.OtherDevice, c net.Conn) (remove func()) {
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(ctx, c)
	}()
	return func() {
		cancel()
		<-served
	}
}

// Whatever talks is noticed in noticedIn and named in decidedIn, stays while it
// is there, and does not harm the board that follows.
func TestUnknownDevices(t *testing.T) {
	for i, device := range fixtures.OtherDevices() {
		for j, dialect := range []string{"auto", "auto/ti-at", "auto/ti-csr", "auto/report", "ti-at", "ti-csr", "report"} {
			if testing.Short() && dialect != "auto" && (i+j)%3 != 0 {
				continue
			}
			// A whole line may end the firmware of the CSR example, so ti-csr
			// sends none.
			if device.Name == "modem" && dialect == "ti-csr" {
				continue
			}
			t.Run(device.Name+"/"+dialect, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ours, theirs := net.Pipe()
					defer ours.Close()
					defer theirs.Close()
					start, noticed := time.Now(), time.Duration(-1)
					l := uart.NewLine(ours, uart.LineOptions{Heard: func() { noticed = time.Since(start) }})
					d := mustDialect(t, dialect)
					remove := attach(device, theirs)
					err := d.Detect(t.Context(), l)
					took := time.Since(start)
					var unknown *uart.UnknownError
					// The CSR example echoes as well, and has nothing else to
					// say when it is met late.
					late := dialect == "ti-csr" && errors.Is(err, uart.ErrNeedsReset) && device.Answers != nil && device.Start == ""
					if !late && !errors.As(err, &unknown) {
						t.Fatalf("Detect: %v after %v", err, took)
					}
					if device.Name == "modem" && noticed > 0 && noticed < 8*time.Second { // it is asked for a line now and then
						took, noticed = took-noticed, 0
					}
					if noticed < 0 || noticed > noticedIn || took > decidedIn {
						t.Errorf("noticed after %v, decided after %v", noticed, took)
					}
					if late {
						return
					}
					want := uart.ErrNoDialect
					if device.Heard == uart.HeardWrongSpeed {
						want = uart.ErrWrongSpeed
					}
					if !errors.Is(err, want) {
						t.Errorf("Detect: %v, want %v", err, want)
					}
					if silent := device.Every == 0 && device.Answers == nil; unknown.Silent != silent && unknown.Heard != uart.HeardLogin && device.Name != "modem" {
						t.Errorf("it fell silent: %t, want %t", unknown.Silent, silent)
					}
					login := unknown.Heard == uart.HeardText && device.Heard == uart.HeardLogin && d.Name() == "report" // it sees no question
					if unknown.Heard != device.Heard && !login {
						t.Errorf("heard %q, want %q", unknown.Heard, device.Heard)
					}
					gone := make(chan error, 1)
					go func() { gone <- d.Gone(t.Context(), l) }()
					time.Sleep(time.Minute)
					select {
					case err := <-gone:
						t.Fatalf("Gone while it is there: %v", err)
					default:
					}
					remove()
					b := newBoard()
					if fixed, ok := map[string]string{"ti-csr": fixtures.DialectCSR, "report": fixtures.DialectReport}[dialect]; ok {
						b.Dialect = fixed
					}
					stop := swallow(theirs)
					time.Sleep(20 * time.Second)
					stop()
					unplug := serve(t, b, theirs)
					defer unplug()
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if err := <-gone; err != nil {
						t.Fatalf("Gone: %v", err)
					}
					if err := d.Detect(ctx, l); err != nil {
						t.Fatalf("the next board: Detect: %v", err)
					}
					if report, err := d.Read(ctx, l); err != nil || report.Device != b.Device {
						t.Fatalf("the next board: Read: %v", err)
					}
				})
			})
		}
	}
}

// Any bytes at all, at any time, are noticed when they come and named in time.
func TestUnknownDevicesProperty(t *testing.T) {
	n := 150
	if testing.Short() {
		n = 30
	}
	for seed := range uint64(n) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			ours, theirs := net.Pipe()
			defer ours.Close()
			defer theirs.Close()
			start, noticed := time.Now(), time.Time{}
			l := uart.NewLine(ours, uart.LineOptions{Heard: func() { noticed = time.Now() }})
			dialect := []string{"auto", "ti-at", "ti-csr", "report"}[r.IntN(4)]
			d := mustDialect(t, dialect)
			alphabet := []string{"", "0123456789abcdef,:+ \r\n", "OKERROR+get:,0x1\r\n", "\x00\xcc", "login: \r\n", "secretfree 1 ready\r\n"}[r.IntN(6)]
			pieces, pause := 1+r.IntN(400), time.Duration(r.IntN(3000))*time.Millisecond
			var first time.Time
			done := make(chan struct{})
			go func() {
				defer close(done)
				time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
				first = time.Now()
				for range pieces {
					b := make([]byte, 1+r.IntN(100))
					for i := range b {
						if b[i] = byte(r.Uint32()); alphabet != "" {
							b[i] = alphabet[r.IntN(len(alphabet))]
						}
					}
					if _, err := theirs.Write(b); err != nil {
						return
					}
					time.Sleep(time.Duration(r.Float64() * float64(pause)))
				}
			}()
			go func() {
				for buf := make([]byte, 256); ; {
					if _, err := theirs.Read(buf); err != nil {
						return
					}
				}
			}()
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("no verdict"))
			defer cancel()
			err := d.Detect(ctx, l)
			took := time.Since(first)
			ours.Close()
			theirs.Close()
			<-done
			if ctx.Err() != nil { // some of it is what a board says, and is read
				t.Fatalf("seed %d, %s: Detect: %v after %v", seed, dialect, err, time.Since(start))
			}
			if noticed.IsZero() || noticed.Sub(first) > noticedIn || took > decidedIn {
				t.Errorf("seed %d, %s: noticed after %v, decided after %v: %v", seed, dialect, noticed.Sub(first), took, err)
			}
		})
	}
}
