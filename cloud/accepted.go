package cloud

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// A registry keeps, for each station, the newest checkpoint that it accepted,
// as an item of its own:
//
//	checkpoint:<station>             in DynamoDB, the device-id of an item with the attributes checkpoint (S, the signed note) and size (N)
//	checkpoints/<station>            in a folder, the signed note
//
// The item only moves forward, from the checkpoint that its writer has read to
// a larger one. So two machines that sign as one station cannot both go on: the
// second finds a checkpoint there that its own journal does not hold.

const checkpointPrefix = "checkpoint:"

// ErrMoved says that a station's accepted checkpoint is not the one that its
// caller has read.
var ErrMoved = errors.New("another checkpoint of this station was accepted meanwhile")

// isRegistration tells the items of the table that are about devices and keys.
func isRegistration(id string) bool { return !strings.HasPrefix(id, checkpointPrefix) && !isProbe(id) }

// checkMove checks what a checkpoint says before it takes the place of another.
// It does not check signatures: the station does, which has the journal.
func checkMove(origin string, from, to []byte) (c checkpoint, err error) {
	if c, err = parseCheckpoint(to); err != nil {
		return c, err
	}
	if c.origin != origin {
		return c, fmt.Errorf("it is of %.130q", c.origin)
	}
	if len(from) == 0 {
		return c, nil
	}
	before, err := parseCheckpoint(from)
	if err != nil {
		return c, err
	}
	if before.origin != origin || before.Size >= c.Size {
		return c, fmt.Errorf("a checkpoint of %.130q over %d entries is not followed by one over %d", before.origin, before.Size, c.Size)
	}
	return c, nil
}

func stationOf(origin string) (string, error) {
	if err := checkOrigin(origin); err != nil {
		return "", fmt.Errorf("station %.130q: %w", origin, err)
	}
	_, station, _ := strings.Cut(origin, "/")
	return station, nil
}

// AcceptedCheckpoint reads the newest checkpoint that the registry accepted
// from a station; nil if there is none. Its signature is not checked. It needs
// dynamodb:GetItem.
func (a *AWS) AcceptedCheckpoint(ctx context.Context, origin string) ([]byte, error) {
	station, err := stationOf(origin)
	if err != nil {
		return nil, archiving("reading the accepted checkpoint", origin, err)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	stored, err := a.get(ctx, checkpointPrefix+station)
	if stored == nil || err != nil {
		return nil, archiving("reading the accepted checkpoint", origin, err)
	}
	text, ok := stored["checkpoint"].(*types.AttributeValueMemberS)
	if !ok {
		return nil, archiving("reading the accepted checkpoint", origin, fmt.Errorf("%w: item %s%s has no checkpoint", ErrDamaged, checkpointPrefix, station))
	}
	return []byte(text.Value), nil
}

// MoveCheckpoint accepts a larger checkpoint in place of the one that the
// caller has read; nil if there was none. On return without an error it is
// stored durably. ErrMoved, wrapped, says that another one is there. After any
// other error it may have been stored. It needs dynamodb:PutItem.
func (a *AWS) MoveCheckpoint(ctx context.Context, origin string, from, to []byte) error {
	return archiving("moving the accepted checkpoint", origin, a.moveCheckpoint(ctx, origin, from, to))
}

func (a *AWS) moveCheckpoint(ctx context.Context, origin string, from, to []byte) error {
	station, err := stationOf(origin)
	if err != nil {
		return err
	}
	c, err := checkMove(origin, from, to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	put := &dynamodb.PutItemInput{
		TableName: aws.String(a.config.Table),
		Item: map[string]types.AttributeValue{
			"device-id":  &types.AttributeValueMemberS{Value: checkpointPrefix + station},
			"checkpoint": &types.AttributeValueMemberS{Value: string(to)},
			"size":       &types.AttributeValueMemberN{Value: strconv.FormatUint(c.Size, 10)},
		},
		ConditionExpression:      aws.String("attribute_not_exists(#id)"),
		ExpressionAttributeNames: map[string]string{"#id": "device-id"},
	}
	if len(from) > 0 {
		put.ConditionExpression = aws.String("#checkpoint = :from")
		put.ExpressionAttributeNames = map[string]string{"#checkpoint": "checkpoint"}
		put.ExpressionAttributeValues = map[string]types.AttributeValue{":from": &types.AttributeValueMemberS{Value: string(from)}}
	}
	_, err = a.dynamo.PutItem(ctx, put)
	_, refused := errors.AsType[*types.ConditionalCheckFailedException](err)
	if err != nil && !refused {
		return a.fault("writing item "+checkpointPrefix+station+" of table "+a.config.Table, err)
	}
	// What is there counts: of two attempts the first may have been refused by
	// nobody and its answer lost, and a good answer may come from something
	// between.
	stored, err := a.AcceptedCheckpoint(ctx, origin)
	switch {
	case err != nil:
		return err
	case string(stored) == string(to):
		return nil
	case refused || string(stored) != string(from):
		return ErrMoved
	}
	return fmt.Errorf("table %s has confirmed an item that it does not hold: look for a proxy between this machine and AWS", a.config.Table)
}

func checkpointName(station string) string { return "checkpoints/" + station }

// AcceptedCheckpoint reads the newest checkpoint that the registry accepted
// from a station; nil if there is none. Its signature is not checked.
func (d *Dir) AcceptedCheckpoint(_ context.Context, origin string) (text []byte, err error) {
	station, err := stationOf(origin)
	if err == nil {
		err = d.readArchive(func(a archive) (err error) {
			text, err = a.load(context.Background(), checkpointName(station), maxCheckpoint)
			if errors.Is(err, fs.ErrNotExist) {
				text, err = nil, nil
			}
			return err
		})
	}
	return text, d.explain("reading the accepted checkpoint of station "+origin, err)
}

// MoveCheckpoint accepts a larger checkpoint in place of the one that the
// caller has read; nil if there was none. On return without an error it is
// stored durably. ErrMoved, wrapped, says that another one is there. After any
// other error it may have been stored.
func (d *Dir) MoveCheckpoint(ctx context.Context, origin string, from, to []byte) error {
	station, err := stationOf(origin)
	if err == nil {
		_, err = checkMove(origin, from, to)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, lockTimeout)
		defer cancel()
		err = d.locked(ctx, func(w *writeTxn) error { return w.moveCheckpoint(ctx, checkpointName(station), from, to) })
	}
	return d.explain("moving the accepted checkpoint of station "+origin, err)
}

func (w *writeTxn) moveCheckpoint(ctx context.Context, name string, from, to []byte) error {
	stored, err := w.load(ctx, name, maxCheckpoint)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case string(stored) == string(to):
		return syncFolder(w.root, path.Dir(name)) // its maker may have crashed before the sync
	case string(stored) != string(from):
		return ErrMoved
	}
	if err := w.root.Mkdir(path.Dir(name), 0o755); err != nil && !isExist(err) {
		return err
	}
	if err := syncFolder(w.root, "."); err != nil {
		return err
	}
	return w.replace(name, to)
}
