package station

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

// testStation is a station with a cable for each slot, in a synctest bubble. It
// sees every step of every slot, and complains about a PASS without a receipt.
type testStation struct {
	t *testing.T
	*Station
	ledger *fakeJournal
	cables []*fakePort
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when Run has returned

	mu      sync.Mutex
	text    bytes.Buffer        // the log
	history map[string][]string // by slot, as "failed timeout"
	kept    []*uart.Transcript
}

var errStopped = errors.New("the test is over")

// newTestStation makes a station with so many slots, all with the dialect of
// TI, whose ports are there.
func newTestStation(t *testing.T, slots int, change func(*Config)) *testStation {
	t.Helper()
	b := &testStation{t: t, history: map[string][]string{}, done: make(chan struct{})}
	b.ledger = &fakeJournal{t: t, records: map[board.DeviceID]board.Record{}, owners: map[board.Fingerprint]board.DeviceID{}}
	c := Config{
		SKU: "widgiot", Station: "line3-a", Journal: b.ledger, Log: zerolog.New(b),
		Backlog:    func() Backlog { return Backlog{} },
		Delivery:   func(board.DeviceID) Delivery { return Waiting },
		Transcript: b.keepTranscript,
	}
	for i := range slots {
		cable := &fakePort{t: t, there: true, changed: make(chan struct{})}
		b.cables = append(b.cables, cable)
		c.Slots = append(c.Slots, SlotConfig{Name: string(rune('A' + i)), Port: fmt.Sprintf("/dev/port-%d", i), Open: cable.await, Dialect: uart.TIAT{}})
	}
	if change != nil {
		change(&c)
	}
	b.ledger.policy = c.Policy
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	b.Station = s
	return b
}

// run starts the station. It is stopped at the end of the test.
func (b *testStation) run() *testStation {
	b.ctx, b.cancel = context.WithCancelCause(context.Background())
	go func() {
		defer close(b.done)
		if err := b.Run(b.ctx); err != nil {
			b.t.Errorf("Run: %v", err)
		}
	}()
	b.t.Cleanup(func() {
		b.stop()
		b.check()
	})
	return b
}

// stop ends Run and everything around it, and returns how long Run took to end.
func (b *testStation) stop() time.Duration {
	start := time.Now()
	b.cancel(errStopped)
	<-b.done
	took := time.Since(start)
	for _, c := range b.cables {
		c.unplug()
		if c.open != nil && !c.open.closed.Load() {
			b.t.Error("Run has ended and left a port open")
		}
	}
	return took
}

// check is the invariant of every test: as many PASSes as receipts, and what
// failed was counted.
func (b *testStation) check() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	failed := map[Reason]uint64{}
	var passed uint64
	for _, steps := range b.history {
		for _, step := range steps {
			state, reason, _ := strings.Cut(step, " ")
			switch State(state) {
			case Passed:
				passed++
			case Failed:
				failed[Reason(reason)]++
			}
		}
	}
	for _, slot := range b.slots {
		if slot.Leak == nil || failed[slot.Leak.Reason] == 0 {
			continue
		}
		// It was counted before the start.
		if failed[slot.Leak.Reason]--; failed[slot.Leak.Reason] == 0 {
			delete(failed, slot.Leak.Reason)
		}
	}
	stats := b.Stats()
	if stats.Passed != passed || fmt.Sprint(stats.Failed) != fmt.Sprint(failed) {
		b.t.Errorf("the station counts %+v; it showed %d times PASS, and failures %v", stats, passed, failed)
	}
	if first, repeats := b.ledger.given(); stats.Passed > first+repeats || stats.Repeated > repeats {
		b.t.Errorf("the station counts %+v, the journal gave %d receipts and %d for repeats", stats, first, repeats)
	}
}

