package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Latency is how long small appends took until they were synced.
type Latency struct {
	N             int
	P50, P99, Max time.Duration
}

const (
	syncSize  = 1024 // about a record
	syncMost  = 200
	syncLimit = 2 * time.Second

	// A technician notices a PASS that takes longer, and each board is at least
	// two syncs.
	slowSync = 100 * time.Millisecond
	// Flash takes more than this to write a page, a disk that spins a hundred
	// times as long: what is faster has not been written, or lies in memory
	// that a battery or capacitors keep.
	fastSync = 100 * time.Microsecond
)

func (e *exam) checkSync(ctx context.Context) []Result {
	if e.stateDir == "" {
		return nil // said already
	}
	m, _ := e.findMount(e.stateDir)
	d, _ := e.deviceOf(m)
	l, err := e.Sync(ctx, e.stateDir, syncLimit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // said already
	case errors.Is(err, fs.ErrPermission):
		return []Result{warn("disk.sync", e.asOwner(), "how long a sync in %s takes could not be measured: this user may not write there", e.stateDir)}
	case err != nil:
		return []Result{fail("disk.sync", "See what the kernel says of this disk: dmesg. Until it can be written, every board fails.", "writing to %s: %v", e.stateDir, err)}
	}
	return judgeSync(l, m, d)
}

func judgeSync(l Latency, m mount, d device) []Result {
	text := fmt.Sprintf("%d small appends, each synced: half took less than %v, 99 %% less than %v, the longest %v", l.N, short(l.P50), short(l.P99), short(l.Max))
	const test = "Test it before the line depends on it: let boards pass (stationctl simulate), pull the plug of this machine, and start it again; stationctl spool verify must find each board that showed PASS. If it does not, take a disk with power-loss protection."
	switch {
	case l.N == 0:
		return []Result{fail("disk.sync", "See what the kernel says of this disk: dmesg", "not one small append was synced within %v", syncLimit)}
	case l.P99 > slowSync:
		return []Result{warn("disk.sync", "Each PASS waits for two of these. Look for what else uses this disk (iotop), whether it is worn, and take a faster one.", "the disk is slow: %s", text)}
	case l.P50 >= fastSync:
		return []Result{good("disk.sync", "%s", text)}
	case m.kind == "tmpfs" || m.kind == "ramfs":
		return nil // that it keeps nothing is said already
	case d.kind == kindVirtual:
		return []Result{warn("disk.sync", "See that the host passes syncs on (QEMU: cache=none or writethrough, not unsafe), and has a disk with power-loss protection. "+test,
			"syncs are faster than a disk can write, so that the host of this virtual disk may answer before anything is stored: %s", text)}
	case d.cache == "write through" && d.kind == kindNVMe:
		return []Result{good("disk.sync", "syncs are fast, and %s says that it has no cache that a power cut empties: %s", d.name, text)}
	}
	return []Result{warn("disk.sync", test, "syncs are faster than flash can write: the disk has power-loss protection, or says that something is stored when it is not, and a power cut loses boards that passed: %s", text)}
}

func short(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(10 * time.Microsecond)
}

// measureSync appends to a file that has no name, so that nothing of it is
// left.
func measureSync(ctx context.Context, dir string, limit time.Duration) (l Latency, err error) {
	f, err := nameless(dir)
	if err != nil {
		return l, err
	}
	defer f.Close()
	block := make([]byte, syncSize)
	var took []time.Duration
	for deadline := time.Now().Add(limit); len(took) < syncMost && time.Now().Before(deadline) && ctx.Err() == nil; {
		for i := range block {
			block[i] = byte(len(took) + i) // not what a disk could leave out
		}
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return l, err
		}
		for {
			if err = unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
				break
			}
		}
		if err != nil {
			return l, os.NewSyscallError("fdatasync", err)
		}
		took = append(took, time.Since(began))
	}
	return latencyOf(took), nil
}

func latencyOf(took []time.Duration) (l Latency) {
	if l.N = len(took); l.N > 0 {
		slices.Sort(took)
		l.P50, l.P99, l.Max = took[(l.N-1)/2], took[(l.N-1)*99/100], took[l.N-1]
	}
	return l
}

func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &fs.PathError{Op: "writing to", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, ".doctor-*") // a file system that knows no files without a name
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}
