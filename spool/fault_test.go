package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"secretfree/station/board"
	"syscall"
	"testing"

	"secretfree/spool/durable"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// faulty is a disk on which one call of one kind fails.
type faulty struct {
	osDisk
	plan *faultPlan
}

type faultyFile struct {
	durable.File
	plan *faultPlan
}

type faultPlan struct {
	// op is open, write, short, sync, truncate, read, rename, remove, syncdir;
	// of the index: openindex, syncindex, page (a write that is short), meta
	// (the write that makes a commit), commit (the sync after it, which fails
	// with EINVAL).
	op    string
	after int    // good ones before it
	also  string // fails from then on, if set
	dead  bool   // from then on everything fails, and nothing reaches the disk: the process was killed
	err   error
	fired bool
}

func (p *faultPlan) hit(op string) bool {
	if p == nil || p.err == nil {
		return false
	}
	if p.fired && (op == p.also || p.dead) {
		return true
	}
	if op != p.op || p.fired {
		return false
	}
	if p.after--; p.after >= 0 {
		return false
	}
	p.fired = true
	return true
}

func (f faultyFile) WriteAt(b []byte, at int64) (int, error) {
	if f.plan.hit("write") {
		return 0, f.plan.err
	}
	if f.plan.hit("short") {
		n, _ := f.File.WriteAt(b[:len(b)/2], at)
		return n, f.plan.err
	}
	return f.File.WriteAt(b, at)
}

func (f faultyFile) ReadAt(b []byte, at int64) (int, error) {
	if f.plan.hit("read") {
		return 0, f.plan.err
	}
	return f.File.ReadAt(b, at)
}

func (f faultyFile) Sync() error {
	if f.plan.hit("sync") {
		return f.plan.err
	}
	return f.File.Sync()
}

func (f faultyFile) Truncate(n int64) error {
	if f.plan.hit("truncate") {
		return f.plan.err
	}
	return f.File.Truncate(n)
}

func (d faulty) Open(path string, flag int, mode fs.FileMode) (durable.File, error) {
	if d.plan.hit("open") {
		return nil, d.plan.err
	}
	f, err := d.osDisk.Open(path, flag, mode)
	return faultyFile{f, d.plan}, err
}

func (d faulty) openIndex(path string, options *bolt.Options) (*bolt.DB, error) {
	if d.plan.hit("openindex") {
		return nil, d.plan.err
	}
	db, err := d.osDisk.openIndex(path, options)
	if err != nil {
		return nil, err
	}
	hookWrites(db, func(b []byte, at int64, write func([]byte, int64) (int, error)) (int, error) {
		if d.plan.dead && d.plan.fired {
			return 0, d.plan.err
		}
		if d.plan.hit("page") {
			n, _ := write(b[:len(b)/2], at)
			return n, d.plan.err
		}
		meta := at < 2*int64(os.Getpagesize())
		if meta && d.plan.hit("meta") {
			return 0, d.plan.err
		}
		n, err := write(b, at)
		if meta && err == nil && d.plan.hit("commit") {
			err = unsyncable(db)
		}
		return n, err
	})
	return db, nil
}

// unsyncable puts under a file of bbolt's another for which fdatasync is not
// defined. After the error nobody writes to it.
func unsyncable(db *bolt.DB) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	f := *(**os.File)(reflect.ValueOf(db).Elem().FieldByName("file").Addr().UnsafePointer())
	return unix.Dup3(int(null.Fd()), int(f.Fd()), unix.O_CLOEXEC)
}

func (d faulty) syncIndex(db *bolt.DB) error {
	if d.plan.hit("syncindex") {
		return d.plan.err
	}
	return d.osDisk.syncIndex(db)
}

func (d faulty) Rename(from, to string) error {
	if d.plan.hit("rename") {
		return d.plan.err
	}
	return d.osDisk.Rename(from, to)
}

func (d faulty) SyncDir(dir string) error {
	if d.plan.hit("syncdir") {
		return d.plan.err
	}
	return d.osDisk.SyncDir(dir)
}

