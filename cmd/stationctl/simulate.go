package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/fixtures"
)

type simulate struct {
	Port        string         `name:"port" required:"" placeholder:"PATH" type:"path" help:"The name of the port: a symbolic link to a new pseudo-terminal. An existing file is not replaced, except the link of a simulation that was killed. Missing folders are created and removed at the end."`
	Group       string         `name:"group" placeholder:"NAME" help:"The group that may open the port. The default as root is the group of serial ports (dialout or uucp); otherwise only you may open it."`
	Description string         `name:"description" placeholder:"FILE" type:"path" xor:"what" help:"A description of the board (JSON); see fixtures/README.md."`
	Transcript  string         `name:"transcript" placeholder:"FILE" type:"path" xor:"what" help:"Play a recorded board instead."`
	Dialect     string         `name:"dialect" placeholder:"NAME" help:"Without a description: the dialect of the board: ti-at (the default), ti-csr or report."`
	Device      string         `name:"device" placeholder:"ID" help:"Without a description: the device id, 32 hex digits; the default is a new one."`
	Wording     string         `name:"wording" placeholder:"FILE" type:"path" help:"The texts of firmware of the dialect ti-csr (JSON); see fixtures/README.md."`
	Boot        *time.Duration `name:"boot" placeholder:"TIME" help:"Without a description: the time from the start of a board to its first line (500ms)."`
	Speed       *float64       `name:"speed" help:"With a transcript: divisor for its pauses (1)."`
	Boards      int            `name:"boards" default:"1" help:"Number of boards, one after the other; each is new unless the description fixes its id and key. 0 is without end (${default})."`
	Stay        time.Duration  `name:"stay" placeholder:"TIME" help:"How long each board stays inserted, such as 10s; the default is until Ctrl-C for the last one."`
	Gap         time.Duration  `name:"gap" default:"3s" help:"How long the slot is empty between two boards (${default})."`
}

// plugged tells which board is in.
type plugged struct {
	Port   string `json:"port"`
	Device string `json:"device,omitempty"` // of a simulated board
	Key    string `json:"fingerprint,omitempty"`
}

func (s *simulate) Run(ctx context.Context, out *cli.Output) error {
	speed := 1.0
	if s.Speed != nil {
		speed = *s.Speed
	}
	if err := checkSpeed(speed); err != nil {
		return err
	}
	given := s.Description + s.Transcript
	switch {
	case given != "" && s.Dialect != "":
		return fmt.Errorf("%w: --dialect is for a board without a file: %s says how the board talks", cli.ErrMisuse, given)
	case given != "" && s.Device != "":
		return fmt.Errorf("%w: --device is for a board without a file: %s says which board it is", cli.ErrMisuse, given)
	case given != "" && s.Boot != nil:
		return fmt.Errorf("%w: --boot is for a board without a file: %s says when it starts", cli.ErrMisuse, given)
	case s.Transcript != "" && s.Wording != "":
		return fmt.Errorf("%w: --wording is for a simulated board: a transcript has its words", cli.ErrMisuse)
	case s.Transcript == "" && s.Speed != nil:
		return fmt.Errorf("%w: --speed is for a transcript: the times of a simulated board are in its description", cli.ErrMisuse)
	case s.Boards < 0 || s.Stay < 0 || s.Gap < 0 || s.Boot != nil && *s.Boot < 0:
		return fmt.Errorf("%w: --boards, --stay, --gap and --boot are not negative", cli.ErrMisuse)
	case s.Boards != 1 && s.Stay == 0:
		return fmt.Errorf("%w: --boards other than 1 needs --stay: how long each stays in", cli.ErrMisuse)
	case s.Transcript != "" && s.Boards != 1:
		return fmt.Errorf("%w: a transcript is one board", cli.ErrMisuse)
	}
	description, err := s.describe()
	if err != nil {
		return err
	}
	group, err := s.group()
	if err != nil {
		return err
	}
	remove, err := makeFolders(filepath.Dir(s.Port))
	defer remove()
	if err != nil {
		return fmt.Errorf("making the folder of the simulated port: %w; as root, or choose a folder of yours", err)
	}
	port, err := fixtures.OpenPortFor(s.Port, group)
	if errors.Is(err, fixtures.ErrPortTaken) {
		return fmt.Errorf("%w: %w", cli.ErrMisuse, err)
	}
	if err != nil {
		return err
	}
	defer port.Close()
	if s.Transcript != "" {
		return stopped(s.replay(ctx, port, speed, out))
	}
	for n := 1; ; n++ {
		b, err := description.Board()
		if err != nil {
			return err
		}
		if err := out.Print(plugged{s.Port, b.ID(), b.Fingerprint()}, fmt.Sprintf("%s  board %s, key %s\n", s.Port, b.ID(), b.Fingerprint())); err != nil {
			return err
		}
		if err := s.serve(ctx, port, b); err != nil {
			return stopped(err)
		}
		if n == s.Boards {
			return nil
		}
		if err := bounded(ctx, s.Gap, port.Empty); err != nil {
			return stopped(err)
		}
	}
}

