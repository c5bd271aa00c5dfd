// Package station is what a technician works with: slots that read boards, and the page that shows them. A slot
// is a pure state machine (slot.go); one goroutine owns its port and feeds it (reader.go); a board
// passes only when the journal has given a receipt for its record.
package station

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"secretfree/station/board"
	"secretfree/uart"
)

// Journal keeps records. Many slots may append at once.
type Journal interface {
	// Append returns when the record is on disk, synced and read back, or was there already: only then
	// there is a Receipt. Errors: a *board.Conflict; board.ErrRecord; ENOSPC or EDQUOT, wrapped, if there
	// is no room; anything else is a fault of the disk. After an error the board can be read again.
	Append(ctx context.Context, r board.Record) (board.Receipt, error)
}

// Config is what a station is made of. All of it is required, but for what says otherwise.
type Config struct {
	SKU     string // a board name, see board.CheckName
	Station string // likewise
	Slots   []SlotConfig
	Journal Journal
	Policy  Policy // optional: the zero value is the strictest
	// Backlog tells how the delivery to the cloud is doing. It is called often and must be quick.
	Backlog func() Backlog
	// Confirmed reports whether the cloud has confirmed a device. Called as Backlog is.
	Confirmed func(board.DeviceID) bool
	// Health, if not nil, reports work outside this package that is due and not moving.
	Health func() error
	// Notices, if not nil, gives what else people must know, the worst first. Called as Backlog is.
	Notices func() []Notice
	// Transcript, if not nil, gets the dialogue with each board after its verdict, with the header filled in. Called
	// by the slot's goroutine; its error is logged and changes no verdict.
	Transcript func(*uart.Transcript) error
	// ReadLimit bounds the reading of one board, whatever its dialect allows; 0 is two minutes.
	ReadLimit time.Duration
	// Hosts are names under which the page may be opened, besides localhost and plain addresses. A page
	// of a stranger that has its own name point here is refused.
	Hosts []string
	Log   zerolog.Logger // optional: the zero value is silent
}

// SlotConfig is one place where a board can be plugged in.
type SlotConfig struct {
	Name string // 1 to 32 printable ASCII characters, different for each slot
	Port string // for people
	// Open waits until the port is there and opens it; see uart.Wait. The context bounds the waiting alone:
	// Open is called again and again.
	Open    func(ctx context.Context) (uart.Conn, error)
	Dialect uart.Dialect
	// Nonce, if not nil, draws the challenges; see uart.LineOptions. Only a replay may choose them.
	Nonce func(n int) string
}

// Policy is what a SKU asks of its boards.
type Policy struct {
	AllowUnproven bool              // a board without a proof of possession may pass; a wrong proof never does
	Algorithms    []board.Algorithm // the allowed types of key; none means P-256 alone
	// Lot, if not nil, looks a board up on the list of what is made at present: nil if it is there, ErrNotInLot if it is
	// not, any other error if there is no list to look at. Called by the goroutines of the slots.
	Lot func(device board.DeviceID, facts map[string]string) error
}

// ErrNotInLot says that a board is not one of those that are made at present.
var ErrNotInLot = errors.New("the board is not on the list of the lot")

func (p Policy) algorithms() []board.Algorithm {
	if len(p.Algorithms) == 0 {
		return []board.Algorithm{board.P256}
	}
	return p.Algorithms
}

const (
	maxSlots         = 64
	defaultReadLimit = 2 * time.Minute
	// journalLimit is how long a record may take to reach the disk before the station calls itself stuck.
	journalLimit = 30 * time.Second
)

// Station runs its slots and shows them. All methods may be called at once.
type Station struct {
	sku, name  string
	policy     Policy
	journal    Journal
	backlog    func() Backlog
	confirmed  func(board.DeviceID) bool
	health     func() error
	notices    func() []Notice
	transcript func(*uart.Transcript) error
	readLimit  time.Duration
	hosts      map[string]bool
	log        zerolog.Logger
	slots      []SlotConfig

	streams  chan struct{} // a place for each open event stream
	stopping chan struct{} // closed when Run's context ends

	mu      sync.Mutex
	started bool
	states  []slotState   // by index of slots
	changed chan struct{} // closed and replaced when states change
	writing []time.Time   // by index of slots: since when a slot waits for the disk; zero: it does not
	refused Reason        // disk-full or disk-error if the journal could not be written at last, else empty
	stats   Stats
}

// Stats counts what the slots did since New.
type Stats struct {
	Passed   uint64            // receipts, repeats included
	Repeated uint64            // of those, boards that were enrolled before
	Failed   map[Reason]uint64 // verdicts against a board
}

