package cloud

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/spool/reconcile"
	"secretfree/station/board"
)

// marked is a registry as stationctl gives it to the comparison.
type marked struct{ registry }

func mark(err error) error {
	if _, wrong := errors.AsType[*Mismatch](err); wrong {
		return fmt.Errorf("%w: %w", reconcile.ErrContradicts, err)
	}
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w: %w", reconcile.ErrUnreadable, err)
	}
	return err
}

func markAll[T any](list iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for each, err := range list {
			if !yield(each, mark(err)) {
				return
			}
		}
	}
}

func (m marked) Enrolments(ctx context.Context) iter.Seq2[board.Enrolment, error] {
	return markAll(m.registry.Enrolments(ctx))
}

func (m marked) Objects(ctx context.Context) iter.Seq2[board.KeyBinding, error] {
	return markAll(m.registry.Objects(ctx))
}

func (m marked) Guards(ctx context.Context) iter.Seq2[board.KeyBinding, error] {
	return markAll(m.registry.Guards(ctx))
}

func (m marked) Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error) {
	e, err := m.registry.Lookup(ctx, device)
	return e, mark(err)
}

func (m marked) PublicKey(ctx context.Context, key board.KeyBinding) ([]byte, error) {
	content, err := m.registry.PublicKey(ctx, key)
	return content, mark(err)
}

func (m marked) KeyOwner(ctx context.Context, key board.Fingerprint) (board.DeviceID, error) {
	owner, err := m.registry.KeyOwner(ctx, key)
	return owner, mark(err)
}

