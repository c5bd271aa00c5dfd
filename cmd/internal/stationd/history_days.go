package stationd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"secretfree/station"
	"secretfree/station/board"
)

// daybook keeps verdicts, for the reports of shifts: the journal has neither the failures of boards that gave no record nor the slots. A file of lines
// for each day (UTC) is named <day>.log. It is not synced: a power failure may take the last moments of it, and no record. Losing it
// loses these counts alone.
//
// A line is: time, state, "repeat" or the reason or -, device or -, slot; one space between.
type daybook struct {
	dir    string
	perDay int64 // bytes of a file; what is more is left out, and the report says so
	total  int64 // bytes of all files; the oldest go first
	days   int   // files

	mu   sync.Mutex
	day  string
	file *os.File
	size int64
}

const (
	maxDayBytes  = 8 << 20
	maxBookBytes = 64 << 20
	maxBookDays  = 400
	maxDayLine   = 256
	dayName      = "2006-01-02"
	dayEnding    = ".log"
	dayTime      = "2006-01-02T15:04:05.000Z"
)

func openDaybook(dir string) (*daybook, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for verdicts: %w", err)
	}
	return &daybook{dir: dir, perDay: maxDayBytes, total: maxBookBytes, days: maxBookDays}, nil
}

func (d *daybook) path(day string) string { return filepath.Join(d.dir, day+dayEnding) }

// note writes a verdict down.
func (d *daybook) note(v station.Verdict) error {
	line := dayLine(v)
	d.mu.Lock()
	defer d.mu.Unlock()
	day := v.Time.UTC().Format(dayName)
	if d.file == nil || day != d.day {
		if err := d.turn(day); err != nil {
			return fmt.Errorf("writing the verdicts of a day: %w", err)
		}
	}
	if d.size+int64(len(line)) > d.perDay {
		d.size = d.perDay // so that nothing shorter comes after a gap
		return nil
	}
	n, err := d.file.WriteString(line)
	d.size += int64(n)
	if err != nil {
		d.close() // the next line begins a new one
		return fmt.Errorf("writing the verdicts of a day: %w", err)
	}
	return nil
}

// turn opens the file of a day. What was cut short in it gets an end, so that the next line is whole.
func (d *daybook) turn(day string) error {
	d.close()
	f, err := os.OpenFile(d.path(day), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.file, d.day, d.size = f, day, info.Size()
	if d.size > 0 {
		last := []byte{0}
		if _, err := f.ReadAt(last, d.size-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			n, err := f.WriteString("\n")
			d.size += int64(n)
			if err != nil {
				return err
			}
		}
	}
	return d.prune()
}

func (d *daybook) close() {
	if d.file != nil {
		d.file.Close() // nothing is lost with it
		d.file = nil
	}
}

// prune removes the oldest days.
func (d *daybook) prune() error {
	entries, err := os.ReadDir(d.dir) // sorted by name, and so by day
	if err != nil {
		return err
	}
	type file struct {
		name string
		size int64
	}
	var files []file
	total := int64(0)
	for _, e := range entries {
		day, ok := strings.CutSuffix(e.Name(), dayEnding)
		if _, err := time.Parse(dayName, day); !ok || err != nil {
			continue // not ours
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		files = append(files, file{e.Name(), info.Size()})
		total += info.Size()
	}
	for len(files) > 1 && (len(files) > d.days || total > d.total) && files[0].name != d.day+dayEnding {
		if err := os.Remove(filepath.Join(d.dir, files[0].name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		total -= files[0].size
		files = files[1:]
	}
	return nil
}

// between gives the verdicts from a time up to another, as they were noted. whole tells of each day whether all of it is there.
func (d *daybook) between(from, to time.Time) (verdicts []station.Verdict, whole map[string]bool, err error) {
	whole = map[string]bool{}
	start := from.UTC().Truncate(24 * time.Hour)
	for day := start; day.Before(to); day = day.Add(24 * time.Hour) {
		name := day.Format(dayName)
		f, err := os.Open(d.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading the verdicts of a day: %w", err)
		}
		info, err := f.Stat()
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("reading the verdicts of a day: %w", err), f.Close())
		}
		read, good := readDay(io.LimitReader(f, d.perDay+maxDayLine))
		f.Close()
		whole[name] = good && info.Size() < d.perDay-maxDayLine
		for _, v := range read {
			if !v.Time.Before(from) && v.Time.Before(to) {
				verdicts = append(verdicts, v)
			}
		}
	}
	return verdicts, whole, nil
}

// readDay reads what it can; whole is false if there were lines that it cannot read.
func readDay(in io.Reader) (verdicts []station.Verdict, whole bool) {
	lines := bufio.NewReaderSize(in, 4096)
	whole = true
	for {
		line, err := lines.ReadSlice('\n')
		if err == bufio.ErrBufferFull { // no line of ours
			whole = false
			continue
		}
		if text := bytes.TrimSuffix(line, []byte("\n")); len(text) > 0 {
			if v, ok := parseDayLine(string(text)); ok && err == nil {
				verdicts = append(verdicts, v)
			} else {
				whole = false
			}
		}
		if err != nil {
			return verdicts, whole && err == io.EOF
		}
	}
}

func dayLine(v station.Verdict) string {
	why, device := "-", "-"
	switch {
	case v.State == station.Failed:
		why = string(v.Reason)
	case v.Repeat:
		why = "repeat"
	}
	if v.Device.Valid() {
		device = v.Device.String()
	}
	return fmt.Sprintf("%s %s %s %s %s\n", v.Time.UTC().Format(dayTime), v.State, why, device, v.Slot)
}

// parseDayLine reads what dayLine writes, without the line feed: what parses is written in the same way again.
func parseDayLine(line string) (v station.Verdict, ok bool) {
	fields := strings.SplitN(line, " ", 5)
	if len(line) > maxDayLine || len(fields) != 5 {
		return v, false
	}
	at, err := time.Parse(dayTime, fields[0])
	if err != nil {
		return v, false
	}
	v = station.Verdict{Time: at.UTC(), State: station.State(fields[1]), Slot: fields[4]}
	switch {
	case v.State == station.Failed:
		v.Reason = station.Reason(fields[2])
	case v.State == station.Passed:
		v.Repeat = fields[2] == "repeat"
	default:
		return v, false
	}
	if fields[3] != "-" {
		if v.Device, err = board.ParseDeviceID(fields[3]); err != nil {
			return v, false
		}
	}
	plain := func(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) }
	return v, plain(v.Slot) && plain(string(v.Reason)) && dayLine(v) == line+"\n"
}
