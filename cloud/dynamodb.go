package cloud

import (
	"context"
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"secretfree/station/board"
)

// putItems writes the two items of a record, or neither. The device item is only ever created. The guard may be there if
// it names this device: somebody has deleted the device item on purpose.
func (a *AWS) putItems(ctx context.Context, s board.Sealed) error {
	r := &s.Record
	key := &guard{r.Fingerprint(), r.Device}
	_, writeErr := a.dynamo.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{
		TransactItems: []types.TransactWriteItem{
			{Put: &types.Put{
				TableName: aws.String(a.config.Table), Item: newItem(s, a.config.PubkeyFormat, a.config.Bucket).dynamo(),
				ConditionExpression:      aws.String("attribute_not_exists(#id)"),
				ExpressionAttributeNames: map[string]string{"#id": "device-id"},
			}},
			{Put: &types.Put{
				TableName: aws.String(a.config.Table), Item: key.dynamo(),
				ConditionExpression:       aws.String("attribute_not_exists(#id) OR #device = :device"),
				ExpressionAttributeNames:  map[string]string{"#id": "device-id", "#device": "device"},
				ExpressionAttributeValues: map[string]types.AttributeValue{":device": &types.AttributeValueMemberS{Value: r.Device.String()}},
			}},
		},
	})
	if writeErr == nil {
		return nil
	}
	if !conditionFailed(writeErr) {
		return a.fault("writing the items of device "+r.Device.String()+" in table "+a.config.Table, writeErr)
	}
	// Perhaps it failed on our own write, whose answer was lost. What is stored tells; the reasons in the
	// error would too, but not from every server.
	known, err := a.getGuard(ctx, key.fingerprint)
	if err != nil {
		return err
	}
	stored, err := a.getItem(ctx, r.Device)
	if err != nil {
		return err
	}
	enrolled, err := judge(r, stored, known)
	if conflict, ok := errors.AsType[*board.Conflict](err); ok && conflict.Kind == board.ErrKeyConflict {
		if other, err := a.getItem(ctx, conflict.KnownDevice); err == nil {
			conflict.KnownBy = other.enrolledBy(conflict.KnownDevice)
		}
	}
	if err == nil && !enrolled { // deleted between the write and the read
		return a.fault("writing the items of device "+r.Device.String()+" in table "+a.config.Table, writeErr)
	}
	return err
}

func conditionFailed(err error) bool {
	canceled, ok := errors.AsType[*types.TransactionCanceledException](err)
	if !ok {
		return false
	}
	for _, reason := range canceled.CancellationReasons {
		if aws.ToString(reason.Code) == "ConditionalCheckFailed" {
			return true
		}
	}
	return false
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
func (a *AWS) getGuard(ctx context.Context, f board.Fingerprint) (*guard, error) {
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
