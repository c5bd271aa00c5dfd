package claims

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/keyfile"
	"secretfree/station/board"
)

// Dir keeps claims in a folder, for one machine, and for several processes on
// it. Each version of an issuance is a line of claims.log: its JSON, a space,
// the CRC-32C of that in 8 hex digits, LF. The last version of an issuance
// counts. Requests that come at once share one sync of the disk. It is made by
// OpenDir; Close gives the file back.
type Dir struct {
	path string
	file *os.File
	// fault, in tests, fails a step: "before create", "during create" (it is
	// written, and not synced), "after create", or the same with "replace".
	fault func(step string) error

	queue   sync.Mutex // of waiting
	waiting []*claimWrite

	mu      sync.Mutex // of the file and of what follows; who changes the index has that lock too
	end     int64      // of what is known of the log
	devices map[board.DeviceID][]claimEntry
	serials map[issuer.Serial]claimPlace
	signed  map[string]claimEntry // by the name of a CA, the last certificate that was read from the log
	index   sync.Mutex            // taken after mu, and by readers while another request waits for the disk
	// busy: a batch is on its way to the disk, and no other process can write.
	// pending is what its devices had before.
	busy    bool
	pending map[board.DeviceID][]claimEntry

	// broken is what the disk said when it failed and what it had written could
	// not be taken back; brokenSize is the log's size then.
	broken     error
	brokenSize int64
}

type claimEntry struct {
	offset      int64
	length      int32 // of the JSON
	version     int32
	generation  int32
	epoch       int32
	fingerprint board.Fingerprint
}

type claimPlace struct {
	device board.DeviceID
	index  int32 // in devices
}

// claimWrite is one Create or Replace on its way to the disk.
type claimWrite struct {
	next   issuer.Issuance
	create bool
	stored issuer.Issuance
	err    error
	done   chan struct{}
}

func (w *claimWrite) kind() string {
	if w.create {
		return "create"
	}
	return "replace"
}

const (
	claimsMarker  = "claims.json"
	claimsLog     = "claims.log"
	claimsVersion = 2
	maxClaimLine  = 128 << 10

	// claimsPatience is how long another process is waited for.
	claimsPatience = 5 * time.Second
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type claimsMarkerJSON struct {
	Version int `json:"version"`
}

// InitDir makes a folder of claims, durably, or finds that it is one already;
// one that holds something else is refused. It is not done in passing by
// OpenDir: the empty mount point of a disk that is not there must not be taken
// for a store without claims.
func InitDir(path string) error {
	if err := initClaimsDir(path); err != nil {
		return fmt.Errorf("making the claims folder: %w", err)
	}
	d, err := OpenDir(path)
	if err != nil {
		return err
	}
	return d.Close()
}

func initClaimsDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	if slices.Contains(names, claimsMarker) {
		return nil
	}
	for _, name := range names { // an earlier attempt may have broken off
		if info, err := os.Stat(filepath.Join(path, name)); name != claimsLog || err != nil || info.Size() > 0 {
			return fmt.Errorf("%s holds %q already: choose an empty folder", path, name)
		}
	}
	marker, err := json.Marshal(claimsMarkerJSON{Version: claimsVersion})
	if err != nil {
		return err
	}
	if !slices.Contains(names, claimsLog) {
		if err := keyfile.WriteSynced(filepath.Join(path, claimsLog), nil); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// The marker comes last and whole: a folder with it has its log.
	temp, err := os.CreateTemp(filepath.Dir(filepath.Clean(path)), ".new-claims-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(append(marker, '\n'))
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), filepath.Join(path, claimsMarker)); err != nil {
		return err
	}
	return errors.Join(keyfile.SyncDir(path), keyfile.SyncDir(filepath.Dir(filepath.Clean(path))))
}

// OpenDir opens what InitDir made. What a crash left half-written at the end of
// the log was never answered: it is put aside in a file of its own. Any other
// damage is refused; it wraps ErrBadClaim.
func OpenDir(path string) (*Dir, error) {
	if err := usableClaims(path); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(path, claimsLog), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the claims folder: %w", err)
	}
	d := &Dir{path: path, file: file, devices: map[board.DeviceID][]claimEntry{}, serials: map[issuer.Serial]claimPlace{}, signed: map[string]claimEntry{}}
	err = d.locked(func() error { return d.catchUp() })
	if err != nil {
		return nil, fmt.Errorf("opening the claims folder: %w", errors.Join(err, file.Close()))
	}
	return d, nil
}

