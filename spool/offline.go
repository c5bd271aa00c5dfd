package spool

import (
	"errors"
	"fmt"
	"iter"

	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

// Walk yields the entries of the journal under dir in order. It takes no lock: a daemon may be writing, and a line that is
// not whole yet ends the walk. Every other fault is yielded as the last error.
func Walk(dir string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		stop := errors.New("stop")
		_, err := scan(dir, func(_ position, _ uint64, data []byte, _ uint32) error {
			e, err := ParseEntry(data)
			if errors.Is(err, board.ErrNewer) {
				return err
			}
			if err != nil {
				return &DamageError{Reason: err}
			}
			if !yield(e, nil) {
				return stop
			}
			return nil
		})
		if err != nil && err != stop {
			yield(Entry{}, err)
		}
	}
}

// VerifyReport says what VerifyDir looked at.
type VerifyReport struct {
	Entries, Records, Refusals, Repeats uint64
	NoProof                             uint64 // records without a proof of possession
	Signed                              uint64 // entries under the newest checkpoint
	Torn                                int64  // bytes of a line that is not whole: being written, or cut short
}

// VerifyDir checks a journal with nothing but the station's public key: every line's checksum and sequence, every record's
// signature and proof of possession, that no device has two keys and no key two devices, and that the journal
// is the one which the checkpoint signed. It takes no lock.
func VerifyDir(dir string, v note.Verifier) (VerifyReport, error) {
	var report VerifyReport
	signed, haveSigned, err := readCheckpoint(dir, v)
	if err != nil {
		return report, err
	}
	var t tree
	devices, keys := map[board.DeviceID]board.Fingerprint{}, map[board.Fingerprint]board.DeviceID{}
	found, err := scan(dir, func(at position, seq uint64, data []byte, _ uint32) error {
		e, err := ParseEntry(data)
		if errors.Is(err, board.ErrNewer) {
			return err
		}
		if err != nil {
			return &DamageError{Reason: err}
		}
		if (at.offset == 0) != (e.Kind == KindSegment) {
			return &DamageError{Reason: fmt.Errorf("%w: kind %s out of place", ErrEntry, e.Kind)}
		}
		switch e.Kind {
		case KindSegment:
			if e.Segment.Origin != v.Name() {
				return fmt.Errorf("%w: it says %s, the key is of %s", ErrForeign, e.Segment.Origin, v.Name())
			}
		case KindRefusal:
			report.Refusals++
		case KindRepeat:
			report.Repeats++
		case KindRecord:
			report.Records++
			sealed, err := board.OpenEnvelope(e.Record, v)
			if err != nil {
				return fmt.Errorf("entry %d: %w", seq, err)
			}
			r := sealed.Record
			if r.Proof == nil {
				report.NoProof++
			} else if err := r.Proof.Verify(r.Device, r.Key); err != nil {
				return fmt.Errorf("entry %d: %w", seq, err)
			}
			f := r.Fingerprint()
			if known, ok := devices[r.Device]; ok && known != f {
				return fmt.Errorf("entry %d: %w", seq, &board.Conflict{Kind: board.ErrDeviceConflict, Device: r.Device, Key: f, KnownDevice: r.Device, KnownKey: known})
			}
			if owner, ok := keys[f]; ok && owner != r.Device {
				return fmt.Errorf("entry %d: %w", seq, &board.Conflict{Kind: board.ErrKeyConflict, Device: r.Device, Key: f, KnownDevice: owner, KnownKey: f})
			}
			devices[r.Device], keys[f] = f, r.Device
		}
		t.add(data)
		if haveSigned && t.n == signed.size && t.root() != signed.root {
			return fmt.Errorf("%w: at entry %d its root is another", ErrTampered, seq)
		}
		return nil
	})
	report.Entries, report.Torn, report.Signed = found.next, found.torn, signed.size
	if err != nil {
		return report, err
	}
	if found.next < signed.size {
		return report, fmt.Errorf("%w: it has %d entries, the checkpoint says %d", ErrTampered, found.next, signed.size)
	}
	return report, nil
}
