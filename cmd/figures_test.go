package cmd_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"secretfree/cloud"
	"secretfree/fixtures"
	"secretfree/spool"
	spooljournal "secretfree/spool/journal"
	"secretfree/station/board"
)

var (
	figures        = flag.Bool("figures", false, "measure what a station costs: minutes (.ci/bench-station.sh)")
	figuresIdle    = flag.Duration("figuresidle", time.Minute, "how long an idle station is looked at")
	figuresRecords = flag.Int("figuresrecords", 100_000, "how many records are in the journal of a station that starts")
	figuresState   = flag.String("figuresstate", "", "a folder in which that journal is made, or was made before")
	figuresStarts  = flag.Int("figuresstarts", 9, "how often it is started")
)

// What a station may cost.
const (
	mostStart   = 300 * time.Millisecond // from exec to READY=1; the fastest of the starts, since other work on the machine makes it only slower
	mostMemory  = 30 << 20               // bytes
	mostIdle    = 0.01                   // of a core
	mostWatched = 0.02
	watchers    = 10
	idleSlots   = 16
)

// confirming is a registry that confirms all.
type confirming struct{}

func (confirming) Put(context.Context, board.Sealed) error { return nil }

func (confirming) PutBatch(_ context.Context, records []board.Sealed) []error {
	return make([]error, len(records))
}

