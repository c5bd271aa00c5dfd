package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"hash/fnv"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"secretfree/spool/durable"

	bolt "go.etcd.io/bbolt"
)

// op is something that was done to a disk, or promised to somebody.
type op struct {
	kind    opKind
	node    int    // the file or the folder
	name    string // in that folder
	to      string // its new name, of a rename
	child   int    // what the name is of
	at      int64
	data    []byte
	call    string // of a sync: the call in the code, or bbolt's
	promise func(*promises)
}

type opKind int

const (
	opMake opKind = iota // a file or, with the name "/", a folder
	opWrite
	opTruncate
	opSync
	opLink
	opRename
	opSyncDir
	opPromise
)

// recorder is a disk that writes down all that is done to it, from the state in
// which it finds its folder.
type recorder struct {
	osDisk
	t     testing.TB
	root  string
	calls map[string]string // file and line → the sync that is called there

	mu    sync.Mutex
	ops   []op
	nodes map[string]int // by path
	count int
	start int // how many ops made what was found
	// fail, if set, is asked before each call that changes the disk.
	fail func(kind opKind, path string) error
}

func newRecorder(t testing.TB, root string) *recorder {
	t.Helper()
	r := &recorder{t: t, root: root, calls: map[string]string{}, nodes: map[string]int{}}
	for call, place := range syncCalls(t) {
		r.calls[place] = call
	}
	r.add(root, true)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		node := r.link(path, d.IsDir())
		if d.IsDir() {
			return nil
		}
		data, err := os.ReadFile(path)
		r.note(op{kind: opWrite, node: node, data: data})
		r.note(op{kind: opSync, node: node})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range r.nodes {
		r.note(op{kind: opSyncDir, node: node}) // to a file it does nothing
	}
	r.start = len(r.ops)
	return r
}

func (r *recorder) note(o op) { r.ops = append(r.ops, o) }

func (r *recorder) add(path string, folder bool) int {
	node := r.count
	r.count++
	r.nodes[path] = node
	o := op{kind: opMake, node: node}
	if folder {
		o.name = "/"
	}
	r.note(o)
	return node
}

// link makes a file or a folder and its name, and the folders above it.
func (r *recorder) link(path string, folder bool) int {
	dir := filepath.Dir(path)
	if _, ok := r.nodes[dir]; !ok {
		r.link(dir, true)
	}
	node := r.add(path, folder)
	r.note(op{kind: opLink, node: r.nodes[dir], name: filepath.Base(path), child: node})
	return node
}

func (r *recorder) before(kind opKind, path string) error {
	if r.fail != nil {
		return r.fail(kind, path)
	}
	return nil
}

// callIndexCommit stands for the syncs of bbolt's commits: there is no call,
// but they would be gone if openIndex gave the option NoSync.
const callIndexCommit = "openIndex: no NoSync"

// promised notes that from here on somebody relies on something.
func (r *recorder) promised(p func(*promises)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(op{kind: opPromise, promise: p})
}

type recordedFile struct {
	durable.File
	r    *recorder
	path string
	node int
}

func (r *recorder) Open(path string, flag int, mode fs.FileMode) (durable.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if flag == os.O_RDONLY {
		return r.osDisk.Open(path, flag, mode)
	}
	if err := r.before(opMake, path); err != nil {
		return nil, err
	}
	_, missing := os.Lstat(path)
	f, err := r.osDisk.Open(path, flag, mode)
	if err != nil {
		return nil, err
	}
	if missing != nil {
		r.link(path, false)
	} else if flag&os.O_TRUNC != 0 {
		r.note(op{kind: opTruncate, node: r.nodes[path]})
	}
	return recordedFile{f, r, path, r.nodes[path]}, nil
}

