package cloud

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"secretfree/station/board"
)

// rsaPubkey is of 2048 bits, as the reference's own test devices have them.
const rsaPubkey = `-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAzD2f2F0O4doRH9vcCzoK
7NXlO+RtQvcxKQY5/YkvupPYfw/H326safsmdPhTcjJTZ1tfo10u2QkO23bTUX8M
3zuTWdSXqN4XgXyS9leCsJvFB4qYIauUBjkwkAp3Y1yxv+DZM7bkswlvOBAFZGTx
buCgtMqumsUJerMcjHBCX5+dIjmHB+/Ft52KZ7ldP5/wvRVP6sXjmwY8/74wyaFr
8BIoQSe9a9k6cxSjG4rE94o65welz1deKXny9GfElLYeRE+zVek4636Yp5uXVtma
DroI/YHLjXL21lfmO1Ti7M+yV9YuPso2NZM38j36KPII6lTiU8Q/BIZSioFN9+5y
jwIDAQAB
-----END PUBLIC KEY-----
`

func base64Of(pem []byte) string { return base64.StdEncoding.EncodeToString(pem) }

// load writes an item as the published reference's loader does.
func load(t *testing.T, b backend, id, pubkey string) {
	t.Helper()
	b.set(t, map[string]string{"device-id": id, "pubkey": pubkey})
}

func listLoaded(t *testing.T, r registry) map[string]LegacyItem {
	t.Helper()
	all, err := r.LegacyItems(t.Context())
	must(t, err)
	out := map[string]LegacyItem{}
	last := ""
	for _, l := range all {
		if l.ID <= last {
			t.Errorf("%q comes after %q", l.ID, last)
		}
		out[l.ID], last = l, l.ID
	}
	return out
}

// importRecord is what an operator signs for an item.
func importRecord(t *testing.T, operator string, l LegacyItem) board.Sealed {
	t.Helper()
	r := recordOf(t, operator, 0, 0)
	r.Device, r.Key, r.Facts = l.Device, l.Key, map[string]string{"imported": "unsigned item"}
	return seal(t, r)
}

func testImport(t *testing.T, b backend) {
	r := b.open(t, "")
	rsaKey, err := board.ParseKeyPEM([]byte(rsaPubkey))
	must(t, err)
	pubkeys := map[string]string{
		deviceN(1).String(): base64Of(keyN(t, 1).PEM()),
		deviceN(2).String(): string(keyN(t, 2).PEM()),
		deviceN(3).String(): base64Of([]byte(rsaPubkey)),
		deviceN(4).String(): base64Of(keyN(t, 4).PEM())[:60] + "\n" + base64Of(keyN(t, 4).PEM())[60:] + "\n",
	}
	for id, pubkey := range pubkeys {
		load(t, b, id, pubkey)
	}
	must(t, r.Put(t.Context(), sealed(t, 5, 5)))
	before := b.items(t)
	listed := listLoaded(t, r)
	if diff := cmp.Diff(before, b.items(t)); diff != "" {
		t.Errorf("listing changed something (-before +after):\n%s", diff)
	}
	if len(listed) != 5 || !listed[deviceN(5).String()].Signed || listed[deviceN(3).String()].Key != rsaKey {
		t.Errorf("got %+v", listed)
	}
	for id := range pubkeys {
		l := listed[id]
		if l.Signed || l.Refused != nil || l.Device.String() != id {
			t.Fatalf("%s: got %+v", id, l)
		}
		s := importRecord(t, "operator", l)
		for range 2 { // which changes nothing more
			must(t, r.Import(t.Context(), l, s))
			e, err := r.Lookup(t.Context(), l.Device)
			must(t, err)
			want := board.Enrolment{Device: l.Device, Key: l.Key, Envelope: s.Envelope(), Station: "widgiot/operator", EnrolledAt: s.Record().ReadAt, State: board.Active, Generation: 1}
			if diff := cmp.Diff(want, e, cmp.Comparer(func(a, b board.Key) bool { return a == b })); diff != "" {
				t.Errorf("%s (-want +got):\n%s", id, diff)
			}
			if got := b.items(t)[id]["pubkey"]; got != pubkeys[id] {
				t.Errorf("%s: pubkey is %q, want it as it was: %q", id, got, pubkeys[id])
			}
		}
		must(t, r.Put(t.Context(), s)) // as a station's own
	}
	for id, l := range listLoaded(t, r) {
		if !l.Signed || l.Refused != nil {
			t.Errorf("%s: got %+v, want it signed", id, l)
		}
	}
	_, err = r.ChangeState(t.Context(), deviceN(1), changeN(1, Hold, 0))
	must(t, err)
	for e, err := range r.Enrolments(t.Context()) { // nothing contradicts its record
		if err != nil {
			t.Errorf("%s: %v", e.Device, err)
		}
	}
	check(t, b)
}

