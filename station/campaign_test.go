package station

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"runtime"
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

var (
	campaignDialogues = flag.Uint64("dialogues", 0, "how many dialogues the mutation campaign has; 0 is a few")
	campaignSeed      = flag.Uint64("seed", 0, "what the mutation campaign draws its dialogues from; 0 is another one each time")
	campaignOnly      = flag.Int64("only", -1, "the number of the one dialogue of the campaign to have again, and to print")
	campaignWithin    = flag.Duration("within", 0, "the mutation campaign begins no dialogue after so long; 0 is no limit")
)

const (
	campaignFew  = 2000
	campaignMany = 20_000   // from here on every kind must have led to everything
	campaignPool = 200      // boards of each firmware, from there on
	campaignHeap = 64 << 20 // what the heap may grow by
)

// campaignKinds are what is done to a dialogue. "none" must pass, all others
// must lead to PASS somewhere, and to failure.
var campaignKinds = []string{"flip", "drop", "repeat", "cut", "splice", "swap", "reset", "event", "delay", "command", "several", "none"}

// TestCampaign: a station reads boards whose dialogues are correct but for what
// was done to them on the way. Whatever that was, PASS shows the true identity.
// The whole campaign is
//
//	go test ./station -run '^TestCampaign$' -v -timeout 2h -dialogues 1000000
//
// and what it finds can be had again with -seed, -dialogues and -only.
func TestCampaign(t *testing.T) {
	c := &campaign{seed: *campaignSeed, count: *campaignDialogues, tally: map[tallied]int{}, begin: time.Now()}
	if c.count == 0 {
		if c.count = campaignFew; testing.Short() {
			c.count /= 10
		}
	}
	for c.seed == 0 {
		c.seed = rand.Uint64()
	}
	each := 24
	if c.count >= campaignMany {
		each = campaignPool
	}
	t.Logf("seed %d, %d dialogues, %d boards of each firmware", c.seed, c.count, each)
	if !t.Run("recording", func(t *testing.T) { c.pool = recordPool(t, each, c.seed) }) {
		return
	}
	if *campaignOnly >= 0 {
		synctest.Test(t, func(t *testing.T) { c.dialogue(t, uint64(*campaignOnly)) })
		return
	}
	heap, goroutines := heapNow(), runtime.NumGoroutine()
	t.Run("dialogues", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for {
					i := c.next.Add(1) - 1
					if i >= c.count || c.wrong.Load() >= 10 || *campaignWithin > 0 && time.Since(c.begin) > *campaignWithin {
						return
					}
					// The end of a bubble is the end of its goroutines: one
					// that is left fails the test.
					synctest.Test(t, func(t *testing.T) { c.dialogue(t, i) })
				}
			})
		}
	})
	t.Logf("%d dialogues in %v, %d that must not be\n%s", c.had(), time.Since(c.begin).Round(time.Second), c.wrong.Load(), c.table())
	for limit := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines && time.Now().Before(limit); {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	if more := heapNow() - heap; more > campaignHeap {
		t.Errorf("the heap has grown by %d bytes", more)
	}
	c.reached(t)
}

func heapNow() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

type campaign struct {
	seed, count uint64
	pool        map[string][]*recorded
	begin       time.Time
	next        atomic.Uint64
	wrong       atomic.Int64

	mu    sync.Mutex
	tally map[tallied]int
}

type tallied struct{ dialect, kind, verdict string }

