package cloud

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"secretfree/station/board"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestConformance is the contract of a registry, run on each of them.
func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, b backend)
	}{
		{"put, then look up", testPutLookup},
		{"nothing there", testNotEnrolled},
		{"exact items", testGolden},
		{"repeat", testRepeat},
		{"another station", testAnotherStation},
		{"device conflict", testDeviceConflict},
		{"key conflict", testKeyConflict},
		{"state stays", testStateStays},
		{"item deleted on purpose", testItemDeleted},
		{"largest record", testLargestRecord},
		{"refused records", testRefusedRecords},
		{"items that no station wrote", testUnsigned},
		{"damage", testDamage},
		{"damaged object", testDamagedObject},
		{"race for a device", testRaceDevice},
		{"race for a key", testRaceKey},
		{"race of the same", testRaceSame},
		{"batch", testBatch},
		{"batch with every verdict", testBatchVerdicts},
		{"batch with duplicates", testBatchDuplicates},
		{"batch as a row of puts", testBatchModel},
		{"race of two stations", testRaceStations},
		{"list", testList},
		{"list damage", testListDamage},
		{"change of state", testChangeState},
		{"every action in every state", testTransitions},
		{"changes that are none", testChangeRefusals},
		{"same change again", testChangeAgain},
		{"full history", testFullHistory},
		{"damaged history", testDamagedHistory},
		{"exact history", testHistoryGolden},
		{"changes as a plain model", testChangeModel},
		{"race of operators", testRaceOperators},
		{"race of transfers", testRaceTransfers},
		{"import", testImport},
		{"import of what cannot be", testImportRefusals},
		{"import of what changed", testImportChanged},
		{"race of imports", testRaceImports},
		{"compared with a journal and repaired", testReconcile},
		{"conditions are probed", testProbe},
		{"archive", testArchive},
		{"archive of a copy", testArchiveForked},
		{"archive refusals", testArchiveRefusals},
		{"archive of two copies at once", testArchiveRace},
		{"accepted checkpoint", testAcceptedCheckpoint},
		{"race for the accepted checkpoint", testAcceptedRace},
	} {
		t.Run(test.name, func(t *testing.T) { onEveryBackend(t, test.run) })
	}
}

func testPutLookup(t *testing.T, b backend) {
	for _, writes := range []PubkeyFormat{"", PubkeyBase64PEM, PubkeyPEM} {
		s := sealed(t, len(writes), len(writes))
		must(t, b.open(t, writes).Put(t.Context(), s))
		for _, reads := range []PubkeyFormat{PubkeyBase64PEM, PubkeyPEM} {
			e, err := b.open(t, reads).Lookup(t.Context(), s.Record().Device)
			must(t, err)
			want := board.Enrolment{
				Device: s.Record().Device, Key: s.Record().Key, Envelope: s.Envelope(), Station: "widgiot/line3-a",
				EnrolledAt: s.Record().ReadAt, State: board.Active, Generation: 1,
			}
			if diff := cmp.Diff(want, e, cmp.Comparer(func(a, b board.Key) bool { return a == b })); diff != "" {
				t.Errorf("written as %q, read by %q (-want +got):\n%s", writes, reads, diff)
			}
		}
	}
	check(t, b)
}

func testNotEnrolled(t *testing.T, b backend) {
	if _, err := b.open(t, "").Lookup(t.Context(), deviceN(1)); !errors.Is(err, board.ErrNotEnrolled) {
		t.Errorf("got %v, want ErrNotEnrolled", err)
	}
}

