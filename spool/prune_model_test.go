package spool

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"secretfree/station/board"
)

// register is what a station promises of boards, without files.
type register struct {
	keys    map[board.DeviceID]board.Fingerprint
	owners  map[board.Fingerprint]board.DeviceID
	seqs    map[board.DeviceID]uint64
	pending map[board.DeviceID]bool
}

func (m *register) enrol(r board.Record) (repeat bool, err error) {
	f := r.Fingerprint()
	known, repeat := m.keys[r.Device]
	if repeat && known != f {
		return false, board.ErrDeviceConflict
	}
	if owner, ok := m.owners[f]; ok && owner != r.Device {
		return false, board.ErrKeyConflict
	}
	m.keys[r.Device], m.owners[f] = f, r.Device
	if !repeat {
		m.pending[r.Device] = true
	}
	return repeat, nil
}

// Random boards, deliveries, prunings, restorations, restarts and lost indexes do what a plain model does, which has never heard of pruning.
func TestPruneModel(t *testing.T) {
	runs := 12
	if testing.Short() {
		runs = 3
	}
	all, back := 0, 0
	for run := range runs {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		k, archive := archiveKit(t)
		m := register{keys: map[board.DeviceID]board.Fingerprint{}, owners: map[board.Fingerprint]board.DeviceID{}, seqs: map[board.DeviceID]uint64{}, pending: map[board.DeviceID]bool{}}
		pool := []board.Record{newRecord(t), newRecord(t), newRecord(t)}
		pruned, restored := 0, 0
		// waits are the records of which the index does not know that they are delivered: after it was lost, all that are not pruned.
		waits := func() {
			clear(m.pending)
			for e, err := range Walk(k.dir) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Kind == KindRecord {
					sealed, err := board.ParseEnvelope(e.Record)
					if err != nil {
						t.Fatal(err)
					}
					m.pending[sealed.Record.Device] = true
				}
			}
		}
		for step := range 120 {
			switch random.IntN(14) {
			case 0:
				k.lose()
				waits()
			case 1:
				k.reopen()
			case 2, 3:
				k.settle()
				clear(m.pending)
			case 4, 5:
				for _, p := range k.prune() {
					if p.Pruned {
						pruned++
					}
				}
			case 6:
				segments := k.segments()
				s := segments[random.IntN(len(segments))]
				if !s.pruned {
					continue
				}
				k.spool.Close()
				copies := func(first uint64) ([]byte, error) { return archive.segments[first].Lines, nil }
				if err := Restore(k.dir, k.id.Verifier, copies, s.first); err != nil {
					t.Fatalf("seed %d, run %d, step %d: Restore: %v", seed, run, step, err)
				}
				restored++
				if random.IntN(2) == 0 {
					os.Remove(indexPath(k.dir))
					waits()
				}
				k.mustOpen()
			default:
				r := pool[random.IntN(len(pool))]
				switch random.IntN(3) {
				case 0:
					r = newRecord(t)
					pool = append(pool, r)
				case 1: // parts of two boards
					r.Key = pool[random.IntN(len(pool))].Key
				}
				repeat, want := m.enrol(r)
				receipt, err := k.append(r)
				if !errors.Is(err, want) || (err == nil) != (want == nil) || receipt.Repeat != repeat || repeat && m.seqs[r.Device] != receipt.Seq {
					t.Fatalf("seed %d, run %d, step %d: Append: %+v, %v, want repeat %v of %d, %v", seed, run, step, receipt, err, repeat, m.seqs[r.Device], want)
				}
				if err == nil {
					m.seqs[r.Device] = receipt.Seq
				}
			}
			if s := k.spool.Stats(); s.Pending != len(m.pending) || s.Damaged > 0 || s.Broken != "" || s.Unsigned != "" {
				t.Fatalf("seed %d, run %d, step %d: stats %+v, want %d pending", seed, run, step, s, len(m.pending))
			}
		}
		all += pruned
		back += restored
	}
	if !testing.Short() && (all < runs || back == 0) {
		t.Errorf("%d segments were pruned and %d restored: this test looks at little", all, back)
	}
}
