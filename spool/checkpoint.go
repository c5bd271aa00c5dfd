package spool

import (
	"fmt"
	"time"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
)

// sign returns a checkpoint as a signed note. The root of a blind tree must not
// come here.
func (s *Spool) sign(c journal.Checkpoint) ([]byte, error) {
	text, err := c.Encode(s.cfg.Identity.Signer)
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	return text, nil
}

// checkpoint signs the journal as it is, if it has grown. The caller holds mu:
// a checkpoint never takes the place of a newer one.
func (s *Spool) checkpoint() error {
	if s.broken != nil || s.closed || s.tree.Incomplete || s.tree.N <= s.signed {
		return nil
	}
	text, err := s.sign(journal.Checkpoint{Size: s.tree.N, Root: s.tree.Root()})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.cfg.disk, journal.CheckpointPath(s.cfg.Dir), text, 0o600); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	s.signed, s.signedAt = s.tree.N, time.Now()
	s.nudgeArchive()
	return nil
}

// Checkpoint signs the journal as it is now, if it has grown since the last
// one. Run does so every minute. While a damaged entry's hash is not known it
// does nothing, and Stats says so.
func (s *Spool) Checkpoint() error {
	s.mu.Lock()
	defer s.unlock()
	return s.checkpoint()
}