// testGolden pins names, forms and bytes of everything that is stored.
func testGolden(t *testing.T, b backend) {
	for n, format := range []PubkeyFormat{PubkeyBase64PEM, PubkeyPEM} {
		s := sealed(t, n, n)
		must(t, b.open(t, format).Put(t.Context(), s))
		guardKey := guardPrefix + s.Record().Fingerprint().String()
		for id, name := range map[string]string{
			s.Record().Device.String(): "testdata/item-" + string(format) + ".json",
			guardKey:                   "testdata/guard-" + string(format) + ".json",
		} {
			if d, ok := b.(*dirStore); ok {
				got, err := os.ReadFile(d.file(id))
				must(t, err)
				if *update {
					must(t, os.WriteFile(name, got, 0o644))
				}
				want, err := os.ReadFile(name)
				must(t, err)
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
				continue
			}
			golden, err := os.ReadFile(name)
			must(t, err)
			want := attributesOf(t, golden)
			if _, isGuard := want["device"]; !isGuard {
				want["pubkey-bucket"] = b.bucket()
			}
			if diff := cmp.Diff(want, b.items(t)[id]); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		object := "pubkeys/" + s.Record().Device.String() + "/" + s.Record().Fingerprint().String() + ".pem"
		if got := b.objects(t)[object]; got != string(s.Record().Key.PEM()) {
			t.Errorf("object %s is %q", object, got)
		}
	}
	check(t, b)
}

func testRepeat(t *testing.T, b backend) {
	s := sealed(t, 1, 1)
	must(t, b.open(t, "").Put(t.Context(), s))
	before := b.items(t)
	for _, format := range []PubkeyFormat{PubkeyBase64PEM, PubkeyPEM} {
		must(t, b.open(t, format).Put(t.Context(), s))
	}
	if diff := cmp.Diff(before, b.items(t)); diff != "" {
		t.Errorf("a repeat changed something (-before +after):\n%s", diff)
	}
	check(t, b)
}

// The first station stays: the same board with the same key is enrolled,
// whoever read it.
func testAnotherStation(t *testing.T, b backend) {
	must(t, b.open(t, "").Put(t.Context(), sealed(t, 1, 1)))
	before := b.items(t)
	must(t, b.open(t, "").Put(t.Context(), seal(t, recordOf(t, "line4", 1, 1))))
	if diff := cmp.Diff(before, b.items(t)); diff != "" {
		t.Errorf("the second station changed something (-before +after):\n%s", diff)
	}
	check(t, b)
}

func wantConflict(t *testing.T, err error, want board.Conflict) {
	t.Helper()
	got, ok := errors.AsType[*board.Conflict](err)
	if !ok || !errors.Is(err, want.Kind) {
		t.Fatalf("got %v, want a conflict of the kind %v", err, want.Kind)
	}
	if *got != want {
		t.Errorf("got the conflict %+v, want %+v", *got, want)
	}
}

func testDeviceConflict(t *testing.T, b backend) {
	r := b.open(t, "")
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	must(t, r.Put(t.Context(), sealed(t, 3, 3)))
	before := b.items(t)
	// Key 3 is another device's besides: the device is named first.
	for _, key := range []int{2, 3} {
		wantConflict(t, r.Put(t.Context(), sealed(t, 1, key)), board.Conflict{
			Kind: board.ErrDeviceConflict, Device: deviceN(1), Key: keyN(t, key).Fingerprint(),
			KnownDevice: deviceN(1), KnownKey: keyN(t, 1).Fingerprint(), KnownBy: "widgiot/line3-a",
		})
	}
	if diff := cmp.Diff(before, b.items(t)); diff != "" {
		t.Errorf("a refused record changed something (-before +after):\n%s", diff)
	}
	check(t, b)
}

func testKeyConflict(t *testing.T, b backend) {
	r := b.open(t, "")
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	before := b.items(t)
	wantConflict(t, r.Put(t.Context(), sealed(t, 2, 1)), board.Conflict{
		Kind: board.ErrKeyConflict, Device: deviceN(2), Key: keyN(t, 1).Fingerprint(),
		KnownDevice: deviceN(1), KnownKey: keyN(t, 1).Fingerprint(), KnownBy: "widgiot/line3-a",
	})
	if diff := cmp.Diff(before, b.items(t)); diff != "" {
		t.Errorf("a refused record changed something (-before +after):\n%s", diff)
	}
	if _, err := r.Lookup(t.Context(), deviceN(2)); !errors.Is(err, board.ErrNotEnrolled) {
		t.Errorf("the refused device: got %v, want ErrNotEnrolled", err)
	}
	check(t, b)
}

func testStateStays(t *testing.T, b backend) {
	r := b.open(t, "")
	s := sealed(t, 1, 1)
	must(t, r.Put(t.Context(), s))
	for _, state := range []board.State{board.Held, board.Scrapped, board.Revoked} {
		changed := b.items(t)[s.Record().Device.String()]
		changed["state"] = string(state)
		b.set(t, changed)
		must(t, r.Put(t.Context(), s))
		must(t, r.Put(t.Context(), seal(t, recordOf(t, "line4", 1, 1))))
		e, err := r.Lookup(t.Context(), s.Record().Device)
		must(t, err)
		if e.State != state {
			t.Errorf("after a repeat the state is %s, want %s", e.State, state)
		}
	}
	check(t, b)
}

func testItemDeleted(t *testing.T, b backend) {
	r := b.open(t, "")
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	b.remove(t, deviceN(1).String())
	wantConflict(t, r.Put(t.Context(), sealed(t, 2, 1)), board.Conflict{
		Kind: board.ErrKeyConflict, Device: deviceN(2), Key: keyN(t, 1).Fingerprint(),
		KnownDevice: deviceN(1), KnownKey: keyN(t, 1).Fingerprint(),
	})
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	check(t, b)
}

func testLargestRecord(t *testing.T, b backend) {
	record := recordOf(t, "line3-a", 1, 1)
	record.Facts = map[string]string{}
	for n := range 32 {
		record.Facts[fmt.Sprintf("fact-%02d", n)] = strings.Repeat(`"`, 200) // doubled by JSON
	}
	s := seal(t, record)
	must(t, b.open(t, "").Put(t.Context(), s))
	e, err := b.open(t, "").Lookup(t.Context(), record.Device)
	must(t, err)
	if string(e.Envelope) != string(s.Envelope()) {
		t.Error("the envelope came back changed")
	}
	check(t, b)
}

func testRefusedRecords(t *testing.T, b backend) {
	if err := b.open(t, "").Put(t.Context(), board.Sealed{}); !errors.Is(err, board.ErrEnvelope) {
		t.Errorf("no record: got %v, want ErrEnvelope", err)
	}
	if len(b.items(t))+len(b.objects(t)) != 0 {
		t.Error("a refused record left something")
	}
}

// testUnsigned is about items as the published reference's loader writes them.
func testUnsigned(t *testing.T, b backend) {
	r := b.open(t, "")
	text := string(keyN(t, 1).PEM())
	for name, pubkey := range map[string]string{"PEM": text, "base64": base64.StdEncoding.EncodeToString([]byte(text))} {
		loaded := map[string]string{"device-id": deviceN(1).String(), "pubkey": pubkey}
		b.set(t, loaded)
		e, err := r.Lookup(t.Context(), deviceN(1))
		if err != nil || e.Key != keyN(t, 1) || len(e.Envelope) != 0 || e.State != "" {
			t.Errorf("%s: got %+v, %v", name, e, err)
		}
		if err := r.Put(t.Context(), sealed(t, 1, 1)); !errors.Is(err, ErrUnsigned) || errors.Is(err, board.ErrDeviceConflict) {
			t.Errorf("%s, same key: got %v, want ErrUnsigned", name, err)
		}
		wantConflict(t, r.Put(t.Context(), sealed(t, 1, 2)), board.Conflict{
			Kind: board.ErrDeviceConflict, Device: deviceN(1), Key: keyN(t, 2).Fingerprint(),
			KnownDevice: deviceN(1), KnownKey: keyN(t, 1).Fingerprint(),
		})
		if diff := cmp.Diff(map[string]map[string]string{deviceN(1).String(): loaded}, b.items(t)); diff != "" {
			t.Errorf("%s: a Put changed it (-before +after):\n%s", name, diff)
		}
	}
	// What the error asks for helps.
	b.remove(t, deviceN(1).String())
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	check(t, b)
}

// testDamage changes one attribute after another: no Lookup believes it, no Put
// takes it for its own, and none takes it for a conflict, because somebody can
// put it right.
func testDamage(t *testing.T, b backend) {
	s, r := sealed(t, 1, 1), b.open(t, "")
	must(t, r.Put(t.Context(), s))
	device, guardKey := deviceN(1).String(), guardPrefix+s.Record().Fingerprint().String()
	good := b.items(t)
	for _, test := range []struct {
		name, id, attribute, value string // an empty value takes the attribute away
		lookup                     bool   // Lookup sees it too
	}{
		{"pubkey of another", device, "pubkey", string(keyN(t, 2).PEM()), true},
		{"pubkey is no key", device, "pubkey", "AAAA", true},
		{"pubkey is no base64", device, "pubkey", "?", true},
		{"pubkey missing", device, "pubkey", "", true},
		{"pubkey too long", device, "pubkey", strings.Repeat("A", maxPubkey+4), true},
		{"fingerprint of another", device, "key-fingerprint", keyN(t, 2).Fingerprint().String(), true},
		{"fingerprint missing", device, "key-fingerprint", "", true},
		{"station is no origin", device, "station", "line3-a", true},
		{"station missing", device, "station", "", true},
		{"time of another form", device, "enrolled-at", "2026-11-24 10:20:30", true},
		{"state unknown", device, "state", "Active", true},
		{"state missing", device, "state", "", true},
		{"generation 0", device, "generation", "0", true},
		{"generation a fraction", device, "generation", "1.5", true},
		{"generation missing", device, "generation", "", true},
		{"record too long", device, "record", strings.Repeat("A", board.MaxEnvelope+1), true},
		{"record is no envelope", device, "record", "{}", false}, // the issuer opens it
		{"record of another", device, "record", string(sealed(t, 2, 2).Envelope()), false},
		{"guard of another", guardKey, "device", deviceN(2).String(), false},
		{"guard names no device", guardKey, "device", "x", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			bad := maps.Clone(good[test.id])
			bad[test.attribute] = test.value
			if test.value == "" {
				delete(bad, test.attribute)
			}
			b.set(t, bad)
			err := r.Put(t.Context(), s)
			if _, conflict := errors.AsType[*board.Conflict](err); !errors.Is(err, ErrDamaged) || conflict {
				t.Errorf("Put: got %v, want ErrDamaged", err)
			}
			_, err = whole(func() (board.Enrolment, error) { return r.Lookup(t.Context(), s.Record().Device) })
			if errors.Is(err, ErrDamaged) != test.lookup || err != nil != test.lookup {
				t.Errorf("Lookup: got %v, want an error: %v", err, test.lookup)
			}
			b.set(t, good[test.id])
			must(t, r.Put(t.Context(), s))
		})
	}
	t.Run("guard missing", func(t *testing.T) {
		b.remove(t, guardKey)
		if err := r.Put(t.Context(), s); !errors.Is(err, ErrDamaged) {
			t.Errorf("Put: got %v, want ErrDamaged", err)
		}
		b.set(t, good[guardKey])
	})
	check(t, b)
}

