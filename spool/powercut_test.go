package spool

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

var (
	powerCuts = flag.Int("powercuts", 300, "how many crash images TestPowerCut makes")
	powerSeed = flag.Uint64("powerseed", 0, "the seed of TestPowerCut and TestEverySyncCounts; 0 takes one at random")
)

// promises are what somebody relies on at some moment.
type promises struct {
	key         string // the station's public key, once somebody has it
	receipts    map[board.DeviceID]board.Receipt
	records     map[board.DeviceID]board.Record
	confirmed   map[board.DeviceID]board.Fingerprint // by the registry
	checkpoints [][]byte                             // in the archive
	evidence    [][]byte                             // whole lines that were there when the power came back
	carried     map[string][]byte                    // files on a stick
	looked      []string                             // folders of sticks on which what does not hold was set aside
}

func noPromises() promises {
	return promises{receipts: map[board.DeviceID]board.Receipt{}, records: map[board.DeviceID]board.Record{}, confirmed: map[board.DeviceID]board.Fingerprint{}, carried: map[string][]byte{}}
}

// look opens what a power cut left, works with it, and returns the first
// promise that is broken.
func (p *promises) look(t testing.TB, dir string) (broken error) {
	defer func() {
		if r := recover(); r != nil {
			broken = fmt.Errorf("panic: %v", r)
		}
	}()
	sink := newMemorySink()
	maps.Copy(sink.have, p.confirmed)
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		return fmt.Errorf("no start: %w", err)
	}
	if p.key != "" && id.Key != p.key {
		return errors.New("the station has another key")
	}
	if err := p.lookForEvidence(dir); err != nil {
		return err
	}
	if err := p.lookAtSticks(dir); err != nil {
		return err
	}
	if index, err := os.ReadFile(indexPath(dir)); err == nil && endless(index) {
		return errors.New("no start: the index has a page below itself, and takes for ever to read")
	}
	s, err := Open(Config{Dir: dir, Identity: id, Sink: sink, SegmentSize: shiftSegment})
	if err != nil {
		return fmt.Errorf("no start: %w", err)
	}
	defer s.Close()
	if stats := s.Stats(); stats.Damaged > 0 || stats.Broken != "" || stats.Unsigned != "" || len(s.Damage()) > 0 {
		return fmt.Errorf("after the start: %+v, %v", stats, s.Damage())
	}
	if err := p.lookForEvidence(dir); err != nil {
		return err
	}
	if err := p.lookAtIndex(s); err != nil {
		return err
	}
	receipts := maps.Clone(p.receipts)
	for device, receipt := range p.receipts { // any one of them
		again, err := s.Append(t.Context(), reading(p.records[device]))
		if err != nil || !again.Repeat || again.Seq != receipt.Seq {
			return fmt.Errorf("a board again: %+v, %w, its receipt was %+v", again, err, receipt)
		}
		other := p.records[device]
		other.Key = newRecord(t).Key
		if _, err := s.Append(t.Context(), reading(other)); !errors.Is(err, board.ErrDeviceConflict) {
			return fmt.Errorf("a board with another key: %w", err)
		}
		break
	}
	fresh := newRecord(t)
	if receipts[fresh.Device], err = s.Append(t.Context(), reading(fresh)); err != nil {
		return fmt.Errorf("another board: %w", err)
	}
	for s.pass(t.Context()).more {
	}
	if stats := s.Stats(); stats.Pending > 0 || stats.Dead > 0 || stats.Broken != "" || stats.LastError != "" {
		return fmt.Errorf("after delivery: %+v", stats)
	}
	if err := errors.Join(s.Checkpoint(), s.Close()); err != nil {
		return err
	}
	if broken := invariants(dir, id, receipts); len(broken) > 0 {
		return broken[0]
	}
	for device := range receipts {
		if _, ok := sink.have[device]; !ok {
			return fmt.Errorf("device %s is not in the registry", device)
		}
	}
	for _, c := range p.checkpoints {
		if err := journal.Consistent(dir, id.Verifier, c); err != nil {
			return fmt.Errorf("a checkpoint in the archive: %w", err)
		}
	}
	return nil
}