// testReconcile puts each thing of a registry wrong in each way. The comparison
// finds it, a repair mends what is missing and changes nothing that is there, the
// counts are those after it, and once a person has removed what is wrong, a
// repair brings everything back as it was.
func testReconcile(t *testing.T, b backend) {
	dir := filepath.Join(t.TempDir(), "line3-a")
	must(t, os.Mkdir(dir, 0o700))
	id, err := journal.LoadIdentity(dir, line3)
	must(t, err)
	const boards = 4
	r := b.open(t, "")
	s, err := spool.Open(spool.Config{Dir: dir, Identity: id, Sink: r})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	for n := range boards {
		record := recordOf(t, "line3-a", n, n)
		_, err := s.Append(t.Context(), spool.Reading{Record: &record})
		must(t, err)
	}
	must(t, s.Checkpoint())
	compare := func(repair bool) (reconcile.Report, []reconcile.Difference) {
		t.Helper()
		c := reconcile.Config{Dir: dir, Key: id.Verifier, Registry: marked{r}}
		if repair {
			c.Repair = r
		}
		var all []reconcile.Difference
		out, err := reconcile.Run(t.Context(), c, func(d reconcile.Difference) { all = append(all, d) })
		must(t, err)
		return out, all
	}
	// An empty registry is filled from the journal.
	if out, _ := compare(true); !out.Same() || out.Repaired != boards || out.Total.Items != boards || out.Total.Objects != boards || out.Total.Guards != boards {
		t.Fatalf("filled: %+v", out)
	}
	if out, all := compare(false); !out.Same() || len(all) > 0 {
		t.Fatalf("filled: %+v", all)
	}
	goodItems, goodObjects := b.items(t), b.objects(t)

	r1, r2 := recordOf(t, "line3-a", 1, 1), recordOf(t, "line3-a", 2, 2)
	item, guard := r1.Device.String(), guardID(r1.Fingerprint())
	object := objectName(r1.Device, r1.Fingerprint())
	never := keyN(t, 77).Fingerprint() // of a board that nobody has read
	attribute := func(id, name, value string) func() {
		return func() {
			bad := maps.Clone(goodItems[id])
			bad[name] = value
			if value == "" {
				delete(bad, name)
			}
			b.set(t, bad)
		}
	}
	for _, test := range []struct {
		name   string
		spoil  func()
		finds  []reconcile.DifferenceKind
		mended bool
		detail string   // of one of them
		remove []string // what a person removes: items, guards, objects
	}{
		{"item missing", func() { b.remove(t, item) }, kinds(reconcile.DiffMissing), true, "", nil},
		{"item and guard missing", func() { b.remove(t, item); b.remove(t, guard) }, kinds(reconcile.DiffMissing), true, "", nil},
		{"item, guard and object missing", func() { b.remove(t, item); b.remove(t, guard); b.removeObject(t, object) }, kinds(reconcile.DiffMissing), true, "", nil},
		{"object missing", func() { b.removeObject(t, object) }, kinds(reconcile.DiffObject), true, "", nil},
		{"guard missing", func() { b.remove(t, guard) }, kinds(reconcile.DiffGuard), true, "", nil},
		{"guard and object missing", func() { b.remove(t, guard); b.removeObject(t, object) }, kinds(reconcile.DiffObject, reconcile.DiffGuard), true, "", nil},

		{"object empty", func() { b.setObject(t, object, "") }, kinds(reconcile.DiffObject), false, "no public key", []string{object}},
		{"object cut", func() { b.setObject(t, object, string(r1.Key.PEM()[:50])) }, kinds(reconcile.DiffObject), false, "no public key", []string{object}},
		{"object of another", func() { b.setObject(t, object, string(r2.Key.PEM())) }, kinds(reconcile.DiffObject), false, "another key: " + r2.Fingerprint().String(), []string{object}},
		{"object and a byte", func() { b.setObject(t, object, string(r1.Key.PEM())+"\n") }, kinds(reconcile.DiffObject), false, "another form", []string{object}},
		{"object endless", func() { b.setObject(t, object, strings.Repeat("A", maxFile+1)) }, kinds(reconcile.DiffObject), false, "longer than", []string{object}},

		{"points to another object", attribute(item, "pubkey-object", objectName(r2.Device, r2.Fingerprint())), kinds(reconcile.DiffItem), false, "pubkey-object", []string{item}},
		{"points to no object", attribute(item, "pubkey-object", ""), kinds(reconcile.DiffItem), false, "pubkey-object", []string{item}},
		{"points to another bucket", attribute(item, "pubkey-bucket", "another-bucket"), kinds(reconcile.DiffItem), false, "pubkey-bucket", []string{item}},
		{"of another time", attribute(item, "enrolled-at", "2020-01-01T00:00:00.000Z"), kinds(reconcile.DiffItem), false, "enrolled-at", []string{item}},
		{"of another generation", attribute(item, "generation", "7"), kinds(reconcile.DiffItem), false, "generation", []string{item}},
		{"pubkey in another form", attribute(item, "pubkey", "\n"+string(r1.Key.PEM())), kinds(reconcile.DiffDamaged), false, "pubkey", []string{item}},
		{"pubkey with more", attribute(item, "pubkey", string(r1.Key.PEM())+"\n"), kinds(reconcile.DiffItem), false, "pubkey", []string{item}},
		{"pubkey of another", attribute(item, "pubkey", string(r2.Key.PEM())), kinds(reconcile.DiffDamaged), false, "key-fingerprint", []string{item}},
		{"fingerprint missing", attribute(item, "key-fingerprint", ""), kinds(reconcile.DiffDamaged), false, "key-fingerprint", []string{item}},
		{"state unknown", attribute(item, "state", "asleep"), kinds(reconcile.DiffDamaged), false, "state", []string{item}},
		{"record of another", attribute(item, "record", goodItems[r2.Device.String()]["record"]), kinds(reconcile.DiffItem, reconcile.DiffEnvelope), false, "record", []string{item}},
		{"record with a byte more", attribute(item, "record", goodItems[item]["record"]+" "), kinds(reconcile.DiffItem, reconcile.DiffEnvelope), false, "not in its one encoding", []string{item}},
		{"record missing", attribute(item, "record", ""), kinds(reconcile.DiffUnsigned), false, "", []string{item}},
		{"wrong item, no object", func() {
			attribute(item, "pubkey-object", "x")()
			b.removeObject(t, object)
		}, kinds(reconcile.DiffItem, reconcile.DiffObject), false, "pubkey-object", []string{item}},
		{"damaged item, no guard", func() {
			attribute(item, "state", "asleep")()
			b.remove(t, guard)
		}, kinds(reconcile.DiffDamaged, reconcile.DiffGuard), false, "state", []string{item}},

		{"guard of another", attribute(guard, "device", r2.Device.String()), kinds(reconcile.DiffGuard), false, "it names device " + r2.Device.String(), []string{guard}},
		{"guard of a board that nobody read", attribute(guard, "device", deviceN(78).String()), kinds(reconcile.DiffGuard), false, "it names device", []string{guard}},
		{"guard of nothing", attribute(guard, "device", "x"), kinds(reconcile.DiffDamaged, reconcile.DiffGuard), false, "guard does not name a device", []string{guard}},
		{"foreign guard in the way of an item", func() {
			b.remove(t, item)
			attribute(guard, "device", deviceN(78).String())()
		}, kinds(reconcile.DiffMissing, reconcile.DiffGuard), false, "does not have this key", []string{guard}},
		{"guard of a key that nobody has", func() {
			b.set(t, map[string]string{"device-id": guardID(never), "device": deviceN(78).String()})
		}, kinds(reconcile.DiffGuard), false, "does not have this key", []string{guardID(never)}},
		{"second guard of a board", func() {
			b.set(t, map[string]string{"device-id": guardID(never), "device": item})
		}, kinds(reconcile.DiffGuard), false, "does not have this key", []string{guardID(never)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if strings.HasSuffix(test.name, "another bucket") && b.bucket() == "" {
				t.Skip("a folder has no bucket")
			}
			test.spoil()
			spoiledItems, spoiledObjects := b.items(t), b.objects(t)
			out, all := compare(false)
			if got := kindsOf(all); !slices.Equal(got, test.finds) || out.Same() || out.Repaired != 0 {
				t.Errorf("found %v, want %v: %+v", got, test.finds, all)
			}
			if !slices.ContainsFunc(all, func(d reconcile.Difference) bool { return strings.Contains(d.Detail, test.detail) }) {
				t.Errorf("the details are %+v, want one with %q", all, test.detail)
			}
			if diff := cmp.Diff(spoiledItems, b.items(t)); diff != "" {
				t.Errorf("comparing changed something:\n%s", diff)
			}
			out, all = compare(true)
			if got := kindsOf(all); !slices.Equal(got, test.finds) || out.Same() != test.mended {
				t.Errorf("with a repair: found %v, want %v, mended %v: %+v", got, test.finds, test.mended, all)
			}
			items, objects := b.items(t), b.objects(t)
			for id, was := range spoiledItems {
				if diff := cmp.Diff(was, items[id]); diff != "" {
					t.Errorf("the repair changed %s:\n%s", id, diff)
				}
			}
			for name, was := range spoiledObjects {
				if objects[name] != was {
					t.Errorf("the repair changed %s", name)
				}
			}
			after, _ := compare(false)
			if !slices.Equal(after.Days, out.Days) || after.Total != out.Total || after.Same() != test.mended {
				t.Errorf("the repair counts %+v, there is %+v", out.Total, after.Total)
			}
			for _, name := range test.remove {
				if strings.HasSuffix(name, ".pem") {
					b.removeObject(t, name)
				} else {
					b.remove(t, name)
				}
			}
			if out, all := compare(true); !out.Same() {
				t.Errorf("after what was wrong is removed: %+v", all)
			}
			if diff := cmp.Diff(goodItems, b.items(t)); diff != "" {
				t.Errorf("at the end (-before +now):\n%s", diff)
			}
			if diff := cmp.Diff(goodObjects, b.objects(t)); diff != "" {
				t.Errorf("at the end (-before +now):\n%s", diff)
			}
		})
	}
	check(t, b)
}

func kinds(all ...reconcile.DifferenceKind) []reconcile.DifferenceKind { return all }

func kindsOf(all []reconcile.Difference) (out []reconcile.DifferenceKind) {
	for _, d := range all {
		out = append(out, d.Kind)
	}
	return out
}
