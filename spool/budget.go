package spool

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// DiskLevel says how full the disk is.
type DiskLevel string

// How full the disk is.
const (
	DiskOK       DiskLevel = "ok"
	DiskLow      DiskLevel = "low"      // time to make room
	DiskCritical DiskLevel = "critical" // little is left until nothing can be journaled
)

// Disk is the room that there is for the spool, as it was last looked at.
type Disk struct {
	Time  time.Time // of the look; zero if there was none yet, or it failed
	Used  int64     // bytes that the spool's folder takes
	Free  int64     // bytes that may still be written to its file system
	Size  int64     // bytes of the file system that may be written at all
	Level DiskLevel
}

// boardBytes is about what a board takes: some 1.4 kB for its line in the
// journal and 0.5 kB for its places in the index.
const boardBytes = 1900

// Boards is about how many boards there is room for, in two digits: more of
// them say nothing, as boards differ.
func (d Disk) Boards() int64 {
	n, unit := max(d.Free, 0)/boardBytes, int64(1)
	for n/unit >= 100 {
		unit *= 10
	}
	return n / unit * unit
}

// Percent is how full the file system is.
func (d Disk) Percent() int {
	if d.Size <= 0 {
		return 0
	}
	return int((d.Size - d.Free) * 100 / d.Size)
}

const (
	diskEvery    = 10 * time.Second
	diskLow      = 80 // percent
	diskCritical = 95
)

// runDisk looks at the disk until the context ends. A disk that hangs keeps
// only this waiting.
func (s *Spool) runDisk(ctx context.Context) {
	ticker := time.NewTicker(diskEvery)
	defer ticker.Stop()
	for {
		s.lookAtDisk()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *Spool) lookAtDisk() {
	d, err := s.cfg.room(s.cfg.Dir)
	if err != nil {
		s.room.Store(nil) // to write a file there will tell more
		return
	}
	d.Level = levelOf(d.Percent(), s.cfg.DiskLow, s.cfg.DiskCritical)
	d.Time = time.Now()
	s.room.Store(&d)
}

// roomOf measures a folder and its file system.
func roomOf(dir string) (d Disk, err error) {
	var f unix.Statfs_t
	if err := unix.Statfs(dir, &f); err != nil {
		return d, err
	}
	block := int64(f.Frsize)
	if block == 0 {
		block = int64(f.Bsize)
	}
	// What is kept for root is neither used nor free, as df has it.
	d.Free = int64(f.Bavail) * block
	d.Size = int64(f.Blocks-f.Bfree)*block + d.Free
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				d.Used += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went away meanwhile
		}
		return err
	})
	return d, err
}