// lookAtIndex: nothing is taken for delivered that was not, and what is sealed
// has beside it what it should.
func (p *promises) lookAtIndex(s *Spool) error {
	sealed, err := readSealed(s.db)
	if err != nil {
		return err
	}
	for first := range sealed {
		if _, err := journal.ReadLeaves(s.cfg.Dir, first); err != nil {
			return fmt.Errorf("a sealed segment: %w", err)
		}
		if _, have, err := journal.ReadCheckpointFile(journal.SealPath(s.cfg.Dir, first), s.cfg.Identity.Verifier); err != nil || !have {
			return fmt.Errorf("a sealed segment has no checkpoint (%v)", err)
		}
	}
	return s.db.View(func(tx *bolt.Tx) error {
		return tableOf(tx, bucketDevices).ForEach(func(device, value []byte) error {
			var known pointer
			if err := known.decode(value); err != nil {
				return err
			}
			if key, ok := p.confirmed[board.DeviceID(device)]; known.Delivered != 0 && (!ok || key != known.Key) {
				return fmt.Errorf("device %x is taken for delivered", device)
			}
			return nil
		})
	})
}

// lookAtSticks: what was written is there, and what was set aside stays there.
func (p *promises) lookAtSticks(dir string) error {
	for path, want := range p.carried {
		if have, err := os.ReadFile(filepath.Join(dir, path)); err != nil || !bytes.Equal(have, want) {
			return fmt.Errorf("on the stick: %s is not what was written (%v)", path, err)
		}
	}
	for _, folder := range p.looked {
		runs, err := listRuns(filepath.Join(dir, folder))
		if err != nil {
			return err
		}
		for _, r := range runs {
			data, err := os.ReadFile(filepath.Join(dir, folder, r.name(endBundle)))
			if err == nil {
				_, err = parseBundle(data)
			}
			if err != nil {
				return fmt.Errorf("on the stick: %s was set aside: %w", r.name(endBundle), err)
			}
		}
	}
	return nil
}

// lookForEvidence: what was whole is in the journal or beside it.
func (p *promises) lookForEvidence(dir string) error {
	if len(p.evidence) == 0 {
		return nil
	}
	var all []byte
	for _, pattern := range []string{journal.SegmentPath(dir, 0), journal.QuarantinePath(dir, "*.torn")} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all = append(all, data...)
		}
	}
	for _, line := range p.evidence {
		if !bytes.Contains(all, line) {
			return errors.New("a whole line is gone")
		}
	}
	return nil
}

// moments chooses when the power fails, in order. Half of the times are where
// most is at stake: before a sync, of each kind as often as of the others. If
// there is a sync that is not done, half are before one of those that follow
// it, the first time that it is not.
func (s *shift) moments(n int, without string, random *rand.Rand) []int {
	syncs := map[string][]int{}
	var after []int
	for i, o := range s.rec.ops {
		if o.call != "" {
			syncs[o.call] = append(syncs[o.call], i)
			if len(syncs[without]) > 0 && len(after) < 8 {
				after = append(after, i)
			}
		}
	}
	calls := slices.Sorted(maps.Keys(syncs))
	moments := make([]int, n)
	for i := range moments {
		switch {
		case without != "" && i%2 == 0:
			moments[i] = after[random.IntN(len(after))]
		case without != "" || i%2 == 0:
			moments[i] = s.rec.start + 1 + random.IntN(len(s.rec.ops)-s.rec.start)
		default:
			before := syncs[calls[random.IntN(len(calls))]]
			moments[i] = before[random.IntN(len(before))]
		}
	}
	slices.Sort(moments)
	return moments
}

