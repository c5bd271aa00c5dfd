package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	maxFile = 1 << 20
	temp    = ".new-" // the beginning of a file's name while it is written
)

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeNew makes a file that is durable on return. A file that is there already
// is never written over: with the same content it is taken, with another it is
// an error that wraps errConflict.
func writeNew(path string, data []byte) error {
	return put(path, data, func(temp string) error {
		err := os.Link(temp, path)
		if !errors.Is(err, fs.ErrExist) {
			return errors.Join(err, os.Remove(temp))
		}
		there, readErr := readFile(path)
		if err := errors.Join(readErr, os.Remove(temp)); err != nil {
			return err
		}
		if !bytes.Equal(there, data) {
			return fmt.Errorf("%s is there already, and is another: %w", path, errConflict)
		}
		return nil
	})
}

// replace is writeNew for what does not last.
func replace(path string, data []byte) error {
	return put(path, data, func(temp string) error { return os.Rename(temp, path) })
}

func put(path string, data []byte, name func(temp string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, temp+"*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := name(f.Name()); err != nil {
		return err
	}
	return syncDir(dir)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return data, nil
}

// makeDir makes a folder whose parent is there.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// sweep removes what runs that were cut off left half written.
func sweep(dirs ...string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), temp) && e.Type().IsRegular() {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
