package config

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

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
