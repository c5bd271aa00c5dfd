package journal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/station/board"
)

// Walk yields the entries of the journal under dir in order. It takes no lock:
// a daemon may be writing, and a line that is not whole yet ends the walk. A
// damaged place is yielded as a *DamageError, and the walk goes on behind it;
// every other fault is yielded as the last error.
func Walk(dir string) iter.Seq2[Entry, error] { return WalkFrom(dir, 0) }

// WalkFrom is Walk from an entry on: what is before it is not looked at, and
// segments before that entry's are not read.
func WalkFrom(dir string, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		stop := errStop
		s := NewScan(dir)
		s.Damaged = func(d Damage) error {
			if d.Next > from && !yield(Entry{}, d.fault(dir)) {
				return stop
			}
			return nil
		}
		s.Visit = func(_ Position, seq uint64, data []byte) error {
			if seq < from {
				return nil
			}
			e, err := ParseEntry(data)
			if err != nil {
				return AsDamage(err)
			}
			if !yield(e, nil) {
				return stop
			}
			return nil
		}
		segments, err := ListSegments(dir)
		for len(segments) > 1 && segments[1].First <= from {
			segments = segments[1:]
			s.Next = segments[0].First
		}
		if err == nil {
			err = s.Run(segments)
		}
		if err != nil && err != stop {
			yield(Entry{}, err)
		}
	}
}

// FindEntry reads the entry seq of the journal under dir: at a place where it
// may stand, if the offset is not negative, else from its segment.
func FindEntry(dir string, at Position, seq uint64) (Entry, error) {
	if at.Offset >= 0 {
		if e, err := ReadEntryAt(dir, at); err == nil && e.Seq == seq {
			return e, nil
		}
	}
	segments, err := ListSegments(dir)
	if err != nil {
		return Entry{}, err
	}
	i := slices.IndexFunc(segments, func(f SegmentFile) bool { return f.First > seq })
	if i < 0 {
		i = len(segments)
	}
	if i == 0 {
		return Entry{}, fmt.Errorf("%w: entry %d cannot be found", ErrEntry, seq)
	}
	f, err := os.Open(SegmentPath(dir, segments[i-1].First))
	if err != nil {
		return Entry{}, fmt.Errorf("reading the journal: %w", err)
	}
	defer f.Close()
	front := fmt.Appendf(nil, `{"seq":%d,`, seq)
	in := bufio.NewReaderSize(f, MaxEntryLine)
	for {
		line, err := in.ReadSlice('\n')
		if bytes.HasPrefix(line, front) && err == nil {
			data, _, err := ReadLine(line)
			if err != nil {
				return Entry{}, err
			}
			return ParseEntry(data)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return Entry{}, fmt.Errorf("%w: entry %d cannot be found", ErrEntry, seq)
		}
	}
}

// ErrShort: the end of the journal is missing, and the index shows that it was
// there.
var ErrShort = errors.New("the end of the journal is missing")

// errStop ends a scan, and is told to nobody.
var errStop = errors.New("stop")

// VerifyReport says what VerifyDir looked at.
type VerifyReport struct {
	Entries, Records, Repeats, Failed uint64
	Rejections                        uint64
	NoProof                           uint64   // records without a proof of possession
	Lost                              uint64   // entries that Repair gave up
	Signed                            uint64   // entries under the newest checkpoint
	Torn                              int64    // bytes of a line that is not whole: being written, or cut short
	Damage                            []Damage // what cannot be read
}

// VerifyDir checks a journal with nothing but the station's public key: every
// line's checksum and sequence, every record's signature and proof of
// possession, that no device has two keys and no key two devices, and that the
// journal is the one which the checkpoints signed, also the one beside each
// sealed segment. It takes no lock.
//
// Damage is no end, nor is a damaged checkpoint (ErrCheckpoint, which is returned
// if nothing else is wrong): all else is checked, with the hashes beside the sealed
// segments in the place of what cannot be read, and the first of it is returned
// as a *DamageError. Everything else that is wrong is returned when it is met.
//
// It uses all cores. Of each record it holds 16 bytes in memory.
func VerifyDir(dir string, v note.Verifier) (VerifyReport, error) {
	return VerifyDirKnowing(dir, v, nil)
}

// VerifyDirKnowing is VerifyDir with what somebody else knows of the journal,
// as the index does: indexed returns how many entries of the journal there
// were, for a journal whose readable entries end before next with an entry of
// this leaf hash, and 0 if that is not known.
func VerifyDirKnowing(dir string, v note.Verifier, indexed func(next uint64, leaf tlog.Hash) uint64) (VerifyReport, error) {
	check := verification{dir: dir, v: v, indexed: indexed}
	err := check.run()
	return check.report, err
}

type verification struct {
	dir      string
	v        note.Verifier
	report   VerifyReport
	tree     Tree
	signed   []Checkpoint // in order of size
	leaves   *LeafHashReader
	records  *recordChecks
	bindings bindingSet
	// checkpoint is the error of the first damaged checkpoint.
	checkpoint error
	indexed    func(next uint64, leaf tlog.Hash) uint64 // may be nil
	last       tlog.Hash                                // of the newest leaf
}

// given is how many entries there were, if all before next can be read.
func (c *verification) given(next uint64) uint64 {
	n := c.report.Signed
	if c.indexed != nil {
		n = max(n, c.indexed(next, c.last))
	}
	return n
}

