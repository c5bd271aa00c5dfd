// Package reconcile compares a station's journal with what the registry holds,
// and writes to the registry what the journal proves and the registry lacks.
// Start with Run.
package reconcile

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// RegistryLister is a registry that can be counted. Each of its listings gives
// everything once, in any order; what is written meanwhile may be left out. An
// error that wraps ErrUnreadable is about one thing, whose ids come with it as
// far as they are known; one that wraps ErrContradicts comes with the whole
// enrolment; any other ends the listing.
type RegistryLister interface {
	Enrolments(ctx context.Context) iter.Seq2[board.Enrolment, error]
	Objects(ctx context.Context) iter.Seq2[board.KeyBinding, error] // the stored public keys, by name
	Guards(ctx context.Context) iter.Seq2[board.KeyBinding, error]
}

// RegistryReader reads one thing of a registry as it is now. Any number of
// callers may use it at once. An error that wraps fs.ErrNotExist, or of Lookup
// board.ErrNotEnrolled, says for sure that there is none.
type RegistryReader interface {
	Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error)
	PublicKey(ctx context.Context, key board.KeyBinding) ([]byte, error)         // the content of the object
	KeyOwner(ctx context.Context, key board.Fingerprint) (board.DeviceID, error) // the device that the guard names
}

// Registry is what a journal is compared with.
type Registry interface {
	RegistryLister
	RegistryReader
}

// Findings about one thing in the registry.
var (
	ErrUnreadable  = errors.New("it cannot be read")                         // nobody can make sense of it
	ErrContradicts = errors.New("an item contradicts its own signed record") // in an attribute
)

// Repairer writes records to the registry, and what is missing beside an item
// that is there, and returns an error for each; nil says that the registry has
// the record.
type Repairer interface {
	Repair(ctx context.Context, records []board.Sealed) []error
}

const (
	batchSize   = 64          // records of one call, and objects that are read
	readers     = 16          // of objects, at once
	maxStrays   = 10_000      // that are kept until the end
	repairLimit = time.Minute // of one call
)

// Config is what Reconcile needs.
type Config struct {
	Dir      string        // whose journal
	Key      note.Verifier // of that station
	Registry Registry
	// Repair, if set, is given what the journal proves and the registry lacks.
	Repair Repairer

	memory int // rows, for tests
}

// DifferenceKind says in what journal and registry differ.
type DifferenceKind string

// The kinds of differences.
const (
	DiffMissing  DifferenceKind = "missing"  // in the journal, not in the table
	DiffUnknown  DifferenceKind = "unknown"  // in the table under this station's name, not in its journal
	DiffKey      DifferenceKind = "key"      // in both, with different keys
	DiffUnsigned DifferenceKind = "unsigned" // the item has no signed record
	DiffEnvelope DifferenceKind = "envelope" // the item says that it is of this station, and its signed record is not one of the journal
	DiffItem     DifferenceKind = "item"     // an attribute of the item contradicts its signed record
	DiffObject   DifferenceKind = "object"   // the public key is not stored, or the object has another content
	DiffGuard    DifferenceKind = "guard"    // the key's guard is missing, or names a device that does not have the key
	DiffDamaged  DifferenceKind = "damaged"  // something in the registry cannot be read
)

// DifferenceKinds lists all of them.
func DifferenceKinds() []DifferenceKind {
	return []DifferenceKind{DiffMissing, DiffUnknown, DiffKey, DiffUnsigned, DiffEnvelope, DiffItem, DiffObject, DiffGuard, DiffDamaged}
}

// Difference is one thing in which journal and registry differ.
type Difference struct {
	Kind     DifferenceKind
	Device   board.DeviceID    // invalid if it is not known
	Key      board.Fingerprint // of the journal if it has the device, otherwise of the registry
	Entry    bool              // the journal has the device
	Seq      uint64            // of its entry
	Repaired bool
	Detail   string // what was unreadable, or why it was not mended
	// Missing says of an object or a guard that there is none; otherwise it is
	// there and wrong.
	Missing bool
	Err     error // what the registry said, if it said anything
}

