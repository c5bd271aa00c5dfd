package cloud

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	minidyn "github.com/truora/minidyn/server"
	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

// registry is what a caller asks of a back end.
type registry interface {
	Put(context.Context, board.Sealed) error
	PutBatch(context.Context, []board.Sealed) []error
	Lookup(context.Context, board.DeviceID) (board.Enrolment, error)

	PutSegment(ctx context.Context, origin string, first, last uint64, segment []byte) error
	PutCheckpoint(ctx context.Context, origin string, size uint64, checkpoint []byte) error
	Segments(ctx context.Context, origin string) iter.Seq2[Segment, error]
	Segment(ctx context.Context, origin string, first uint64) ([]byte, error)
	LatestCheckpoint(ctx context.Context, origin string) ([]byte, error)
	AcceptedCheckpoint(ctx context.Context, origin string) ([]byte, error)
	MoveCheckpoint(ctx context.Context, origin string, from, to []byte) error

	Enrolments(ctx context.Context) iter.Seq2[board.Enrolment, error]
	Guards(ctx context.Context) iter.Seq2[board.KeyBinding, error]
	Objects(ctx context.Context) iter.Seq2[board.KeyBinding, error]

	ProbeConditions(ctx context.Context, origin string) ([]Probe, error)
	PublicKey(context.Context, board.KeyBinding) ([]byte, error)
	KeyOwner(context.Context, board.Fingerprint) (board.DeviceID, error)
	Repair(context.Context, []board.Sealed) []error

	ChangeState(context.Context, board.DeviceID, Change) (board.Enrolment, error)
	History(context.Context, board.DeviceID) ([]Event, error)

	LegacyItems(context.Context) ([]LegacyItem, error)
	Import(context.Context, LegacyItem, board.Sealed) error
}

// backend is one kind of store, new and empty, with a way past the code under
// test.
type backend interface {
	open(t *testing.T, format PubkeyFormat) registry
	bucket() string
	items(t *testing.T) map[string]map[string]string // items and guards, by partition key
	objects(t *testing.T) map[string]string
	set(t *testing.T, attributes map[string]string) // an item or a guard; replaces it
	remove(t *testing.T, id string)
	setObject(t *testing.T, name, content string)
	removeObject(t *testing.T, name string)
}

func onEveryBackend(t *testing.T, test func(t *testing.T, b backend)) {
	t.Run("dir", func(t *testing.T) { test(t, newDirStore(t)) })
	onEveryAWS(t, func(t *testing.T, b *awsStore) { test(t, b) })
}

func onEveryAWS(t *testing.T, test func(t *testing.T, b *awsStore)) {
	t.Run("aws-minidyn-gofakes3", func(t *testing.T) {
		fakeS3 := gofakes3.New(s3mem.New(), gofakes3.WithLogger(gofakes3.DiscardLog())).Server()
		test(t, newAWSStore(t, serve(t, minidyn.NewServer()), serve(t, fakeS3)))
	})
	t.Run("aws-dynamodblocal-versitygw", func(t *testing.T) {
		const dynamoEnv, s3Env = "SECRETFREE_DYNAMODB_ENDPOINT", "SECRETFREE_S3_ENDPOINT"
		if os.Getenv(dynamoEnv) == "" || os.Getenv(s3Env) == "" {
			message := dynamoEnv + " and " + s3Env + " are not set: run this under .ci/peers.sh run"
			if os.Getenv("CI") == "true" {
				t.Fatal(message)
			}
			t.Skip(message)
		}
		test(t, newAWSStore(t, os.Getenv(dynamoEnv), os.Getenv(s3Env)))
	})
}

func serve(t testing.TB, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// Boards and stations.

func deviceN(n int) (id board.DeviceID) {
	id[0] = 0xd0
	binary.BigEndian.PutUint32(id[12:], uint32(n))
	return id
}

func keyN(t testing.TB, n int) board.Key {
	t.Helper()
	scalar := make([]byte, 32)
	binary.BigEndian.PutUint32(scalar[28:], uint32(n)+1)
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	must(t, err)
	key, err := board.NewKey(&private.PublicKey, nil)
	must(t, err)
	return key
}

// seed is an endless reader of one byte.
type seed byte

func (s seed) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s)
	}
	return len(p), nil
}