// plan draws what happens to a dialogue of so many bytes.
func plan(rng *rand.Rand, kind string, length int) (steps []mutation, command int) {
	command = -1
	if kind == "none" {
		return nil, command
	}
	n := 1
	switch kind {
	case "several":
		n = 2 + rng.IntN(4)
	case "reset", "event": // one is seldom too many
		n = 1 + rng.IntN(3)
	}
	for range n {
		k := kind
		if kind == "several" {
			k = campaignKinds[rng.IntN(len(campaignKinds)-2)]
		}
		if k == "command" {
			command = rng.IntN(200)
			continue
		}
		m := mutation{kind: k, at: rng.IntN(length + length/8)}
		switch k {
		case "flip":
			m.n = rng.IntN(8)
		case "drop", "repeat":
			m.n = 1 + rng.IntN(3)
			if rng.IntN(3) == 0 {
				m.n = 1 + rng.IntN(80)
			}
		case "cut": // for ever, with the line, or an answer
			m.n = rng.IntN(4)
		case "event":
			m.n = rng.IntN(3)
		case "reset":
			m.wait = time.Duration(rng.IntN(6000)) * time.Millisecond
		case "delay":
			m.wait = time.Millisecond << rng.IntN(16)
		}
		steps = append(steps, m)
	}
	slices.SortStableFunc(steps, func(a, b mutation) int { return a.at - b.at })
	return steps, command
}

// dialogue has one dialogue and checks its verdict. It runs in a bubble of its
// own.
func (c *campaign) dialogue(t *testing.T, i uint64) {
	rng := rand.New(rand.NewPCG(c.seed, i))
	firmware := []string{fixtures.DialectAT, fixtures.DialectCSR, fixtures.DialectReport}[rng.IntN(3)]
	name := firmware
	if rng.IntN(4) == 0 {
		name = []string{"auto", "auto/ti-at", "auto/ti-csr", "auto/report"}[rng.IntN(4)]
	}
	dialect, err := uart.DialectByName(name)
	if err != nil {
		t.Fatal(err)
	}
	boards := c.pool[firmware]
	first := rng.IntN(len(boards))
	one, two := boards[first], boards[(first+1+rng.IntN(len(boards)-1))%len(boards)]
	kind := campaignKinds[rng.IntN(len(campaignKinds))]
	p := &player{rng: rng, now: one, next: two, out: make(chan op, 1024)}
	p.plan, p.spoil = plan(rng, kind, one.length)
	planned := fmt.Sprintf("%+v, byte %d of the commands", p.plan, p.spoil)

	w := &witness{truth: []*recorded{one}}
	if strings.Contains(planned, "splice") {
		w.truth = append(w.truth, two)
	}
	w.scene, err = NewPrecondition("")
	if err != nil {
		t.Fatal(err)
	}
	verdict, state, kept := playBoard(t, dialect, p, w)
	faults := w.faults
	if state.state == Passed && !w.receipt[state.device] {
		faults = append(faults, "PASS without a receipt for "+state.device.String())
	}
	if kind == "none" && state.state != Passed {
		faults = append(faults, "a good board is refused: "+verdict)
	}
	if len(faults) > 0 {
		c.wrong.Add(1)
	}
	if len(faults) > 0 || *campaignOnly >= 0 {
		text := []byte("no transcript")
		if kept != nil {
			if text, err = kept.Encode(); err != nil {
				t.Error(err)
			}
		}
		report := t.Errorf
		if len(faults) == 0 {
			report = t.Logf
		}
		report("seed %d, dialogue %d of %d, %s, %s: %s, device %v; true are %v\n%s\n%s", c.seed, i, c.count, name, planned, verdict,
			state.device, w.truth[0].device, strings.Join(faults, "\n"), text)
	}
	asked, _, _ := strings.Cut(name, "/")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tally[tallied{asked, kind, verdict}]++
}

