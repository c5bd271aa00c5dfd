package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// memoryRegistry is a registry that can be counted and put wrong. Its Put does
// what those of package cloud do.
type memoryRegistry struct {
	items   map[board.DeviceID]board.Enrolment
	objects map[board.KeyBinding]bool
	guards  map[board.Fingerprint]board.DeviceID
	keys    map[board.Fingerprint]board.Key
	content map[board.KeyBinding]string // of an object, if it is not its key
	wrong   map[board.DeviceID]error    // an attribute of the item
	noOwner error                       // of every guard that is asked for
	bad     map[board.DeviceID]error    // of the item
	badName error                       // of an object and of a guard
	ends    map[string]error            // of a listing
	away    error
	puts    int
	meddle  func() // called while the registry is read
}

func newMemoryRegistry() *memoryRegistry {
	return &memoryRegistry{items: map[board.DeviceID]board.Enrolment{}, objects: map[board.KeyBinding]bool{}, guards: map[board.Fingerprint]board.DeviceID{},
		keys: map[board.Fingerprint]board.Key{}, content: map[board.KeyBinding]string{}, wrong: map[board.DeviceID]error{}, bad: map[board.DeviceID]error{}, ends: map[string]error{}}
}

func (m *memoryRegistry) Put(_ context.Context, s board.Sealed) error {
	m.puts++
	if m.away != nil {
		return m.away
	}
	r := s.Record()
	f := r.Fingerprint()
	m.keys[f] = r.Key
	known, have := m.items[r.Device]
	if have && known.Key != r.Key {
		return &board.Conflict{Kind: board.ErrDeviceConflict, Device: r.Device, Key: f, KnownKey: known.Key.Fingerprint()}
	}
	m.objects[board.KeyBinding{Device: r.Device, Key: f}] = true
	if have && m.guards[f] != r.Device {
		return errors.New("the guard is missing or names another device")
	}
	if owner, ok := m.guards[f]; ok && owner != r.Device {
		return &board.Conflict{Kind: board.ErrKeyConflict, Device: r.Device, Key: f, KnownDevice: owner}
	}
	if !have {
		m.items[r.Device] = board.Enrolment{Device: r.Device, Key: r.Key, Envelope: s.Envelope(), Station: r.Origin(), EnrolledAt: r.ReadAt, State: board.Active, Generation: 1}
		m.guards[f] = r.Device
	}
	return nil
}

// Repair is Put, and makes a guard that is missing beside an item.
func (m *memoryRegistry) Repair(ctx context.Context, records []board.Sealed) []error {
	errs := make([]error, len(records))
	for i, s := range records {
		r := s.Record()
		if _, ok := m.guards[r.Fingerprint()]; !ok && m.away == nil && m.items[r.Device].Key == r.Key {
			m.guards[r.Fingerprint()] = r.Device
		}
		errs[i] = m.Put(ctx, s)
	}
	return errs
}

func (m *memoryRegistry) Lookup(_ context.Context, device board.DeviceID) (board.Enrolment, error) {
	if e, ok := m.items[device]; ok {
		return e, m.bad[device]
	}
	return board.Enrolment{}, board.ErrNotEnrolled
}

func (m *memoryRegistry) PublicKey(_ context.Context, b board.KeyBinding) ([]byte, error) {
	if !m.objects[b] {
		return nil, fs.ErrNotExist
	}
	if content, ok := m.content[b]; ok {
		return []byte(content), nil
	}
	return m.keys[b.Key].PEM(), m.ends["contents"]
}

func (m *memoryRegistry) KeyOwner(_ context.Context, key board.Fingerprint) (board.DeviceID, error) {
	device, ok := m.guards[key]
	if m.noOwner != nil {
		return board.DeviceID{}, m.noOwner
	}
	if !ok {
		return board.DeviceID{}, fs.ErrNotExist
	}
	return device, m.ends["owners"]
}

