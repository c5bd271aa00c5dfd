package cloud

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"secretfree/spool/journal"
	"slices"
	"strings"
	"sync"
	"testing"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"golang.org/x/mod/sumdb/note"
)

const line3 = "widgiot/line3-a"

// checkpointOf is a checkpoint whose root is 32 times a letter, signed by a key
// that depends on the number.
func checkpointOf(t testing.TB, origin string, size uint64, root byte, key int) []byte {
	t.Helper()
	private, _, err := note.GenerateKey(seed(key), origin)
	must(t, err)
	signer, err := note.NewSigner(private)
	must(t, err)
	out, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{root}, 32)))}, signer)
	must(t, err)
	return out
}

func listSegments(t *testing.T, r registry, origin string) (out []Segment) {
	t.Helper()
	for s, err := range r.Segments(t.Context(), origin) {
		must(t, err)
		out = append(out, s)
	}
	return out
}

func testArchive(t *testing.T, b backend) {
	r := b.open(t, "")
	for name, get := range map[string]func() ([]byte, error){
		"segment":    func() ([]byte, error) { return r.Segment(t.Context(), line3, 0) },
		"checkpoint": func() ([]byte, error) { return r.LatestCheckpoint(t.Context(), line3) },
	} {
		if _, err := get(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of nothing: got %v, want fs.ErrNotExist", name, err)
		}
	}
	if got := listSegments(t, r, line3); len(got) != 0 {
		t.Errorf("segments of nothing: %v", got)
	}

	big := bytes.Repeat([]byte("a line of the journal\n"), 20_000)
	last := uint64(1<<64 - 1)
	want := []Segment{{0, 9}, {10, 10}, {11, 99}, {100, last}}
	for range 2 { // for the first time, and again
		for _, s := range []int{2, 0, 3, 1} {
			must(t, r.PutSegment(t.Context(), line3, want[s].First, want[s].Last, append(big, byte(s))))
		}
		for _, size := range []uint64{100, 10, 9, 2000} {
			must(t, r.PutCheckpoint(t.Context(), line3, size, checkpointOf(t, line3, size, 'A', 1)))
		}
		must(t, r.PutSegment(t.Context(), "widgiot/line3", 0, 8, []byte("another's")))
	}
	must(t, r.PutCheckpoint(t.Context(), line3, 2000, checkpointOf(t, line3, 2000, 'A', 2))) // the same root, signed anew

	if got := listSegments(t, b.open(t, ""), line3); !slices.Equal(got, want) {
		t.Errorf("got the segments %v, want %v", got, want)
	}
	for s := range want {
		got, err := r.Segment(t.Context(), line3, want[s].First)
		if err != nil || !bytes.Equal(got, append(big, byte(s))) {
			t.Errorf("segment %d: got %d bytes, %v", s, len(got), err)
		}
	}
	got, err := r.LatestCheckpoint(t.Context(), line3)
	if err != nil || !bytes.Equal(got, checkpointOf(t, line3, 2000, 'A', 1)) {
		t.Errorf("got the checkpoint %q, %v", got, err)
	}
	for range r.Segments(t.Context(), line3) {
		break // which is allowed
	}

	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	var names []string
	for name := range b.objects(t) {
		if strings.HasPrefix(name, "journal/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if wantNames := []string{
		"journal/line3-a/00000000000000000000-00000000000000000009.jsonl",
		"journal/line3-a/00000000000000000009.checkpoint",
		"journal/line3-a/00000000000000000010-00000000000000000010.jsonl",
		"journal/line3-a/00000000000000000010.checkpoint",
		"journal/line3-a/00000000000000000011-00000000000000000099.jsonl",
		"journal/line3-a/00000000000000000100-18446744073709551615.jsonl",
		"journal/line3-a/00000000000000000100.checkpoint",
		"journal/line3-a/00000000000000002000.checkpoint",
		"journal/line3/00000000000000000000-00000000000000000008.jsonl",
	}; !slices.Equal(names, wantNames) {
		t.Errorf("got the names\n%s\nwant\n%s", strings.Join(names, "\n"), strings.Join(wantNames, "\n"))
	}
}

// Two machines with one image go on in the same segment, each in its own way.
func testArchiveForked(t *testing.T, b backend) {
	r := b.open(t, "")
	text := []byte("1\n2\n3\n")
	must(t, r.PutSegment(t.Context(), line3, 0, 9, text))
	must(t, r.PutCheckpoint(t.Context(), line3, 10, checkpointOf(t, line3, 10, 'A', 1)))
	before := b.objects(t)
	for name, err := range map[string]error{
		"other content":          r.PutSegment(t.Context(), line3, 0, 9, []byte("1\n2\n4\n")),
		"shorter":                r.PutSegment(t.Context(), line3, 0, 9, text[:4]),
		"longer":                 r.PutSegment(t.Context(), line3, 0, 9, append(slices.Clone(text), '4')),
		"empty":                  r.PutSegment(t.Context(), line3, 0, 9, nil),
		"sealed earlier":         r.PutSegment(t.Context(), line3, 0, 8, text),
		"sealed later":           r.PutSegment(t.Context(), line3, 0, 10, text),
		"other root":             r.PutCheckpoint(t.Context(), line3, 10, checkpointOf(t, line3, 10, 'B', 1)),
		"station of another SKU": r.PutCheckpoint(t.Context(), "gadget/line3-a", 10, checkpointOf(t, "gadget/line3-a", 10, 'A', 1)),
	} {
		if !errors.Is(err, journal.ErrFork) || !strings.Contains(err.Error(), "line3-a") {
			t.Errorf("%s: got %v, want ErrFork", name, err)
		}
	}
	after := b.objects(t)
	if len(before) != 2 || len(after) != 2 {
		t.Errorf("%d objects, then %d", len(before), len(after))
	}
	for name, content := range before {
		if after[name] != content {
			t.Errorf("%s was changed", name)
		}
	}
	// Somebody put a second one there.
	b.setObject(t, "journal/line3-a/"+Segment{0, 5}.name(), "1\n")
	if _, err := r.Segment(t.Context(), line3, 0); !errors.Is(err, journal.ErrFork) {
		t.Errorf("two segments: got %v, want ErrFork", err)
	}
	if err := r.PutSegment(t.Context(), line3, 0, 9, text); !errors.Is(err, journal.ErrFork) {
		t.Errorf("two segments, again: got %v, want ErrFork", err)
	}
	b.setObject(t, "journal/line3-a/00000000000000000020.checkpoint", "garbage")
	if err := r.PutCheckpoint(t.Context(), line3, 20, checkpointOf(t, line3, 20, 'A', 1)); !errors.Is(err, ErrDamaged) || errors.Is(err, journal.ErrFork) {
		t.Errorf("a checkpoint over garbage: got %v, want ErrDamaged", err)
	}
}

func testArchiveRefusals(t *testing.T, b backend) {
	r := b.open(t, "")
	good := checkpointOf(t, line3, 5, 'A', 1)
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"no origin", r.PutSegment(t.Context(), "", 0, 1, nil), "name"},
		{"a path", r.PutSegment(t.Context(), "widgiot/../x", 0, 1, nil), "name"},
		{"a path", r.PutCheckpoint(t.Context(), "widgiot/../x", 5, good), "name"},
		{"backwards", r.PutSegment(t.Context(), line3, 2, 1, nil), "entries 2 to 1"},
		{"too long", r.PutSegment(t.Context(), line3, 0, 1, make([]byte, MaxSegment+1)), "at most"},
		{"no checkpoint", r.PutCheckpoint(t.Context(), line3, 5, []byte("x")), "no checkpoint"},
		{"no size", r.PutCheckpoint(t.Context(), line3, 5, []byte(line3+"\n05\nAAAA\n\nsignature")), "no size"},
		{"other size", r.PutCheckpoint(t.Context(), line3, 6, good), "over 5 entries"},
		{"other origin", r.PutCheckpoint(t.Context(), "widgiot/line4", 5, good), "of \"widgiot/line3-a\""},
		{"reading a path", errOf(r.Segment(t.Context(), "widgiot/../x", 0)), "name"},
		{"reading a path", errOf(r.LatestCheckpoint(t.Context(), "widgiot/../x")), "name"},
		{"reading something too long", func() error {
			b.setObject(t, "journal/line3-a/00000000000000000020.checkpoint", strings.Repeat("x", maxCheckpoint+1))
			return errOf(r.LatestCheckpoint(t.Context(), line3))
		}(), "longer than"},
		{"listing a path", func() (err error) {
			for _, err = range r.Segments(t.Context(), "widgiot/../x") {
			}
			return err
		}(), "name"},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) || errors.Is(test.err, journal.ErrFork) {
			t.Errorf("%s: got %v, want %q", test.name, test.err, test.want)
		}
	}
	if got := b.objects(t); len(got) != 1 {
		t.Errorf("something was stored: %d objects", len(got))
	}
}

