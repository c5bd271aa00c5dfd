package stationd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"secretfree/cloud"
	"secretfree/cmd/internal/config"
	"secretfree/spool"
)

// archive fits a registry's archive to the spool.
type archive struct{ to config.Archive }

func (a archive) PutSegment(ctx context.Context, s spool.ArchivedSegment) error {
	if err := a.to.PutSegment(ctx, s.Origin, s.First, s.Last, s.Lines); err != nil {
		return forked(err)
	}
	return forked(a.to.PutCheckpoint(ctx, s.Origin, s.Last+1, s.Checkpoint))
}

func (a archive) PutCheckpoint(ctx context.Context, checkpoint []byte) error {
	lines := strings.SplitN(string(checkpoint), "\n", 3) // origin, size, the rest
	if len(lines) != 3 {
		return errors.New("archiving a checkpoint: it is none")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return fmt.Errorf("archiving a checkpoint: %w", err)
	}
	return forked(a.to.PutCheckpoint(ctx, lines[0], size, checkpoint))
}

// forked says in the spool's words that another machine writes under this name.
func forked(err error) error {
	if errors.Is(err, cloud.ErrForked) {
		return fmt.Errorf("%w: %w", spool.ErrFork, err)
	}
	return err
}