func (m *memoryRegistry) Enrolments(context.Context) iter.Seq2[board.Enrolment, error] {
	return func(yield func(board.Enrolment, error) bool) {
		if m.meddle != nil {
			m.meddle()
		}
		for device, e := range m.items {
			if err := m.bad[device]; err != nil {
				e = board.Enrolment{Device: device}
			}
			if !yield(e, errors.Join(m.bad[device], m.wrong[device])) {
				return
			}
		}
		if err := m.ends["items"]; err != nil {
			yield(board.Enrolment{}, err)
		}
	}
}

func (m *memoryRegistry) bindings(all iter.Seq[board.KeyBinding], end error) iter.Seq2[board.KeyBinding, error] {
	return func(yield func(board.KeyBinding, error) bool) {
		if m.badName != nil && !yield(board.KeyBinding{}, m.badName) {
			return
		}
		for b := range all {
			if !yield(b, nil) {
				return
			}
		}
		if end != nil {
			yield(board.KeyBinding{}, end)
		}
	}
}

func (m *memoryRegistry) Objects(context.Context) iter.Seq2[board.KeyBinding, error] {
	return m.bindings(maps.Keys(m.objects), m.ends["objects"])
}

func (m *memoryRegistry) Guards(context.Context) iter.Seq2[board.KeyBinding, error] {
	return m.bindings(func(yield func(board.KeyBinding) bool) {
		for key, device := range m.guards {
			if !yield(board.KeyBinding{Device: device, Key: key}) {
				return
			}
		}
	}, m.ends["guards"])
}

// deliverTo puts all of a journal into a registry.
func (k *kit) deliverTo(m *memoryRegistry) {
	k.t.Helper()
	for e, err := range journal.Walk(k.dir) {
		if err != nil {
			k.t.Fatal(err)
		}
		if e.Record() == nil {
			continue
		}
		sealed, err := board.ParseEnvelope(e.Record())
		if err == nil {
			err = m.Put(k.t.Context(), sealed)
		}
		if err != nil {
			k.t.Fatal(err)
		}
	}
	m.puts = 0
}

func (k *kit) reconcile(m *memoryRegistry, repair bool) (Report, []Difference) {
	k.t.Helper()
	c := Config{Dir: k.dir, Key: k.id.Verifier, Registry: m, memory: 7}
	if repair {
		c.Repair = m
	}
	var all []Difference
	out, err := Run(k.t.Context(), c, func(d Difference) { all = append(all, d) })
	if err != nil {
		k.t.Fatalf("Reconcile: %v", err)
	}
	if out.Differences() != len(all) {
		k.t.Errorf("%d differences are counted, %d told", out.Differences(), len(all))
	}
	return out, all
}

func TestReconcileSame(t *testing.T) {
	k, all := smallKit(t, 20)
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	m := newMemoryRegistry()
	k.deliverTo(m)
	// Another station's boards are its own business, also those that are ours
	// too.
	other := newRecord(t)
	m.keys[other.Fingerprint()] = other.Key
	m.items[other.Device] = board.Enrolment{Device: other.Device, Key: other.Key, Station: "widgiot/line4-b", EnrolledAt: other.ReadAt.AddDate(0, 0, -1)}
	first := m.items[all[3].Device]
	first.Station, first.Envelope = "widgiot/line4-b", []byte("{}")
	m.items[all[3].Device] = first
	m.objects[board.KeyBinding{Device: board.DeviceID{9}, Key: board.Fingerprint{9}}] = true // left by a station that broke off

	out, diffs := k.reconcile(m, true)
	if !out.Same() || len(diffs) > 0 || m.puts > 0 {
		t.Errorf("%+v, %v", out, diffs)
	}
	today, yesterday := all[3].ReadAt.Format("2006-01-02"), other.ReadAt.AddDate(0, 0, -1).Format("2006-01-02")
	want := []DayCount{
		{Objects: 1},
		{Station: "widgiot/line3-a", Day: today, Records: 20, Items: 19, Objects: 19, Guards: 19, Elsewhere: 1},
		{Station: "widgiot/line4-b", Day: yesterday, Items: 1},
		{Station: "widgiot/line4-b", Day: today, Items: 1, Objects: 1, Guards: 1},
	}
	if len(out.Days) == 5 || today != now().Format("2006-01-02") { // midnight has passed meanwhile
		return
	}
	if !slices.Equal(out.Days, want) || out.Total != (DayCount{Records: 20, Items: 21, Objects: 21, Guards: 20, Elsewhere: 1}) {
		t.Errorf("%+v, total %+v", out.Days, out.Total)
	}
}

