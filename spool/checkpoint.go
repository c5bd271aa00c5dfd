package spool

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"secretfree/spool/durable"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrTampered says that the journal is not the one that its station signed.
var ErrTampered = errors.New("the journal was changed after it was signed")

// checkpoint is what a station signs of its journal: its first size entries have this root.
type checkpoint struct {
	size uint64
	root tlog.Hash
}

func checkpointPath(dir string) string { return filepath.Join(dir, "journal", "checkpoint") }

// encode is the C2SP tlog-checkpoint: origin, size, root in base64, as a signed note.
func (c checkpoint) encode(s note.Signer) ([]byte, error) {
	text := fmt.Sprintf("%s\n%d\n%s\n", s.Name(), c.size, base64.StdEncoding.EncodeToString(c.root[:]))
	return note.Sign(&note.Note{Text: text}, s)
}

// parseCheckpoint reads a checkpoint that one station signed. Witnesses may have signed it too.
func parseCheckpoint(text []byte, v note.Verifier) (checkpoint, error) {
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return checkpoint{}, fmt.Errorf("%w: the checkpoint is not signed by %s", ErrTampered, v.Name())
	}
	c, err := parseCheckpointText(n.Text, v.Name())
	if err != nil {
		return checkpoint{}, err
	}
	return c, nil
}

// checkpointOf reads a checkpoint without looking at its signature.
func checkpointOf(text []byte) (checkpoint, error) {
	body, _, _ := strings.Cut(string(text), "\n\n")
	origin, _, _ := strings.Cut(body, "\n")
	return parseCheckpointText(body+"\n", origin)
}

func parseCheckpointText(text, origin string) (checkpoint, error) {
	var c checkpoint
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[0] != origin || lines[3] != "" {
		return c, fmt.Errorf("%w: the checkpoint is not one of %s", ErrTampered, origin)
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	root, err2 := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || err2 != nil || len(root) != len(c.root) || strconv.FormatUint(size, 10) != lines[1] {
		return c, fmt.Errorf("%w: the checkpoint has no size and root", ErrTampered)
	}
	c.size = size
	copy(c.root[:], root)
	return c, nil
}

// readCheckpoint returns the newest checkpoint, and false if there is none yet.
func readCheckpoint(dir string, v note.Verifier) (checkpoint, bool, error) {
	return readCheckpointFile(checkpointPath(dir), v)
}

func readCheckpointFile(path string, v note.Verifier) (checkpoint, bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return checkpoint{}, false, nil
	}
	if err != nil {
		return checkpoint{}, false, fmt.Errorf("reading the checkpoint: %w", err)
	}
	c, err := parseCheckpoint(text, v)
	if err != nil {
		return c, false, fmt.Errorf("%s: %w", path, err)
	}
	return c, true, nil
}

// sign returns a checkpoint as a signed note. The root of a blind tree must not come here.
func (s *Spool) sign(c checkpoint) ([]byte, error) {
	text, err := c.encode(s.cfg.Identity.Signer)
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	return text, nil
}

// checkpoint signs the journal as it is, if it has grown. The caller holds mu: a checkpoint never takes the place of a newer one.
func (s *Spool) checkpoint() error {
	if s.broken != nil || s.closed || s.tree.blind || s.tree.n <= s.signed {
		return nil
	}
	text, err := s.sign(checkpoint{s.tree.n, s.tree.root()})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.cfg.disk, checkpointPath(s.cfg.Dir), text, 0o600); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	s.signed, s.signedAt = s.tree.n, time.Now()
	s.nudgeArchive()
	return nil
}

// Checkpoint signs the journal as it is now, if it has grown since the last one. Run does so every minute. While a damaged
// entry's hash is not known it does nothing, and Stats says so.
func (s *Spool) Checkpoint() error {
	s.mu.Lock()
	defer s.unlock()
	return s.checkpoint()
}
