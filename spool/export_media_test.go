package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// export signs what is in the journal and exports it.
func (k *kit) export(stick string, from uint64) Exported {
	k.t.Helper()
	if err := k.spool.Checkpoint(); err != nil {
		k.t.Fatal(err)
	}
	out, err := Export(k.dir, k.id.Verifier, stick, from)
	if err != nil {
		k.t.Fatalf("Export: %+v, %v", out, err)
	}
	return out
}

func (k *kit) bundlePath(stick string, r run) string {
	return filepath.Join(stick, "widgiot", "line3-a", r.name(endBundle))
}

func (k *kit) bundle(stick string, r run) bundle {
	k.t.Helper()
	data, err := os.ReadFile(k.bundlePath(stick, r))
	if err != nil {
		k.t.Fatal(err)
	}
	b, err := parseBundle(data)
	if err != nil {
		k.t.Fatal(err)
	}
	return b
}

func TestStickThereAndBack(t *testing.T) {
	k := newKit(t)
	var all []board.Record
	for range 5 {
		all = append(all, k.mustAppend())
	}
	stick, sink := tempDir(t), newMemorySink()
	if out := k.export(stick, 0); out.Written != 1 || out.Records != 5 || out.Entries != 6 || out.Unsigned != 0 {
		t.Errorf("Export: %+v", out)
	}
	// It goes on where it ended.
	if out := k.export(stick, 0); out.Written != 0 || out.Verified != 1 {
		t.Errorf("once more: %+v", out)
	}
	all = append(all, k.mustAppend())
	if out := k.export(stick, 0); out.Written != 1 || out.Verified != 1 || out.Records != 1 {
		t.Errorf("with a record more: %+v", out)
	}

	// The registry knows the device of one record with another key.
	sink.have[all[2].Device] = board.Fingerprint{1}
	im := newImporter(t, stick, sink, k.id.Verifier)
	if confirmed, refused := im.mustRun(); confirmed != 5 || refused != 1 || len(sink.have) != 6 {
		t.Errorf("%d confirmed, %d refused, %d in the registry", confirmed, refused, len(sink.have))
	}
	// Only what was refused is tried anew.
	tries := sink.tries
	if confirmed, refused := im.mustRun(); confirmed != 5 || refused != 1 || sink.tries != tries+1 {
		t.Errorf("once more: %d confirmed, %d refused, %d tries", confirmed, refused, sink.tries-tries)
	}
	im.Again = true
	tries = sink.tries
	if im.mustRun(); sink.tries != tries+6 {
		t.Errorf("again: %d tries", sink.tries-tries)
	}

	if sum := k.mustApply(im); sum.Confirmed != 5 || sum.Refused != 1 || sum.Already != 0 {
		t.Errorf("%+v", sum)
	}
	if s := k.spool.Stats(); s.Pending != 0 || s.Dead != 1 || s.Delivered != 5 {
		t.Errorf("%+v", s)
	}
	if sum := k.mustApply(im); sum.Confirmed != 0 || sum.Refused != 0 || sum.Already != 6 {
		t.Errorf("applied twice: %+v", sum)
	}
	letters, err := k.spool.DeadLetters()
	if err != nil || len(letters) != 1 || letters[0].Device != all[2].Device || letters[0].Known == nil || letters[0].Known.Key != (board.Fingerprint{1}).String() ||
		!strings.Contains(letters[0].Reason, "import/hq") || !strings.Contains(letters[0].Reason, board.ErrDeviceConflict.Error()) {
		t.Errorf("%+v, %v", letters, err)
	}
	// Somebody clears it up at the registry: the next receipt brings the dead
	// letter to life.
	delete(sink.have, all[2].Device)
	im.Again = false
	im.mustRun()
	k.reopen()
	if sum := k.mustApply(im); sum.Confirmed != 1 || sum.Already != 5 {
		t.Errorf("cleared up: %+v", sum)
	}
	if s := k.spool.Stats(); s.Pending != 0 || s.Dead != 0 {
		t.Errorf("%+v", s)
	}
	if _, waits, err := k.spool.Oldest(); waits || err != nil {
		t.Errorf("Oldest: %v, %v", waits, err)
	}
}