func (r *recorder) openIndex(path string, options *bolt.Options) (*bolt.DB, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.before(opMake, path); err != nil {
		return nil, err
	}
	before, missing := os.ReadFile(path)
	db, err := r.osDisk.openIndex(path, options)
	if err != nil {
		return nil, err
	}
	after, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if missing != nil { // bbolt has written the first pages and synced them, whatever the options
		node := r.link(path, false)
		r.note(op{kind: opWrite, node: node, data: after})
		r.note(op{kind: opSync, node: node})
	} else if !bytes.Equal(before, after) {
		r.t.Error("bbolt wrote to the index when it opened it")
	}
	size, node := int64(len(after)), r.nodes[path]
	hookWrites(db, func(b []byte, at int64, write func([]byte, int64) (int, error)) (int, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if err := r.before(opWrite, path); err != nil {
			return 0, err
		}
		// A commit makes the file longer and syncs it if it must, then writes
		// its pages and syncs, then a meta page and syncs (bbolt's tx.go).
		sync := func(call string) {
			if !db.NoSync {
				r.note(op{kind: opSync, node: node, call: call})
			}
		}
		if info, err := os.Stat(path); err == nil && info.Size() > size {
			size = info.Size()
			r.note(op{kind: opTruncate, node: node, at: size})
			sync("")
		}
		meta := at < 2*int64(os.Getpagesize())
		if meta {
			sync(callIndexCommit)
		}
		r.note(op{kind: opWrite, node: node, at: at, data: bytes.Clone(b)})
		size = max(size, at+int64(len(b)))
		if meta {
			sync(callIndexCommit)
		}
		return write(b, at)
	})
	return db, nil
}

// hookWrites has a function stand before each write of bbolt's to its file.
// bbolt has a hook for its own tests, and hides it.
func hookWrites(db *bolt.DB, hook func(b []byte, at int64, write func([]byte, int64) (int, error)) (int, error)) {
	place := (*func([]byte, int64) (int, error))(reflect.ValueOf(db).Elem().FieldByName("ops").FieldByName("writeAt").Addr().UnsafePointer())
	write := *place
	*place = func(b []byte, at int64) (int, error) { return hook(b, at, write) }
}

func (r *recorder) syncIndex(db *bolt.DB) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.before(opSync, db.Path()); err != nil {
		return err
	}
	r.note(op{kind: opSync, node: r.nodes[db.Path()], call: r.caller()})
	return nil
}

func (f recordedFile) WriteAt(b []byte, at int64) (int, error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if err := f.r.before(opWrite, f.path); err != nil {
		b = b[:len(b)/2]
		f.r.note(op{kind: opWrite, node: f.node, at: at, data: bytes.Clone(b)})
		n, _ := f.File.WriteAt(b, at)
		return n, err
	}
	f.r.note(op{kind: opWrite, node: f.node, at: at, data: bytes.Clone(b)})
	return f.File.WriteAt(b, at)
}

func (f recordedFile) Truncate(size int64) error {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if err := f.r.before(opTruncate, f.path); err != nil {
		return err
	}
	f.r.note(op{kind: opTruncate, node: f.node, at: size})
	return f.File.Truncate(size)
}

func (f recordedFile) Sync() error {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if err := f.r.before(opSync, f.path); err != nil {
		return err
	}
	f.r.note(op{kind: opSync, node: f.node, call: f.r.caller()})
	return nil
}

func (r *recorder) Rename(from, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.before(opRename, to); err != nil {
		return err
	}
	if err := r.osDisk.Rename(from, to); err != nil {
		return err
	}
	r.note(op{kind: opRename, node: r.nodes[filepath.Dir(from)], name: filepath.Base(from), to: filepath.Base(to), child: r.nodes[from]})
	r.nodes[to] = r.nodes[from]
	delete(r.nodes, from)
	return nil
}

func (r *recorder) SyncDir(dir string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.before(opSyncDir, dir); err != nil {
		return err
	}
	if _, ok := r.nodes[dir]; !ok {
		r.link(dir, true)
	}
	// Folders are made without asking the disk.
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, name.Name())
		if _, ok := r.nodes[path]; !ok && name.IsDir() {
			r.link(path, true)
		}
	}
	r.note(op{kind: opSyncDir, node: r.nodes[dir], call: r.caller()})
	return nil
}

