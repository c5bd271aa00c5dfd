package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shop is a registry with the archives of stations.
type shop struct {
	t      *testing.T
	dir    string // of the registry, or empty
	config string
	to     interface {
		PutSegment(ctx context.Context, origin string, first, last uint64, segment []byte) error
		PutCheckpoint(ctx context.Context, origin string, size uint64, checkpoint []byte) error
	}
}

func newShop(t *testing.T) *shop {
	dir := t.TempDir()
	s := &shop{t: t, dir: filepath.Join(dir, "registry"), config: filepath.Join(dir, "import.toml")}
	must(t, cloud.InitDir(s.dir))
	must(t, os.WriteFile(s.config, fmt.Appendf(nil, "sku = \"widgiot\"\n[registry]\nkind = \"dir\"\ndir = %q\n", s.dir), 0o600))
	to, err := cloud.OpenDir(cloud.DirConfig{Path: s.dir})
	must(t, err)
	s.to = to
	return s
}

// line is a station that archives.
type line struct {
	name   string
	signer note.Signer
	pub    string // a file
	lines  []string
	hashes []tlog.Hash
}

func newLine(t *testing.T, name string) *line {
	private, public, err := note.GenerateKey(rand.Reader, "widgiot/"+name)
	must(t, err)
	signer, err := note.NewSigner(private)
	must(t, err)
	l := &line{name: name, signer: signer, pub: filepath.Join(t.TempDir(), "station.pub")}
	must(t, os.WriteFile(l.pub, []byte(public+"\n"), 0o600))
	return l
}

func (l *line) append(n int) {
	reader := tlog.HashReaderFunc(func(at []int64) (out []tlog.Hash, err error) {
		for _, i := range at {
			out = append(out, l.hashes[i])
		}
		return out, nil
	})
	for range n {
		entry := fmt.Sprintf(`{"seq":%d,"of":%q}`, len(l.lines), rand.Text())
		hashes, err := tlog.StoredHashes(int64(len(l.lines)), []byte(entry), reader)
		if err != nil {
			panic(err)
		}
		l.lines, l.hashes = append(l.lines, entry+" 01234567\n"), append(l.hashes, hashes...)
	}
}

func (l *line) checkpoint(t *testing.T, size int) []byte {
	root, err := tlog.TreeHash(int64(size), tlog.HashReaderFunc(func(at []int64) (out []tlog.Hash, err error) {
		for _, i := range at {
			out = append(out, l.hashes[i])
		}
		return out, nil
	}))
	must(t, err)
	text, err := note.Sign(&note.Note{Text: fmt.Sprintf("widgiot/%s\n%d\n%s\n", l.name, size, root)}, l.signer)
	must(t, err)
	return text
}

// archive stores a sealed segment of all but the last entry, and a checkpoint
// over all.
func (s *shop) archive(l *line, first int) {
	s.t.Helper()
	last := len(l.lines) - 2
	origin := "widgiot/" + l.name
	must(s.t, s.to.PutSegment(s.t.Context(), origin, uint64(first), uint64(last), []byte(strings.Join(l.lines[first:last+1], ""))))
	must(s.t, s.to.PutCheckpoint(s.t.Context(), origin, uint64(last+1), l.checkpoint(s.t, last+1)))
	must(s.t, s.to.PutCheckpoint(s.t.Context(), origin, uint64(last+2), l.checkpoint(s.t, last+2)))
}

func run(t *testing.T, f fleet) (map[string]member, string, error) {
	t.Helper()
	if f.Limit == 0 {
		f.Limit = 10 * time.Second
	}
	if f.Behind == 0 {
		f.Behind = 15 * time.Minute
	}
	var out, people bytes.Buffer
	err := f.Run(t.Context(), &cli.Output{Out: &out, People: &people, Err: &people, JSON: true})
	all := map[string]member{}
	for text := range strings.Lines(out.String()) {
		var m member
		must(t, json.Unmarshal([]byte(text), &m))
		all[m.Station] = m
	}
	var table bytes.Buffer
	if again := f.Run(t.Context(), &cli.Output{Out: &table, People: &table, Err: &table}); (again == nil) != (err == nil) {
		t.Errorf("as text: %v, as JSON: %v", again, err)
	}
	return all, table.String(), err
}

