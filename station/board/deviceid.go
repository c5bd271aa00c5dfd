// Package board holds the one noun that every room shares: a board's identity
// as the factory writes it down. It parses, checks and encodes device ids,
// public keys and records, and seals a record under its station's key. It does
// no input or output.
package board

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// DeviceID is a board's UDID, the 16 bytes that its network processor reports.
// As text it is 32 lower-case hex digits. The zero value is not a device id.
type DeviceID [16]byte

// ErrDeviceID says that something is not a device id.
var ErrDeviceID = errors.New("not a device id (32 lower-case hex digits, not all 0 and not all f)")

// NewDeviceID checks the bytes of a UDID. All 00 and all FF, what an
// unprogrammed memory reads as, are refused.
func NewDeviceID(udid [16]byte) (DeviceID, error) {
	id := DeviceID(udid)
	if !id.Valid() {
		return DeviceID{}, ErrDeviceID
	}
	return id, nil
}

// ParseDeviceID reads exactly the form that String prints; nothing is trimmed,
// folded or padded.
func ParseDeviceID(s string) (DeviceID, error) {
	var id DeviceID
	if len(s) != 2*len(id) {
		return DeviceID{}, ErrDeviceID
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil || id.String() != s || !id.Valid() {
		return DeviceID{}, ErrDeviceID
	}
	return id, nil
}

// Valid reports whether id can be the id of a board.
func (id DeviceID) Valid() bool {
	var ones DeviceID
	for i := range ones {
		ones[i] = 0xff
	}
	return id != DeviceID{} && id != ones
}

func (id DeviceID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText writes the 32 hex digits; an invalid id is an error.
func (id DeviceID) MarshalText() ([]byte, error) {
	if !id.Valid() {
		return nil, ErrDeviceID
	}
	return []byte(id.String()), nil
}

// UnmarshalText is ParseDeviceID.
func (id *DeviceID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseDeviceID(string(text))
	return err
}

// CheckName reports whether s can be the name of a SKU or of a station.
func CheckName(s string) error {
	other := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }
	if len(s) < 1 || len(s) > 63 || s[0] == '-' || strings.ContainsFunc(s, other) {
		return fmt.Errorf("%q is not a name: 1 to 63 of a-z, 0-9 and -, not starting with -", s)
	}
	return nil
}

// Origin is the identity of a station: the name of its signing key, and the
// origin line of its checkpoints.
func Origin(sku, station string) string { return sku + "/" + station }