// Each call on the journal and the index fails, once or from then on: no
// receipt is given, and when it works again, reading the board again settles
// it.
func TestAppendFaults(t *testing.T) {
	for _, c := range []faultPlan{
		{op: "write", err: syscall.ENOSPC},
		{op: "write", err: syscall.EIO},
		{op: "write", err: syscall.EROFS},
		{op: "short", err: syscall.ENOSPC},
		{op: "short", err: syscall.ENOSPC, also: "truncate"},
		{op: "sync", err: syscall.EIO},
		{op: "sync", err: syscall.ENOSPC},
		{op: "read", err: syscall.EIO},
		{op: "page", err: syscall.EIO},
		{op: "page", err: syscall.ENOSPC},
		{op: "meta", err: syscall.EIO},
		{op: "commit", err: syscall.EINVAL},
		{op: "sync", err: syscall.EIO, also: "open"},
		{op: "sync", err: syscall.EIO, also: "openindex"},
		{op: "meta", err: syscall.ENOSPC, also: "page"},
	} {
		t.Run(fmt.Sprintf("%s %v %s", c.op, c.err, c.also), func(t *testing.T) {
			k := newKit(t)
			k.spool.Close()
			var plan faultPlan
			k.disk = faulty{plan: &plan}
			k.mustOpen()
			k.mustAppend()
			plan = c
			r := newRecord(t)
			receipt, err := k.append(r)
			if !errors.Is(err, c.err) {
				t.Fatalf("Append: %+v, %v, want %v", receipt, err, c.err)
			}
			if !plan.fired {
				t.Fatal("the fault was not reached")
			}
			if c.also != "" {
				if receipt, err := k.append(r); !errors.Is(err, c.err) {
					t.Fatalf("while it fails: %+v, %v", receipt, err)
				}
			}
			plan = faultPlan{}
			if _, err := k.append(r); err != nil {
				t.Fatalf("once more: %v", err)
			}
			k.mustAppend()
			k.reopen()
			if receipt, err := k.append(r); err != nil || !receipt.Repeat {
				t.Errorf("after a restart: %+v, %v", receipt, err)
			}
		})
	}
}

// A full disk: the slot is told, nothing half-written is trusted, and when
// there is room again all goes on.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		skip(t, fmt.Sprintf("mounting a small file system: %v", err))
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	k := &kit{t: t, dir: dir, sink: newMemorySink(), receipts: map[board.DeviceID]board.Receipt{}}
	var err error
	if k.id, err = journal.LoadIdentity(dir, "widgiot/line3-a"); err != nil {
		t.Fatal(err)
	}
	k.mustOpen()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var refused board.Record
	full := 0
	for range 2000 {
		refused = newRecord(t)
		if _, err = k.append(refused); err == nil {
			continue // where one record does not fit, a shorter write may
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("on a full disk: %v, want %v", err, syscall.ENOSPC)
		}
		if full++; full == 5 {
			break
		}
	}
	if full < 5 {
		t.Fatal("the disk does not get full")
	}
	os.Remove(ballast)
	if _, err := k.append(refused); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	k.mustAppend()
	k.reopen()
	k.spool.Close()
	checkInvariants(t, dir, k.id, k.receipts)
}

// badSector is a disk that cannot read the first sector of a file.
type badSector struct {
	osDisk
	path string
}

type badFile struct{ durable.File }

func (d badSector) Open(path string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := d.osDisk.Open(path, flag, mode)
	if path == d.path {
		return badFile{f}, err
	}
	return f, err
}

func (f badFile) ReadAt(p []byte, at int64) (int, error) {
	if at < journal.Sector {
		return 0, syscall.EIO
	}
	return f.File.ReadAt(p, at)
}

