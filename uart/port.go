package uart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"go.bug.st/serial"
)

const (
	// baudRate: device.md's boards speak 115200 8N1, no flow control.
	baudRate = 115200
	// readSlice bounds one read of the library. Its Close closes the descriptor before it wakes a
	// pending Read, which may then read from whatever file got the number; so the reader is let
	// to end by itself before the port is closed. Waking four times a second costs next to nothing.
	readSlice = 250 * time.Millisecond
	// waitForPort is how often a port that is not there is looked for.
	waitForPort = 250 * time.Millisecond
	// maxUnread stops reading from the port until somebody takes what is there.
	maxUnread = 64 << 10
)

// port is the one wrapper of the serial library. A goroutine reads the device, so that a Read can
// have a deadline that somebody else may change.
type port struct {
	path string
	dev  serial.Port
	held *holding

	mu       sync.Mutex
	unread   []byte
	err      error // why there will be no more bytes
	deadline time.Time
	changed  chan struct{} // closed and replaced when anything above changes

	closing   chan struct{}
	closeOnce sync.Once
	closeErr  error
	done      chan struct{} // the reader has ended
}

// Open opens a serial port exclusively, at 115200 8N1. The address is that of CheckAddress; a path may be a symbolic
// link, as under /dev/serial. An error is an *OpenError, unless the context has ended.
func Open(ctx context.Context, address string) (Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	path, err := systemPlaces().resolve(address)
	if err != nil {
		return nil, explainOpen(address, err)
	}
	held, err := hold(path)
	if err != nil {
		return nil, explainOpen(path, err)
	}
	dev, err := serial.Open(path, &serial.Mode{BaudRate: baudRate, DataBits: 8, Parity: serial.NoParity, StopBits: serial.OneStopBit})
	if err != nil {
		held.release()
		return nil, explainOpen(path, err)
	}
	p := &port{path: path, dev: dev, held: held, changed: make(chan struct{}), closing: make(chan struct{}), done: make(chan struct{})}
	go p.read()
	return p, nil
}

// Wait opens a port as soon as it is there. It returns early only when the context ends, with its
// cause, or with an error that is not ErrAbsent.
func Wait(ctx context.Context, address string) (Conn, error) {
	for {
		c, err := Open(ctx, address)
		if !errors.Is(err, ErrAbsent) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(untilTick(waitForPort)):
		}
	}
}

// untilTick is the time to the next beat of a clock that all ports share: waking together costs a small part of waking one by
// one.
func untilTick(period time.Duration) time.Duration {
	now := time.Now()
	return now.Truncate(period).Add(period).Sub(now)
}

// read moves bytes from the device to unread until the device ends or Close is called.
func (p *port) read() {
	defer close(p.done)
	buf := make([]byte, 4096)
	for {
		select {
		case <-p.closing:
			p.end(os.ErrClosed)
			return
		default:
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

func (p *port) Write(b []byte) (int, error) {
	select {
	case <-p.closing:
		return 0, os.ErrClosed
	default:
	}
	p.mu.Lock()
	err := p.err
	p.mu.Unlock()
	if err != nil {
		return 0, err
	}
	written := 0
	for written < len(b) {
		n, err := p.dev.Write(b[written:])
		written += n
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return written, fmt.Errorf("%w (writing to %s: %v)", ErrUnplugged, p.path, err)
		}
	}
	return written, nil
}

// Close ends a pending Read with os.ErrClosed and waits for the reader; at most readSlice.
func (p *port) Close() error {
	p.closeOnce.Do(func() {
		close(p.closing)
		<-p.done
		p.closeErr = p.dev.Close()
		p.held.release()
	})
	return p.closeErr
}
