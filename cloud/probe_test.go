package cloud

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	minidyn "github.com/truora/minidyn/server"
)

// A store that keeps its conditions is found to, as often as it is asked, and
// nothing is left there.
func testProbe(t *testing.T, b backend) {
	r := b.open(t, "")
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	items, objects := b.items(t), b.objects(t)
	for range 2 {
		probes, err := r.ProbeConditions(t.Context(), line3)
		must(t, err)
		for _, p := range probes {
			if p.Err != nil {
				t.Errorf("%s: %v", p.Store, p.Err)
			}
		}
		if len(probes) == 0 {
			t.Error("nothing was probed")
		}
	}
	if diff := cmp.Diff(items, b.items(t)) + cmp.Diff(objects, b.objects(t)); diff != "" {
		t.Errorf("the probe has left something:\n%s", diff)
	}
	if d, ok := b.(*dirStore); ok {
		if left, err := filepath.Glob(filepath.Join(d.path, ".new*")); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	}
	if _, err := r.ProbeConditions(t.Context(), "widgiot"); err == nil {
		t.Error("a station without a name was probed")
	}
	check(t, b)
}

// dropping hands requests on without their conditions.
func dropping(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("If-None-Match")
		body, _ := io.ReadAll(r.Body)
		if operation(r) == "TransactWriteItems" {
			var in struct {
				TransactItems []struct{ Put map[string]any }
			}
			if json.Unmarshal(body, &in) == nil {
				for _, each := range in.TransactItems {
					delete(each.Put, "ConditionExpression")
					delete(each.Put, "ExpressionAttributeNames")
				}
				body, _ = json.Marshal(in)
			}
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		h.ServeHTTP(w, r)
	})
}

// A store that ignores conditions is found, table and bucket each by itself.
func TestProbeFinds(t *testing.T) {
	for _, test := range []struct {
		name        string
		table, s3   func(http.Handler) http.Handler
		wrong       string // the store
		wantMatches error
	}{
		{"table", dropping, func(h http.Handler) http.Handler { return h }, "table", ErrOverwrites},
		{"bucket", func(h http.Handler) http.Handler { return h }, dropping, "bucket", ErrOverwrites},
	} {
		t.Run(test.name, func(t *testing.T) {
			fakeS3 := gofakes3.New(s3mem.New(), gofakes3.WithLogger(gofakes3.DiscardLog())).Server()
			b := newAWSStore(t, serve(t, test.table(minidyn.NewServer())), serve(t, test.s3(fakeS3)))
			probes, err := b.open(t, "").ProbeConditions(t.Context(), line3)
			must(t, err)
			for _, p := range probes {
				want := error(nil)
				if strings.HasPrefix(p.Store, test.wrong) {
					want = test.wantMatches
				}
				if !errors.Is(p.Err, want) || (p.Err == nil) != (want == nil) {
					t.Errorf("%s: got %v, want %v", p.Store, p.Err, want)
				}
			}
			if len(b.items(t))+len(b.objects(t)) != 0 {
				t.Error("the probe has left something")
			}
		})
	}
}

// Where it is not permitted to delete, nothing is written; whatever else fails
// is no finding about the store, and leaves nothing that the next probe does not
// remove.
func TestProbeFaults(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		r := once(b.open(t, "").(*AWS))
		for _, test := range []struct {
			proxy     *proxy
			operation string
			store     string
		}{
			{b.dynamo, "DeleteItem", "table"}, {b.dynamo, "TransactWriteItems", "table"}, {b.dynamo, "GetItem", "table"},
			{b.s3, http.MethodDelete, "bucket"}, {b.s3, http.MethodPut, "bucket"}, {b.s3, http.MethodGet, "bucket"},
		} {
			for _, f := range []fate{denied, notApplied, lostAnswer, serverFault, throttled, nothing, page} {
				if f == nothing && test.operation == http.MethodDelete {
					continue // as good an answer as S3's
				}
				test.proxy.lose(test.operation, f, -1)
				probes, err := r.ProbeConditions(t.Context(), line3)
				test.proxy.decide(nil)
				must(t, err)
				for _, p := range probes {
					hit := strings.HasPrefix(p.Store, test.store)
					if (p.Err != nil) != hit || errors.Is(p.Err, ErrOverwrites) && f != nothing {
						t.Errorf("%s, fate %d: %s: %v", test.operation, f, p.Store, p.Err)
					}
					if hit && f == denied && !errors.Is(p.Err, ErrNotPermitted) {
						t.Errorf("%s is denied: %v", test.operation, p.Err)
					}
				}
				if f == denied && (test.operation == "DeleteItem" || test.operation == http.MethodDelete) && len(b.items(t))+len(b.objects(t)) > 0 {
					t.Errorf("%s is denied, and something was written", test.operation)
				}
			}
		}
		probes, err := r.ProbeConditions(t.Context(), line3)
		must(t, err)
		for _, p := range probes {
			if p.Err != nil {
				t.Errorf("at the end: %s: %v", p.Store, p.Err)
			}
		}
		if n := len(b.items(t)); n != 0 {
			t.Errorf("%d items are left", n)
		}
	})
}

// A folder that may not be written is no finding about it.
func TestProbeFolderFaults(t *testing.T) {
	b := newDirStore(t)
	must(t, os.Remove(filepath.Join(b.path, marker)))
	probes, err := b.openDir(t, "").ProbeConditions(t.Context(), line3)
	must(t, err)
	if len(probes) != 1 || !errors.Is(probes[0].Err, ErrNoRegistry) {
		t.Errorf("got %+v", probes)
	}
}
