package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/issuerd"
	"secretfree/station/board"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// enrolled is a registry in a folder, with one device, and the configuration of
// an issuer that uses it.
type enrolled struct {
	config   string
	registry *cloud.Dir
	device   board.DeviceID
}

// configFile writes an issuer's configuration, with this table [registry] and a
// station whose signer is returned.
func configFile(t *testing.T, dir, registry string) (name string, station note.Signer) {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, "widgiot/line3-a")
	must(t, err)
	station, err = note.NewSigner(secret)
	must(t, err)
	name = filepath.Join(dir, "issuerd.toml")
	must(t, os.WriteFile(name, fmt.Appendf(nil, `sku = "widgiot"
[registry]
%s
[ca]
kind = "local"
dir = "/nonexistent/ca"
passphrase_file = "/nonexistent/ca.pass"
[issuance]
kind = "dir"
dir = "/nonexistent/claims"
[[trusted_station]]
name = "widgiot/line3-a"
key = %q
`, registry, public), 0o600))
	return name, station
}

func newKey(t *testing.T) board.Key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err := board.NewKey(&private.PublicKey, nil)
	must(t, err)
	return key
}

func enrol(t *testing.T) *enrolled {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "registry")
	must(t, cloud.InitDir(path))
	e := &enrolled{device: board.DeviceID{15: 1}}
	var station note.Signer
	e.config, station = configFile(t, dir, fmt.Sprintf("kind = \"dir\"\ndir = %q", path))
	sealed, err := board.Seal(board.Record{
		SKU: "widgiot", Station: "line3-a", Device: e.device, Key: newKey(t), Generation: 1, ReadAt: time.Now().UTC().Truncate(time.Millisecond),
	}, station)
	must(t, err)
	e.registry, err = cloud.OpenDir(cloud.DirConfig{Path: path})
	must(t, err)
	must(t, e.registry.Put(t.Context(), sealed))
	return e
}

// do runs a change, and returns what it wrote.
func (e *enrolled) do(t *testing.T, h hooks, id string, action cloud.Action) (string, error) {
	t.Helper()
	f := changeFlags{deviceFlags: deviceFlags{Config: e.config, ID: e.device.String()}, Who: "A. Clerk", Why: "a test", Change: id, hooks: h}
	var out bytes.Buffer
	err := f.change(t.Context(), &cli.Output{Out: &out, People: &out, Err: &out}, action)
	return out.String(), err
}

func (e *enrolled) state(t *testing.T, state board.State, epoch, changes int) {
	t.Helper()
	got, err := e.registry.Lookup(t.Context(), e.device)
	must(t, err)
	history, err := e.registry.History(t.Context(), e.device)
	must(t, err)
	if got.State != state || got.Epoch != epoch || len(history) != changes {
		t.Errorf("it is %s in epoch %d after %d changes, want %s in %d after %d", got.State, got.Epoch, len(history), state, epoch, changes)
	}
}

// The epoch is one in which nothing was issued, and is asked for only where the
// change needs it.
func TestNextEpoch(t *testing.T) {
	e := enrol(t)
	next, asked := 7, 0
	h := hooks{nextEpoch: func(_ context.Context, c issuerd.Config, device board.DeviceID) (int, error) {
		asked++
		if c.SKU != "widgiot" || device != e.device {
			t.Errorf("asked about device %s of SKU %s", device, c.SKU)
		}
		return next, nil
	}}
	for n, step := range []struct {
		action cloud.Action
		next   int
		state  board.State
		epoch  int
		asked  int
	}{
		{cloud.Hold, 0, board.Held, 0, 0},
		{cloud.Release, 0, board.Active, 0, 0},
		{cloud.Transfer, 7, board.Active, 7, 1},
		{cloud.Transfer, 3, board.Active, 8, 2}, // the epoch never goes back
		{cloud.Revoke, 0, board.Revoked, 8, 2},
		{cloud.Release, 20, board.Active, 20, 3},
		{cloud.Scrap, 0, board.Scrapped, 20, 3},
	} {
		next = step.next
		out, err := e.do(t, h, "", step.action)
		must(t, err)
		e.state(t, step.state, step.epoch, n+1)
		if want := fmt.Sprintf("is %s in epoch %d.\n", step.state, step.epoch); !strings.HasSuffix(out, want) || asked != step.asked {
			t.Errorf("%s: it says %q, and asked %d times; want %q, %d", step.action, out, asked, want, step.asked)
		}
	}
}

