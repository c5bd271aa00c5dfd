package config

import (
	"bytes"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// A line that came repeatBurst times within repeatWindow is held from then
	// on, and told once in each window.
	repeatBurst  = 3
	repeatWindow = time.Minute
	// maxRepeats is how many different lines are watched at once; what comes
	// beyond them is written as it comes.
	maxRepeats = 1000
)

// repeats holds lines back that come again and again, as those of a port that
// flaps: the last one of a window is written when the window ends, with
// "repeated", how many were held; it is one of them. Lines are the same if they
// differ in nothing but the time and the length of a queue: two boards, or two
// causes, are two lines. Nothing is held that is not told in the end, if the
// process gets to flush.
type repeats struct {
	to zerolog.LevelWriter

	mu   sync.Mutex // also of writing, so that the order is that of the events
	seen map[string]*repeat
}

type repeat struct {
	came  int // in this window, held or not
	held  int
	last  []byte // of those that are held
	level zerolog.Level
	timer *time.Timer // ends the window
}

func newRepeats(to zerolog.LevelWriter) *repeats {
	return &repeats{to: to, seen: map[string]*repeat{}}
}

func (r *repeats) Write(line []byte) (int, error) { return r.WriteLevel(zerolog.NoLevel, line) }

func (r *repeats) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	key, ok := identity(line)
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.seen[key]
	switch {
	case !ok, known == nil && len(r.seen) >= maxRepeats:
		return r.to.WriteLevel(level, line)
	case known == nil:
		known = &repeat{level: level}
		known.timer = time.AfterFunc(repeatWindow, func() { r.end(key, known) })
		r.seen[key] = known
	}
	if known.came++; known.came <= repeatBurst {
		return r.to.WriteLevel(level, line)
	}
	known.held++
	known.last = append(known.last[:0], line...)
	return len(line), nil
}

// end tells what a window held. A line that did not come in it is forgotten.
func (r *repeats) end(key string, known *repeat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[key] != known {
		return // it was flushed
	}
	if known.held == 0 {
		delete(r.seen, key)
		return
	}
	r.tell(known)
	known.came = repeatBurst // it does not begin anew while it goes on
	known.timer.Reset(repeatWindow)
}

// tell writes the last of the lines that are held. The caller holds mu.
func (r *repeats) tell(known *repeat) {
	line := append(bytes.TrimSuffix(bytes.TrimSpace(known.last), []byte("}")), `,"repeated":`...)
	line = append(strconv.AppendInt(line, int64(known.held), 10), "}\n"...)
	known.held = 0
	r.to.WriteLevel(known.level, line) // as zerolog itself, which has nobody to tell
}

func (r *repeats) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, known := range r.seen {
		known.timer.Stop()
		if known.held > 0 {
			r.tell(known)
		}
		delete(r.seen, key)
	}
}

// identity is a line without what differs each time. A line that is no object
// has none.
func identity(line []byte) (string, bool) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(line, &fields) != nil {
		return "", false
	}
	for _, name := range []string{zerolog.TimestampFieldName, "pending", "unarchived"} {
		delete(fields, name)
	}
	key, err := json.Marshal(fields)
	return string(key), err == nil
}
