package cmd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	// What the commands are made of, so that go test has compiled it before
	// this test builds them: from a cold cache, both would do that work at
	// once.
	_ "secretfree/cmd/internal/issuerd"
	_ "secretfree/cmd/internal/stationd"

	"secretfree/fixtures"
	"secretfree/station/board"
)

// commands are built once and run as users run them.
var commands = []string{"stationd", "stationctl", "issuerd", "issuerctl", "demo"}

const patience = 60 * time.Second

// built is the folder that TestMain takes away, and what became of building the
// commands into it.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// builtCommands is the folder of all commands, which are built when they are
// first asked for.
func builtCommands(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "secretfree-commands-"); built.err != nil {
			return
		}
		args := []string{"build", "-ldflags=-s -w", "-o", built.dir} // what debuggers need is a quarter of the work
		for _, name := range commands {
			args = append(args, "./"+name)
		}
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func TestScripts(t *testing.T) {
	bin := builtCommands(t)
	recorded, err := filepath.Abs(transcripts)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Setenv("TRANSCRIPTS", recorded)
			for _, name := range []string{"LISTEN", "ISSUER", "METRICS"} {
				address, err := freeAddress()
				if err != nil {
					return err
				}
				e.Setenv(name, address)
			}
			f := &floor{keys: map[string]*ecdsa.PrivateKey{}, ports: map[string]func(){}}
			e.Values[floorKey{}] = f
			e.Defer(f.clear)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"expand":    expand,
			"replace":   replace,
			"plug":      plug,
			"unplug":    unplug,
			"await":     await,
			"terminate": terminate,
			"newer":     newer,
			"csr":       csr,
			"post":      post,
		},
	})
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

type floorKey struct{}

// floor is what is plugged in while a script runs.
type floor struct {
	mu    sync.Mutex
	keys  map[string]*ecdsa.PrivateKey // by name, so that boards can share one
	ports map[string]func()
}

func (f *floor) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for port, pull := range f.ports {
		pull()
		delete(f.ports, port)
	}
}

func (f *floor) key(name string) *ecdsa.PrivateKey {
	if f.keys[name] == nil {
		f.keys[name] = fixtures.NewKey()
	}
	return f.keys[name]
}

func floorOf(ts *testscript.TestScript) *floor { return ts.Value(floorKey{}).(*floor) }

func deviceID(ts *testscript.TestScript, text string) [16]byte {
	id, err := board.ParseDeviceID(text)
	ts.Check(err)
	return id
}

// expand FILE...: replaces $WORK, $LISTEN, … in files.
func expand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		name = ts.MkAbs(name)
		ts.Check(os.WriteFile(name, []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
	}
}

// replace FILE OLD NEW: replaces a text in a file; NEW may be @FILE, its
// content.
func replace(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	text, new := ts.ReadFile(args[0]), args[2]
	if name, ok := strings.CutPrefix(new, "@"); ok {
		new = strings.TrimSpace(ts.ReadFile(name))
	}
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s holds no %s", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.ReplaceAll(text, args[1], new)), 0o600))
}

// plug PORT DEVICE KEY: a good board with a device id and a named key.
func plug(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: plug PORT DEVICE KEY")
	}
	f := floorOf(ts)
	port, err := fixtures.OpenPort(ts.MkAbs(args[0]))
	ts.Check(err)
	b := &fixtures.Board{Device: deviceID(ts, args[1]), Key: f.key(args[2])}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		port.Serve(ctx, b) // the station tells what became of it
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ports[args[0]] = func() {
		cancel()
		<-served
		port.Close()
	}
}

// unplug PORT: takes the board and its port away.
func unplug(ts *testscript.TestScript, _ bool, args []string) {
	f := floorOf(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, port := range args {
		f.ports[port]()
		delete(f.ports, port)
	}
}

// await URL PATTERN: asks until the answer matches.
func await(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: await URL PATTERN")
	}
	pattern, err := regexp.Compile(args[1])
	ts.Check(err)
	limit := time.After(patience)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	last := "nothing"
	for {
		answer, err := http.Get(args[0])
		if err == nil {
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			ts.Check(err)
			if last = string(body); pattern.Match(body) {
				return
			}
		}
		select {
		case <-ticker.C:
		case <-limit:
			ts.Fatalf("%s never answered with %s; the last answer was %s", args[0], args[1], last)
		}
	}
}

// terminate sends SIGTERM to what runs in the background.
func terminate(ts *testscript.TestScript, _ bool, _ []string) {
	for _, c := range ts.BackgroundCmds() {
		if c.ProcessState == nil {
			ts.Check(c.Process.Signal(syscall.SIGTERM))
		}
	}
}

// newer SEGMENT: makes the file one of a newer version.
func newer(ts *testscript.TestScript, _ bool, args []string) {
	name := ts.MkAbs(args[0])
	data, err := os.ReadFile(name)
	ts.Check(err)
	first, rest, _ := bytes.Cut(data, []byte("\n"))
	entry := regexp.MustCompile(`"format":[0-9]+`).ReplaceAll(first[:len(first)-len(" 01234567")], []byte(`"format":99`))
	ts.Check(os.Chmod(name, 0o600))
	ts.Check(os.WriteFile(name, fmt.Appendf(nil, "%s %08x\n%s", entry, crc32.Checksum(entry, crc32.MakeTable(crc32.Castagnoli)), rest), 0o600))
}

// csr FILE DEVICE KEY: a request for a device id, signed with a named key.
func csr(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: csr FILE DEVICE KEY")
	}
	b := &fixtures.Board{Device: deviceID(ts, args[1]), Key: floorOf(ts).key(args[2])}
	text, err := b.CSR(args[1], x509.ECDSAWithSHA1)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), text, 0o600))
}

// post URL FILE STATUS OUT: posts a request and keeps the answer.
func post(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: post URL FILE STATUS OUT")
	}
	answer, err := http.Post(args[0], "application/pkcs10", strings.NewReader(ts.ReadFile(args[1])))
	ts.Check(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	ts.Check(err)
	if strconv.Itoa(answer.StatusCode) != args[2] {
		ts.Fatalf("the answer is %s, want %s:\n%s", answer.Status, args[2], body)
	}
	ts.Check(os.WriteFile(filepath.Clean(ts.MkAbs(args[3])), body, 0o600))
}