// DayCount is what there is of a station and a day.
type DayCount struct {
	Station   string // empty: nobody's
	Day       string // UTC, 2026-01-02; empty: nobody's
	Records   int    // devices in the journal; only this station's are counted
	Items     int    // in the table
	Objects   int    // public keys
	Guards    int
	Elsewhere int // of Records: enrolled with the same key by another station before
}

// Report says what Reconcile found.
type Report struct {
	Station  string
	Days     []DayCount // by station and day, as they are after the repair
	Total    DayCount
	Found    map[DifferenceKind]int
	Repaired int
	Late     int              // records that were journaled since it began, and that are not looked for
	Signed   uint64           // entries under the newest checkpoint, which are all that the journal proves
	Damage   []journal.Damage // of the journal: what it cannot say
}

// Differences is how many there are, mended or not.
func (r *Report) Differences() (n int) {
	for _, found := range r.Found {
		n += found
	}
	return n
}

// Same tells whether journal and registry say the same now.
func (r *Report) Same() bool { return r.Differences() == r.Repaired && len(r.Damage) == 0 }

// Run compares the journal under Dir, as it was signed, with a registry:
// device by device, in memory that does not grow with their number (a temporary
// file takes about 100 bytes for each thing that is compared). It takes no lock
// and changes nothing in the journal. each is told every difference, by device.
//
// The registry is read first, and then the journal, so that what the registry
// has must be in the journal; what was journaled since it began is not missed
// in the registry.
//
// Compared is every byte that an issuer or a reader of the published reference
// would read: the attributes of each item with its signed record, that record
// with the journal, the content of each object with the key, and the guards both
// ways.
//
// To repair is to put a record of the journal, which must be under a
// checkpoint, signed, and good, to the registry, under the same conditions as
// always: nothing that is there is changed. So it mends what is missing in the
// table, public keys that are not stored, and guards that are missing; what
// contradicts the journal is for a person. What was mended is read again, and
// counted then.
//
// ErrTampered says that the journal is not the one that was signed.
func Run(ctx context.Context, c Config, each func(Difference)) (Report, error) {
	r := &reconciling{Config: c, ctx: ctx, each: each, out: Report{Station: c.Key.Name(), Found: map[DifferenceKind]int{}},
		rows: sorter{limit: cmp.Or(c.memory, rowsInMemory)}, days: map[dayKey]*DayCount{}, numbers: map[string]uint32{}, guards: map[board.Fingerprint]bool{}}
	r.own = r.number(c.Key.Name())
	defer r.rows.close()
	steps := []func() error{r.begin, r.readItems, r.readObjects, r.readGuards, r.readJournal, r.compare}
	for _, step := range steps {
		if err := step(); err != nil {
			return r.out, err
		}
	}
	for _, day := range r.days {
		if day.Records+day.Items+day.Objects+day.Guards+day.Elsewhere == 0 {
			continue // all of it was mended, and counts for another
		}
		r.out.Days = append(r.out.Days, *day)
		r.out.Total.Records += day.Records
		r.out.Total.Items += day.Items
		r.out.Total.Objects += day.Objects
		r.out.Total.Guards += day.Guards
		r.out.Total.Elsewhere += day.Elsewhere
	}
	slices.SortFunc(r.out.Days, func(a, b DayCount) int { return cmp.Or(cmp.Compare(a.Station, b.Station), cmp.Compare(a.Day, b.Day)) })
	return r.out, nil
}

type dayKey struct {
	station uint32
	day     int32
}