// Write is the log: what a slot shows is in it the moment that it shows it.
func (b *testStation) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(line)
	var entry struct{ Slot, State, Device, Reason, Message string }
	if err := json.Unmarshal(line, &entry); err != nil {
		b.t.Errorf("the log: %v in %s", err, line)
	}
	if entry.State == "" {
		return len(line), nil
	}
	step := strings.TrimSpace(entry.State + " " + entry.Reason)
	// A second event in a state, as the end of a cable that is off already, is
	// no step.
	if steps := b.history[entry.Slot]; len(steps) == 0 || steps[len(steps)-1] != step || entry.Message == string(boardFailed) {
		b.history[entry.Slot] = append(steps, step)
	}
	if entry.State == string(Passed) {
		if device, err := board.ParseDeviceID(entry.Device); err != nil || !b.ledger.holds(device) {
			b.t.Errorf("slot %s shows PASS for %q, for which the journal gave no receipt", entry.Slot, entry.Device)
		}
	}
	return len(line), nil
}

func (b *testStation) logged() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// showed is what slot i has shown so far, in order.
func (b *testStation) showed(i int) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	name := b.slots[i].Name
	return slices.Clone(b.history[name])
}

func (b *testStation) keepTranscript(_ string, t *uart.Transcript) error {
	text, err := t.Encode()
	if err != nil {
		b.t.Errorf("a transcript does not encode: %v", err)
	}
	if _, err := uart.ParseTranscript(text); err != nil {
		b.t.Errorf("a transcript does not parse: %v", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept = append(b.kept, t)
	return nil
}

func (b *testStation) transcripts() []*uart.Transcript {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.kept)
}

// await waits until slot i shows state.
func (b *testStation) await(i int, state State) SlotStatus {
	b.t.Helper()
	return b.awaitThat(i, string(state), func(s SlotStatus) bool { return s.State == state })
}

func (b *testStation) awaitThat(i int, what string, is func(SlotStatus) bool) SlotStatus {
	b.t.Helper()
	limit := time.After(10 * time.Minute)
	for {
		status, changed := b.snapshot(b.settings.words)
		if is(status.Slots[i]) {
			synctest.Wait() // the log is written after the state
			return status.Slots[i]
		}
		select {
		case <-changed:
		case <-limit:
			b.t.Fatalf("slot %d is not %s: %+v; the log:\n%s", i, what, status.Slots[i], b.logged())
		}
	}
}

// awaitFailed waits for a verdict against a board, and checks that it is this
// one.
func (b *testStation) awaitFailed(i int, reason Reason) SlotStatus {
	b.t.Helper()
	s := b.awaitThat(i, "judged", func(s SlotStatus) bool { return s.State == Failed || s.State == Passed })
	if s.Reason != reason || s.Advice != sentences[messageKey(reason)] {
		b.t.Fatalf("slot %d shows %+v, want %s; the log:\n%s", i, s, reason, b.logged())
	}
	return s
}

// fail takes the verdict against a board. Conflicts and what the disk does come
// with a record.
func (l *fakeJournal) fail(o Outcome) (board.Receipt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.Reason == "" || o.Slot == "" {
		l.t.Errorf("a verdict without reason or slot: %+v", o)
	}
	l.failed = append(l.failed, o)
	return board.Receipt{Entry: uint64(1000 + len(l.failed)), Time: time.Now()}, nil
}

// fakeJournal is a Journal that holds the station to the contract.
type fakeJournal struct {
	t      *testing.T
	policy Policy

	mu      sync.Mutex
	records map[board.DeviceID]board.Record
	owners  map[board.Fingerprint]board.DeviceID
	first   uint64
	repeats uint64
	refuse  error         // what Append returns
	slow    chan struct{} // Append waits for it to close
	asked   int
	failed  []Outcome
}

// state is Confirmed or Waiting.
func state(confirmed bool) Delivery {
	if confirmed {
		return Confirmed
	}
	return Waiting
}

func (l *fakeJournal) Append(ctx context.Context, o Outcome) (board.Receipt, error) {
	if o.Record == nil {
		return l.fail(o)
	}
	r := *o.Record
	l.mu.Lock()
	l.asked++
	slow := l.slow
	l.mu.Unlock()
	l.inspect(r)
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return board.Receipt{}, context.Cause(ctx)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return board.Receipt{}, l.refuse
	}
	if known, ok := l.records[r.Device]; ok {
		if known.Key != r.Key {
			return board.Receipt{}, fmt.Errorf("appending: %w", &board.Conflict{Kind: board.ErrDeviceConflict, Device: r.Device, Key: r.Fingerprint(), KnownDevice: r.Device, KnownKey: known.Fingerprint()})
		}
		l.repeats++
		return board.Receipt{Seq: 1, Time: time.Now(), Repeat: true}, nil
	}
	if owner, ok := l.owners[r.Fingerprint()]; ok {
		return board.Receipt{}, fmt.Errorf("appending: %w", &board.Conflict{Kind: board.ErrKeyConflict, Device: r.Device, Key: r.Fingerprint(), KnownDevice: owner, KnownKey: r.Fingerprint()})
	}
	l.records[r.Device], l.owners[r.Fingerprint()] = r, r.Device
	l.first++
	return board.Receipt{Seq: l.first, Time: time.Now()}, nil
}

