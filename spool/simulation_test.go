package spool

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

var (
	simSeeds = flag.Int("simseeds", 8, "how many histories TestSimulation makes")
	simSeed  = flag.Uint64("simseed", 0, "the seed of TestSimulation's first history; 0 takes one at random")
	simTries = flag.Int("simtries", 100, "how often TestSimulation tries to make a history shorter that breaks a promise")
	simSteps = flag.Int("simsteps", 40, "how many steps each of them has")
)

// simRegistry is one registry for all stations: devices, the archive and the
// accepted checkpoints. It fails as it is told to, and remembers everything.
type simRegistry struct {
	mu       sync.Mutex
	random   *rand.Rand
	have     map[board.DeviceID]board.Fingerprint
	owners   map[board.Fingerprint]board.DeviceID
	segments map[string]map[uint64][]byte
	accepted map[string][]byte
	mode     string // good, away, flaky
	broken   error  // a promise that a station broke against it
}

// fate decides on a call: whether it is applied, and what is answered.
func (r *simRegistry) fate() (apply bool, err error) {
	switch r.mode {
	case "away":
		return false, errAway
	case "flaky":
		switch r.random.IntN(4) {
		case 0:
			return false, errAway
		case 1:
			return true, errAway // the answer is lost
		}
	}
	return true, nil
}

// simSite is the registry as one station sees it.
type simSite struct {
	*simRegistry
	origin string
}

func (s simSite) Put(_ context.Context, sealed board.Sealed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	apply, err := s.fate()
	if !apply {
		return err
	}
	r := sealed.Record()
	f := r.Fingerprint()
	if known, ok := s.have[r.Device]; ok && known != f {
		return &board.Conflict{Kind: board.ErrDeviceConflict, Device: r.Device, Key: f, KnownDevice: r.Device, KnownKey: known}
	}
	if owner, ok := s.owners[f]; ok && owner != r.Device {
		return &board.Conflict{Kind: board.ErrKeyConflict, Device: r.Device, Key: f, KnownDevice: owner, KnownKey: f}
	}
	s.have[r.Device], s.owners[f] = f, r.Device
	return err
}

func (s simSite) PutSegment(_ context.Context, a ArchivedSegment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	apply, err := s.fate()
	if !apply {
		return err
	}
	if s.segments[s.origin] == nil {
		s.segments[s.origin] = map[uint64][]byte{}
	}
	if known, ok := s.segments[s.origin][a.First]; ok && !bytes.Equal(known, a.Lines) {
		s.broken = errors.Join(s.broken, fmt.Errorf("segment %d of %s was archived from two journals", a.First, s.origin))
		return journal.ErrFork
	}
	s.segments[s.origin][a.First] = bytes.Clone(a.Lines)
	return err
}

func (s simSite) PutCheckpoint(context.Context, []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.fate()
	return err
}

func (s simSite) AcceptedCheckpoint(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.fate(); err != nil {
		return nil, err
	}
	return s.simRegistry.accepted[s.origin], nil
}

func (s simSite) MoveCheckpoint(_ context.Context, from, to []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	apply, err := s.fate()
	if !apply {
		return err
	}
	if !bytes.Equal(s.simRegistry.accepted[s.origin], from) {
		return errMoved
	}
	s.simRegistry.accepted[s.origin] = to
	return err
}

func (s simSite) segment(first uint64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.segments[s.origin][first]
	if !ok {
		return nil, os.ErrNotExist
	}
	return data, nil
}

// simStation is a machine with a state folder.
type simStation struct {
	name   string // for people
	dir    string
	id     journal.Identity
	site   simSite
	plan   *faultPlan
	spool  *Spool
	cancel context.CancelFunc
	ended  chan error
	// shown are the PASSes that somebody saw, with their keys.
	shown   map[board.DeviceID]shownPass
	setBack bool // the folder is an old copy of itself
	damaged bool // bytes were changed under the station
	told    bool // a notice of damage has come
	mu      sync.Mutex
}

type shownPass struct {
	key board.Fingerprint
	seq uint64
}

