package config

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creack/pty"
	"github.com/rs/zerolog"
)

func TestLogFormat(t *testing.T) {
	for _, c := range []struct {
		format string
		json   bool
	}{{"", true}, {"auto", true}, {"json", true}, {"text", false}} {
		var out bytes.Buffer
		log, err := Log{Level: "info", Format: c.format}.New(&out, "station", "line3-a")
		if err != nil {
			t.Fatal(err)
		}
		log.Debug().Msg("hidden")
		log.Warn().Str("slot", "A").Msg("seen")
		if json.Valid(out.Bytes()) != c.json || strings.Contains(out.String(), "hidden") || strings.Contains(out.String(), "\x1b[") ||
			!strings.Contains(out.String(), "seen") || !strings.Contains(out.String(), "line3-a") {
			t.Errorf("%q: %s", c.format, &out)
		}
	}
	if _, err := (Log{Level: "loud"}).New(new(bytes.Buffer), "a", "b"); err == nil {
		t.Error("a level that is none")
	}
	if _, err := (Log{Level: "loud"}).Open(new(bytes.Buffer), "a", "b"); err == nil {
		t.Error("a level that is none")
	}
}

// People get text on a terminal, and JSON if they ask for it.
func TestLogTerminal(t *testing.T) {
	for format, people := range map[string]bool{"auto": true, "text": true, "json": false} {
		ours, theirs, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		log, err := Log{Level: "info", Format: format}.New(theirs, "station", "line3-a")
		if err != nil {
			t.Fatal(err)
		}
		log.Info().Msg("ready")
		line, err := bufio.NewReader(ours).ReadString('\n')
		if err != nil || json.Valid([]byte(strings.TrimSpace(line))) == people || !strings.Contains(line, "ready") {
			t.Errorf("%s: %q, %v", format, line, err)
		}
		theirs.Close()
		ours.Close()
	}
}

func TestLogPriority(t *testing.T) {
	for level, want := range map[zerolog.Level]string{zerolog.DebugLevel: "<7>", zerolog.InfoLevel: "<6>", zerolog.WarnLevel: "<4>", zerolog.ErrorLevel: "<3>", zerolog.PanicLevel: "<2>"} {
		var out bytes.Buffer
		log := zerolog.New(prioritized{&out})
		log.WithLevel(level).Msg("x")
		if !strings.HasPrefix(out.String(), want+"{") {
			t.Errorf("%s: %s", level, &out)
		}
	}
	if _, err := (prioritized{closedFile(t)}).Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a write that fails: %v", err)
	}
}

func closedFile(t *testing.T) *os.File {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return f
}

func TestLogAdopt(t *testing.T) {
	var out bytes.Buffer
	log, err := Log{Level: "warn"}.Open(&out, "station", "line3-a")
	if err != nil {
		t.Fatal(err)
	}
	kept := log.With().Str("slot", "A").Logger() // as rooms have copies
	kept.Info().Msg("before")
	log.Adopt(Log{Level: "debug"})
	kept.Debug().Msg("after")
	log.Adopt(Log{Level: "loud"})
	kept.Debug().Msg("still")
	if text := out.String(); strings.Contains(text, "before") || !strings.Contains(text, "after") || !strings.Contains(text, "still") {
		t.Error(text)
	}
}

// output is what was written since it was last taken.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) take() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.b.Reset()
	return o.b.String()
}

type counted struct {
	Level, Message, Slot, Device, Error string
	Pending, Repeated                   int
}

