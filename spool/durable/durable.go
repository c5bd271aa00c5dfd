// Package durable writes files that a power failure cannot tear, and locks
// folders.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// File is an open file whose every call can fail; tests make each of them fail.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

// Disk is a file system; tests make each call of it fail.
type Disk interface {
	Open(path string, flag int, mode fs.FileMode) (File, error)
	Rename(from, to string) error
	SyncDir(dir string) error
}

// OS is the file system of the machine.
type OS struct{}

func (OS) Open(path string, flag int, mode fs.FileMode) (File, error) {
	f, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (OS) Rename(from, to string) error { return os.Rename(from, to) }

func (OS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type osFile struct{ *os.File }

// Sync is fdatasync: the length counts as data, the time of the last change
// does not.
func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// WriteFile replaces a file: when it returns nil, the new content is on disk,
// and at no time was there a part of it. It is made from a file of a fixed
// name, so that what a crash leaves is gone with the next write: one process at
// a time may call it for a path.
func WriteFile(d Disk, path string, data []byte, mode fs.FileMode) error {
	temporary := path + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.Open(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer os.Remove(temporary)
	if n, err := f.WriteAt(data, 0); err != nil || n != len(data) {
		return errors.Join(ShortWrite(err, n, len(data)), f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := d.Rename(temporary, path); err != nil {
		return err
	}
	return d.SyncDir(filepath.Dir(path))
}

func ShortWrite(err error, n, of int) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%d of %d bytes were written: %w", n, of, io.ErrShortWrite)
}