func (s *simStation) start() error {
	s.plan = &faultPlan{}
	opened, err := Open(Config{
		Dir: s.dir, Identity: s.id, Sink: s.site, Archive: s.site, Checkpoints: s.site, SegmentSize: 4 << 10, disk: faulty{plan: s.plan},
		Notify: func(n string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.told = s.told || strings.Contains(n, "damage") || strings.Contains(n, "quarantine") || strings.Contains(n, "cut")
		},
	})
	if err != nil {
		return fmt.Errorf("%s does not start: %w", s.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.spool, s.cancel, s.ended = opened, cancel, make(chan error, 1)
	go func() { s.ended <- opened.Run(ctx) }()
	return nil
}

func (s *simStation) stop() {
	if s.spool == nil {
		return
	}
	s.cancel()
	<-s.ended // an error of a disk that fails is no surprise
	s.spool.Close()
	s.spool = nil
}

func (s *simStation) restart() error {
	s.stop()
	return s.start()
}

// simWorld is everything.
type simWorld struct {
	t        *testing.T
	root     string
	registry *simRegistry
	stations []*simStation
	pool     []board.Record
	backups  map[*simStation]string
}

func (w *simWorld) add(name string, id journal.Identity, dir string) *simStation {
	s := &simStation{name: name, dir: dir, id: id, site: simSite{w.registry, id.Signer.Name()}, shown: map[board.DeviceID]shownPass{}}
	w.stations = append(w.stations, s)
	return s
}

func (w *simWorld) some(random *rand.Rand) *simStation {
	return w.stations[random.IntN(len(w.stations))]
}

// simStep is one thing that happens. Its random numbers are its own, so that
// other steps can be left out.
type simStep struct {
	kind int
	seed uint64
}

// simKinds are what may happen.
var simKinds = []struct {
	name   string
	weight int
	do     func(w *simWorld, random *rand.Rand) error
}{
	{"boards", 12, (*simWorld).boards},
	{"wait", 8, func(_ *simWorld, random *rand.Rand) error {
		time.Sleep([]time.Duration{time.Second, time.Minute, 20 * time.Minute, 3 * time.Hour}[random.IntN(4)])
		return nil
	}},
	{"registry", 4, func(w *simWorld, random *rand.Rand) error {
		w.registry.mu.Lock()
		defer w.registry.mu.Unlock()
		w.registry.mode = []string{"good", "good", "flaky", "away"}[random.IntN(4)]
		return nil
	}},
	{"restart", 2, func(w *simWorld, random *rand.Rand) error { return w.some(random).restart() }},
	{"kill", 3, func(w *simWorld, random *rand.Rand) error {
		ops := []string{"open", "write", "short", "sync", "rename", "syncdir", "page", "meta", "commit"}
		return w.failing(random, faultPlan{op: ops[random.IntN(len(ops))], after: random.IntN(12), err: syscall.EIO, dead: true})
	}},
	{"disk", 2, func(w *simWorld, random *rand.Rand) error {
		ops := []string{"open", "write", "short", "sync", "rename", "syncdir"}
		errs := []error{syscall.EIO, syscall.ENOSPC}
		return w.failing(random, faultPlan{op: ops[random.IntN(len(ops))], after: random.IntN(6), err: errs[random.IntN(2)]})
	}},
	{"lose the index", 2, func(w *simWorld, random *rand.Rand) error {
		s := w.some(random)
		s.stop()
		if err := os.Remove(indexPath(s.dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return s.start()
	}},
	{"flip a bit of the index", 3, (*simWorld).flipIndex},
	{"damage", 2, (*simWorld).damage},
	{"tear", 1, func(w *simWorld, random *rand.Rand) error {
		s := w.some(random)
		s.stop()
		segments, err := journal.ListSegments(s.dir)
		if err != nil || len(segments) == 0 {
			return errors.Join(err, s.start())
		}
		f, err := os.OpenFile(journal.SegmentPath(s.dir, segments[len(segments)-1].First), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(`{"seq":`)
		return errors.Join(err, f.Close(), s.start())
	}},
	{"backup", 2, func(w *simWorld, random *rand.Rand) error {
		s := w.some(random)
		s.stop()
		to := filepath.Join(w.root, fmt.Sprintf("backup-%d", random.Uint64()))
		copyState(w.t, s.dir, to)
		w.backups[s] = to
		return s.start()
	}},
	{"set back", 1, func(w *simWorld, random *rand.Rand) error {
		s := w.some(random)
		if w.backups[s] == "" {
			return nil
		}
		s.stop()
		copyState(w.t, w.backups[s], s.dir)
		s.setBack = true
		return s.start()
	}},
	{"clone", 1, func(w *simWorld, random *rand.Rand) error {
		s := w.some(random)
		if len(w.stations) > 3 {
			return nil
		}
		s.stop()
		dir := filepath.Join(w.root, fmt.Sprintf("clone-%d", random.Uint64()))
		copyState(w.t, s.dir, dir)
		clone := w.add("a clone of "+s.name, s.id, dir)
		clone.setBack, clone.damaged = s.setBack, s.damaged
		return errors.Join(s.start(), clone.start())
	}},
	{"repair", 1, func(w *simWorld, random *rand.Rand) error { return w.repair(w.some(random)) }},
}

// boards reads some, on one station: new ones, the same again, and ones with
// the id or the key of another.
func (w *simWorld) boards(random *rand.Rand) error {
	s := w.some(random)
	for range 1 + random.IntN(8) {
		var r board.Record
		switch {
		case len(w.pool) == 0 || random.IntN(3) > 0:
			r = newRecord(w.t)
			w.pool = append(w.pool, r)
		default:
			r = w.pool[random.IntN(len(w.pool))]
			if random.IntN(3) == 0 {
				r.Key = w.pool[random.IntN(len(w.pool))].Key
			}
		}
		_, r.Station, _ = strings.Cut(s.id.Signer.Name(), "/")
		receipt, err := s.spool.Append(context.Background(), reading(r))
		if err != nil {
			continue // shown as a failure: nothing is promised
		}
		if before, ok := s.shown[r.Device]; ok && before.key != r.Fingerprint() && !s.setBack && !s.damaged {
			return fmt.Errorf("%s shows PASS for device %s with two keys", s.name, r.Device)
		}
		s.shown[r.Device] = shownPass{r.Fingerprint(), receipt.Seq}
	}
	return nil
}

// failing has a station work while its disk fails, and then restarts it.
func (w *simWorld) failing(random *rand.Rand, plan faultPlan) error {
	s := w.some(random)
	s.spool.mu.Lock()
	*s.plan = plan
	s.spool.mu.Unlock()
	for range 4 {
		if err := w.boardsOf(s, 2); err != nil {
			return err
		}
		time.Sleep(time.Minute)
	}
	return s.restart()
}

func (w *simWorld) boardsOf(s *simStation, n int) error {
	for range n {
		r := newRecord(w.t)
		_, r.Station, _ = strings.Cut(s.id.Signer.Name(), "/")
		w.pool = append(w.pool, r)
		if receipt, err := s.spool.Append(context.Background(), reading(r)); err == nil {
			s.shown[r.Device] = shownPass{r.Fingerprint(), receipt.Seq}
		}
	}
	return nil
}

// flipIndex flips a bit of the index, of a station that is stopped or runs.
func (w *simWorld) flipIndex(random *rand.Rand) error {
	s := w.some(random)
	stopped := random.IntN(2) == 0
	if stopped {
		s.stop()
	}
	f, err := os.OpenFile(indexPath(s.dir), os.O_RDWR, 0)
	if err == nil {
		var info os.FileInfo
		if info, err = f.Stat(); err == nil && info.Size() > 0 {
			at, b := random.Int64N(info.Size()), make([]byte, 1)
			if _, err = f.ReadAt(b, at); err == nil {
				b[0] ^= 1 << random.IntN(8)
				_, err = f.WriteAt(b, at)
			}
		}
		err = errors.Join(err, f.Close())
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if stopped {
		err = errors.Join(err, s.start())
	}
	return err
}

// damage flips a bit of a sealed segment.
func (w *simWorld) damage(random *rand.Rand) error {
	s := w.some(random)
	s.stop()
	segments, err := journal.ListSegments(s.dir)
	if err != nil {
		return err
	}
	if len(segments) > 1 {
		name := journal.SegmentPath(s.dir, segments[random.IntN(len(segments)-1)].First)
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		data[random.IntN(len(data))] ^= 1 << random.IntN(8)
		if err := errors.Join(os.Chmod(name, 0o600), os.WriteFile(name, data, 0o400)); err != nil {
			return err
		}
		s.damaged = true
	}
	return s.start()
}

func (w *simWorld) repair(s *simStation) error {
	s.stop()
	if _, err := Repair(s.dir, s.id.Verifier, Sources{Segment: s.site.segment}, false); err != nil {
		return fmt.Errorf("repairing %s: %w", s.name, err)
	}
	return s.start()
}

// check is what must hold at any time.
func (w *simWorld) check() error {
	w.registry.mu.Lock()
	defer w.registry.mu.Unlock()
	if w.registry.broken != nil {
		return w.registry.broken
	}
	if len(w.registry.have) != len(w.registry.owners) {
		return errors.New("the registry has a device with two keys, or a key of two devices")
	}
	for _, s := range w.stations {
		if s.setBack || s.damaged {
			continue
		}
		for device, pass := range s.shown {
			h, err := s.spool.Entries(device)
			if errors.Is(err, ErrClosed) || errors.Is(err, errIndexUnusable) { // it is noticed, and made anew
				break
			}
			if err != nil || !slices.Contains(h, pass.seq) {
				return fmt.Errorf("%s showed PASS for %s at entry %d, and its index has %v (%v)", s.name, device, pass.seq, h, err)
			}
		}
	}
	return nil
}

// settle ends all faults, lets time pass, and holds the world against what was
// promised.
func (w *simWorld) settle() (err error) {
	w.registry.mu.Lock()
	w.registry.mode = "good"
	w.registry.mu.Unlock()
	for _, s := range w.stations {
		if err := s.restart(); err != nil {
			return err
		}
	}
	time.Sleep(4 * time.Hour)
	if err := w.check(); err != nil {
		return err
	}
	for _, s := range w.stations {
		if s.damaged {
			if err := w.repair(s); err != nil {
				return err
			}
		}
	}
	time.Sleep(4 * time.Hour)
	for _, s := range w.stations {
		stats := s.spool.Stats()
		s.stop()
		if stats.Pending > 0 || stats.Broken != "" {
			return fmt.Errorf("%s does not come to rest: %+v", s.name, stats)
		}
		// Forked says whether the accepted checkpoint is one of this journal.
		text := w.registry.accepted[s.id.Signer.Name()]
		consistent := journal.Consistent(s.dir, s.id.Verifier, text)
		if text != nil && !errors.Is(consistent, journal.ErrUnsigned) && stats.Forked != (consistent != nil) {
			return fmt.Errorf("%s: forked is %v (%s), and the accepted checkpoint: %v", s.name, stats.Forked, stats.ArchiveError, consistent)
		}
		if stats.Damaged > 0 && !s.damaged {
			return fmt.Errorf("%s has damage that nobody did: %+v", s.name, stats)
		}
		if err := w.passes(s, &stats); err != nil {
			return err
		}
		if _, err := journal.VerifyDir(s.dir, s.id.Verifier); s.damaged && err != nil && (!isDamage(err) || stats.Damaged == 0) {
			return fmt.Errorf("%s: damage is not told: %w: %+v", s.name, err, stats)
		}
		if !s.damaged { // a board whose record was damaged has two, once it is repaired
			receipts := map[board.DeviceID]board.Receipt{}
			if !s.setBack {
				for device, pass := range s.shown {
					receipts[device] = board.Receipt{Seq: pass.seq}
				}
			}
			if broken := invariants(s.dir, s.id, receipts); len(broken) > 0 {
				return fmt.Errorf("%s: %w", s.name, broken[0])
			}
		}
	}
	return nil
}

// passes holds that each PASS that was shown is in the registry with its key,
// or told: refused by the registry, damaged and quarantined, or lost with the
// end of a journal that was set back; settle has seen that this is forked, if a
// checkpoint over what is lost was accepted.
func (w *simWorld) passes(s *simStation, stats *Stats) error {
	dead, err := ListDead(s.dir)
	if err != nil {
		return err
	}
	for device, pass := range s.shown {
		if w.registry.have[device] == pass.key {
			continue
		}
		refused := slices.ContainsFunc(dead, func(d DeadLetter) bool { return d.Device == device })
		switch {
		case refused, s.damaged && stats.Damaged > 0, s.setBack:
		default:
			return fmt.Errorf("%s showed PASS for %s (entry %d), the registry has %q, and nobody is told: %+v", s.name, device, pass.seq, w.registry.have[device], *stats)
		}
	}
	return nil
}

// simulate makes one history, and returns the first promise that is broken.
func simulate(t *testing.T, steps []simStep) (broken error) {
	synctest.Test(t, func(t *testing.T) {
		root := tempDir(t)
		w := &simWorld{t: t, root: root, backups: map[*simStation]string{}, registry: &simRegistry{
			random: rand.New(rand.NewPCG(1, 1)), mode: "good", have: map[board.DeviceID]board.Fingerprint{}, owners: map[board.Fingerprint]board.DeviceID{},
			segments: map[string]map[uint64][]byte{}, accepted: map[string][]byte{},
		}}
		defer func() {
			if r := recover(); r != nil {
				broken = fmt.Errorf("panic: %v", r)
			}
			for _, s := range w.stations {
				s.stop()
			}
		}()
		for _, name := range []string{"line3-a", "line3-b"} {
			dir := filepath.Join(root, name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			id, err := journal.LoadIdentity(dir, "widgiot/"+name)
			if err != nil {
				t.Fatal(err)
			}
			if broken = w.add(name, id, dir).start(); broken != nil {
				return
			}
		}
		for i, step := range steps {
			err := simKinds[step.kind].do(w, rand.New(rand.NewPCG(step.seed, 7)))
			if err == nil {
				err = w.check()
			}
			if err != nil {
				broken = fmt.Errorf("step %d, %s: %w", i, simKinds[step.kind].name, err)
				return
			}
		}
		if broken = w.settle(); broken != nil {
			broken = fmt.Errorf("at the end: %w", broken)
		}
	})
	return broken
}

// simHistory chooses the steps of a seed.
func simHistory(seed uint64, n int) (steps []simStep) {
	random := rand.New(rand.NewPCG(seed, 3))
	total := 0
	for _, k := range simKinds {
		total += k.weight
	}
	for range n {
		at, kind := random.IntN(total), 0
		for at >= simKinds[kind].weight {
			at -= simKinds[kind].weight
			kind++
		}
		steps = append(steps, simStep{kind, random.Uint64()})
	}
	return steps
}

// Whatever happens to stations, disks and the registry, in whatever order: each
// PASS that was shown ends in the registry once or is told, no device has two
// owners, what was damaged is told, two journals of one name are told, and the
// archive is the journal of one machine. A history that breaks this is made
// shorter step by step. Many more:
//
//	go test ./spool -run TestSimulation -timeout 0 -v -args -simseeds 100000
func TestSimulation(t *testing.T) {
	seeds, first := *simSeeds, *simSeed
	if testing.Short() || raceDetector {
		seeds = min(seeds, 3)
	}
	if first == 0 {
		first = rand.Uint64()
	}
	for n := range seeds {
		seed := first + uint64(n)
		steps := simHistory(seed, *simSteps)
		broken := simulate(t, steps)
		if broken == nil {
			continue
		}
		tries := *simTries
		for shorter := true; shorter; {
			shorter = false
			for i := 0; i < len(steps) && tries > 0; i++ {
				tries--
				without := slices.Delete(slices.Clone(steps), i, i+1)
				if err := simulate(t, without); err != nil {
					steps, broken, shorter = without, err, true
					i--
				}
			}
		}
		var names []string
		for _, s := range steps {
			names = append(names, simKinds[s.kind].name)
		}
		t.Fatalf("-simseeds 1 -simseed %d: %v\nafter %s", seed, broken, strings.Join(names, ", "))
	}
}
