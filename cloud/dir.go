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
	"syscall"
	"time"

	"secretfree/station/board"
)

// A registry folder:
//
//	registry.json                   the marker: this folder is a registry; its lock is the writers' lock
//	pubkeys/<device>/<key>.pem      public keys
//	items/<device>.json             device items
//	guards/<key>.json               guard items: whose key is it
//	pending.json                    while a Put is under way: its device item
//	.new                            in any folder: a file on its way to its name; nobody reads one that a crash left
const (
	marker        = "registry.json"
	markerKind    = "secretfree registry"
	markerVersion = 1
	pendingName   = "pending.json"
	newName       = ".new"
	maxFile       = 128 << 10
	lockTimeout   = 30 * time.Second
)

// ErrNoRegistry says that a folder is not a registry: it was never made one by InitDir, or its disk or
// share is not there.
var ErrNoRegistry = errors.New("not a registry folder (it has no " + marker + "): if its disk or share is missing, mount it; a new registry has to be initialised first")

// DirConfig says where the registry is.
type DirConfig struct {
	Path         string // of a folder that InitDir has made a registry
	PubkeyFormat PubkeyFormat
}

// Dir is a registry in a folder. Any number of callers, stations and processes on one machine may use the
// folder at once: writers take turns by a lock (flock); whether that holds between machines is
// for the file system to say. It must support hard links. It is made by OpenDir.
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

// InitDir makes a folder a registry, durably, and the folder too if it is missing. A folder that is a registry stays as it is;
// one that holds anything else is refused. It is for one caller at a time.
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
	w := writing{root: root}
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

// OpenDir does not look at the folder, so that a station starts while its share is away: Put and
// Lookup then give ErrNoRegistry.
func OpenDir(c DirConfig) (*Dir, error) {
	if c.Path == "" {
		return nil, errors.New("registry in a folder: it needs a path")
	}
	if err := c.PubkeyFormat.check(); err != nil {
		return nil, fmt.Errorf("registry in a folder: %w", err)
	}
	return &Dir{config: c, turn: make(chan struct{}, 1)}, nil
}

// Put enrols a device. On return without an error, this device is enrolled with this key, by this
// record or by an earlier one, which then stays as it is; files and folders are synced. The errors are those of
// the package comment.
func (d *Dir) Put(ctx context.Context, s board.Sealed) error {
	if err := checkSealed(s); err != nil {
		return fmt.Errorf("enrolling device %s: %w", s.Record.Device, err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	err := d.locked(ctx, func(w *writing) error { return w.put(s, d.config.PubkeyFormat) })
	return d.explain("enrolling device "+s.Record.Device.String(), err)
}

// Lookup returns what is held under a device id. The envelope is not verified. An error that wraps board.ErrNotEnrolled says for sure that
// there is nothing; one that wraps ErrDamaged, that it makes no sense; ErrNoRegistry, that the folder is away.
// An item that no station wrote has no envelope, and may have no state.
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

// open holds on to the folder that has the marker, even if another is mounted over it meanwhile.
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
	data, err := readFile(root, marker)
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
func (d *Dir) locked(ctx context.Context, do func(*writing) error) error {
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
	return do(&writing{root: root, cut: d.cut})
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
	remedy := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		remedy = "its disk is full: make room: "
	case errors.Is(err, fs.ErrPermission):
		remedy = "this program may not use the folder: give its user the right to read and write there: "
	case errors.Is(err, syscall.EROFS):
		remedy = "its disk is mounted read-only: check the disk and mount it for writing: "
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE):
		remedy = "its disk or share has failed: check it and mount it again: "
	}
	return fmt.Errorf("%s in the registry folder %s: %s%w", doing, d.config.Path, remedy, err)
}

// writing is one holder of the lock at work.
type writing struct {
	root *os.Root
	cut  func(step string) error
}

func (w *writing) step(name string) error {
	if w.cut == nil {
		return nil
	}
	return w.cut(name)
}

func itemName(device board.DeviceID) string  { return "items/" + device.String() + ".json" }
func guardName(key board.Fingerprint) string { return "guards/" + key.String() + ".json" }
func isExist(err error) bool                 { return errors.Is(err, fs.ErrExist) }

