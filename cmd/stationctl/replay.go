package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/fixtures"
	"secretfree/station"
	"secretfree/uart"
)

type replay struct {
	Files []string `arg:"" name:"file" help:"Transcripts, or folders of them." type:"path"`
	Speed float64  `name:"speed" default:"1" help:"Divisor for the pauses of the recording: 10 is ten times as fast (${default})."`
	Jobs  int      `name:"jobs" default:"16" help:"Number of parallel replays (${default})."`
	JUnit string   `name:"junit" placeholder:"FILE" help:"Also write the results to this file as JUnit XML."`

	Explain bool `name:"explain" help:"Explain how the reader interpreted each line of the board."`
}

// Help is shown after the flags.
func (*replay) Help() string {
	return `Plays recorded boards to the daemon's own reader, and compares the verdicts with those that the files expect.
Where the reader leaves the good path, the line of the file and the byte are named.

For firmware of your own: record a board, then see which of its lines were understood as what:

  stationctl record --port /dev/ttyACM0 --dir boards
  stationctl replay --speed 10 --explain boards`
}

// replayed is what became of one transcript.
type replayed struct {
	File    string  `json:"file"`
	OK      bool    `json:"ok"`
	Expect  string  `json:"expect"`
	Verdict string  `json:"verdict,omitempty"` // empty if there was none
	Device  string  `json:"device,omitempty"`
	Problem string  `json:"problem,omitempty"`
	Seconds float64 `json:"seconds"`

	Lines []understoodLine `json:"lines,omitempty"` // with --explain
}

func (r *replay) Run(ctx context.Context, out *cli.Output) error {
	if err := checkSpeed(r.Speed); err != nil {
		return err
	}
	if r.Jobs < 1 || r.Jobs > 256 {
		return fmt.Errorf("%w: --jobs is %d, want 1 to 256", cli.ErrMisuse, r.Jobs)
	}
	files, err := transcriptFiles(r.Files)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "stationctl-replay-")
	if err != nil {
		return fmt.Errorf("making a folder for ports: %w", err)
	}
	defer os.RemoveAll(dir)

	results := make([]replayed, len(files))
	places := make(chan struct{}, r.Jobs)
	var running sync.WaitGroup
	for i, file := range files {
		places <- struct{}{}
		running.Go(func() {
			results[i] = r.one(ctx, file, filepath.Join(dir, fmt.Sprintf("port-%d", i)))
			<-places
		})
	}
	running.Wait()

	bad := 0
	for _, result := range results {
		mark, detail := "ok  ", result.Verdict
		if !result.OK {
			bad++
			mark, detail = "FAIL", result.Problem
		}
		if err := out.Print(result, fmt.Sprintf("%s  %-40s %s\n%s", mark, filepath.Base(result.File), detail, linesText(result.Lines))); err != nil {
			return err
		}
	}
	fmt.Fprintf(out.People, "%d of %d transcripts have the verdict that they expect.\n", len(results)-bad, len(results))
	if r.JUnit != "" {
		if err := writeJUnit(r.JUnit, results); err != nil {
			return err
		}
	}
	if bad > 0 {
		return cli.ErrShown
	}
	return nil
}

// checkSpeed refuses what is no speed. Package fixtures takes 0 for no pause at
// all; nobody who types 0 can be taken to mean the fastest.
func checkSpeed(speed float64) error {
	if err := fixtures.CheckSpeed(speed); err != nil || speed == 0 {
		return fmt.Errorf("%w: --speed is %v, want a number above 0: 1 is as recorded, 1000 leaves next to no pause", cli.ErrMisuse, speed)
	}
	return nil
}

// transcriptFiles lists the files, and those of the folders.
func transcriptFiles(names []string) ([]string, error) {
	var files []string
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("looking for transcripts: %w", err)
		}
		if !info.IsDir() {
			files = append(files, name)
			continue
		}
		before := len(files)
		if err := filepath.WalkDir(name, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() && filepath.Ext(path) == ".uart" {
				files = append(files, path)
			}
			return err
		}); err != nil {
			return nil, fmt.Errorf("looking for transcripts: %w", err)
		}
		if len(files) == before {
			return nil, fmt.Errorf("%s holds no transcript (.uart)", name)
		}
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}

// one replays a file on a port of its own.
func (r *replay) one(ctx context.Context, file, path string) replayed {
	start := time.Now()
	result := replayed{File: file}
	t, err := loadTranscript(file)
	if err == nil {
		result.Expect = t.Header["expect"]
		err = r.judge(ctx, t, path, &result)
	}
	if err != nil {
		result.Problem = err.Error()
	}
	result.OK, result.Seconds = err == nil, time.Since(start).Seconds()
	return result
}

