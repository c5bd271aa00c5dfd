package cloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"secretfree/station/board"
)

// Why an item that the published reference's loader may have written is not
// imported. A person has to decide.
var (
	errForeignID = errors.New("its id is not that of a device: 32 lower-case hexadecimal digits")
	errNoKey     = errors.New("its public key cannot be read")
	errKeyTwice  = errors.New("its key stands under another id too")
	errMore      = errors.New("it holds more than the reference's loader writes")
)

// ErrNotAsListed says that an item is no longer the one that was listed.
// Listing anew shows what it is now.
var ErrNotAsListed = errors.New("the item was changed since it was listed")

// LegacyItem is what an import finds of a device item.
type LegacyItem struct {
	ID      string         // as it stands; also where no device has such an id
	Device  board.DeviceID // zero if ID is none
	Key     board.Key      // zero if it cannot be read
	Signed  bool           // it holds a record: nothing is to be done
	Refused error          // why it cannot be imported; nil if it is signed, or can be

	pubkey string // its text
}

// found is a device item as it is stored, under its id.
type found struct {
	id   string
	item *item
	err  error // of reading it
}

// registryItems is what an import has to know of a registry.
type registryItems struct {
	items  []found
	guards map[board.Fingerprint]board.DeviceID
}

// legacyItems judges each item, in the order of ids.
func (c registryItems) legacyItems() []LegacyItem {
	ids := map[board.Fingerprint][]string{}
	var all []LegacyItem
	for _, f := range c.items {
		l := f.legacyItem()
		if l.Key != (board.Key{}) {
			ids[l.Key.Fingerprint()] = append(ids[l.Key.Fingerprint()], l.ID)
		}
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b LegacyItem) int { return strings.Compare(a.ID, b.ID) })
	for n := range all {
		l := &all[n]
		if l.Signed || l.Refused != nil {
			continue
		}
		key := l.Key.Fingerprint()
		other := slices.IndexFunc(ids[key], func(id string) bool { return id != l.ID })
		if device, ok := c.guards[key]; other >= 0 {
			l.Refused = fmt.Errorf("%w: %.80q", errKeyTwice, ids[key][other])
		} else if ok && device != l.Device {
			l.Refused = fmt.Errorf("%w: %q", errKeyTwice, device)
		}
	}
	return all
}

// legacyItem judges an item by itself.
func (f found) legacyItem() LegacyItem {
	l := LegacyItem{ID: f.id}
	var err error
	if l.Device, err = board.ParseDeviceID(f.id); err != nil {
		l.Device, l.Refused = board.DeviceID{}, errForeignID
	}
	if f.err != nil {
		l.Refused = cmp.Or(l.Refused, f.err)
		return l
	}
	l.pubkey = f.item.pubkey
	if l.Key, err = parsePubkey(l.pubkey); err != nil && l.Refused == nil {
		l.Refused = fmt.Errorf("%w: %w", errNoKey, err)
	}
	switch {
	case l.Refused != nil:
	case f.item.record != "":
		_, l.Refused = f.item.enrolment(l.Device)
		l.Signed = l.Refused == nil
	default:
		l.Refused = f.item.onlyLegacy()
	}
	return l
}

// onlyLegacy refuses an item that has any attribute of ours besides those that
// the reference's loader writes.
func (i *item) onlyLegacy() error {
	for _, a := range i.attributes() {
		if *a.value != "" && !byLoader(a.name) {
			return fmt.Errorf("%w: %s", errMore, a.name)
		}
	}
	return nil
}

func byLoader(attribute string) bool { return attribute == "device-id" || attribute == "pubkey" }

// check refuses a record that is not of this item.
func (l LegacyItem) check(s board.Sealed) error {
	if l.Signed || l.Refused != nil || !l.Device.Valid() || s.Record().Device != l.Device || s.Record().Key != l.Key {
		return fmt.Errorf("importing item %.80q: %w: it is not of an item that can be imported", l.ID, board.ErrRecord)
	}
	return nil
}