func seal(t testing.TB, r board.Record) board.Sealed {
	t.Helper()
	private, _, err := note.GenerateKey(seed(len(r.Station)), r.Origin())
	must(t, err)
	signer, err := note.NewSigner(private)
	must(t, err)
	s, err := board.Seal(r, signer)
	must(t, err)
	return s
}

func recordOf(t testing.TB, station string, device, key int) board.Record {
	return board.Record{
		SKU: "widgiot", Station: station, Device: deviceN(device), Key: keyN(t, key), Generation: 1,
		ReadAt: time.Date(2026, 11, 24, 10, 20, 30, 456e6, time.UTC),
		Facts:  map[string]string{"dialect": "ti-at", "version": "3.7.0.1 <&>"},
	}
}

func sealed(t testing.TB, device, key int) board.Sealed {
	t.Helper()
	return seal(t, recordOf(t, "line3-a", device, key))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// whole reads again where an answer was cut off: on a busy machine DynamoDB
// Local now and then does that to a long one.
func whole[T any](read func() (T, error)) (T, error) {
	v, err := read()
	for range 3 {
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		v, err = read()
	}
	return v, err
}

// check holds for every store in which nobody meddled: one device, one key; one
// key, one device; and the key is in its object.
func check(t *testing.T, b backend) {
	t.Helper()
	items, objects := b.items(t), b.objects(t)
	devices := 0
	for id, a := range items {
		if fingerprint, ok := strings.CutPrefix(id, guardPrefix); ok {
			if items[a["device"]]["key-fingerprint"] != fingerprint {
				t.Errorf("the guard of key %s names device %s, which does not have it", fingerprint, a["device"])
			}
			continue
		}
		devices++
		device, err := board.ParseDeviceID(id)
		must(t, err)
		e, err := whole(func() (board.Enrolment, error) { return b.open(t, "").Lookup(t.Context(), device) })
		if err != nil {
			t.Errorf("item %s: %v", id, err)
			continue
		}
		if got := items[guardPrefix+e.Key.Fingerprint().String()]["device"]; got != id {
			t.Errorf("item %s: the guard of its key names %q", id, got)
		}
		if objects[a["pubkey-object"]] != string(e.Key.PEM()) {
			t.Errorf("item %s: its object %s is not its key", id, a["pubkey-object"])
		}
		if inside, err := board.ParseEnvelope(e.Envelope); err != nil || inside.Record().Device != device || inside.Record().Key != e.Key {
			t.Errorf("item %s: its envelope does not fit: %v", id, err)
		}
	}
	if len(items) != 2*devices {
		t.Errorf("%d items and guards for %d devices", len(items), devices)
	}
}

// isText tells the attributes whose value is a text; of the others, what stands
// for it here is JSON.
func isText(name string) bool {
	return name != "generation" && name != "epoch" && name != "state-history"
}

func decodeAny(t *testing.T, data []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	must(t, d.Decode(&v))
	return v
}

// attributesOf an item in JSON.
func attributesOf(t *testing.T, data []byte) map[string]string {
	t.Helper()
	attributes := map[string]string{}
	for name, value := range decodeAny(t, data).(map[string]any) {
		if text, ok := value.(string); ok {
			attributes[name] = text
			continue
		}
		text, err := json.Marshal(value)
		must(t, err)
		attributes[name] = string(text)
	}
	return attributes
}

// plain and wireOf are DynamoDB's encoding and back, without the code under
// test.
func plain(t *testing.T, v types.AttributeValue) any {
	t.Helper()
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return v.Value
	case *types.AttributeValueMemberN:
		return json.Number(v.Value)
	case *types.AttributeValueMemberL:
		list := []any{}
		for _, each := range v.Value {
			list = append(list, plain(t, each))
		}
		return list
	case *types.AttributeValueMemberM:
		object := map[string]any{}
		for name, each := range v.Value {
			object[name] = plain(t, each)
		}
		return object
	}
	t.Fatalf("a %T", v)
	return nil
}

