// Package station is what a technician works with: slots that read boards, and
// the page that shows them. A slot is a pure state machine (slot.go); one
// goroutine owns its port and feeds it (reader.go); a board passes only when
// the journal has given a receipt for its record.
package station

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rs/zerolog"

	"secretfree/station/auth"
	"secretfree/station/board"
	"secretfree/uart"
)

// Journal keeps verdicts. Many slots may append at once.
type Journal interface {
	// Append returns when the verdict is on disk, synced and read back: only
	// then there is a Receipt. Errors: a *board.Conflict, which is journaled,
	// with the receipt of that entry; board.ErrRecord; ENOSPC or EDQUOT,
	// wrapped, if there is no room; anything else is a fault of the disk. After
	// an error the board can be read again.
	Append(ctx context.Context, o Outcome) (board.Receipt, error)
}

// Outcome is how the reading of one board ended, for the journal.
type Outcome struct {
	Record     *board.Record  // nil: the board failed
	Reason     Reason         // of a failure
	Device     board.DeviceID // of a failure, if it is known
	Slot       string
	Lot        string // the name of what is made
	Label      string // that was scanned for the board
	Transcript string // the name under which the dialogue is kept
	Took       time.Duration
	After      *uint64 // the entry of the verdict before this one in the same insertion
	Resumed    bool    // the board may be in its slot since before the start
}

// Config is what a station is made of. All of it is required, but for what says
// otherwise.
type Config struct {
	SKU     string // a board name, see board.CheckName
	Station string // likewise
	Version string // optional: of the program, for /status
	Slots   []SlotConfig
	Journal Journal
	Policy  Policy // optional: the zero value is the strictest
	// Backlog tells how the delivery to the cloud is doing. It is called often
	// and must be quick.
	Backlog func() Backlog
	// Delivery tells how far the cloud has the record of a device. Called as
	// Backlog is.
	Delivery func(board.DeviceID) Delivery
	// Health, if not nil, reports work outside this package that is due and not
	// moving; none if all is well. Called as Backlog is.
	Health func() []Problem
	// Notices, if not nil, gives what else people must know, the worst first.
	// Called as Backlog is.
	Notices func() []Problem
	Page    Page // optional: the zero value is an English page that names nobody
	// Lot, if not nil, is the lot whose count goes on; otherwise a new one
	// begins, without a name.
	Lot *Lot
	// Earlier are lots with names that were made before, the newest first, of
	// which eight are remembered: what is begun again goes on with its count.
	Earlier []Lot
	// KeepLot, if not nil, keeps the lot, and those of Earlier, for the next
	// start. It is called by one goroutine of Run soon after the lot has
	// changed, at most once a second, and at the end of Run; it changes
	// neither. Its error is logged and changes no verdict.
	KeepLot func(lot Lot, earlier []Lot) error
	// Label, if not empty, was scanned before the start. Only a replay has one.
	Label string
	// Transcript, if not nil, gets the dialogue with each board after its
	// verdict, with the header filled in, and the name that the journal has of
	// it. Called by the slot's goroutine; its error is logged and changes no
	// verdict.
	Transcript func(name string, t *uart.Transcript) error
	// History and Evidence, if not nil, are what the pages show that look back.
	History  History
	Evidence Evidence
	// ReadLimit bounds the reading of one board, whatever its dialect allows; 0
	// is two minutes.
	ReadLimit time.Duration
	// Hosts are names under which the page may be opened, besides localhost and
	// plain addresses. A page of a stranger that has its own name point here is
	// refused.
	Hosts  []string
	Access auth.Access    // optional: the zero value is for loopback
	Log    zerolog.Logger // optional: the zero value is silent
}

// Page is how the technician's page is set.
type Page struct {
	Language string // one of Languages; empty is English
	Sound    bool   // whether it makes a sound at a verdict, until somebody turns it off
	// Whom to call, as "ext. 4711": up to 60 printable characters, or empty.
	ContactIT, ContactQuality string
}

// CheckContact says what is wrong with a contact of the page, if anything is.
func CheckContact(text string) error {
	if strings.TrimSpace(text) != text || utf8.RuneCountInString(text) > maxContact || !utf8.ValidString(text) ||
		strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%.70q is not up to %d printable characters", text, maxContact)
	}
	return nil
}

