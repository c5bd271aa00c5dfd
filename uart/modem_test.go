package uart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creack/pty"
	"go.bug.st/serial"
	"golang.org/x/sys/unix"
)

func TestParseSequence(t *testing.T) {
	for text, want := range map[string]struct {
		length   time.Duration
		dtr, rts Level
	}{
		"rts=on 100ms rts=off":                    {100 * time.Millisecond, "", LevelOff},
		"dtr=off rts=on 0.1s dtr=on 50ms rts=off": {150 * time.Millisecond, LevelOn, LevelOff},
		"break":                  {defaultBreak, "", ""},
		"break=1s 1s break=20ms": {2020 * time.Millisecond, "", ""},
		"dtr=on 5s dtr=off":      {maxSequence, LevelOff, ""},
		strings.Repeat("rts=on rts=off ", 15) + "break": {defaultBreak, "", LevelOff},
	} {
		s, err := ParseSequence(strings.Fields(text))
		if err != nil || s.Length() != want.length || s.end("dtr") != want.dtr || s.end("rts") != want.rts || s.IsZero() {
			t.Errorf("%s: %+v of %v, %v", text, s, s.Length(), err)
		}
		if s.String() != strings.TrimSpace(text) {
			t.Errorf("%s is written as %s", text, s)
		}
		if s.MovesLines() != (want.dtr != "" || want.rts != "") {
			t.Errorf("%s: MovesLines is %v", text, s.MovesLines())
		}
	}
	if s, err := ParseSequence(nil); err != nil || !s.IsZero() || s.String() != "" {
		t.Errorf("no words: %+v, %v", s, err)
	}
	for _, bad := range []string{
		"rts", "rts=", "rts=1", "rts=ON", "RTS=on", "cts=on", "=on", "on", "100", "-1ms", "0s", "1x",
		"break=", "break=0s", "break=1001ms", "break=on", "100ms", "2s rts=on 2s rts=off 1001ms", "rts=on 9999999h",
		strings.Repeat("rts=on ", maxSteps+1),
	} {
		if s, err := ParseSequence(strings.Fields(bad)); err == nil {
			t.Errorf("%q is read as %+v", bad, s)
		}
	}
	if s, err := ParseSequence([]string{""}); err == nil {
		t.Errorf("an empty word is read as %+v", s)
	}
}

func FuzzParseSequence(f *testing.F) {
	for _, seed := range []string{"rts=on 100ms rts=off", "break", "break=1s 5s", "1e9h dtr=on", "dtr=off=on"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSequence(strings.Fields(text))
		if err != nil {
			return
		}
		if l := s.Length(); l < 0 || l > maxSequence {
			t.Errorf("%q lasts %v", text, l)
		}
		again, err := ParseSequence(strings.Fields(s.String()))
		if err != nil || !slices.Equal(again.steps, s.steps) {
			t.Errorf("%q is written as %q, which is read as %+v, %v", text, s, again, err)
		}
	})
}

func TestParsePresence(t *testing.T) {
	for text, closed := range map[string][]Modem{
		"cts": {{CTS: true}, {CTS: true, DSR: true}}, "dsr": {{DSR: true}}, "dcd": {{DCD: true}},
		"!cts": {{}, {DSR: true, DCD: true}}, "!dsr": {{CTS: true}}, "!dcd": {{CTS: true, DSR: true}},
	} {
		p, err := ParsePresence(text)
		if err != nil || p.String() != text || p.IsZero() {
			t.Errorf("%s: %v, %v", text, p, err)
		}
		for _, m := range closed {
			inverse := Modem{CTS: !m.CTS, DSR: !m.DSR, DCD: !m.DCD}
			if !p.In(m) || p.In(inverse) {
				t.Errorf("%s: closed is %v with %+v, and %v with %+v", text, p.In(m), m, p.In(inverse), inverse)
			}
		}
	}
	if p, err := ParsePresence(""); err != nil || !p.IsZero() || p.String() != "" {
		t.Errorf("no input: %v, %v", p, err)
	}
	for _, bad := range []string{"ri", "CTS", "!", "!!cts", "cts ", "rts"} {
		if p, err := ParsePresence(bad); err == nil {
			t.Errorf("%q is read as %v", bad, p)
		}
	}
}