func (c *verification) run() error {
	segments, err := ListSegments(c.dir)
	if err != nil {
		return err
	}
	if c.leaves, err = OpenLeafHashes(c.dir); err != nil {
		return err
	}
	size := int64(0)
	for _, segment := range segments {
		size += segment.Size
		signed, have, err := ReadCheckpointFile(SealPath(c.dir, segment.First), c.v)
		if err := c.unusable(err); err != nil {
			return err
		}
		if have {
			c.signed = append(c.signed, signed)
		}
	}
	newest, have, err := ReadCheckpoint(c.dir, c.v)
	if err := c.unusable(err); err != nil {
		return err
	}
	if have {
		c.signed = append(c.signed, newest)
	}
	for _, signed := range c.signed {
		c.report.Signed = max(c.report.Signed, signed.Size)
	}
	c.bindings = newBindingSet(int(size / usualEntry))
	c.records = startRecordChecks(c.v)
	s := NewScan(c.dir)
	s.Visit, s.Damaged, s.Given = c.visit, c.damaged, c.given
	err = s.Run(segments)
	noProof, wrong := c.records.wait()
	c.report.NoProof = noProof
	c.report.Entries, c.report.Torn = s.Next, s.Torn
	if wrong != nil {
		return wrong // of an entry before the one that ended the scan
	}
	if err != nil {
		return err
	}
	for _, signed := range c.signed {
		if s.Next < signed.Size {
			return fmt.Errorf("%w: it has %d entries, a checkpoint says %d", ErrTampered, s.Next, signed.Size)
		}
	}
	if given := c.given(s.Next); given > s.Next {
		return fmt.Errorf("%w: it ends before entry %d, and the index has entries up to %d; restore it from a backup", ErrShort, s.Next, given-1)
	}
	if suspects := c.bindings.suspects(); len(suspects) > 0 {
		if err := c.findConflict(suspects); err != nil {
			return err
		}
	}
	if len(c.report.Damage) > 0 {
		return c.report.Damage[0].fault(c.dir)
	}
	return c.checkpoint
}

// unusable puts off the error of a damaged checkpoint until all else is
// checked.
func (c *verification) unusable(err error) error {
	if !errors.Is(err, ErrCheckpoint) {
		return err
	}
	if c.checkpoint == nil {
		c.checkpoint = err
	}
	return nil
}

func (c *verification) damaged(d Damage) error {
	c.report.Damage = append(c.report.Damage, d)
	for seq := d.First; seq < d.Next; seq++ {
		if err := c.appendLeaf(c.leaves.Hash(seq)); err != nil {
			return err
		}
	}
	return nil
}

func (c *verification) appendLeaf(h tlog.Hash) error {
	c.tree.Add(h)
	c.last = h
	for _, signed := range c.signed {
		if c.tree.N == signed.Size && !c.tree.Incomplete && c.tree.Root() != signed.Root {
			return fmt.Errorf("%w: its first %d entries have another root than was signed", ErrTampered, signed.Size)
		}
	}
	return nil
}

func (c *verification) visit(at Position, seq uint64, data []byte) error {
	e, err := ParseEntry(data)
	if err != nil {
		return AsDamage(err)
	}
	if (seq == at.Segment) != (e.Kind == KindSegment) && e.Kind != KindLost {
		return &DamageError{Reason: fmt.Errorf("%w: kind %s out of place", ErrEntry, e.Kind)}
	}
	c.count(&e)
	if e.Kind == KindSegment && e.Segment.Origin != c.v.Name() {
		return fmt.Errorf("%w: it says %s, the key is of %s", ErrForeign, e.Segment.Origin, c.v.Name())
	}
	if e.Record() != nil {
		c.bindings.add(e.Verdict.Device, e.Verdict.Fingerprint)
		if !c.records.check(&e) {
			return errStop // an entry before this one is wrong
		}
	}
	return c.appendLeaf(tlog.RecordHash(data))
}

// findConflict reads the journal once more, for the devices and keys that may
// stand in two records. The first conflict is returned, if there is one.
func (c *verification) findConflict(suspects map[uint64]bool) error {
	devices, keys := map[board.DeviceID]board.Fingerprint{}, map[board.Fingerprint]board.DeviceID{}
	for e, err := range Walk(c.dir) {
		if err != nil || e.Record() == nil {
			continue // told already
		}
		device, f := e.Verdict.Device, e.Verdict.Fingerprint
		if p := c.bindings.pair(device, f); !suspects[p.device] && !suspects[p.key] {
			continue
		}
		if known, ok := devices[device]; ok && known != f {
			return fmt.Errorf("entry %d: %w", e.Seq, &board.Conflict{Kind: board.ErrDeviceConflict, Device: device, Key: f, KnownDevice: device, KnownKey: known})
		}
		if owner, ok := keys[f]; ok && owner != device {
			return fmt.Errorf("entry %d: %w", e.Seq, &board.Conflict{Kind: board.ErrKeyConflict, Device: device, Key: f, KnownDevice: owner, KnownKey: f})
		}
		devices[device], keys[f] = f, device
	}
	return nil
}

func (c *verification) count(e *Entry) {
	switch e.Kind {
	case KindRejection:
		c.report.Rejections++
	case KindLost:
		c.report.Lost++
	case KindVerdict:
		switch e.Verdict.Result {
		case Passed:
			c.report.Records++
		case Repeated:
			c.report.Repeats++
		case Failed:
			c.report.Failed++
		}
	}
}