// New checks a configuration. It starts nothing.
func New(c Config) (*Station, error) {
	for _, name := range []string{c.SKU, c.Station} {
		if err := board.CheckName(name); err != nil {
			return nil, fmt.Errorf("making a station: %w", err)
		}
	}
	switch {
	case c.Journal == nil:
		return nil, errors.New("making a station: there is no Journal")
	case c.Backlog == nil || c.Confirmed == nil:
		return nil, errors.New("making a station: Backlog and Confirmed are both needed")
	case len(c.Slots) == 0 || len(c.Slots) > maxSlots:
		return nil, fmt.Errorf("making a station: %d slots, want 1 to %d", len(c.Slots), maxSlots)
	case c.ReadLimit < 0:
		return nil, fmt.Errorf("making a station: ReadLimit is %v, want 0 or more", c.ReadLimit)
	}
	names := map[string]bool{}
	for i, slot := range c.Slots {
		switch {
		case slot.Name == "" || len(slot.Name) > 32 || strings.TrimSpace(slot.Name) != slot.Name ||
			strings.ContainsFunc(slot.Name, func(r rune) bool { return r < ' ' || r > '~' }):
			return nil, fmt.Errorf("making a station: slot %d is named %q, want 1 to 32 printable ASCII characters", i+1, slot.Name)
		case names[slot.Name]:
			return nil, fmt.Errorf("making a station: two slots are named %q", slot.Name)
		case slot.Open == nil || slot.Dialect == nil:
			return nil, fmt.Errorf("making a station: slot %q has no Open or no Dialect", slot.Name)
		}
		names[slot.Name] = true
	}
	s := &Station{
		sku: c.SKU, name: c.Station, policy: c.Policy, journal: c.Journal, backlog: c.Backlog, confirmed: c.Confirmed,
		health: c.Health, notices: c.Notices, transcript: c.Transcript, readLimit: c.ReadLimit, hosts: map[string]bool{},
		log: c.Log, slots: append([]SlotConfig(nil), c.Slots...),
		streams: make(chan struct{}, maxStreams), stopping: make(chan struct{}), changed: make(chan struct{}),
		writing: make([]time.Time, len(c.Slots)), stats: Stats{Failed: map[Reason]uint64{}},
	}
	if s.readLimit == 0 {
		s.readLimit = defaultReadLimit
	}
	for _, host := range c.Hosts {
		s.hosts[strings.ToLower(host)] = true
	}
	now := time.Now()
	for range s.slots {
		s.states = append(s.states, slotState{state: Absent, advice: adviceAbsent, since: now})
	}
	return s, nil
}

// Run serves all slots until ctx ends, then ends the event streams, closes the ports, waits for
// the slots, and returns nil. It runs once.
func (s *Station) Run(ctx context.Context) error {
	s.mu.Lock()
	started := s.started
	s.started = true
	s.mu.Unlock()
	if started {
		return errors.New("running a station: it ran before")
	}
	stop := context.AfterFunc(ctx, func() { close(s.stopping) })
	defer stop()
	var slots sync.WaitGroup
	for i := range s.slots {
		slots.Go(func() { s.serve(ctx, i) })
	}
	slots.Wait()
	return nil
}

// apply feeds an event to a slot, and reports whether it changed anything; cause is for the log.
func (s *Station) apply(i int, e event, cause error) (changed bool) {
	e.at = time.Now()
	s.mu.Lock()
	before := s.states[i]
	after := before.next(e)
	if after == before {
		s.mu.Unlock()
		return false
	}
	s.states[i] = after
	turned := after.state != before.state || after.reason != before.reason || !after.since.Equal(before.since)
	switch {
	case e.kind == boardPassed:
		s.stats.Passed++
		if e.repeat {
			s.stats.Repeated++
		}
	case after.state == Failed && turned:
		s.stats.Failed[after.reason]++
	}
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()

	level := zerolog.InfoLevel
	if after.state == Failed || e.kind == portTrouble {
		level = zerolog.WarnLevel
	}
	line := s.log.WithLevel(level).Str("slot", s.slots[i].Name).Str("state", string(after.state))
	if after.device.Valid() {
		line = line.Stringer("device", after.device)
	}
	if after.reason != "" {
		line = line.Str("reason", string(after.reason))
	}
	// Of a board that leaks a key, nothing is repeated.
	if cause != nil && after.reason != ReasonPrivateKeyLeak {
		line = line.Err(cause)
	}
	line.Msg(string(e.kind))
	return true
}

// toDisk runs what slot i has to wait for the disk for, so that a disk which hangs is noticed.
func (s *Station) toDisk(i int, f func()) {
	set := func(since time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.writing[i] = since
	}
	set(time.Now())
	defer set(time.Time{})
	f()
}

// appended notes whether the journal can be written; reason is that of an error.
func (s *Station) appended(reason Reason) {
	switch reason {
	case "", ReasonDiskFull, ReasonDiskError:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused = reason
	}
}

// Alive reports whether the slots make progress, for a watchdog: nil, or which slot is stuck. What happens
// outside, as an outage of the registry, does not count.
func (s *Station) Alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var stuck []error
	for i, state := range s.states {
		if since := s.writing[i]; !since.IsZero() {
			if d := time.Since(since); d > journalLimit {
				stuck = append(stuck, fmt.Errorf("slot %s has waited for the disk for %s", s.slots[i].Name, span(d)))
			}
		} else if d := time.Since(state.since); state.state == Reading && d > s.readLimit+journalLimit {
			stuck = append(stuck, fmt.Errorf("slot %s has been reading one board for %s", s.slots[i].Name, span(d)))
		}
	}
	return errors.Join(stuck...)
}

// disk reports a disk that took no record, until it takes one.
func (s *Station) disk() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.refused {
	case ReasonDiskFull:
		return fmt.Errorf("%s: the disk of this station is full, and the last board was not written down", s.refused)
	case ReasonDiskError:
		return fmt.Errorf("%s: this station cannot write to its disk, and the last board was not written down", s.refused)
	}
	return nil
}

// Health reports work that is due and not moving: Alive, a journal that could not be written, and what Config.Health adds.
func (s *Station) Health() error {
	err := errors.Join(s.Alive(), s.disk())
	if s.health != nil {
		err = errors.Join(err, s.health())
	}
	return err
}

// Stats returns a copy of the counters.
func (s *Station) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Failed = make(map[Reason]uint64, len(s.stats.Failed))
	for reason, n := range s.stats.Failed {
		stats.Failed[reason] = n
	}
	return stats
}