func testDamagedObject(t *testing.T, b backend) {
	s, r := sealed(t, 1, 1), b.open(t, "")
	name := objectName(s.Record().Device, s.Record().Fingerprint())
	for _, bad := range []string{"", string(keyN(t, 2).PEM()), string(keyN(t, 1).PEM()) + "\n"} {
		b.setObject(t, name, bad)
		if err := r.Put(t.Context(), s); !errors.Is(err, ErrDamaged) {
			t.Errorf("object %q: got %v, want ErrDamaged", bad, err)
		}
		if len(b.items(t)) != 0 {
			t.Errorf("object %q: the device was enrolled", bad)
		}
	}
	b.setObject(t, name, string(keyN(t, 1).PEM()))
	must(t, r.Put(t.Context(), s))
	check(t, b)
}

const racers = 16

// race lets everyone put at once and returns the verdicts. Errors that pass are
// tried again, as the spool does.
func race(t *testing.T, b backend, records []board.Sealed) []error {
	t.Helper()
	verdicts := make([]error, len(records))
	var group sync.WaitGroup
	for n, s := range records {
		r := b.open(t, "")
		group.Go(func() {
			for range 100 {
				verdicts[n] = r.Put(context.Background(), s)
				if _, conflict := errors.AsType[*board.Conflict](verdicts[n]); verdicts[n] == nil || conflict {
					return
				}
			}
		})
	}
	group.Wait()
	return verdicts
}