func testImportRefusals(t *testing.T, b backend) {
	r := b.open(t, "")
	must(t, r.Put(t.Context(), sealed(t, 10, 10)))
	must(t, r.Put(t.Context(), sealed(t, 11, 11)))
	key := func(n int) string { return base64Of(keyN(t, n).PEM()) }
	b.set(t, map[string]string{"device-id": guardPrefix + keyN(t, 12).Fingerprint().String(), "device": deviceN(11).String()})
	damaged := b.items(t)[deviceN(11).String()]
	damaged["state"] = "Active"
	b.set(t, damaged)
	want := map[string]error{deviceN(10).String(): nil, deviceN(11).String(): ErrDamaged}
	add := func(id string, err error, attributes map[string]string) {
		attributes["device-id"] = id
		b.set(t, attributes)
		want[id] = err
	}
	add("1", errForeignID, map[string]string{"pubkey": key(1)})
	add("1111", errForeignID, map[string]string{"pubkey": "x"})
	add(strings.ToUpper(deviceN(2).String()), errForeignID, map[string]string{"pubkey": key(2)})
	add(strings.Repeat("0", 32), errForeignID, map[string]string{"pubkey": key(3)})
	add(deviceN(1).String(), errKeyTwice, map[string]string{"pubkey": key(1)}) // with "1"
	add(deviceN(4).String(), errKeyTwice, map[string]string{"pubkey": key(4)})
	add(deviceN(5).String(), errKeyTwice, map[string]string{"pubkey": string(keyN(t, 4).PEM())})
	add(deviceN(6).String(), errKeyTwice, map[string]string{"pubkey": key(10)}) // of a device that a station enrolled
	add(deviceN(7).String(), errKeyTwice, map[string]string{"pubkey": key(12)}) // by its guard
	add(deviceN(8).String(), errNoKey, map[string]string{"pubkey": "x"})
	add(deviceN(9).String(), errNoKey, map[string]string{"note": "no key at all"})
	add(deviceN(13).String(), errMore, map[string]string{"pubkey": key(13), "state": "held"})
	add(deviceN(14).String(), errMore, map[string]string{"pubkey": key(14), "epoch": "3"})
	add(deviceN(15).String(), errMore, map[string]string{"pubkey": key(15), "pubkey-object": "x"})
	add(deviceN(16).String(), nil, map[string]string{"pubkey": key(16), "note": "which is nobody's business"})
	before := b.items(t)
	listed := listLoaded(t, r)
	if len(listed) != len(want) {
		t.Errorf("%d items are listed, want %d", len(listed), len(want))
	}
	for id, err := range want {
		l := listed[id]
		if !errors.Is(l.Refused, err) || (l.Refused == nil) != (err == nil) {
			t.Errorf("%s: got %v, want %v", id, l.Refused, err)
		}
		if l.Signed != (id == deviceN(10).String()) {
			t.Errorf("%s is signed: %v", id, l.Signed)
		}
		if err == nil && !l.Signed {
			continue
		}
		if err := r.Import(t.Context(), l, sealed(t, 1, 1)); !errors.Is(err, board.ErrRecord) {
			t.Errorf("%s was imported: %v", id, err)
		}
	}
	l := listed[deviceN(16).String()]
	for name, test := range map[string]struct {
		sealed board.Sealed
		want   error
	}{
		"record of another device": {sealed(t, 17, 16), board.ErrRecord},
		"record of another key":    {sealed(t, 16, 17), board.ErrRecord},
		"no record":                {board.Sealed{}, board.ErrRecord},
	} {
		if err := r.Import(t.Context(), l, test.sealed); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
	if diff := cmp.Diff(before, b.items(t)); diff != "" {
		t.Errorf("something was changed (-before +after):\n%s", diff)
	}
	must(t, r.Import(t.Context(), l, importRecord(t, "operator", l)))
	if got := b.items(t)[l.ID]["note"]; got != "which is nobody's business" {
		t.Errorf("the note is %q", got)
	}
	for id := range want {
		if id != deviceN(10).String() && id != l.ID {
			b.remove(t, id)
		}
	}
	for _, n := range []int{11, 12} {
		b.remove(t, guardPrefix+keyN(t, n).Fingerprint().String())
	}
	check(t, b)
}

// testImportChanged changes what is there after it was listed.
func testImportChanged(t *testing.T, b backend) {
	r := b.open(t, "")
	n := 0
	for _, test := range []struct {
		name    string
		want    error
		changed bool // and has to be taken away for the invariants
		do      func(l LegacyItem)
	}{
		{"deleted", ErrNotAsListed, false, func(l LegacyItem) { b.remove(t, l.ID) }},
		{"another key", ErrNotAsListed, true, func(l LegacyItem) { load(t, b, l.ID, base64Of(keyN(t, 1000+n).PEM())) }},
		{"the same key in another form", ErrNotAsListed, true, func(l LegacyItem) { load(t, b, l.ID, string(l.Key.PEM())) }},
		{"held", ErrNotAsListed, true, func(l LegacyItem) {
			b.set(t, map[string]string{"device-id": l.ID, "pubkey": base64Of(l.Key.PEM()), "state": "held"})
		}},
		{"an epoch", ErrNotAsListed, true, func(l LegacyItem) {
			b.set(t, map[string]string{"device-id": l.ID, "pubkey": base64Of(l.Key.PEM()), "epoch": "2"})
		}},
		{"enrolled by a station", nil, false, func(l LegacyItem) {
			b.remove(t, l.ID)
			must(t, r.Put(t.Context(), sealed(t, n, n)))
		}},
		{"enrolled with another key", board.ErrDeviceConflict, false, func(l LegacyItem) {
			b.remove(t, l.ID)
			must(t, r.Put(t.Context(), sealed(t, n, 1000+n)))
		}},
		{"its key enrolled for another", board.ErrKeyConflict, true, func(l LegacyItem) {
			must(t, r.Put(t.Context(), sealed(t, 1000+n, n)))
		}},
		{"imported by another operator", nil, false, func(l LegacyItem) {
			must(t, r.Import(t.Context(), l, importRecord(t, "other", l)))
		}},
		{"its guard is there already", nil, false, func(l LegacyItem) { // an import broke off
			b.set(t, map[string]string{"device-id": guardPrefix + l.Key.Fingerprint().String(), "device": l.ID})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n++
			load(t, b, deviceN(n).String(), base64Of(keyN(t, n).PEM()))
			l := listLoaded(t, r)[deviceN(n).String()]
			test.do(l)
			before := b.items(t)
			err := r.Import(t.Context(), l, importRecord(t, "operator", l))
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if test.want != nil {
				if diff := cmp.Diff(before, b.items(t)); diff != "" {
					t.Errorf("something was changed (-before +after):\n%s", diff)
				}
			} else if !listLoaded(t, r)[l.ID].Signed {
				t.Error("it is not signed")
			}
			if test.changed {
				b.remove(t, l.ID)
			}
		})
	}
	check(t, b)
}

// Operators who import at once: one record stays, and all are told that the
// device is enrolled.
func testRaceImports(t *testing.T, b backend) {
	load(t, b, deviceN(1).String(), base64Of(keyN(t, 1).PEM()))
	l := listLoaded(t, b.open(t, ""))[deviceN(1).String()]
	var group sync.WaitGroup
	verdicts := make([]error, racers)
	for n := range racers {
		r, s := b.open(t, ""), importRecord(t, fmt.Sprintf("operator-%d", n), l)
		group.Go(func() {
			for range 100 {
				if verdicts[n] = r.Import(context.Background(), l, s); verdicts[n] == nil {
					return
				}
			}
		})
	}
	group.Wait()
	must(t, errors.Join(verdicts...))
	check(t, b)
}

// TestImportLostAnswers fails each remote call of an import both ways.
func TestImportLostAnswers(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		n := 0
		for _, call := range []struct {
			proxy     *proxy
			operation string
			signed    bool // by another, since it was listed, so that it is read back
		}{
			{b.s3, "PUT", false}, {b.dynamo, "TransactWriteItems", false}, {b.dynamo, "GetItem", true},
		} {
			for kind, kindName := range map[fate]string{notApplied: "not applied", lostAnswer: "answer lost"} {
				for times, timesName := range map[int]string{1: "once", -1: "for a while"} {
					t.Run(call.operation+"/"+kindName+"/"+timesName, func(t *testing.T) {
						n++
						r := b.open(t, "")
						load(t, b, deviceN(n).String(), base64Of(keyN(t, n).PEM()))
						l := listLoaded(t, r)[deviceN(n).String()]
						s := importRecord(t, "operator", l)
						if call.signed {
							must(t, r.Import(t.Context(), l, s))
						}
						before := call.proxy.count(call.operation)
						call.proxy.lose(call.operation, kind, times)
						err := r.Import(t.Context(), l, s)
						call.proxy.decide(nil)
						if call.proxy.count(call.operation) == before {
							t.Fatal("the call was not made")
						}
						applied := call.operation == "TransactWriteItems" && kind == lostAnswer
						if times == 1 || applied {
							must(t, err)
						} else if err == nil || !strings.Contains(err.Error(), "no answer from AWS") {
							t.Errorf("got %v, want an error that passes", err)
						}
						if got, want := listLoaded(t, r)[l.ID].Signed, times == 1 || applied || call.signed; got != want {
							t.Errorf("it is signed: %v, want %v", got, want)
						}
						must(t, r.Import(t.Context(), l, s))
						if got := b.items(t)[l.ID]["record"]; got != string(s.Envelope()) {
							t.Errorf("the record is %q", got)
						}
					})
				}
			}
		}
		check(t, b)
	})
}