func wantFleet(t *testing.T, all map[string]member, station, level string, why ...string) {
	t.Helper()
	m := all[station]
	if m.Level != level || !slices.Equal(m.Why, why) && len(m.Why)+len(why) > 0 {
		t.Errorf("%s is %+v, want %s for %v", station, m, level, why)
	}
}

func TestFleetFromArchive(t *testing.T) { archiveFleet(t, newShop(t)) }

// The same in a real bucket.
func TestFleetFromBucket(t *testing.T) {
	dynamoURL, s3URL := os.Getenv("SECRETFREE_DYNAMODB_ENDPOINT"), os.Getenv("SECRETFREE_S3_ENDPOINT")
	if dynamoURL == "" || s3URL == "" {
		const message = "SECRETFREE_DYNAMODB_ENDPOINT and SECRETFREE_S3_ENDPOINT are not set: run this under .ci/peers.sh run"
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	loaded, err := awsconfig.LoadDefaultConfig(t.Context(), awsconfig.WithRegion("us-east-1"))
	must(t, err)
	bucket := "fleet-" + strings.ToLower(rand.Text())
	_, err = s3.NewFromConfig(loaded, func(o *s3.Options) { o.BaseEndpoint = &s3URL; o.UsePathStyle = true }).CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket})
	must(t, err)
	s := &shop{t: t, config: filepath.Join(t.TempDir(), "import.toml")}
	must(t, os.WriteFile(s.config, fmt.Appendf(nil, "sku = \"widgiot\"\n[registry]\nkind = \"aws\"\nbucket = %q\nregion = \"us-east-1\"\ns3_endpoint = %q\n", bucket, s3URL), 0o600))
	s.to, err = cloud.NewAWS(t.Context(), cloud.AWSConfig{Table: "t-able", Bucket: bucket, Region: "us-east-1", DynamoDBEndpoint: dynamoURL, S3Endpoint: s3URL})
	must(t, err)
	archiveFleet(t, s)
}

func archiveFleet(t *testing.T, s *shop) {
	good, forged, forked := newLine(t, "line1"), newLine(t, "line2"), newLine(t, "line3")
	for _, l := range []*line{good, forged, forked} {
		l.append(10)
		s.archive(l, 0)
	}
	good.append(5)
	s.archive(good, 9)
	all, table, err := run(t, fleet{Config: []string{s.config}, Key: []string{good.pub}, Deep: true})
	if err != nil || len(all) != 3 || !strings.Contains(table, "unverified") || !strings.Contains(table, "3 stations, 0 red.") {
		t.Errorf("%v\n%s", err, table)
	}
	wantFleet(t, all, "line1", "green")
	if m := all["line1"]; !m.Verified || m.Size != 15 || m.Archived == nil || *m.Archived != 14 || !strings.Contains(strings.Join(m.Detail, ""), "14 archived entries are what was signed") {
		t.Errorf("%+v", m)
	}
	if all["line2"].Verified {
		t.Error("what was not checked is verified")
	}

	// Another key, and segments that are not what was signed.
	copied := newLine(t, "line3")
	copied.append(12)
	must(t, s.to.PutSegment(t.Context(), "widgiot/line3", 9, 10, []byte(strings.Join(copied.lines[9:11], ""))))
	must(t, s.to.PutCheckpoint(t.Context(), "widgiot/line3", 11, copied.checkpoint(t, 11)))
	other := newLine(t, "line2")
	all, table, err = run(t, fleet{Config: []string{s.config}, Key: []string{other.pub}, Deep: true})
	if err == nil || !strings.Contains(table, "2 red") {
		t.Errorf("%v\n%s", err, table)
	}
	wantFleet(t, all, "line2", "red", "forged")
	wantFleet(t, all, "line3", "red", "forked")
	// What costs nothing does not find the latter.
	all, _, _ = run(t, fleet{Config: []string{s.config}})
	wantFleet(t, all, "line3", "green")
}

