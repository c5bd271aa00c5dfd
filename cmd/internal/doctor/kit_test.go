package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"secretfree/cloud"
	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// patient is a station, on a machine whose /proc and /sys are a folder.
type patient struct {
	t                           *testing.T
	root, state, registry, port string
	top, rest                   string // more of the configuration
	c                           Config
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newPatient is in order.
func newPatient(t *testing.T) *patient {
	t.Helper()
	dir, err := os.MkdirTemp("", "doctor") // a socket's path must be short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	master, slave, err := pty.Open()
	must(t, err)
	t.Cleanup(func() { master.Close(); slave.Close() })
	p := &patient{t: t, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), registry: filepath.Join(dir, "registry"), port: slave.Name()}
	must(t, os.Mkdir(p.state, 0o700))
	must(t, cloud.InitDir(p.registry))
	p.file("proc/sys/kernel/osrelease", "6.12.0\n")
	p.file("proc/self/mountinfo", fmt.Sprintf("22 1 179:2 / / rw,relatime shared:1 - ext4 /dev/mmcblk0p2 rw\n23 22 8:17 / %s rw,relatime - ext4 /dev/sdb1 rw\n", p.registry))
	p.disk("mmcblk0", "mmcblk0p2", "179:2", map[string]string{"queue/write_cache": "write back", "device/type": "MMC", "device/life_time": "0x01 0x02", "device/pre_eol_info": "0x01"})
	p.c = Config{Path: filepath.Join(dir, "stationd.toml"), Machine: Machine{Root: p.root, UID: os.Geteuid(), Now: time.Now,
		Command: func(context.Context, string, ...string) ([]byte, error) {
			return nil, errors.New("there are no commands")
		},
		Synchronised: func() (bool, error) { return true, nil },
		Sync: func(context.Context, string, time.Duration) (Latency, error) {
			return Latency{N: 200, P50: time.Millisecond, P99: 3 * time.Millisecond, Max: 4 * time.Millisecond}, nil
		},
	}, Get: func(context.Context, string, string) ([]byte, int, error) {
		return nil, 0, errors.New("connection refused")
	}}
	return p
}

func (p *patient) file(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.root, name)
	must(p.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(p.t, os.WriteFile(path, []byte(text), 0o644))
}

func (p *patient) link(name, target string) {
	p.t.Helper()
	path := filepath.Join(p.root, name)
	must(p.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(p.t, os.Symlink(target, path))
}

// disk makes a disk with a partition.
func (p *patient) disk(name, part, number string, attributes map[string]string) {
	for attribute, value := range attributes {
		p.file("sys/devices/"+name+"/"+attribute, value+"\n")
	}
	p.file("sys/devices/"+name+"/"+part+"/partition", "1")
	p.link("sys/dev/block/"+number, "../../devices/"+name+"/"+part)
}

func (p *patient) configure() {
	p.t.Helper()
	text := fmt.Sprintf("station = \"line3-a\"\nsku = \"widgiot\"\nstate_dir = %q\nlisten = \"127.0.0.1:1\"\n%s[[slot]]\nname = \"A\"\nport = %q\ndialect = \"auto\"\n", p.state, p.top, p.port)
	if p.rest == "" {
		text += fmt.Sprintf("[registry]\nkind = \"dir\"\ndir = %q\n", p.registry)
	}
	must(p.t, os.WriteFile(p.c.Path, []byte(text+p.rest), 0o600))
}

func (p *patient) examine() []Result {
	p.t.Helper()
	if _, err := os.Stat(p.c.Path); err != nil {
		p.configure()
	}
	return met(Examine(p.t.Context(), p.c))
}

// exam is for one check alone.
func (p *patient) exam() *exam {
	p.t.Helper()
	p.configure()
	return newExam(p.t.Context(), p.c)
}

type sinkFunc func(context.Context, board.Sealed) error

func (f sinkFunc) Put(ctx context.Context, s board.Sealed) error { return f(ctx, s) }

// journal opens a journal with some records; none is delivered.
func (p *patient) journal(records int) *spool.Spool {
	p.t.Helper()
	id, err := journal.LoadIdentity(p.state, "widgiot/line3-a")
	must(p.t, err)
	s, err := spool.Open(spool.Config{Dir: p.state, Identity: id, Sink: sinkFunc(func(context.Context, board.Sealed) error { return errors.New("away") })})
	must(p.t, err)
	p.t.Cleanup(func() { s.Close() })
	for range records {
		r := newRecord(p.t)
		_, err := s.Append(p.t.Context(), spool.Reading{Record: &r, Slot: "A"})
		must(p.t, err)
	}
	must(p.t, s.Checkpoint())
	return s
}

func newRecord(t *testing.T) board.Record {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err := board.NewKey(private.Public(), nil)
	must(t, err)
	var device board.DeviceID
	rand.Read(device[:])
	return board.Record{SKU: "widgiot", Station: "line3-a", Device: device, Key: key, ReadAt: time.Now().UTC().Truncate(time.Millisecond), Generation: 1, Facts: map[string]string{"dialect": "ti-at"}}
}

// seen are all results that tests have met.
var seen struct {
	sync.Mutex
	all []Result
}

func met(results []Result) []Result {
	seen.Lock()
	defer seen.Unlock()
	seen.all = append(seen.all, results...)
	return results
}

// want demands a finding: "warn disk.sync", a part of its text.
func want(t *testing.T, results []Result, what, text string) {
	t.Helper()
	met(results)
	for _, r := range results {
		if string(r.Level)+" "+r.Check == what && strings.Contains(r.Text, text) {
			return
		}
	}
	t.Errorf("%s, %q is not found: %+v", what, text, results)
}

// onlyOK demands that nothing is wrong but what is named.
func onlyOK(t *testing.T, results []Result, but ...string) {
	t.Helper()
	for _, r := range met(results) {
		if named := strings.Contains(" "+strings.Join(but, " ")+" ", " "+r.Check+" "); r.Level != OK && !named {
			t.Errorf("%+v", r)
		}
	}
}

// TestMain makes sure, when all tests ran, that each warning and failure of the
// source was reached by one.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.list").Value.String() == "" && !testing.Short() {
		for _, missing := range unreached() {
			fmt.Println("no test reaches", missing)
			code = 1
		}
	}
	os.Exit(code)
}

var verb = regexp.MustCompile(`%[sdvq]`)

func unreached() (missing []string) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		return []string{err.Error()}
	}
	set := token.NewFileSet()
	calls := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			return []string{err.Error()}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 3 {
				return true
			}
			fun, ok := call.Fun.(*ast.Ident)
			if !ok || fun.Name != "warn" && fun.Name != "fail" {
				return true
			}
			calls++
			format, isText := call.Args[2].(*ast.BasicLit)
			if !isText {
				return true
			}
			text, _ := strconv.Unquote(format.Value)
			pattern := regexp.QuoteMeta(text)
			pattern = "(?s)" + strings.ReplaceAll(verb.ReplaceAllString(pattern, ".*"), "%%", "%")
			check := ""
			if lit, ok := call.Args[0].(*ast.BasicLit); ok {
				check, _ = strconv.Unquote(lit.Value)
			}
			for _, r := range seen.all {
				if string(r.Level) == fun.Name && (check == "" || check == r.Check) && regexp.MustCompile(pattern).MatchString(r.Text) {
					return true
				}
			}
			missing = append(missing, fmt.Sprintf("%s: %s %s %q", set.Position(call.Pos()), fun.Name, check, text))
			return true
		})
	}
	if calls < 60 {
		missing = append(missing, fmt.Sprintf("anything: %d calls were found", calls))
	}
	return missing
}