func errOf(_ []byte, err error) error { return err }

// At least one of two copies finds out, and what is there is whole.
func testArchiveRace(t *testing.T, b backend) {
	for round, same := range []bool{true, false, true, false} {
		origin := fmt.Sprintf("widgiot/line%d", round)
		var results [2]error
		var group sync.WaitGroup
		for n := range results {
			r := b.open(t, "")
			group.Go(func() {
				last := uint64(100)
				if !same {
					last += uint64(n)
				}
				for range 20 {
					results[n] = r.PutSegment(t.Context(), origin, 50, last, bytes.Repeat([]byte{byte('0' + n)}, 1000))
					if results[n] == nil || errors.Is(results[n], journal.ErrFork) {
						return
					}
				}
			})
		}
		group.Wait()
		forked := 0
		for n, err := range results {
			if errors.Is(err, journal.ErrFork) {
				forked++
			} else if err != nil {
				t.Errorf("%s, copy %d: %v", origin, n, err)
			}
		}
		if forked == 0 || same && forked != 1 {
			t.Errorf("%s: %d of 2 copies noticed the other", origin, forked)
		}
		for name, content := range b.objects(t) {
			if strings.HasPrefix(name, "journal/") && strings.Count(content, content[:1]) != 1000 {
				t.Errorf("%s is not whole", name)
			}
		}
	}
}