func TestFleetThatIsForkedOrSilent(t *testing.T) {
	a, b := newShop(t), newShop(t)
	here, there := newLine(t, "line1"), newLine(t, "line1")
	for l, s := range map[*line]*shop{here: a, there: b} {
		l.append(10)
		s.archive(l, 0)
	}
	all, _, err := run(t, fleet{Config: []string{a.config, b.config}})
	if err == nil {
		t.Error("a fork is in order")
	}
	wantFleet(t, all, "line1", "red", "forked")

	// Segments that share entries.
	must(t, os.WriteFile(filepath.Join(a.dir, "journal/line1/00000000000000000005-00000000000000000020.jsonl"), []byte("x"), 0o600))
	all, _, _ = run(t, fleet{Config: []string{a.config}})
	wantFleet(t, all, "line1", "red", "forked")

	// What the registry has accepted is behind the archive, of another root, or
	// in order.
	other := newLine(t, "line1")
	other.append(10)
	for name, c := range map[string]struct {
		text []byte
		want []string
	}{
		"behind": {there.checkpoint(t, 9), []string{"forked"}}, "another root": {other.checkpoint(t, 10), []string{"forked"}},
		"the same": {there.checkpoint(t, 10), nil}, "nonsense": {[]byte("nonsense"), []string{"unread"}},
	} {
		must(t, os.MkdirAll(filepath.Join(b.dir, "checkpoints"), 0o755))
		must(t, os.WriteFile(filepath.Join(b.dir, "checkpoints/line1"), c.text, 0o600))
		all, _, _ = run(t, fleet{Config: []string{b.config}})
		level := "red"
		if c.want == nil {
			level = "green"
		}
		t.Log(name)
		wantFleet(t, all, "line1", level, c.want...)
	}
	// A station that has signed less than the registry has accepted was set back.
	must(t, os.WriteFile(filepath.Join(b.dir, "checkpoints/line1"), there.checkpoint(t, 10), 0o600))
	for signed, want := range map[int][]string{9: {"forked"}, 10: nil, 11: nil} {
		all, _, _ = run(t, fleet{Config: []string{b.config}, Station: []string{"line1=" + floor(t, fmt.Sprintf(`{"station":"line1","version":"v1","signed":%d}`, signed), 200)}})
		if got := all["line1"].Why; !slices.Equal(got, want) && len(got)+len(want) > 0 {
			t.Errorf("it has signed %d of 10 that are accepted: %q, want %q", signed, got, want)
		}
	}
	must(t, os.Remove(filepath.Join(b.dir, "checkpoints/line1")))

	// Silence, and a clock that says so.
	checkpoints, err := filepath.Glob(filepath.Join(b.dir, "journal/line1/*.checkpoint"))
	must(t, err)
	for i, name := range checkpoints {
		must(t, os.Chtimes(name, time.Time{}, time.Now().Add(-27*time.Hour-time.Duration(i)*time.Minute)))
	}
	all, _, _ = run(t, fleet{Config: []string{b.config}})
	wantFleet(t, all, "line1", "red", "silent")
	all, _, err = run(t, fleet{Config: []string{b.config}, Silent: 72 * time.Hour})
	wantFleet(t, all, "line1", "green")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(b.dir, "journal/line1/00000000000000000012.checkpoint"), there.checkpointAs(t, 12), 0o600))
	must(t, os.WriteFile(filepath.Join(b.dir, "journal/line1/00000000000000000011.checkpoint"), there.checkpointAs(t, 11), 0o600))
	must(t, os.Chtimes(filepath.Join(b.dir, "journal/line1/00000000000000000012.checkpoint"), time.Time{}, time.Now().Add(-time.Hour)))
	all, _, err = run(t, fleet{Config: []string{b.config}})
	wantFleet(t, all, "line1", "yellow", "order")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(b.dir, "journal/line1/00000000000000000013.checkpoint"), []byte("nonsense"), 0o600))
	all, _, _ = run(t, fleet{Config: []string{b.config}})
	wantFleet(t, all, "line1", "red", "unread")
	must(t, os.Mkdir(filepath.Join(b.dir, "journal/line9"), 0o700))
	all, _, _ = run(t, fleet{Config: []string{b.config}})
	wantFleet(t, all, "line9", "red", "silent")
}

// checkpointAs has no good root, and the form of one.
func (l *line) checkpointAs(t *testing.T, size int) []byte {
	text, err := note.Sign(&note.Note{Text: fmt.Sprintf("widgiot/%s\n%d\n%s\n", l.name, size, l.hashes[0])}, l.signer)
	must(t, err)
	return text
}

