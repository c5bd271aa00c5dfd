package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
)

// CheckpointStore keeps, outside of the station, the newest checkpoint that the
// station has had accepted. Two machines that sign as one station, and one that
// was set back to an old copy of itself, find there what their own journal does
// not hold.
type CheckpointStore interface {
	// AcceptedCheckpoint returns the signed note; nil if there is none.
	AcceptedCheckpoint(ctx context.Context) ([]byte, error)
	// MoveCheckpoint accepts a larger checkpoint, if from is still the accepted
	// one; from is nil if there was none. After an error either may be stored.
	MoveCheckpoint(ctx context.Context, from, to []byte) error
}

const (
	acceptLimit     = 30 * time.Second // one look, with one move
	lastAcceptLimit = 3 * time.Second  // the last one, when the station stops
)

// errNotAccepted says that the accepted checkpoint is not one of this journal.
// It is kept beside keyForked until a look finds otherwise.
var (
	errNotAccepted = errors.New("the registry has accepted another journal of this station")
	keyNotAccepted = []byte("not-accepted")
)

// moveAccepted looks at the accepted checkpoint, and has the newest one of this
// journal accepted in its place. An error that wraps errNotAccepted says that
// this journal is not the one that was accepted; any other means: not now.
func (s *Spool) moveAccepted(ctx context.Context) error {
	if s.cfg.Checkpoints == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, acceptLimit)
	defer cancel()
	s.acceptMu.Lock()
	defer s.acceptMu.Unlock()
	err := s.tryMove(ctx)
	if err != nil && !errors.Is(err, errNotAccepted) {
		return err
	}
	return errors.Join(err, s.setNotAccepted(err))
}

func (s *Spool) tryMove(ctx context.Context) error {
	known, err := s.cfg.Checkpoints.AcceptedCheckpoint(ctx)
	if err != nil {
		return fmt.Errorf("reading the accepted checkpoint: %w", err)
	}
	before, err := s.checkAccepted(known)
	if err != nil {
		return err
	}
	ours, have, err := s.checkpointAbove(before.Size)
	if err != nil || !have {
		return err
	}
	moved := s.cfg.Checkpoints.MoveCheckpoint(ctx, known, ours)
	if moved == nil {
		s.accepted = ours
		return nil
	}
	// Perhaps it was done and only the answer is lost; perhaps another machine
	// was quicker.
	now, err := s.cfg.Checkpoints.AcceptedCheckpoint(ctx)
	if err == nil {
		_, err = s.checkAccepted(now)
	}
	switch {
	case errors.Is(err, errNotAccepted) || err == nil && bytes.Equal(now, ours):
		return err
	default:
		return fmt.Errorf("having a checkpoint accepted: %w", moved)
	}
}

// checkAccepted compares an accepted checkpoint with this journal.
func (s *Spool) checkAccepted(text []byte) (c journal.Checkpoint, err error) {
	if len(text) == 0 {
		return c, nil
	}
	origin, c, err := journal.CheckpointOf(text)
	if err != nil {
		return c, fmt.Errorf("the accepted checkpoint: %w", err)
	}
	if bytes.Equal(text, s.accepted) {
		return c, nil
	}
	if _, err := journal.ParseCheckpoint(text, s.cfg.Identity.Verifier); err != nil {
		return c, fmt.Errorf("%w: that of %.130s over %d entries is not signed by the key of this station", errNotAccepted, origin, c.Size)
	}
	root, entries, err := s.rootAt(c.Size)
	switch {
	case err != nil:
		return c, err
	case entries < c.Size:
		return c, fmt.Errorf("%w: it has %d entries, this journal has %d", errNotAccepted, c.Size, entries)
	case root != c.Root:
		return c, fmt.Errorf("%w: it differs within the first %d entries", errNotAccepted, c.Size)
	}
	s.accepted = text
	return c, nil
}

// rootAt computes the root over the first entries of the journal; entries is
// how many there are, if there are not so many. It reads the files of leaf
// hashes, which every start checks against the newest checkpoint.
func (s *Spool) rootAt(size uint64) (root tlog.Hash, entries uint64, err error) {
	s.mu.Lock()
	if err := s.usable(); err != nil {
		s.unlock()
		return root, 0, err
	}
	entries = s.next
	first := s.next - uint64(len(s.leaves))
	leaves := append([]tlog.Hash(nil), s.leaves...)
	s.unlock()
	if entries < size {
		return root, entries, nil
	}
	sealed, err := journal.OpenLeafHashes(s.cfg.Dir)
	if err != nil {
		return root, entries, err
	}
	var tree journal.Tree
	for tree.N < size && !tree.Incomplete {
		if tree.N >= first {
			tree.Add(leaves[tree.N-first])
		} else {
			tree.Add(sealed.Hash(tree.N))
		}
	}
	if tree.Incomplete {
		return root, entries, fmt.Errorf("comparing with the accepted checkpoint: %s", journal.Unprovable)
	}
	return tree.Root(), entries, nil
}

// setNotAccepted keeps what a look has found, over restarts too, and notifies
// of it when it begins. nil clears it: whoever was wrong has been put right.
func (s *Spool) setNotAccepted(found error) error {
	text := ""
	if found != nil {
		text = found.Error()
	}
	s.mu.Lock()
	before := s.archive.notAccepted
	s.archive.notAccepted = text
	s.unlock()
	if text == before {
		return nil
	}
	if text != "" && before == "" {
		s.cfg.Notify(text)
	}
	s.mu.Lock()
	defer s.unlock()
	if s.closed || s.broken != nil {
		return nil
	}
	return s.update(func(tx *bolt.Tx) error {
		if text == "" {
			return tableOf(tx, bucketArchive).Delete(keyNotAccepted)
		}
		return tableOf(tx, bucketArchive).Put(keyNotAccepted, []byte(text))
	})
}
