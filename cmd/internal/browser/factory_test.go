package browser_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"secretfree/cloud"
	"secretfree/cmd/internal/stationconf"
	"secretfree/cmd/internal/stationd"
	"secretfree/fixtures"
)

// factory is a real station with two ports, at an address that stays, and a
// registry in a folder.
type factory struct {
	t       *testing.T
	dir     string
	address string
	extra   string // of the configuration
	stop    func() // the daemon that runs; may be called twice
	log     *lockedBuffer
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

func newFactory(t *testing.T, extra string) *factory {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &factory{t: t, dir: t.TempDir(), address: l.Addr().String(), extra: extra, log: new(lockedBuffer)}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cloud.InitDir(filepath.Join(f.dir, "registry")); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *factory) url() string { return "http://" + f.address + "/" }

func (f *factory) port(i int) string { return filepath.Join(f.dir, fmt.Sprintf("port-%d", i)) }

func (f *factory) config() string {
	f.t.Helper()
	text := fmt.Sprintf("station = \"line3-a\"\nsku = \"widgiot\"\nstate_dir = %q\nlisten = %q\n", filepath.Join(f.dir, "state"), f.address)
	for i := range 2 {
		text += fmt.Sprintf("[[slot]]\nname = %q\nport = %q\ndialect = \"ti-at\"\n", slotName(i), f.port(i))
	}
	text += fmt.Sprintf("[registry]\nkind = \"dir\"\ndir = %q\n%s", filepath.Join(f.dir, "registry"), f.extra)
	name := filepath.Join(f.dir, "stationd.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return name
}

// start runs the daemon in this process.
func (f *factory) start() {
	f.t.Helper()
	c, err := stationconf.Load(f.config())
	if err != nil {
		f.t.Fatal(err)
	}
	d, err := stationd.Open(f.t.Context(), c, zerolog.New(f.log))
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run: %v", err)
		}
	})
	f.t.Cleanup(f.stop)
}

// plug puts a board on a port until the returned function is called.
func (f *factory) plug(port int, b *fixtures.Board) (unplug func()) {
	f.t.Helper()
	p, err := fixtures.OpenPort(f.port(port))
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
