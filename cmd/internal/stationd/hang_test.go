package stationd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"secretfree/cmd/internal/stationconf"
	"secretfree/station"
)

// hangSyncs has every sync of this process wait for ever from now on, as a disk
// that does not answer does: the kernel asks a listener that never speaks.
func hangSyncs() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
		allow = 0x7fff0000
		ask   = 0x7fc00000
	)
	code := []unix.SockFilter{
		{Code: load, K: 0}, // the number of the call
		{Code: equal, K: unix.SYS_FDATASYNC, Jt: 2},
		{Code: equal, K: unix.SYS_FSYNC, Jt: 1},
		{Code: ret, K: allow},
		{Code: ret, K: ask},
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const setFilter, allThreads, listener, orError = 1, 1 << 0, 1 << 3, 1 << 4
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, setFilter, allThreads|listener|orError, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return nil
}

const hangEnv = "STATIOND_HANGS"

// TestHangingDiskDaemon is the daemon of TestHangingDisk, in a process of its
// own.
func TestHangingDiskDaemon(t *testing.T) {
	name := os.Getenv(hangEnv)
	if name == "" {
		t.Skip("it is a part of TestHangingDisk")
	}
	c, err := stationconf.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), c, zerolog.New(os.Stderr))
	if err != nil {
		t.Fatal(err)
	}
	d.diskLimit = 200 * time.Millisecond
	hang := make(chan os.Signal, 1)
	signal.Notify(hang, unix.SIGUSR1)
	go func() {
		<-hang
		if err := hangSyncs(); err != nil {
			fmt.Fprintf(os.Stderr, "no seccomp: %v\n", err)
			os.Exit(3)
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	fmt.Printf("http://%s\n", d.Addr())
	if err := d.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A disk that hangs: the page, the status and the metrics answer, the health is
// red and says why, and a stop takes less than 5 s and says that it was no
// orderly one. When the disk is back, what has passed is there.
func TestHangingDisk(t *testing.T) {
	f := newFactory(t)
	f.config()
	var stderr lockedBuffer
	daemon := exec.Command(os.Args[0], "-test.run=^TestHangingDiskDaemon$", "-test.timeout=1m")
	daemon.Env = append(os.Environ(), hangEnv+"="+filepath.Join(f.dir, "stationd.toml"))
	daemon.Stderr = &stderr
	stdout, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	defer daemon.Process.Kill()
	address, err := lines(stdout)()
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	go func() { ended <- daemon.Wait() }()
	get := func(path string) (int, string) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatalf("%s: %v\n%s", path, err, stderr.String())
		}
		defer answer.Body.Close()
		var body bytes.Buffer
		if _, err := body.ReadFrom(answer.Body); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return answer.StatusCode, body.String()
	}
	await := func(path, want string) {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for limit := time.Now().Add(30 * time.Second); ; <-ticker.C {
			if _, body := get(path); strings.Contains(body, want) {
				return
			} else if time.Now().After(limit) {
				t.Fatalf("%s never had %q: %s\n%s", path, want, body, stderr.String())
			}
		}
	}
	good := newBoard()
	f.plug(f.ports[0], good)
	await("/status", `"name":"A","state":"passed","device":"`+good.ID())
	await("/status", `"pending":0`)
	if code, body := get("/healthz"); code != http.StatusOK {
		t.Errorf("before: %d %s", code, body)
	}
	if err := daemon.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	late := newBoard()
	f.plug(f.ports[1], late)
	select {
	case <-ended:
		if daemon.ProcessState.ExitCode() == 3 && os.Getenv("CI") != "true" {
			t.Skip(stderr.String())
		}
		t.Fatal(stderr.String())
	default:
	}
	await("/healthz", "stalled disk: the disk of this station has not answered for ")
	if code, _ := get("/healthz"); code != http.StatusServiceUnavailable {
		t.Errorf("the health has %d", code)
	}
	for path, want := range map[string]string{"/": "stalled disk", "/status": "stalled disk", "/metrics": "stationd_healthy 0"} {
		if code, body := get(path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d, lacks %q: %s", path, code, want, body)
		}
	}
	began := time.Now()
	if err := daemon.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var failed *exec.ExitError
	if err := <-ended; !errors.As(err, &failed) || failed.ExitCode() != 1 || time.Since(began) > 15*time.Second /* TimeoutStopSec= of the unit */ {
		t.Errorf("it stopped after %v with %v", time.Since(began), err)
	}
	if !strings.Contains(stderr.String(), "the disk has not answered for ") {
		t.Errorf("it says nothing of the disk:\n%s", stderr.String())
	}
	d := f.start()
	d.awaitSlot(0, station.Passed)
	d.awaitSlot(1, station.Passed)
	d.stop()
	if report := f.verify(); report.Records != 2 {
		t.Errorf("the journal holds %+v", report)
	}
}
