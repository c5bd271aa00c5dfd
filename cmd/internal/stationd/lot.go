package stationd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"secretfree/cmd/internal/cli"
	"secretfree/station"
	"secretfree/station/board"
)

// lot is a list of the boards that are made at present: a text file with a
// device id (32 hex digits) or a MAC address (six bytes with colons) in each
// line; # begins a comment. It is read again when the file has changed, so that
// a new work order needs no restart.
type lot struct {
	path  string
	count atomic.Int64 // boards on the list that was read last

	mu    sync.Mutex
	stamp os.FileInfo // of the file that was read
	ids   map[string]bool
}

const (
	maxLot     = 64 << 20 // bytes
	maxLotLine = 4 << 10
)

var macPattern = regexp.MustCompile(`^(?:[0-9a-f]{2}:){5}[0-9a-f]{2}$`)

// check is station.Policy.Lot.
func (l *lot) check(device board.DeviceID, facts map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.load(); err != nil {
		return fmt.Errorf("reading the list of the lot: %w", err)
	}
	if !l.ids[device.String()] && !l.ids[facts["mac"]] {
		return fmt.Errorf("%w (%s, with %s)", station.ErrNotInLot, l.path, cli.Count(len(l.ids), "board", "boards"))
	}
	return nil
}

// listed is station.Policy.Listed: it waits for no file. Before the first board
// it is 0.
func (l *lot) listed() int { return int(l.count.Load()) }

// load reads the file if it is not the one that was read. A list that is wrong
// anywhere is not used at all.
func (l *lot) load() error {
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if l.stamp != nil && os.SameFile(info, l.stamp) && info.ModTime().Equal(l.stamp.ModTime()) && info.Size() == l.stamp.Size() {
		return nil
	}
	if info.Size() > maxLot {
		return fmt.Errorf("%s is larger than %d bytes", l.path, maxLot)
	}
	ids, err := parseLot(f)
	if err != nil {
		return fmt.Errorf("%s:%w", l.path, err)
	}
	l.stamp, l.ids = info, ids
	l.count.Store(int64(len(ids)))
	return nil
}

// parseLot gives the ids and addresses in lower case. Its errors begin with the
// number of the line.
func parseLot(in io.Reader) (map[string]bool, error) {
	ids := map[string]bool{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLotLine)
	n := 0
	for lines.Scan() {
		n++
		text, _, _ := strings.Cut(lines.Text(), "#")
		text = strings.ToLower(strings.TrimSpace(text))
		if text == "" {
			continue
		}
		if _, err := board.ParseDeviceID(text); err != nil && !macPattern.MatchString(text) {
			return nil, fmt.Errorf("%d: %.60q is neither a device id (32 hex digits) nor a MAC address (six bytes with colons)", n, text)
		}
		ids[text] = true
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%d: %w", n+1, err)
	}
	if len(ids) == 0 {
		return nil, errors.New("1: the list is empty")
	}
	return ids, nil
}
