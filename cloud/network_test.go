package cloud

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"secretfree/station/board"
)

// TestNetwork delivers through faults: a share of the requests is spoiled
// for a while, and the caller tries again what failed, as the spool does. Each
// error says what is wrong; in the end everything is there, and nothing twice.
func TestNetwork(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		const boards, spell = 20, 60 // requests of faults
		next := 0
		for _, network := range []struct {
			name  string
			share float64
			fates []fate
			only  func(b *awsStore) *proxy // nil: both
			want  []string                 // one of these is in every error
		}{
			{"connections closed", 0.5, []fate{notApplied, lostAnswer}, nil, []string{"no answer from AWS"}},
			{"connections reset", 0.5, []fate{reset}, nil, []string{"no answer from AWS"}},
			{"answers that never come", 0.2, []fate{hung}, nil, []string{"no answer from AWS"}},
			{"answers cut short", 0.5, []fate{cutAnswer}, nil, []string{"no answer from AWS", "writing the items", "reading"}},
			{"answers of something between", 0.5, []fate{emptyAnswer}, nil, []string{"writing the items", "reading", "is not the key that its name says"}},
			{"a log-in page", 0.5, []fate{page, login}, nil, []string{"log this machine in to the network"}},
			{"empty answers", 0.5, []fate{nothing}, nil, []string{"log this machine in to the network", "look for a proxy"}},
			{"throttled", 0.9, []fate{throttled}, nil, []string{"slow down"}},
			{"faults of AWS", 0.5, []fate{serverFault, serverLies}, nil, []string{"a fault of its own"}},
			{"other writers", 0.5, []fate{contested}, nil, []string{"another writer"}},
			{"wrong credentials", 1, []fate{unknownKey}, nil, []string{"AWS does not know these credentials"}},
			{"wrong secret", 1, []fate{wrongSecret}, nil, []string{"secret key does not belong"}},
			{"expired credentials", 1, []fate{expired}, nil, []string{"have expired"}},
			{"wrong clock", 1, []fate{wrongClock}, nil, []string{"NTP"}},
			{"another's bucket", 1, []fate{denied}, func(b *awsStore) *proxy { return b.s3 }, []string{"make sure that the bucket is yours"}},
			{"another's table", 1, []fate{denied}, func(b *awsStore) *proxy { return b.dynamo }, []string{"allow it in the IAM role"}},
			{"everything", 0.6, []fate{notApplied, lostAnswer, reset, cutAnswer, throttled, serverFault, serverLies, contested}, nil, []string{
				"no answer from AWS", "writing the items", "reading", "slow down", "a fault of its own", "another writer"}},
		} {
			t.Run(network.name, func(t *testing.T) {
				var records []board.Sealed
				for range boards {
					next++
					records = append(records, sealed(t, next, next))
				}
				random := rand.New(rand.NewPCG(1, 2))
				shared := make(chan int, 1) // what is left of the faults
				shared <- spell
				for _, p := range []*proxy{b.s3, b.dynamo} {
					if network.only != nil && network.only(b) != p {
						continue
					}
					p.decide(func(*http.Request) fate {
						left := <-shared
						defer func() { shared <- left }()
						if left == 0 {
							return passed
						}
						left--
						if random.Float64() >= network.share {
							return passed
						}
						return network.fates[random.IntN(len(network.fates))]
					})
				}
				r := once(b.open(t, "").(*AWS))
				if slices.Contains(network.fates, hung) {
					doNotWait(r)
				}
				r.group = 7
				failures := 0
				for range 20 * spell {
					var again []board.Sealed
					for n, err := range r.PutBatch(t.Context(), records) {
						if err == nil {
							continue
						}
						failures++
						again = append(again, records[n])
						if isVerdict(err) {
							t.Fatalf("a verdict: %v", err)
						}
						if !containsOne(err.Error(), network.want) {
							t.Errorf("got %v, want one of %q", err, network.want)
						}
					}
					if records = again; len(records) == 0 {
						break
					}
				}
				b.s3.decide(nil)
				b.dynamo.decide(nil)
				if len(records) != 0 {
					t.Errorf("%d records were not delivered", len(records))
				}
				if failures == 0 {
					t.Error("nothing failed")
				}
			})
		}
		if items, objects := len(b.items(t)), len(b.objects(t)); items != 2*next || objects != next {
			t.Errorf("%d items and guards and %d objects of %d boards", items, objects, next)
		}
		check(t, b)
	})
}

func containsOne(text string, wants []string) bool {
	for _, want := range wants {
		if strings.Contains(text, want) {
			return true
		}
	}
	return false
}

// doNotWait gives a registry little patience with its servers.
func doNotWait(a *AWS) {
	client := awshttp.NewBuildableClient().WithTimeout(time.Second)
	a.dynamo = dynamodb.New(a.dynamo.Options(), func(o *dynamodb.Options) { o.HTTPClient = client })
	a.s3 = s3.New(a.s3.Options(), func(o *s3.Options) { o.HTTPClient = client })
}

// What the servers themselves say of a wrong configuration becomes a sentence
// that names the remedy, for a batch and for one record.
func TestWrongPlaces(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		attribute := func(name string) types.AttributeDefinition {
			return types.AttributeDefinition{AttributeName: &name, AttributeType: types.ScalarAttributeTypeS}
		}
		key := func(name string, kind types.KeyType) types.KeySchemaElement {
			return types.KeySchemaElement{AttributeName: &name, KeyType: kind}
		}
		table := func(suffix string, attributes []types.AttributeDefinition, keys []types.KeySchemaElement) string {
			name := b.config.Table + suffix
			_, err := b.raw.dynamo.CreateTable(t.Context(), &dynamodb.CreateTableInput{
				TableName: &name, BillingMode: types.BillingModePayPerRequest, AttributeDefinitions: attributes, KeySchema: keys,
			})
			must(t, err)
			return name
		}
		for _, test := range []struct {
			name, table, bucket string
			want                string
		}{
			{"no table", "nowhere", b.config.Bucket, "there is no table nowhere"},
			{"no bucket", b.config.Table, "nowhere-to-be-found", "there is no bucket nowhere-to-be-found"},
			{"other partition key", table("-other", []types.AttributeDefinition{attribute("id")}, []types.KeySchemaElement{key("id", types.KeyTypeHash)}),
				b.config.Bucket, "partition key must be device-id"},
			{"sort key", table("-sorted", []types.AttributeDefinition{attribute("device-id"), attribute("at")},
				[]types.KeySchemaElement{key("device-id", types.KeyTypeHash), key("at", types.KeyTypeRange)}),
				b.config.Bucket, "partition key must be device-id"},
		} {
			c := b.config
			c.Table, c.Bucket = test.table, test.bucket
			a, err := NewAWS(t.Context(), c)
			must(t, err)
			once(a)
			var records []board.Sealed
			for n := range 5 {
				records = append(records, sealed(t, n, n))
			}
			for _, err := range append(a.PutBatch(t.Context(), records), a.Put(t.Context(), records[0])) {
				if err == nil || !strings.Contains(err.Error(), test.want) || isVerdict(err) {
					t.Errorf("%s: got %v, want %q", test.name, err, test.want)
				}
			}
		}
		if err := errors.Join(b.open(t, "").PutBatch(t.Context(), []board.Sealed{sealed(t, 1, 1)})...); err != nil {
			t.Error(err)
		}
		check(t, b)
	})
}