func wireOf(t *testing.T, v any) types.AttributeValue {
	t.Helper()
	switch v := v.(type) {
	case string:
		return &types.AttributeValueMemberS{Value: v}
	case json.Number:
		return &types.AttributeValueMemberN{Value: v.String()}
	case []any:
		list := &types.AttributeValueMemberL{Value: []types.AttributeValue{}}
		for _, each := range v {
			list.Value = append(list.Value, wireOf(t, each))
		}
		return list
	case map[string]any:
		object := &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{}}
		for name, each := range v {
			object.Value[name] = wireOf(t, each)
		}
		return object
	}
	t.Fatalf("a %T", v)
	return nil
}

// A folder.

type dirStore struct{ path string }

func newDirStore(t testing.TB) *dirStore {
	b := &dirStore{filepath.Join(t.TempDir(), "registry")}
	must(t, InitDir(b.path))
	return b
}

func (b *dirStore) openDir(t testing.TB, format PubkeyFormat) *Dir {
	t.Helper()
	d, err := OpenDir(DirConfig{Path: b.path, PubkeyFormat: format})
	must(t, err)
	return d
}

func (b *dirStore) open(t *testing.T, format PubkeyFormat) registry { return b.openDir(t, format) }
func (b *dirStore) bucket() string                                  { return "" }

func (b *dirStore) file(id string) string {
	if fingerprint, ok := strings.CutPrefix(id, guardPrefix); ok {
		return filepath.Join(b.path, "guards", fingerprint+".json")
	}
	return filepath.Join(b.path, "items", id+".json")
}

func (b *dirStore) items(t *testing.T) map[string]map[string]string {
	t.Helper()
	out := map[string]map[string]string{}
	for _, folder := range []string{"items", "guards"} {
		files, err := filepath.Glob(filepath.Join(b.path, folder, "*"))
		must(t, err)
		for _, file := range files {
			data, err := os.ReadFile(file)
			must(t, err)
			attributes := attributesOf(t, data)
			out[attributes["device-id"]] = attributes
		}
	}
	return out
}

func (b *dirStore) objects(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var files []string
	for _, folder := range []string{"pubkeys", "journal"} {
		found, err := filepath.Glob(filepath.Join(b.path, folder, "*", "*"))
		must(t, err)
		files = append(files, found...)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		must(t, err)
		name, err := filepath.Rel(b.path, file)
		must(t, err)
		out[name] = string(data)
	}
	return out
}

func (b *dirStore) set(t *testing.T, attributes map[string]string) {
	t.Helper()
	object := map[string]any{}
	for name, value := range attributes {
		object[name] = value
		if !isText(name) {
			object[name] = json.RawMessage(value)
		}
	}
	data, err := json.Marshal(object)
	must(t, err)
	must(t, os.WriteFile(b.file(attributes["device-id"]), data, 0o644))
}

func (b *dirStore) remove(t *testing.T, id string) {
	t.Helper()
	must(t, os.Remove(b.file(id)))
}

func (b *dirStore) setObject(t *testing.T, name, content string) {
	t.Helper()
	file := filepath.Join(b.path, name)
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte(content), 0o644))
}

func (b *dirStore) removeObject(t *testing.T, name string) {
	t.Helper()
	must(t, os.Remove(filepath.Join(b.path, name)))
}

// A table and a bucket, each behind a proxy that loses answers.

type awsStore struct {
	config AWSConfig
	raw    *AWS // past the proxies
	dynamo *proxy
	s3     *proxy
	client *http.Client // if set, what open calls with
}

func newAWSStore(t testing.TB, dynamoURL, s3URL string) *awsStore {
	t.Helper()
	setAWSEnv(t)
	b := &awsStore{dynamo: newProxy(t, dynamoURL), s3: newProxy(t, s3URL)}
	name := "test-" + strings.ToLower(rand.Text())
	b.config = AWSConfig{Table: Table(name), Bucket: name + "-pubkeys", Region: "us-east-1", DynamoDBEndpoint: dynamoURL, S3Endpoint: s3URL}
	var err error
	b.raw, err = NewAWS(t.Context(), b.config)
	must(t, err)
	_, err = b.raw.dynamo.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: &b.config.Table, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("device-id"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("device-id"), KeyType: types.KeyTypeHash}},
	})
	must(t, err)
	_, err = b.raw.s3.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &b.config.Bucket})
	must(t, err)
	b.config.DynamoDBEndpoint, b.config.S3Endpoint = b.dynamo.url, b.s3.url
	return b
}

