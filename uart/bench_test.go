package uart_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

// BenchmarkRead reads boards over ptys that are paced at 115200, one and
// sixteen at once, and sets the time against the least that it can take: the
// board's bytes on the wire, and the board's own time. The clock starts when
// the reader begins to look, with a board there that is silent, or that starts
// (of ti-csr always: that is its dialogue), and ends with the report. detect-ms
// is the part of it up to where the reading begins; worst is the ratio of the
// slowest slot. One auto remembers what it met, so with -benchtime 1x the looks
// at other dialects are in its figure, and with more they are in the first
// reading only.
func BenchmarkRead(b *testing.B) {
	at, csr, report := fixtures.DialectAT, fixtures.DialectCSR, fixtures.DialectReport
	for _, c := range []struct {
		name, dialect, firmware string
		starts                  bool
		slots                   []int
	}{
		{"ti-at", "ti-at", at, false, []int{1, 16}}, {"ti-csr", "ti-csr", csr, true, []int{1, 16}}, {"report", "report", report, false, []int{1, 16}},
		{"auto", "auto", at, false, []int{1, 16}},
		{"ti-at-starts", "ti-at", at, true, []int{1}}, {"report-starts", "report", report, true, []int{1}},
		{"auto-ti-at-starts", "auto", at, true, []int{1}}, {"auto-ti-csr", "auto", csr, true, []int{1}},
		{"auto-report", "auto", report, false, []int{1}}, {"auto-report-starts", "auto", report, true, []int{1}},
	} {
		for _, slots := range c.slots {
			b.Run(fmt.Sprintf("%s/%d", c.name, slots), func(b *testing.B) { benchmarkRead(b, c.dialect, c.firmware, c.starts, slots) })
		}
	}
}

func benchmarkRead(b *testing.B, name, firmware string, starts bool, slots int) {
	var all []*benchSlot
	for i := range slots {
		path := filepath.Join(b.TempDir(), fmt.Sprintf("slot-%d", i))
		port, err := fixtures.OpenPort(path)
		if err != nil {
			b.Fatal(err)
		}
		defer port.Close()
		c, err := uart.Open(b.Context(), path)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		d, err := uart.DialectByName(name)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, &benchSlot{port: port, conn: c, dialect: d})
	}
	for b.Loop() {
		var running sync.WaitGroup
		for _, s := range all {
			running.Go(func() {
				if err := s.read(b.Context(), firmware, starts); err != nil {
					b.Error(err)
				}
			})
		}
		running.Wait()
	}
	var took, least, detect time.Duration
	worst := 0.0
	for _, s := range all {
		took, least, detect = took+s.took, least+s.least, detect+s.detect
		worst = max(worst, float64(s.took)/float64(s.least))
	}
	n := float64(b.N * slots)
	b.ReportMetric(float64(took)/float64(least), "ratio")
	b.ReportMetric(worst, "worst")
	b.ReportMetric(float64(least)/float64(time.Millisecond)/n, "least-ms")
	b.ReportMetric(float64(detect)/float64(time.Millisecond)/n, "detect-ms")
	b.ReportMetric(0, "ns/op") // of the boards that are made as well
}

// drain drops what the board that was removed has printed last. A station
// does that in Gone.
func (s *benchSlot) drain() {
	var rest [1024]byte
	for {
		s.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := s.conn.Read(rest[:]); err != nil {
			return
		}
	}
}

type benchSlot struct {
	port                *fixtures.Port
	conn                uart.Conn
	dialect             uart.Dialect
	took, least, detect time.Duration
}

func (s *benchSlot) read(ctx context.Context, firmware string, starts bool) error {
	board := &fixtures.Board{
		Device: fixtures.NewDevice(), Key: fixtures.NewKey(), Dialect: firmware, Baud: 115200, Quiet: !starts,
		Think: 5 * time.Millisecond, Sign: 100 * time.Millisecond,
	}
	if starts {
		board.Boot = 150 * time.Millisecond
	}
	ctx, remove := context.WithCancel(ctx)
	served := make(chan error, 1)
	start := time.Now()
	go func() { served <- s.port.Serve(ctx, board) }()
	defer func() {
		remove()
		<-served
		s.drain()
	}()
	l := uart.NewLine(s.conn, uart.LineOptions{})
	if err := s.dialect.Detect(ctx, l); err != nil {
		return fmt.Errorf("detecting: %w", err)
	}
	s.detect += time.Since(start)
	report, err := s.dialect.Read(ctx, l)
	s.took += time.Since(start)
	if err != nil || report.Device != board.Device {
		return fmt.Errorf("reading: %w", err)
	}
	bytes, own := board.Spent()
	s.least += time.Duration(bytes)*fixtures.ByteTime(board.Baud) + own
	return nil
}