// A copy that seals its segment after the look and before the write is noticed
// by the second look.
func TestArchiveBetween(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		var first error
		b.s3.decide(func(r *http.Request) fate {
			if r.Method == http.MethodPut {
				first = b.raw.PutSegment(context.Background(), line3, 50, 99, []byte("the copy's"))
			}
			return passed
		})
		err := b.open(t, "").PutSegment(t.Context(), line3, 50, 100, []byte("ours"))
		b.s3.decide(nil)
		must(t, first)
		if !errors.Is(err, journal.ErrFork) {
			t.Errorf("got %v, want ErrFork", err)
		}
	})
}

// Each remote call of the archive fails in each way; the same call again brings
// it to its end.
func TestArchiveFaults(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		r, n := once(b.open(t, "").(*AWS)), uint64(0)
		segment := []byte("1\n2\n")
		for name, put := range map[string]func(n uint64) error{
			"segment":    func(n uint64) error { return r.PutSegment(t.Context(), line3, n, n, segment) },
			"checkpoint": func(n uint64) error { return r.PutCheckpoint(t.Context(), line3, n, checkpointOf(t, line3, n, 'A', 1)) },
		} {
			for operation, there := range map[string]bool{http.MethodPut: false, http.MethodGet: true} {
				for f, want := range map[fate]string{
					notApplied: "no answer", lostAnswer: "no answer", serverFault: "fault of its own", serverLies: "fault of its own",
					throttled: "slow down", contested: "another writer", denied: "make sure that the bucket is yours", cutAnswer: "",
				} {
					n++
					if there {
						must(t, put(n))
					}
					b.s3.lose(operation, f, -1)
					err := put(n)
					b.s3.decide(nil)
					if f != cutAnswer && (err == nil || !strings.Contains(err.Error(), want)) {
						t.Errorf("%s, %s: got %v, want %q", name, operation, err, want)
					}
					if errors.Is(err, journal.ErrFork) || errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s, %s, fate %d: got a verdict: %v", name, operation, f, err)
					}
					if err := put(n); err != nil {
						t.Errorf("%s, %s, fate %d, again: %v", name, operation, f, err)
					}
				}
			}
		}
		b.s3.lose(http.MethodGet, cutAnswer, 1)
		if _, err := r.LatestCheckpoint(t.Context(), line3); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a list cut short: got %v", err)
		}
		b.s3.decide(func(r *http.Request) fate {
			if r.URL.Query().Has("list-type") {
				return passed
			}
			return cutAnswer
		})
		if _, err := r.LatestCheckpoint(t.Context(), line3); err == nil || !strings.Contains(err.Error(), "reading s3://") {
			t.Errorf("an object cut short: got %v", err)
		}
	})
}

