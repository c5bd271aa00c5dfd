package cloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"secretfree/station/board"
)

// A registry folder:
//
//	registry.json                   the marker: this folder is a registry; its lock is the writers' lock
//	pubkeys/<device>/<key>.pem      public keys
//	items/<device>.json             device items; what operators do replaces one as a whole, with what others wrote into it
//	guards/<key>.json               guard items: whose key is it
//	pending.json                    while a Put is under way: its device items, one after another
//	.new, .new1, …                  in any folder: files on their way to their names; nobody reads one that a crash left
const (
	marker        = "registry.json"
	markerKind    = "secretfree registry"
	markerVersion = 1
	pendingName   = "pending.json"
	newName       = ".new"
	maxFile       = 128 << 10
	maxItemFile   = 1 << 20 // with a long history
	maxPending    = pendingItems * maxFile
	pendingItems  = 50
	lockTimeout   = 30 * time.Second
)

// ErrNoRegistry says that a folder is not a registry: it was never made one by
// InitDir, or its disk or share is not there.
var ErrNoRegistry = errors.New("not a registry folder (it has no " + marker + "): if its disk or share is missing, mount it; a new registry has to be initialised first")

// DirConfig says where the registry is.
type DirConfig struct {
	Path         string // of a folder that InitDir has made a registry
	PubkeyFormat PubkeyFormat
	InitHint     string // the command that initialises the folder, for errors that wrap ErrNoRegistry
}

// Dir is a registry in a folder. Any number of callers, stations and processes
// on one machine may use the folder at once: writers take turns by a lock
// (flock); whether that holds between machines is for the file system to say.
// It must support hard links. It is made by OpenDir.
type Dir struct {
	config DirConfig
	turn   chan struct{} // of capacity 1: full while a caller of this Dir writes
	// cut, in tests, ends a Put at a step, as a crash would.
	cut func(step string) error
}

func folders() []string { return []string{"pubkeys", "items", "guards"} }

type markerJSON struct {
	Kind    string `json:"kind"`
	Version int    `json:"version"`
}

// InitDir makes a folder a registry, durably, and the folder too if it is
// missing. A folder that is a registry stays as it is; one that holds anything
// else is refused. It is for one caller at a time.
func InitDir(name string) error {
	if err := initDir(name); err != nil {
		return fmt.Errorf("initialising the registry folder %s: %w", name, err)
	}
	return nil
}