// TestDirImportCrash breaks an import off after each of its steps. It can be
// listed and done again, and no other device gets the key meanwhile.
func TestDirImportCrash(t *testing.T) {
	prepared := func(t *testing.T) (*dirStore, LegacyItem) {
		b := newDirStore(t)
		load(t, b, deviceN(1).String(), base64Of(keyN(t, 1).PEM()))
		return b, listLoaded(t, b.openDir(t, ""))[deviceN(1).String()]
	}
	b, l := prepared(t)
	d := b.openDir(t, "")
	whole := cutAt(d, 1<<20)
	must(t, d.Import(t.Context(), l, importRecord(t, "operator", l)))
	if len(*whole) != 6 {
		t.Fatalf("an import has %d steps, want 6: %q", len(*whole), *whole)
	}
	for n, step := range *whole {
		t.Run(fmt.Sprintf("%d %s", n, filepath.Base(step)), func(t *testing.T) {
			b, l := prepared(t)
			d := b.openDir(t, "")
			cutAt(d, n)
			if err := d.Import(t.Context(), l, importRecord(t, "operator", l)); !errors.Is(err, errCrash) {
				t.Fatalf("got %v, want the crash", err)
			}
			again := listLoaded(t, b.openDir(t, ""))[l.ID]
			if again.Refused != nil || again.Signed != (n == 5) {
				t.Fatalf("after the crash: %+v", again)
			}
			_, err := os.Lstat(b.file(guardPrefix + l.Key.Fingerprint().String()))
			guarded := err == nil
			if err := b.openDir(t, "").Put(t.Context(), sealed(t, 2, 1)); guarded && !errors.Is(err, board.ErrKeyConflict) {
				t.Errorf("its key for another: got %v, want ErrKeyConflict", err)
			} else if !guarded {
				must(t, err) // it came first
				if err := b.openDir(t, "").Import(t.Context(), l, importRecord(t, "operator", l)); !errors.Is(err, board.ErrKeyConflict) {
					t.Errorf("got %v, want ErrKeyConflict", err)
				}
				b.remove(t, l.ID)
				check(t, b)
				return
			}
			must(t, b.openDir(t, "").Import(t.Context(), l, importRecord(t, "operator", l)))
			tidy(t, b)
			check(t, b)
		})
	}
}

