// Package cloud holds the registries that stations enrol devices in and the
// issuer reads: AWS (S3 and one DynamoDB table) and a local directory. Both
// write the same items under the same names and give the same verdicts: one
// device, one key; one key, one device. They keep copies of the stations'
// journals too.
//
// Put of either is idempotent: when its answer was lost, or when it broke off
// anywhere, the same Put again brings it to its end. It never changes an item
// that is there, so a device that is held stays held. PutBatch is Put of many
// records, and costs far less than as many Puts.
//
// No server is believed when it says that something was written: what was written
// is read back, or proved by a checksum that S3 returns, before a Put succeeds.
//
// Operators, and nobody else, change items: ChangeState alters the state and
// the epoch of a device and adds to the item's history who did it and why, in
// one write, so that the state is always what the history leads to. Import
// signs, in an operator's name, what the published reference's own loader
// wrote.
//
// Errors that can never change are a *board.Conflict, and what wraps
// board.ErrRecord or board.ErrEnvelope. Every other error may pass by itself or
// when somebody acts on it, ErrDamaged and ErrUnsigned too: the caller keeps
// the record, tries again later and shows the error, which says what to do.
package cloud

import (
	"errors"
	"fmt"

	"secretfree/station/board"
)

// Findings in a registry that a person has to look at. A Put that meets one has
// enrolled nothing; it succeeds once the finding is gone.
var (
	// ErrDamaged: something stored contradicts itself or its name. It was
	// tampered with, or damaged.
	ErrDamaged = errors.New("the registry holds something that no station wrote")
	// ErrUnsigned: the device has an item with this same key but without a
	// station's signed record, as the published reference's own loader writes
	// it. The issuer would refuse it, so it does not count as enrolled, and it
	// is not overwritten, because only a person knows where it comes from: who
	// does may Import it.
	ErrUnsigned = errors.New("the registry holds an item of this device without a signed record")
)

// errNotHeld says that a write was confirmed, and that what was written is not
// there. The write is to be done again.
var errNotHeld = errors.New("the registry has confirmed a write, and does not hold what was written")

// PubkeyFormat is the form of an item's pubkey attribute. Lookup reads both.
type PubkeyFormat string

// The forms of the pubkey attribute. Empty means PubkeyBase64PEM.
const (
	PubkeyBase64PEM PubkeyFormat = "base64-pem" // base64 of the PEM, in one line: what the published reference functions read
	PubkeyPEM       PubkeyFormat = "pem"        // the PEM itself: what the older listing in its document reads
)

func (f PubkeyFormat) check() error {
	switch f {
	case "", PubkeyBase64PEM, PubkeyPEM:
		return nil
	}
	return fmt.Errorf("pubkey_format %q is none of %q and %q", string(f), PubkeyBase64PEM, PubkeyPEM)
}

// Table is the name of the registry table of a SKU.
func Table(sku string) string { return sku + "-iot-provisioning-secretfree" }

// objectName is where a public key is kept, in a bucket and in a folder alike:
// as PEM.
func objectName(device board.DeviceID, fingerprint board.Fingerprint) string {
	return "pubkeys/" + device.String() + "/" + fingerprint.String() + ".pem"
}

// ObjectName is the name of a public key in a bucket and in a folder.
func ObjectName(key board.KeyBinding) string { return objectName(key.Device, key.Key) }

// nonZero returns the indices of the records that hold one: all but those of
// the zero value, which get their error here.
func nonZero(records []board.Sealed, results []error) (good []int) {
	for i, s := range records {
		if len(s.Envelope()) == 0 {
			results[i] = fmt.Errorf("enrolling a device: %w: it holds no record", board.ErrEnvelope)
			continue
		}
		good = append(good, i)
	}
	return good
}