func initDir(name string) error {
	if err := os.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Lstat(marker); err == nil {
		return checkMarker(root)
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries { // an earlier attempt may have broken off
		if e.Name() != newName && !slices.Contains(folders(), e.Name()) {
			return fmt.Errorf("it holds %q already: choose an empty folder", e.Name())
		}
	}
	for _, folder := range folders() {
		if err := root.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	content, err := json.Marshal(markerJSON{markerKind, markerVersion})
	if err != nil {
		return err
	}
	// The marker comes last: with it, everything is there.
	if err := syncFolder(root, "."); err != nil {
		return err
	}
	w := writeTxn{root: root}
	if err := w.create(marker, append(content, '\n')); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	parent, err := os.OpenRoot(filepath.Dir(filepath.Clean(name)))
	if err != nil {
		return err
	}
	defer parent.Close()
	return syncFolder(parent, ".")
}

// OpenDir does not look at the folder, so that a station starts while its share
// is away: Put and Lookup then give ErrNoRegistry.
func OpenDir(c DirConfig) (*Dir, error) {
	if c.Path == "" {
		return nil, errors.New("registry in a folder: it needs a path")
	}
	if err := c.PubkeyFormat.check(); err != nil {
		return nil, fmt.Errorf("registry in a folder: %w", err)
	}
	return &Dir{config: c, turn: make(chan struct{}, 1)}, nil
}

// Put enrols a device. On return without an error, this device is enrolled with
// this key, by this record or by an earlier one, which then stays as it is;
// files and folders are synced. The errors are those of the package comment.
func (d *Dir) Put(ctx context.Context, s board.Sealed) error {
	return d.PutBatch(ctx, []board.Sealed{s})[0]
}

// PutBatch is Put of any number of records, with a result for each: the lock is
// taken once, and files and folders are synced together. One that is refused
// does not keep the others from being enrolled.
func (d *Dir) PutBatch(ctx context.Context, records []board.Sealed) []error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	results := make([]error, len(records))
	good := nonZero(records, results)
	if len(good) == 0 {
		return results
	}
	err := d.locked(ctx, func(w *writeTxn) error {
		conflictFreeBatches(records, good, results, func(wave []int) { w.put(records, wave, results, d.config.PubkeyFormat) })
		return nil
	})
	for _, i := range good {
		if err != nil {
			results[i] = err
		}
		results[i] = d.explain("enrolling device "+records[i].Record().Device.String(), results[i])
	}
	return results
}

// Lookup returns what is held under a device id. The envelope is not verified.
// An error that wraps board.ErrNotEnrolled says for sure that there is nothing;
// one that wraps ErrDamaged, that it makes no sense; ErrNoRegistry, that the
// folder is away. An item that no station wrote has no envelope, and may have
// no state.
func (d *Dir) Lookup(_ context.Context, device board.DeviceID) (board.Enrolment, error) {
	e, err := d.lookup(device)
	if err != nil {
		return board.Enrolment{}, d.explain("looking up device "+device.String(), err)
	}
	return e, nil
}

func (d *Dir) lookup(device board.DeviceID) (board.Enrolment, error) {
	root, err := d.open()
	if err != nil {
		return board.Enrolment{}, err
	}
	defer root.Close()
	stored, err := readItem(root, itemName(device), device)
	if err != nil {
		return board.Enrolment{}, err
	}
	if stored == nil {
		return board.Enrolment{}, board.ErrNotEnrolled
	}
	return stored.enrolment(device)
}

// open holds on to the folder that has the marker, even if another is mounted
// over it meanwhile.
func (d *Dir) open() (*os.Root, error) {
	root, err := os.OpenRoot(d.config.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoRegistry
	}
	if err != nil {
		return nil, err
	}
	if err := checkMarker(root); err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

func checkMarker(root *os.Root) error {
	data, err := readFile(root, marker, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNoRegistry
	}
	if err != nil {
		return err
	}
	var m markerJSON
	if err := decodeJSON(data, &m); err != nil || m.Kind != markerKind || m.Version < 1 {
		return fmt.Errorf("%w: %s does not say that this is a registry: put it back from a copy", ErrDamaged, marker)
	}
	if m.Version > markerVersion {
		return fmt.Errorf("the registry has version %d, this program knows up to %d: %w: install that", m.Version, markerVersion, board.ErrNewer)
	}
	return nil
}

// locked calls do while nobody else writes to the folder.
func (d *Dir) locked(ctx context.Context, do func(*writeTxn) error) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for another writer: %w", context.Cause(ctx))
	}
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	lock, err := root.OpenFile(marker, os.O_RDWR, 0) // for writing, because some network file systems lock no other
	if err != nil {
		return err
	}
	defer lock.Close() // gives the lock back
	if err := flock(ctx, lock); err != nil {
		return err
	}
	return do(&writeTxn{root: root, cut: d.cut})
}

// flock waits for the lock, which the kernel gives back when its holder dies.
func flock(ctx context.Context, f *os.File) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("locking %s: %w", marker, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("waiting for another process that writes to the registry: %w", context.Cause(ctx))
		}
	}
}

func (d *Dir) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*board.Conflict](err); ok {
		return err
	}
	if errors.Is(err, ErrNoRegistry) && d.config.InitHint != "" {
		err = fmt.Errorf("%w (%s)", err, d.config.InitHint)
	}
	remedy := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		remedy = "its disk is full: make room: "
	case errors.Is(err, fs.ErrPermission):
		remedy = "this program may not use the folder: give its user the right to read and write there: "
	case errors.Is(err, syscall.EROFS):
		remedy = "it is read-only for this program: check that its disk is mounted for writing, and that the unit of systemd names it in ReadWritePaths=: "
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE):
		remedy = "its disk or share has failed: check it and mount it again: "
	case errors.Is(err, errNotHeld):
		remedy = "its disk or share does not give back what was written: check it; the record is written again: "
	}
	return fmt.Errorf("%s in the registry folder %s: %s%w", doing, d.config.Path, remedy, err)
}

// writeTxn is one holder of the lock at work.
type writeTxn struct {
	root *os.Root
	cut  func(step string) error // called by one goroutine
}

func (w *writeTxn) step(name string) error {
	if w.cut == nil {
		return nil
	}
	return w.cut(name)
}

func itemName(device board.DeviceID) string  { return "items/" + device.String() + ".json" }
func guardName(key board.Fingerprint) string { return "guards/" + key.String() + ".json" }
func isExist(err error) bool                 { return errors.Is(err, fs.ErrExist) }

