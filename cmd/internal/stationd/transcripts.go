package stationd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"secretfree/cmd/internal/stationconf"
	"secretfree/station"
	"secretfree/uart"
)

// transcriptStore keeps the newest transcripts of a station, under the names
// that the journal has of them: a ring of those that failed and a ring of those
// that passed, which share a budget of bytes.
type transcriptStore struct {
	dir string

	mu     sync.Mutex         // one slot writes and prunes at a time
	limits map[bool]int       // of files, by whether the board passed
	budget int64              // bytes
	files  []storedTranscript // oldest first
}

type storedTranscript struct {
	name   string
	size   int64
	passed bool
}

const (
	transcriptEnding = ".uart"
	passedWord       = "passed"
)

func openTranscripts(dir string, limits stationconf.Transcripts) (*transcriptStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for transcripts: %w", err)
	}
	entries, err := os.ReadDir(dir) // sorted by name, and so by time
	if err != nil {
		return nil, fmt.Errorf("listing the transcripts: %w", err)
	}
	s := &transcriptStore{dir: dir}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !strings.HasSuffix(e.Name(), transcriptEnding) {
			continue // what is no transcript is not ours to prune
		}
		s.files = append(s.files, storedTranscript{e.Name(), info.Size(), expectIn(filepath.Join(dir, e.Name())) == passedWord})
	}
	s.limits, s.budget = map[bool]int{true: limits.Passed, false: limits.Failed}, int64(limits.MaxMiB)<<20
	return s, s.prune()
}

// keep writes a transcript under a name.
func (s *transcriptStore) keep(name string, t *uart.Transcript) error {
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
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		os.Remove(path) // a part of a transcript is worth nothing
		return err
	}
	s.files = append(s.files, storedTranscript{name, int64(len(text)), passed})
	return s.prune()
}

// prune removes the oldest of a kind that has too many, and then the oldest of
// all while the budget is exceeded. The newest stays.
func (s *transcriptStore) prune() error {
	count, total := map[bool]int{}, int64(0)
	for _, f := range s.files {
		count[f.passed]++
		total += f.size
	}
	for len(s.files) > 1 {
		i := slices.IndexFunc(s.files, func(f storedTranscript) bool { return count[f.passed] > s.limits[f.passed] })
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

// has tells whether a transcript is kept.
func (s *transcriptStore) has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return name != "" && slices.ContainsFunc(s.files, func(f storedTranscript) bool { return f.name == name })
}

// expectIn reads the verdict in a transcript's header, which ends with an empty
// line.
func expectIn(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxHeader))
	for lines.Scan() && lines.Text() != "" {
		if verdict, ok := strings.CutPrefix(lines.Text(), "expect: "); ok {
			return verdict
		}
	}
	return ""
}

const maxHeader = 8 << 10

// read gives a transcript that is on the shelf, and nothing else that a name
// may lead to.
func (s *transcriptStore) read(name string) ([]byte, error) {
	if !s.has(name) {
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