// portGroups own serial ports: on Debian and Red Hat, on Arch and SUSE.
func portGroups() []string { return []string{"dialout", "uucp"} }

// group is the id of the group that may open the port, or -1.
func (s *simulate) group() (int, error) {
	names := []string{s.Group}
	switch {
	case s.Group != "":
	case os.Geteuid() == 0:
		names = portGroups()
	default:
		return -1, nil
	}
	for _, name := range names {
		if found, err := user.LookupGroup(name); err == nil {
			return strconv.Atoi(found.Gid)
		}
	}
	if s.Group != "" {
		return -1, fmt.Errorf("%w: --group: there is no group %s", cli.ErrMisuse, s.Group)
	}
	return -1, nil
}

// makeFolders makes a folder with those above it; remove takes away again what
// was made, as far as nothing else is in it.
func makeFolders(dir string) (remove func(), err error) {
	var made []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, d)
	}
	return func() {
		for _, d := range made {
			os.Remove(d)
		}
	}, os.MkdirAll(dir, 0o755)
}

func (s *simulate) describe() (fixtures.Description, error) {
	if s.Description == "" {
		dialect := s.Dialect
		switch {
		case dialect == "" && s.Wording != "":
			dialect = fixtures.DialectCSR
		case dialect == "":
			dialect = fixtures.DialectAT
		}
		boot := 500 * time.Millisecond
		if s.Boot != nil {
			boot = *s.Boot
		}
		d := fixtures.Description{Dialect: dialect, Wording: s.Wording, Device: s.Device, Baud: 115200,
			Boot: fixtures.Duration(boot), Think: fixtures.Duration(2 * time.Millisecond), Sign: fixtures.Duration(60 * time.Millisecond)}
		if err := d.Validate(); err != nil {
			return d, fmt.Errorf("%w: %v", cli.ErrMisuse, err)
		}
		return d, nil
	}
	d, err := fixtures.ReadDescription(s.Description)
	if err != nil || s.Wording == "" {
		return d, err
	}
	d.Wording = s.Wording
	if err := d.Validate(); err != nil {
		return d, fmt.Errorf("%w: --wording: %v", cli.ErrMisuse, err)
	}
	return d, nil
}

// serve has a board in the socket until it ends by itself or by its time.
func (s *simulate) serve(ctx context.Context, port *fixtures.Port, b *fixtures.Board) error {
	serve := func(ctx context.Context) error { return port.Serve(ctx, b) }
	if s.Stay > 0 {
		return bounded(ctx, s.Stay, serve)
	}
	if err := serve(ctx); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// bounded runs something for a time; an error is its own, or that of an outer
// context.
func bounded(ctx context.Context, d time.Duration, run func(context.Context) error) error {
	inner, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	if err := run(inner); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (s *simulate) replay(ctx context.Context, port *fixtures.Port, speed float64, out *cli.Output) error {
	t, err := loadTranscript(s.Transcript)
	if err != nil {
		return err
	}
	if err := out.Print(plugged{Port: s.Port, Device: t.Header["device"]}, fmt.Sprintf("%s  %s\n", s.Port, words(t))); err != nil {
		return err
	}
	// The reader draws its own nonces, so a recorded board proves nothing to
	// it, unless it is a replay.
	fmt.Fprintln(out.Err, "A recorded board answers what it was asked then: another nonce is where its dialogue departs.")
	if err := port.Replay(ctx, t, fixtures.ReplayOptions{Speed: speed}); err != nil {
		return err
	}
	if fixtures.Unplugs(t) {
		return nil
	}
	if s.Stay > 0 {
		return bounded(ctx, s.Stay, port.Empty)
	}
	if err := port.Empty(ctx); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// stopped takes a signal for the end that it is.
func stopped(err error) error {
	if errors.Is(err, cli.ErrStopped) {
		return nil
	}
	return err
}