// Every kind of difference is found, named, and mended if it can be without
// changing anything.
func TestReconcileFinds(t *testing.T) {
	other := newRecord(t)
	for name, c := range map[string]struct {
		spoil  func(m *memoryRegistry, r board.Record)
		want   []DifferenceKind
		mended bool
		detail string
	}{
		"nothing at all": {func(m *memoryRegistry, r board.Record) {
			delete(m.items, r.Device)
			delete(m.guards, r.Fingerprint())
			delete(m.objects, board.KeyBinding{Device: r.Device, Key: r.Fingerprint()})
		}, []DifferenceKind{DiffMissing}, true, ""},
		"no item": {func(m *memoryRegistry, r board.Record) { delete(m.items, r.Device) }, []DifferenceKind{DiffMissing}, true, ""},
		"no item, key elsewhere": {func(m *memoryRegistry, r board.Record) {
			delete(m.items, r.Device)
			m.guards[r.Fingerprint()] = other.Device
		}, []DifferenceKind{DiffMissing, DiffGuard}, false, "does not have this key"},
		"no public key": {func(m *memoryRegistry, r board.Record) {
			delete(m.objects, board.KeyBinding{Device: r.Device, Key: r.Fingerprint()})
		}, []DifferenceKind{DiffObject}, true, ""},
		"no guard":           {func(m *memoryRegistry, r board.Record) { delete(m.guards, r.Fingerprint()) }, []DifferenceKind{DiffGuard}, true, ""},
		"a guard of another": {func(m *memoryRegistry, r board.Record) { m.guards[r.Fingerprint()] = other.Device }, []DifferenceKind{DiffGuard}, false, "it names device " + other.Device.String()},
		"a guard that cannot be read": {func(m *memoryRegistry, r board.Record) {
			m.guards[r.Fingerprint()] = other.Device
			m.noOwner = fmt.Errorf("%w: its guard", ErrUnreadable)
		}, []DifferenceKind{DiffGuard}, false, "its guard"},
		"a guard of a board never read": {func(m *memoryRegistry, r board.Record) {
			m.guards[other.Fingerprint()] = other.Device
		}, []DifferenceKind{DiffGuard}, false, "does not have this key"},
		"another guard of the same board": {func(m *memoryRegistry, r board.Record) {
			m.guards[other.Fingerprint()] = r.Device
		}, []DifferenceKind{DiffGuard}, false, "does not have this key"},
		"an empty public key":    {content(func(board.Record) string { return "" }), []DifferenceKind{DiffObject}, false, "no public key"},
		"another public key":     {content(func(board.Record) string { return string(other.Key.PEM()) }), []DifferenceKind{DiffObject}, false, "another key: " + other.Fingerprint().String()},
		"a public key and more":  {content(func(r board.Record) string { return string(r.Key.PEM()) + "\n" }), []DifferenceKind{DiffObject}, false, "in another form"},
		"half of the public key": {content(func(r board.Record) string { return string(r.Key.PEM()[:60]) }), []DifferenceKind{DiffObject}, false, "no public key"},
		"an attribute": {func(m *memoryRegistry, r board.Record) {
			m.wrong[r.Device] = fmt.Errorf("%w: pubkey-object", ErrContradicts)
		}, []DifferenceKind{DiffItem}, false, "pubkey-object"},
		"an attribute, and no public key": {func(m *memoryRegistry, r board.Record) {
			m.wrong[r.Device] = fmt.Errorf("%w: pubkey-object", ErrContradicts)
			m.content[board.KeyBinding{Device: r.Device, Key: r.Fingerprint()}] = "x"
		}, []DifferenceKind{DiffItem, DiffObject}, false, "no public key"},
		"neither": {func(m *memoryRegistry, r board.Record) {
			delete(m.guards, r.Fingerprint())
			delete(m.objects, board.KeyBinding{Device: r.Device, Key: r.Fingerprint()})
		}, []DifferenceKind{DiffObject, DiffGuard}, true, ""},
		"another key": {func(m *memoryRegistry, r board.Record) { edit(m, r, func(e *board.Enrolment) { e.Key = other.Key }) }, []DifferenceKind{DiffKey}, false, ""},
		"no envelope": {func(m *memoryRegistry, r board.Record) { edit(m, r, func(e *board.Enrolment) { e.Envelope = nil }) }, []DifferenceKind{DiffUnsigned}, false, ""},
		"no envelope, no station": {func(m *memoryRegistry, r board.Record) {
			edit(m, r, func(e *board.Enrolment) { *e = board.Enrolment{Device: e.Device, Key: e.Key} })
		}, []DifferenceKind{DiffUnsigned}, false, ""},
		"another envelope": {func(m *memoryRegistry, r board.Record) {
			edit(m, r, func(e *board.Enrolment) { e.Envelope = append(bytes.Clone(e.Envelope), ' ') })
		}, []DifferenceKind{DiffEnvelope}, false, ""},
		"a board never read": {func(m *memoryRegistry, r board.Record) {
			m.items[other.Device] = board.Enrolment{Device: other.Device, Key: other.Key, Station: "widgiot/line3-a"}
		}, []DifferenceKind{DiffUnknown}, false, ""},
		"a damaged item": {func(m *memoryRegistry, r board.Record) { m.bad[r.Device] = fmt.Errorf("%w: its state", ErrUnreadable) }, []DifferenceKind{DiffDamaged}, false, "its state"},
		"a damaged name": {func(m *memoryRegistry, r board.Record) { m.badName = fmt.Errorf("%w: pubkeys/x", ErrUnreadable) }, []DifferenceKind{DiffDamaged, DiffDamaged}, false, "pubkeys/x"},
	} {
		t.Run(name, func(t *testing.T) {
			k, all := smallKit(t, 12)
			if err := k.spool.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			m := newMemoryRegistry()
			k.deliverTo(m)
			r := all[5]
			c.spoil(m, r)
			kinds := func(diffs []Difference) (out []DifferenceKind) {
				for _, d := range diffs {
					out = append(out, d.Kind)
					if d.Entry && (d.Device != r.Device || d.Key != r.Fingerprint() || d.Seq == 0) {
						t.Errorf("it is said of another: %+v", d)
					}
				}
				return out
			}
			before := fmt.Sprint(m.items, m.guards)
			out, diffs := k.reconcile(m, false)
			if got := kinds(diffs); !slices.Equal(got, c.want) || out.Same() || out.Repaired != 0 || m.puts > 0 {
				t.Fatalf("found %v, want %v", got, c.want)
			}
			out, diffs = k.reconcile(m, true)
			if got := kinds(diffs); !slices.Equal(got, c.want) || out.Same() != c.mended {
				t.Fatalf("with a repair: %v, want %v; mended %d", got, c.want, out.Repaired)
			}
			if last := diffs[len(diffs)-1]; last.Repaired != c.mended || !strings.Contains(last.Detail, c.detail) {
				t.Errorf("%+v, want detail %q", last, c.detail)
			}
			if !c.mended && fmt.Sprint(m.items, m.guards) != before {
				t.Error("the repair changed what is there")
			}
			after, diffs := k.reconcile(m, false)
			if after.Same() != c.mended {
				t.Errorf("after the repair: %v", diffs)
			}
			if !slices.Equal(after.Days, out.Days) || after.Total != out.Total {
				t.Errorf("the repair has counted %+v, there is %+v", out.Days, after.Days)
			}
		})
	}
}

