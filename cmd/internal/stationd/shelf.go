package stationd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"secretfree/uart"
)

// shelf keeps the newest transcripts of a station as files named <time>-<slot>-<verdict>.uart: a ring of those that failed and a
// ring of those that passed, which share a budget of bytes.
type shelf struct {
	dir    string
	limits map[bool]int // of files, by whether the board passed
	budget int64        // bytes

	mu    sync.Mutex // one slot writes and prunes at a time
	files []shelved  // oldest first
}

type shelved struct {
	name   string
	size   int64
	passed bool
}

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
	s := &shelf{dir: dir, limits: map[bool]int{true: limits.Passed, false: limits.Failed}, budget: int64(limits.MaxMiB) << 20}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !strings.HasSuffix(e.Name(), shelfEnding) {
			continue // what is no transcript is not ours to prune
		}
		s.files = append(s.files, shelved{e.Name(), info.Size(), strings.HasSuffix(e.Name(), "-"+passedWord+shelfEnding)})
	}
	return s, s.prune()
}

func (s *shelf) keep(t *uart.Transcript) error {
	verdict := strings.TrimPrefix(t.Header["expect"], "failed ")
	passed := verdict == passedWord
	if s.limits[passed] == 0 {
		return nil
	}
	text, err := t.Encode()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := fmt.Sprintf("%s-%s-%s%s", time.Now().UTC().Format(shelfTime), fileName(t.Header["slot"]), fileName(verdict), shelfEnding)
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		os.Remove(path) // a part of a transcript is worth nothing
		return err
	}
	s.files = append(s.files, shelved{name, int64(len(text)), passed})
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