// put makes the two items appear as one: what is to be written is first in pending.json, and whoever holds the lock next
// carries on from there.
func (w *writing) put(s board.Sealed, format PubkeyFormat) error {
	if err := w.finish(); err != nil {
		return err
	}
	r := &s.Record
	enrolled, err := w.judge(r)
	if err != nil {
		return err
	}
	if err := w.putObject(r); err != nil || enrolled {
		return err
	}
	if err := w.create(pendingName, newItem(s, format, "").json()); err != nil {
		return err
	}
	return w.finish()
}

func (w *writing) judge(r *board.Record) (enrolled bool, err error) {
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

func (w *writing) putObject(r *board.Record) error {
	name, content := objectName(r.Device, r.Fingerprint()), r.Key.PEM()
	folder := path.Dir(name)
	if err := w.root.Mkdir(folder, 0o755); err != nil && !isExist(err) {
		return err
	}
	// Even if it was there: its maker may have crashed before the sync.
	if err := syncFolder(w.root, path.Dir(folder)); err != nil {
		return err
	}
	err := w.create(name, content)
	if !isExist(err) {
		return err
	}
	stored, err := readFile(w.root, name)
	if err != nil {
		return err
	}
	if !bytes.Equal(stored, content) {
		return damaged(r.Device, "%s is not the key that its name says", name)
	}
	return nil
}

// finish carries out what pending.json says, if there is one. Each step may have been done before.
func (w *writing) finish() error {
	data, err := readFile(w.root, pendingName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := parsePending(data)
	if err != nil {
		return fmt.Errorf("%s holds no item, and was kept: move it elsewhere, its record is delivered anew: %w", pendingName, err)
	}
	key := guard{e.Key.Fingerprint(), e.Device}
	if err := w.create(guardName(key.fingerprint), key.json()); err != nil && !isExist(err) {
		return err
	}
	if err := w.link(pendingName, itemName(e.Device)); err != nil && !isExist(err) {
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

func parsePending(data []byte) (board.Enrolment, error) {
	var name struct {
		Device board.DeviceID `json:"device-id"`
	}
	if err := decodeJSON(data, &name); err != nil {
		return board.Enrolment{}, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	i, err := itemFromJSON(name.Device, data)
	if err != nil {
		return board.Enrolment{}, err
	}
	return i.enrolment(name.Device)
}

// create makes a file with this content, whole and synced, or finds that there is one: an error that is
// fs.ErrExist. Either way the file of that name is durable on return.
func (w *writing) create(name string, content []byte) error {
	temporary := path.Join(path.Dir(name), newName)
	if err := w.root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) { // left by a crash
		return err
	}
	f, err := w.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := w.step(name + " written"); err != nil {
		return err
	}
	linkErr := w.link(temporary, name)
	if linkErr != nil && !isExist(linkErr) {
		return linkErr
	}
	if err := w.root.Remove(temporary); err != nil {
		return err
	}
	return linkErr
}

// link gives a file a name more, durably; as with create, fs.ErrExist is a finding.
func (w *writing) link(from, to string) error {
	linkErr := w.root.Link(from, to)
	if linkErr != nil && !isExist(linkErr) {
		return linkErr
	}
	if err := w.step(to + " linked"); err != nil {
		return err
	}
	if err := syncFolder(w.root, path.Dir(to)); err != nil {
		return err
	}
	return linkErr
}

func syncFolder(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readFile reads a whole file of at most maxFile bytes.
func readFile(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes", ErrDamaged, name, maxFile)
	}
	return data, err
}

// readItem returns nil if there is none.
func readItem(root *os.Root, name string, device board.DeviceID) (*item, error) {
	data, err := readFile(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, folderThere(root, name)
	}
	if err != nil {
		return nil, err
	}
	return itemFromJSON(device, data)
}

// readGuard returns nil if there is none.
func readGuard(root *os.Root, f board.Fingerprint) (*guard, error) {
	data, err := readFile(root, guardName(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, folderThere(root, guardName(f))
	}
	if err != nil {
		return nil, err
	}
	return guardFromJSON(f, data)
}

// folderThere tells a file that is not there from a folder that is not: then nothing is known.
func folderThere(root *os.Root, name string) error {
	if _, err := root.Stat(path.Dir(name)); err != nil {
		return fmt.Errorf("%w: its folder %s is missing: put it back from a copy", ErrDamaged, path.Dir(name))
	}
	return nil
}