// conflictFreeBatches calls put for some records after others, so that no two
// of one call share a device or a key, and each gets the result that it would
// have got alone, after those before it.
func conflictFreeBatches(records []board.Sealed, todo []int, results []error, put func(wave []int)) {
	open := map[string]error{} // devices and keys of which an earlier record has no verdict yet
	for len(todo) > 0 {
		var wave, later []int
		taken := map[string]bool{}
		for _, i := range todo {
			device, key := records[i].Record().Device.String(), guardID(records[i].Record().Fingerprint())
			switch first := errors.Join(open[device], open[key]); {
			case taken[device] || taken[key]:
				later = append(later, i)
			case first != nil:
				results[i] = fmt.Errorf("device %s: an earlier record of the same device or key has to be settled first: %w", device, first)
				open[device], open[key] = first, first
				continue
			default:
				wave = append(wave, i)
			}
			taken[device], taken[key] = true, true
		}
		put(wave)
		for _, i := range wave {
			if err := results[i]; err != nil && !isVerdict(err) {
				open[records[i].Record().Device.String()] = err
				open[guardID(records[i].Record().Fingerprint())] = err
			}
		}
		todo = later
	}
}

// isVerdict tells the errors that can never change.
func isVerdict(err error) bool {
	_, conflict := errors.AsType[*board.Conflict](err)
	return conflict || errors.Is(err, board.ErrRecord) || errors.Is(err, board.ErrEnvelope)
}

// unresolved returns those that have no error.
func unresolved(results []error, records []int) (good []int) {
	for _, i := range records {
		if results[i] == nil {
			good = append(good, i)
		}
	}
	return good
}

// judge compares a record with what is stored under its device and under its
// key (nil: nothing; read the guard before the item). It returns true if the
// device is enrolled with this key, false if nothing stands against writing it,
// and otherwise why it cannot be.
func judge(r board.Record, stored *item, key *board.KeyBinding) (enrolled bool, err error) {
	if stored == nil {
		if key != nil && key.Device != r.Device {
			return false, &board.Conflict{
				Kind: board.ErrKeyConflict, Device: r.Device, Key: r.Fingerprint(),
				KnownDevice: key.Device, KnownKey: r.Fingerprint(),
			}
		}
		return false, nil
	}
	known, err := stored.enrolment(r.Device)
	if err != nil {
		return false, err
	}
	if known.Key != r.Key {
		return false, &board.Conflict{
			Kind: board.ErrDeviceConflict, Device: r.Device, Key: r.Fingerprint(),
			KnownDevice: r.Device, KnownKey: known.Key.Fingerprint(), KnownBy: known.Station,
		}
	}
	if len(known.Envelope) == 0 {
		return false, fmt.Errorf("device %s: %w: find out who wrote it; once it is deleted, this record is delivered by itself", r.Device, ErrUnsigned)
	}
	// Not this envelope: another station may have enrolled the board before,
	// and the first one stays.
	inside, err := board.ParseEnvelope(known.Envelope)
	if err != nil {
		return false, damaged(r.Device, "its record: %v", err)
	}
	if inside.Record().Device != r.Device || inside.Record().Key != r.Key {
		return false, damaged(r.Device, "its record is of another device or key")
	}
	if stored.object != objectName(r.Device, r.Fingerprint()) {
		return false, damaged(r.Device, "pubkey-object is %.200q, and not the object of its key", stored.object)
	}
	if key == nil || key.Device != r.Device {
		return false, damaged(r.Device, "the guard of its key %s is missing or names another device", r.Fingerprint())
	}
	return true, nil
}

// confirm compares what was read back, after a write that was confirmed, with
// what was to be written. An earlier record of the same device and key counts
// too.
func confirm(s board.Sealed, wrote, stored *item, key *board.KeyBinding) error {
	r := s.Record()
	enrolled, err := judge(r, stored, key)
	if err != nil {
		return err
	}
	if !enrolled {
		return fmt.Errorf("device %s: %w", r.Device, errNotHeld)
	}
	if stored.record != wrote.record {
		return nil
	}
	have := stored.attributes()
	for n, want := range wrote.attributes() {
		switch want.name {
		case "state", "epoch", "state-history": // an operator may have changed them meanwhile
			continue
		}
		if *have[n].value != *want.value {
			return fmt.Errorf("device %s: the attribute %s of its item: %w", r.Device, want.name, errNotHeld)
		}
	}
	return nil
}

func damaged(device board.DeviceID, format string, args ...any) error {
	return fmt.Errorf("device %s: %w: %s: find out who changed it and put it right; the record waits until then",
		device, ErrDamaged, fmt.Sprintf(format, args...))
}