// content exchanges the content of an object.
func content(of func(board.Record) string) func(*memoryRegistry, board.Record) {
	return func(m *memoryRegistry, r board.Record) {
		m.content[board.KeyBinding{Device: r.Device, Key: r.Fingerprint()}] = of(r)
	}
}

func edit(m *memoryRegistry, r board.Record, f func(e *board.Enrolment)) {
	e := m.items[r.Device]
	f(&e)
	m.items[r.Device] = e
}

// A registry that lost all is filled again from the journal, but only as far as
// that is signed.
func TestReconcileRepairsAll(t *testing.T) {
	k, all := smallKit(t, 2*batchSize+5)
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	late := k.mustAppend()
	m := newMemoryRegistry()
	m.away = errAway
	out, diffs := k.reconcile(m, true)
	if out.Repaired != 0 || out.Found[DiffMissing] != len(all)+1 || !strings.Contains(diffs[0].Detail, errAway.Error()) && diffs[0].Device != late.Device {
		t.Errorf("away: %+v, %+v", out, diffs[0])
	}
	m.away = nil
	out, diffs = k.reconcile(m, true)
	if out.Repaired != len(all) || out.Same() || len(m.items) != len(all) {
		t.Errorf("%+v", out)
	}
	for _, d := range diffs {
		if d.Repaired == (d.Device == late.Device) || !d.Repaired && !strings.Contains(d.Detail, "no checkpoint covers") {
			t.Errorf("%+v", d)
		}
	}
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if out, _ := k.reconcile(m, true); !out.Same() || out.Repaired != 1 {
		t.Errorf("once it is signed: %+v", out)
	}
}

