package spool

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/journal"
)

// A scrub reads what nobody else reads for months: sealed segments, which it
// compares with their leaf hashes, and the values of the index, whose checksums
// it checks and which it compares with the entries that they point to. Damage
// is found while there are copies to repair it from.
const (
	scrubEvery = 24 * time.Hour // from the end of one to the beginning of the next
	scrubFirst = 10 * time.Minute
	scrubChunk = 64 << 10               // bytes, between two pauses
	scrubPause = 100 * time.Millisecond // so 640 kB a second at the most: 1 GB takes half an hour
	scrubRows  = 200                    // of the index, between two pauses
)

// runScrub scrubs again and again until the context ends.
func (s *Spool) runScrub(ctx context.Context) {
	for wait := scrubFirst; ; wait = scrubEvery {
		if !pauseFor(ctx, wait) {
			return
		}
		if err := s.scrub(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Notify("reading the journal and the index through: " + err.Error())
		}
	}
}

func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// scrub makes one pass. What it finds is treated as if a board had met it: a
// damaged segment is read anew and quarantined, a damaged index is made anew.
func (s *Spool) scrub(ctx context.Context) error {
	s.mu.Lock()
	err := s.usable()
	var all map[uint64]sealedSegment
	if err == nil {
		all, err = readSealed(s.db)
		s.trust(err)
	}
	s.unlock()
	if err != nil {
		return err
	}
	for _, first := range slices.Sorted(maps.Keys(all)) {
		s.mu.Lock()
		known := s.damagedIn(first, all[first].Next)
		s.unlock()
		if known || all[first].Blind {
			continue
		}
		if err := s.scrubSegment(ctx, first); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.mu.Lock()
			s.suspect(first, err)
			s.usable() // which reads the segment anew; its error is told by who uses the spool
			s.unlock()
		}
	}
	if err := s.scrubIndex(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.unlock()
	s.scrubbed = time.Now()
	return nil
}

// scrubSegment compares a sealed segment with its leaf hashes.
func (s *Spool) scrubSegment(ctx context.Context, first uint64) error {
	leaves, err := journal.ReadLeaves(s.cfg.Dir, first)
	if errors.Is(err, os.ErrNotExist) {
		return nil // they are made anew when the index is
	}
	if err != nil {
		return err
	}
	f, err := s.cfg.disk.Open(journal.SegmentPath(s.cfg.Dir, first), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), journal.MaxEntryLine)
	since := 0
	for seq := leaves.First; ; seq++ {
		line, err := in.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			if seq != leaves.Next() {
				return fmt.Errorf("%w: it ends at entry %d", journal.ErrEntry, seq)
			}
			return nil
		}
		data, got, wrong := journal.ReadLine(line)
		if wrong != nil {
			return wrong
		}
		if got != seq || seq >= leaves.Next() || tlog.RecordHash(data) != leaves.Hashes[seq-leaves.First] {
			return fmt.Errorf("%w: entry %d is not the one that was sealed", journal.ErrEntry, seq)
		}
		if since += len(line); since >= scrubChunk {
			if since = 0; !pauseFor(ctx, scrubPause) {
				return ctx.Err()
			}
		}
	}
}

// scrubIndex reads all values of the index, and compares those that stand for a
// verdict with their entries.
func (s *Spool) scrubIndex(ctx context.Context) error {
	for _, name := range buckets {
		after := []byte{}
		for done := false; !done; {
			type row struct {
				seq uint64
				entryRow
			}
			var rows []row
			err := s.readIndex(func(tx *bolt.Tx) error {
				c := tableOf(tx, name).Cursor()
				key, value := c.Seek(after)
				for n := 0; key != nil && n < scrubRows; n++ {
					if bytes.Equal(name, bucketEntries) {
						var r row
						var err error
						if r.seq, err = decodeSeq(key); err == nil {
							err = r.decode(value)
						}
						if err != nil {
							return fmt.Errorf("%w: %w", errIndexUnusable, err)
						}
						rows = append(rows, r)
					}
					key, value = c.Next()
				}
				done = key == nil
				after = bytes.Clone(key)
				return nil
			})
			if err != nil {
				return err
			}
			for _, r := range rows {
				if err := s.compareRow(r.seq, &r.entryRow); err != nil {
					return err
				}
			}
			if !pauseFor(ctx, scrubPause) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// compareRow makes the index unusable if what it says of a verdict is not what
// the journal has at that place. What cannot be read there is damage of the
// journal, which the segments show.
func (s *Spool) compareRow(seq uint64, r *entryRow) error {
	for _, at := range []journal.Position{r.at, {Offset: -1}} { // it may have moved when its file was repaired
		e, err := journal.FindEntry(s.cfg.Dir, at, seq)
		if err != nil {
			return nil
		}
		if e.Verdict != nil && e.Verdict.Device == r.device && e.Verdict.Result == r.result {
			return nil
		}
	}
	err := fmt.Errorf("%w: it has another verdict at entry %d than the journal", errIndexUnusable, seq)
	s.mu.Lock()
	defer s.unlock()
	s.trust(err)
	s.usable()
	return err
}