// A segment is sent over a slow line too.
func TestArchivePatience(t *testing.T) {
	setAWSEnv(t)
	a := onceAWS(t, "http://127.0.0.1:1", "http://127.0.0.1:1")
	for name, test := range map[string]struct {
		client any
		want   string
	}{"slow": {a.slow.Options().HTTPClient, slowTimeout.String()}, "quick": {a.s3.Options().HTTPClient, callTimeout.String()}} {
		client, ok := test.client.(*awshttp.BuildableClient)
		if !ok || client.GetTimeout().String() != test.want {
			t.Errorf("%s: %T waits %v, want %v", name, test.client, client.GetTimeout(), test.want)
		}
	}
}

// TestDirArchiveCrash breaks off the storing of a segment after each step; the
// same again brings it to its end.
func TestDirArchiveCrash(t *testing.T) {
	segment := []byte("1\n2\n3\n")
	d := newDirStore(t).openDir(t, "")
	whole := cutAt(d, 1<<20)
	must(t, d.PutSegment(t.Context(), line3, 0, 2, segment))
	for n, step := range *whole {
		b := newDirStore(t)
		d := b.openDir(t, "")
		cutAt(d, n)
		if err := d.PutSegment(t.Context(), line3, 0, 2, segment); !errors.Is(err, errCrash) {
			t.Errorf("%s: got %v, want the crash", step, err)
		}
		d.cut = nil
		must(t, d.PutSegment(t.Context(), line3, 0, 2, segment))
		got, err := d.Segment(t.Context(), line3, 0)
		if err != nil || !bytes.Equal(got, segment) {
			t.Errorf("%s: got %q, %v", step, got, err)
		}
		if left, err := filepath.Glob(filepath.Join(b.path, "journal", "*", newName+"*")); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v, %v", step, left, err)
		}
	}
	if len(*whole) != 2 {
		t.Errorf("it has %d steps, want 2", len(*whole))
	}
}

// While the folder is away nothing is stored, and nothing is said not to be
// there.
func TestDirArchiveAway(t *testing.T) {
	b := newDirStore(t)
	d := b.openDir(t, "")
	must(t, os.Rename(b.path, b.path+"-away"))
	for name, err := range map[string]error{
		"PutSegment":       d.PutSegment(t.Context(), line3, 0, 2, nil),
		"PutCheckpoint":    d.PutCheckpoint(t.Context(), line3, 5, checkpointOf(t, line3, 5, 'A', 1)),
		"Segment":          errOf(d.Segment(t.Context(), line3, 0)),
		"LatestCheckpoint": errOf(d.LatestCheckpoint(t.Context(), line3)),
	} {
		if !errors.Is(err, ErrNoRegistry) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want ErrNoRegistry", name, err)
		}
	}
	for _, err := range d.Segments(t.Context(), line3) {
		if !errors.Is(err, ErrNoRegistry) {
			t.Errorf("Segments: got %v, want ErrNoRegistry", err)
		}
	}
}

// What is read of a checkpoint is how its text begins.
func FuzzCheckpoint(f *testing.F) {
	f.Add(checkpointOf(f, line3, 5, 'A', 1))
	f.Add([]byte("a\n1\nr\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseCheckpoint(text)
		if err == nil && !bytes.HasPrefix(text, fmt.Appendf(nil, "%s\n%d\n%s\n\n", c.origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))) {
			t.Fatalf("%q was read as %+v", text, c)
		}
	})
}

func FuzzSegmentName(f *testing.F) {
	f.Add(Segment{10, 20}.name())
	f.Add("99999999999999999999-99999999999999999999.jsonl")
	f.Fuzz(func(t *testing.T, name string) {
		if s, ok := parseSegmentName(name); ok && s.name() != name {
			t.Fatalf("%q was read as %+v", name, s)
		}
	})
}
