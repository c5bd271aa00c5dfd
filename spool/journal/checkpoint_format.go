package journal

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

// ErrCheckpoint says that a checkpoint file of a journal cannot be used: the
// station did not sign what it holds. That is damage and proves nothing else.
// The station makes the file again from the journal.
var ErrCheckpoint = errors.New("a checkpoint cannot be used")

// Checkpoint is what a station signs of its journal: its first size entries
// have this root.
type Checkpoint struct {
	Size uint64
	Root tlog.Hash
}

func CheckpointPath(dir string) string { return filepath.Join(dir, "journal", "checkpoint") }

// Encode is the C2SP tlog-checkpoint: origin, size, root in base64, as a signed
// note.
func (c Checkpoint) Encode(s note.Signer) ([]byte, error) {
	text := fmt.Sprintf("%s\n%d\n%s\n", s.Name(), c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
	return note.Sign(&note.Note{Text: text}, s)
}

// ParseCheckpoint reads a checkpoint that one station signed. Witnesses may
// have signed it too.
func ParseCheckpoint(text []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: the checkpoint is not signed by %s", ErrTampered, v.Name())
	}
	c, err := parseCheckpointText(n.Text, v.Name())
	if err != nil {
		return Checkpoint{}, err
	}
	return c, nil
}

// CheckpointOf reads a checkpoint, and whose it says it is, without looking at
// its signature.
func CheckpointOf(text []byte) (origin string, c Checkpoint, err error) {
	body, _, signed := strings.Cut(string(text), "\n\n")
	origin, _, _ = strings.Cut(body, "\n")
	if !signed {
		return origin, c, fmt.Errorf("%w: it is not signed", ErrTampered)
	}
	c, err = parseCheckpointText(body+"\n", origin)
	return origin, c, err
}

func parseCheckpointText(text, origin string) (Checkpoint, error) {
	var c Checkpoint
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[0] != origin || lines[3] != "" {
		return c, fmt.Errorf("%w: the checkpoint is not one of %s", ErrTampered, origin)
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	root, err2 := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || err2 != nil || len(root) != len(c.Root) || strconv.FormatUint(size, 10) != lines[1] {
		return c, fmt.Errorf("%w: the checkpoint has no size and root", ErrTampered)
	}
	c.Size = size
	copy(c.Root[:], root)
	return c, nil
}

// ReadCheckpoint returns the newest checkpoint, and false if there is none yet.
func ReadCheckpoint(dir string, v note.Verifier) (Checkpoint, bool, error) {
	return ReadCheckpointFile(CheckpointPath(dir), v)
}

// ReadCheckpointFile reads a checkpoint, and returns false if there is none. It
// returns ErrCheckpoint if the file does not hold what the station signed.
func ReadCheckpointFile(path string, v note.Verifier) (Checkpoint, bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Checkpoint{}, false, nil
	}
	if err != nil {
		return Checkpoint{}, false, fmt.Errorf("reading the checkpoint: %w", err)
	}
	c, err := ParseCheckpoint(text, v)
	if err != nil {
		return Checkpoint{}, false, fmt.Errorf("%w: %s is not signed by this key of %s; if the key is right, the file is damaged, and the station makes it again from the journal when it starts", ErrCheckpoint, path, v.Name())
	}
	return c, true, nil
}