// Boards that are read while it runs are no difference.
func TestReconcileWhileBoardsArrive(t *testing.T) {
	k, _ := smallKit(t, 10)
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	m := newMemoryRegistry()
	k.deliverTo(m)
	m.meddle = func() {
		m.meddle = nil
		late := k.mustAppend()
		k.mustAppend()
		if err := k.spool.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		k.deliverTo(m)
		delete(m.items, late.Device)
	}
	if out, diffs := k.reconcile(m, true); !out.Same() || out.Late != 1 || out.Total.Records != 12 {
		t.Errorf("%+v, %v", out, diffs)
	}
}

func TestReconcileRefusals(t *testing.T) {
	k, all := smallKit(t, 14)
	k.damaged = true
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	m := newMemoryRegistry()
	k.deliverTo(m)
	run := func(key journal.Identity) error {
		_, err := Run(t.Context(), Config{Dir: k.dir, Key: key.Verifier, Registry: m, Repair: m}, func(Difference) {})
		return err
	}
	if err := run(k.id); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"items", "objects", "guards"} {
		m.ends[name] = errAway
		if err := run(k.id); !errors.Is(err, errAway) || !strings.Contains(err.Error(), "listing") {
			t.Errorf("%s: %v, want %v", name, err, errAway)
		}
		delete(m.ends, name)
	}
	stranger, err := journal.LoadIdentity(tempDir(t), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	if err := run(stranger); !errors.Is(err, journal.ErrCheckpoint) {
		t.Errorf("another's key: %v, want %v", err, journal.ErrCheckpoint)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errAway)
	if _, err := Run(ctx, Config{Dir: k.dir, Key: k.id.Verifier, Registry: m}, func(Difference) {}); !errors.Is(err, errAway) {
		t.Errorf("stopped: %v, want %v", err, errAway)
	}
	t.Run("no place for temporary files", func(t *testing.T) {
		t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
		if _, err := Run(t.Context(), Config{Dir: k.dir, Key: k.id.Verifier, Registry: m, memory: 3}, func(Difference) {}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want %v", err, fs.ErrNotExist)
		}
	})

	// Damage is told, and is a reason not to be content; what else there is is
	// mended all the same.
	seq := uint64(0)
	for e, err := range journal.Walk(k.dir) {
		if err == nil && e.Record() != nil {
			if sealed, err := board.ParseEnvelope(e.Record()); err == nil && sealed.Record().Device == all[13].Device {
				seq = e.Seq
			}
		}
	}
	before, err := os.ReadFile(journal.SegmentPath(k.dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	spoilSegment(t, k.dir, 0, func(b []byte) []byte { b[len(b)/2]++; return b })
	delete(m.items, all[13].Device)
	out, diffs := k.reconcile(m, true)
	if len(out.Damage) != 1 || out.Same() || out.Found[DiffUnknown] != 1 || out.Found[DiffMissing] != 1 || out.Repaired != 1 {
		t.Errorf("damage: %+v, %+v", out, diffs)
	}
	// Without the hash of what is damaged nothing is proved any more.
	os.Remove(journal.LeavesPath(k.dir, 0))
	delete(m.items, all[13].Device)
	if out, diffs := k.reconcile(m, true); out.Repaired != 0 || !slices.ContainsFunc(diffs, func(d Difference) bool { return d.Seq == seq && strings.Contains(d.Detail, "no checkpoint covers") }) {
		t.Errorf("without a root: %+v, %+v", out, diffs)
	}
	// A changed record has a good checksum and another root.
	spoilSegment(t, k.dir, 0, func([]byte) []byte {
		lines := bytes.SplitAfter(before, []byte("\n"))
		data, _, err := journal.ReadLine(lines[1])
		if err != nil {
			t.Fatal(err)
		}
		lines[1] = journal.EncodeLine(bytes.Replace(data, []byte(`"time":"2`), []byte(`"time":"3`), 1))
		return bytes.Join(lines, nil)
	})
	if err := run(k.id); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("a changed record: %v, want %v", err, journal.ErrTampered)
	}
	for _, segment := range k.segments()[1:] {
		os.Remove(journal.SegmentPath(k.dir, segment.First))
	}
	if err := run(k.id); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("a journal without its end: %v, want %v", err, journal.ErrTampered)
	}
}

