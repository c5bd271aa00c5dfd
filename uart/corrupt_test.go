package uart_test

import (
	"bytes"
	"context"
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

var corruptSeed = flag.Uint64("corruptseed", 0, "the seed of TestCorruption and TestTICSRDamagedDigitFails; 0 takes one at random")

// corruptRandom is what a test draws from; it says with which seed.
func corruptRandom(t *testing.T) *rand.Rand {
	seed := *corruptSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-corruptseed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

var exhaustive = flag.Bool("exhaustive", false, "corrupt a dialogue at every byte, not at one of a few")

// noisy is a line that spoils one byte of what the board says.
type noisy struct {
	uart.Conn
	at   int // from 0
	kind string
	with byte
	read int
	held []byte
	all  []byte // what the board said, unspoiled
}

func (n *noisy) Read(p []byte) (int, error) {
	if len(n.held) > 0 {
		k := copy(p, n.held)
		n.held = n.held[k:]
		return k, nil
	}
	k, err := n.Conn.Read(p)
	b := bytes.Clone(p[:k])
	n.all = append(n.all, b...)
	if at := n.at - n.read; at >= 0 && at < k {
		switch n.kind {
		case "flip":
			b[at] ^= n.with
		case "drop":
			b = append(b[:at], b[at+1:]...)
		case "insert":
			b = append(b[:at:at], append([]byte{n.with}, b[at:]...)...)
		}
	}
	n.read += k
	if len(b) == 0 && err == nil {
		return n.Read(p)
	}
	k = copy(p, b)
	n.held = b[k:]
	return k, err
}

// A byte that is flipped, lost or added anywhere in a good dialogue costs at
// most the reading: what is read, if anything is, is the true identity.
func TestCorruption(t *testing.T) {
	for name, change := range map[string]func(b *fixtures.Board){
		"ti-at 1.1.2": func(b *fixtures.Board) {}, "ti-at 1.1.1": func(b *fixtures.Board) { b.Build, b.PromptCut = fixtures.Build111, 5 },
		"ti-at text-mode": func(b *fixtures.Board) { b.Build, b.Key1 = fixtures.BuildTextMode, fixtures.NewKey() },
		"ti-csr":          func(b *fixtures.Board) { b.Dialect, b.Quiet = fixtures.DialectCSR, false },
		"report":          func(b *fixtures.Board) { b.Dialect = fixtures.DialectReport },
		"auto":            func(b *fixtures.Board) {},
	} {
		t.Run(name, func(t *testing.T) {
			dialect, _, _ := strings.Cut(name, " ")
			try := func(t *testing.T, at int, kind string, with byte) (passed bool, said []byte) {
				b := newBoard()
				b.Quiet, b.Boot, b.Think, b.Sign = true, 0, time.Millisecond, 0
				change(b)
				ours, theirs := net.Pipe()
				ctx, cancel := context.WithCancel(context.Background())
				served := make(chan error, 1)
				go func() { served <- b.Serve(ctx, theirs) }()
				defer func() {
					ours.Close()
					cancel()
					<-served
					theirs.Close()
				}()
				line := &noisy{Conn: ours, at: at, kind: kind, with: with}
				l := uart.NewLine(line, uart.LineOptions{})
				limited, stop := context.WithTimeoutCause(t.Context(), 2*time.Minute, errors.New("not seen"))
				defer stop()
				d := mustDialect(t, dialect)
				err := d.Detect(limited, l)
				var report uart.Report
				if err == nil {
					report, err = d.Read(limited, l)
				}
				if err != nil {
					return false, line.all
				}
				if string(report.SPKI) != string(b.SPKI()) {
					t.Errorf("%s %#x at byte %d: another key", kind, with, at)
				}
				if report.Device != b.Device {
					t.Errorf("%s %#x at byte %d: another serial number", kind, with, at)
				}
				proven(t, report)
				return true, line.all
			}
			synctest.Test(t, func(t *testing.T) {
				passed, said := try(t, -1, "", 0)
				if !passed || len(said) < 400 {
					t.Fatalf("the good dialogue fails: %d bytes", len(said))
				}
				step := 41
				if *exhaustive {
					step = 1
				}
				random := corruptRandom(t)
				harmless, again, harmful := 0, 0, 0
				for at := random.IntN(step); at < len(said); at += step {
					for _, kind := range []string{"flip", "drop", "insert"} {
						with := byte(1) << random.IntN(8)
						if kind == "insert" {
							with = []byte("0a,x:\r\n\x00\x80 +=OK")[random.IntN(14)]
						}
						switch passed, more := try(t, at, kind, with); {
						case !passed:
							harmful++
						case len(more) > len(said)+100:
							again++
						default:
							harmless++
						}
					}
				}
				// Otherwise nothing was spoiled, or everything.
				if harmless == 0 || again+harmful == 0 {
					t.Errorf("%d dialogues passed, %d more at the second try, %d failed", harmless, again, harmful)
				}
				t.Logf("%d bytes; %d dialogues passed, %d more at the second try, %d failed", len(said), harmless, again, harmful)
			})
		})
	}
}

// Another digit anywhere in the serial number that TI's CSR example prints at
// its start is seen: what it prints as the default for the common name is text
// of other digits then, in each of its forms.
func TestTICSRDamagedDigitFails(t *testing.T) {
	for _, form := range []string{fixtures.NameShort, fixtures.NameJoined, fixtures.NamePadded} {
		synctest.Test(t, func(t *testing.T) {
			random := corruptRandom(t)
			for range 8 {
				b := newCSRBoard()
				b.Boot, b.Think, b.Sign, b.DefaultName = 0, 0, 0, form
				for i := range b.Device {
					b.Device[i] >>= 4 * random.IntN(2) // half of the bytes have one digit
				}
				i, bit := random.IntN(16), byte(1)<<random.IntN(8)
				told := b.Device
				told[i] ^= bit
				b.Serials = [][16]byte{told, b.Device}
				ours, theirs := net.Pipe()
				remove := serve(t, b, theirs)
				l := uart.NewLine(ours, uart.LineOptions{})
				if err := (uart.TICSR{}).Detect(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				if report, err := (uart.TICSR{}).Read(t.Context(), l); !errors.Is(err, uart.ErrGarbled) || !strings.Contains(err.Error(), "another serial number") {
					t.Errorf("told %x, then %x: read %x, %v", told, b.Device, report.Device, err)
				}
				remove()
				ours.Close()
				theirs.Close()
			}
		})
	}
}
