package cloud

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// ErrOverwrites says that a store has taken a second write where it was told to
// keep the first. One device, one key does not hold there.
var ErrOverwrites = errors.New("the store has taken a write whose condition does not hold: two stations could both enrol one board")

// probePrefix is that of what is written to find out whether a store keeps its
// conditions: "probe:<station>" in a table, "probe/<station>/…" in a bucket.
const probePrefix = "probe"

// Probe says whether a store keeps its conditions.
type Probe struct {
	Store string
	Err   error // nil if it does; wraps ErrOverwrites if not; otherwise it is not known
}

// ProbeConditions writes a pair of items and a pair of objects, under names that
// are nobody else's, and looks whether the second of each is refused and the
// first one stays; then it deletes them. It needs dynamodb:PutItem, GetItem and
// DeleteItem on the item probe:<station>, and s3:PutObject, GetObject and
// DeleteObject on probe/<station>/*. An error that wraps ErrNotPermitted says
// that nothing was written. It is for one caller of a station at a time.
func (a *AWS) ProbeConditions(ctx context.Context, origin string) ([]Probe, error) {
	station, err := stationOf(origin)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	return []Probe{
		{"table " + a.config.Table, a.probeTable(ctx, probePrefix+":"+station)},
		{"bucket " + a.config.Bucket, a.probeBucket(ctx, probePrefix+"/"+station+"/"+strings.ToLower(rand.Text()))},
	}, nil
}

func (a *AWS) probeTable(ctx context.Context, id string) (err error) {
	table := aws.String(a.config.Table)
	remove := func(ctx context.Context) error {
		_, err := a.dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: table, Key: map[string]types.AttributeValue{"device-id": &types.AttributeValueMemberS{Value: id}}})
		if err != nil {
			return a.seen("deleting item "+id+" of table "+a.config.Table, err)
		}
		return nil
	}
	// Nothing is written that may not be deleted. It may be left from a probe
	// that broke off, too.
	if err := remove(ctx); err != nil {
		return err
	}
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		err = errors.Join(err, remove(bounded))
	}()
	write := func(value string) error {
		// As a device is enrolled: in a transaction.
		_, err := a.dynamo.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{{Put: &types.Put{
			TableName: table, Item: map[string]types.AttributeValue{
				"device-id": &types.AttributeValueMemberS{Value: id}, "device": &types.AttributeValueMemberS{Value: value},
			},
			ConditionExpression:      aws.String("attribute_not_exists(#id)"),
			ExpressionAttributeNames: map[string]string{"#id": "device-id"},
		}}}})
		return err
	}
	if err := write("first"); err != nil {
		return a.seen("writing item "+id+" to table "+a.config.Table, err)
	}
	err = write("second")
	if _, refused := errors.AsType[*types.TransactionCanceledException](err); err != nil && !refused {
		return a.seen("writing item "+id+" to table "+a.config.Table+" again", err)
	}
	taken := err == nil
	stored, err := a.get(ctx, id)
	if err != nil {
		return markNotPermitted(err)
	}
	value, _ := stored["device"].(*types.AttributeValueMemberS)
	switch {
	case value == nil:
		return a.fault("reading item "+id+" of table "+a.config.Table+" back", errNotHeld)
	case taken || value.Value != "first":
		return fmt.Errorf("table %s: %w", a.config.Table, ErrOverwrites)
	}
	return nil
}

func (a *AWS) probeBucket(ctx context.Context, name string) (err error) {
	bucket, where := aws.String(a.config.Bucket), "s3://"+a.config.Bucket+"/"+name
	remove := func(ctx context.Context) error {
		if _, err := a.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: aws.String(name)}); err != nil {
			return a.seen("deleting "+where, err)
		}
		return nil
	}
	if err := remove(ctx); err != nil {
		return err
	}
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		err = errors.Join(err, remove(bounded))
	}()
	write := func(content string) error {
		_, err := a.s3.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: aws.String(name), Body: strings.NewReader(content), IfNoneMatch: aws.String("*")})
		return err
	}
	if err := write("first"); err != nil {
		return a.seen("writing "+where, err)
	}
	err = write("second")
	if err != nil && status(err) != http.StatusPreconditionFailed && status(err) != http.StatusConflict {
		return a.seen("writing "+where+" again", err)
	}
	taken := err == nil
	stored, err := a.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: aws.String(name)})
	if err != nil {
		return a.seen("reading "+where+" back", err)
	}
	defer stored.Body.Close()
	content, err := io.ReadAll(io.LimitReader(stored.Body, 16))
	switch {
	case err != nil:
		return a.fault("reading "+where+" back", err)
	case taken || string(content) != "first":
		return fmt.Errorf("bucket %s: %w", a.config.Bucket, ErrOverwrites)
	}
	return nil
}

// ProbeConditions makes a file twice under one name, and takes the lock of the
// writers twice, and looks whether the second is refused; then it removes the
// file. The result is of the one store that a folder is.
func (d *Dir) ProbeConditions(ctx context.Context, origin string) ([]Probe, error) {
	if _, err := stationOf(origin); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	err := d.locked(ctx, func(w *writeTxn) error { return w.probe() })
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return []Probe{{"folder " + d.config.Path, d.explain("probing whether the folder keeps its rules", err)}}, nil
}

func (w *writeTxn) probe() (err error) {
	const name = newName + "-" + probePrefix // nobody reads it
	if err := w.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		if gone := w.root.Remove(name); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}()
	if err := w.create(name, []byte("first")); err != nil {
		return err
	}
	err = w.create(name, []byte("second"))
	if err != nil && !isExist(err) {
		return err
	}
	taken := err == nil
	content, err := readFile(w.root, name, maxFile)
	if err != nil {
		return err
	}
	if taken || !bytes.Equal(content, []byte("first")) {
		return fmt.Errorf("a file was made twice: %w", ErrOverwrites)
	}
	again, err := w.root.OpenFile(marker, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer again.Close()
	if err := syscall.Flock(int(again.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.Join(fmt.Errorf("the lock was given twice: %w", ErrOverwrites), err)
	}
	return nil
}

// isProbe tells what a probe writes from the items of devices and keys.
func isProbe(id string) bool { return strings.HasPrefix(id, probePrefix+":") }
