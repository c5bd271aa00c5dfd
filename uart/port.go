package uart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"
)

const (
	// baudRate: device.md's boards speak 115200 8N1, no flow control.
	baudRate = 115200
	// readSlice bounds one read of the library. Its Close closes the descriptor
	// before it wakes a pending Read, which may then read from whatever file
	// got the number; so the reader is let to end by itself before the port is
	// closed. Waking twice a second costs next to nothing.
	readSlice = 500 * time.Millisecond
	// waitForPort is how often a port that is not there is looked for.
	waitForPort = 250 * time.Millisecond
	// maxUnread stops reading from the port until somebody takes what is there.
	maxUnread = 64 << 10
	// writeLimit is how long a port may take no byte. A command is a few
	// milliseconds on the wire, and the kernel has room for many, so only a
	// port that is stuck takes so long.
	writeLimit = 3 * time.Second
	// writeSlice bounds one wait for room, so that Close ends a Write.
	writeSlice = 20 * time.Millisecond
)

// port is the one wrapper of the serial library. A goroutine reads the device,
// so that a Read can have a deadline that somebody else may change.
type port struct {
	path string
	dev  serial.Port
	lock *portLock

	mu       sync.Mutex
	unread   []byte
	err      error // why there will be no more bytes
	deadline time.Time
	changed  chan struct{} // closed and replaced when anything above changes

	writing   sync.Mutex // held by Write and the modem lines; Close closes the device when they have ended
	stuck     bool       // a Write did not get rid of its bytes; guarded by writing
	closing   chan struct{}
	closeOnce sync.Once
	closeErr  error
	done      chan struct{} // the reader has ended
}

// Open opens a serial port exclusively, at 115200 8N1, and leaves the modem
// lines to the kernel. It is PortConfig.Open of an address alone.
func Open(ctx context.Context, address string) (Conn, error) {
	return PortConfig{Address: address}.Open(ctx)
}

// Open opens the serial port exclusively, at 115200 8N1, with the modem outputs
// at their levels before the first byte. A path may be a symbolic link, as
// under /dev/serial. The Conn has the methods of Outputs, and Modem. An error
// is an *OpenError, unless the context has ended.
func (c PortConfig) Open(ctx context.Context) (Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	path, err := defaultPaths().resolve(c.Address)
	if err != nil {
		return nil, explainOpen(c.Address, err)
	}
	lock, err := lockPort(path)
	if err != nil {
		return nil, explainOpen(path, err)
	}
	dev, err := c.openLocked(path, lock)
	if err != nil {
		lock.release()
		return nil, explainOpen(path, err)
	}
	p := &port{path: path, dev: dev, lock: lock, changed: make(chan struct{}), closing: make(chan struct{}), done: make(chan struct{})}
	go p.read()
	return p, nil
}

func (c PortConfig) openLocked(path string, lock *portLock) (serial.Port, error) {
	if err := lock.silence(); err != nil { // the library's error has no cause
		return nil, err
	}
	mode, err := c.mode(lock.modemBits)
	if err != nil {
		return nil, err
	}
	dev, err := serial.Open(path, mode)
	if err != nil {
		return nil, err
	}
	if drop, set := c.dropsAtClose(); set {
		if err := lock.setHangUp(drop); err != nil {
			dev.Close()
			return nil, err
		}
	}
	return dev, nil
}

// mode is what the library is asked for. It sets both outputs or neither, so an
// output without a level of its own is set to what it is: bits reads that.
func (c PortConfig) mode(bits func() (int, error)) (*serial.Mode, error) {
	mode := &serial.Mode{BaudRate: baudRate, DataBits: 8, Parity: serial.NoParity, StopBits: serial.OneStopBit}
	if !c.needsLines() {
		return mode, nil
	}
	now, err := bits()
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("%w (%w)", ErrNoLines, err)
	case err != nil:
		return nil, err
	}
	dtr, rts := c.levels()
	setDTR, fixedDTR := dtr.fixed()
	setRTS, fixedRTS := rts.fixed()
	if !fixedDTR && !fixedRTS {
		return mode, nil
	}
	mode.InitialStatusBits = &serial.ModemOutputBits{DTR: now&unix.TIOCM_DTR != 0, RTS: now&unix.TIOCM_RTS != 0}
	if fixedDTR {
		mode.InitialStatusBits.DTR = setDTR
	}
	if fixedRTS {
		mode.InitialStatusBits.RTS = setRTS
	}
	return mode, nil
}

// dropsAtClose reports whether the kernel is to drop the outputs at the close;
// it drops both or neither. Without any level the kernel's own setting stays.
func (c PortConfig) dropsAtClose() (drop, set bool) {
	dtr, rts := c.levels()
	if dtr == "" && rts == "" {
		return false, false
	}
	return dtr != LevelKeep && rts != LevelKeep, true
}

// Wait opens a port as soon as it is there. See PortConfig.Wait.
func Wait(ctx context.Context, address string) (Conn, error) {
	return PortConfig{Address: address}.Wait(ctx)
}

// Wait opens the port as soon as it is there. It returns early only when the
// context ends, with its cause, or with an error that is not ErrAbsent, or
// that is ErrDead: then the caller decides when to try again.
func (c PortConfig) Wait(ctx context.Context) (Conn, error) {
	for {
		conn, err := c.Open(ctx)
		if !errors.Is(err, ErrAbsent) || errors.Is(err, ErrDead) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(untilTick(waitForPort)):
		}
	}
}

