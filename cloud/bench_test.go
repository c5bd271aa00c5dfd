package cloud

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	minidyn "github.com/truora/minidyn/server"

	"secretfree/station/board"
)

// fresh seals so many records that no registry has seen.
func fresh(b testing.TB, next *int, n int) (records []board.Sealed) {
	for range n {
		*next++
		records = append(records, sealed(b, *next, *next))
	}
	return records
}

// BenchmarkPutBatch sets a full batch against the same calls made with the SDK
// alone, as many at once and read back too, against those without reading back,
// and against Put of each record. All run in turn on the same servers. of-bare is
// how long a batch takes where the bare calls take 1, of-unread where those take
// 1 that believe every answer, of-puts where Puts take 1; of each the median
// counts.
func BenchmarkPutBatch(b *testing.B) {
	b.Run("minidyn-gofakes3", func(b *testing.B) {
		// minidyn copies its tables for each transaction: new ones, so that it
		// does not get slower all the time.
		benchmarkPutBatch(b, func() *AWS {
			dynamo := httptest.NewServer(minidyn.NewServer())
			b.Cleanup(dynamo.Close)
			s3 := httptest.NewServer(gofakes3.New(s3mem.New(), gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
			b.Cleanup(s3.Close)
			return newAWSStore(b, dynamo.URL, s3.URL).raw
		})
	})
	b.Run("dynamodblocal-versitygw", func(b *testing.B) {
		dynamo, s3 := os.Getenv("SECRETFREE_DYNAMODB_ENDPOINT"), os.Getenv("SECRETFREE_S3_ENDPOINT")
		if dynamo == "" || s3 == "" {
			b.Skip("run this under .ci/peers.sh run")
		}
		a := newAWSStore(b, dynamo, s3).raw
		benchmarkPutBatch(b, func() *AWS { return a })
	})
}

func benchmarkPutBatch(b *testing.B, open func() *AWS) {
	next := 0
	var batch, bare, unread, puts []time.Duration
	turn := func(a *AWS) {
		records := fresh(b, &next, 4*transactionDevices)
		ways := []func(){
			func() {
				batch = append(batch, took(func() { must(b, errors.Join(a.PutBatch(b.Context(), records[:transactionDevices])...)) }))
			},
			func() {
				bare = append(bare, took(func() { bareBatch(b, a, records[transactionDevices:2*transactionDevices], true) }))
			},
			func() {
				unread = append(unread, took(func() { bareBatch(b, a, records[2*transactionDevices:3*transactionDevices], false) }))
			},
		}
		if next/len(records)%2 == 0 { // nobody is always the first
			slices.Reverse(ways)
		}
		for _, way := range ways {
			way()
		}
		puts = append(puts, took(func() {
			for _, s := range records[3*transactionDevices:] {
				must(b, a.Put(b.Context(), s))
			}
		}))
	}
	turn(open()) // so that servers have warmed up
	batch, bare, unread, puts = nil, nil, nil, nil
	for b.Loop() {
		turn(open())
	}
	reportBatch(b, batch, puts)
	b.ReportMetric(float64(median(batch))/float64(median(bare)), "of-bare")
	b.ReportMetric(float64(median(batch))/float64(median(unread)), "of-unread")
}

func took(do func()) time.Duration {
	start := time.Now()
	do()
	return time.Since(start)
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func reportBatch(b *testing.B, batch, puts []time.Duration) {
	b.ReportMetric(0, "ns/op") // of all together: says nothing
	b.ReportMetric(float64(median(batch))/float64(median(puts)), "of-puts")
	b.ReportMetric(transactionDevices/median(batch).Seconds(), "records/s")
}

// BenchmarkProcessPerDevice sets a full batch against a loader that starts the
// aws command once for each device, to write the item alone, on the same
// server: times-process is how many times as long such a loader takes for a
// record.
func BenchmarkProcessPerDevice(b *testing.B) {
	command, err := exec.LookPath("aws")
	dynamo, s3 := os.Getenv("SECRETFREE_DYNAMODB_ENDPOINT"), os.Getenv("SECRETFREE_S3_ENDPOINT")
	if err != nil || dynamo == "" || s3 == "" {
		b.Skip("run this under .ci/peers.sh run, with the aws command installed")
	}
	a := newAWSStore(b, dynamo, s3).raw
	next := 0
	must(b, errors.Join(a.PutBatch(b.Context(), fresh(b, &next, transactionDevices))...))
	var batch, process []time.Duration
	for b.Loop() {
		records := fresh(b, &next, transactionDevices+1)
		batch = append(batch, took(func() { must(b, errors.Join(a.PutBatch(b.Context(), records[1:])...)) }))
		item := filepath.Join(b.TempDir(), "item.json")
		must(b, os.WriteFile(item, fmt.Appendf(nil, `{"device-id":{"S":%q},"pubkey":{"S":%q}}`,
			records[0].Record().Device, base64.StdEncoding.EncodeToString(records[0].Record().Key.PEM())), 0o600))
		process = append(process, took(func() {
			put := exec.CommandContext(b.Context(), command, "dynamodb", "put-item", "--region", a.config.Region, "--endpoint-url", dynamo, "--table-name", a.config.Table, "--item", "file://"+item)
			if out, err := put.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(median(process))*transactionDevices/float64(median(batch)), "times-process")
}

// bareBatch makes the calls of a batch that meets nothing in its way, and looks
// at none of the records. Where it reads back, it reads the objects of a store
// that does not return their checksums, and all items.
func bareBatch(b *testing.B, a *AWS, records []board.Sealed, readBack bool) {
	todo := make(chan board.Sealed)
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for s := range todo {
				name := aws.String(objectName(s.Record().Device, s.Record().Fingerprint()))
				put, err := a.s3.PutObject(b.Context(), &s3.PutObjectInput{
					Bucket: &a.config.Bucket, Key: name, Body: bytes.NewReader(s.Record().Key.PEM()),
					ContentType: aws.String("application/x-pem-file"), IfNoneMatch: aws.String("*"), ChecksumAlgorithm: s3types.ChecksumAlgorithmSha256,
				})
				if err == nil && readBack && put.ChecksumSHA256 == nil {
					var got *s3.GetObjectOutput
					if got, err = a.s3.GetObject(b.Context(), &s3.GetObjectInput{Bucket: &a.config.Bucket, Key: name}); err == nil {
						_, err = io.Copy(io.Discard, got.Body)
						err = errors.Join(err, got.Body.Close())
					}
				}
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	for _, s := range records {
		todo <- s
	}
	close(todo)
	group.Wait()
	var puts []types.TransactWriteItem
	for _, s := range records {
		key := board.KeyBinding{Device: s.Record().Device, Key: s.Record().Fingerprint()}
		puts = append(puts, types.TransactWriteItem{Put: &types.Put{
			TableName: &a.config.Table, Item: newItem(s, a.config.PubkeyFormat, a.config.Bucket).dynamo(),
			ConditionExpression: aws.String("attribute_not_exists(#id)"), ExpressionAttributeNames: map[string]string{"#id": "device-id"},
		}}, types.TransactWriteItem{Put: &types.Put{
			TableName: &a.config.Table, Item: guardToDynamo(key),
			ConditionExpression:       aws.String("attribute_not_exists(#id) OR #device = :device"),
			ExpressionAttributeNames:  map[string]string{"#id": "device-id", "#device": "device"},
			ExpressionAttributeValues: map[string]types.AttributeValue{":device": &types.AttributeValueMemberS{Value: key.Device.String()}},
		}})
	}
	_, err := a.dynamo.TransactWriteItems(b.Context(), &dynamodb.TransactWriteItemsInput{TransactItems: puts})
	must(b, err)
	if !readBack {
		return
	}
	var gets []types.TransactGetItem
	for _, put := range puts {
		gets = append(gets, types.TransactGetItem{Get: &types.Get{
			TableName: &a.config.Table, Key: map[string]types.AttributeValue{"device-id": put.Put.Item["device-id"]},
		}})
	}
	_, err = a.dynamo.TransactGetItems(b.Context(), &dynamodb.TransactGetItemsInput{TransactItems: gets})
	must(b, err)
}

// BenchmarkDirPutBatch sets a full batch against Put of each record, in the
// same folder.
func BenchmarkDirPutBatch(b *testing.B) {
	d := newDirStore(b).openDir(b, "")
	next := 0
	var batch, puts []time.Duration
	for b.Loop() {
		records := fresh(b, &next, 2*transactionDevices)
		batch = append(batch, took(func() { must(b, errors.Join(d.PutBatch(b.Context(), records[:transactionDevices])...)) }))
		puts = append(puts, took(func() {
			for _, s := range records[transactionDevices:] {
				must(b, d.Put(b.Context(), s))
			}
		}))
	}
	reportBatch(b, batch, puts)
}
