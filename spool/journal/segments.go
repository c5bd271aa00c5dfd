package journal

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

// tolerant reads a file in order, and goes on behind what the disk cannot read:
// a bad sector is damage to a few lines, not the end of the journal. What
// cannot be read reads as zeros, which are no line.
type tolerant struct {
	f      io.ReaderAt
	offset int64
}

const Sector = 4096

func (t *tolerant) Read(p []byte) (int, error) {
	n, err := t.f.ReadAt(p, t.offset)
	if errors.Is(err, unix.EIO) && len(p) > n {
		bad := min(len(p)-n, Sector-int((t.offset+int64(n))%Sector))
		clear(p[n : n+bad])
		n, err = n+bad, nil
	}
	t.offset += int64(n)
	if n > 0 {
		return n, nil
	}
	return n, err
}

// SegmentFile is a segment as the folder shows it.
type SegmentFile struct {
	First uint64
	Size  int64
}

var segmentName = regexp.MustCompile(`^([0-9]{20})\.jsonl$`)

func Dir(dir string) string { return filepath.Join(dir, "journal") }

func SegmentPath(dir string, first uint64) string {
	return filepath.Join(Dir(dir), fmt.Sprintf("%020d.jsonl", first))
}

func LeavesPath(dir string, first uint64) string {
	return filepath.Join(Dir(dir), fmt.Sprintf("%020d.leaves", first))
}

// SealPath is the checkpoint over a sealed segment and all before it.
func SealPath(dir string, first uint64) string {
	return filepath.Join(Dir(dir), fmt.Sprintf("%020d.checkpoint", first))
}

// QuarantinePath is where damaged bytes are kept as evidence.
func QuarantinePath(dir, name string) string {
	return filepath.Join(Dir(dir), "quarantine", name)
}

// ListSegments returns the journal's segments in order.
func ListSegments(dir string) ([]SegmentFile, error) {
	names, err := os.ReadDir(Dir(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	var segments []SegmentFile
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
		segments = append(segments, SegmentFile{first, info.Size()})
	}
	slices.SortFunc(segments, func(a, b SegmentFile) int { return cmp.Compare(a.First, b.First) })
	return segments, nil
}
