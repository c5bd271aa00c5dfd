package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"secretfree/station/board"
)

// The SDK's own retries are few: long outages belong to the caller.
const (
	callAttempts  = 3
	callTimeout   = 10 * time.Second // of one attempt
	putTimeout    = 60 * time.Second // of a whole Put or PutBatch
	lookupTimeout = 25 * time.Second
	slowTimeout   = 4 * time.Minute // of one attempt to send or read a segment of a journal

	atOnce    = 8 // calls of one PutBatch
	awayAfter = 3 // faults in one PutBatch
)

// AWSConfig says where the registry is. Credentials come from the SDK's usual
// places, and are looked for again when they are missing, have expired, or are
// not those that AWS knows.
type AWSConfig struct {
	Table  string // see Table
	Bucket string
	Region string // empty: the SDK's usual places
	// DynamoDBEndpoint and S3Endpoint are URLs of private endpoints or test
	// servers; empty for AWS's own.
	DynamoDBEndpoint string
	S3Endpoint       string
	PubkeyFormat     PubkeyFormat
}

// AWS is a registry in an S3 bucket and a DynamoDB table with the partition key
// device-id (S). Put needs s3:PutObject and s3:GetObject on pubkeys/*,
// dynamodb:PutItem and dynamodb:GetItem; Lookup needs dynamodb:GetItem; the
// archive, the listings and what operators do say what they need. Any number of
// callers may use it at once. It is made by NewAWS.
type AWS struct {
	s3     *s3.Client
	slow   *s3.Client // for what is large
	dynamo *dynamodb.Client
	config AWSConfig // with the region that is used
	group  int       // devices of a transaction

	credentials *aws.CredentialsCache // emptied when AWS refuses what is in it
	clock       serverClock
}

// NewAWS makes the clients. It makes no call to S3 or DynamoDB, so that an
// outage does not keep a station from starting.
func NewAWS(ctx context.Context, c AWSConfig) (*AWS, error) {
	if c.Table == "" || c.Bucket == "" {
		return nil, errors.New("registry in AWS: it needs a table and a bucket")
	}
	if err := c.PubkeyFormat.check(); err != nil {
		return nil, fmt.Errorf("registry in AWS: %w", err)
	}
	load := func(ctx context.Context) (aws.Config, error) {
		loaded, err := config.LoadDefaultConfig(ctx,
			config.WithRegion(c.Region),
			config.WithRetryMode(aws.RetryModeStandard),
			config.WithRetryMaxAttempts(callAttempts),
			config.WithLogger(logging.Nop{}), // what matters comes back as an error
			// Of the SDK's own kind: AWS_CA_BUNDLE works with no other.
			config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(callTimeout)))
		if err != nil {
			return loaded, fmt.Errorf("loading the AWS configuration: %w", err)
		}
		return loaded, nil
	}
	loaded, err := load(ctx)
	if err != nil {
		return nil, fmt.Errorf("registry in AWS: %w", err)
	}
	if loaded.Region == "" {
		return nil, errors.New("registry in AWS: no region: set it in the configuration, or in AWS_REGION")
	}
	c.Region = loaded.Region
	// The SDK by itself reads a credentials file once, and settles at the start
	// where credentials come from.
	credentials := aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		loaded, err := load(ctx)
		if err != nil {
			return aws.Credentials{}, err
		}
		return loaded.Credentials.Retrieve(ctx)
	}))
	loaded.Credentials = credentials
	registry := &AWS{config: c, group: transactionDevices, credentials: credentials}
	loaded.APIOptions = append(loaded.APIOptions, registry.clock.watch, refuseForeignAnswers)
	slow := loaded.Copy()
	if client, ok := loaded.HTTPClient.(*awshttp.BuildableClient); ok {
		slow.HTTPClient = client.WithTimeout(slowTimeout)
	}
	s3Options := func(o *s3.Options) {
		o.HTTPSignerV4 = signer(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
		if c.S3Endpoint != "" {
			o.BaseEndpoint = aws.String(c.S3Endpoint)
			o.UsePathStyle = true
		}
	}
	registry.s3 = s3.NewFromConfig(loaded, s3Options)
	registry.slow = s3.NewFromConfig(slow, s3Options)
	registry.dynamo = dynamodb.NewFromConfig(loaded, func(o *dynamodb.Options) {
		o.HTTPSignerV4 = signer(func(*v4.SignerOptions) {})
		if c.DynamoDBEndpoint != "" {
			o.BaseEndpoint = aws.String(c.DynamoDBEndpoint)
		}
	})
	return registry, nil
}