// SlotConfig is one place where a board can be plugged in.
type SlotConfig struct {
	Name string // 1 to 32 printable ASCII characters, different for each slot
	Port string // for people
	// Open waits until the port is there and opens it; see uart.Wait. The
	// context bounds the waiting alone: Open is called again and again.
	Open func(ctx context.Context) (uart.Conn, error)
	// Node, if not nil, identifies what is behind the name of the port now:
	// another text after the port was plugged in anew, empty while nothing is
	// there. It is called often and must be quick.
	Node    func() string
	Dialect uart.Dialect
	// Reset, if not zero, is how a board is reset: when it needs that, once
	// more before a verdict of time-out, and by ResetSlot. The connection of
	// Open must have the methods of uart.Outputs then.
	Reset uart.Sequence
	// Present, if not zero, is the modem input that says whether the fixture is
	// closed: a closed one starts a reading, an open one ends it. The
	// connection of Open must have the method Modem of an open port then.
	Present uart.Presence
	// Leak, if not nil, is the private-key-leak that this slot showed before
	// the start. The slot shows it, and reads no board, until somebody
	// acknowledges it.
	Leak *Verdict
	// Nonce, if not nil, draws the challenges; see uart.LineOptions. Only a
	// replay may choose them.
	Nonce func(n int) string
}

// Policy is what a SKU asks of its boards.
type Policy struct {
	AllowUnproven bool              // a board without a proof of possession may pass; a wrong proof never does
	Algorithms    []board.Algorithm // the allowed types of key; none means P-256 alone
	// Lot, if not nil, looks a board up on the list of what is made at present:
	// nil if it is there, ErrNotInLot if it is not, any other error if there is
	// no list to look at. Called by the goroutines of the slots.
	Lot func(device board.DeviceID, facts map[string]string) error
	// Listed, if not nil, tells how many boards Lot knows, or 0: what is
	// planned if nobody said another number. Called as Config.Backlog is.
	Listed func() int
	// NeedsLabel: a board fails whose label was not scanned. A label that names
	// another board always fails it.
	NeedsLabel bool
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
	maxContact       = 60 // characters
	defaultReadLimit = 2 * time.Minute
	// journalLimit is how long a record may take to reach the disk before the
	// station calls itself stuck.
	journalLimit = 30 * time.Second
)

// Station runs its slots and shows them. All methods may be called at once.
type Station struct {
	sku, name  string
	version    string
	journal    Journal
	backlog    func() Backlog
	delivery   func(board.DeviceID) Delivery
	health     func() []Problem
	notices    func() []Problem
	languages  map[string]*catalogue
	keepLot    func(Lot, []Lot) error
	lotChanged chan struct{} // has room for one: the lot is to be kept
	transcript func(name string, t *uart.Transcript) error
	history    History
	evidence   Evidence
	looking    chan struct{} // a place for who looks back
	began      time.Time
	giving     chan struct{} // places for answers that are large
	zone       *time.Location
	readLimit  time.Duration
	settings   *settings
	auth       *auth.Authenticator
	log        zerolog.Logger
	slots      []SlotConfig

	streams  chan struct{} // a place for each open event stream
	stopping chan struct{} // closed when Run's context ends

	mu      sync.Mutex
	started bool
	states  []slotState   // by index of slots
	runs    []run         // likewise
	changed chan struct{} // closed and replaced when states change
	writing []time.Time   // by index of slots: since when a slot waits for the disk; zero: it does not
	refused Reason        // disk-full or disk-error if the journal could not be written at last, else empty
	stats   Stats
	lot     Lot
	earlier []Lot     // the newest first; never changed, but replaced
	recent  []Verdict // the newest first; never changed, but replaced
	labels  labels
	resets  []resetRequest // by index of slots
}

