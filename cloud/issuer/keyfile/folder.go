package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFolder makes dir with files, all or nothing: a folder beside it is
// filled, synced and renamed.
func WriteFolder(dir string, files map[string][]byte) (err error) {
	parent := filepath.Dir(filepath.Clean(dir))
	temp, err := os.MkdirTemp(parent, ".new-ca-*") // 0700
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(temp)
		}
	}()
	for name, data := range files {
		if err := WriteSynced(filepath.Join(temp, name), data); err != nil {
			return err
		}
	}
	if err := SyncDir(temp); err != nil {
		return err
	}
	// Remove takes an empty folder only, and Rename no folder at all.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is in use: a CA is made in a folder of its own, and none is ever written over: %w", dir, err)
	}
	if err := os.Rename(temp, dir); err != nil {
		return err
	}
	return SyncDir(parent)
}

func WriteSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