// Carried by a stick, whatever happens on the way, records come to the same end
// as delivered directly.
func TestStickIsLikeDelivery(t *testing.T) {
	for range 8 {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		k := newKit(t)
		stick, sink, direct := tempDir(t), newMemorySink(), newMemorySink()
		im := newImporter(t, stick, sink, k.id.Verifier)
		step := func(what int) {
			switch what {
			case 0, 1, 2:
				r := k.mustAppend()
				if random.IntN(4) == 0 { // known elsewhere with another key
					sink.have[r.Device], direct.have[r.Device] = board.Fingerprint{1}, board.Fingerprint{1}
				}
			case 3:
				from, waits, err := k.spool.Oldest()
				if err != nil {
					t.Fatal(err)
				}
				if waits {
					k.export(stick, from)
				}
			case 4: // the registry fails now and then, with and without having taken the record
				sink.set(func(_ board.Sealed, try int) (bool, error) {
					if random.IntN(3) == 0 {
						return random.IntN(2) == 0, errAway
					}
					return true, nil
				})
				if _, err := im.run(); err != nil && !errors.Is(err, ErrAway) && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				sink.set(nil)
			case 5:
				k.mustApply(im)
			case 6:
				k.reopen()
			}
		}
		for range 40 {
			step(random.IntN(7))
		}
		// Everything is brought to its end, and once more directly.
		copyDir := tempDir(t)
		if err := os.CopyFS(copyDir, os.DirFS(k.dir)); err != nil {
			t.Fatal(err)
		}
		os.Remove(indexPath(copyDir))
		other := &kit{t: t, dir: copyDir, id: k.id, sink: direct}
		other.mustOpen()
		other.deliver()
		step(3)
		im.mustRun()
		k.mustApply(im)
		if !reflect.DeepEqual(sink.have, direct.have) {
			t.Errorf("seed %d: the registries differ: %d and %d devices", seed, len(sink.have), len(direct.have))
		}
		dead := func(s *Spool) (all []string) {
			letters, err := s.DeadLetters()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range letters {
				all = append(all, fmt.Sprint(l.Seq, l.Device, *l.Known))
			}
			return all
		}
		if a, b := dead(k.spool), dead(other.spool); !slices.Equal(a, b) {
			t.Errorf("seed %d: dead letters %v, directly %v", seed, a, b)
		}
		a, b := k.spool.Stats(), other.spool.Stats()
		if a.Pending != 0 || b.Pending != 0 || a.Dead != b.Dead {
			t.Errorf("seed %d: %+v, directly %+v", seed, a, b)
		}
		for e, err := range journal.Walk(k.dir) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Record() == nil {
				continue
			}
			sealed, err := board.ParseEnvelope(e.Record())
			if err != nil {
				t.Fatal(err)
			}
			a, errA := k.spool.Delivered(sealed.Record().Device)
			b, errB := other.spool.Delivered(sealed.Record().Device)
			if a != b || errA != nil || errB != nil {
				t.Errorf("seed %d: device %s delivered %v, directly %v", seed, sealed.Record().Device, a, b)
			}
		}
		other.spool.Close()
	}
}

// pulled is a disk that takes so many bytes and calls, and then none.
type pulled struct {
	osDisk
	left *int
	last *string // the file that was being written
	torn *[]byte // what of it is there
}

type pulledFile struct {
	durable.File
	d pulled
}

func (d pulled) step() error {
	if *d.left--; *d.left < 0 {
		*d.left = -1
		return syscall.EIO
	}
	return nil
}

func (d pulled) Open(path string, flag int, mode fs.FileMode) (durable.File, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	*d.last, *d.torn = path, nil
	f, err := d.osDisk.Open(path, flag, mode)
	return pulledFile{f, d}, err
}

func (f pulledFile) WriteAt(b []byte, at int64) (int, error) {
	n := min(max(*f.d.left, 0), len(b))
	*f.d.left -= n
	*f.d.torn = append(*f.d.torn, b[:n]...)
	if n < len(b) {
		*f.d.left = -1
		f.File.WriteAt(b[:n], at)
		return n, syscall.EIO
	}
	return f.File.WriteAt(b, at)
}

