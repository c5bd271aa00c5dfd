package spool

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"secretfree/station/board"
)

// model is what a spool promises, without files.
type model struct {
	keys    map[board.DeviceID]board.Fingerprint
	owners  map[board.Fingerprint]board.DeviceID
	seqs    map[board.DeviceID]uint64
	pending map[board.DeviceID]bool
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
	m.keys[r.Device], m.owners[f] = f, r.Device
	if !repeat {
		m.pending[r.Device] = true
	}
	return repeat, nil
}

// Random operations do what the model does, whatever happens to the index and to the end of the file in between.
func TestModel(t *testing.T) {
	runs := 20
	if testing.Short() {
		runs = 4
	}
	for run := range runs {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		k := newKit(t)
		k.spool.Close()
		k.size = 3 << 10
		k.mustOpen()
		m := model{map[board.DeviceID]board.Fingerprint{}, map[board.Fingerprint]board.DeviceID{}, map[board.DeviceID]uint64{}, map[board.DeviceID]bool{}}
		var pool []board.Record
		for range 4 {
			pool = append(pool, newRecord(t))
		}
		for step := range 60 {
			switch random.IntN(12) {
			case 0: // the index is lost: all is delivered once more
				k.spool.Close()
				os.Remove(indexPath(k.dir))
				k.mustOpen()
				for device := range m.keys {
					m.pending[device] = true
				}
			case 1:
				k.reopen()
			case 2:
				if err := k.spool.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			case 3:
				k.deliver()
				clear(m.pending)
			case 4: // a write is cut short
				k.spool.Close()
				f, err := os.OpenFile(segmentPath(k.dir, k.spool.end.segment), os.O_WRONLY|os.O_APPEND, 0)
				if err != nil {
					t.Fatal(err)
				}
				f.WriteString(`{"seq":`)
				f.Close()
				k.mustOpen()
			default:
				r := pool[random.IntN(len(pool))]
				switch random.IntN(4) {
				case 0:
					r = newRecord(t)
					pool = append(pool, r)
				case 1: // parts of two boards
					r.Key = pool[random.IntN(len(pool))].Key
				}
				repeat, want := m.append(r)
				receipt, err := k.append(r)
				if !errors.Is(err, want) || (err == nil) != (want == nil) || receipt.Repeat != repeat {
					t.Fatalf("seed %d, run %d, step %d: Append: %+v, %v, want repeat %v, %v", seed, run, step, receipt, err, repeat, want)
				}
				if err == nil && repeat && m.seqs[r.Device] != receipt.Seq {
					t.Fatalf("seed %d, run %d, step %d: a repeat has seq %d, its record %d", seed, run, step, receipt.Seq, m.seqs[r.Device])
				}
				if err == nil {
					m.seqs[r.Device] = receipt.Seq
				}
			}
			if s := k.spool.Stats(); s.Pending != len(m.pending) || s.Damaged > 0 || s.Broken != "" {
				t.Fatalf("seed %d, run %d, step %d: stats %+v, want %d pending", seed, run, step, s, len(m.pending))
			}
		}
	}
}
