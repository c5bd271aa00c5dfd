package board_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"secretfree/station/board"
)

func TestStates(t *testing.T) {
	for _, state := range []board.State{board.Active, board.Held, board.Scrapped, board.Revoked} {
		if got, err := board.ParseState(string(state)); err != nil || got != state {
			t.Errorf("%s: got %s, %v", state, got, err)
		}
	}
	for _, text := range []string{"", "Active", " active", "active\n", "deleted"} {
		if got, err := board.ParseState(text); err == nil || got != "" || !strings.Contains(err.Error(), "active, held, scrapped or revoked") {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}

func TestConflict(t *testing.T) {
	one, two := parseID(t, strings.Repeat("1", 32)), parseID(t, strings.Repeat("2", 32))
	oneKey, err := board.ParseFingerprint(strings.Repeat("a", 64))
	must(t, err)
	twoKey, err := board.ParseFingerprint(strings.Repeat("b", 64))
	must(t, err)
	for name, c := range map[string]struct {
		conflict board.Conflict
		want     string
		is, not  error
	}{
		"device": {
			board.Conflict{Kind: board.ErrDeviceConflict, Device: one, Key: oneKey, KnownDevice: one, KnownKey: twoKey, KnownBy: "widgiot/line4"},
			"device " + one.String() + ": this device id is known with another key (has key " + oneKey.String() + ", is enrolled with " + twoKey.String() + " by station widgiot/line4)",
			board.ErrDeviceConflict, board.ErrKeyConflict,
		},
		"key": {
			board.Conflict{Kind: board.ErrKeyConflict, Device: one, Key: oneKey, KnownDevice: two, KnownKey: oneKey},
			"device " + one.String() + ": this key is known under another device id (key " + oneKey.String() + " is enrolled for " + two.String() + ")",
			board.ErrKeyConflict, board.ErrDeviceConflict,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.conflict.Error(); got != c.want {
				t.Errorf("it says %q, want %q", got, c.want)
			}
			err := fmt.Errorf("delivering: %w", &c.conflict)
			if !errors.Is(err, c.is) || errors.Is(err, c.not) {
				t.Errorf("it is %v: %v, is %v: %v", c.is, errors.Is(err, c.is), c.not, errors.Is(err, c.not))
			}
			if got, ok := errors.AsType[*board.Conflict](err); !ok || *got != c.conflict {
				t.Errorf("as a conflict: %+v, %v", got, ok)
			}
		})
	}
}