// Close gives the file back. Nothing may be called after it.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.file.Close()
}

func usableClaims(path string) error {
	var marker claimsMarkerJSON
	data, err := os.ReadFile(filepath.Join(path, claimsMarker))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is not a folder of claims: if its disk is missing, mount it; to begin a new one, make it with init", path)
	case err != nil:
		return fmt.Errorf("opening the claims folder: %w", err)
	case json.Unmarshal(data, &marker) != nil:
		return fmt.Errorf("%w: %s/%s is not JSON", issuer.ErrBadClaim, path, claimsMarker)
	case marker.Version > claimsVersion:
		return fmt.Errorf("%s has version %d: %w", path, marker.Version, board.ErrNewer)
	case marker.Version != claimsVersion:
		return fmt.Errorf("%w: %s has version %d, which this version does not read", issuer.ErrBadClaim, path, marker.Version)
	}
	return nil
}

// locked runs do while no other process writes.
func (d *Dir) locked(do func() error) (err error) {
	until, pause := time.Now().Add(claimsPatience), time.Millisecond
	for {
		err = unix.Flock(int(d.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(until) {
			break
		}
		time.Sleep(pause)
		pause = min(2*pause, 20*time.Millisecond)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("locking %s: another process has had it for %v: is it stopped?", claimsLog, claimsPatience)
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", claimsLog, err)
	}
	defer func() { err = errors.Join(err, unix.Flock(int(d.file.Fd()), unix.LOCK_UN)) }()
	return do()
}

// catchUp reads what was written since the last time, by whatever process. The
// log is locked, so nobody is writing what is unfinished at its end: it is put
// aside.
func (d *Dir) catchUp() error {
	info, err := d.file.Stat()
	if err != nil {
		return err
	}
	if d.broken != nil {
		// What could not be taken back counts for nobody, unless another
		// process has taken it up since.
		if info.Size() == d.brokenSize {
			if err := d.cut(d.end); err != nil {
				return fmt.Errorf("after %w: %w", d.broken, err)
			}
			info, err = d.file.Stat()
			if err != nil {
				return err
			}
		}
		d.broken = nil
	}
	if info.Size() < d.end {
		return fmt.Errorf("%w: %s became shorter", issuer.ErrBadClaim, claimsLog)
	}
	d.index.Lock()
	defer d.index.Unlock()
	fresh := bufio.NewReaderSize(io.NewSectionReader(d.file, d.end, info.Size()-d.end), 2*maxClaimLine)
	for d.end < info.Size() {
		line, err := fresh.ReadSlice('\n')
		if err != nil && err != io.EOF && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("reading %s: %w", claimsLog, err)
		}
		whole := err == nil
		issuance, length, err := parseClaimLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil && !errors.Is(err, errTorn) {
			return fmt.Errorf("%w: %s at byte %d is whole, and not understood (was it written by a newer version?): %v", issuer.ErrBadClaim, claimsLog, d.end, err)
		}
		if err != nil || !whole {
			return d.badEnd(line, fresh, err)
		}
		if err := d.learn(issuance, d.end, length); err != nil {
			return fmt.Errorf("%w: %s at byte %d: %v", issuer.ErrBadClaim, claimsLog, d.end, err)
		}
		if issuance.Certificate != nil {
			d.signed[issuance.Claim.CA] = claimEntry{offset: d.end, length: int32(length)}
		}
		d.end += int64(len(line))
	}
	return nil
}

// Signed is a certificate that a CA of a name has signed, or ErrNoClaim.
func (d *Dir) Signed(_ context.Context, ca string) (issuer.Issuance, error) {
	d.mu.Lock()
	entry, ok := d.signed[ca]
	d.mu.Unlock()
	if !ok {
		return issuer.Issuance{}, fmt.Errorf("%w of the CA %q", issuer.ErrNoClaim, ca)
	}
	return d.load(entry)
}

// badEnd refuses damage in the middle, and puts an unfinished end aside.
func (d *Dir) badEnd(line []byte, fresh io.Reader, why error) error {
	tail := bytes.Clone(line)
	rest, err := io.ReadAll(fresh)
	if err != nil {
		return fmt.Errorf("reading %s: %w", claimsLog, err)
	}
	if hasClaimLine(rest) {
		return fmt.Errorf("%w: %s is damaged at byte %d: %v; restore it from a copy", issuer.ErrBadClaim, claimsLog, d.end, why)
	}
	return d.putAside(append(tail, rest...))
}

// hasClaimLine tells damage in the middle from an unfinished end.
func hasClaimLine(rest []byte) bool {
	for line := range bytes.Lines(rest) {
		if _, _, err := parseClaimLine(bytes.TrimSuffix(line, []byte("\n"))); !errors.Is(err, errTorn) {
			return true
		}
	}
	return false
}

// cut takes what lies behind a size away, durably.
func (d *Dir) cut(size int64) error {
	if err := errors.Join(d.file.Truncate(size), d.file.Sync()); err != nil {
		return fmt.Errorf("cutting %s: %w", claimsLog, err)
	}
	return nil
}

func (d *Dir) putAside(tail []byte) error {
	name := filepath.Join(d.path, fmt.Sprintf("claims.torn-%d", d.end))
	err := keyfile.WriteSynced(name, tail)
	if errors.Is(err, fs.ErrExist) { // of an earlier break at the same place
		err = keyfile.WriteSynced(fmt.Sprintf("%s-%d", name, time.Now().UnixNano()), tail)
	}
	if err = errors.Join(err, keyfile.SyncDir(d.path)); err != nil {
		return fmt.Errorf("putting the unfinished end of %s aside: %w", claimsLog, err)
	}
	return d.cut(d.end)
}

func claimLine(i issuer.Issuance) ([]byte, error) {
	if err := i.Check(); err != nil {
		return nil, fmt.Errorf("encoding a claim: %w", err)
	}
	data, err := json.Marshal(storeIssuance(i))
	if err != nil {
		return nil, fmt.Errorf("encoding a claim: %w", err)
	}
	if len(data) > maxClaimLine {
		return nil, fmt.Errorf("a claim of %d bytes, at most %d are kept", len(data), maxClaimLine)
	}
	return fmt.Appendf(data, " %08x\n", crc32.Checksum(data, castagnoli)), nil
}

// errTorn says that a line is not as it was written. One that is, and cannot be
// read all the same, is not torn.
var errTorn = errors.New("a torn line")

// parseClaimLine reads a line without its end, and tells how long its JSON is.
func parseClaimLine(line []byte) (issuer.Issuance, int, error) {
	length := len(line) - 9
	if length < 2 || length > maxClaimLine || line[length] != ' ' {
		return issuer.Issuance{}, 0, fmt.Errorf("%w: it is not a claim and its checksum", errTorn)
	}
	var sum [4]byte
	if _, err := hex.Decode(sum[:], line[length+1:]); err != nil || crc32.Checksum(line[:length], castagnoli) != uint32(sum[0])<<24|uint32(sum[1])<<16|uint32(sum[2])<<8|uint32(sum[3]) {
		return issuer.Issuance{}, 0, fmt.Errorf("%w: the checksum does not hold", errTorn)
	}
	decoder := json.NewDecoder(bytes.NewReader(line[:length]))
	decoder.DisallowUnknownFields()
	var s storedClaim
	if err := decoder.Decode(&s); err != nil {
		return issuer.Issuance{}, 0, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return issuer.Issuance{}, 0, errors.New("something follows the JSON")
	}
	i, err := s.load()
	return i, length, err
}

// learn notes a line of the log.
func (d *Dir) learn(i issuer.Issuance, offset int64, length int) error {
	c := i.Claim
	entry := claimEntry{
		offset: offset, length: int32(length), version: int32(i.Version),
		generation: int32(c.Generation), epoch: int32(c.Epoch), fingerprint: c.Fingerprint,
	}
	at := d.find(c)
	switch {
	case at < 0 && i.Version != 1, at >= 0 && int(d.devices[c.Device][at].version)+1 != i.Version:
		return fmt.Errorf("version %d of %s follows no version before it", i.Version, c.ID())
	case at < 0:
		if _, taken := d.serials[c.Serial]; taken {
			return fmt.Errorf("the serial of %s was given before", c.ID())
		}
		d.devices[c.Device] = append(d.devices[c.Device], entry)
		d.serials[c.Serial] = claimPlace{c.Device, int32(len(d.devices[c.Device]) - 1)}
	default:
		if place, ok := d.serials[c.Serial]; !ok || place != (claimPlace{c.Device, int32(at)}) {
			return fmt.Errorf("the serial of %s has changed", c.ID())
		}
		d.devices[c.Device][at] = entry
	}
	return nil
}

// find returns the index of a claim in those of its device, or -1.
func (d *Dir) find(c issuer.Claim) int {
	return slices.IndexFunc(d.devices[c.Device], func(e claimEntry) bool {
		return int(e.generation) == c.Generation && int(e.epoch) == c.Epoch && e.fingerprint == c.Fingerprint
	})
}

func (d *Dir) load(e claimEntry) (issuer.Issuance, error) {
	line := make([]byte, e.length+9)
	if _, err := d.file.ReadAt(line, e.offset); err != nil {
		return issuer.Issuance{}, fmt.Errorf("reading %s: %w", claimsLog, err)
	}
	i, _, err := parseClaimLine(line)
	if err != nil {
		return issuer.Issuance{}, fmt.Errorf("%w: %s is damaged at byte %d: %w", issuer.ErrBadClaim, claimsLog, e.offset, err)
	}
	return i, nil
}

// Issuances is that of the interface Claims.
func (d *Dir) Issuances(_ context.Context, device board.DeviceID) (out []issuer.Issuance, err error) {
	entries, busy := d.whileBusy(device)
	if busy {
		out, err = d.loadAll(entries)
	} else {
		d.mu.Lock()
		defer d.mu.Unlock()
		err = d.locked(func() (err error) {
			if err = d.catchUp(); err == nil {
				out, err = d.loadAll(d.devices[device])
			}
			return err
		})
	}
	sort.Slice(out, func(a, b int) bool { return out[a].Claim.SortKey() < out[b].Claim.SortKey() })
	return out, err
}

// whileBusy is what a device has on disk while a batch is on its way there, so
// that who reads need not wait for the disk.
func (d *Dir) whileBusy(device board.DeviceID) ([]claimEntry, bool) {
	d.index.Lock()
	defer d.index.Unlock()
	if !d.busy {
		return nil, false
	}
	entries, changes := d.pending[device]
	if !changes {
		entries = d.devices[device]
	}
	return slices.Clone(entries), true
}

func (d *Dir) loadAll(entries []claimEntry) (out []issuer.Issuance, err error) {
	for _, entry := range entries {
		i, err := d.load(entry)
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, nil
}

// Serial is that of the interface Claims.
func (d *Dir) Serial(_ context.Context, serial issuer.Serial) (out issuer.Issuance, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	err = d.locked(func() error {
		if err := d.catchUp(); err != nil {
			return err
		}
		place, ok := d.serials[serial]
		if !ok {
			return fmt.Errorf("%w: serial %s", issuer.ErrNoClaim, serial)
		}
		out, err = d.load(d.devices[place.device][place.index])
		return err
	})
	return out, err
}

// All is that of the interface Claims.
func (d *Dir) All(ctx context.Context) iter.Seq2[issuer.Issuance, error] {
	return func(yield func(issuer.Issuance, error) bool) {
		d.mu.Lock()
		err := d.locked(func() error { return d.catchUp() })
		var entries []claimEntry
		for _, of := range d.devices {
			entries = append(entries, of...)
		}
		d.mu.Unlock()
		if err != nil {
			yield(issuer.Issuance{}, err)
			return
		}
		slices.SortFunc(entries, func(a, b claimEntry) int { return int(a.offset - b.offset) })
		for _, entry := range entries { // lines never change, so no lock is needed
			i, err := d.load(entry)
			if err == nil {
				err = ctx.Err()
			}
			if !yield(i, err) || err != nil && !errors.Is(err, issuer.ErrBadClaim) {
				return
			}
		}
	}
}

// Create is that of the interface Claims.
func (d *Dir) Create(_ context.Context, issuance issuer.Issuance) (issuer.Issuance, error) {
	return d.write(&claimWrite{next: issuance, create: true, done: make(chan struct{})})
}

// Replace is that of the interface Claims.
func (d *Dir) Replace(_ context.Context, next issuer.Issuance) (issuer.Issuance, error) {
	return d.write(&claimWrite{next: next, done: make(chan struct{})})
}

// write waits until w is on disk, with all that came at the same time. Whoever
// finds nobody at work writes for all that wait.
func (d *Dir) write(w *claimWrite) (issuer.Issuance, error) {
	d.queue.Lock()
	d.waiting = append(d.waiting, w)
	d.queue.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-w.done: // by another caller, while this one waited for its turn
		return w.stored, w.err
	default:
	}
	d.queue.Lock()
	batch := d.waiting
	d.waiting = nil
	d.queue.Unlock()
	d.commit(batch)
	return w.stored, w.err
}

func (d *Dir) commit(batch []*claimWrite) {
	defer func() {
		for _, w := range batch {
			close(w.done)
		}
	}()
	err := d.locked(func() error { return d.append(batch) })
	if err != nil {
		for _, w := range batch {
			w.stored, w.err = issuer.Issuance{}, err
		}
	}
}

func (d *Dir) append(batch []*claimWrite) error {
	if err := usableClaims(d.path); err != nil {
		return err
	}
	if err := d.catchUp(); err != nil {
		return err
	}
	if err := d.step("before " + batch[0].kind()); err != nil {
		return err
	}
	out, undo := d.admit(batch)
	if len(out) == 0 {
		return nil
	}
	_, err := d.file.Write(out)
	if err == nil {
		err = d.step("during " + batch[0].kind())
	}
	if err == nil {
		err = d.file.Sync()
	}
	d.index.Lock()
	defer d.index.Unlock()
	d.busy, d.pending = false, nil
	if err != nil { // what of it is on disk is not known, so none of it counts
		for _, back := range slices.Backward(undo) {
			back()
		}
		if cutErr := d.cut(d.end); cutErr != nil {
			d.broken, d.brokenSize = err, d.end+int64(len(out))
			if info, statErr := d.file.Stat(); statErr == nil {
				d.brokenSize = info.Size()
			}
		}
		return fmt.Errorf("writing %s: %w", claimsLog, err)
	}
	d.end += int64(len(out))
	return d.step("after " + batch[0].kind())
}

// admit judges a batch one after the other, and returns the lines of what may
// be written, and what takes each back. Readers see none of it yet.
func (d *Dir) admit(batch []*claimWrite) (out []byte, undo []func()) {
	d.index.Lock()
	defer d.index.Unlock()
	d.busy, d.pending = true, map[board.DeviceID][]claimEntry{}
	for _, w := range batch {
		c := w.next.Claim
		at := d.find(c)
		switch {
		case at < 0 && !w.create:
			w.err = fmt.Errorf("%w: %s", issuer.ErrNoClaim, c.ID())
			continue
		case at >= 0 && (w.create || int(d.devices[c.Device][at].version)+1 != w.next.Version):
			entry := d.devices[c.Device][at]
			if from := entry.offset - d.end; from >= 0 { // of this batch, and not yet in the file
				w.stored, _, w.err = parseClaimLine(out[from : from+int64(entry.length)+9])
			} else {
				w.stored, w.err = d.load(entry)
			}
			continue
		}
		if w.create && w.next.Version != 1 {
			w.err = fmt.Errorf("a new issuance of version %d", w.next.Version)
			continue
		}
		line, err := claimLine(w.next)
		if err != nil {
			w.err = err
			continue
		}
		if _, changed := d.pending[c.Device]; !changed {
			d.pending[c.Device] = slices.Clone(d.devices[c.Device])
		}
		undo = append(undo, d.before(c, at))
		if w.err = d.learn(w.next, d.end+int64(len(out)), len(line)-10); w.err != nil {
			undo = undo[:len(undo)-1]
			continue
		}
		w.stored = w.next
		out = append(out, line...)
	}
	d.busy = len(out) > 0
	return out, undo
}

// before returns what takes back that a claim is learnt; at is where find found
// it.
func (d *Dir) before(c issuer.Claim, at int) func() {
	if at >= 0 {
		old := d.devices[c.Device][at]
		return func() { d.devices[c.Device][at] = old }
	}
	return func() {
		d.devices[c.Device] = d.devices[c.Device][:len(d.devices[c.Device])-1]
		delete(d.serials, c.Serial)
	}
}

func (d *Dir) step(name string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(name)
}

// String names the folder.
func (d *Dir) String() string { return strings.TrimSuffix(d.path, "/") }
