package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"secretfree/cmd/internal/cli"
)

// lockedBuffer is written by the demo and read by its test.
type lockedBuffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// await waits until the demo has said something after what it had said before, and returns all it said.
func (l *lockedBuffer) await(t *testing.T, from int, text string) int {
	t.Helper()
	patience := time.NewTimer(30 * time.Second)
	defer patience.Stop()
	for {
		said := l.String()
		if i := strings.Index(said[from:], text); i >= 0 {
			return from + i + len(text)
		}
		select {
		case <-l.changed:
		case <-patience.C:
			t.Fatalf("the demo never said %q after %q", text, said[from:])
		}
	}
}

func newBuffer() *lockedBuffer { return &lockedBuffer{changed: make(chan struct{}, 1)} }

func TestOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	for _, run := range []string{"new", "again in the same folder"} {
		var results bytes.Buffer
		people := newBuffer()
		g := &grammar{Once: true, Dir: dir, Listen: "127.0.0.1:0"}
		if err := g.Run(t.Context(), &cli.Output{Out: &results, People: people, Err: people, JSON: true}); err != nil {
			t.Fatalf("%s: %v\n%s", run, err, people)
		}
		var told summary
		if err := json.Unmarshal(results.Bytes(), &told); err != nil {
			t.Fatalf("%s: %v in %s", run, err, &results)
		}
		if !told.OK || told.Records != 1 || told.Repeats != 1 || told.Refusals != 2 || told.Certificates != 1 || told.Forgeries != 2 {
			t.Errorf("%s: %+v", run, told)
		}
		for _, step := range []string{" 1. ", "device-conflict", "key-conflict", "unplugged", "crypto/x509", "byte for byte", "refused"} {
			if !strings.Contains(people.String(), step) {
				t.Errorf("%s: the story lacks %q:\n%s", run, step, people)
			}
		}
	}
	for _, name := range []string{"port-a", "port-b"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("the port %s was left behind: %v", name, err)
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cli.ErrStopped)
	out := newBuffer()
	if err := (&grammar{Once: true, Listen: "127.0.0.1:0"}).Run(ctx, &cli.Output{Out: out, People: out, Err: out}); err != nil {
		t.Errorf("a demo that is stopped: %v", err)
	}
	left, err := os.ReadDir(temp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// The keys, pressed on a real terminal.
func TestKeys(t *testing.T) {
	terminal, keyboard := openTerminal(t)
	f, err := openFactory(t.Context(), t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out := newBuffer()
	s := &story{factory: f, out: out}
	if _, err := s.tell(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.live(t.Context(), terminal) }()
	at := out.await(t, 0, "q      end")
	press := func(key, want string) {
		t.Helper()
		if _, err := keyboard.WriteString(key); err != nil {
			t.Fatal(err)
		}
		at = out.await(t, at, want)
	}
	press("a", "slot A: passed")
	press("a", "slot A: empty")
	press("i", "device-conflict")
	press("i", "slot A: empty")
	press("k", "key-conflict")
	press("k", "slot A: empty")
	press("s", "nothing was added")
	press("t", "slot B: absent")
	press("t", "slot B: empty")
	press("n", "registry is away")
	press("b", "slot B: passed")
	press("n", "registry is back")
	press("c", "serial number")
	if _, err := keyboard.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("q: %v", err)
	}
	if err := f.close(); err != nil {
		t.Error(err)
	}
}

func openTerminal(t *testing.T) (terminal, keyboard *os.File) {
	t.Helper()
	keyboard, terminal, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		keyboard.Close()
		terminal.Close()
	})
	return terminal, keyboard
}