type reconciling struct {
	Config
	ctx     context.Context
	each    func(Difference)
	out     Report
	rows    sorter
	late    uint64 // the first entry that need not be in the registry
	signed  journal.Checkpoint
	proved  bool // the journal has the root that was signed
	days    map[dayKey]*DayCount
	names   []string // of stations, by number; 0 is nobody
	numbers map[string]uint32
	own     uint32
	waiting []*Difference // to be told, and some to be mended before
	mending []mend
	reading []objectCheck
	strays  []Difference               // guards that name a device without their key
	guards  map[board.Fingerprint]bool // that a difference was told of
}

// mend is a difference that the journal may mend.
type mend struct {
	diff  *Difference
	at    journal.Position
	count *DayCount // of the record
	adds  DayCount  // what there is more once it is mended
}

// objectCheck is an object whose content is to be read.
type objectCheck struct {
	diff  Difference // if it is wrong
	at    journal.Position
	count *DayCount
}

func (r *reconciling) number(name string) uint32 {
	if len(r.names) == 0 {
		r.names = []string{""}
	}
	n, ok := r.numbers[name]
	if !ok && name != "" {
		n = uint32(len(r.names))
		r.names, r.numbers[name] = append(r.names, name), n
	}
	return n
}

// begin finds the end of the journal.
func (r *reconciling) begin() error {
	segments, err := journal.ListSegments(r.Dir)
	if err != nil {
		return err
	}
	signed, have, err := journal.ReadCheckpoint(r.Dir, r.Key)
	if err != nil {
		return err
	}
	r.proved = !have // nothing is to be proved
	r.signed, r.out.Signed = signed, signed.Size
	if len(segments) == 0 {
		return nil
	}
	last := segments[len(segments)-1:]
	s := journal.NewScan(r.Dir)
	s.Next = last[0].First
	s.Visit = func(journal.Position, uint64, []byte) error { return nil }
	err = s.Run(last)
	r.late = s.Next
	return err
}

func dayOf(t time.Time) int32 { return int32(math.Floor(float64(t.Unix()) / 86400)) }

func digestOf(envelope []byte) [16]byte {
	sum := sha256.Sum256(envelope)
	return [16]byte(sum[:])
}

func (r *reconciling) unreadable(b board.KeyBinding, err error) error {
	if !errors.Is(err, ErrUnreadable) {
		return err
	}
	r.found(Difference{Kind: DiffDamaged, Device: b.Device, Key: b.Key, Detail: err.Error(), Err: err}, nil)
	return r.mendIfFull()
}

func (r *reconciling) readItems() error {
	for e, err := range r.Registry.Enrolments(r.ctx) {
		w := row{device: e.Device, kind: rowItem}
		if errors.Is(err, ErrContradicts) {
			r.found(Difference{Kind: DiffItem, Device: e.Device, Key: e.Key.Fingerprint(), Detail: err.Error(), Err: err}, nil)
			if err := r.mendIfFull(); err != nil {
				return err
			}
			err = nil
		}
		switch {
		case err != nil:
			if err := r.unreadable(board.KeyBinding{Device: e.Device}, err); err != nil {
				return fmt.Errorf("listing the enrolments: %w", err)
			}
			if !e.Device.Valid() {
				continue
			}
			w.flags = rowUnreadable
		default:
			w.key, w.station, w.digest = e.Key.Fingerprint(), r.number(e.Station), digestOf(e.Envelope)
			if !e.EnrolledAt.IsZero() {
				w.day = dayOf(e.EnrolledAt)
			}
			if len(e.Envelope) == 0 {
				w.flags = rowNoEnvelope
			}
		}
		if err := r.rows.add(w); err != nil {
			return err
		}
	}
	return nil
}

func (r *reconciling) readObjects() error {
	return r.readBindings("listing the public keys", rowObject, r.Registry.Objects(r.ctx))
}

func (r *reconciling) readGuards() error {
	return r.readBindings("listing the guards", rowGuard, r.Registry.Guards(r.ctx))
}