// TestFigures measures stationd as a user runs it: the start with a long
// journal, and what it costs to wait for boards.
func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("it takes minutes: .ci/bench-station.sh")
	}
	bin := filepath.Join(t.TempDir(), "stationd")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", bin, "./stationd").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	long := cmp.Or(*figuresState, filepath.Join(t.TempDir(), "state"))
	if _, err := os.Stat(long); errors.Is(err, os.ErrNotExist) {
		journal(t, long, *figuresRecords)
	}
	t.Run("start", func(t *testing.T) {
		var took []time.Duration
		for range *figuresStarts {
			s := startStation(t, bin, long, 1)
			took = append(took, s.ready)
			s.stop()
		}
		slices.Sort(took)
		t.Logf("exec to READY=1 with %d records: fastest %v, median %v (most: %v)", *figuresRecords, took[0], took[len(took)/2], mostStart)
		if took[0] > mostStart {
			t.Errorf("it takes %v", took[0])
		}
	})
	for name, state := range map[string]string{"idle": filepath.Join(t.TempDir(), "state"), "idle with a long journal": long} {
		t.Run(name, func(t *testing.T) {
			s := startStation(t, bin, state, idleSlots)
			s.settle()
			share := s.share(*figuresIdle)
			memory, anonymous := s.memory()
			t.Logf("%d slots without a board for %v: %.2f %% of a core, %.1f MiB (of which not of files %.1f MiB)", idleSlots, *figuresIdle, 100*share, mib(memory), mib(anonymous))
			if share > mostIdle {
				t.Errorf("it takes %.2f %% of a core, want %.0f %% at the most", 100*share, 100*mostIdle)
			}
			if memory > mostMemory {
				t.Errorf("it takes %.1f MiB, want %d at the most", mib(memory), mostMemory>>20)
			}
			for range watchers {
				s.watch()
			}
			share = s.share(*figuresIdle)
			memory, anonymous = s.memory()
			t.Logf("with %d pages open: %.2f %% of a core, %.1f MiB (of which not of files %.1f MiB)", watchers, 100*share, mib(memory), mib(anonymous))
			if share > mostWatched {
				t.Errorf("with %d pages open it takes %.2f %% of a core, want %.0f %% at the most", watchers, 100*share, 100*mostWatched)
			}
			s.stop()
		})
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// journal makes a state directory with so many records, all of them delivered.
func journal(t *testing.T, dir string, records int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	id, err := spooljournal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	s, err := spool.Open(spool.Config{Dir: dir, Identity: id, Sink: confirming{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	delivery := make(chan error, 1)
	go func() { delivery <- s.Run(ctx) }()
	const writers = 64
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for n := w; n < records; n += writers {
				b := &fixtures.Board{Device: fixtures.NewDevice(), Key: fixtures.NewKey()}
				key, err := board.ParseKey(b.SPKI())
				if err != nil {
					t.Error(err)
					return
				}
				device, err := board.NewDeviceID(b.Device)
				if err != nil {
					t.Error(err)
					return
				}
				r := board.Record{SKU: "widgiot", Station: "line3-a", Device: device, Key: key, ReadAt: time.Now().UTC().Truncate(time.Millisecond), Generation: 1,
					Facts: map[string]string{"dialect": "ti-at", "version": "1.2.3", "mac": "08:00:28:5b:55:e0"}}
				if _, err := s.Append(ctx, spool.Reading{Record: &r, Slot: "A"}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writing.Wait()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for s.Stats().Pending > 0 && !t.Failed() {
		<-ticker.C
	}
	stop()
	if err := errors.Join(<-delivery, s.Close()); err != nil || t.Failed() {
		t.Fatal(err)
	}
}

// measured is a stationd that runs.
type measured struct {
	t     *testing.T
	page  string
	ready time.Duration // from exec to READY=1
	cmd   *exec.Cmd
	stop  func()
}

func startStation(t *testing.T, bin, state string, slots int) *measured {
	t.Helper()
	dir := t.TempDir()
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	registry := filepath.Join(dir, "registry")
	if err := cloud.InitDir(registry); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("station = \"line3-a\"\nsku = \"widgiot\"\nstate_dir = %q\nlisten = %q\n[registry]\nkind = \"dir\"\ndir = %q\n", state, address, registry)
	ctx, cancel := context.WithCancel(t.Context())
	var ports sync.WaitGroup
	for i := range slots {
		path := filepath.Join(dir, "port-"+strconv.Itoa(i))
		port, err := fixtures.OpenPort(path)
		if err != nil {
			t.Fatal(err)
		}
		ports.Go(func() {
			defer port.Close()
			if err := port.Empty(ctx); err != nil {
				t.Error(err)
			}
		})
		text += fmt.Sprintf("[[slot]]\nname = \"%d\"\nport = %q\ndialect = \"auto\"\n", i, path)
	}
	name := filepath.Join(dir, "stationd.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	s := &measured{t: t, page: "http://" + address, cmd: exec.Command(bin, "--config", name)}
	s.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd.Stderr = log
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stop = sync.OnceFunc(func() {
		s.cmd.Process.Signal(syscall.SIGTERM)
		if err := s.cmd.Wait(); err != nil {
			said, _ := os.ReadFile(log.Name())
			t.Errorf("stationd: %v\n%s", err, said)
		}
		cancel()
		ports.Wait()
	})
	t.Cleanup(s.stop)
	buffer := make([]byte, 4096)
	for {
		if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := notify.Read(buffer)
		if err != nil {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("%v\n%s", err, said)
		}
		if strings.Contains(string(buffer[:n]), "READY=1") {
			s.ready = time.Since(began)
			return s
		}
	}
}

// settle waits until what a start leaves to be done is done: copies of the
// journal, and the looking for boards.
func (s *measured) settle() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for quiet := 0; quiet < 5; {
		before := s.cpu()
		<-ticker.C
		if quiet++; s.cpu()-before > 50*time.Millisecond {
			quiet = 0
		}
	}
}

// share is of one core.
func (s *measured) share(over time.Duration) float64 {
	before, began := s.cpu(), time.Now()
	timer := time.NewTimer(over)
	defer timer.Stop()
	<-timer.C
	return (s.cpu() - before).Seconds() / time.Since(began).Seconds()
}

// cpu is what the process has used.
func (s *measured) cpu() time.Duration {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	total := int64(0)
	for _, field := range fields[11:13] { // utime, stime: see proc(5)
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		total += n
	}
	const perSecond = 100 // USER_HZ, as all architectures of Linux have it
	return time.Duration(total) * time.Second / perSecond
}

// memory is what the process has resident, and what of it is not of files.
func (s *measured) memory() (all, anonymous int64) {
	s.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if _, err := fmt.Sscanf(lines.Text(), "VmRSS: %d kB", &kib); err == nil {
			all = kib << 10
		}
		if _, err := fmt.Sscanf(lines.Text(), "RssAnon: %d kB", &kib); err == nil {
			anonymous = kib << 10
		}
	}
	return all, anonymous
}

// watch has one page open until the test ends.
func (s *measured) watch() {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.page+"/events", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(io.Discard, answer.Body) // ends with the station
	}()
	s.t.Cleanup(func() {
		answer.Body.Close()
		<-done
	})
}
