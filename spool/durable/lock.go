package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process has the lock. The message names it.
var ErrLocked = errors.New("another process uses this folder")

// holder is who has the spool, as the lock file says. The lock is the flock;
// what the file says is for people.
type holder struct {
	PID     int    `json:"pid"`
	Program string `json:"program"`
	Host    string `json:"host"`
	Since   string `json:"since"`
}

func (h holder) String() string {
	if h.PID == 0 {
		return "an unknown process"
	}
	return fmt.Sprintf("process %d (%.64q on host %.64q, since %.40s)", h.PID, h.Program, h.Host, h.Since)
}

// Lock takes the lock of a folder. It returns the lock and who had it before,
// if that is known.
func Lock(dir string) (lock *os.File, before holder, err error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, before, fmt.Errorf("locking the spool: %w", err)
	}
	failed := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if text, err := os.ReadFile(path); err == nil && json.Unmarshal(text, &before) != nil {
		before = holder{}
	}
	if failed != nil {
		f.Close()
		if errors.Is(failed, unix.EWOULDBLOCK) {
			return nil, before, fmt.Errorf("%w: %v holds %s; stop it first", ErrLocked, before, path)
		}
		return nil, before, fmt.Errorf("locking %s: %w", path, failed)
	}
	host, _ := os.Hostname()
	text, err := json.Marshal(holder{os.Getpid(), filepath.Base(os.Args[0]), host, time.Now().UTC().Format(time.RFC3339)})
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(append(text, '\n'), 0)
	}
	if err != nil && !errors.Is(err, unix.ENOSPC) { // on a full disk the lock holds all the same
		f.Close()
		return nil, before, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, before, nil
}

// Elsewhere warns when the folder was last used by another machine. A copy of a
// station's folder is the way to two machines that sign as one.
func (h holder) Elsewhere() (notice string, moved bool) {
	host, err := os.Hostname()
	if err != nil || h.Host == "" || h.Host == host {
		return "", false
	}
	return fmt.Sprintf("this folder was last used on host %.64q, this is %.64q: if that machine runs with a copy of it, two machines sign as one station; give one of them another station name and an empty state_dir", h.Host, host), true
}