func oneWins(t *testing.T, verdicts []error, loss error) (winner int) {
	t.Helper()
	winner = -1
	for n, err := range verdicts {
		switch {
		case err == nil && winner < 0:
			winner = n
		case err == nil:
			t.Errorf("%d and %d both won", winner, n)
		case !errors.Is(err, loss):
			t.Errorf("%d: got %v, want %v", n, err, loss)
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	return winner
}

func testRaceDevice(t *testing.T, b backend) {
	var records []board.Sealed
	for n := range racers {
		records = append(records, sealed(t, 1, n))
	}
	winner := oneWins(t, race(t, b, records), board.ErrDeviceConflict)
	e, err := b.open(t, "").Lookup(t.Context(), deviceN(1))
	must(t, err)
	if e.Key != records[winner].Record().Key {
		t.Error("the key that is stored is not the winner's")
	}
	check(t, b)
}

func testRaceKey(t *testing.T, b backend) {
	var records []board.Sealed
	for n := range racers {
		records = append(records, sealed(t, n, 1))
	}
	oneWins(t, race(t, b, records), board.ErrKeyConflict)
	if got := len(b.items(t)); got != 2 {
		t.Errorf("%d items and guards, want 2", got)
	}
	check(t, b)
}

func testRaceSame(t *testing.T, b backend) {
	var records []board.Sealed
	for n := range racers {
		records = append(records, seal(t, recordOf(t, fmt.Sprintf("line-%d", n), 1, 1)))
	}
	for n, err := range race(t, b, records) {
		if err != nil {
			t.Errorf("%d: %v", n, err)
		}
	}
	check(t, b)
}
