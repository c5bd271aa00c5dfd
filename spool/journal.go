package spool

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// DamageError says that the journal is damaged where it cannot be a write cut short by a power failure. Nothing is skipped and
// nothing is repaired: the station does not start.
type DamageError struct {
	Path   string
	Line   int
	Reason error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s, line %d: the journal is damaged: %v; keep a copy of the whole folder, then restore this file from a backup or from the registry's copy", e.Path, e.Line, e.Reason)
}

func (e *DamageError) Unwrap() error { return e.Reason }

// position is where an entry stands.
type position struct {
	segment uint64 // its first seq, which is its file's name
	offset  int64
}

// scanned is what scan found.
type scanned struct {
	next     uint64   // the seq of the next entry
	end      position // where it goes
	segments int
	torn     int64 // bytes after end that are no entry: a write cut short
	tornPath string
}

var segmentName = regexp.MustCompile(`^([0-9]{20})\.jsonl$`)

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, "journal", fmt.Sprintf("%020d.jsonl", first))
}

// scan reads all segments in order and calls visit for each entry that has its checksum and its place in the
// sequence. data and sum are valid during the call.
func scan(dir string, visit func(at position, seq uint64, data []byte, sum uint32) error) (scanned, error) {
	var s scanned
	names, err := os.ReadDir(filepath.Join(dir, "journal"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("reading the journal: %w", err)
	}
	var firsts []uint64
	for _, name := range names {
		if m := segmentName.FindStringSubmatch(name.Name()); m != nil {
			first, err := strconv.ParseUint(m[1], 10, 64)
			if err != nil {
				return s, &DamageError{Path: name.Name(), Reason: err}
			}
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	for i, first := range firsts {
		path := segmentPath(dir, first)
		if first != s.next {
			return s, &DamageError{Path: path, Line: 1, Reason: fmt.Errorf("the segment before it ends at %d: entries are missing", s.next)}
		}
		if err := s.segment(path, first, i == len(firsts)-1, visit); err != nil {
			return s, err
		}
		s.segments++
	}
	return s, nil
}

func (s *scanned) segment(path string, first uint64, last bool, visit func(position, uint64, []byte, uint32) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, maxEntryLine)
	s.end = position{segment: first}
	for number := 1; ; number++ {
		line, err := r.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		var data []byte
		var sum uint32
		bad, whole := error(nil), false
		if err != nil {
			bad = fmt.Errorf("%w: no line end", ErrEntry)
		} else if data, sum, bad = checkLine(bytes.TrimSuffix(line, []byte("\n"))); bad == nil && !bytes.HasPrefix(data, fmt.Appendf(nil, `{"seq":%d,`, s.next)) {
			bad, whole = fmt.Errorf("%w: entry %d is missing", ErrEntry, s.next), true
		}
		if bad != nil {
			damage := &DamageError{Path: path, Line: number, Reason: bad}
			// A power failure tears the end of the last file. If anything good follows, it was something else.
			if !last || whole {
				return damage
			}
			followed, err := goodFollows(r)
			if err != nil {
				return fmt.Errorf("reading %s: %w", path, err)
			}
			info, err := f.Stat()
			if err != nil {
				return fmt.Errorf("reading %s: %w", path, err)
			}
			if followed {
				return damage
			}
			s.torn, s.tornPath = info.Size()-s.end.offset, path
			return nil
		}
		if err := visit(s.end, s.next, data, sum); err != nil {
			var damage *DamageError
			if errors.As(err, &damage) {
				damage.Path, damage.Line = path, number
			}
			return err
		}
		s.next++
		s.end.offset += int64(len(line))
	}
}

// goodFollows tells whether any whole line with a good checksum follows.
func goodFollows(r *bufio.Reader) (bool, error) {
	for {
		line, err := r.ReadSlice('\n')
		if err == nil {
			if _, _, bad := checkLine(bytes.TrimSuffix(line, []byte("\n"))); bad == nil {
				return true, nil
			}
			continue
		}
		if err == io.EOF {
			return false, nil
		}
		if err != bufio.ErrBufferFull {
			return false, err
		}
	}
}

// file is what the spool does to a segment; tests make each of it fail.
type file interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

type osFile struct{ *os.File }

// Sync is fdatasync: the length counts as data, the time of the last change does not.
func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func openOS(path string, flag int) (file, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// tree is the right edge of the Merkle tree (RFC 6962, 2.1): the roots of its full subtrees, the largest first.
type tree struct {
	n    uint64
	edge []tlog.Hash
}

func (t *tree) add(leaf []byte) {
	h := tlog.RecordHash(leaf)
	for n := t.n; n&1 == 1; n >>= 1 {
		h = tlog.NodeHash(t.edge[len(t.edge)-1], h)
		t.edge = t.edge[:len(t.edge)-1]
	}
	t.edge = append(t.edge, h)
	t.n++
}

func (t *tree) root() tlog.Hash {
	if t.n == 0 {
		return sha256.Sum256(nil)
	}
	h := t.edge[len(t.edge)-1]
	for i := len(t.edge) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.edge[i], h)
	}
	return h
}