// A kernel that could not write pages forgets that they are dirty, and may drop
// them or go on to show them: after a failed sync nothing is taken for granted
// before the file is read anew.
func TestFailedSync(t *testing.T) {
	for name, lose := range map[string]func(path string, synced int64) error{
		"the pages are still shown": func(string, int64) error { return nil },
		"the pages are gone":        os.Truncate,
		"the pages are zeros": func(path string, synced int64) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(os.Truncate(path, synced), os.Truncate(path, info.Size()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			k.spool.Close()
			var plan faultPlan
			k.disk = faulty{plan: &plan}
			k.mustOpen()
			k.mustAppend()
			synced := k.spool.end.Offset
			plan = faultPlan{op: "sync", err: syscall.EIO}
			r := newRecord(t)
			if _, err := k.append(r); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			old := k.spool.file
			if stats := k.spool.Stats(); stats.Broken == "" || stats.Entries != 2 {
				t.Errorf("%+v", stats)
			}
			if err := lose(segment(k), synced); err != nil {
				t.Fatal(err)
			}
			if _, err := k.append(r); err != nil {
				t.Fatal(err)
			}
			if k.spool.file == old {
				t.Error("the same open file is gone on with")
			}
			if stats := k.spool.Stats(); stats.Broken != "" || stats.Damaged > 0 {
				t.Errorf("%+v", stats)
			}
			k.mustAppend()
		})
	}
}

// An index that cannot be opened now is not thrown away: what was delivered
// stands only in it.
func TestIndexNotNow(t *testing.T) {
	for _, reason := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EROFS, syscall.ENOSPC, syscall.EACCES} {
		k := newKit(t)
		k.mustAppend()
		k.deliver()
		k.spool.Close()
		plan := faultPlan{op: "openindex", err: reason}
		k.disk = faulty{plan: &plan}
		if _, err := Open(k.config()); !errors.Is(err, reason) {
			t.Errorf("%v: Open: %v", reason, err)
		}
		k.notices = nil
		k.mustOpen()
		if stats := k.spool.Stats(); stats.Pending != 0 || len(k.notices) > 0 {
			t.Errorf("%v: %+v, %q", reason, stats, k.notices)
		}
	}
}

// Each call on the disk fails once, whichever it is, while records are
// appended, segments sealed and checkpoints signed: no receipt is given that
// does not hold, and reading the board again settles it.
func TestEachCallFails(t *testing.T) {
	for op, fault := range map[string]error{
		"open": syscall.EMFILE, "write": syscall.EROFS, "short": syscall.ENOSPC, "sync": syscall.EIO, "rename": syscall.EROFS, "syncdir": syscall.EIO,
		"openindex": syscall.EMFILE, "syncindex": syscall.EIO, "page": syscall.ENOSPC, "meta": syscall.EIO, "commit": syscall.EINVAL,
	} {
		t.Run(op, func(t *testing.T) {
			fired := true
			for after := 0; fired; after++ {
				if testing.Short() && after%5 > 0 {
					continue
				}
				t.Run(fmt.Sprint(after), func(t *testing.T) {
					k := newKit(t)
					k.spool.Close()
					k.size = 2 << 10
					if op == "syncindex" { // of one that is rebuilt
						os.Remove(indexPath(k.dir))
					}
					plan := faultPlan{op: op, after: after, err: fault}
					k.disk = faulty{plan: &plan}
					s, err := Open(k.config())
					if err != nil {
						if s, err = Open(k.config()); err != nil {
							t.Fatalf("Open, once more: %v", err)
						}
					}
					k.spool = s
					for range 6 {
						r := newRecord(t)
						if _, err := k.append(r); err != nil {
							if !errors.Is(err, fault) {
								t.Fatal(err)
							}
							if _, err := k.append(r); err != nil {
								t.Fatalf("once more: %v", err)
							}
						}
						if err := k.spool.Checkpoint(); err != nil && !errors.Is(err, fault) {
							t.Fatal(err)
						}
					}
					if err := k.spool.Checkpoint(); err != nil {
						t.Error(err)
					}
					if s := k.spool.Stats(); s.Broken != "" || s.Signed != s.Entries || s.Damaged > 0 {
						t.Errorf("stats %+v", s)
					}
					if fired = plan.fired; !fired && after == 0 {
						t.Error("the fault was not reached")
					}
				})
			}
		})
	}
}