// caller finds the sync in the code that asked for this one.
func (r *recorder) caller() string {
	pc := make([]uintptr, 16)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for {
		frame, more := frames.Next()
		if call, ok := r.calls[fmt.Sprintf("%s:%d", filepath.Base(frame.File), frame.Line)]; ok {
			return call
		}
		if !more {
			r.t.Error("a sync that is not in the code")
			return ""
		}
	}
}

// syncing are the names of what syncs something.
var syncing = []string{"Sync", "SyncDir", "syncIndex", "Fdatasync", "Fsync"}

// syncCalls finds every call in the package that syncs something, and its file
// and line.
func syncCalls(t testing.TB) map[string]string {
	t.Helper()
	out, lines := map[string]string{}, map[string]bool{}
	var names []string
	for _, pattern := range []string{"*.go", "durable/*.go", "journal/*.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatal(pattern, err)
		}
		names = append(names, found...)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range tree.Decls {
			f, ok := declaration.(*ast.FuncDecl)
			if !ok || f.Recv != nil && slices.Contains(syncing, f.Name.Name) { // a disk's or a file's own, which is what is called
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				what, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || !slices.Contains(syncing, what.Sel.Name) {
					return true
				}
				var text strings.Builder
				if err := printer.Fprint(&text, set, call); err != nil {
					t.Fatal(err)
				}
				key := f.Name.Name + ": " + text.String()
				if out[key] != "" {
					t.Fatalf("%s: it is there twice, and cannot be told apart", key)
				}
				place := fmt.Sprintf("%s:%d", filepath.Base(name), set.Position(call.Pos()).Line)
				if lines[place] {
					t.Fatalf("%s: two syncs on one line cannot be told apart", place)
				}
				lines[place] = true
				out[key] = place
				return true
			})
		}
	}
	return out
}

// crashed is a disk that lost its power, or may at any moment: what is surely
// on it, and what may be.
type crashed struct {
	nodes    []*node
	promises promises
	without  string // the sync that is not done
}

type node struct {
	folder   bool
	versions [][]byte       // of a file: as it was synced, and after each call since
	names    map[string]int // of a folder, as it was synced
	pending  []op           // of a folder, since
}

func newCrashed(without string) *crashed { return &crashed{without: without, promises: noPromises()} }

// do plays an op.
func (c *crashed) do(o op) {
	if o.call != "" && o.call == c.without {
		return
	}
	if o.kind == opMake {
		c.nodes = append(c.nodes, &node{folder: o.name == "/", versions: [][]byte{nil}, names: map[string]int{}})
		return
	}
	if o.kind == opPromise {
		o.promise(&c.promises)
		return
	}
	n := c.nodes[o.node]
	now := n.versions[len(n.versions)-1]
	switch o.kind {
	case opWrite:
		next := make([]byte, max(len(now), int(o.at)+len(o.data)))
		copy(next, now)
		copy(next[o.at:], o.data)
		n.versions = append(n.versions, next)
	case opTruncate:
		next := make([]byte, o.at)
		copy(next, now)
		n.versions = append(n.versions, next)
	case opSync:
		n.versions = n.versions[len(n.versions)-1:]
	case opLink, opRename:
		n.pending = append(n.pending, o)
	case opSyncDir:
		for _, p := range n.pending {
			rename(n.names, p)
		}
		n.pending = nil
	}
}

func rename(names map[string]int, o op) {
	switch o.kind {
	case opLink:
		names[o.name] = o.child
	case opRename:
		delete(names, o.name)
		names[o.to] = o.child
	}
}