// Stats counts the journal's verdicts, and how long readings took since New.
// Failures of the disk itself, which no journal has, are those since New.
type Stats struct {
	Passed        uint64            // receipts, repeats included
	Repeated      uint64            // of those, boards that were enrolled before
	Failed        map[Reason]uint64 // verdicts against a board
	ReadDurations []ReadDurations   // in the order of Config.Slots
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
	case c.Backlog == nil || c.Delivery == nil:
		return nil, errors.New("making a station: Backlog and Delivery are both needed")
	case len(c.Slots) == 0 || len(c.Slots) > maxSlots:
		return nil, fmt.Errorf("making a station: %d slots, want 1 to %d", len(c.Slots), maxSlots)
	case c.ReadLimit < 0:
		return nil, fmt.Errorf("making a station: ReadLimit is %v, want 0 or more", c.ReadLimit)
	}
	if err := c.Access.Check(); err != nil {
		return nil, err
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
	languages, err := embedded()
	if err != nil {
		return nil, fmt.Errorf("making a station: %w", err)
	}
	settings, err := newSettings(&c, languages)
	if err != nil {
		return nil, fmt.Errorf("making a station: %w", err)
	}
	s := &Station{
		sku: c.SKU, name: c.Station, version: c.Version, journal: c.Journal, backlog: c.Backlog, delivery: c.Delivery,
		health: c.Health, notices: c.Notices, languages: languages, keepLot: c.KeepLot, lotChanged: make(chan struct{}, 1),
		transcript: c.Transcript, history: c.History, evidence: c.Evidence,
		looking: make(chan struct{}, 1), giving: make(chan struct{}, maxLarge), zone: time.Local, readLimit: c.ReadLimit, auth: auth.NewAuthenticator(c.Access),
		log: c.Log, slots: append([]SlotConfig(nil), c.Slots...),
		streams: make(chan struct{}, maxStreams), stopping: make(chan struct{}), changed: make(chan struct{}),
		writing: make([]time.Time, len(c.Slots)), resets: make([]resetRequest, len(c.Slots)), stats: Stats{Failed: map[Reason]uint64{}},
	}
	if s.readLimit == 0 {
		s.readLimit = defaultReadLimit
	}
	s.settings = settings
	now := time.Now()
	s.lot = Lot{Since: now.UTC().Truncate(time.Millisecond)}
	if c.Lot != nil {
		if err := c.Lot.Check(); err != nil {
			return nil, fmt.Errorf("making a station: %w", err)
		}
		s.lot = *c.Lot
	}
	for _, lot := range slices.Backward(c.Earlier) {
		if err := lot.Check(); err != nil {
			return nil, fmt.Errorf("making a station: %w", err)
		}
		s.earlier = lot.inFrontOf(s.earlier)
	}
	s.labels.bound, s.labels.taken = make([]*label, len(s.slots)), make([]*label, len(s.slots))
	if c.Label != "" {
		read, err := parseScan(c.Label)
		if err != nil || read.label.text == "" {
			return nil, fmt.Errorf("making a station: %q is no label", c.Label)
		}
		s.labels.wait(read.label, -1)
	}
	for _, slot := range s.slots {
		s.stats.ReadDurations = append(s.stats.ReadDurations, ReadDurations{Slot: slot.Name})
		state := slotState{state: Absent, advice: adviceAbsent, since: now}
		if slot.Leak != nil {
			state = heldLeak(*slot.Leak)
		}
		s.states = append(s.states, state)
	}
	s.runs = make([]run, len(s.slots))
	return s, s.recall()
}

// Run serves all slots until ctx ends, then ends the event streams, closes the
// ports, waits for the slots, and returns nil. It runs once.
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
	var slots, lots sync.WaitGroup
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeping()
	if s.keepLot != nil {
		lots.Go(func() { s.keepLots(keeping) })
	}
	for i := range s.slots {
		slots.Go(func() { s.serve(ctx, i) })
	}
	slots.Wait()
	stopKeeping()
	lots.Wait()
	return nil
}