func loadTranscript(file string) (*uart.Transcript, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading a transcript: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > uart.MaxTranscript {
		return nil, fmt.Errorf("%s is larger than %d bytes, or cannot be read", file, uart.MaxTranscript)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading a transcript: %w", err)
	}
	t, err := uart.ParseTranscript(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, key := range []string{"dialect", "expect"} {
		if t.Header[key] == "" {
			return nil, fmt.Errorf("%s: the header does not say %q: it cannot be replayed", file, key)
		}
	}
	if verdicts := verdicts(); !slices.Contains(verdicts, t.Header["expect"]) {
		return nil, fmt.Errorf("%s: the header expects %q, and there is no such verdict; there are: %s", file, t.Header["expect"], strings.Join(verdicts, ", "))
	}
	return t, nil
}

// verdicts are all that a transcript can expect.
func verdicts() []string {
	all := []string{"passed"}
	for _, reason := range station.Reasons() {
		all = append(all, "failed "+string(reason))
	}
	return all
}

var errNoVerdict = errors.New("there is no verdict: the recording may not hold the whole dialogue")

// judge is nil if the verdict of the daemon's code is the one that the
// transcript expects.
func (r *replay) judge(ctx context.Context, t *uart.Transcript, path string, result *replayed) error {
	dialect, err := uart.DialectByName(t.Header["dialect"])
	if err != nil {
		return err
	}
	scene, err := station.NewPrecondition(t.Header["given"])
	if err != nil {
		return err
	}
	port, err := fixtures.OpenPort(path)
	if err != nil {
		return err
	}
	// Whoever asks for what is not recorded ends the replay at once, and so
	// does a wait after its end: this is for a reader that goes on looking for
	// a board in the middle.
	var length time.Duration
	if n := len(t.Chunks); n > 0 {
		length = time.Duration(float64(t.Chunks[n-1].At) * max(1, 1/r.Speed))
	}
	ctx, end := context.WithTimeoutCause(ctx, length+2*patience, errNoVerdict)
	defer end()
	playing, stop := context.WithCancelCause(ctx)
	opened := make(chan func() time.Time, 1)
	var played sync.WaitGroup
	played.Go(func() {
		select {
		case until := <-opened: // what a board says before is lost, as on a real port
			// After a verdict the bench has its own end, and an error of what
			// is not played any more is none.
			if err := port.Replay(playing, t, fixtures.ReplayOptions{Speed: r.Speed, Until: until, Stay: patience}); err != nil {
				stop(err)
			}
		case <-playing.Done():
		}
	})
	seen := &observer{Dialect: dialect}
	err = bench{
		dialect: seen, nonce: fixtures.ReplayNonces(t), scene: scene,
		open: func(ctx context.Context) (uart.Conn, error) {
			conn, err := uart.Wait(ctx, path)
			if err != nil {
				return nil, err
			}
			conn, until := fixtures.Watch(conn)
			select {
			case opened <- until:
			default: // after an unplugging
			}
			return conn, nil
		},
	}.run(playing, func(got *uart.Transcript) error {
		result.Verdict, result.Device = got.Header["expect"], got.Header["device"]
		return errEnough
	})
	stop(nil)
	port.Close() // ends what still listens; it may be closed already
	played.Wait()
	if r.Explain {
		result.Lines = seen.lines(t)
	}
	departs, _ := errors.AsType[*fixtures.DeviationError](err)
	switch {
	case departs != nil && len(departs.Recorded) > 0:
		return fmt.Errorf("%w%s", err, seen.where(t))
	case departs != nil:
		return fmt.Errorf("%w\n      The file may be cut after line %d", err, departs.Line-1)
	case err != nil:
		return err
	case result.Verdict != t.Header["expect"]:
		return fmt.Errorf("the verdict is %q, expected is %q%s", result.Verdict, t.Header["expect"], seen.where(t))
	case t.Header["device"] != "" && result.Device != t.Header["device"]:
		return fmt.Errorf("the device is %s, expected is %s%s", result.Device, t.Header["device"], seen.where(t))
	}
	return nil
}

// The JUnit XML that build servers read.
type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	Seconds float64       `xml:"time,attr"`
	Failure *junitFailure `xml:"failure,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
}

func writeJUnit(name string, results []replayed) error {
	suite := junitSuite{Name: "stationctl replay", Tests: len(results)}
	for _, r := range results {
		c := junitCase{Name: r.File, Class: "transcripts", Seconds: r.Seconds}
		if !r.OK {
			suite.Failures++
			c.Failure = &junitFailure{Message: r.Problem}
		}
		suite.Cases = append(suite.Cases, c)
	}
	text, err := xml.MarshalIndent(suite, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the results as JUnit XML: %w", err)
	}
	if err := os.WriteFile(name, append([]byte(xml.Header), append(text, '\n')...), 0o644); err != nil {
		return fmt.Errorf("writing the results as JUnit XML: %w", err)
	}
	return nil
}
