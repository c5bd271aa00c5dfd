package stationd

import (
	"context"
	"fmt"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station"
)

// journalArchive keeps copies of the journals of stations; see package cloud.
type journalArchive interface {
	PutSegment(ctx context.Context, origin string, first, last uint64, segment []byte) error
	PutCheckpoint(ctx context.Context, origin string, size uint64, checkpoint []byte) error
	AcceptedCheckpoint(ctx context.Context, origin string) ([]byte, error)
	MoveCheckpoint(ctx context.Context, origin string, from, to []byte) error
}

// archive fits a registry's archive to the spool of one station.
type archive struct {
	to     journalArchive
	origin string
}

func (a archive) AcceptedCheckpoint(ctx context.Context) ([]byte, error) {
	return a.to.AcceptedCheckpoint(ctx, a.origin)
}

func (a archive) MoveCheckpoint(ctx context.Context, from, to []byte) error {
	return a.to.MoveCheckpoint(ctx, a.origin, from, to)
}

func (a archive) PutSegment(ctx context.Context, s spool.ArchivedSegment) error {
	if err := a.to.PutSegment(ctx, s.Origin, s.First, s.Last, s.Lines); err != nil {
		return err
	}
	return a.to.PutCheckpoint(ctx, s.Origin, s.Last+1, s.Checkpoint)
}

func (a archive) PutCheckpoint(ctx context.Context, checkpoint []byte) error {
	origin, c, err := journal.CheckpointOf(checkpoint)
	if err != nil {
		return fmt.Errorf("archiving a checkpoint: %w", err)
	}
	return a.to.PutCheckpoint(ctx, origin, c.Size, checkpoint)
}

// unarchived is how long the oldest segment may wait for its copy before IT is
// told.
const unarchived = time.Hour

// archiveNotices are what people must know of the copies. That another writes
// under this name is a matter of the health.
func archiveNotices(s spool.Stats) []station.Problem {
	if s.Forked || s.ArchiveError == "" || s.UnarchivedSince.IsZero() || time.Since(s.UnarchivedSince) <= unarchived {
		return nil
	}
	return []station.Problem{{Word: "copies-stopped", Call: station.CallIT,
		Detail: fmt.Sprintf("the registry takes no copies of the journal: %s of it can be lost with the disk of this station. Last error: %s",
			cli.Count(s.Unarchived, "segment", "segments"), s.ArchiveError)}}
}
