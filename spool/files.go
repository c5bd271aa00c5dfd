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

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// file is what the spool does to a file that it writes; tests make each of it fail.
type file interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

// disk is what the spool does to its folder; tests make each of it fail.
type disk interface {
	open(path string, flag int, mode fs.FileMode) (file, error)
	// openIndex opens a file of bbolt's, which writes and syncs it by itself.
	openIndex(path string, options *bolt.Options) (*bolt.DB, error)
	// syncIndex is for an index that was written without syncs.
	syncIndex(db *bolt.DB) error
	rename(from, to string) error
	syncDir(dir string) error
}

type osDisk struct{}

func (osDisk) open(path string, flag int, mode fs.FileMode) (file, error) {
	f, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) openIndex(path string, options *bolt.Options) (*bolt.DB, error) {
	return bolt.Open(path, 0o600, options)
}

func (osDisk) syncIndex(db *bolt.DB) error { return db.Sync() }

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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

// writeDurably replaces a file: when it returns nil, the new content is on disk, and at no time was there a part of it. It is made
// from a file of a fixed name, so that what a crash leaves is gone with the next write: one process at a time may call it for a path.
func writeDurably(d disk, path string, data []byte, mode fs.FileMode) error {
	temporary := path + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.open(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer os.Remove(temporary)
	if n, err := f.WriteAt(data, 0); err != nil || n != len(data) {
		return errors.Join(shortWrite(err, n, len(data)), f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := d.rename(temporary, path); err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

func shortWrite(err error, n, of int) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%d of %d bytes were written: %w", n, of, io.ErrShortWrite)
}

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