// judge compares what was listed with what is there. It returns true if the
// device is enrolled with this key, by whomever, false if nothing stands
// against the import, and otherwise why it cannot be.
func (l LegacyItem) judge(r board.Record, stored *item, key *board.KeyBinding) (enrolled bool, err error) {
	switch {
	case stored != nil && stored.record != "":
		return judge(r, stored, key)
	case stored == nil || stored.pubkey != l.pubkey || stored.onlyLegacy() != nil:
		return false, fmt.Errorf("device %s: %w", l.Device, ErrNotAsListed)
	case key != nil && key.Device != l.Device:
		return false, &board.Conflict{
			Kind: board.ErrKeyConflict, Device: l.Device, Key: r.Fingerprint(), KnownDevice: key.Device, KnownKey: r.Fingerprint(),
		}
	}
	return false, nil
}

// LegacyItems lists every device item, in the order of ids, with what an import
// of each would do. It changes nothing, holds the whole listing in memory, and
// needs dynamodb:Scan.
func (a *AWS) LegacyItems(ctx context.Context) ([]LegacyItem, error) {
	c := registryItems{guards: map[board.Fingerprint]board.DeviceID{}}
	for id, stored := range a.scan(ctx) {
		if stored.err != nil {
			return nil, stored.err
		}
		if key, isGuard := strings.CutPrefix(id, guardPrefix); isGuard {
			f, err := parseGuardID(key)
			if err != nil {
				continue // reconciling names it
			}
			if g, err := guardFromDynamo(f, stored.item); err == nil {
				c.guards[f] = g.Device
			}
			continue
		}
		device, _ := board.ParseDeviceID(id)
		i, err := itemFromDynamo(device, stored.item)
		c.items = append(c.items, found{id, i, err})
	}
	return c.legacyItems(), nil
}

// ImportedFact is the fact of a record that an operator signed for an item that
// no station wrote.
const ImportedFact = "imported"

// Import makes an item that LegacyItems listed, and that can be imported, one
// of a signed record: the public key as an object, then the rest of the item
// and the guard of the key in one transaction, which holds only if the item is
// still exactly the one that was listed. Its pubkey attribute stays as it is,
// for those who read it. On return without an error the device is enrolled with
// this key, by this record or by an earlier one. Errors that can never change
// are a *board.Conflict, ErrNotAsListed, and what wraps board.ErrRecord or
// board.ErrEnvelope; after any other the same Import again brings it to its
// end.
//
// It needs s3:PutObject and s3:GetObject on pubkeys/*, dynamodb:GetItem,
// dynamodb:PutItem and dynamodb:UpdateItem.
func (a *AWS) Import(ctx context.Context, l LegacyItem, s board.Sealed) error {
	if err := l.check(s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	if err := a.putObject(ctx, s.Record()); err != nil {
		return err
	}
	err := a.sign(ctx, l, s)
	if err == nil {
		return nil
	}
	failure := a.fault("importing device "+l.ID+" in table "+a.config.Table, err)
	_, refused := errors.AsType[*types.TransactionCanceledException](err)
	if code := status(err); !refused && code >= http.StatusBadRequest && code < http.StatusInternalServerError {
		return failure
	}
	// Perhaps it was done, and only the answer is lost.
	key, err := a.getGuard(ctx, l.Key.Fingerprint())
	if err != nil {
		return err
	}
	stored, err := a.getItem(ctx, l.Device)
	if err != nil {
		return err
	}
	enrolled, err := l.judge(s.Record(), stored, key)
	if err == nil && !enrolled {
		return failure
	}
	return err
}

func (a *AWS) sign(ctx context.Context, l LegacyItem, s board.Sealed) error {
	key := board.KeyBinding{Device: s.Record().Device, Key: s.Record().Fingerprint()}
	condition, update := "#pubkey = :pubkey", "SET "
	names := map[string]string{"#pubkey": "pubkey"}
	values := map[string]types.AttributeValue{":pubkey": &types.AttributeValueMemberS{Value: l.pubkey}}
	wanted, separator := newItem(s, a.config.PubkeyFormat, a.config.Bucket).dynamo(), ""
	for n, attribute := range (&item{}).attributes() {
		if byLoader(attribute.name) {
			continue
		}
		name := fmt.Sprintf("#a%d", n)
		names[name] = attribute.name
		condition += " AND attribute_not_exists(" + name + ")"
		if value, ok := wanted[attribute.name]; ok {
			values[fmt.Sprintf(":a%d", n)] = value
			update += fmt.Sprintf("%s%s = :a%d", separator, name, n)
			separator = ", "
		}
	}
	_, err := a.dynamo.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{
		{Update: &types.Update{
			TableName: aws.String(a.config.Table), Key: map[string]types.AttributeValue{"device-id": &types.AttributeValueMemberS{Value: l.ID}},
			UpdateExpression: &update, ConditionExpression: &condition, ExpressionAttributeNames: names, ExpressionAttributeValues: values,
		}},
		a.putGuard(key),
	}})
	return err
}

