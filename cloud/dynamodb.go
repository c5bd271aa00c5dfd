package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"

	"secretfree/station/board"
)

// A transaction takes 100 items, two for each device, and 4 MB.
const (
	transactionDevices = 50
	transactionBytes   = 4 << 20

	maxItem = board.MaxEnvelope + maxPubkey + 2<<10 // of a device, with its guard
)

const _ = uint(transactionBytes - transactionDevices*maxItem) // it fits

// itemWrites is the second half of a PutBatch.
type itemWrites struct {
	*AWS
	records []board.Sealed
	results []error // nil where a record still has to be written, or is enrolled
	invalid int     // records in a row that the table calls invalid
	away    error   // why no more is tried
}

// put writes the items of a group of devices in as few transactions as the
// table lets it.
func (w *itemWrites) put(ctx context.Context, group []int) {
	for len(group) > 0 {
		if w.away != nil {
			for _, i := range group {
				w.results[i] = notTried(w.records[i].Record().Device, w.away)
			}
			return
		}
		err := w.write(ctx, group)
		if err == nil {
			w.invalid = 0
			w.readBack(ctx, group)
			return
		}
		canceled, refused := errors.AsType[*types.TransactionCanceledException](err)
		if refused {
			if rest := w.blame(ctx, group, canceled); len(rest) < len(group) {
				group = rest
				continue
			}
		}
		code := ""
		if api, ok := errors.AsType[smithy.APIError](err); ok {
			code = api.ErrorCode()
		}
		failure := w.fault(w.writing(group), err)
		switch {
		case (refused || code == "ValidationException") && len(group) > 1:
			// It does not say which device it is about.
			w.put(ctx, group[:len(group)/2])
			group = group[len(group)/2:]
			continue
		case refused:
			w.settle(ctx, group, failure)
		case code == "ValidationException":
			w.results[group[0]] = failure
			if w.invalid++; w.invalid >= awayAfter {
				w.away = failure // it is about the table
			}
		case status(err) >= http.StatusBadRequest && status(err) < http.StatusInternalServerError:
			w.fail(group, failure)
		default:
			// Perhaps it was done, and only the answer is lost.
			w.settle(ctx, group[:1], failure)
			if w.results[group[0]] != nil {
				w.fail(group, failure)
				return
			}
			w.settle(ctx, group[1:], failure)
			if len(unresolved(w.results, group)) < len(group) {
				w.away = failure
			}
		}
		return
	}
}

// fail ends the PutBatch for a group and for all after it.
func (w *itemWrites) fail(group []int, failure error) {
	w.away = failure
	for _, i := range group {
		w.results[i] = failure
	}
}

func (w *itemWrites) writing(group []int) string {
	what := fmt.Sprintf("%d devices", len(group))
	if len(group) == 1 {
		what = "device " + w.records[group[0]].Record().Device.String()
	}
	return "writing the items of " + what + " in table " + w.config.Table
}

// write writes both items of each device, or nothing. A device item is only
// ever created. A guard may be there if it names this device: somebody has
// deleted the device item on purpose.
func (w *itemWrites) write(ctx context.Context, group []int) error {
	var puts []types.TransactWriteItem
	for _, i := range group {
		s := w.records[i]
		key := board.KeyBinding{Device: s.Record().Device, Key: s.Record().Fingerprint()}
		puts = append(puts, types.TransactWriteItem{Put: &types.Put{
			TableName: aws.String(w.config.Table), Item: newItem(s, w.config.PubkeyFormat, w.config.Bucket).dynamo(),
			ConditionExpression:      aws.String("attribute_not_exists(#id)"),
			ExpressionAttributeNames: map[string]string{"#id": "device-id"},
		}}, w.putGuard(key))
	}
	_, err := w.dynamo.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: puts})
	return err
}

// readBack settles a group whose write was confirmed: a device is enrolled if
// its items are there. One call reads all of them, with the right that reads one.
func (w *itemWrites) readBack(ctx context.Context, group []int) {
	var gets []types.TransactGetItem
	for _, i := range group {
		r := w.records[i].Record()
		for _, id := range []string{r.Device.String(), guardID(r.Fingerprint())} {
			gets = append(gets, types.TransactGetItem{Get: &types.Get{
				TableName: aws.String(w.config.Table), Key: map[string]types.AttributeValue{"device-id": &types.AttributeValueMemberS{Value: id}},
			}})
		}
	}
	doing := "reading back what was written to table " + w.config.Table
	var out *dynamodb.TransactGetItemsOutput
	var err error
	for range busyTries { // while AWS asks to slow down: to write again, only to be refused, would cost it more
		out, err = w.dynamo.TransactGetItems(ctx, &dynamodb.TransactGetItemsInput{TransactItems: gets})
		if err == nil || !isBusy(w.fault(doing, err)) {
			break
		}
	}
	if _, contested := errors.AsType[*types.TransactionCanceledException](err); contested {
		w.settle(ctx, group, w.fault(doing, errNotHeld)) // another writer is at one of them
		return
	}
	if err == nil && len(out.Responses) != len(gets) {
		err = fmt.Errorf("%d answers of %d: %w", len(out.Responses), len(gets), errNotHeld)
	}
	if err != nil {
		w.fail(group, w.fault(doing, err))
		return
	}
	for n, i := range group {
		stored, key := out.Responses[2*n].Item, out.Responses[2*n+1].Item
		if err := w.confirm(w.records[i], stored, key); errors.Is(err, errNotHeld) {
			w.away = w.fault(doing, err)
			w.results[i] = w.away
		} else {
			w.results[i] = err
		}
	}
}

