package stationd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cloud"
	"secretfree/cmd/internal/stationconf"
	"secretfree/fixtures"
	"secretfree/station"
)

// factory is a folder with a configuration, a registry and ports.
type factory struct {
	t        *testing.T
	dir      string
	registry string
	station  string
	state    string
	ports    []string
	top      string // lines before all tables
	slot     string // lines of each slot
	extra    string
}

func newFactory(t *testing.T) *factory {
	dir := t.TempDir()
	f := &factory{t: t, dir: dir, station: "line3-a", registry: filepath.Join(dir, "registry"), state: filepath.Join(dir, "state"),
		ports: []string{filepath.Join(dir, "port-a"), filepath.Join(dir, "port-b")}}
	if err := cloud.InitDir(f.registry); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *factory) config() stationconf.Config {
	f.t.Helper()
	text := fmt.Sprintf("station = %q\nsku = \"widgiot\"\nstate_dir = %q\nlisten = \"127.0.0.1:0\"\n%s", f.station, f.state, f.top)
	for i, port := range f.ports {
		text += fmt.Sprintf("[[slot]]\nname = %q\nport = %q\ndialect = \"ti-at\"\n%s", string(rune('A'+i)), port, f.slot)
	}
	if f.registry == "" {
		text += "[registry]\nkind = \"none\"\n" + f.extra
	} else {
		text += fmt.Sprintf("[registry]\nkind = \"dir\"\ndir = %q\n%s", f.registry, f.extra)
	}
	name := filepath.Join(f.dir, "stationd.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	c, err := stationconf.Load(name)
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// running is a daemon that runs.
type running struct {
	*Daemon
	t    *testing.T
	log  *lockedBuffer
	stop func() // orderly; may be called twice
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (f *factory) start() *running {
	f.t.Helper()
	log := new(lockedBuffer)
	d, err := Open(f.t.Context(), f.config(), zerolog.New(log))
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run: %v", err)
		}
	})
	f.t.Cleanup(stop)
	return &running{Daemon: d, t: f.t, log: log, stop: stop}
}

func (r *running) get(path string) (int, string) {
	r.t.Helper()
	answer, err := http.Get("http://" + r.Addr() + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

// await follows the page's own events until one of them is as wanted.
func (r *running) await(what string, want func(station.Status) bool) station.Status {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Addr()+"/events", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	var last string
	decoder := lines(answer.Body)
	for {
		line, err := decoder()
		if err != nil {
			r.t.Fatalf("waiting for %s: %v; the last status was %s; the log:\n%s", what, err, last, r.log)
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		last = data
		var status station.Status
		if err := json.Unmarshal([]byte(data), &status); err != nil {
			r.t.Fatal(err)
		}
		if want(status) {
			return status
		}
	}
}

func lines(in io.Reader) func() (string, error) {
	var buffer []byte
	chunk := make([]byte, 4096)
	return func() (string, error) {
		for {
			if line, rest, ok := bytes.Cut(buffer, []byte("\n")); ok {
				buffer = rest
				return string(line), nil
			}
			n, err := in.Read(chunk)
			buffer = append(buffer, chunk[:n]...)
			if err != nil {
				return "", err
			}
		}
	}
}

func (r *running) awaitSlot(i int, state station.State) station.SlotStatus {
	r.t.Helper()
	return r.await(fmt.Sprintf("slot %d to be %s", i, state), func(s station.Status) bool { return s.Slots[i].State == state }).Slots[i]
}

// plug puts a board on a port until the returned function is called.
func (f *factory) plug(port string, b *fixtures.Board) (unplug func()) {
	f.t.Helper()
	p, err := fixtures.OpenPort(port)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Serve(ctx, b) // ends with the port
	}()
	unplug = sync.OnceFunc(func() {
		cancel()
		<-done
		p.Close()
	})
	f.t.Cleanup(unplug)
	return unplug
}

func newBoard() *fixtures.Board {
	return &fixtures.Board{Device: fixtures.NewDevice(), Key: fixtures.NewKey()}
}

// makeNewer turns a segment into what a newer version would have written.
func makeNewer(t *testing.T, segment string) {
	t.Helper()
	data, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := bytes.Cut(data, []byte("\n"))
	entry := bytes.Replace(first[:len(first)-len(" 01234567")], []byte(`"format":2`), []byte(`"format":3`), 1)
	line := fmt.Appendf(nil, "%s %08x\n%s", entry, crc32.Checksum(entry, crc32.MakeTable(crc32.Castagnoli)), rest)
	if err := os.WriteFile(segment, line, 0o600); err != nil {
		t.Fatal(err)
	}
}
