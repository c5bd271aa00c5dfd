package cloud

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretfree/station/board"
)

const origin = "widgiot/line3-a"

func recordIn(s board.Sealed) *board.Record {
	r := s.Record()
	return &r
}

func rightsOf(t *testing.T, a *AWS, known *board.Record) map[string]Right {
	t.Helper()
	list, err := a.TryRights(t.Context(), origin, known)
	must(t, err)
	out := map[string]Right{}
	for _, r := range list {
		out[r.Action+" "+strings.TrimPrefix(r.On, a.config.Bucket+"/")] = r
	}
	if len(out) != 6 {
		t.Fatalf("%d rights: %v", len(out), out)
	}
	return out
}

// A look finds everything in order, and leaves nothing behind.
func TestDescribeChangesNothing(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		a := b.open(t, "").(*AWS)
		s := sealed(t, 1, 1)
		must(t, a.Put(t.Context(), s))
		must(t, a.PutCheckpoint(t.Context(), origin, 1, checkpointOf(t, origin, 1, 'A', 1)))
		items, objects := b.items(t), b.objects(t)
		for range 2 {
			for name, r := range rightsOf(t, a, recordIn(s)) {
				if !r.Known || !r.Allowed || r.Err != nil {
					t.Errorf("%s: %+v", name, r)
				}
			}
		}
		took, clock, err := a.Ping(t.Context())
		if err != nil || took <= 0 || !clock.IsZero() && time.Since(clock).Abs() > time.Minute {
			t.Errorf("%v, %v, %v", took, clock, err)
		}
		table, err := a.DescribeTable(t.Context())
		if err != nil || table.Key != WantedKey && table.Key != "device-id ()" { // minidyn tells no types
			t.Errorf("%+v, %v", table, err)
		}
		if _, err := a.DescribeBucket(t.Context()); err != nil {
			t.Error(err)
		}
		if seen, err := a.DescribeCredentials(t.Context()); err != nil || seen.Source == "" || strings.Contains(seen.Source, os.Getenv("AWS_SECRET_ACCESS_KEY")) {
			t.Errorf("%+v, %v", seen, err)
		}
		if got := b.items(t); len(got) != len(items) {
			t.Errorf("items: %v, before %v", got, items)
		}
		if got := b.objects(t); !maps.Equal(got, objects) {
			t.Errorf("objects: %v, before %v", got, objects)
		}
	})
}

// On a new registry what cannot be known is not called right or wrong.
func TestLookAtANewRegistry(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		a := b.open(t, "").(*AWS)
		s := sealed(t, 1, 1)
		for name, r := range rightsOf(t, a, recordIn(s)) {
			if unknown := strings.HasPrefix(name, "s3:GetObject"); r.Known == unknown || r.Allowed == unknown || (r.Err == nil) == unknown {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if len(b.items(t))+len(b.objects(t)) != 0 {
			t.Errorf("%v %v", b.items(t), b.objects(t))
		}
	})
}

// Each right that is missing is found, and only that one; a store that does not
// answer is no missing right.
func TestRightsThatAreMissing(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		a := once(b.open(t, "").(*AWS))
		s := sealed(t, 1, 1)
		must(t, a.Put(t.Context(), s))
		must(t, a.PutCheckpoint(t.Context(), origin, 1, checkpointOf(t, origin, 1, 'A', 1)))
		all := map[string]func(r *http.Request) bool{
			"dynamodb:PutItem " + b.config.Table:  func(r *http.Request) bool { return operation(r) == "PutItem" },
			"s3:PutObject pubkeys/*":              func(r *http.Request) bool { return r.Method == "PUT" && strings.Contains(r.URL.Path, "/pubkeys/") },
			"s3:PutObject journal/line3-a/*":      func(r *http.Request) bool { return r.Method == "PUT" && strings.Contains(r.URL.Path, "/journal/") },
			"s3:ListBucket journal/line3-a/*":     func(r *http.Request) bool { return r.URL.Query().Has("list-type") },
			"s3:GetObject journal/line3-a/*":      func(r *http.Request) bool { return r.Method == "GET" && strings.Contains(r.URL.Path, "/journal/") },
			"s3:GetObject pubkeys/*":              func(r *http.Request) bool { return r.Method == "GET" && strings.Contains(r.URL.Path, "/pubkeys/") },
			"nothing, since it is out of service": nil,
		}
		for missing, matches := range all {
			for _, p := range []*proxy{b.s3, b.dynamo} {
				p.decide(func(r *http.Request) fate {
					switch {
					case matches == nil && operation(r) != "GetItem":
						return serverFault
					case matches != nil && matches(r):
						return denied
					}
					return passed
				})
			}
			for name, r := range rightsOf(t, a, recordIn(s)) {
				switch {
				case matches == nil && name == "s3:GetObject journal/line3-a/*": // nothing was listed
				case matches == nil && (r.Known || r.Err == nil || errors.Is(r.Err, ErrNotPermitted)):
					t.Errorf("%s is missing: %s: %+v", missing, name, r)
				case name == missing && (!r.Known || r.Allowed || !errors.Is(r.Err, ErrNotPermitted)):
					t.Errorf("%s is missing, and found to be %+v", missing, r)
				case matches != nil && name != missing && r.Known && !r.Allowed:
					t.Errorf("%s is missing, and %s is found to be %+v", missing, name, r)
				}
			}
		}
	})
}

