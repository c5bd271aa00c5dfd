package station

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"secretfree/station/board"
)

// What a verdict may rest on besides the dialogue: the values of a transcript's
// key "given". GivenKnown is followed by a device id and a key's fingerprint,
// GivenLabel by the label. Without the key, all depends on the dialogue.
const (
	GivenKnown   = "known"          // the journal knows this device with this key
	GivenRepeat  = "repeat"         // the journal knows this very board
	GivenFull    = "disk-full"      // the journal has no room
	GivenBroken  = "disk-error"     // the journal cannot be written
	GivenLot     = "other-lot"      // the board is not on the list of the lot
	GivenNoLot   = "lot-unreadable" // there should be a list, and it cannot be read
	GivenNoP256  = "no-p256"        // the policy does not allow P-256
	GivenLabel   = "label"          // this label was scanned; the device id or the MAC address follows
	GivenNoLabel = "no-label"       // the policy asks for a label, and none was scanned
	givenUnknown = "unknown"
)

// preconditionOf is what a failure rested on.
func preconditionOf(reason Reason, cause error) string {
	switch reason {
	case ReasonDeviceConflict, ReasonKeyConflict:
		if conflict, ok := errors.AsType[*board.Conflict](cause); ok {
			return fmt.Sprintf("%s %s %s", GivenKnown, conflict.KnownDevice, conflict.KnownKey)
		}
		return givenUnknown
	case ReasonDiskFull:
		return GivenFull
	case ReasonDiskError:
		return GivenBroken
	case ReasonNotInLot:
		return GivenLot
	case ReasonLotUnreadable:
		return GivenNoLot
	case ReasonPolicy:
		return GivenNoP256
	case ReasonLabelMismatch:
		if other, ok := errors.AsType[*labelError](cause); ok {
			return GivenLabel + " " + other.label.text
		}
		return givenUnknown
	case ReasonLabelMissing:
		return GivenNoLabel
	}
	return ""
}

// Precondition is a journal and a policy that make what was given true again,
// for a replay. It keeps nothing on disk. It may be used by many at once.
type Precondition struct {
	Policy Policy
	Label  string // see Config.Label

	err error // of every Append

	mu      sync.Mutex
	repeat  bool
	devices map[board.DeviceID]board.Fingerprint
	owners  map[board.Fingerprint]board.DeviceID
	seq     uint64
}

// NewPrecondition reads the value of a transcript's key "given"; empty is a
// journal that knows nothing.
func NewPrecondition(given string) (*Precondition, error) {
	s := &Precondition{devices: map[board.DeviceID]board.Fingerprint{}, owners: map[board.Fingerprint]board.DeviceID{}}
	fields := strings.Fields(given)
	switch {
	case given == "":
	case len(fields) == 3 && fields[0] == GivenKnown:
		device, err := board.ParseDeviceID(fields[1])
		if err != nil {
			return nil, fmt.Errorf("given: %w", err)
		}
		key, err := board.ParseFingerprint(fields[2])
		if err != nil {
			return nil, fmt.Errorf("given: %w", err)
		}
		s.devices[device], s.owners[key] = key, device
	case given == GivenRepeat:
		s.repeat = true
	case given == GivenFull:
		s.err = syscall.ENOSPC
	case given == GivenBroken:
		s.err = syscall.EIO
	case given == GivenLot:
		s.Policy.Lot = func(board.DeviceID, map[string]string) error { return ErrNotInLot }
	case given == GivenNoLot:
		s.Policy.Lot = func(board.DeviceID, map[string]string) error { return syscall.ENOENT }
	case len(fields) == 2 && fields[0] == GivenLabel:
		read, err := parseScan(fields[1])
		if err != nil || read.label.text == "" {
			return nil, fmt.Errorf("given: %q is no label", fields[1])
		}
		s.Label = read.label.text
	case given == GivenNoLabel:
		s.Policy.NeedsLabel = true
	case given == GivenNoP256:
		s.Policy.Algorithms = []board.Algorithm{board.P384}
	default:
		return nil, fmt.Errorf("given is %q: want %s DEVICE FINGERPRINT, %s LABEL, or one of %s", given, GivenKnown, GivenLabel,
			strings.Join([]string{GivenRepeat, GivenFull, GivenBroken, GivenLot, GivenNoLot, GivenNoP256, GivenNoLabel}, ", "))
	}
	return s, nil
}

// Append implements Journal.
func (s *Precondition) Append(_ context.Context, o Outcome) (board.Receipt, error) {
	if o.Record == nil {
		return board.Receipt{}, nil
	}
	r := *o.Record
	if s.err != nil {
		return board.Receipt{}, fmt.Errorf("as it was given: %w", s.err)
	}
	if err := r.Check(); err != nil {
		return board.Receipt{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fingerprint := r.Fingerprint()
	known, haveDevice := s.devices[r.Device]
	owner, haveKey := s.owners[fingerprint]
	switch {
	case haveDevice && known != fingerprint:
		return board.Receipt{}, &board.Conflict{Kind: board.ErrDeviceConflict, Device: r.Device, Key: fingerprint, KnownDevice: r.Device, KnownKey: known}
	case haveKey && owner != r.Device:
		return board.Receipt{}, &board.Conflict{Kind: board.ErrKeyConflict, Device: r.Device, Key: fingerprint, KnownDevice: owner, KnownKey: fingerprint}
	}
	s.devices[r.Device], s.owners[fingerprint] = fingerprint, r.Device
	s.seq++
	return board.Receipt{Seq: s.seq, Time: time.Now().UTC(), Repeat: haveDevice || s.repeat}, nil
}