// apply feeds an event to a slot, and reports whether it changed anything;
// cause is for the log.
func (s *Station) apply(i int, e event, cause error) (changed bool) {
	e.at = time.Now()
	s.mu.Lock()
	s.journalFailure(i, &e)
	before := s.states[i]
	after := before.next(e)
	switch {
	case e.kind == boardGone, e.kind == portLost:
		s.runs[i].after = nil
		if before.state != Absent && before.state != Empty {
			s.runs[i].judged = true // what comes now is another insertion
		}
	case e.kind == portOpened && e.at.Sub(s.began) > resumePort:
		s.runs[i].judged = true // what comes through a port that came later is another insertion
	}
	if after == before {
		s.mu.Unlock()
		return false
	}
	if !e.verdictAt.IsZero() && after.since.Equal(e.at) {
		after.since = e.verdictAt // as the journal tells it, also after a restart
	}
	s.states[i] = after
	if after.held {
		s.resets[i].answer(ErrLeakShown) // it was asked for while the leak was on its way
	}
	found := before.state == Reading && !before.searching
	turned := after.turnedFrom(before)
	switch {
	case e.kind == boardFound:
		s.labels.take(i)
	case e.kind == boardPassed:
		s.stats.ReadDurations[i].Passed.Add(e.at.Sub(before.since))
		s.labels.settle(i, false)
		s.labels.accept(e.device)
		s.tally(i, after, e)
	case after.state == Failed && turned:
		if found {
			s.stats.ReadDurations[i].Failed.Add(e.at.Sub(before.since))
		}
		if after.reason == ReasonLabelMismatch {
			s.labels.refuse(i, after.device)
		}
		s.labels.settle(i, triedAgain(after.reason))
		s.tally(i, after, e)
	}
	s.notifyChange()
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

// Acknowledge ends the private-key-leak that a slot shows: somebody has put the
// board aside and called quality. Until then the slot shows it and reads no
// other board. A slot that has nothing to acknowledge is left as it is. An
// unknown name is ErrNoSlot.
func (s *Station) Acknowledge(slot string) error {
	i := slices.IndexFunc(s.slots, func(c SlotConfig) bool { return c.Name == slot })
	if i < 0 {
		return fmt.Errorf("acknowledging a leak: %w: %.40q", ErrNoSlot, slot)
	}
	s.apply(i, event{kind: leakSeen}, nil)
	return nil
}

// notifyChange wakes whoever waits for a change of what is shown. The caller
// holds mu.
func (s *Station) notifyChange() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// label is the one that was scanned for the board that slot i reads, or nil.
func (s *Station) label(i int) *label {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.labels.taken[i]
}

// refusedWith is the label that a board was refused with, until it passes with
// its own; or nil.
func (s *Station) refusedWith(device board.DeviceID) *label {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.labels.against(device)
}

// trackDiskWait runs what slot i has to wait for the disk for, so that a disk
// which hangs is noticed.
func (s *Station) trackDiskWait(i int, f func()) {
	set := func(since time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.writing[i] = since
	}
	set(time.Now())
	defer set(time.Time{})
	f()
}

// appended notes whether the journal can be written; reason is that of an
// error.
func (s *Station) appended(reason Reason) {
	switch reason {
	case "", ReasonDiskFull, ReasonDiskError:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused = reason
	}
}

// Alive reports whether the slots make progress, for a watchdog: nil, or which
// slot is stuck. What happens outside, as an outage of the registry, does not
// count.
func (s *Station) Alive() error { return details(s.stuck()) }

func (s *Station) stuck() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	english := s.languages[English]
	var stuck []Problem
	add := func(key string, i int, d time.Duration, does string) {
		stuck = append(stuck, Problem{Word: key, Args: []any{s.slots[i].Name, d}, Urgent: true, Call: CallIT,
			Detail: fmt.Sprintf("slot %s has %s for %s", s.slots[i].Name, does, english.Span(d))})
	}
	for i, state := range s.states {
		if since := s.writing[i]; !since.IsZero() {
			if d := time.Since(since); d > journalLimit {
				add("health-slot-disk", i, d, "waited for the disk")
			}
		} else if d := time.Since(state.since); state.state == Reading && d > s.readLimit+journalLimit {
			add("health-slot-stuck", i, d, "been reading one board")
		}
	}
	return stuck
}

// disk reports a disk that took no record, until it takes one.
func (s *Station) disk() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := Problem{Urgent: true, Call: CallIT}
	switch s.refused {
	case ReasonDiskFull:
		p.Word = "health-disk-full"
		p.Detail = fmt.Sprintf("%s: the disk of this station is full, and the last board was not written down", s.refused)
	case ReasonDiskError:
		p.Word = "health-disk-error"
		p.Detail = fmt.Sprintf("%s: this station cannot write to its disk, and the last board was not written down", s.refused)
	default:
		return nil
	}
	return []Problem{p}
}

// red is what makes the health red: slots that are stuck, a journal that could
// not be written, and what Config.Health adds.
func (s *Station) red() []Problem {
	list := append(s.stuck(), s.disk()...)
	if s.health != nil {
		list = append(list, s.health()...)
	}
	return list
}

// Health reports work that is due and not moving: Alive, a journal that could
// not be written, and what Config.Health adds. Its text has a line for each,
// for IT.
func (s *Station) Health() error { return details(s.red()) }

// details is nil for no problem.
func details(list []Problem) error {
	var errs []error
	for _, p := range list {
		errs = append(errs, errors.New(strings.ReplaceAll(p.Detail, "\n", "; "))) // an error of several causes has several lines
	}
	return errors.Join(errs...)
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
	stats.ReadDurations = slices.Clone(s.stats.ReadDurations)
	for i := range stats.ReadDurations {
		t := &stats.ReadDurations[i]
		t.Passed, t.Failed = t.Passed.Clone(), t.Failed.Clone()
	}
	return stats
}