func (r *reconciling) readBindings(doing string, kind rowKind, list iter.Seq2[board.KeyBinding, error]) error {
	for b, err := range list {
		if err != nil {
			if err := r.unreadable(b, err); err != nil {
				return fmt.Errorf("%s: %w", doing, err)
			}
			continue
		}
		if err := r.rows.add(row{device: b.Device, kind: kind, key: b.Key}); err != nil {
			return err
		}
	}
	return nil
}

// readJournal reads the records, and makes sure that they are what was signed.
func (r *reconciling) readJournal() error {
	segments, err := journal.ListSegments(r.Dir)
	if err != nil {
		return err
	}
	beside, err := journal.OpenLeafHashes(r.Dir)
	if err != nil {
		return err
	}
	var t journal.Tree
	grow := func(h tlog.Hash) error {
		t.Add(h)
		if t.N != r.signed.Size || t.Incomplete {
			return nil
		}
		if t.Root() != r.signed.Root {
			return fmt.Errorf("%w: its first %d entries have another root than was signed", journal.ErrTampered, t.N)
		}
		r.proved = true
		return nil
	}
	s := journal.NewScan(r.Dir)
	s.Damaged = func(d journal.Damage) error {
		r.out.Damage = append(r.out.Damage, d)
		for seq := d.First; seq < d.Next; seq++ {
			if err := grow(beside.Hash(seq)); err != nil {
				return err
			}
		}
		return nil
	}
	s.Visit = func(at journal.Position, seq uint64, data []byte) error {
		if err := r.ctx.Err(); err != nil {
			return context.Cause(r.ctx)
		}
		known, err := journal.Summarize(at, seq, data, nil)
		if err != nil {
			return journal.AsDamage(err)
		}
		if known.IsRecord() {
			envelope, err := journal.EnvelopeOf(data)
			if err != nil {
				return journal.AsDamage(err)
			}
			w := row{device: known.Device, kind: rowJournal, key: known.Key, seq: seq, at: at, day: dayOf(time.UnixMilli(known.Time)), digest: digestOf(envelope)}
			if err := r.rows.add(w); err != nil {
				return err
			}
		}
		return grow(tlog.RecordHash(data))
	}
	if err := s.Run(segments); err != nil {
		return err
	}
	if s.Next < r.signed.Size {
		return fmt.Errorf("%w: it has %d entries, the checkpoint says %d", journal.ErrTampered, s.Next, r.signed.Size)
	}
	return nil
}

// holding is all that there is of one device.
type holding struct {
	device  board.DeviceID
	journal []row // by seq; more than one if a record was damaged and the board read anew
	item    *row
	objects map[board.Fingerprint]bool // only of the two keys that matter
	guards  map[board.Fingerprint]bool
}