// LegacyItems lists every device item, in the order of ids, with what an import
// of each would do. Nothing is changed. The whole listing is held in memory.
func (d *Dir) LegacyItems(ctx context.Context) ([]LegacyItem, error) {
	c := registryItems{guards: map[board.Fingerprint]board.DeviceID{}}
	var failed error
	d.walk(ctx, "items", "the items", func(err error) bool { failed = err; return false }, func(root *os.Root, name string) (bool, error) {
		id := withoutJSON(name)
		device, _ := board.ParseDeviceID(id)
		i, err := readItem(root, "items/"+name, device)
		if err == nil && i == nil {
			return true, nil // deleted meanwhile
		}
		if err == nil && i.device != id {
			err = damaged(device, "its item says device-id %.80q", i.device)
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			return false, err
		}
		c.items = append(c.items, found{id, i, err})
		return true, nil
	})
	for g, err := range d.Guards(ctx) {
		if err == nil {
			c.guards[g.Key] = g.Device
		} else if !errors.Is(err, ErrDamaged) && failed == nil {
			failed = err
		}
	}
	if failed != nil {
		return nil, failed
	}
	return c.legacyItems(), nil
}

// Import makes an item that LegacyItems listed, and that can be imported, one
// of a signed record: the public key, then the guard of the key, then the item,
// all synced; only if the item is still exactly the one that was listed. Its
// pubkey attribute stays as it is, for those who read it. On return without an
// error the device is enrolled with this key, by this record or by an earlier
// one. Errors that can never change are a *board.Conflict, ErrNotAsListed, and
// what wraps board.ErrRecord or board.ErrEnvelope; after any other the same
// Import again brings it to its end.
func (d *Dir) Import(ctx context.Context, l LegacyItem, s board.Sealed) error {
	if err := l.check(s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	err := d.locked(ctx, func(w *writeTxn) error { return w.sign(l, s, d.config.PubkeyFormat) })
	return d.explain("importing device "+l.ID, err)
}

// sign makes the guard before the item. A crash between them leaves a guard
// that says the truth, and an item that can be imported.
func (w *writeTxn) sign(l LegacyItem, s board.Sealed, format PubkeyFormat) error {
	if err := w.finish(); err != nil {
		return err
	}
	key, err := readGuard(w.root, s.Record().Fingerprint())
	if err != nil {
		return err
	}
	stored, err := readItem(w.root, itemName(l.Device), l.Device)
	if err != nil {
		return err
	}
	enrolled, err := l.judge(s.Record(), stored, key)
	if err != nil {
		return err
	}
	if enrolled { // its maker may have crashed before the sync
		return syncFolder(w.root, "items")
	}
	results := []error{nil}
	if err := errors.Join(w.putObjects([]board.Sealed{s}, []int{0}, results), results[0]); err != nil {
		return err
	}
	guard := board.KeyBinding{Device: s.Record().Device, Key: s.Record().Fingerprint()}
	if err := w.create(guardName(guard.Key), guardToJSON(guard)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	signed := newItem(s, format, "")
	signed.pubkey, signed.rest = stored.pubkey, stored.rest
	return w.replace(itemName(l.Device), signed.json())
}
