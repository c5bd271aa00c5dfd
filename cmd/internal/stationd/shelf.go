package stationd

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"secretfree/uart"
)

// shelf keeps the newest transcripts of a station as files named <time>-<slot>-<verdict>.uart.
type shelf struct {
	dir   string
	all   bool // passed boards too
	limit int

	mu    sync.Mutex // one slot writes and prunes at a time
	names []string   // oldest first
}

func openShelf(dir string, all bool, limit int) (*shelf, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for transcripts: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.uart"))
	if err != nil {
		return nil, fmt.Errorf("listing the transcripts: %w", err)
	}
	sort.Strings(names)
	return &shelf{dir: dir, all: all, limit: limit, names: names}, nil
}

func (s *shelf) keep(t *uart.Transcript) error {
	expect := t.Header["expect"]
	if expect == "passed" && !s.all {
		return nil
	}
	text, err := t.Encode()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := filepath.Join(s.dir, fmt.Sprintf("%s-%s-%s.uart",
		time.Now().UTC().Format("20060102T150405.000000000Z"), fileName(t.Header["slot"]), fileName(strings.TrimPrefix(expect, "failed "))))
	if err := os.WriteFile(name, text, 0o600); err != nil {
		os.Remove(name) // a part of a transcript is worth nothing
		return err
	}
	s.names = append(s.names, name)
	for len(s.names) > s.limit {
		if err := os.Remove(s.names[0]); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("making room for transcripts: %w", err)
		}
		s.names = s.names[1:]
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
