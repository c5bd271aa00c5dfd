package stationd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"secretfree/station"
	"secretfree/station/board"
	"secretfree/uart"
)

// shelf keeps the newest transcripts of a station as files named <time>-<slot>-<verdict>.uart: a ring of those that failed and a
// ring of those that passed, which share a budget of bytes.
type shelf struct {
	dir string

	mu     sync.Mutex   // one slot writes and prunes at a time
	limits map[bool]int // of files, by whether the board passed
	budget int64        // bytes
	files  []shelved    // oldest first
}

type shelved struct {
	name   string
	size   int64
	passed bool
	device string // 32 hex digits; empty if none is known, unreadHeader if nobody has looked
}

const unreadHeader = "?"

const (
	shelfEnding = ".uart"
	shelfTime   = "20060102T150405.000000000Z"
	passedWord  = "passed"
)

func openShelf(dir string, limits Transcripts) (*shelf, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for transcripts: %w", err)
	}
	entries, err := os.ReadDir(dir) // sorted by name, and so by time
	if err != nil {
		return nil, fmt.Errorf("listing the transcripts: %w", err)
	}
	s := &shelf{dir: dir}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !strings.HasSuffix(e.Name(), shelfEnding) {
			continue // what is no transcript is not ours to prune
		}
		s.files = append(s.files, shelved{e.Name(), info.Size(), strings.HasSuffix(e.Name(), "-"+passedWord+shelfEnding), unreadHeader})
	}
	return s, s.adopt(limits)
}

// adopt takes limits, and makes what is there fit into them.
func (s *shelf) adopt(limits Transcripts) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits, s.budget = map[bool]int{true: limits.Passed, false: limits.Failed}, int64(limits.MaxMiB)<<20
	return s.prune()
}

func (s *shelf) keep(t *uart.Transcript) error {
	verdict := strings.TrimPrefix(t.Header["expect"], "failed ")
	passed := verdict == passedWord
	text, err := t.Encode()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limits[passed] == 0 {
		return nil
	}
	name := fmt.Sprintf("%s-%s-%s%s", time.Now().UTC().Format(shelfTime), fileName(t.Header["slot"]), fileName(verdict), shelfEnding)
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		os.Remove(path) // a part of a transcript is worth nothing
		return err
	}
	s.files = append(s.files, shelved{name, int64(len(text)), passed, deviceIn(t.Header["device"], t.Header["note"])})
	return s.prune()
}

// prune removes the oldest of a kind that has too many, and then the oldest of all while the budget is exceeded. The newest stays.
func (s *shelf) prune() error {
	count, total := map[bool]int{}, int64(0)
	for _, f := range s.files {
		count[f.passed]++
		total += f.size
	}
	for len(s.files) > 1 {
		i := slices.IndexFunc(s.files, func(f shelved) bool { return count[f.passed] > s.limits[f.passed] })
		if i < 0 && total > s.budget {
			i = 0
		}
		if i < 0 {
			return nil
		}
		f := s.files[i]
		if err := os.Remove(filepath.Join(s.dir, f.name)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("making room for transcripts: %w", err)
		}
		count[f.passed]--
		total -= f.size
		s.files = slices.Delete(s.files, i, i+1)
	}
	return nil
}

// fileName makes a slot's name fit for a file name.
func fileName(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-':
			return r
		}
		return '_'
	}, s)
}

// of gives the transcripts of a board, the newest first. The headers of what was there at the start are read when somebody asks first.
func (s *shelf) of(ctx context.Context, device board.DeviceID) ([]station.TranscriptName, error) {
	s.mu.Lock()
	files := slices.Clone(s.files)
	s.mu.Unlock()
	read := map[string]string{}
	var ended error
	for i := range files {
		if files[i].device != unreadHeader {
			continue
		}
		if ended = ctx.Err(); ended != nil {
			break // the next look goes on from here
		}
		files[i].device = headerOf(filepath.Join(s.dir, files[i].name))
		read[files[i].name] = files[i].device
	}
	if len(read) > 0 {
		s.mu.Lock()
		for i := range s.files {
			if found, ok := read[s.files[i].name]; ok {
				s.files[i].device = found
			}
		}
		s.mu.Unlock()
	}
	if ended != nil {
		return nil, ended
	}
	var names []station.TranscriptName
	for _, f := range slices.Backward(files) {
		if f.device == device.String() {
			names = append(names, nameOf(f))
		}
	}
	return names, nil
}

// soon is how much later than a verdict its transcript may be kept.
const soon = 5 * time.Second

// nameless finds the transcripts of failures whose board is not known, by slot, reason and time. Verdicts are in order.
func (s *shelf) nameless(verdicts []station.Verdict) {
	s.mu.Lock()
	var names []station.TranscriptName
	for _, f := range s.files {
		if !f.passed {
			names = append(names, nameOf(f))
		}
	}
	s.mu.Unlock()
	for i := range verdicts {
		v := &verdicts[i]
		if v.State != station.Failed || v.Device.Valid() {
			continue
		}
		for j, n := range names {
			if n.Slot == fileName(v.Slot) && n.Reason == v.Reason && !n.Time.Before(v.Time) && n.Time.Sub(v.Time) < soon {
				v.Transcript, names = n.Name, slices.Delete(names, j, j+1)
				break
			}
		}
	}
}

// nameOf takes a name apart: <time>-<slot>-<verdict>.uart, where slot and verdict may have dashes.
func nameOf(f shelved) station.TranscriptName {
	n := station.TranscriptName{Name: f.name, Passed: f.passed}
	at, rest, _ := strings.Cut(strings.TrimSuffix(f.name, shelfEnding), "-")
	n.Time, _ = time.Parse(shelfTime, at)
	for _, reason := range append(station.Reasons(), station.Reason(passedWord)) {
		if slot, ok := strings.CutSuffix(rest, "-"+fileName(string(reason))); ok && len(reason) > len(n.Reason) {
			n.Slot, n.Reason = slot, reason
		}
	}
	if n.Passed {
		n.Reason = ""
	}
	return n
}

// deviceIn finds whose dialogue it is: what the header says, or the note of what came after a verdict.
func deviceIn(device, note string) string {
	if _, err := board.ParseDeviceID(device); err == nil {
		return device
	}
	if i := strings.LastIndexByte(note, ' '); i >= 0 {
		if _, err := board.ParseDeviceID(note[i+1:]); err == nil {
			return note[i+1:]
		}
	}
	return ""
}

// headerOf reads the device in a transcript's header, which ends with an empty line.
func headerOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	header := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(f, maxHeader))
	for lines.Scan() && lines.Text() != "" {
		if key, value, ok := strings.Cut(lines.Text(), ": "); ok {
			header[key] = value
		}
	}
	return deviceIn(header["device"], header["note"])
}

const maxHeader = 8 << 10

// read gives a transcript that is on the shelf, and nothing else that a name may lead to.
func (s *shelf) read(name string) ([]byte, error) {
	s.mu.Lock()
	there := slices.ContainsFunc(s.files, func(f shelved) bool { return f.name == name })
	s.mu.Unlock()
	if !there {
		return nil, station.ErrNoTranscript
	}
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) { // it went meanwhile
		return nil, station.ErrNoTranscript
	}
	if err != nil {
		return nil, fmt.Errorf("reading a transcript: %w", err)
	}
	return text, nil
}
