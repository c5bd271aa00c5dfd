package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

// await waits until the demo has said something after what it had said before,
// and returns all it said.
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

// The story, and then the same folder once more: the story goes on from what is
// there, and the keys work on a real terminal.
func TestDemo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	t.Run("once", func(t *testing.T) { testOnce(t, dir) })
	t.Run("again, with keys", func(t *testing.T) { testKeys(t, dir) })
	for _, name := range []string{"port-a", "port-b"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("the port %s was left behind: %v", name, err)
		}
	}
}

func testOnce(t *testing.T, dir string) {
	var results bytes.Buffer
	people := newBuffer()
	g := &grammar{Once: true, Dir: dir, Listen: "127.0.0.1:0"}
	if err := g.Run(t.Context(), &cli.Output{Out: &results, People: people, Err: people, JSON: true}); err != nil {
		t.Fatalf("%v\n%s", err, people)
	}
	var told summary
	if err := json.Unmarshal(results.Bytes(), &told); err != nil {
		t.Fatalf("%v in %s", err, &results)
	}
	checkStory(t, told, people.String())
}

func checkStory(t *testing.T, told summary, said string) {
	t.Helper()
	if told.Records != 1 || told.Repeats != 1 || told.Refusals != 2 || told.Certificates != 1 || told.Forgeries != 2 {
		t.Errorf("%+v", told)
	}
	for _, step := range []string{" 1. ", "device-conflict", "key-conflict", "unplugged", "crypto/x509", "byte for byte", "refused"} {
		if !strings.Contains(said, step) {
			t.Errorf("the story lacks %q:\n%s", step, said)
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cli.ErrStopped)
	out := newBuffer()
	// Whoever asks for the story alone counts on it; who plays may stop at any
	// time.
	err := (&grammar{Once: true, Listen: "127.0.0.1:0"}).Run(ctx, &cli.Output{Out: out, People: out, Err: out})
	if !errors.Is(err, cli.ErrStopped) || !strings.Contains(err.Error(), "the story was not told to its end") {
		t.Errorf("a demo with -once that is stopped: %v", err)
	}
	if err := (&grammar{Listen: "127.0.0.1:0"}).Run(ctx, &cli.Output{Out: out, People: out, Err: out}); err != nil {
		t.Errorf("a demo that is stopped: %v", err)
	}
	left, err := os.ReadDir(temp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// A second demo in a folder is refused before it touches anything there.
func TestFolderInUse(t *testing.T) {
	dir := t.TempDir()
	lock, err := takeFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	port := filepath.Join(dir, "port-a")
	if err := os.Symlink("/dev/of-the-first", port); err != nil {
		t.Fatal(err)
	}
	if f, err := openFactory(t.Context(), dir, "127.0.0.1:0"); err == nil {
		f.close()
		t.Error("two demos in one folder")
	} else if !strings.Contains(err.Error(), "another demo uses "+dir) {
		t.Errorf("got %v", err)
	}
	if target, err := os.Readlink(port); err != nil || target != "/dev/of-the-first" {
		t.Errorf("the first one's port leads to %q, %v", target, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("the second one left %v, %v", left, err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if lock, err = takeFolder(dir); err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	lock.Close()
}

func testKeys(t *testing.T, dir string) {
	terminal, keyboard := openTerminal(t)
	f, err := openFactory(t.Context(), dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out := newBuffer()
	s := &story{factory: f, out: out}
	told, err := s.tell(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checkStory(t, told, out.String())
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