// What a station may not ask for is no fault of the table or the bucket; what
// is not there is.
func TestLookWithoutPermission(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		a := once(b.open(t, "").(*AWS))
		b.dynamo.lose("DescribeTable", denied, -1)
		if _, err := a.DescribeTable(t.Context()); !errors.Is(err, ErrNotPermitted) {
			t.Errorf("table: %v", err)
		}
		b.s3.decide(func(*http.Request) fate { return denied })
		if seen, err := a.DescribeBucket(t.Context()); err != nil || seen.Versioned != nil || seen.Locked != nil {
			t.Errorf("bucket: %+v, %v", seen, err)
		}
		b.s3.decide(nil)
		b.dynamo.decide(nil)
		c := b.config
		c.Bucket, c.Table = c.Bucket+"-no", c.Table+"-no"
		none, err := NewAWS(t.Context(), c)
		must(t, err)
		if _, err := none.DescribeBucket(t.Context()); err == nil || !strings.Contains(err.Error(), "there is no bucket") {
			t.Errorf("no bucket: %v", err)
		}
		if _, err := none.DescribeTable(t.Context()); err == nil || !strings.Contains(err.Error(), "there is no table") {
			t.Errorf("no table: %v", err)
		}
		if _, _, err := none.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "there is no table") {
			t.Errorf("no table: %v", err)
		}
	})
}

// A store that is no store is found out: one that checks no condition, one that
// checks no sum.
func TestStoresThatTakeAnything(t *testing.T) {
	setAWSEnv(t)
	anything := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Target") != "" {
			_, _ = w.Write([]byte("{}"))
		}
	}))
	for name, r := range rightsOf(t, onceAWS(t, anything, anything), nil) {
		if r.Action == "dynamodb:PutItem" && (!r.Allowed || !errors.Is(r.Err, ErrNoConditions) || !strings.Contains(r.Err.Error(), "a condition that cannot hold")) {
			t.Errorf("%s: %+v", name, r)
		}
		if r.Action == "s3:PutObject" && (!r.Allowed || r.Err == nil || !strings.Contains(r.Err.Error(), "whose checksum is wrong")) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// What stands between is named: a certificate that is not trusted, a proxy that
// is away, a name that is unknown. The clock of a refusal is told.
func TestTransportIsNamed(t *testing.T) {
	setAWSEnv(t)
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	for want, endpoint := range map[string]string{
		"certificate is not trusted": secure.URL,
		"is not found":               "http://registry.invalid",
		"no answer from AWS":         "http://127.0.0.1:1",
	} {
		if _, _, err := onceAWS(t, endpoint, endpoint).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", endpoint, err, want)
		}
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	if _, err := onceAWS(t, secure.URL, secure.URL).DescribeCredentials(t.Context()); err == nil || !strings.Contains(err.Error(), "no AWS credentials were found") {
		t.Errorf("no credentials: %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	past := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	skewed := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", past.Format(http.TimeFormat))
		awsError(w, r, 403, "RequestTimeTooSkewed", 400, "InvalidSignatureException", "Signature not yet current: 20261124T102030Z is still later than 20261124T101530Z")
	}))
	if _, clock, err := onceAWS(t, skewed, skewed).Ping(context.Background()); err == nil || !clock.Equal(past) || !strings.Contains(err.Error(), "NTP") {
		t.Errorf("%v, %v", clock, err)
	}
	if err := explainTransport(errors.New(`Post "https://x": proxyconnect tcp: dial tcp 10.0.0.1:3128: i/o timeout`)); !strings.Contains(err, "proxy does not answer") {
		t.Errorf("proxy: %s", err)
	}
}

func TestLookAtAFolder(t *testing.T) {
	b := newDirStore(t)
	must(t, b.openDir(t, "").Look())
	must(t, os.Remove(filepath.Join(b.path, marker)))
	if err := b.openDir(t, "").Look(); !errors.Is(err, ErrNoRegistry) {
		t.Errorf("%v, want %v", err, ErrNoRegistry)
	}
}

// A table that goes by no condition is known to be one: two stations could
// enrol one board there.
func TestLookAtATableWithoutConditions(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	took := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		_, _ = w.Write([]byte("{}"))
	}))
	if r := onceAWS(t, took, took).tryPutItem(t.Context()); !r.Known || !errors.Is(r.Err, ErrNoConditions) || !strings.Contains(r.Err.Error(), "remove the item "+probeID) {
		t.Errorf("%+v", r)
	}
}
