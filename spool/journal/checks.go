package journal

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

const (
	usualEntry  = 1200 // bytes of an entry with a record and its proof
	checksAhead = 64   // records that wait for each core
)

// recordChecks verifies the signatures in records on all cores.
type recordChecks struct {
	v       note.Verifier
	todo    chan recordCheck
	workers sync.WaitGroup

	mu      sync.Mutex
	noProof uint64
	first   uint64 // the first entry that is wrong
	wrong   error  // why; nil if none is
}

type recordCheck struct {
	seq         uint64
	envelope    []byte
	device      board.DeviceID // as the verdict says
	fingerprint board.Fingerprint
}

func startRecordChecks(v note.Verifier) *recordChecks {
	c := &recordChecks{v: v, todo: make(chan recordCheck, checksAhead*runtime.GOMAXPROCS(0))}
	for range runtime.GOMAXPROCS(0) {
		c.workers.Go(func() {
			for r := range c.todo {
				c.done(r.seq, c.verify(r))
			}
		})
	}
	return c
}

// check has the record of an entry verified soon. It returns false when an
// entry before it was found to be wrong. Only one goroutine may call it.
func (c *recordChecks) check(e *Entry) bool {
	c.mu.Lock()
	wrong := c.wrong
	c.mu.Unlock()
	if wrong != nil {
		return false
	}
	c.todo <- recordCheck{e.Seq, e.Record(), e.Verdict.Device, e.Verdict.Fingerprint}
	return true
}

func (c *recordChecks) verify(r recordCheck) (err error) {
	sealed, err := board.OpenEnvelope(r.envelope, c.v)
	if err != nil {
		return err
	}
	record := sealed.Record()
	if record.Device != r.device || record.Fingerprint() != r.fingerprint {
		return fmt.Errorf("%w: the verdict names another board than its record", ErrEntry)
	}
	if record.Proof == nil {
		c.mu.Lock()
		c.noProof++
		c.mu.Unlock()
		return nil
	}
	return record.Proof.Verify(record.Device, record.Key)
}

func (c *recordChecks) done(seq uint64, err error) {
	if err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong == nil || seq < c.first {
		c.first, c.wrong = seq, fmt.Errorf("entry %d: %w", seq, err)
	}
}

// wait returns when all records are verified: how many have no proof of
// possession, and what is wrong with the first that is wrong.
func (c *recordChecks) wait() (noProof uint64, wrong error) {
	close(c.todo)
	c.workers.Wait()
	return c.noProof, c.wrong
}

// bindingSet remembers which device has which key, as a pair of hashes under a
// random seed: whoever made the journal cannot make two of them collide.
type bindingSet struct {
	seed  maphash.Seed
	pairs []hashPair
}

type hashPair struct{ device, key uint64 }

func newBindingSet(size int) bindingSet {
	return bindingSet{maphash.MakeSeed(), make([]hashPair, 0, size)}
}

func (b *bindingSet) pair(device board.DeviceID, key board.Fingerprint) hashPair {
	return hashPair{maphash.Bytes(b.seed, device[:]), maphash.Bytes(b.seed, key[:])}
}

func (b *bindingSet) add(device board.DeviceID, key board.Fingerprint) {
	b.pairs = append(b.pairs, b.pair(device, key))
}

// suspects are the hashes of devices with several keys, and of keys with
// several devices. It changes the order of the pairs.
func (b *bindingSet) suspects() map[uint64]bool {
	out := map[uint64]bool{}
	for _, by := range []func(p hashPair) (one, other uint64){
		func(p hashPair) (uint64, uint64) { return p.device, p.key },
		func(p hashPair) (uint64, uint64) { return p.key, p.device },
	} {
		slices.SortFunc(b.pairs, func(p, q hashPair) int {
			one, _ := by(p)
			two, _ := by(q)
			return cmp.Compare(one, two)
		})
		for i := 1; i < len(b.pairs); i++ {
			one, other := by(b.pairs[i-1])
			if two, another := by(b.pairs[i]); one == two && other != another {
				out[one] = true
			}
		}
	}
	return out
}