func TestParseLevel(t *testing.T) {
	for _, good := range []Level{"", LevelOn, LevelOff, LevelKeep} {
		if l, err := ParseLevel(string(good)); err != nil || l != good {
			t.Errorf("%q: %q, %v", good, l, err)
		}
	}
	for _, bad := range []string{"ON", "1", "true", "keep "} {
		if l, err := ParseLevel(bad); err == nil {
			t.Errorf("%q is read as %q", bad, l)
		}
	}
}

func sequence(t *testing.T, text string) Sequence {
	t.Helper()
	s, err := ParseSequence(strings.Fields(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func presence(t *testing.T, text string) Presence {
	t.Helper()
	p, err := ParsePresence(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What the library is asked for at the open, and what the kernel is to do at
// the close.
func TestPortConfigMode(t *testing.T) {
	const dtr, rts = unix.TIOCM_DTR, unix.TIOCM_RTS
	bits := func(d, r bool) *serial.ModemOutputBits { return &serial.ModemOutputBits{DTR: d, RTS: r} }
	for name, c := range map[string]struct {
		config    PortConfig
		now       int // the lines after the kernel's open
		want      *serial.ModemOutputBits
		drop, set bool
	}{
		"nothing":                 {PortConfig{}, dtr | rts, nil, false, false},
		"both off":                {PortConfig{DTR: LevelOff, RTS: LevelOff}, dtr | rts, bits(false, false), true, true},
		"both on":                 {PortConfig{DTR: LevelOn, RTS: LevelOn}, 0, bits(true, true), true, true},
		"one off":                 {PortConfig{RTS: LevelOff}, dtr | rts, bits(true, false), true, true},
		"one off, the other down": {PortConfig{RTS: LevelOff}, rts, bits(false, false), true, true},
		"keep both":               {PortConfig{DTR: LevelKeep, RTS: LevelKeep}, dtr | rts, nil, false, true},
		"keep one":                {PortConfig{DTR: LevelKeep, RTS: LevelOff}, dtr | rts, bits(true, false), false, true},
		"a reset":                 {PortConfig{Reset: sequence(t, "rts=on 1ms rts=off")}, dtr | rts, bits(true, false), true, true},
		"a reset and a level":     {PortConfig{DTR: LevelOff, Reset: sequence(t, "rts=on 1ms rts=off")}, dtr | rts, bits(false, false), true, true},
		"a reset, kept":           {PortConfig{RTS: LevelKeep, Reset: sequence(t, "rts=on 1ms rts=off")}, dtr | rts, nil, false, true},
		"a break":                 {PortConfig{Reset: sequence(t, "break")}, dtr | rts, nil, false, false},
		"presence":                {PortConfig{Present: presence(t, "cts")}, dtr | rts, nil, false, false},
	} {
		mode, err := c.config.mode(func() (int, error) { return c.now, nil })
		if err != nil || mode.BaudRate != baudRate {
			t.Errorf("%s: %+v, %v", name, mode, err)
			continue
		}
		if got := mode.InitialStatusBits; (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: the library is asked for %+v, want %+v", name, got, c.want)
		}
		if drop, set := c.config.dropsAtClose(); drop != c.drop || set != c.set {
			t.Errorf("%s: at the close %v, %v", name, drop, set)
		}
		_, err = c.config.mode(func() (int, error) { return 0, os.NewSyscallError("TIOCMGET", unix.ENOTTY) })
		if needs := name != "nothing" && name != "a break" && name != "keep both"; errors.Is(err, ErrNoLines) != needs || !needs && err != nil {
			t.Errorf("%s, without modem lines: %v", name, err)
		}
		_, err = c.config.mode(func() (int, error) { return 0, os.NewSyscallError("TIOCMGET", unix.EIO) })
		if err != nil && (!errors.Is(err, syscall.EIO) || errors.Is(err, ErrNoLines)) {
			t.Errorf("%s, dead: %v", name, err)
		}
	}
}

func TestPortConfigCheck(t *testing.T) {
	reset := sequence(t, "rts=on 1ms rts=off")
	for _, good := range []PortConfig{{}, {Reset: reset}, {Reset: reset, RTS: LevelOff}, {Reset: reset, RTS: LevelKeep}, {Reset: reset, DTR: LevelOn}} {
		if err := good.Check(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []PortConfig{{Reset: reset, RTS: LevelOn}, {Reset: sequence(t, "dtr=off 1ms dtr=on"), DTR: LevelOff}} {
		if bad.Check() == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}

// fakeDevice is the library's port, with modem lines and nothing to read.
type fakeDevice struct {
	serial.Port
	start   time.Time
	done    []string
	refuses error
	modem   serial.ModemStatusBits
	// breaking, if not nil, is called in place of the time that a break takes.
	breaking func()
}

// order is what was done, without the times.
func (f *fakeDevice) order() (all []string) {
	for _, what := range f.done {
		_, what, _ = strings.Cut(what, " ")
		all = append(all, what)
	}
	return all
}

func (f *fakeDevice) note(format string, args ...any) error {
	f.done = append(f.done, fmt.Sprintf("%v ", time.Since(f.start))+fmt.Sprintf(format, args...))
	return f.refuses
}
func (f *fakeDevice) SetDTR(on bool) error { return f.note("dtr %v", on) }
func (f *fakeDevice) SetRTS(on bool) error { return f.note("rts %v", on) }
func (f *fakeDevice) Close() error         { return f.note("close") }

func (f *fakeDevice) Break(d time.Duration) error {
	err := f.note("break %v", d)
	if f.breaking != nil {
		f.breaking()
		return f.note("break ends")
	}
	time.Sleep(d)
	return err
}

func (f *fakeDevice) GetModemStatusBits() (*serial.ModemStatusBits, error) {
	return &f.modem, f.refuses
}

// fakePort is a port on a fake device, as Open makes one, without its reader.
func fakePort() (*port, *fakeDevice) {
	dev := &fakeDevice{start: time.Now()}
	done := make(chan struct{})
	close(done)
	return &port{path: "/dev/fake", dev: dev, lock: &portLock{fd: -1}, changed: make(chan struct{}), closing: make(chan struct{}), done: done}, dev
}

func TestSequenceRun(t *testing.T) {
	for text, want := range map[string][]string{
		"rts=on 100ms rts=off":                  {"0s rts true", "100ms rts false"},
		"dtr=off rts=on 1s dtr=on 20ms rts=off": {"0s dtr false", "0s rts true", "1s dtr true", "1.02s rts false"},
		"break=300ms rts=off":                   {"0s break 300ms", "300ms rts false"},
		"rts=on break rts=off":                  {"0s rts true", "0s break 250ms", "250ms rts false"},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, dev := fakePort()
			if err := sequence(t, text).Run(t.Context(), p); err != nil || !slices.Equal(dev.done, want) {
				t.Errorf("%s: %q, %v, want %q", text, dev.done, err, want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		p, dev := fakePort()
		stop := errors.New("stop")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, stop)
		defer cancel()
		err := sequence(t, "rts=on 100ms dtr=on 1s break dtr=off rts=off").Run(ctx, p)
		if want := []string{"0s rts true", "50ms dtr true", "50ms dtr false", "50ms rts false"}; !errors.Is(err, stop) || !slices.Equal(dev.done, want) {
			t.Errorf("cut short: %q, %v, want %q", dev.done, err, want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p, dev := fakePort()
		dev.refuses = unix.EIO
		err := sequence(t, "rts=on 100ms rts=off").Run(t.Context(), p)
		if want := []string{"0s rts true", "0s rts false"}; !errors.Is(err, ErrUnplugged) || !slices.Equal(dev.done, want) {
			t.Errorf("of a lost port: %q, %v, want %q", dev.done, err, want)
		}
		if _, err := p.Modem(); !errors.Is(err, ErrUnplugged) {
			t.Errorf("Modem of a lost port: %v", err)
		}
	})
}

// Close waits for a break, and after it no line is moved: the descriptor may
// belong to another file.
func TestModemLinesOfClosedPort(t *testing.T) {
	p, dev := fakePort()
	dev.modem = serial.ModemStatusBits{CTS: true, DCD: true}
	if m, err := p.Modem(); err != nil || m != (Modem{CTS: true, DCD: true}) {
		t.Errorf("Modem: %+v, %v", m, err)
	}
	breaking, finish := make(chan struct{}), make(chan struct{})
	dev.breaking = func() { close(breaking); <-finish }
	ended, closed := make(chan error, 1), make(chan error, 1)
	go func() { ended <- p.Break(time.Second) }()
	<-breaking
	go func() { closed <- p.Close() }()
	for !p.isClosing() {
		runtime.Gosched()
	}
	close(finish)
	if err := errors.Join(<-ended, <-closed); err != nil {
		t.Error(err)
	}
	_, err := p.Modem()
	for _, err := range []error{err, p.SetDTR(true), p.SetRTS(true), p.Break(time.Second)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v, want %v", err, os.ErrClosed)
		}
	}
	if want := []string{"break 1s", "break ends", "close"}; !slices.Equal(dev.order(), want) {
		t.Errorf("the device saw %q, want %q", dev.order(), want)
	}
}

// A pseudo-terminal has no modem lines: settings that need them are refused
// with a name, all others work.
func TestPseudoTerminalHasNoLines(t *testing.T) {
	_, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	for _, c := range []PortConfig{{DTR: LevelOff}, {RTS: LevelOn}, {Reset: sequence(t, "rts=on rts=off")}, {Present: presence(t, "cts")}} {
		c.Address = tty.Name()
		_, err := c.Open(t.Context())
		var refused *OpenError
		if !errors.Is(err, ErrNoLines) || !errors.As(err, &refused) || refused.Kind != ErrNoLines {
			t.Errorf("%+v: %v, want %v", c, err, ErrNoLines)
		}
	}
	conn, err := PortConfig{Address: tty.Name(), DTR: LevelKeep, Reset: sequence(t, "break=1ms")}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	settings, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || settings.Cflag&unix.HUPCL != 0 {
		t.Errorf("the outputs are kept, and the kernel is to drop them at the close: %+v, %v", settings, err)
	}
	if err := sequence(t, "break=1ms").Run(t.Context(), conn.(Outputs)); err != nil {
		t.Errorf("a break: %v", err)
	}
}

// A name with no device behind it is told apart from a name that is not there.
func TestOpenErrorOfDeadPort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	for _, cause := range []error{unix.EIO, unix.ENODEV, unix.ENXIO} {
		if err := explainOpen(path, os.NewSyscallError("open", cause)); !errors.Is(err, ErrAbsent) || errors.Is(err, ErrDead) || err.Kind != ErrAbsent {
			t.Errorf("%v without a name: %v", cause, err)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cause := range []error{unix.EIO, unix.ENODEV, unix.ENXIO} {
		if err := explainOpen(path, os.NewSyscallError("open", cause)); !errors.Is(err, ErrAbsent) || !errors.Is(err, ErrDead) || !errors.Is(err, cause) || err.Kind != ErrAbsent {
			t.Errorf("%v with a name: %v", cause, err)
		}
	}
	if _, err := Open(t.Context(), path); !errors.Is(err, ErrNotAPort) || errors.Is(err, ErrDead) {
		t.Errorf("a file: %v, want %v", err, ErrNotAPort)
	}
}

// A driver that loads later: the port is opened when its name appears.
func TestWaitReturnsForDeadPort(t *testing.T) {
	if _, err := os.Stat("/dev/tty"); err != nil {
		t.Skip("there is no /dev/tty")
	}
	if f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		f.Close()
		t.Skip("this process has a terminal")
	}
	// Without a terminal, /dev/tty answers ENXIO.
	if _, err := Wait(t.Context(), "/dev/tty"); !errors.Is(err, ErrDead) {
		t.Errorf("Wait for a dead port: %v, want %v", err, ErrDead)
	}
}

// A device filter answers EPERM, and no group helps then; a mode answers
// EACCES.
func TestOpenErrorNamesDeviceFilter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o660); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	for cause, want := range map[syscall.Errno]bool{syscall.EPERM: true, syscall.EACCES: false} {
		err := explainOpen(path, os.NewSyscallError("open", cause))
		if !errors.Is(err, ErrPermission) || (err.Change == filtered) != want || (err.Group == "") != want {
			t.Errorf("%v: %+v", cause, err)
		}
	}
}

// The node behind a name is another one after the port was plugged in anew,
// also behind a link, and none while the port is not there.
func TestNode(t *testing.T) {
	name, link := filepath.Join(t.TempDir(), "port"), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	port := PortConfig{Address: link}
	if node := port.Node(); node != "" {
		t.Errorf("a port that is not there: %q", node)
	}
	seen := map[string]bool{"": true}
	for range 3 {
		old := name + ".old"
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		node := port.Node()
		if seen[node] || port.Node() != node {
			t.Errorf("plugged in anew: %q then %q, after %v", node, port.Node(), seen)
		}
		seen[node] = true
		if err := os.Rename(name, old); err != nil {
			t.Fatal(err)
		}
		if node := port.Node(); node != "" {
			t.Errorf("unplugged: %q", node)
		}
	}
	if node := (PortConfig{Address: "auto:ffff:ffff"}).Node(); node != "" {
		t.Errorf("no such probe: %q", node)
	}
}