func (f pulledFile) Sync() error {
	if err := f.d.step(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (d pulled) Rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	*d.last = ""
	return d.osDisk.Rename(from, to)
}

func (d pulled) SyncDir(dir string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.osDisk.SyncDir(dir)
}

// leave puts back what a process that could still reach the stick has tidied
// up.
func (d pulled) leave(t *testing.T) {
	t.Helper()
	if *d.last == "" {
		return
	}
	if err := os.WriteFile(*d.last, *d.torn, 0o644); err != nil {
		t.Fatal(err)
	}
}

// The stick is pulled at every byte and every step of an export, and of an
// import: nothing half-written is ever taken, and plugged in again all comes to
// its end.
func TestStickIsPulled(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	base := newImporter(t, "", nil, k.id.Verifier).ImportConfig
	stride := 1
	if testing.Short() {
		stride = 17
	}
	for budget := 0; ; budget += stride {
		stick, sink := tempDir(t), newMemorySink()
		left, last, torn := budget, "", []byte(nil)
		d := pulled{left: &left, last: &last, torn: &torn}
		im := &importer{base, t}
		im.Media, im.Sink, im.disk = stick, sink, d
		out, exportErr := exportTo(d, k.dir, k.id.Verifier, stick, 0)
		all, importErr := []Imported(nil), error(nil)
		if exportErr == nil {
			all, importErr = im.run()
		} else if !errors.Is(exportErr, syscall.EIO) || out.Written != 0 {
			t.Fatalf("after %d: Export: %+v, %v", budget, out, exportErr)
		}
		d.leave(t)
		im.disk = nil
		if exportErr != nil { // nothing, or all of it if only the last sync is missing
			if all, err := im.run(); len(sink.have) != 0 && len(sink.have) != 1 || err != nil && !errors.Is(err, fs.ErrNotExist) || len(all) > 0 && all[0].Err != nil {
				t.Fatalf("after %d: %+v, %v, and %d in the registry", budget, all, err, len(sink.have))
			}
		}
		if importErr != nil && (!errors.Is(importErr, syscall.EIO) || len(all) != 1 || all[0].Err == nil) {
			t.Fatalf("after %d: ImportStick: %+v, %v", budget, all, importErr)
		}
		receipts, err := Receipts(stick, "widgiot/line3-a")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range receipts {
			if got, _, err := openReceipt(r.Data, note.VerifierList(im.Identity.Verifier)); err != nil || len(got.answers) != 1 {
				t.Fatalf("after %d: a receipt %+v, %v", budget, got, err)
			}
		}
		if out := k.export(stick, 0); out.Damaged != 0 || out.Written+out.Verified != 1 {
			t.Fatalf("after %d: Export: %+v", budget, out)
		}
		if confirmed, _ := im.mustRun(); confirmed != 1 || len(sink.have) != 1 {
			t.Fatalf("after %d: %d confirmed", budget, confirmed)
		}
		if exportErr == nil && importErr == nil {
			if left < 0 || budget < 1000 {
				t.Fatalf("all is done after %d, with %d left", budget, left)
			}
			break
		}
	}
	if s := k.spool.Stats(); s.Pending != 1 {
		t.Errorf("%+v", s)
	}
}

// A stick that loses the end of a file although it had been synced.
func TestStickTears(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	stick, sink := tempDir(t), newMemorySink()
	k.export(stick, 0)
	path := k.bundlePath(stick, run{0, 2})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	im := newImporter(t, stick, sink, k.id.Verifier)
	for n := range len(whole) {
		if err := os.WriteFile(path, whole[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		if all, err := im.run(); err != nil || len(all) != 1 || !errors.Is(all[0].Err, ErrBundle) && !errors.Is(all[0].Err, journal.ErrTampered) || all[0].Confirmed != 0 || sink.tries != 0 {
			t.Fatalf("%d of %d bytes: %+v, %v", n, len(whole), all, err)
		}
		if n%100 == 0 || n > len(whole)-10 {
			if out := k.export(stick, 0); out.Damaged != 1 || out.Written != 1 {
				t.Fatalf("%d of %d bytes: Export: %+v", n, len(whole), out)
			}
			if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, whole) {
				t.Fatalf("%d of %d bytes: it is not written anew (%v)", n, len(whole), err)
			}
		}
	}
}

// Whatever the size, what is exported holds, and no bundle is too large.
func TestExportSplits(t *testing.T) {
	k, all := smallKit(t, 30)
	stick := tempDir(t)
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	out, err := exportSmall(k, stick)
	if err != nil || out.Records != uint64(len(all)) || out.Written < 4 {
		t.Fatalf("%+v, %v", out, err)
	}
	sink := newMemorySink()
	if confirmed, refused := newImporter(t, stick, sink, k.id.Verifier).mustRun(); confirmed != 30 || refused != 0 {
		t.Errorf("%d confirmed, %d refused", confirmed, refused)
	}
	for i, device := range sink.order {
		if device != all[i].Device {
			t.Fatalf("number %d is out of order", i)
		}
	}
	// Without some of them, those are written anew.
	runs, err := listRuns(filepath.Join(stick, "widgiot", "line3-a"))
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(k.bundlePath(stick, runs[0]))
	os.Remove(k.bundlePath(stick, runs[2]))
	if out := k.export(stick, 0); out.Written != 2 || out.Verified != len(runs)-2 {
		t.Errorf("%+v", out)
	}
	if again, err := listRuns(filepath.Join(stick, "widgiot", "line3-a")); err != nil || !slices.Equal(again, runs) {
		t.Errorf("%v, %v, want %v", again, err, runs)
	}
}

// exportSmall exports the segments one by one, as a station does over time.
func exportSmall(k *kit, stick string) (sum Exported, err error) {
	segments := k.segments()
	for i := len(segments) - 1; i >= 0; i-- {
		out, err := Export(k.dir, k.id.Verifier, stick, segments[i].First)
		if err != nil {
			return out, err
		}
		sum.Written += out.Written
		sum.Records += out.Records
	}
	return sum, nil
}

// What is damaged leaves a hole, which is filled when it was repaired.
func TestExportAroundDamage(t *testing.T) {
	k, all := smallKit(t, 14)
	k.damaged = true
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(journal.SegmentPath(k.dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	spoilSegment(t, k.dir, 0, func(b []byte) []byte { b[len(b)/2]++; return b })
	stick, sink := tempDir(t), newMemorySink()
	if out := k.export(stick, 0); out.Unread != 1 || out.Written != 2 || out.Records != 13 {
		t.Errorf("%+v", out)
	}
	im := newImporter(t, stick, sink, k.id.Verifier)
	if confirmed, _ := im.mustRun(); confirmed != 13 {
		t.Errorf("%d confirmed", confirmed)
	}
	spoilSegment(t, k.dir, 0, func([]byte) []byte { return before })
	if out := k.export(stick, 0); out.Unread != 0 || out.Written != 1 || out.Records != 1 {
		t.Errorf("after a repair: %+v", out)
	}
	if confirmed, _ := im.mustRun(); confirmed != 14 || len(sink.have) != len(all) {
		t.Errorf("after a repair: %d confirmed", confirmed)
	}
	os.Remove(journal.LeavesPath(k.dir, 0))
	spoilSegment(t, k.dir, 0, func(b []byte) []byte { b[len(b)/2]++; return b })
	if _, err := Export(k.dir, k.id.Verifier, stick, 0); !errors.Is(err, journal.ErrUnsigned) {
		t.Errorf("without the hash: %v, want %v", err, journal.ErrUnsigned)
	}
}

func TestExportRefusals(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	stick := tempDir(t)
	refused := func(what string, want error, text string) {
		t.Helper()
		before, err := os.ReadDir(filepath.Join(stick, "widgiot", "line3-a"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if out, err := Export(k.dir, k.id.Verifier, stick, 0); !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %+v, %v, want %v", what, out, err, want)
		}
		if after, err := os.ReadDir(filepath.Join(stick, "widgiot", "line3-a")); err == nil && len(after) != len(before) {
			t.Errorf("%s: something was written", what)
		}
	}
	refused("nothing signed", journal.ErrUnsigned, "no checkpoint")
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	whole := stick
	stick = filepath.Join(stick, "none")
	refused("no stick", fs.ErrNotExist, "mounted")
	stick = whole

	// A clone of this machine, which has gone another way, was here.
	copyDir := tempDir(t)
	if err := os.CopyFS(copyDir, os.DirFS(k.dir)); err != nil {
		t.Fatal(err)
	}
	clone := &kit{t: t, dir: copyDir, id: k.id, sink: newMemorySink(), receipts: map[board.DeviceID]board.Receipt{}}
	clone.mustOpen()
	defer clone.spool.Close()
	clone.mustAppend()
	clone.mustAppend()
	clone.export(stick, 0)
	refused("a journal that went on elsewhere", journal.ErrBehind, "stop one of them")
	k.mustAppend()
	k.mustAppend()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	refused("a fork", journal.ErrFork, "stop one of them")

	// Another station of the same name.
	stick = tempDir(t)
	stranger := &kit{t: t, dir: tempDir(t), sink: newMemorySink(), receipts: map[board.DeviceID]board.Receipt{}}
	var err error
	if stranger.id, err = journal.LoadIdentity(stranger.dir, "widgiot/line3-a"); err != nil {
		t.Fatal(err)
	}
	stranger.mustOpen()
	defer stranger.spool.Close()
	stranger.mustAppend()
	stranger.export(stick, 0)
	refused("another key", journal.ErrForeign, "not by the key of this station")

	stick = tempDir(t)
	k.export(stick, 0)
	release, err := claim(filepath.Join(stick, "widgiot", "line3-a"))
	if err != nil {
		t.Fatal(err)
	}
	refused("two at once", durable.ErrLocked, "in use")
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.bundlePath(stick, run{0, 9}), []byte("secretfree bundle 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("a newer bundle", board.ErrNewer, "install the newer version")

	// A bundle under another's name is damage.
	os.Remove(k.bundlePath(stick, run{0, 9}))
	if err := os.Rename(k.bundlePath(stick, run{0, 4}), k.bundlePath(stick, run{1, 5})); err != nil {
		t.Fatal(err)
	}
	if out := k.export(stick, 0); out.Damaged != 1 || out.Written != 1 {
		t.Errorf("a bundle under another name: %+v", out)
	}
	// A changed journal is not exported.
	k.damaged = true
	if err := os.WriteFile(journal.CheckpointPath(k.dir), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a checkpoint that is none", journal.ErrTampered, "")
	wrong, err := journal.Checkpoint{Size: 2, Root: k.spool.tree.Root()}.Encode(k.id.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(journal.CheckpointPath(k.dir), wrong, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("another root", journal.ErrTampered, "another root")
}
