package spool

import (
	"errors"
	"flag"
	"maps"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

var (
	modelRuns = flag.Int("modelruns", 20, "how many spools TestModel compares with its model")
	modelSeed = flag.Uint64("modelseed", 0, "the seed of TestModel's first run; 0 takes one at random")
)

// model is what a spool promises, without files.
type model struct {
	keys    map[board.DeviceID]board.Fingerprint
	owners  map[board.Fingerprint]board.DeviceID
	seqs    map[board.DeviceID]uint64
	pending map[board.DeviceID]bool
	dead    map[board.DeviceID]bool
	foreign map[board.DeviceID]bool // the registry knows them with another key
	// rejected are those whose refusal is journaled, until the registry takes
	// them.
	rejected map[board.DeviceID]bool
}

func (m *model) append(r board.Record) (repeat bool, err error) {
	f := r.Fingerprint()
	if known, ok := m.keys[r.Device]; ok && known != f {
		return false, board.ErrDeviceConflict
	}
	if owner, ok := m.owners[f]; ok && owner != r.Device {
		return false, board.ErrKeyConflict
	}
	_, repeat = m.keys[r.Device]
	return repeat, nil
}

func (m *model) enrolled(r board.Record, seq uint64) {
	if _, ok := m.keys[r.Device]; !ok {
		m.pending[r.Device] = true
	}
	m.keys[r.Device], m.owners[r.Fingerprint()], m.seqs[r.Device] = r.Fingerprint(), r.Device, seq
}

// lostIndex: all is delivered once more, bar what the registry refused. That
// somebody requeued it is not in the journal.
func (m *model) lostIndex() {
	clear(m.pending)
	for device := range m.keys {
		m.pending[device] = !m.rejected[device]
	}
	maps.DeleteFunc(m.pending, func(_ board.DeviceID, waits bool) bool { return !waits })
	m.dead = maps.Clone(m.rejected)
}

func (m *model) delivered() {
	for device := range m.pending {
		if m.foreign[device] {
			m.dead[device], m.rejected[device] = true, true
		} else {
			delete(m.rejected, device)
		}
	}
	clear(m.pending)
}

// modelRun is a spool beside its model.
type modelRun struct {
	*kit
	m      model
	random *rand.Rand
	pool   []board.Record
}

func (r *modelRun) record() board.Record {
	out := r.pool[r.random.IntN(len(r.pool))]
	switch r.random.IntN(4) {
	case 0:
		out = newRecord(r.t)
		r.pool = append(r.pool, out)
	case 1: // parts of two boards
		out.Key = r.pool[r.random.IntN(len(r.pool))].Key
	}
	return out
}

func (r *modelRun) append() {
	record := r.record()
	repeat, want := r.m.append(record)
	receipt, err := r.kit.append(record)
	if !errors.Is(err, want) || (err == nil) != (want == nil) || receipt.Repeat != repeat {
		r.t.Fatalf("Append: %+v, %v, want repeat %v, %v", receipt, err, repeat, want)
	}
	if err != nil {
		return
	}
	if repeat && r.m.seqs[record.Device] != receipt.Seq {
		r.t.Fatalf("a repeat has seq %d, its record %d", receipt.Seq, r.m.seqs[record.Device])
	}
	r.m.enrolled(record, receipt.Seq)
}

// crash ends the process at some call on the disk, while a board is read, a
// checkpoint is signed or records are delivered. A board without a receipt may
// be in the journal or not; to read it again settles it.
func (r *modelRun) crash() {
	ops := []string{"open", "write", "short", "sync", "rename", "syncdir", "page", "meta", "commit"}
	r.spool.Close()
	plan := faultPlan{op: ops[r.random.IntN(len(ops))], after: r.random.IntN(20), err: syscall.EIO, dead: true}
	r.disk = faulty{plan: &plan}
	var unsure []board.Record
	if s, err := Open(r.config()); err == nil {
		r.spool = s
		for !plan.fired && len(unsure) < 8 {
			record := r.record()
			repeat, want := r.m.append(record)
			switch receipt, err := r.kit.append(record); {
			case err == nil && (want != nil || receipt.Repeat != repeat):
				r.t.Fatalf("Append: %+v, want repeat %v, %v", receipt, repeat, want)
			case err == nil:
				r.m.enrolled(record, receipt.Seq)
			case want == nil:
				unsure = append(unsure, record)
			}
			r.spool.Checkpoint()
			r.spool.pass(r.t.Context())
			r.spool.archiveNext(r.t.Context())
		}
		r.spool.Close()
	}
	r.disk = nil
	r.mustOpen()
	for _, record := range unsure {
		receipt, err := r.kit.append(record)
		if err != nil {
			r.t.Fatalf("a board that had no receipt: %v", err)
		}
		r.m.enrolled(record, receipt.Seq)
	}
	r.resync()
}

// resync takes over what is known only to the disk: which answers of the
// registry were noted. What waits no more must be there.
func (r *modelRun) resync() {
	queue, dead, rejected := map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}
	err := r.spool.view(func(tx *bolt.Tx) error {
		for name, into := range map[string]map[uint64]bool{string(bucketQueue): queue, string(bucketDead): dead, string(bucketRejected): rejected} {
			if err := tableOf(tx, []byte(name)).ForEach(func(key, _ []byte) error {
				seq, err := decodeSeq(key)
				into[seq] = true
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	clear(r.m.pending)
	clear(r.m.dead)
	clear(r.m.rejected)
	for device, seq := range r.m.seqs {
		if rejected[seq] {
			r.m.rejected[device] = true
		}
		switch {
		case queue[seq]:
			r.m.pending[device] = true
		case dead[seq]:
			if r.m.dead[device] = true; !r.m.rejected[device] {
				r.t.Fatalf("device %s is a dead letter", device)
			}
		case r.sink.have[device] != r.m.keys[device]:
			r.t.Fatalf("device %s waits no more, and is not in the registry", device)
		}
	}
}

// through makes passes over the queue until everything is settled.
func (r *modelRun) through() {
	for range 100 {
		clear(r.spool.retries) // nobody waits here
		if r.spool.pass(r.t.Context()); r.spool.Stats().Pending == 0 {
			return
		}
	}
	r.t.Fatalf("it does not end: %+v", r.spool.Stats())
}

// modelSteps are what may happen, with the model's view of it.
var modelSteps = []struct {
	name   string
	weight int
	do     func(r *modelRun)
}{
	{"append", 14, (*modelRun).append},
	{"crash", 2, (*modelRun).crash},
	{"reopen", 1, func(r *modelRun) { r.reopen() }},
	{"lose the index", 1, func(r *modelRun) {
		r.spool.Close()
		os.Remove(indexPath(r.dir))
		r.mustOpen()
		r.m.lostIndex()
	}},
	{"checkpoint", 1, func(r *modelRun) {
		if err := r.spool.Checkpoint(); err != nil {
			r.t.Fatal(err)
		}
	}},
	{"rotate", 1, func(r *modelRun) {
		r.spool.mu.Lock()
		defer r.spool.mu.Unlock()
		if err := r.spool.rotate(); err != nil {
			r.t.Fatal(err)
		}
	}},
	{"deliver", 2, func(r *modelRun) {
		r.through()
		r.m.delivered()
	}},
	{"fail", 2, func(r *modelRun) { // the registry is away, or its answer is lost
		r.sink.set(func(board.Sealed, int) (bool, error) {
			if r.random.IntN(2) == 0 {
				return r.random.IntN(2) == 0, errAway
			}
			return true, nil
		})
		for range r.random.IntN(4) {
			r.spool.pass(r.t.Context())
		}
		r.sink.set(nil)
		r.resync()
	}},
	{"conflict", 1, func(r *modelRun) { // another station was faster
		var oldest board.DeviceID
		for device := range r.m.pending {
			if _, ok := r.sink.have[device]; !ok && (r.m.seqs[oldest] == 0 || r.m.seqs[device] < r.m.seqs[oldest]) {
				oldest = device
			}
		}
		if r.m.seqs[oldest] > 0 {
			r.sink.have[oldest], r.m.foreign[oldest] = board.Fingerprint{1}, true
		}
	}},
	{"requeue", 1, func(r *modelRun) { // somebody cleared it up at the registry
		for device := range r.m.foreign {
			delete(r.sink.have, device)
		}
		clear(r.m.foreign)
		for device := range r.m.dead {
			if err := r.spool.Requeue(r.m.seqs[device]); err != nil {
				r.t.Fatal(err)
			}
			r.m.pending[device] = true
		}
		clear(r.m.dead)
	}},
	{"archive", 2, func(r *modelRun) {
		for range 100 {
			if more, err := r.spool.archiveNext(r.t.Context()); err != nil {
				r.t.Fatal(err)
			} else if !more {
				break
			}
		}
	}},
	{"tear", 1, func(r *modelRun) { // a write is cut short
		r.spool.Close()
		f, err := os.OpenFile(journal.SegmentPath(r.dir, r.spool.end.Segment), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		f.WriteString(`{"seq":`)
		f.Close()
		r.mustOpen()
	}},
	{"corrupt", 1, func(r *modelRun) { // a sealed segment, which is then repaired from a copy
		segments := r.segments()
		if len(segments) < 2 {
			return
		}
		chosen := segments[r.random.IntN(len(segments)-1)]
		copies := copiesOf(r.kit)
		victim := journal.SegmentPath(r.dir, chosen.First)
		r.spool.Close()
		data, err := os.ReadFile(victim)
		if err != nil {
			r.t.Fatal(err)
		}
		data[r.random.IntN(len(data))] ^= 1 << r.random.IntN(8)
		if err := errors.Join(os.Chmod(victim, 0o600), os.WriteFile(victim, data, 0o400)); err != nil {
			r.t.Fatal(err)
		}
		if r.random.IntN(2) == 0 { // the station may meet it first
			r.mustOpen()
			r.spool.pass(r.t.Context())
			r.spool.Close()
		}
		if done, err := Repair(r.dir, r.id.Verifier, Sources{Segment: copies}, false); err != nil || done.Left > 0 {
			r.t.Fatalf("Repair: %+v, %v", done, err)
		}
		r.mustOpen()
		r.resync()
	}},
}

// Random operations do what the model does, whatever happens to the disk and
// the registry in between. Many more of them:
//
//	go test ./spool -run TestModel -timeout 0 -v -args -modelruns 10000
func TestModel(t *testing.T) {
	runs, first := *modelRuns, *modelSeed
	if testing.Short() {
		runs = 4
	}
	if first == 0 {
		first = rand.Uint64()
	}
	weights := 0
	for _, step := range modelSteps {
		weights += step.weight
	}
	for run := range runs {
		seed := first + uint64(run)
		var trace []string
		defer func() {
			if t.Failed() {
				t.Logf("-modelruns 1 -modelseed %d: %q", seed, trace)
			}
		}()
		k, _ := archiveKit(t)
		r := &modelRun{kit: k, random: rand.New(rand.NewPCG(seed, 0)), m: model{
			map[board.DeviceID]board.Fingerprint{}, map[board.Fingerprint]board.DeviceID{}, map[board.DeviceID]uint64{},
			map[board.DeviceID]bool{}, map[board.DeviceID]bool{}, map[board.DeviceID]bool{}, map[board.DeviceID]bool{}}}
		for range 4 {
			r.pool = append(r.pool, newRecord(t))
		}
		for range 60 {
			n := r.random.IntN(weights)
			step := modelSteps[0]
			for _, step = range modelSteps {
				if n -= step.weight; n < 0 {
					break
				}
			}
			trace = append(trace, step.name)
			step.do(r)
			if s := k.spool.Stats(); s.Pending != len(r.m.pending) || s.Dead != len(r.m.dead) || s.Damaged > 0 || s.Broken != "" {
				t.Fatalf("after %q: %+v, want %d pending, %d dead", step.name, s, len(r.m.pending), len(r.m.dead))
			}
		}
		r.through()
		r.m.delivered()
		for device, key := range r.m.keys {
			if r.sink.have[device] != key && !r.m.foreign[device] && !r.m.dead[device] {
				t.Errorf("device %s is not in the registry", device)
			}
		}
		if len(r.m.dead) != k.spool.Stats().Dead || !maps.Equal(r.m.dead, r.m.rejected) {
			t.Errorf("%d dead letters, want %d", k.spool.Stats().Dead, len(r.m.dead))
		}
		if t.Failed() {
			return
		}
	}
}
