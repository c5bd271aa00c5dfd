package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"

	"secretfree/station/board"
)

// What is here is for whoever compares a registry with a journal.

// Mismatch says that an attribute of an item is not what its own signed record
// makes it. The state, the epoch and the history are no part of the record.
type Mismatch struct {
	Device     board.DeviceID
	Attribute  string
	Have, Want string // Want is empty if the record itself is wrong
}

func (m *Mismatch) Error() string {
	if m.Want == "" {
		return fmt.Sprintf("device %s: the attribute %s is wrong: %s", m.Device, m.Attribute, m.Have)
	}
	return fmt.Sprintf("device %s: the attribute %s is %.200q, and its signed record says %.200q", m.Device, m.Attribute, m.Have, m.Want)
}

// mismatch compares the attributes of an item with its record; nil, or a
// *Mismatch. An item without a record has nothing to be compared with.
func (i *item) mismatch(e board.Enrolment, bucket string) error {
	if len(e.Envelope) == 0 {
		return nil
	}
	s, err := board.ParseEnvelope(e.Envelope)
	if err != nil {
		return &Mismatch{Device: e.Device, Attribute: "record", Have: err.Error()}
	}
	r := s.Record()
	if r.Device != e.Device || r.Key != e.Key {
		return &Mismatch{Device: e.Device, Attribute: "record", Have: "it is of device " + r.Device.String() + " and key " + r.Fingerprint().String()}
	}
	want := newItem(s, PubkeyBase64PEM, bucket)
	if _, imported := r.Facts[ImportedFact]; imported || i.pubkey == string(r.Key.PEM()) {
		want.pubkey = i.pubkey // as its loader wrote it, or a station with the other format: the key is compared above
	}
	have := i.attributes()
	for n, a := range want.attributes() {
		switch a.name {
		case "state", "epoch", "state-history":
			continue
		}
		if *have[n].value != *a.value {
			return &Mismatch{Device: e.Device, Attribute: a.name, Have: *have[n].value, Want: *a.value}
		}
	}
	return nil
}

// PublicKey reads the object of a public key. An error that is fs.ErrNotExist
// says that there is none; one that wraps ErrDamaged, that it is none of a
// station. What it holds is not checked. It needs s3:GetObject.
func (a *AWS) PublicKey(ctx context.Context, key board.KeyBinding) (content []byte, err error) {
	name := objectName(key.Device, key.Key)
	where := "s3://" + a.config.Bucket + "/" + name
	err = patiently(ctx, func() error {
		stored, err := a.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(a.config.Bucket), Key: aws.String(name)})
		if _, missing := errors.AsType[*s3types.NoSuchKey](err); missing {
			return fmt.Errorf("%s: %w", where, fs.ErrNotExist)
		}
		if err != nil {
			return a.fault("reading "+where, err)
		}
		defer stored.Body.Close()
		content, err = io.ReadAll(io.LimitReader(stored.Body, maxFile+1))
		if err != nil && strings.Contains(err.Error(), "checksum did not match") { // the SDK has no type for it
			return fmt.Errorf("%w: %s is not what was stored there: %v", ErrDamaged, where, err)
		}
		if err != nil {
			return a.fault("reading "+where, err)
		}
		return nil
	})
	if err == nil && len(content) > maxFile {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes", ErrDamaged, where, maxFile)
	}
	return content, err
}

// KeyOwner returns the device that the guard of a key names, read consistently.
// An error that is fs.ErrNotExist says that there is no guard; one that wraps
// ErrDamaged, that it names none. It needs dynamodb:GetItem.
func (a *AWS) KeyOwner(ctx context.Context, key board.Fingerprint) (owner board.DeviceID, err error) {
	err = patiently(ctx, func() error {
		guard, err := a.getGuard(ctx, key)
		if err != nil {
			return err
		}
		if guard == nil {
			return fmt.Errorf("guard of key %s: %w", key, fs.ErrNotExist)
		}
		owner = guard.Device
		return nil
	})
	return owner, err
}