// cut makes crash images of a shift, so many, and stops when found says so. It
// returns how many it made.
func (s *shift) cut(t testing.TB, without string, images int, random *rand.Rand, found func(error) (stop bool)) int {
	t.Helper()
	c := newCrashed(without)
	done := 0
	for i, moment := range s.moments(images, without, random) {
		for ; done < moment; done++ {
			c.do(s.rec.ops[done])
		}
		dir, err := os.MkdirTemp(filepath.Dir(s.dir), "spool-test-cut-")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.write(dir, random); err != nil {
			t.Fatal(err)
		}
		broken := c.promises.look(t, dir)
		os.RemoveAll(dir)
		if broken != nil && found(fmt.Errorf("after %d of %d calls: %w", moment, len(s.rec.ops), broken)) {
			return i + 1
		}
	}
	return images
}

func newSeed(t testing.TB) *rand.Rand {
	t.Helper()
	seed := *powerSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-powerseed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// The power fails at any moment: what was written since the last sync of each
// file and folder is there or not, in any order, torn. Every promise given by
// then is kept, the journal is not damaged, and the station starts and goes on.
// More of them:
//
//	go test ./spool -run TestPowerCut -timeout 0 -v -args -powercuts 100000
func TestPowerCut(t *testing.T) {
	images := *powerCuts
	if testing.Short() || raceDetector {
		images = min(images, 60)
	}
	for name, work := range shifts {
		t.Run(name, func(t *testing.T) {
			s := work(t)
			s.spool.Close()
			s.rec.promised(func(*promises) {})
			s.cut(t, "", images/len(shifts)+1, newSeed(t), func(err error) bool {
				t.Error(err)
				return true
			})
		})
	}
}

// removedCuts is after how many power cuts that broke nothing a sync counts as
// one that is not needed. Most show it in a few dozen.
const removedCuts = 6000

// syncs are all calls in the package that sync something, and the shift in
// which a power cut shows that each is needed.
var syncs = map[string]string{
	callIndexCommit:         "a lost index",
	"write: s.file.Sync()":  "a first shift",
	"openSegment: f.Sync()": "killed before a sync",
	"begin: s.cfg.disk.SyncDir(journal.Dir(s.cfg.Dir))": "a first shift",
	"begin: s.cfg.disk.SyncDir(s.cfg.Dir)":              "a first shift",
	"WriteFile: f.Sync()":                               "a first shift",
	"WriteFile: d.SyncDir(filepath.Dir(path))":          "a first shift",
	"Quarantine: d.SyncDir(Dir(dir))":                   "a torn group",
	"makeFolder: d.SyncDir(filepath.Dir(folder))":       "a stick",
	"makeFolder: d.SyncDir(media)":                      "a stick",
	"readExisting: e.disk.SyncDir(e.folder)":            "a stick",
	"catchUpIndex: o.cfg.disk.syncIndex(db)":            "a lost index",
	"catchUpIndex: o.cfg.disk.SyncDir(dir)":             "a lost index",
}

// Without any one of the syncs in the code there is a power cut that breaks a
// promise. That they are all of them is read from the code.
func TestEverySyncCounts(t *testing.T) {
	if raceDetector {
		t.Skip("run it without -race: one goroutine works here")
	}
	calls := syncCalls(t)
	calls[callIndexCommit] = ""
	for call := range calls {
		if _, ok := syncs[call]; !ok {
			t.Errorf("%s: which shift shows that it is needed?", call)
		}
	}
	for call, name := range syncs {
		t.Run(call, func(t *testing.T) {
			if _, ok := calls[call]; !ok {
				t.Fatal("it is not in the code any more")
			}
			s := shifts[name](t)
			s.spool.Close()
			s.rec.promised(func(*promises) {})
			var broken error
			random := newSeed(t)
			cuts := 0
			for broken == nil && cuts < removedCuts {
				cuts += s.cut(t, call, 50, random, func(err error) bool {
					broken = err
					return true
				})
			}
			if broken == nil {
				t.Errorf("%s: without it %d power cuts broke nothing", name, removedCuts)
			}
			t.Logf("%s, power cut %d: %v", name, cuts, broken)
		})
	}
}
