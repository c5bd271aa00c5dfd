package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"secretfree/station/board"
)

// What is here looks at a registry and changes nothing in it: for whoever finds
// out why a station does not deliver. Any number of callers may use it at once.

// ErrNotPermitted says that AWS knows the credentials and does not permit a
// call. A station is permitted little, so that by itself it is no fault.
var ErrNotPermitted = errors.New("not permitted")

// ErrNoConditions says that a table takes an item under a condition that cannot
// hold.
var ErrNoConditions = errors.New("the table took an item under a condition that cannot hold: it is none of DynamoDB, and cannot keep two stations from enrolling one board")

// probeID is no device's, and of nothing that is ever written.
const probeID = "doctor"

// Location says where a registry is.
type Location struct{ Table, Bucket, Region, DynamoDBEndpoint, S3Endpoint string }

// Location returns what the configuration and the SDK made of it.
func (a *AWS) Location() Location {
	c := a.config
	return Location{c.Table, c.Bucket, c.Region, c.DynamoDBEndpoint, c.S3Endpoint}
}

// CredentialsInfo says of credentials where they come from; never what they
// are.
type CredentialsInfo struct {
	Source  string    // the SDK's name of the provider
	Session bool      // they are of a role or a session, not of a user
	Expires time.Time // zero if they do not
}

// DescribeCredentials finds the credentials anew.
func (a *AWS) DescribeCredentials(ctx context.Context) (CredentialsInfo, error) {
	c, err := a.credentials.Retrieve(ctx)
	if err != nil {
		return CredentialsInfo{}, a.fault("looking for credentials", fmt.Errorf("get identity: %w", err))
	}
	seen := CredentialsInfo{Source: c.Source, Session: c.SessionToken != ""}
	if c.CanExpire {
		seen.Expires = c.Expires
	}
	return seen, nil
}

// Ping reads an item that is not there, as a station reads those that are:
// it needs dynamodb:GetItem. That it succeeds also proves that the partition
// key is device-id (S) and that there is no sort key. clock is what AWS says
// the time is, zero if the answer had none: to the second, and also with an
// error, if there was an answer. Its distance from the local time is at most
// took more than shown.
func (a *AWS) Ping(ctx context.Context) (took time.Duration, clock time.Time, err error) {
	began := time.Now()
	out, err := a.dynamo.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: aws.String(a.config.Table), ConsistentRead: aws.Bool(true),
		Key: map[string]types.AttributeValue{"device-id": &types.AttributeValueMemberS{Value: probeID}},
	}, func(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} })
	took = time.Since(began)
	if err != nil {
		if answered, ok := errors.AsType[*awshttp.ResponseError](err); ok && answered.Response != nil {
			clock, _ = http.ParseTime(answered.Response.Header.Get("Date"))
		}
		return took, clock, a.seen("reading from table "+a.config.Table, err)
	}
	clock, _ = awsmiddleware.GetServerTime(out.ResultMetadata)
	return took, clock, nil
}

// TableInfo is what a table says of itself.
type TableInfo struct {
	Active    bool
	Key       string // as "device-id (S)"
	OnDemand  bool
	Protected bool  // from being deleted
	Recovery  *bool // to a point in time; nil if that is not to be seen
}

// WantedKey is the key of a registry's table.
const WantedKey = "device-id (S)"

// DescribeTable needs dynamodb:DescribeTable and
// dynamodb:DescribeContinuousBackups, which a station does not have:
// ErrNotPermitted then.
func (a *AWS) DescribeTable(ctx context.Context) (seen TableInfo, err error) {
	out, err := a.dynamo.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: aws.String(a.config.Table)})
	if err != nil {
		return seen, a.seen("looking at table "+a.config.Table, err)
	}
	t := out.Table
	var key []string
	for _, k := range t.KeySchema {
		kind := ""
		for _, d := range t.AttributeDefinitions {
			if aws.ToString(d.AttributeName) == aws.ToString(k.AttributeName) {
				kind = string(d.AttributeType)
			}
		}
		key = append(key, fmt.Sprintf("%s (%s)", aws.ToString(k.AttributeName), kind))
	}
	seen = TableInfo{
		Active: t.TableStatus == types.TableStatusActive || t.TableStatus == types.TableStatusUpdating, Key: strings.Join(key, ", "),
		OnDemand:  t.BillingModeSummary != nil && t.BillingModeSummary.BillingMode == types.BillingModePayPerRequest,
		Protected: aws.ToBool(t.DeletionProtectionEnabled),
	}
	backups, err := a.dynamo.DescribeContinuousBackups(ctx, &dynamodb.DescribeContinuousBackupsInput{TableName: aws.String(a.config.Table)})
	if err == nil && backups.ContinuousBackupsDescription != nil && backups.ContinuousBackupsDescription.PointInTimeRecoveryDescription != nil {
		on := backups.ContinuousBackupsDescription.PointInTimeRecoveryDescription.PointInTimeRecoveryStatus == types.PointInTimeRecoveryStatusEnabled
		seen.Recovery = &on
	}
	return seen, nil
}

