package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strings"
	"time"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/issuerd"
	"secretfree/station/board"
)

type device struct {
	Show     deviceShow     `cmd:"" help:"Show the enrolment and the history of the state."`
	Hold     deviceHold     `cmd:"" help:"Issue no certificate to the device until it is released."`
	Release  deviceRelease  `cmd:"" help:"Make a held or revoked device active. A revoked device can get a new certificate; its former certificates stay revoked."`
	Revoke   deviceRevoke   `cmd:"" help:"Revoke the device and its certificates."`
	Scrap    deviceScrap    `cmd:"" help:"Scrap a device that never leaves the factory. This cannot be undone."`
	Transfer deviceTransfer `cmd:"" help:"Transfer a device to a new owner: revoke its former certificates and allow a new one."`
}

// hooks join a change of a device's state with what was issued to it. One that
// is nil is left out.
type hooks struct {
	// nextEpoch is an epoch in which nothing was issued to the device, and
	// which comes after all in which something was.
	nextEpoch func(ctx context.Context, c issuerd.Config, device board.DeviceID) (int, error)
	// afterChange does what else a change asks for, such as revoking
	// certificates. It is called again when the same change is made again. e is
	// what is enrolled now.
	afterChange func(ctx context.Context, c issuerd.Config, e board.Enrolment, action cloud.Action) error
}

// deviceRegistry reads and changes the state of a device; see package cloud.
type deviceRegistry interface {
	Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error)
	History(ctx context.Context, device board.DeviceID) ([]cloud.Event, error)
	ChangeState(ctx context.Context, device board.DeviceID, c cloud.Change) (board.Enrolment, error)
}

type deviceFlags struct {
	Config string `name:"config" default:"/etc/secretfree/issuerd.toml" placeholder:"FILE" help:"The issuer's configuration, which names the registry (${default})."`
	ID     string `arg:"" name:"id" help:"The device id: 32 hexadecimal digits."`
}

// open returns the device, and the registry that may hold it.
func (f deviceFlags) open(ctx context.Context) (issuerd.Config, deviceRegistry, board.DeviceID, error) {
	id, err := board.ParseDeviceID(f.ID)
	if err != nil {
		return issuerd.Config{}, nil, id, fmt.Errorf("%w: %w", cli.ErrMisuse, err)
	}
	c, err := issuerd.Load(f.Config)
	if err != nil {
		return c, nil, id, err
	}
	aws, dir, err := c.Registry.Open(ctx, c.SKU)
	if err != nil {
		return c, nil, id, fmt.Errorf("opening the registry: %w", err)
	}
	if dir != nil {
		return c, dir, id, nil
	}
	return c, aws, id, nil
}

type deviceShow struct{ deviceFlags }

// eventLine is a change of the state.
type eventLine struct {
	ID     string       `json:"id"`
	At     time.Time    `json:"at"`
	Who    string       `json:"who"`
	Why    string       `json:"why"`
	Action cloud.Action `json:"action"`
	From   board.State  `json:"from"`
	To     board.State  `json:"to"`
	Epoch  int          `json:"epoch"`
}

// deviceLine is what is enrolled.
type deviceLine struct {
	Device     string      `json:"device"`
	State      board.State `json:"state"`
	Epoch      int         `json:"epoch"`
	Generation int         `json:"generation"`
	Station    string      `json:"station"`
	EnrolledAt time.Time   `json:"enrolled_at"`
	Key        string      `json:"key"`
	Algorithm  string      `json:"algorithm"`
	Signed     bool        `json:"signed"`
	History    []eventLine `json:"history"`
}

func (d *deviceShow) Run(ctx context.Context, out *cli.Output) error {
	_, registry, id, err := d.open(ctx)
	if err != nil {
		return err
	}
	e, err := registry.Lookup(ctx, id)
	if err != nil {
		return err
	}
	history, err := registry.History(ctx, id)
	if err != nil {
		return err
	}
	line := deviceLine{
		Device: id.String(), State: e.State, Epoch: e.Epoch, Generation: e.Generation, Station: e.Station, EnrolledAt: e.EnrolledAt,
		Key: e.Key.Fingerprint().String(), Algorithm: string(e.Key.Algorithm()), Signed: len(e.Envelope) > 0, History: []eventLine{},
	}
	var b strings.Builder
	for _, field := range []struct{ name, value string }{
		{"device", line.Device}, {"state", string(e.State)}, {"epoch", fmt.Sprint(e.Epoch)}, {"station", e.Station},
		{"enrolled", e.EnrolledAt.Format(time.RFC3339)}, {"key", line.Key + " (" + line.Algorithm + ")"},
	} {
		fmt.Fprintf(&b, "%-9s %s\n", field.name, field.value)
	}
	if !line.Signed {
		b.WriteString("It has no signed record, so it gets no certificate: issuerctl import.\n")
	}
	for _, c := range history {
		line.History = append(line.History, eventLine(c))
		fmt.Fprintf(&b, "%s  %-8s  %s -> %s, epoch %d, by %s: %s\n", c.At.Format(time.RFC3339), c.Action, c.From, c.To, c.Epoch, c.Who, c.Why)
	}
	return out.Print(line, b.String())
}