// Repair is PutBatch, and makes the guard of a device that is enrolled with the
// key of its record and has none. It changes nothing that is there, and needs no
// right that PutBatch does not need.
func (a *AWS) Repair(ctx context.Context, records []board.Sealed) []error {
	guards := make([]error, len(records))
	a.each(nonZero(records, make([]error, len(records))), records, guards, func(i int) error { return a.repairGuard(ctx, records[i].Record()) })
	results := a.PutBatch(ctx, records)
	for i, err := range guards {
		if err != nil && results[i] != nil && !isVerdict(results[i]) {
			results[i] = err // the cause
		}
	}
	return results
}

func (a *AWS) repairGuard(ctx context.Context, r board.Record) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	guard, err := a.getGuard(ctx, r.Fingerprint())
	if guard != nil || err != nil {
		return err
	}
	stored, err := a.getItem(ctx, r.Device)
	if err != nil || !lacksGuard(r, stored) {
		return err
	}
	// If the item is deleted meanwhile, its guard stays: it is the device's own.
	put := a.putGuard(board.KeyBinding{Device: r.Device, Key: r.Fingerprint()}).Put
	_, err = a.dynamo.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: put.TableName, Item: put.Item, ConditionExpression: put.ConditionExpression,
		ExpressionAttributeNames: put.ExpressionAttributeNames, ExpressionAttributeValues: put.ExpressionAttributeValues,
	})
	if err != nil {
		return a.fault("writing the guard of key "+r.Fingerprint().String()+" in table "+a.config.Table, err)
	}
	return nil
}

// lacksGuard tells an item that a station wrote for this record's device and
// key. What else may be wrong with it, the Put after it says.
func lacksGuard(r board.Record, stored *item) bool {
	if stored == nil {
		return false
	}
	_, err := judge(r, stored, &board.KeyBinding{Device: r.Device, Key: r.Fingerprint()})
	return err == nil
}

// PublicKey reads the file of a public key. An error that is fs.ErrNotExist says
// that there is none; one that wraps ErrDamaged, that it is none of a station.
// What it holds is not checked.
func (d *Dir) PublicKey(_ context.Context, key board.KeyBinding) (content []byte, err error) {
	root, err := d.open()
	if err == nil {
		defer root.Close()
		content, err = readFile(root, objectName(key.Device, key.Key), maxFile)
	}
	return content, d.explain("reading a public key", err)
}

// KeyOwner returns the device that the guard of a key names. An error that is
// fs.ErrNotExist says that there is no guard; one that wraps ErrDamaged, that it
// names none.
func (d *Dir) KeyOwner(_ context.Context, key board.Fingerprint) (owner board.DeviceID, err error) {
	root, err := d.open()
	if err == nil {
		defer root.Close()
		var guard *board.KeyBinding
		if guard, err = readGuard(root, key); err == nil && guard == nil {
			err = fs.ErrNotExist
		}
		if guard != nil {
			owner = guard.Device
		}
	}
	return owner, d.explain("reading the guard of key "+key.String(), err)
}

// Repair is PutBatch, and makes the guard of a device that is enrolled with the
// key of its record and has none. It changes nothing that is there.
func (d *Dir) Repair(ctx context.Context, records []board.Sealed) []error {
	bounded, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	failed := d.locked(bounded, func(w *writeTxn) error {
		for _, i := range nonZero(records, make([]error, len(records))) {
			if err := w.repairGuard(records[i].Record()); err != nil && !errors.Is(err, ErrDamaged) {
				return err
			}
		}
		return nil
	})
	results := d.PutBatch(ctx, records)
	for i, err := range results {
		if err != nil && failed != nil && !isVerdict(err) {
			results[i] = d.explain("making a guard", failed)
		}
	}
	return results
}

func (w *writeTxn) repairGuard(r board.Record) error {
	if err := w.finish(); err != nil {
		return err
	}
	guard, err := readGuard(w.root, r.Fingerprint())
	if guard != nil || err != nil {
		return err
	}
	stored, err := readItem(w.root, itemName(r.Device), r.Device)
	if err != nil || !lacksGuard(r, stored) {
		return err
	}
	return w.create(guardName(r.Fingerprint()), guardToJSON(board.KeyBinding{Device: r.Device, Key: r.Fingerprint()}))
}
