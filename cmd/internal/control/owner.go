package control

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// ErrNotOwner: a file that one user makes in the state directory of another,
// stationd could not open.
var ErrNotOwner = errors.New("only its owner may change something in a state directory")

// CheckOwner refuses to change something in a state directory as another user
// (an effective uid) than its owner, also as root.
func CheckOwner(stateDir string, uid int) error {
	info, err := os.Stat(stateDir)
	if err != nil {
		return fmt.Errorf("looking at the state directory: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == uid {
		return nil
	}
	owner := "#" + strconv.Itoa(int(stat.Uid)) // as sudo takes it
	if known, err := user.LookupId(owner[1:]); err == nil {
		owner = known.Username
	}
	return fmt.Errorf("%w: %s belongs to user %s, and stationd could not open what user %d makes there; run it as: sudo -u '%s' stationctl …", ErrNotOwner, stateDir, owner, uid, owner)
}