// signer signs requests. The SDK's own keeps what it derives from a secret
// under the name of the access key, and would go on with a secret that was
// wrong.
type signer func(*v4.SignerOptions)

func (s signer) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	return v4.NewSigner(s).SignHTTP(ctx, c, r, hash, service, region, at, options...)
}

// Put enrols a device: the public key as an object, then the device item and
// the guard item of the key in one transaction. On return without an error,
// this device is enrolled with this key, by this record or by an earlier one,
// which then stays as it is. The errors are those of the package comment.
//
// A refused Put may leave its public key in the bucket; only the items count.
func (a *AWS) Put(ctx context.Context, s board.Sealed) error {
	return a.PutBatch(ctx, []board.Sealed{s})[0]
}

// PutBatch is Put of any number of records, with a result for each: objects are
// written side by side, and a transaction holds the items of many devices. The
// word of a server is not believed: an object counts as stored once its checksum
// comes back, or the object itself, and items once they are read back. One
// that is refused, or fails, does not keep the others from being enrolled. When
// AWS itself seems to be away, the rest is not tried.
func (a *AWS) PutBatch(ctx context.Context, records []board.Sealed) []error {
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	results := make([]error, len(records))
	conflictFreeBatches(records, nonZero(records, results), results, func(wave []int) {
		a.each(wave, records, results, func(i int) error { return a.putObject(ctx, records[i].Record()) })
		w := itemWrites{AWS: a, records: records, results: results}
		for group := range slices.Chunk(unresolved(results, wave), a.group) {
			w.put(ctx, group)
		}
	})
	return results
}

// each calls do for some records at once and notes the results. After a few
// faults that are not of one record alone, the rest is not tried.
func (a *AWS) each(todo []int, records []board.Sealed, results []error, do func(i int) error) {
	var (
		group sync.WaitGroup

		mu     sync.Mutex // covers all below
		next   int        // in todo
		faults int
		away   error // the last of them
	)
	take := func() (i int, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if next == len(todo) || faults >= awayAfter {
			return 0, false
		}
		next++
		return todo[next-1], true
	}
	for range min(atOnce, len(todo)) {
		group.Go(func() {
			for i, ok := take(); ok; i, ok = take() {
				results[i] = do(i)
				if f, ok := errors.AsType[*fault](results[i]); ok && status(f.err) != http.StatusConflict {
					mu.Lock()
					faults, away = faults+1, f
					mu.Unlock()
				}
			}
		})
	}
	group.Wait()
	for _, i := range todo[next:] {
		results[i] = notTried(records[i].Record().Device, away)
	}
}

func notTried(device board.DeviceID, why error) error {
	return fmt.Errorf("device %s was not tried, because it failed for others: %w", device, why)
}

// Lookup returns what is held under a device id, read consistently. The
// envelope is not verified. An error that wraps board.ErrNotEnrolled says for
// sure that there is nothing; one that wraps ErrDamaged, that it makes no
// sense. An item that no station wrote has no envelope, and may have no state.
func (a *AWS) Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	stored, err := a.getItem(ctx, device)
	if err != nil {
		return board.Enrolment{}, err
	}
	if stored == nil {
		return board.Enrolment{}, fmt.Errorf("device %s: %w", device, board.ErrNotEnrolled)
	}
	return stored.enrolment(device)
}
