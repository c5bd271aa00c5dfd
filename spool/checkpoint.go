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

func parseCheckpoint(text []byte, v note.Verifier) (checkpoint, error) {
	var c checkpoint
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return c, fmt.Errorf("%w: the checkpoint is not signed by %s", ErrTampered, v.Name())
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[0] != v.Name() || lines[3] != "" {
		return c, fmt.Errorf("%w: the checkpoint is not one of %s", ErrTampered, v.Name())
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
	text, err := os.ReadFile(checkpointPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return checkpoint{}, false, nil
	}
	if err != nil {
		return checkpoint{}, false, fmt.Errorf("reading the checkpoint: %w", err)
	}
	c, err := parseCheckpoint(text, v)
	if err != nil {
		return c, false, fmt.Errorf("%s: %w", checkpointPath(dir), err)
	}
	return c, true, nil
}