// setAWSEnv keeps the SDK from whatever this machine has to say about AWS, bar
// the credentials of the peers.
func setAWSEnv(t testing.TB) {
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CA_BUNDLE", "") // a hundred certificates, read for every client
	if os.Getenv("AWS_ACCESS_KEY_ID") == "" {
		t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	}
}

func (b *awsStore) open(t *testing.T, format PubkeyFormat) registry {
	t.Helper()
	c := b.config
	c.PubkeyFormat = format
	a, err := NewAWS(context.Background(), c)
	must(t, err)
	if b.client != nil {
		callWith(a, b.client)
	}
	return a
}

func callWith(a *AWS, client *http.Client) {
	a.dynamo = dynamodb.New(a.dynamo.Options(), func(o *dynamodb.Options) { o.HTTPClient = client })
	a.s3 = s3.New(a.s3.Options(), func(o *s3.Options) { o.HTTPClient = client })
	a.slow = s3.New(a.slow.Options(), func(o *s3.Options) { o.HTTPClient = client })
}

func (b *awsStore) bucket() string { return b.config.Bucket }

func (b *awsStore) items(t *testing.T) map[string]map[string]string {
	t.Helper()
	out := map[string]map[string]string{}
	pages := dynamodb.NewScanPaginator(b.raw.dynamo, &dynamodb.ScanInput{TableName: &b.config.Table, ConsistentRead: aws.Bool(true)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		must(t, err)
		for _, stored := range page.Items {
			attributes := map[string]string{}
			for name, value := range stored {
				switch value := value.(type) {
				case *types.AttributeValueMemberS:
					attributes[name] = value.Value
				case *types.AttributeValueMemberN, *types.AttributeValueMemberL:
					if isText(name) {
						t.Errorf("the attribute %s is a %T", name, value)
					}
					text, err := json.Marshal(plain(t, value))
					must(t, err)
					attributes[name] = string(text)
				default:
					t.Errorf("the attribute %s is a %T", name, value)
				}
			}
			out[attributes["device-id"]] = attributes
		}
	}
	return out
}

func (b *awsStore) objects(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	pages := s3.NewListObjectsV2Paginator(b.raw.s3, &s3.ListObjectsV2Input{Bucket: &b.config.Bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		must(t, err)
		for _, object := range page.Contents {
			got, err := b.raw.s3.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &b.config.Bucket, Key: object.Key})
			must(t, err)
			data, err := io.ReadAll(got.Body)
			must(t, err)
			must(t, got.Body.Close())
			out[*object.Key] = string(data)
		}
	}
	return out
}

func (b *awsStore) set(t *testing.T, attributes map[string]string) {
	t.Helper()
	stored := map[string]types.AttributeValue{}
	for name, value := range attributes {
		if !isText(name) {
			stored[name] = wireOf(t, decodeAny(t, []byte(value)))
			continue
		}
		stored[name] = &types.AttributeValueMemberS{Value: value}
	}
	_, err := b.raw.dynamo.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &b.config.Table, Item: stored})
	must(t, err)
}

func (b *awsStore) remove(t *testing.T, id string) {
	t.Helper()
	_, err := b.raw.dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{
		TableName: &b.config.Table, Key: map[string]types.AttributeValue{"device-id": &types.AttributeValueMemberS{Value: id}},
	})
	must(t, err)
}

func (b *awsStore) setObject(t *testing.T, name, content string) {
	t.Helper()
	b.removeObject(t, name) // gofakes3 keeps the checksum of what was there
	_, err := b.raw.s3.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &b.config.Bucket, Key: &name, Body: strings.NewReader(content)})
	must(t, err)
}

func (b *awsStore) removeObject(t *testing.T, name string) {
	t.Helper()
	_, err := b.raw.s3.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b.config.Bucket, Key: &name})
	must(t, err)
}