// BucketInfo is what a bucket says of itself. What is nil is not to be seen.
type BucketInfo struct {
	Versioned *bool
	Locked    *bool // objects cannot be deleted for a time
}

// DescribeBucket needs s3:GetBucketVersioning and
// s3:GetBucketObjectLockConfiguration, which a station does not have: what is
// not permitted is left nil. An error says that the bucket is not there, is
// elsewhere, or does not answer.
func (a *AWS) DescribeBucket(ctx context.Context) (seen BucketInfo, err error) {
	bucket := aws.String(a.config.Bucket)
	versions, err := a.s3.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: bucket})
	if err == nil {
		on := versions.Status == s3types.BucketVersioningStatusEnabled
		seen.Versioned = &on
	} else if err = a.seen("looking at bucket "+a.config.Bucket, err); !errors.Is(err, ErrNotPermitted) && !unknownCall(err) {
		return seen, err
	}
	lock, err := a.s3.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: bucket})
	api, _ := errors.AsType[smithy.APIError](err)
	switch {
	case err == nil:
		on := lock.ObjectLockConfiguration != nil && lock.ObjectLockConfiguration.ObjectLockEnabled == s3types.ObjectLockEnabledEnabled
		seen.Locked = &on
	case api != nil && api.ErrorCode() == "ObjectLockConfigurationNotFoundError":
		seen.Locked = new(bool)
	}
	return seen, nil
}

// unknownCall tells a store that does not know a call from one that refuses it.
func unknownCall(err error) bool {
	api, ok := errors.AsType[smithy.APIError](err)
	return ok && (api.ErrorCode() == "NotImplemented" || api.ErrorCode() == "MethodNotAllowed")
}

// Right is something that a station does with its registry, and whether it may.
type Right struct {
	Action  string // as IAM has it: "dynamodb:PutItem"
	On      string // what it was asked for
	Why     string // what a station needs it for
	Known   bool   // whether it could be found out
	Allowed bool
	Err     error // why not allowed, or not known; nil if neither
}

// TryRights finds out whether these credentials may do what a station of this
// origin does, and no more than that. Nothing is written: the write to the
// table has a condition that cannot hold, those to the bucket a checksum that
// is not theirs, which both are looked at after the permission. known is a
// device that may be enrolled, whose key is tried to be read; nil if none is
// known. An error says that nothing could be found out.
func (a *AWS) TryRights(ctx context.Context, origin string, known *board.Record) ([]Right, error) {
	folder, err := archiveFolder(origin)
	if err != nil {
		return nil, err
	}
	rights := []Right{a.tryPutItem(ctx)}
	for _, each := range []struct{ prefix, why string }{{"pubkeys/", "storing public keys"}, {folder, "copies of the journal"}} {
		rights = append(rights, a.tryPut(ctx, each.prefix, each.why))
	}
	list, newest := a.tryList(ctx, folder)
	rights = append(rights, list)
	rights = append(rights, a.tryGet(ctx, newest, folder, "comparing copies of the journal"))
	object := ""
	if known != nil {
		if stored, err := a.getItem(ctx, known.Device); err == nil && stored != nil {
			object = objectName(known.Device, known.Fingerprint())
		}
	}
	return append(rights, a.tryGet(ctx, object, "pubkeys/", "comparing public keys")), nil
}