func (w *itemWrites) confirm(s board.Sealed, stored, guard map[string]types.AttributeValue) (err error) {
	var key *board.KeyBinding
	if len(guard) > 0 {
		if key, err = guardFromDynamo(s.Record().Fingerprint(), guard); err != nil {
			return err
		}
	}
	var have *item
	if len(stored) > 0 {
		if have, err = itemFromDynamo(s.Record().Device, stored); err != nil {
			return err
		}
	}
	return confirm(s, newItem(s, w.config.PubkeyFormat, w.config.Bucket), have, key)
}

// putGuard holds if there is none, or it names the same device.
func (a *AWS) putGuard(key board.KeyBinding) types.TransactWriteItem {
	return types.TransactWriteItem{Put: &types.Put{
		TableName: aws.String(a.config.Table), Item: guardToDynamo(key),
		ConditionExpression:       aws.String("attribute_not_exists(#id) OR #device = :device"),
		ExpressionAttributeNames:  map[string]string{"#id": "device-id", "#device": "device"},
		ExpressionAttributeValues: map[string]types.AttributeValue{":device": &types.AttributeValueMemberS{Value: key.Device.String()}},
	}}
}

// blame settles the devices that a transaction was refused for, and returns the
// others. Not every server gives reasons, and some give the first one only.
func (w *itemWrites) blame(ctx context.Context, group []int, canceled *types.TransactionCanceledException) (rest []int) {
	if len(canceled.CancellationReasons) != 2*len(group) {
		return group
	}
	var refused []int
	for n, i := range group {
		reasons := canceled.CancellationReasons[2*n : 2*n+2]
		code, text := "", ""
		for _, reason := range reasons {
			if c := aws.ToString(reason.Code); c != "" && c != "None" && code != "ConditionalCheckFailed" {
				code, text = c, c+": "+aws.ToString(reason.Message)
			}
		}
		switch code {
		case "":
			rest = append(rest, i)
		case "ConditionalCheckFailed":
			refused = append(refused, i)
		default:
			failure := w.fault(w.writing([]int{i}), &types.TransactionCanceledException{Message: &text, CancellationReasons: reasons})
			w.results[i] = failure
			if code == "ThrottlingError" || code == "ProvisionedThroughputExceeded" {
				w.away = failure
			}
		}
	}
	// Perhaps a condition failed on our own write, whose answer was lost.
	text := "ConditionalCheckFailed"
	w.settle(ctx, refused, w.fault(w.writing(refused), &types.TransactionCanceledException{Message: &text}))
	return rest
}

// settle finds out from what is stored what became of devices. Those of which
// it finds nothing get the failure.
func (w *itemWrites) settle(ctx context.Context, group []int, failure error) {
	w.each(group, w.records, w.results, func(i int) error {
		r := w.records[i].Record()
		key, err := whileBusy(func() (*board.KeyBinding, error) { return w.getGuard(ctx, r.Fingerprint()) })
		if err != nil {
			return err
		}
		stored, err := whileBusy(func() (*item, error) { return w.getItem(ctx, r.Device) })
		if err != nil {
			return err
		}
		enrolled, err := judge(r, stored, key)
		if conflict, ok := errors.AsType[*board.Conflict](err); ok && conflict.Kind == board.ErrKeyConflict {
			if other, err := w.getItem(ctx, conflict.KnownDevice); err == nil {
				conflict.KnownBy = other.enrolledBy(conflict.KnownDevice)
			}
		}
		if err == nil && !enrolled {
			return failure
		}
		return err
	})
}

// whileBusy reads again while AWS asks to slow down; the SDK waits in between.
func whileBusy[T any](read func() (T, error)) (v T, err error) {
	for range busyTries {
		if v, err = read(); !isBusy(err) {
			break
		}
	}
	return v, err
}

// getItem returns nil if there is none.
func (a *AWS) getItem(ctx context.Context, device board.DeviceID) (*item, error) {
	out, err := a.get(ctx, device.String())
	if out == nil || err != nil {
		return nil, err
	}
	return itemFromDynamo(device, out)
}

// getGuard returns nil if there is none.
func (a *AWS) getGuard(ctx context.Context, f board.Fingerprint) (*board.KeyBinding, error) {
	out, err := a.get(ctx, guardID(f))
	if out == nil || err != nil {
		return nil, err
	}
	return guardFromDynamo(f, out)
}

func (a *AWS) get(ctx context.Context, id string) (map[string]types.AttributeValue, error) {
	out, err := a.dynamo.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: aws.String(a.config.Table), ConsistentRead: aws.Bool(true),
		Key: map[string]types.AttributeValue{"device-id": &types.AttributeValueMemberS{Value: id}},
	})
	if err != nil {
		return nil, a.fault("reading item "+id+" of table "+a.config.Table, err)
	}
	if len(out.Item) == 0 {
		return nil, nil
	}
	return out.Item, nil
}