// put makes the two items of each record appear as one: what is to be written
// is first in pending.json, and whoever holds the lock next carries on from
// there.
func (w *writeTxn) put(records []board.Sealed, wave []int, results []error, format PubkeyFormat) {
	fail := func(err error) {
		for _, i := range unresolved(results, wave) {
			results[i] = err
		}
	}
	if err := w.finish(); err != nil {
		fail(err)
		return
	}
	enrolled := map[int]bool{}
	for _, i := range wave {
		enrolled[i], results[i] = w.judge(records[i].Record())
	}
	if err := w.putObjects(records, unresolved(results, wave), results); err != nil {
		fail(err)
		return
	}
	var todo []int
	for _, i := range unresolved(results, wave) {
		if !enrolled[i] {
			todo = append(todo, i)
		}
	}
	for group := range slices.Chunk(todo, pendingItems) {
		var pending []byte
		for _, i := range group {
			pending = append(pending, newItem(records[i], format, "").json()...)
		}
		err := w.create(pendingName, pending)
		if err == nil {
			err = w.finish()
		}
		if err != nil {
			for _, i := range todo {
				results[i] = err
			}
			return
		}
		_ = sideBySide(len(group), func(n int) error {
			results[group[n]] = w.readBack(records[group[n]], format)
			return nil
		})
		todo = todo[len(group):] // these are enrolled
	}
}

// readBack reads what was written for a record, from the disk and not from this
// machine's memory of it where the system allows that.
func (w *writeTxn) readBack(s board.Sealed, format PubkeyFormat) error {
	r := s.Record()
	for _, name := range []string{objectName(r.Device, r.Fingerprint()), guardName(r.Fingerprint()), itemName(r.Device)} {
		forget(w.root, name)
	}
	key, err := readGuard(w.root, r.Fingerprint())
	if err != nil {
		return err
	}
	stored, err := readItem(w.root, itemName(r.Device), r.Device)
	if err != nil {
		return err
	}
	if err := confirm(s, newItem(s, format, ""), stored, key); err != nil {
		return err
	}
	object, err := readFile(w.root, objectName(r.Device, r.Fingerprint()), maxFile)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Equal(object, r.Key.PEM()) {
		err = fmt.Errorf("device %s: its public key: %w", r.Device, errNotHeld)
	}
	return err
}

// forget drops what the machine remembers of a file's content. It is an advice:
// a file system may not follow it.
func forget(root *os.Root, name string) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return // the reading says why
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	_ = f.Close()
}

func (w *writeTxn) judge(r board.Record) (enrolled bool, err error) {
	key, err := readGuard(w.root, r.Fingerprint())
	if err != nil {
		return false, err
	}
	stored, err := readItem(w.root, itemName(r.Device), r.Device)
	if err != nil {
		return false, err
	}
	enrolled, err = judge(r, stored, key)
	if conflict, ok := errors.AsType[*board.Conflict](err); ok && conflict.Kind == board.ErrKeyConflict {
		if other, err := readItem(w.root, itemName(conflict.KnownDevice), conflict.KnownDevice); err == nil {
			conflict.KnownBy = other.enrolledBy(conflict.KnownDevice)
		}
	}
	return enrolled, err
}

// putObjects writes public keys. An error is one of the disk; what is wrong
// with one object is noted in its result.
func (w *writeTxn) putObjects(records []board.Sealed, todo []int, results []error) error {
	if len(todo) == 0 {
		return nil
	}
	var files []newFile
	for _, i := range todo {
		r := records[i].Record()
		f := newFile{name: objectName(r.Device, r.Fingerprint()), content: r.Key.PEM()}
		if err := w.root.Mkdir(path.Dir(f.name), 0o755); err != nil && !isExist(err) {
			return err
		}
		files = append(files, f)
	}
	// Even if they were there: their maker may have crashed before the sync.
	if err := syncFolder(w.root, "pubkeys"); err != nil {
		return err
	}
	if err := w.createAll(files); err != nil {
		return err
	}
	for n, f := range files {
		if !f.known {
			continue
		}
		stored, err := readFile(w.root, f.name, maxFile)
		if err == nil && !bytes.Equal(stored, f.content) {
			err = damaged(records[todo[n]].Record().Device, "%s is not the key that its name says", f.name)
		}
		results[todo[n]] = err
	}
	return nil
}

// finish carries out what pending.json says, if there is one. Each step may
// have been done before.
func (w *writeTxn) finish() error {
	data, err := readFile(w.root, pendingName, maxPending)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pending, err := parsePending(data)
	if err != nil {
		return fmt.Errorf("%s holds no items, and was kept: move it elsewhere, its records are delivered anew: %w", pendingName, err)
	}
	var guards, items []newFile
	for _, p := range pending {
		key := board.KeyBinding{Device: p.Device, Key: p.Key.Fingerprint()}
		guards = append(guards, newFile{name: guardName(key.Key), content: guardToJSON(key)})
		items = append(items, newFile{name: itemName(p.Device), content: p.json})
	}
	if err := w.createAll(append(guards, items...)); err != nil {
		return err
	}
	if err := w.root.Remove(pendingName); err != nil {
		return err
	}
	if err := syncFolder(w.root, "."); err != nil {
		return err
	}
	return w.step("finished")
}