func TestDirImportFailures(t *testing.T) {
	b := newDirStore(t)
	d := b.openDir(t, "")
	load(t, b, deviceN(1).String(), base64Of(keyN(t, 1).PEM()))
	l := listLoaded(t, d)[deviceN(1).String()]
	d.cut = func(string) error { return syscall.ENOSPC }
	if err := d.Import(t.Context(), l, importRecord(t, "operator", l)); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("got %v", err)
	}
	d.cut = nil
	// The name of a file is the id that counts.
	wrong := maps.Clone(b.items(t)[deviceN(1).String()])
	must(t, os.WriteFile(filepath.Join(b.path, "items", deviceN(2).String()+".json"), []byte(`{"device-id":"`+wrong["device-id"]+`","pubkey":"x"}`), 0o644))
	if got := listLoaded(t, d)[deviceN(2).String()]; !errors.Is(got.Refused, ErrDamaged) {
		t.Errorf("an item under another's name: %+v", got)
	}
	b.remove(t, deviceN(2).String())
	must(t, os.Rename(b.path, b.path+"-away"))
	if _, err := d.LegacyItems(t.Context()); !errors.Is(err, ErrNoRegistry) {
		t.Errorf("the folder is away: got %v", err)
	}
	must(t, os.Rename(b.path+"-away", b.path))
	must(t, d.Import(t.Context(), l, importRecord(t, "operator", l)))
	check(t, b)
}
