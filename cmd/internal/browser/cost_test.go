package browser_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var cost = flag.Duration("cost", 0, "measure for so long what ten open pages cost the daemon; 0: not at all")

// Ten pages that are open cost the daemon next to nothing. It is measured on
// request alone: .ci/page.sh run go test ./cmd/internal/browser -run TestCost
// -cost 60s -v
func TestCost(t *testing.T) {
	if *cost == 0 {
		t.Skip("-cost says for how long")
	}
	f := newFactory(t, "")
	program := filepath.Join(f.dir, "stationd")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "secretfree/cmd/stationd").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	daemon := exec.CommandContext(t.Context(), program, "--config", f.config())
	daemon.Stderr = f.log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Signal(syscall.SIGTERM)
		daemon.Wait()
	})
	for deadline := time.After(limit); !strings.Contains(f.log.String(), "ready"); {
		select {
		case <-deadline:
			t.Fatalf("it does not start:\n%s", f.log)
		case <-time.After(20 * time.Millisecond):
		}
	}
	measure := func(what string) {
		before, start := ticks(t, daemon.Process.Pid), time.Now()
		<-time.After(*cost)
		share := 100 * float64(ticks(t, daemon.Process.Pid)-before) / 100 / time.Since(start).Seconds()
		t.Logf("%s: %.2f %% of a core over %v", what, share, *cost)
		if share >= 2 {
			t.Errorf("%s: %.2f %% of a core, want less than 2", what, share)
		}
	}
	measure("no page")
	for range 10 {
		b := open(t, tablet)
		b.expect("ERR_") // at the end the daemon goes first
		b.visit(f.url())
		b.is("A", "absent", "")
	}
	measure("ten pages")
}

// ticks are the hundredths of a second that a process had of a processor.
func ticks(t *testing.T, pid int) int64 {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var sum int64
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
