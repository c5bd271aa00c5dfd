package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"

	"secretfree/station/board"
)

// collect gives the values of a listing by a name, and its errors; the end of
// the listing is the caller's if it is an error.
func collect[T any](t *testing.T, all iter.Seq2[T, error], name func(T) string) (values map[string]T, errs []error) {
	t.Helper()
	values = map[string]T{}
	for v, err := range all {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, twice := values[name(v)]; twice {
			t.Errorf("%s came twice", name(v))
		}
		values[name(v)] = v
	}
	return values, errs
}

func enrolmentName(e board.Enrolment) string { return e.Device.String() }
func guardOf(g board.KeyBinding) string      { return guardID(g.Key) }
func nameOf(o board.KeyBinding) string       { return objectName(o.Device, o.Key) }

func testList(t *testing.T, b backend) {
	r := b.open(t, "")
	for range r.Enrolments(t.Context()) {
		t.Error("an enrolment in an empty registry")
	}
	for range r.Guards(t.Context()) {
		t.Error("a guard in an empty registry")
	}
	for range r.Objects(t.Context()) {
		t.Error("an object in an empty registry")
	}
	const boards = pageItems/2 + 5 // two pages
	var records []board.Sealed
	for n := range boards {
		records = append(records, sealed(t, n, n))
	}
	must(t, errors.Join(r.PutBatch(t.Context(), records)...))
	must(t, r.PutSegment(t.Context(), line3, 0, 9, []byte("no public key"))) // which is in no listing

	enrolments, errs := collect(t, r.Enrolments(t.Context()), enrolmentName)
	guards, errs2 := collect(t, r.Guards(t.Context()), guardOf)
	objects, errs3 := collect(t, r.Objects(t.Context()), nameOf)
	if err := errors.Join(append(errs, append(errs2, errs3...)...)...); err != nil {
		t.Fatal(err)
	}
	if len(enrolments) != boards || len(guards) != boards || len(objects) != boards {
		t.Errorf("%d enrolments, %d guards, %d objects, want %d", len(enrolments), len(guards), len(objects), boards)
	}
	for _, s := range records {
		device, key := s.Record().Device, s.Record().Fingerprint()
		want, err := r.Lookup(t.Context(), device)
		must(t, err)
		if diff := cmp.Diff(want, enrolments[device.String()], cmp.Comparer(func(a, b board.Key) bool { return a == b })); diff != "" {
			t.Errorf("device %s (-Lookup +Enrolments):\n%s", device, diff)
		}
		if guards[guardID(key)] != (board.KeyBinding{Device: device, Key: key}) || objects[objectName(device, key)] != (board.KeyBinding{Device: device, Key: key}) {
			t.Errorf("device %s: got %v and %v", device, guards[guardID(key)], objects[objectName(device, key)])
		}
	}
	for range r.Enrolments(t.Context()) {
		break // which is allowed
	}
	for range r.Guards(t.Context()) {
		break
	}
	for range r.Objects(t.Context()) {
		break
	}
}

// What makes no sense is named, and hides nothing else.
func testListDamage(t *testing.T, b backend) {
	r := b.open(t, "")
	for n := range 4 {
		must(t, r.Put(t.Context(), sealed(t, n, n)))
	}
	broken := b.items(t)[deviceN(1).String()]
	broken["state"] = "Active"
	b.set(t, broken)
	b.set(t, map[string]string{"device-id": "device-7", "pubkey": "x"})
	b.set(t, map[string]string{"device-id": guardPrefix + "x", "device": deviceN(1).String()})
	b.set(t, map[string]string{"device-id": guardID(keyN(t, 2).Fingerprint()), "device": "x"})
	b.set(t, map[string]string{"device-id": deviceN(9).String(), "pubkey": string(keyN(t, 9).PEM())}) // not damaged, but unsigned
	wrong := []string{"pubkeys/readme", "pubkeys/" + deviceN(1).String() + "/x.pem", "pubkeys/x/" + keyN(t, 1).Fingerprint().String() + ".pem"}
	for _, name := range wrong {
		b.setObject(t, name, "x")
	}
	enrolments, errs := collect(t, r.Enrolments(t.Context()), enrolmentName)
	if len(enrolments) != 4 || len(errs) != 2 {
		t.Errorf("%d enrolments, want 4; errors %v, want 2", len(enrolments), errs)
	}
	guards, errs2 := collect(t, r.Guards(t.Context()), guardOf)
	if len(guards) != 3 || len(errs2) != 2 {
		t.Errorf("%d guards, want 3; errors %v, want 2", len(guards), errs2)
	}
	objects, errs3 := collect(t, r.Objects(t.Context()), nameOf)
	if len(objects) != 4 || len(errs3) != len(wrong) {
		t.Errorf("%d objects, want 4; errors %v, want %d", len(objects), errs3, len(wrong))
	}
	all := append(errs, append(errs2, errs3...)...)
	for _, err := range all {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v, want ErrDamaged", err)
		}
	}
	text := errors.Join(all...).Error()
	for _, want := range append(wrong, "device-7", deviceN(1).String(), keyN(t, 2).Fingerprint().String()) {
		if !strings.Contains(text, want) {
			t.Errorf("no error names %s: %s", want, text)
		}
	}
	for e, err := range r.Enrolments(t.Context()) {
		if err != nil && strings.Contains(err.Error(), "state") && e.Device != deviceN(1) {
			t.Errorf("the damaged item is said to be of %s", e.Device)
		}
	}
}

