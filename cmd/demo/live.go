package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"secretfree/fixtures"
	"secretfree/station"
)

// live keeps the factory up until ctx ends or q is pressed.
func (s *story) live(ctx context.Context, in *os.File) error {
	keys := make(chan byte)
	if restore, err := pressable(in); err == nil {
		defer restore()
		go read(in, keys)
		s.say(`
The page is live. What to try:
    a  b   plug a new board into slot A or B, or take out what is in it
    s      plug the board of step 1 into slot A again
    i      plug a board with its id and another key into slot A
    k      plug a board with its key under another id into slot A
    t      tear out slot B with its cable, or put it back
    n      take the registry away, or bring it back: PASS still comes, and the backlog waits
    c      have the board of step 1 ask for its certificate
    q      end`)
	} else {
		s.say("\nThe page is live. The standard input is no terminal, so no keys plug boards. Ctrl-C or SIGTERM ends the demo.")
	}
	ticker := time.NewTicker(glance)
	defer ticker.Stop()
	shown := map[string]string{}
	for {
		for _, slot := range s.station.Status().Slots {
			state := fmt.Sprintf("slot %s: %s", slot.Name, slot.State)
			if slot.Reason != "" {
				state += ", " + string(slot.Reason)
			}
			if slot.Device != "" {
				state += " " + short(slot.Device)
			}
			if slot.State == station.Passed && slot.Confirmed {
				state += ", in the registry"
			}
			if shown[slot.Name] != "" && shown[slot.Name] != state {
				s.say("%s. %s", state, slot.Advice)
			}
			shown[slot.Name] = state
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.errs:
			s.errs <- err
			return fmt.Errorf("a daemon ended: %w", err)
		case key := <-keys:
			if key == 'q' {
				return nil
			}
			if err := s.press(ctx, key); err != nil {
				s.say("%v", err)
			}
		case <-ticker.C:
		}
	}
}

func (s *story) press(ctx context.Context, key byte) error {
	a, b := s.sockets[0], s.sockets[1]
	switch key {
	case 'a':
		return a.toggle(newBoard())
	case 'b':
		return b.toggle(newBoard())
	case 's':
		return a.toggle(again(s.good))
	case 'i':
		other := newBoard()
		other.Device = s.good.Device
		return a.toggle(other)
	case 'k':
		other := newBoard()
		other.Key = s.good.Key
		return a.toggle(other)
	case 't':
		if b.port == nil {
			return b.unplug()
		}
		return b.tear()
	case 'n':
		return s.toggleRegistry()
	case 'c':
		csr, err := s.good.CSR(s.good.ID(), x509.ECDSAWithSHA1)
		if err != nil {
			return err
		}
		text, err := s.certificate(ctx, csr)
		if err != nil {
			return err
		}
		leaf, err := s.check(text, s.good.ID())
		if err != nil {
			return err
		}
		s.say("The certificate with the serial number %032x, valid until %s.", leaf.SerialNumber, leaf.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// toggle takes out what is in the socket, or puts b in.
func (s *socket) toggle(b *fixtures.Board) error {
	if s.board != nil {
		return s.unplug()
	}
	return s.plug(b)
}

// registryAway is the registry's name while it is out of reach.
const registryAway = "registry-away"

func (s *story) toggleRegistry() error {
	here, away := s.path("registry"), s.path(registryAway)
	if err := os.Rename(away, here); err == nil {
		s.say("The registry is back.")
		return nil
	}
	if err := os.Rename(here, away); err != nil {
		return fmt.Errorf("taking the registry away: %w", err)
	}
	s.say("The registry is away.")
	return nil
}

// pressable makes a terminal give each key at once, without showing it; Ctrl-C
// stays a signal.
func pressable(in *os.File) (restore func(), err error) {
	fd := int(in.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	now := *before
	now.Lflag &^= unix.ICANON | unix.ECHO
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &now); err != nil {
		return nil, err
	}
	return func() { unix.IoctlSetTermios(fd, unix.TCSETS, before) }, nil
}

// read ends with the process: nothing else ends a read of a terminal.
func read(in *os.File, keys chan<- byte) {
	var key [1]byte
	for {
		if _, err := in.Read(key[:]); err != nil {
			return
		}
		keys <- key[0]
	}
}