// changeFlags are those of every change.
type changeFlags struct {
	deviceFlags
	Who    string `name:"who" placeholder:"NAME" help:"Who decided this; the default is the user of this session."`
	Why    string `name:"why" required:"" placeholder:"TEXT" help:"The reason, which stays in the history of the device."`
	Change string `name:"change" placeholder:"ID" help:"The number of a failed change, from its error message: the change is continued and made once."`

	hooks hooks
}

// changeLine is what a change did.
type changeLine struct {
	Device string       `json:"device"`
	Action cloud.Action `json:"action"`
	Change string       `json:"change"`
	Was    board.State  `json:"was"`
	State  board.State  `json:"state"`
	Epoch  int          `json:"epoch"`
}

type (
	deviceHold     struct{ changeFlags }
	deviceRelease  struct{ changeFlags }
	deviceRevoke   struct{ changeFlags }
	deviceScrap    struct{ changeFlags }
	deviceTransfer struct{ changeFlags }
)

func (d *deviceHold) Run(ctx context.Context, out *cli.Output) error {
	return d.change(ctx, out, cloud.Hold)
}

func (d *deviceRelease) Run(ctx context.Context, out *cli.Output) error {
	return d.change(ctx, out, cloud.Release)
}

func (d *deviceRevoke) Run(ctx context.Context, out *cli.Output) error {
	return d.change(ctx, out, cloud.Revoke)
}

func (d *deviceScrap) Run(ctx context.Context, out *cli.Output) error {
	return d.change(ctx, out, cloud.Scrap)
}

func (d *deviceTransfer) Run(ctx context.Context, out *cli.Output) error {
	return d.change(ctx, out, cloud.Transfer)
}

func (f *changeFlags) change(ctx context.Context, out *cli.Output, action cloud.Action) error {
	c, registry, id, err := f.open(ctx)
	if err != nil {
		return err
	}
	change := cloud.Change{ID: f.Change, Action: action, Who: f.Who, Why: f.Why, At: time.Now().UTC().Truncate(time.Millisecond)}
	if change.Who == "" {
		known, err := user.Current()
		if err != nil {
			return fmt.Errorf("%w: this session's user is not known (%w): say --who", cli.ErrMisuse, err)
		}
		change.Who = known.Username
	}
	if change.ID == "" {
		change.ID = cloud.NewChangeID()
	}
	was, err := registry.Lookup(ctx, id)
	if err != nil {
		return err
	}
	if action.Raises(was.State) {
		change.Epoch = was.Epoch + 1
		if f.hooks.nextEpoch != nil {
			next, err := f.hooks.nextEpoch(ctx, c, id)
			if err != nil {
				return fmt.Errorf("looking for the next epoch of device %s: %w", id, err)
			}
			change.Epoch = max(change.Epoch, next)
		}
	}
	is, err := registry.ChangeState(ctx, id, change)
	if err != nil {
		return explainChange(change, err)
	}
	if f.hooks.afterChange != nil {
		if err := f.hooks.afterChange(ctx, c, is, action); err != nil {
			return again(change, fmt.Errorf("device %s is %s now, but what follows from it is not done: %w", id, is.State, err))
		}
	}
	line := changeLine{Device: id.String(), Action: action, Change: change.ID, Was: was.State, State: is.State, Epoch: is.Epoch}
	text := fmt.Sprintf("%s was %s in epoch %d, is %s in epoch %d.\n", id, was.State, was.Epoch, is.State, is.Epoch)
	return out.Print(line, text)
}

// explainChange tells a refusal, which ends it, from a failure, after which
// nobody knows.
func explainChange(c cloud.Change, err error) error {
	if errors.Is(err, cloud.ErrChange) {
		return fmt.Errorf("%w: %w", cli.ErrMisuse, err)
	}
	if _, refused := errors.AsType[*cloud.Refused](err); refused {
		return err
	}
	for _, settled := range []error{board.ErrNotEnrolled, cloud.ErrUnsigned, cloud.ErrDamaged, cloud.ErrNoRegistry} {
		if errors.Is(err, settled) {
			return err
		}
	}
	return again(c, err)
}

func again(c cloud.Change, err error) error {
	return fmt.Errorf("%w; run it again with --change %s, --who and --why as they were", err, c.ID)
}