// A record that a station should never have signed is not mended.
func TestReconcileLooksAtPossession(t *testing.T) {
	k := newKit(t)
	k.damaged = true
	r := newRecord(t)
	r.Proof = &board.Proof{Method: board.ProofSignMsg, Hash: board.SHA256, Nonces: [][]byte{make([]byte, 16), bytes.Repeat([]byte{1}, 16)}, Signatures: [][]byte{{1}, {2}}}
	if _, err := k.append(r); err != nil {
		t.Fatal(err)
	}
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	m := newMemoryRegistry()
	if out, diffs := k.reconcile(m, true); out.Repaired != 0 || m.puts != 0 || len(diffs) != 1 || diffs[0].Detail == "" {
		t.Errorf("%+v, %+v", out, diffs)
	}
}

// Whatever the number of rows, and whatever fits in memory, they come in order.
func TestSorter(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 100, 1000} {
		s := sorter{limit: 8}
		var want []rowBytes
		for range n {
			r := row{kind: rowKind(rand.IntN(4)), seq: rand.Uint64N(4), at: journal.Position{Segment: rand.Uint64(), Offset: rand.Int64()}, station: rand.Uint32(), day: rand.Int32() - 1<<30, flags: byte(rand.IntN(4))}
			r.device[0], r.key[0] = byte(rand.IntN(4)), byte(rand.IntN(4))
			r.digest[15] = byte(rand.IntN(256))
			want = append(want, r.encode())
			if err := s.add(r); err != nil {
				t.Fatal(err)
			}
			if b := r.encode(); b.decode() != r {
				t.Fatalf("%+v is read as %+v", r, b.decode())
			}
		}
		slices.SortFunc(want, func(a, b rowBytes) int { return bytes.Compare(a[:], b[:]) })
		var got []rowBytes
		for r, err := range s.all() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r.encode())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d rows are not in order", n)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
	// A file that does not give back what it was given.
	s := sorter{limit: 1}
	for range 3 {
		if err := s.add(row{}); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	var last error
	for _, err := range s.all() {
		last = err
	}
	if !errors.Is(last, os.ErrClosed) {
		t.Errorf("a file that is gone: %v", last)
	}
}