// A line that comes again and again is told with a count; the first ones, and
// all others, come as they are.
func TestRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		read := func() (lines []counted) {
			t.Helper()
			synctest.Wait()
			for d := json.NewDecoder(strings.NewReader(out.take())); d.More(); {
				var c counted
				if err := d.Decode(&c); err != nil {
					t.Fatal(err)
				}
				lines = append(lines, c)
			}
			return lines
		}
		log, err := Log{Level: "info"}.Open(&out, "station", "line3-a")
		if err != nil {
			t.Fatal(err)
		}
		trouble := func(slot, cause string) { log.Error().Str("slot", slot).Str("error", cause).Msg("port trouble") }
		const many = 100
		for n := range many {
			trouble("A", "busy")
			log.Warn().Int("pending", n).Msg("they wait on disk")
			time.Sleep(100 * time.Millisecond)
		}
		if lines := read(); len(lines) != 2*repeatBurst {
			t.Fatalf("at first: %+v", lines)
		}
		// Another slot, cause or board is another line.
		trouble("B", "busy")
		trouble("A", "gone")
		for n := range 10 {
			log.Info().Str("slot", "A").Str("device", fmt.Sprint(n)).Msg("board passed")
		}
		if lines := read(); len(lines) != 12 {
			t.Errorf("others: %+v", lines)
		}
		time.Sleep(repeatWindow + time.Second)
		told := read()
		if len(told) != 2 {
			t.Fatalf("after the window: %+v", told)
		}
		for _, line := range told {
			switch line.Message {
			case "port trouble":
				if line.Repeated != many-repeatBurst || line.Level != "error" || line.Slot != "A" || line.Error != "busy" {
					t.Errorf("%+v", line)
				}
			default:
				if line.Repeated != many-repeatBurst || line.Pending != 99 {
					t.Errorf("%+v", line)
				}
			}
		}
		// While it goes on it is told once a window; when it has stopped for
		// one, it is new.
		trouble("A", "busy")
		if lines := read(); len(lines) != 0 {
			t.Errorf("it goes on: %+v", lines)
		}
		time.Sleep(repeatWindow + time.Second)
		if lines := read(); len(lines) != 1 || lines[0].Repeated != 1 {
			t.Errorf("it went on: %+v", lines)
		}
		time.Sleep(2 * repeatWindow)
		trouble("A", "busy")
		if lines := read(); len(lines) != 1 || lines[0].Repeated != 0 {
			t.Errorf("it is new: %+v", lines)
		}
		for range 10 {
			trouble("A", "busy")
		}
		read()
		log.Flush()
		if lines := read(); len(lines) != 1 || lines[0].Repeated != 11-repeatBurst {
			t.Errorf("at the end: %+v", lines)
		}
		log.Flush()
		time.Sleep(2 * repeatWindow)
		if lines := read(); len(lines) != 0 || len(log.repeats.seen) != 0 {
			t.Errorf("after the end: %+v", lines)
		}
	})
}

// However many different lines there are, memory is bounded, and none is lost.
func TestRepeatsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		r := newRepeats(zerolog.LevelWriterAdapter{Writer: &out})
		const many = 3 * maxRepeats
		var writers sync.WaitGroup
		for w := range 3 {
			writers.Go(func() {
				for n := range many / 3 {
					fmt.Fprintf(r, "{\"error\":\"%d-%d\"}\n", w, n)
				}
			})
		}
		writers.Wait()
		if n := strings.Count(out.take(), "\n"); n != many || len(r.seen) != maxRepeats {
			t.Errorf("%d lines, %d watched", n, len(r.seen))
		}
		for range 10 {
			fmt.Fprintln(r, "no object")
		}
		if n := strings.Count(out.take(), "\n"); n != 10 {
			t.Errorf("%d lines that are no object", n)
		}
		time.Sleep(2 * repeatWindow)
		synctest.Wait()
		if len(r.seen) != 0 {
			t.Errorf("%d are still watched", len(r.seen))
		}
	})
}

// Only the very stream that systemd names gets priorities.
func TestIsJournal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	at := info.Sys().(*syscall.Stat_t)
	for stream, want := range map[string]bool{
		fmt.Sprintf("%d:%d", at.Dev, at.Ino): true, fmt.Sprintf("%d:%d", at.Dev, at.Ino+1): false, fmt.Sprintf("%d:%d", at.Dev+1, at.Ino): false,
		"": false, ":": false, "x": false,
	} {
		if got := isJournal(f, stream); got != want {
			t.Errorf("JOURNAL_STREAM=%q: %v, want %v", stream, got, want)
		}
	}
}