func TestDirListAway(t *testing.T) {
	for name, spoil := range map[string]func(b *dirStore) error{
		"the registry":                   func(b *dirStore) error { return os.Rename(b.path, b.path+"-away") },
		"items":                          func(b *dirStore) error { return os.Remove(filepath.Join(b.path, "items")) },
		"guards":                         func(b *dirStore) error { return os.Remove(filepath.Join(b.path, "guards")) },
		"pubkeys":                        func(b *dirStore) error { return os.Remove(filepath.Join(b.path, "pubkeys")) },
		"the registry, with its fellows": func(b *dirStore) error { return os.RemoveAll(b.path) },
	} {
		b := newDirStore(t)
		d := b.openDir(t, "")
		must(t, spoil(b))
		var errs []error
		for _, err := range d.Enrolments(t.Context()) {
			errs = append(errs, err)
		}
		for _, err := range d.Guards(t.Context()) {
			errs = append(errs, err)
		}
		for _, err := range d.Objects(t.Context()) {
			errs = append(errs, err)
		}
		want := 1
		if strings.HasPrefix(name, "the registry") {
			want = 3
		}
		for _, err := range errs {
			if !errors.Is(err, ErrNoRegistry) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
				t.Errorf("%s: got %v, want ErrNoRegistry", name, err)
			}
		}
		if len(errs) != want {
			t.Errorf("%s: got %v, want %d errors", name, errs, want)
		}
	}
}

// A file that is on its way, or of another kind, is no item.
func TestDirListNames(t *testing.T) {
	b := newDirStore(t)
	d := b.openDir(t, "")
	must(t, d.Put(t.Context(), sealed(t, 1, 1)))
	must(t, os.WriteFile(filepath.Join(b.path, "items", newName+"7"), []byte("{"), 0o644))
	must(t, os.WriteFile(filepath.Join(b.path, "items", deviceN(1).String()), nil, 0o644)) // without .json
	enrolments, errs := collect(t, d.Enrolments(t.Context()), enrolmentName)
	if len(enrolments) != 1 || len(errs) != 1 || !errors.Is(errs[0], ErrDamaged) {
		t.Errorf("got %v and %v", enrolments, errs)
	}
}

func TestDirListCanceled(t *testing.T) {
	b := newDirStore(t)
	d := b.openDir(t, "")
	for n := range 3 {
		must(t, d.Put(t.Context(), sealed(t, n, n)))
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	_, errs := collect(t, d.Enrolments(ctx), enrolmentName)
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "enough") {
		t.Errorf("got %v", errs)
	}
}

// answers is an HTTP client without a network, for a bubble of
// testing/synctest.
type answers func(r *http.Request) (int, string)

func (a answers) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	code, body := a(r)
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func listAWS(t *testing.T, a *AWS, client answers) *AWS {
	t.Helper()
	a.dynamo = dynamodb.New(a.dynamo.Options(), func(o *dynamodb.Options) { o.HTTPClient, o.Retryer = client, aws.NopRetryer{} })
	a.s3 = s3.New(a.s3.Options(), func(o *s3.Options) { o.HTTPClient, o.Retryer = client, aws.NopRetryer{} })
	return a
}