// floor answers as a station does.
func floor(t *testing.T, status string, health int) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/status":
			fmt.Fprint(w, status)
		case "/healthz":
			w.WriteHeader(health)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestFleetFromStations(t *testing.T) {
	var asked atomic.Int64
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		<-r.Context().Done()
	}))
	t.Cleanup(hangs.Close)
	gone := httptest.NewServer(nil)
	gone.Close()
	secret := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+strings.Repeat("token", 8) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"station":"secret"}`)
	}))
	t.Cleanup(secret.Close)
	list := filepath.Join(t.TempDir(), "stations")
	must(t, os.WriteFile(list, fmt.Appendf(nil, "# the floor\nhangs=%s\ngone=%s/ # away\n\nsecret=%s\n", hangs.URL, gone.URL, secret.URL), 0o600))
	f := fleet{Limit: 500 * time.Millisecond, Stations: list, Station: []string{
		"good=" + floor(t, `{"station":"good","version":"v1.2","signed":42,"backlog":{"pending":2,"oldest_seconds":5}}`, 200),
		"ill=" + floor(t, `{"station":"ill","notices":[{"urgent":true,"text":"Call IT: the\u001b[2J disk."}]}`, 503),
		"dead=" + floor(t, `{"station":"dead","backlog":{"dead":3}}`, 200),
		"behind=" + floor(t, `{"station":"behind","backlog":{"pending":7,"oldest_seconds":1000,"last_error":"no answer"}}`, 200),
		"other=" + floor(t, `{"station":"line9"}`, 200),
		"double=" + floor(t, `{"station":"double","notices":[{"word":"health-forked","detail":"two journals"}]}`, 200),
		"none=" + floor(t, `{}`, 200), "page=" + floor(t, `<html>`, 200),
	}}
	all, table, err := run(t, f)
	if err == nil || len(all) != 11 {
		t.Errorf("%v\n%s", err, table)
	}
	wantFleet(t, all, "good", "green")
	wantFleet(t, all, "double", "red", "forked")
	if m := all["good"]; m.Version != "v1.2" || m.Signed == nil || *m.Signed != 42 || m.Pending == nil || *m.Pending != 2 || m.Health != "good" {
		t.Errorf("%+v", m)
	}
	wantFleet(t, all, "ill", "red", "health")
	wantFleet(t, all, "dead", "red", "dead")
	wantFleet(t, all, "behind", "red", "behind")
	for _, name := range []string{"hangs", "gone", "other", "none", "page", "secret"} {
		wantFleet(t, all, name, "red", "away")
	}
	if asked.Load() == 0 || !strings.Contains(table, " health: Call IT: the[2J disk.") {
		t.Errorf("asked %d times\n%s", asked.Load(), table)
	}
	// What nobody was asked for, or did not answer, is not shown as nothing;
	// what is red begins with its word, and has its address once.
	for _, want := range []string{`(?m)^green +good +- +- +- +- +2 +0 good +v1\.2$`, `(?m)^red +gone +- +- +- +- +- +- +- +-$`, `(?m)^ +away: ` + regexp.QuoteMeta(gone.URL) + `: dial tcp .*connection refused$`} {
		if !regexp.MustCompile(want).MatchString(table) {
			t.Errorf("nothing is like %s:\n%s", want, table)
		}
	}
	f.TokenFile = filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(f.TokenFile, []byte(strings.Repeat("token", 8)+"\n"), 0o600))
	all, table, _ = run(t, f)
	wantFleet(t, all, "secret", "green")
	if strings.Contains(table, "tokentoken") {
		t.Error("the token is shown")
	}
}

// A line that is none is told with its file, its number and what to write; the
// same of a second address.
func TestFleetLines(t *testing.T) {
	list := filepath.Join(t.TempDir(), "floor.txt")
	for text, want := range map[string]string{
		"# the floor\na=http://127.0.0.1:1\n\n127.0.0.1:18081\n": `floor.txt:4: "127.0.0.1" is no NAME=URL without a user and a query: write the station's name before its address, as line3-a=https://`,
		"=http://127.0.0.1:1\n":                                  `floor.txt:1: "" is no NAME=URL`,
		"a=127.0.0.1:1 # no scheme\n":                            `floor.txt:1: "a" is no NAME=URL`,
		"a=http://127.0.0.1:1\na = http://127.0.0.1:2\n":         `floor.txt:2: station a has two addresses, the other is http://127.0.0.1:1: take one out`,
	} {
		must(t, os.WriteFile(list, []byte(text), 0o600))
		err := (&fleet{Stations: list, Limit: time.Second}).Run(t.Context(), &cli.Output{})
		if !errors.Is(err, cli.ErrMisuse) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	err := (&fleet{Station: []string{"line3-a"}, Limit: time.Second}).Run(t.Context(), &cli.Output{})
	if !errors.Is(err, cli.ErrMisuse) || !strings.Contains(err.Error(), `--station: "line3-a" is no NAME=URL`) {
		t.Error(err)
	}
}

