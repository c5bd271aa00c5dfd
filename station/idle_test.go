package station

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

// BenchmarkIdle has a station with sixteen slots and no board for 5 s: half of
// the ports are there, the others are not. It reports the share of one core,
// and the memory of the whole process, tests and all. With -short it only has to
// run, and waits half a second.
func BenchmarkIdle(b *testing.B) {
	wait := 5 * time.Second
	if testing.Short() {
		wait = 500 * time.Millisecond
	}
	for _, name := range []string{"auto", "ti-at", "ti-csr", "report"} {
		b.Run(name, func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			var running sync.WaitGroup
			scene, err := NewPrecondition("")
			if err != nil {
				b.Fatal(err)
			}
			c := Config{SKU: "widgiot", Station: "line3-a", Journal: scene, Backlog: func() Backlog { return Backlog{} }, Delivery: func(board.DeviceID) Delivery { return Waiting }}
			for i := range 16 {
				path := filepath.Join(b.TempDir(), fmt.Sprintf("slot-%d", i))
				if i%2 == 0 {
					port, err := fixtures.OpenPort(path)
					if err != nil {
						b.Fatal(err)
					}
					defer port.Close()
					running.Go(func() {
						if err := port.Empty(ctx); err != nil {
							b.Error(err)
						}
					})
				}
				dialect, err := uart.DialectByName(name)
				if err != nil {
					b.Fatal(err)
				}
				c.Slots = append(c.Slots, SlotConfig{Name: strconv.Itoa(i), Dialect: dialect, Open: func(ctx context.Context) (uart.Conn, error) { return uart.Wait(ctx, path) }})
			}
			s, err := New(c)
			if err != nil {
				b.Fatal(err)
			}
			running.Go(func() {
				if err := s.Run(ctx); err != nil {
					b.Error(err)
				}
			})
			for there := 0; there < 8; {
				status, changed := s.snapshot(s.settings.words)
				there = 0
				for _, slot := range status.Slots {
					if slot.State == Empty {
						there++
					}
				}
				if there < 8 {
					<-changed
				}
			}
			debug.FreeOSMemory()
			var spent, wall time.Duration
			for b.Loop() {
				before, start := processTime(b), time.Now()
				<-time.After(wait)
				spent, wall = spent+processTime(b)-before, wall+time.Since(start)
			}
			b.ReportMetric(100*float64(spent)/float64(wall), "%core")
			b.ReportMetric(float64(residentBytes(b))/(1<<20), "RSS-MiB")
			cancel()
			running.Wait()
		})
	}
}

func processTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func residentBytes(b *testing.B) int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skipf("this system does not tell the memory of a process: %v", err)
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		b.Fatalf("/proc/self/statm: %q", text)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
