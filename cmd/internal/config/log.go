package config

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"
)

// Log is the table [log] of both daemons.
type Log struct {
	Level  string `toml:"level"`
	Format string `toml:"format"` // "auto" (also empty): text where w is a terminal, else JSON; "json" or "text"
}

// Check reports an unknown level or format.
func (l Log) Check(f *File) error {
	if _, err := l.level(); err != nil {
		return f.Errorf("log.level", `Write "debug", "info", "warn" or "error".`, "log.level is %q", l.Level)
	}
	switch l.Format {
	case "", "auto", "json", "text":
		return nil
	}
	return f.Errorf("log.format", `Write "auto", "json" or "text".`, "log.format is %q", l.Format)
}

func (l Log) level() (zerolog.Level, error) {
	switch l.Level {
	case zerolog.LevelDebugValue, zerolog.LevelInfoValue, zerolog.LevelWarnValue, zerolog.LevelErrorValue:
		return zerolog.ParseLevel(l.Level)
	}
	return zerolog.NoLevel, fmt.Errorf("unknown level %q", l.Level)
}

// New makes a logger with one field that every line has: JSON lines, or lines
// for people; see Format.
func (l Log) New(w io.Writer, field, value string) (zerolog.Logger, error) {
	level, err := l.level()
	if err != nil {
		return zerolog.Nop(), err
	}
	return zerolog.New(l.lines(w)).Level(level).With().Timestamp().Str(field, value).Logger(), nil
}

// lines is what writes the lines: each with one call of w.
func (l Log) lines(w io.Writer) zerolog.LevelWriter {
	f, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(f.Fd()))
	if l.Format == "text" || l.Format != "json" && terminal {
		return zerolog.LevelWriterAdapter{Writer: zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: !terminal}}
	}
	if isFile && f == os.Stderr {
		// With a priority before each line, journalctl -p knows what is a
		// warning.
		if isJournal(f, os.Getenv("JOURNAL_STREAM")) {
			return prioritized{w}
		}
	}
	return zerolog.LevelWriterAdapter{Writer: w}
}

// isJournal reports whether a file is the stream to systemd's journal that the
// environment names: "<device>:<inode>", see systemd.exec(5).
func isJournal(f *os.File, stream string) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	at, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream != "" && stream == fmt.Sprintf("%d:%d", at.Dev, at.Ino)
}

// The priorities of syslog(3).
const (
	critical = 2
	failure  = 3
	warning  = 4
	notice   = 6
	detail   = 7
)

// prioritized writes lines as sd-daemon(3) has them.
type prioritized struct{ w io.Writer }

func (p prioritized) Write(line []byte) (int, error) { return p.WriteLevel(zerolog.NoLevel, line) }

func (p prioritized) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	priority := notice
	switch level {
	case zerolog.DebugLevel, zerolog.TraceLevel:
		priority = detail
	case zerolog.WarnLevel:
		priority = warning
	case zerolog.ErrorLevel:
		priority = failure
	case zerolog.FatalLevel, zerolog.PanicLevel:
		priority = critical
	}
	if _, err := p.w.Write(fmt.Appendf(nil, "<%d>%s", priority, line)); err != nil {
		return 0, err
	}
	return len(line), nil
}