// settle sets what an error says of a right: nil, or an error with a code that
// only those get who may.
func (a *AWS) settle(r *Right, doing string, err error, codes ...string) {
	api, answered := errors.AsType[smithy.APIError](err)
	switch {
	case err == nil, answered && slices.Contains(codes, api.ErrorCode()):
		r.Known, r.Allowed = true, true
	default:
		r.Err = a.seen(doing, err)
		r.Known = errors.Is(r.Err, ErrNotPermitted)
	}
}

func (a *AWS) tryPutItem(ctx context.Context) Right {
	r := Right{Action: "dynamodb:PutItem", On: a.config.Table, Why: "enrolling boards"}
	_, err := a.dynamo.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: aws.String(a.config.Table), Item: map[string]types.AttributeValue{"device-id": &types.AttributeValueMemberS{Value: probeID}},
		ConditionExpression:      aws.String("attribute_exists(#id) AND attribute_not_exists(#id)"),
		ExpressionAttributeNames: map[string]string{"#id": "device-id"},
	})
	if err == nil {
		r.Known, r.Allowed = true, true
		r.Err = fmt.Errorf("%w; remove the item %s", ErrNoConditions, probeID)
		return r
	}
	a.settle(&r, "writing to table "+a.config.Table, err, "ConditionalCheckFailedException")
	return r
}

func (a *AWS) tryPut(ctx context.Context, prefix, why string) Right {
	r := Right{Action: "s3:PutObject", On: a.config.Bucket + "/" + prefix + "*", Why: why}
	_, err := a.s3.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String(a.config.Bucket), Key: aws.String(prefix + probeID), Body: strings.NewReader("x"),
		ContentMD5: aws.String("AAAAAAAAAAAAAAAAAAAAAA=="), IfNoneMatch: aws.String("*"),
	})
	if err == nil {
		r.Known, r.Allowed = true, true
		r.Err = fmt.Errorf("the store took an object whose checksum is wrong: it would not notice an upload that was spoiled on the way; remove %s%s", prefix, probeID)
		return r
	}
	a.settle(&r, "writing to s3://"+a.config.Bucket+"/"+prefix, err, "BadDigest", "InvalidDigest", "PreconditionFailed")
	return r
}

func (a *AWS) tryList(ctx context.Context, folder string) (r Right, newest string) {
	r = Right{Action: "s3:ListBucket", On: a.config.Bucket + "/" + folder + "*", Why: "copies of the journal"}
	page, err := a.s3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(a.config.Bucket), Prefix: aws.String(folder), MaxKeys: aws.Int32(1)})
	a.settle(&r, "listing s3://"+a.config.Bucket+"/"+folder, err)
	if err == nil && len(page.Contents) > 0 {
		newest = aws.ToString(page.Contents[0].Key)
	}
	return r, newest
}

// tryGet reads one byte of an object. One that may not be there tells nothing:
// who may not list gets the same answer for it as who may not read.
func (a *AWS) tryGet(ctx context.Context, name, prefix, why string) Right {
	r := Right{Action: "s3:GetObject", On: a.config.Bucket + "/" + prefix + "*", Why: why}
	if name == "" {
		r.Err = errors.New("there is nothing yet to try it on")
		return r
	}
	out, err := a.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(a.config.Bucket), Key: aws.String(name), Range: aws.String("bytes=0-0")})
	if err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(out.Body, 16))
		out.Body.Close()
	}
	a.settle(&r, "reading s3://"+a.config.Bucket+"/"+name, err)
	return r
}

// seen is fault with ErrNotPermitted.
func (a *AWS) seen(doing string, err error) error { return markNotPermitted(a.fault(doing, err)) }

// markNotPermitted adds ErrNotPermitted to a fault that says so.
func markNotPermitted(err error) error {
	if api, ok := errors.AsType[smithy.APIError](err); ok && slices.Contains([]string{"AccessDenied", "AccessDeniedException", "Forbidden", "AllAccessDisabled"}, api.ErrorCode()) {
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return err
}

// Look reports whether the folder is a registry, and changes nothing. The
// errors are those of Lookup.
func (d *Dir) Look() error {
	root, err := d.open()
	if err != nil {
		return d.explain("looking at the registry", err)
	}
	return root.Close()
}