// pendingItem is one of the items of pending.json.
type pendingItem struct {
	board.Enrolment
	json []byte
}

func parsePending(data []byte) (out []pendingItem, err error) {
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var raw json.RawMessage
		var name struct {
			Device board.DeviceID `json:"device-id"`
		}
		err := d.Decode(&raw)
		if err == io.EOF && len(out) > 0 {
			return out, nil
		}
		if err == nil {
			err = json.Unmarshal(raw, &name)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrDamaged, err)
		}
		i, err := itemFromJSON(name.Device, raw)
		if err != nil {
			return nil, err
		}
		e, err := i.enrolment(name.Device)
		if err != nil {
			return nil, err
		}
		out = append(out, pendingItem{e, append(raw, '\n')})
	}
}

// newFile is a file to be made.
type newFile struct {
	name    string
	content []byte
	known   bool // it was there before, and was left as it was
	via     string
}

// create makes a file with this content, whole and synced, or finds that there
// is one: an error that is fs.ErrExist. Either way the file of that name is
// durable on return.
func (w *writeTxn) create(name string, content []byte) error {
	files := []newFile{{name: name, content: content}}
	if err := w.createAll(files); err != nil {
		return err
	}
	if files[0].known {
		return &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	return nil
}

// createAll makes files, each whole, in the order given, or finds that they are
// there. On return all are durable. They are synced side by side, because a
// file system does many of these for little more than the price of one.
func (w *writeTxn) createAll(files []newFile) error {
	inFolder := map[string]int{}
	var folders []string
	for n := range files {
		folder := path.Dir(files[n].name)
		files[n].via = path.Join(folder, newName)
		if k := inFolder[folder]; k > 0 {
			files[n].via += strconv.Itoa(k)
		} else {
			folders = append(folders, folder)
		}
		inFolder[folder]++
	}
	if err := sideBySide(len(files), func(n int) error { return w.write(files[n].via, files[n].content) }); err != nil {
		return err
	}
	for n := range files {
		f := &files[n]
		if err := w.step(f.name + " written"); err != nil {
			return err
		}
		err := w.root.Link(f.via, f.name)
		if f.known = isExist(err); err != nil && !f.known {
			return err
		}
		if err := w.step(f.name + " linked"); err != nil {
			return err
		}
	}
	if err := sideBySide(len(folders), func(n int) error { return syncFolder(w.root, folders[n]) }); err != nil {
		return err
	}
	for _, f := range files {
		if err := w.root.Remove(f.via); err != nil {
			return err
		}
	}
	return nil
}

// write makes a synced file in place of what a crash may have left.
func (w *writeTxn) write(name string, content []byte) error {
	if err := w.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := w.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// replace puts a whole, synced file in the place of another: a reader, and a
// crash, meet the one or the other.
func (w *writeTxn) replace(name string, content []byte) error {
	via := path.Join(path.Dir(name), newName)
	if err := w.write(via, content); err != nil {
		return err
	}
	if err := w.step(name + " written"); err != nil {
		return err
	}
	if err := w.root.Rename(via, name); err != nil {
		return err
	}
	if err := w.step(name + " renamed"); err != nil {
		return err
	}
	return syncFolder(w.root, path.Dir(name))
}

// sideBySide calls do for 0 to n-1, some at once; after an error it may leave
// some out.
func sideBySide(n int, do func(int) error) error {
	var group sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, min(atOnce, n))
	for worker := range errs {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && errs[worker] == nil; i = next.Add(1) - 1 {
				errs[worker] = do(int(i))
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func syncFolder(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readFile reads a whole file of at most limit bytes. What is no regular file
// is damage: a pipe or a device would hold whoever reads it for ever.
func readFile(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%w: %s is no regular file", ErrDamaged, name), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes", ErrDamaged, name, limit)
	}
	return data, err
}

// readItem returns nil if there is none.
func readItem(root *os.Root, name string, device board.DeviceID) (*item, error) {
	data, err := readFile(root, name, maxItemFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, folderThere(root, name)
	}
	if err != nil {
		return nil, err
	}
	return itemFromJSON(device, data)
}

// readGuard returns nil if there is none.
func readGuard(root *os.Root, f board.Fingerprint) (*board.KeyBinding, error) {
	data, err := readFile(root, guardName(f), maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, folderThere(root, guardName(f))
	}
	if err != nil {
		return nil, err
	}
	return guardFromJSON(f, data)
}

// folderThere tells a file that is not there from a folder that is not: then
// nothing is known.
func folderThere(root *os.Root, name string) error {
	if _, err := root.Stat(path.Dir(name)); err != nil {
		return fmt.Errorf("%w: its folder %s is missing: put it back from a copy", ErrDamaged, path.Dir(name))
	}
	return nil
}