// A station that answers is silent only if it has signed what the archive
// lacks.
func TestFleetFromBoth(t *testing.T) {
	s := newShop(t)
	l := newLine(t, "line1")
	l.append(10)
	s.archive(l, 0)
	checkpoints, err := filepath.Glob(filepath.Join(s.dir, "journal/line1/*.checkpoint"))
	must(t, err)
	for age, signed := range map[time.Duration]map[string]string{
		time.Minute:      {"10": "green", "12": "green"},
		20 * time.Minute: {"10": "green", "12": "red"},
		99 * time.Hour:   {"10": "green", "12": "red"},
	} {
		for _, name := range checkpoints {
			must(t, os.Chtimes(name, time.Time{}, time.Now().Add(-age)))
		}
		for n, level := range signed {
			url := floor(t, `{"station":"line1","version":"v1","signed":`+n+`}`, 200)
			all, table, _ := run(t, fleet{Config: []string{s.config}, Station: []string{"line1=" + url}})
			if all["line1"].Level != level {
				t.Errorf("%v, %s signed: %s\n%s", age, n, all["line1"].Level, table)
			}
		}
	}
}

func TestFleetMisused(t *testing.T) {
	dir := t.TempDir()
	none := filepath.Join(dir, "none.toml")
	must(t, os.WriteFile(none, []byte("station=\"a\"\nsku=\"w\"\nstate_dir=\"/x\"\n[[slot]]\nname=\"A\"\nport=\"/dev/x\"\ndialect=\"auto\"\n[registry]\nkind=\"none\"\n"), 0o600))
	broken := filepath.Join(dir, "broken.toml")
	must(t, os.WriteFile(broken, []byte("lisen=1\n[[slot]]\n"), 0o600))
	for want, f := range map[string]fleet{
		"say where the stations are":   {},
		"is no NAME=URL":               {Station: []string{"line1"}},
		`"line2" is no NAME=URL`:       {Station: []string{"line2=http://localhost:secret@127.0.0.1:37415"}},
		`"line3" is no NAME=URL`:       {Station: []string{"line3=https://a.example?x=1"}},
		`"line4" is no NAME=URL`:       {Station: []string{"line4=https://:8443"}},
		`"line5" is no NAME=URL`:       {Station: []string{"line5=ftp://a.example"}},
		`"http" is no NAME=URL`:        {Station: []string{"http://u:secret@a.example"}},
		"has two addresses":            {Station: []string{"a=http://a", "a=http://b"}},
		"which has no archive":         {Config: []string{none}},
		"unknown key":                  {Config: []string{broken}},
		"reading the configuration":    {Config: []string{filepath.Join(dir, "no")}},
		"reading the stations":         {Stations: filepath.Join(dir, "no")},
		"reading the station's public": {Station: []string{"a=http://127.0.0.1:1"}, Key: []string{filepath.Join(dir, "no")}},
		"at most 1000 can be":          {Station: many(1001)},
	} {
		if err := f.Run(t.Context(), &cli.Output{Out: new(bytes.Buffer), People: new(bytes.Buffer)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("a password is told: %v", err)
		}
	}
}

// A token is shown to https and to this machine, by whatever name, and to
// nobody else.
func TestFleetTokenStays(t *testing.T) {
	for address, want := range map[string]bool{
		"https://line3-a.factory.example:8443": true, "http://127.0.0.1:8080": true, "http://127.0.0.2": true, "http://[::1]:8080": true, "http://LOCALHOST:8080": true,
		"http://[::ffff:127.0.0.1]:80": true, "http://line3-a:8080": false, "http://192.0.2.1": false, "http://localhost.example": false, "http://127.0.0.1.example": false,
		"http://localhost:x@192.0.2.1:80": false, "https://a@b": false, "http://[::2]": false, "http://%zz": false,
	} {
		if safe(address) != want {
			t.Errorf("%s: %v", address, !want)
		}
	}
}

func many(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("s%d=http://127.0.0.1:1", i))
	}
	return all
}