// Node identifies what is behind the address now, without opening the port:
// the text is another one after the port was plugged in anew, or its
// permissions have changed. It is empty while nothing is there.
func (c PortConfig) Node() string {
	path, err := defaultPaths().resolve(c.Address)
	if err != nil {
		return ""
	}
	var node unix.Stat_t
	if unix.Stat(path, &node) != nil {
		return ""
	}
	return fmt.Sprint(node.Dev, node.Ino, node.Rdev, node.Ctim.Nano())
}

// untilTick is the time to the next beat of a clock that all ports share:
// waking together costs a small part of waking one by one.
func untilTick(period time.Duration) time.Duration {
	now := time.Now()
	return now.Truncate(period).Add(period).Sub(now)
}

// roundToTick is a time near period that ends with a beat: at least half of it,
// and all of it from then on.
func roundToTick(period time.Duration) time.Duration {
	d := untilTick(period)
	if d < period/2 {
		d += period
	}
	return d
}

// read moves bytes from the device to unread until the device ends or Close is
// called.
func (p *port) read() {
	defer close(p.done)
	buf := make([]byte, 4096)
	for {
		if p.isClosing() {
			p.end(os.ErrClosed)
			return
		}
		if err := p.dev.SetReadTimeout(untilTick(readSlice)); err != nil {
			p.end(fmt.Errorf("%w (%s: %v)", ErrUnplugged, p.path, err))
			return
		}
		n, err := p.dev.Read(buf) // 0 and no error: nothing came within readSlice
		if err != nil {
			p.end(fmt.Errorf("%w (%s: %v)", ErrUnplugged, p.path, err))
			return
		}
		if n > 0 && !p.keep(buf[:n]) {
			p.end(os.ErrClosed)
			return
		}
	}
}

func (p *port) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	p.signal()
}

// keep reports false when the port was closed while it waited for room.
func (p *port) keep(b []byte) bool {
	p.mu.Lock()
	for len(p.unread) >= maxUnread {
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-p.closing:
			return false
		}
		p.mu.Lock()
	}
	p.unread = append(p.unread, b...)
	p.signal()
	p.mu.Unlock()
	return true
}

// signal wakes whoever waits. The caller holds mu.
func (p *port) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *port) Read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		if len(p.unread) > 0 {
			n := copy(b, p.unread)
			p.unread = append(p.unread[:0], p.unread[n:]...)
			p.signal()
			p.mu.Unlock()
			return n, nil
		}
		err, deadline, changed := p.err, p.deadline, p.changed
		p.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if deadline.IsZero() {
			<-changed
			continue
		}
		left := time.Until(deadline)
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (p *port) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	p.signal()
	return nil
}

// Write does not go through the library: its descriptor blocks, its Write has
// no time limit, and neither a Close nor anything else ends it when an adapter
// is stuck or somebody has stopped the flow. The second descriptor of the same
// device, which holds the lock, does not block. What it takes is sent with the
// settings that the library made.
func (p *port) Write(b []byte) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	written := 0
	for last := time.Now(); written < len(b); {
		if p.isClosing() {
			return written, os.ErrClosed
		}
		p.mu.Lock()
		err := p.err
		p.mu.Unlock()
		if err != nil {
			return written, err
		}
		n, err := p.lock.write(b[written:])
		if n > 0 {
			written, last = written+n, time.Now()
			continue
		}
		if err != nil {
			return written, fmt.Errorf("%w (writing to %s: %v)", ErrUnplugged, p.path, err)
		}
		p.stuck = true
		if waited := time.Since(last); waited >= writeLimit {
			return written, fmt.Errorf("%w (%s took nothing for %v)", ErrStuck, p.path, waited.Truncate(time.Second))
		}
		p.lock.awaitRoom(writeSlice)
	}
	p.stuck = false
	return written, nil
}

// SetDTR implements Outputs.
func (p *port) SetDTR(on bool) error {
	return p.onDevice("setting DTR of", func() error { return p.dev.SetDTR(on) })
}

// SetRTS implements Outputs.
func (p *port) SetRTS(on bool) error {
	return p.onDevice("setting RTS of", func() error { return p.dev.SetRTS(on) })
}

// Break implements Outputs. Close waits for it.
func (p *port) Break(d time.Duration) error {
	return p.onDevice("sending a break on", func() error { return p.dev.Break(d) })
}

// Modem reads the modem inputs. It waits for a pending Write and Break.
func (p *port) Modem() (m Modem, err error) {
	err = p.onDevice("reading the modem lines of", func() error {
		bits, err := p.dev.GetModemStatusBits()
		if err == nil {
			m = Modem{CTS: bits.CTS, DSR: bits.DSR, DCD: bits.DCD}
		}
		return err
	})
	return m, err
}

// onDevice keeps Close, which gives the descriptor back, away from a call.
func (p *port) onDevice(doing string, call func() error) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.isClosing() {
		return os.ErrClosed
	}
	if err := call(); err != nil {
		return fmt.Errorf("%w (%s %s: %v)", ErrUnplugged, doing, p.path, err)
	}
	return nil
}

func (p *port) isClosing() bool {
	select {
	case <-p.closing:
		return true
	default:
		return false
	}
}

// Close ends a pending Read and a pending Write with os.ErrClosed, and waits
// for the reader; at most readSlice.
func (p *port) Close() error {
	p.closeOnce.Do(func() {
		close(p.closing)
		<-p.done
		p.writing.Lock()
		defer p.writing.Unlock()
		var flushErr error
		if p.stuck {
			// Or the kernel waits for these bytes to go out; half a minute,
			// with most drivers.
			flushErr = p.dev.ResetOutputBuffer()
		}
		p.closeErr = errors.Join(flushErr, p.dev.Close())
		p.lock.release()
	})
	return p.closeErr
}