// content chooses what a file holds after the power failed: of each sector, or
// page, any state that it had since the last sync.
func (n *node) content(random *rand.Rand) []byte {
	last := len(n.versions) - 1
	if last == 0 {
		return n.versions[0]
	}
	one := random.IntN(last)
	pick := func() []byte { return n.versions[random.IntN(last+1)] }
	unit := 512
	switch random.IntN(6) {
	case 0:
		return n.versions[0] // all was lost
	case 1:
		return n.versions[last] // nothing
	case 2:
		return pick() // what was written after some time
	case 3: // and the call after that is torn
		pick = func() []byte { return n.versions[one+random.IntN(2)] }
	case 4:
		unit = 4096
	}
	size := len(pick())
	if random.IntN(3) == 0 { // the length follows the blocks
		a, b := len(pick()), len(pick())
		size = min(a, b) + random.IntN(max(a, b)-min(a, b)+1)/512*512
	}
	out := make([]byte, size)
	for at := 0; at < size; at += unit {
		if from := pick(); at < len(from) {
			copy(out[at:min(at+unit, size)], from[at:])
		}
	}
	return out
}

// entries chooses which names a folder has.
func (n *node) entries(random *rand.Rand) map[string]int {
	names := maps.Clone(n.names)
	mode, prefix := random.IntN(4), random.IntN(len(n.pending)+1)
	for i, o := range n.pending {
		if mode == 0 || mode == 1 && i < prefix || mode == 2 && random.IntN(2) == 0 {
			rename(names, o)
		}
	}
	return names
}

// write makes a folder as the disk may be after the power failed.
func (c *crashed) write(to string, random *rand.Rand) error { return c.writeNode(0, to, random) }

func (c *crashed) writeNode(i int, to string, random *rand.Rand) error {
	n := c.nodes[i]
	if !n.folder {
		return os.WriteFile(to, n.content(random), 0o600)
	}
	if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	names := n.entries(random)
	for _, name := range slices.Sorted(maps.Keys(names)) { // in order, so that a seed says all
		if err := c.writeNode(names[name], filepath.Join(to, name), random); err != nil {
			return err
		}
	}
	return nil
}

// newestMeta finds the meta page of a file of bbolt's at which bbolt would
// begin; below 0 if there is none. Behind the page's header it has magic,
// version, page size and flags, the page of the root, three numbers more, that
// of the commit, and a checksum.
func newestMeta(file []byte) (at int) {
	page, number := os.Getpagesize(), binary.NativeEndian.Uint64
	at = -1
	commit := uint64(0)
	for i := range 2 {
		if len(file) < (i+1)*page {
			break
		}
		meta := file[i*page+16:]
		sum := fnv.New64a()
		sum.Write(meta[:56])
		if binary.NativeEndian.Uint32(meta) == 0xED0CDAED && sum.Sum64() == number(meta[56:]) && (at < 0 || number(meta[48:]) > commit) {
			at, commit = i*page, number(meta[48:])
		}
	}
	return at
}

// endless tells whether a file of bbolt's has a page that is below itself. It
// reads no more of the format than it must: what is no page to it is left to
// bbolt, which panics.
func endless(file []byte) bool {
	page, number := os.Getpagesize(), binary.NativeEndian.Uint64
	var above []uint64
	var descend func(id uint64) bool
	descend = func(id uint64) (found bool) {
		if slices.Contains(above, id) {
			return true
		}
		if id >= uint64(len(file)/page) {
			return false
		}
		above = append(above, id)
		defer func() {
			above = above[:len(above)-1]
			if recover() != nil { // an element that is outside the file
				found = false
			}
		}()
		p := file[int(id)*page:]
		for i := range max(1, int(binary.NativeEndian.Uint16(p[10:]))) { // the first one is read even if there is none
			e := p[16+16*i:]
			if binary.NativeEndian.Uint16(p[8:]) != 2 { // to bbolt what is no leaf is a branch: position, length of the key, page
				if descend(number(e[8:])) {
					return true
				}
				continue
			}
			// A leaf: flags, position, lengths of key and value; a bucket's
			// value begins with its page.
			if binary.NativeEndian.Uint32(e)&1 == 0 {
				continue
			}
			at := binary.NativeEndian.Uint32(e[4:]) + binary.NativeEndian.Uint32(e[8:])
			if root := number(e[at:]); root != 0 && descend(root) {
				return true
			}
		}
		return false
	}
	if at := newestMeta(file); at >= 0 && descend(number(file[at+32:])) {
		return true
	}
	return false
}