// playBoard has a station read what a player plays, and returns the verdict. It
// runs in a bubble of its own.
func playBoard(t *testing.T, dialect uart.Dialect, p *player, w *witness) (verdict string, state slotState, kept *uart.Transcript) {
	near, far := net.Pipe()
	opened := false
	s, err := New(Config{
		SKU: "widgiot", Station: "line3-a", Journal: w, Log: zerolog.New(w).Level(zerolog.ErrorLevel),
		Backlog: func() Backlog { return Backlog{} }, Delivery: func(board.DeviceID) Delivery { return Waiting },
		Transcript: func(_ string, t *uart.Transcript) error { kept = t; return nil },
		Slots: []SlotConfig{{Name: "A", Dialect: dialect, Nonce: p.nonce, Open: func(ctx context.Context) (uart.Conn, error) {
			if opened {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			opened = true
			return near, nil
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() { p.play(far) })
	verdict, state = awaitVerdict(s)
	cancel()
	near.Close()
	far.Close()
	running.Wait()
	return verdict, state, kept
}

// awaitVerdict waits until the slot says something about the board.
func awaitVerdict(s *Station) (verdict string, state slotState) {
	limit := time.NewTimer(10 * time.Minute)
	defer limit.Stop()
	for there := false; ; {
		s.mu.Lock()
		state := s.states[0]
		changed := s.changed
		s.mu.Unlock()
		switch {
		case state.state == Passed:
			return "PASS", state
		case state.state == Failed:
			return string(state.reason), state
		case state.state == Absent && there:
			return "no port", state
		}
		there = there || state.state != Absent
		select {
		case <-changed:
		case <-limit.C:
			return "no board", state
		}
	}
}

// witness is the journal, and knows what is true.
type witness struct {
	scene   *Precondition
	truth   []*recorded
	receipt map[board.DeviceID]bool
	faults  []string
}

func (w *witness) Append(ctx context.Context, o Outcome) (board.Receipt, error) {
	if o.Record == nil {
		return board.Receipt{}, nil
	}
	r := *o.Record
	receipt, err := w.scene.Append(ctx, Outcome{Record: &r})
	if err != nil {
		return receipt, err
	}
	w.receipt = map[board.DeviceID]bool{r.Device: true}
	if !slices.ContainsFunc(w.truth, func(b *recorded) bool { return b.device == r.Device && b.key == r.Key }) {
		w.faults = append(w.faults, fmt.Sprintf("wrong identity: %s with key %s", r.Device, r.Fingerprint()))
	}
	return receipt, nil
}

// Write is the log of errors: the station catches panics of a dialect.
func (w *witness) Write(line []byte) (int, error) {
	w.faults = append(w.faults, string(bytes.TrimSpace(line)))
	return len(line), nil
}

func (c *campaign) had() (n int) {
	for _, count := range c.tally {
		n += count
	}
	return n
}

// table counts verdicts, by kind and by dialect.
func (c *campaign) table() string {
	verdicts := map[string]bool{}
	rows := map[string]map[string]int{}
	add := func(row, verdict string, n int) {
		if rows[row] == nil {
			rows[row] = map[string]int{}
		}
		rows[row][verdict] += n
		rows[row]["all"] += n
	}
	for k, n := range c.tally {
		verdicts[k.verdict] = true
		add("all", k.verdict, n)
		add(k.dialect, k.verdict, n)
		add("  "+k.kind, k.verdict, n)
		add(k.dialect+" "+k.kind, k.verdict, n)
	}
	columns := append([]string{"all"}, slices.Sorted(maps.Keys(verdicts))...)
	var out strings.Builder
	fmt.Fprintf(&out, "%-16s", "")
	for _, v := range columns {
		fmt.Fprintf(&out, "%*s", max(9, len(v)+1), v)
	}
	for _, row := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(&out, "\n%-16s", row)
		for _, v := range columns {
			fmt.Fprintf(&out, "%*d", max(9, len(v)+1), rows[row][v])
		}
	}
	return out.String()
}

// reached fails if what was done to the dialogues did not lead to both
// verdicts: then it would have shown nothing.
func (c *campaign) reached(t *testing.T) {
	if c.had() < campaignMany {
		return
	}
	passed, failed, reasons := map[string]int{}, map[string]int{}, map[string]int{}
	for k, n := range c.tally {
		if reasons[k.verdict] += n; k.verdict == "PASS" {
			passed[k.kind] += n
		} else {
			failed[k.kind] += n
		}
	}
	for _, kind := range campaignKinds {
		if passed[kind] == 0 || failed[kind] == 0 && kind != "none" {
			t.Errorf("%s led to PASS %d times, and %d times not", kind, passed[kind], failed[kind])
		}
	}
	for _, reason := range []Reason{ReasonGarbled, ReasonTimeout, ReasonNoProof, ReasonUnplugged, ReasonNeedsReset} {
		if reasons[string(reason)] == 0 {
			t.Errorf("nothing led to %s", reason)
		}
	}
}