func TestNextEpochUnknown(t *testing.T) {
	e := enrol(t)
	away := errors.New("the memory of what was issued is away")
	_, err := e.do(t, hooks{nextEpoch: func(context.Context, issuerd.Config, board.DeviceID) (int, error) { return 0, away }}, "", cloud.Transfer)
	if !errors.Is(err, away) {
		t.Errorf("got %v", err)
	}
	e.state(t, board.Active, 0, 0)
}

// What follows from a change fails: it is said how to carry on, and then the
// change is not made twice.
func TestAfterChange(t *testing.T) {
	e := enrol(t)
	away := errors.New("the CA is away")
	var told []string
	h := hooks{afterChange: func(_ context.Context, _ issuerd.Config, e board.Enrolment, action cloud.Action) error {
		told = append(told, fmt.Sprintf("%s: %s in %d", action, e.State, e.Epoch))
		if len(told) == 1 {
			return away
		}
		return nil
	}}
	_, err := e.do(t, h, "CHANGE0123456789", cloud.Transfer)
	if !errors.Is(err, away) || !strings.Contains(err.Error(), "run it again with --change CHANGE0123456789") {
		t.Fatalf("got %v", err)
	}
	e.state(t, board.Active, 1, 1)
	out, err := e.do(t, h, "CHANGE0123456789", cloud.Transfer)
	must(t, err)
	e.state(t, board.Active, 1, 1)
	if got := strings.Join(told, "; "); got != "transfer: active in 1; transfer: active in 1" {
		t.Errorf("it was told of %s; and says %q", got, out)
	}
	// A refused change has no consequence.
	if _, err := e.do(t, h, "", cloud.Release); !errors.Is(err, cloud.ErrTransition) || len(told) != 2 {
		t.Errorf("got %v, told of %q", err, told)
	}
}

// Only where nobody knows what became of a change it is to be run again.
func TestExplainChange(t *testing.T) {
	c := cloud.Change{ID: "CHANGE0123456789"}
	for _, test := range []struct {
		err           error
		misuse, again bool
	}{
		{cloud.ErrChange, true, false},
		{&cloud.Refused{Kind: cloud.ErrMeanwhile}, false, false},
		{board.ErrNotEnrolled, false, false},
		{cloud.ErrUnsigned, false, false},
		{cloud.ErrDamaged, false, false},
		{cloud.ErrNoRegistry, false, false},
		{errors.New("no answer"), false, true},
	} {
		err := explainChange(c, fmt.Errorf("changing: %w", test.err))
		if !errors.Is(err, test.err) || errors.Is(err, cli.ErrMisuse) != test.misuse || strings.Contains(err.Error(), "--change "+c.ID) != test.again {
			t.Errorf("got %v; want misuse: %v, again: %v", err, test.misuse, test.again)
		}
	}
}

// The grammar hands the hooks to every change.
func TestHooks(t *testing.T) {
	g := newGrammar(hooks{nextEpoch: func(context.Context, issuerd.Config, board.DeviceID) (int, error) { return 1, nil }})
	for action, c := range map[cloud.Action]changeFlags{
		cloud.Hold: g.Device.Hold.changeFlags, cloud.Release: g.Device.Release.changeFlags, cloud.Scrap: g.Device.Scrap.changeFlags,
		cloud.Revoke: g.Device.Revoke.changeFlags, cloud.Transfer: g.Device.Transfer.changeFlags,
	} {
		if c.hooks.nextEpoch == nil {
			t.Errorf("%s has none", action)
		}
	}
}
