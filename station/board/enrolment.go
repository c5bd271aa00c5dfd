package board

import (
	"errors"
	"fmt"
	"time"
)

// State is what the registry says may be done with a device.
type State string

// The states of a device in the registry.
const (
	Active   State = "active"
	Held     State = "held"     // for now, no certificate
	Scrapped State = "scrapped" // never left the factory
	Revoked  State = "revoked"  // no longer trusted
)

// ParseState refuses what is not one of the states.
func ParseState(s string) (State, error) {
	switch state := State(s); state {
	case Active, Held, Scrapped, Revoked:
		return state, nil
	}
	return "", fmt.Errorf("%q is not a state of a device: active, held, scrapped or revoked", s)
}

// Enrolment is what a registry holds of a device. Nothing in it is believed
// because it is there: the envelope says what a station vouched for.
type Enrolment struct {
	Device     DeviceID
	Key        Key
	Envelope   []byte // empty if the item has none: it was not written by a station
	Station    string
	EnrolledAt time.Time
	State      State
	Generation int
	// Epoch, if not 0, is the first whose certificates count: an operator
	// raises it to let a device have another certificate, when the former ones
	// were revoked or the device changed hands.
	Epoch int
}

// KeyBinding names a device and the fingerprint of its key. Stored public keys
// and guards of a registry are key bindings.
type KeyBinding struct {
	Device DeviceID
	Key    Fingerprint
}

// Receipt says that a station's journal holds a verdict, durably.
type Receipt struct {
	Seq     uint64    // of the journal entry that holds the record
	Time    time.Time // of that entry
	Repeat  bool      // the record was there already
	Entry   uint64    // the entry of this verdict: Seq, or that of the repeat or the failure
	At      time.Time // of Entry; zero if LeftOut
	LeftOut bool      // of a failure: it is one of too many, and was only counted
	Resumed bool      // Entry is of before the start: it says the same of the same board, and nothing was added
}

// The two ways in which a record contradicts what is known. A *Conflict is one
// of them.
var (
	ErrDeviceConflict = errors.New("this device id is known with another key")
	ErrKeyConflict    = errors.New("this key is known under another device id")
)

// Conflict is a verdict that can never change: one device, one key; one key,
// one device.
type Conflict struct {
	Kind   error // ErrDeviceConflict or ErrKeyConflict
	Device DeviceID
	Key    Fingerprint
	// What is known: the other key of this device, or the other device of this
	// key.
	KnownDevice DeviceID
	KnownKey    Fingerprint
	KnownBy     string // the origin of the station that enrolled it, if known
}

func (c *Conflict) Error() string {
	by := ""
	if c.KnownBy != "" {
		by = " by station " + c.KnownBy
	}
	if c.Kind == ErrKeyConflict {
		return fmt.Sprintf("device %s: %v (key %s is enrolled for %s%s)", c.Device, c.Kind, c.Key, c.KnownDevice, by)
	}
	return fmt.Sprintf("device %s: %v (has key %s, is enrolled with %s%s)", c.Device, c.Kind, c.Key, c.KnownKey, by)
}

func (c *Conflict) Unwrap() error { return c.Kind }

// ErrNotEnrolled says that a registry holds nothing under a device id.
var ErrNotEnrolled = errors.New("device is not enrolled")
