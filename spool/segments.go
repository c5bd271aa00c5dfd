package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// tolerant reads a file in order, and goes on behind what the disk cannot read: a bad sector is damage to a few lines, not
// the end of the journal. What cannot be read reads as zeros, which are no line.
type tolerant struct {
	f      io.ReaderAt
	offset int64
}

const sector = 4096

func (t *tolerant) Read(p []byte) (int, error) {
	n, err := t.f.ReadAt(p, t.offset)
	if errors.Is(err, unix.EIO) && len(p) > n {
		bad := min(len(p)-n, sector-int((t.offset+int64(n))%sector))
		clear(p[n : n+bad])
		n, err = n+bad, nil
	}
	t.offset += int64(n)
	if n > 0 {
		return n, nil
	}
	return n, err
}

// segmentFile is a segment as the folder shows it.
type segmentFile struct {
	first uint64
	size  int64
}

var segmentName = regexp.MustCompile(`^([0-9]{20})\.jsonl$`)

func journalDir(dir string) string { return filepath.Join(dir, "journal") }

func segmentPath(dir string, first uint64) string {
	return filepath.Join(journalDir(dir), fmt.Sprintf("%020d.jsonl", first))
}

func leavesPath(dir string, first uint64) string {
	return filepath.Join(journalDir(dir), fmt.Sprintf("%020d.leaves", first))
}

// sealPath is the checkpoint over a sealed segment and all before it.
func sealPath(dir string, first uint64) string {
	return filepath.Join(journalDir(dir), fmt.Sprintf("%020d.checkpoint", first))
}

// asidePath is where damaged bytes are kept as evidence.
func asidePath(dir, name string) string { return filepath.Join(journalDir(dir), "quarantine", name) }

// listSegments returns the journal's segments in order.
func listSegments(dir string) ([]segmentFile, error) {
	names, err := os.ReadDir(journalDir(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	var segments []segmentFile
	for _, name := range names {
		m := segmentName.FindStringSubmatch(name.Name())
		if m == nil {
			continue
		}
		first, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			return nil, &DamageError{Path: name.Name(), Reason: err}
		}
		info, err := name.Info()
		if err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		segments = append(segments, segmentFile{first, info.Size()})
	}
	slices.SortFunc(segments, func(a, b segmentFile) int { return cmp.Compare(a.first, b.first) })
	return segments, nil
}