// inspect complains about a record that must not have come so far.
func (l *fakeJournal) inspect(r board.Record) {
	text, err := r.Encode()
	if err == nil {
		_, err = board.ParseRecord(text)
	}
	if err != nil {
		l.t.Errorf("the journal got a record that is none: %v", err)
	}
	if r.Origin() != "widgiot/line3-a" || r.Generation != 1 || r.ReadAt.After(time.Now()) || time.Since(r.ReadAt) > time.Second {
		l.t.Errorf("the journal got a record of %s, generation %d, read at %v", r.Origin(), r.Generation, r.ReadAt)
	}
	if !slices.Contains(l.policy.algorithms(), r.Key.Algorithm()) {
		l.t.Errorf("the journal got a key of type %s", r.Key.Algorithm())
	}
	switch {
	case r.Proof != nil:
		if err := r.Proof.Verify(r.Device, r.Key); err != nil {
			l.t.Errorf("the journal got a false proof: %v", err)
		}
	case !l.policy.AllowUnproven:
		l.t.Error("the journal got a record without a proof")
	}
}

func (l *fakeJournal) given() (first, repeats uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, l.repeats
}

func (l *fakeJournal) holds(id board.DeviceID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.records[id]
	return ok
}

// set changes how the journal answers.
func (l *fakeJournal) set(refuse error, slow chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse, l.slow = refuse, slow
}

func (l *fakeJournal) appends() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// fakePort is the port of a slot and what hangs on it. What the station sends
// with no board on it is lost.
type fakePort struct {
	t   *testing.T
	usb bool // the port is part of the board: a board that cuts itself off takes it along

	mu      sync.Mutex
	there   bool  // the port
	refusal error // of opening it
	changed chan struct{}
	open    *port    // as the station has it
	far     net.Conn // its other end
	out     chan []byte
	heard   strings.Builder
	board   net.Conn // the cable's end of the line to the board
	remove  func()
}

// port is an open port that knows whether it was closed.
type port struct {
	uart.Conn
	closed atomic.Bool
}

func (p *port) Close() error {
	p.closed.Store(true)
	return p.Conn.Close()
}

