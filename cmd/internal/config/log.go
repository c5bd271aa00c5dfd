package config

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"
)

// Log is the table [log] of both daemons.
type Log struct {
	Level string `toml:"level"`
}

// Check reports an unknown level.
func (l Log) Check(f *File) error {
	if _, err := l.level(); err != nil {
		return f.Errorf("log.level", `Write "debug", "info", "warn" or "error".`, "log.level is %q", l.Level)
	}
	return nil
}

func (l Log) level() (zerolog.Level, error) {
	switch l.Level {
	case zerolog.LevelDebugValue, zerolog.LevelInfoValue, zerolog.LevelWarnValue, zerolog.LevelErrorValue:
		return zerolog.ParseLevel(l.Level)
	}
	return zerolog.NoLevel, fmt.Errorf("unknown level %q", l.Level)
}

// New makes a daemon's logger with one field that every line has: JSON lines, or lines for people where w is a terminal.
func (l Log) New(w io.Writer, field, value string) (zerolog.Logger, error) {
	level, err := l.level()
	if err != nil {
		return zerolog.Nop(), err
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
	}
	return zerolog.New(w).Level(level).With().Timestamp().Str(field, value).Logger(), nil
}