const scanPage = `{"Items":[{"device-id":{"S":"key:%s"},"device":{"S":"%s"}}],"LastEvaluatedKey":{"device-id":{"S":"%d"}}}`

// A listing pauses between pages, waits while it is asked to, and then goes on
// where it was.
func TestListPatience(t *testing.T) {
	setAWSEnv(t)
	page := func(n int) string {
		if n == 3 {
			return "{}"
		}
		return fmt.Sprintf(scanPage, keyN(t, n).Fingerprint(), deviceN(n), n)
	}
	for _, test := range []struct {
		name   string
		busy   int // answers in a row before each page
		guards int
		want   string
		took   time.Duration
	}{
		{"calm", 0, 3, "", 3 * pagePause},
		{"busy for a while", 3, 3, "", 3*pagePause + 4*(1+2+4)*time.Second},
		{"busy for ever", 1 << 20, 0, "slow down", (1 + 2 + 4 + 8 + 16 + 30 + 30) * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, refused := 0, 0
				a, err := NewAWS(t.Context(), AWSConfig{Table: "table", Bucket: "bucket", Region: "us-east-1"})
				must(t, err)
				start := time.Now()
				guards, errs := collect(t, listAWS(t, a, func(r *http.Request) (int, string) {
					if refused < test.busy {
						refused++
						return 400, `{"__type":"x#ThrottlingException","message":"what AWS says"}`
					}
					n, refused = n+1, 0
					return 200, page(n - 1)
				}).Guards(t.Context()), guardOf)
				if len(guards) != test.guards || (len(errs) > 0) != (test.want != "") {
					t.Errorf("got %d guards and %v", len(guards), errs)
				}
				for _, err := range errs {
					if !strings.Contains(err.Error(), "listing table table") || !strings.Contains(err.Error(), test.want) {
						t.Errorf("got %v, want %q", err, test.want)
					}
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("it took %v, want %v", took, test.took)
				}
			})
		})
	}
}

// An error ends a listing, says what was being done, and is not taken for its
// end.
func TestListFaults(t *testing.T) {
	setAWSEnv(t)
	synctest.Test(t, func(t *testing.T) {
		a, err := NewAWS(t.Context(), AWSConfig{Table: "table", Bucket: "bucket", Region: "us-east-1"})
		must(t, err)
		listAWS(t, a, func(r *http.Request) (int, string) {
			if operation(r) == "Scan" {
				return 400, `{"__type":"x#AccessDeniedException","message":"what AWS says"}`
			}
			return 403, "<Error><Code>AccessDenied</Code></Error>"
		})
		start := time.Now()
		_, errs := collect(t, a.Enrolments(t.Context()), enrolmentName)
		_, errs2 := collect(t, a.Guards(t.Context()), guardOf)
		_, errs3 := collect(t, a.Objects(t.Context()), nameOf)
		if took := time.Since(start); took != 0 {
			t.Errorf("it waited %v for what no waiting mends", took)
		}
		for _, test := range []struct {
			errs []error
			want string
		}{{errs, "listing table table"}, {errs2, "listing table table"}, {errs3, "listing s3://bucket/pubkeys/"}} {
			if len(test.errs) != 1 || !strings.Contains(test.errs[0].Error(), test.want) || errors.Is(test.errs[0], ErrDamaged) {
				t.Errorf("got %v, want %q", test.errs, test.want)
			}
		}

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		listAWS(t, a, func(*http.Request) (int, string) {
			return 200, fmt.Sprintf(scanPage, keyN(t, 1).Fingerprint(), deviceN(1), 1)
		})
		n := 0
		var last error
		for _, err := range a.Guards(ctx) {
			if n++; n == 5 {
				cancel()
			}
			last = err
		}
		if n != 6 || !errors.Is(last, context.Canceled) {
			t.Errorf("canceled after 5 guards: got %d and %v", n, last)
		}
	})
}

// A name that is read is the name that is written.
func FuzzObjectName(f *testing.F) {
	f.Add(objectName(deviceN(1), keyN(f, 1).Fingerprint()))
	f.Add("pubkeys//.pem")
	f.Fuzz(func(t *testing.T, name string) {
		if o, err := parseObjectName(name); err == nil && objectName(o.Device, o.Key) != name {
			t.Fatalf("%q was read as %+v", name, o)
		}
	})
}