// compare goes through all devices.
func (r *reconciling) compare() error {
	h := holding{}
	flush := func() error {
		if !h.device.Valid() {
			return nil
		}
		return r.device(&h)
	}
	for w, err := range r.rows.all() {
		if err != nil {
			return err
		}
		if w.device != h.device {
			if err := flush(); err != nil {
				return err
			}
			if r.ctx.Err() != nil {
				return context.Cause(r.ctx)
			}
			h = holding{device: w.device, objects: map[board.Fingerprint]bool{}, guards: map[board.Fingerprint]bool{}}
		}
		switch w.kind {
		case rowJournal:
			h.journal = append(h.journal, w)
		case rowItem:
			h.item = &w
		case rowObject:
			r.binding(&h, w.key, h.objects, func(d *DayCount) { d.Objects++ })
		case rowGuard:
			if !r.binding(&h, w.key, h.guards, func(d *DayCount) { d.Guards++ }) {
				r.strays = append(r.strays, Difference{Kind: DiffGuard, Device: w.device, Key: w.key, Detail: "the device that it names does not have this key"})
				if len(r.strays) >= maxStrays {
					if err := r.tellStrays(); err != nil {
						return err
					}
				}
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if err := r.repair(); err != nil {
		return err
	}
	return r.tellStrays()
}

// tellStrays tells of guards that keep their key from every other device. Of one
// whose key is missing elsewhere there is a difference already, and one whose
// device was enrolled meanwhile is none.
func (r *reconciling) tellStrays() error {
	strays := r.strays
	r.strays = nil
	for _, d := range strays {
		if r.guards[d.Key] {
			continue
		}
		owner, err := r.Registry.KeyOwner(r.ctx, d.Key)
		if errors.Is(err, fs.ErrNotExist) || err == nil && owner != d.Device {
			continue // it was changed meanwhile
		}
		if errors.Is(err, ErrUnreadable) {
			continue // told by the listing
		}
		if err != nil {
			return fmt.Errorf("reading a guard again: %w", err)
		}
		e, err := r.Registry.Lookup(r.ctx, d.Device)
		switch {
		case err == nil && e.Key.Fingerprint() == d.Key:
			continue
		case err != nil && !errors.Is(err, board.ErrNotEnrolled) && !errors.Is(err, ErrUnreadable):
			return fmt.Errorf("looking up a device again: %w", err)
		}
		r.found(d, nil)
		if err := r.mendIfFull(); err != nil {
			return err
		}
	}
	return r.repair()
}

// newest is the record of the journal that counts; nil if there is none.
func (h *holding) newest() *row {
	if len(h.journal) == 0 {
		return nil
	}
	newest := &h.journal[0]
	for i := range h.journal {
		if h.journal[i].seq > newest.seq {
			newest = &h.journal[i]
		}
	}
	return newest
}

// binding counts a public key or a guard for the station and day of whatever
// has this key. Items and records come before them.
// It returns false if nothing has it.
func (r *reconciling) binding(h *holding, key board.Fingerprint, of map[board.Fingerprint]bool, count func(*DayCount)) bool {
	j := h.newest()
	switch {
	case h.item != nil && h.item.flags&rowUnreadable == 0 && h.item.key == key:
		of[key] = true
		count(r.day(h.item.station, h.item.day))
	case j != nil && j.key == key:
		of[key] = true
		count(r.day(r.own, j.day))
	default:
		count(r.day(0, 0))
		return false
	}
	return true
}

func (r *reconciling) day(station uint32, day int32) *DayCount {
	key := dayKey{station, day}
	d := r.days[key]
	if d == nil {
		d = &DayCount{Station: r.names[station]}
		if station != 0 {
			d.Day = time.Unix(int64(day)*86400, 0).UTC().Format(time.DateOnly)
		}
		r.days[key] = d
	}
	return d
}

// device counts one device and finds what differs.
func (r *reconciling) device(h *holding) error {
	j, item := h.newest(), h.item
	readable := item != nil && item.flags&rowUnreadable == 0
	own := readable && item.station == r.own
	if readable {
		r.day(item.station, item.day).Items++
	}
	if j == nil {
		if own {
			r.found(Difference{Kind: DiffUnknown, Device: h.device, Key: item.key}, nil)
		}
		return r.mendIfFull()
	}
	// A record and its item count for the same day, though a board may be read
	// before midnight and journaled after it.
	day := j.day
	if own && item.key == j.key {
		day = item.day
	}
	count := r.day(r.own, day)
	count.Records++
	differs := func(kind DifferenceKind) Difference {
		return Difference{Kind: kind, Device: h.device, Key: j.key, Entry: true, Seq: j.seq}
	}
	missing := func(kind DifferenceKind, adds DayCount) {
		d := differs(kind)
		d.Missing = true
		r.found(d, &mend{at: j.at, count: count, adds: adds})
	}
	switch {
	case item == nil && j.seq >= r.late:
		r.out.Late++
		return r.mendIfFull()
	case item == nil:
		adds := DayCount{Items: 1}
		if !h.objects[j.key] {
			adds.Objects = 1
		}
		if !h.guards[j.key] {
			adds.Guards = 1
		}
		missing(DiffMissing, adds)
	case !readable: // told when it was read
	case item.key != j.key:
		r.found(differs(DiffKey), nil)
		return r.mendIfFull()
	default:
		if item.station != r.own {
			count.Elsewhere++
		}
		// Objects and guards of the key count for who holds the item.
		count = r.day(item.station, item.day)
		switch {
		case item.flags&rowNoEnvelope != 0:
			r.found(differs(DiffUnsigned), nil)
		case own && !slices.ContainsFunc(h.journal, func(w row) bool { return w.digest == item.digest }):
			r.found(differs(DiffEnvelope), nil)
		}
	}
	switch {
	case h.objects[j.key]:
		r.reading = append(r.reading, objectCheck{diff: differs(DiffObject), at: j.at, count: count})
	case item != nil: // otherwise it is part of what is missing
		missing(DiffObject, DayCount{Objects: 1})
	}
	if item != nil && !h.guards[j.key] {
		d := differs(DiffGuard)
		owner, err := r.Registry.KeyOwner(r.ctx, j.key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing(DiffGuard, DayCount{Guards: 1})
		case errors.Is(err, ErrUnreadable):
			d.Detail = err.Error()
			r.guards[j.key] = true
			r.found(d, nil)
		case err != nil:
			return fmt.Errorf("reading a guard: %w", err)
		case owner != h.device:
			d.Detail = "it names device " + owner.String()
			r.guards[j.key] = true
			r.found(d, nil)
		}
	}
	return r.mendIfFull()
}

// found takes note of a difference; with a mend if the record of the journal may
// mend it.
func (r *reconciling) found(d Difference, m *mend) {
	r.out.Found[d.Kind]++
	r.waiting = append(r.waiting, &d)
	if r.Repair == nil || m == nil {
		return
	}
	if !r.proved || d.Seq >= r.signed.Size {
		d.Detail = "no checkpoint covers this record yet"
		return
	}
	m.diff = &d
	r.mending = append(r.mending, *m)
}

func (r *reconciling) mendIfFull() error {
	if len(r.waiting)+len(r.reading) < batchSize {
		return nil
	}
	return r.repair()
}

// repair reads the objects that are to be read, puts records to the registry,
// and tells the differences that wait for that.
func (r *reconciling) repair() error {
	if err := r.readContents(); err != nil {
		return err
	}
	var records []board.Sealed
	place := map[journal.Position]int{} // of each record
	for _, m := range r.mending {
		if _, ok := place[m.at]; ok {
			continue
		}
		sealed, err := r.record(m)
		if err != nil {
			m.diff.Detail = err.Error()
			continue
		}
		place[m.at] = len(records)
		records = append(records, sealed)
	}
	errs := r.put(records)
	for _, m := range r.mending {
		i, ok := place[m.at]
		if !ok {
			continue
		}
		if err := r.mended(m, records[i].Record().ReadAt, errs[i]); err != nil {
			return err
		}
	}
	slices.SortStableFunc(r.waiting, func(a, b *Difference) int { return bytes.Compare(a.Device[:], b.Device[:]) })
	for _, d := range r.waiting {
		r.each(*d)
	}
	r.waiting, r.mending = nil, nil
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	return nil
}

// mended looks at what became of a difference, whose board was read at that
// time. Of several things that are wrong with a device, some may have been mended
// although the record was refused.
func (r *reconciling) mended(m mend, read time.Time, put error) error {
	d := m.diff
	key := board.KeyBinding{Device: d.Device, Key: d.Key}
	have := put == nil
	switch d.Kind {
	case DiffObject:
		wrong, missing, err := r.wrongContent(key)
		if err != nil && put == nil {
			return err
		}
		have = err == nil && !missing && wrong == ""
	case DiffGuard:
		owner, err := r.Registry.KeyOwner(r.ctx, d.Key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrUnreadable) && put == nil {
			return fmt.Errorf("reading a guard again: %w", err)
		}
		have = err == nil && owner == d.Device
	}
	if !have {
		if put == nil {
			put = errors.New("the registry took the record, and this is as it was")
		}
		d.Detail, d.Err = put.Error(), put
		return nil
	}
	d.Repaired, d.Detail = true, ""
	r.out.Repaired++
	if d.Kind == DiffMissing {
		// The item counts for the day on which the board was read.
		m.count.Records--
		m.count.Objects -= 1 - m.adds.Objects
		m.count.Guards -= 1 - m.adds.Guards
		m.count, m.adds = r.day(r.own, dayOf(read)), DayCount{Items: 1, Objects: 1, Guards: 1}
		m.count.Records++
	}
	m.count.Items += m.adds.Items
	m.count.Objects += m.adds.Objects
	m.count.Guards += m.adds.Guards
	return nil
}

// readContents compares the objects with their keys.
func (r *reconciling) readContents() error {
	checks := r.reading
	r.reading = nil
	results := make([]objectResult, len(checks))
	var group sync.WaitGroup
	next := make(chan int)
	for range min(readers, len(checks)) {
		group.Go(func() {
			for i := range next {
				d := checks[i].diff
				results[i].wrong, results[i].missing, results[i].err = r.wrongContent(board.KeyBinding{Device: d.Device, Key: d.Key})
			}
		})
	}
	for i := range checks {
		next <- i
	}
	close(next)
	group.Wait()
	for i, result := range results {
		c := checks[i]
		switch {
		case result.err != nil:
			return result.err
		case result.missing: // since it was listed
			c.diff.Missing = true
			c.count.Objects--
			r.found(c.diff, &mend{at: c.at, count: c.count, adds: DayCount{Objects: 1}})
		case result.wrong != "":
			c.diff.Detail = result.wrong
			r.found(c.diff, nil)
		}
	}
	return nil
}

type objectResult struct {
	wrong   string // what is wrong with its content
	missing bool
	err     error // it could not be read
}

// wrongContent reads an object, every byte.
func (r *reconciling) wrongContent(key board.KeyBinding) (wrong string, missing bool, err error) {
	content, err := r.Registry.PublicKey(r.ctx, key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", true, nil
	case errors.Is(err, ErrUnreadable):
		return err.Error(), false, nil
	case err != nil:
		return "", false, fmt.Errorf("reading a public key: %w", err)
	}
	stored, err := board.ParseKeyPEM(content)
	switch {
	case err != nil:
		return "its content is no public key: " + err.Error(), false, nil
	case stored.Fingerprint() != key.Key:
		return "its content is another key: " + stored.Fingerprint().String(), false, nil
	case !bytes.Equal(content, stored.PEM()):
		return "its content is the key in another form", false, nil
	}
	return "", false, nil
}

// record reads a record and checks all of it: what goes to the registry is what
// the journal proves.
func (r *reconciling) record(m mend) (board.Sealed, error) {
	e, err := journal.ReadEntryAt(r.Dir, m.at)
	if err == nil && (e.Seq != m.diff.Seq || e.Record() == nil) {
		err = fmt.Errorf("%w: another entry is there", journal.ErrEntry)
	}
	if err != nil {
		return board.Sealed{}, fmt.Errorf("reading entry %d: %w", m.diff.Seq, err)
	}
	sealed, err := board.ParseEnvelope(e.Record())
	if err != nil {
		return sealed, err
	}
	return sealed, sealed.VerifyWithProof(r.Key)
}

func (r *reconciling) put(records []board.Sealed) []error {
	if len(records) == 0 {
		return nil
	}
	bounded, cancel := context.WithTimeout(r.ctx, repairLimit)
	defer cancel()
	errs := r.Repair.Repair(bounded, records)
	if len(errs) == len(records) {
		return errs
	}
	errs = make([]error, len(records))
	for i := range errs {
		errs[i] = fmt.Errorf("the registry did not answer for each of %d records", len(records))
	}
	return errs
}