// await is SlotConfig.Open.
func (c *fakePort) await(ctx context.Context) (uart.Conn, error) {
	for {
		c.mu.Lock()
		changed := c.changed
		switch {
		case c.refusal != nil:
			defer c.mu.Unlock()
			return nil, c.refusal
		case c.there:
			defer c.mu.Unlock()
			if c.open != nil && !c.open.closed.Load() {
				c.t.Error("the port was opened while it was open")
			}
			ours, theirs := net.Pipe()
			c.far, c.out = theirs, make(chan []byte, 1024)
			go c.listen(theirs)
			out := c.out
			go func() {
				for text := range out {
					theirs.Write(text) // nobody listens on a port that was closed
				}
			}()
			c.open = &port{Conn: ours}
			return c.open, nil
		}
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// set makes the port come, go, or refuse to be opened.
func (c *fakePort) set(there bool, refusal error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.there, c.refusal = there, refusal
	if !there && c.far != nil {
		c.far.Close()
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// listen passes on what the station sends until it closes the port.
func (c *fakePort) listen(far net.Conn) {
	buf := make([]byte, 256)
	for {
		n, err := far.Read(buf)
		c.mu.Lock()
		c.heard.Write(buf[:n])
		board := c.board
		if err != nil {
			close(c.out)
			c.far, c.out = nil, nil
		}
		c.mu.Unlock()
		if err != nil {
			far.Close()
			return
		}
		if board != nil {
			board.Write(buf[:n]) // a board that is gone hears nothing
		}
	}
}

// say is what comes over the line, from whomever. It waits in a buffer until
// the station reads it.
func (c *fakePort) say(text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out == nil {
		return
	}
	select {
	case c.out <- bytes.Clone(text):
	default:
		c.t.Error("the station does not read what is on its port")
	}
}

// plug puts a board on the cable.
func (c *fakePort) plug(b *fixtures.Board) {
	theirs, ours := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	c.mu.Lock()
	c.board = ours
	c.remove = func() {
		cancel()
		ours.Close()
	}
	c.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() {
		b.Serve(ctx, theirs) // ends with its line
		theirs.Close()
	})
	both.Go(func() {
		buf := make([]byte, 256)
		for {
			n, err := ours.Read(buf)
			if err != nil {
				return
			}
			c.say(buf[:n])
		}
	})
	go func() {
		both.Wait()
		if b.CutAfter > 0 && c.usb {
			time.Sleep(time.Millisecond) // the station has read the last byte
			c.set(false, nil)
		}
	}()
}

// unplug takes the board off the cable.
func (c *fakePort) unplug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.remove != nil {
		c.remove()
	}
	c.board, c.remove = nil, nil
}

// asked counts the times that the station sent something.
func (c *fakePort) asked(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Count(c.heard.String(), what)
}

func newBoard() *fixtures.Board {
	return &fixtures.Board{Device: fixtures.NewDevice(), Key: fixtures.NewKey(), Boot: time.Second, Think: 5 * time.Millisecond, Sign: 100 * time.Millisecond}
}

// bubble is a subtest in a bubble of its own.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// script is a dialect that says what a test wants: of the board that is given
// to come, until gone.
type script struct {
	come, gone         chan struct{}
	detect, read, away func() error // what the methods return first, if not nil
	report             uart.Report
}

func newScript(r uart.Report) *script {
	return &script{report: r, come: make(chan struct{}), gone: make(chan struct{})}
}

func (d *script) Name() string { return "script" }

func (d *script) Detect(ctx context.Context, l *uart.Line) error {
	if err := await(ctx, d.come); err != nil || d.detect == nil {
		return err
	}
	return d.detect()
}

func (d *script) Read(ctx context.Context, l *uart.Line) (uart.Report, error) {
	if d.read != nil {
		return d.report, d.read()
	}
	return d.report, ctx.Err()
}

func (d *script) Gone(ctx context.Context, l *uart.Line) error {
	if d.away != nil {
		if err := d.away(); err != nil {
			return err
		}
	}
	return await(ctx, d.gone)
}

func await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// newReport is what a dialect brings of a board that is in order.
func newReport(b *fixtures.Board) uart.Report {
	r := uart.Report{Device: b.Device, SPKI: b.SPKI(), Facts: map[string]string{"dialect": "script"}, Proof: &uart.Proof{Method: "sign-msg", Hash: "sha256"}}
	for i := range 3 {
		nonce := fmt.Appendf(nil, "a nonce of 20 bytes%d", i)
		digest := sha256.Sum256(nonce)
		signature, err := ecdsa.SignASN1(rand.Reader, b.Key, digest[:])
		if err != nil {
			panic(err) // a P-256 key always signs
		}
		r.Proof.Nonces, r.Proof.Signatures = append(r.Proof.Nonces, nonce), append(r.Proof.Signatures, signature)
	}
	return r
}
