package cloud

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"secretfree/station/board"
)

// TestLostAnswers fails each remote call both ways. Lost once, the SDK's retry
// settles it within the Put. Lost for the whole Put, it ends with an error that
// is no verdict, and the same Put later succeeds.
func TestLostAnswers(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		n := 0
		for _, call := range []struct {
			name      string
			proxy     *proxy
			operation string
			prepare   bool // enrolled before, so that the call is made at all
			writes    bool
		}{
			{"write the object", b.s3, http.MethodPut, false, false},
			{"read the object", b.s3, http.MethodGet, true, false},
			{"write the items", b.dynamo, "TransactWriteItems", false, true},
			{"read the items", b.dynamo, "GetItem", true, false},
		} {
			for kind, kindName := range map[fate]string{notApplied: "not applied", lostAnswer: "answer lost"} {
				for times, timesName := range map[int]string{1: "once", -1: "for a while"} {
					t.Run(call.name+"/"+kindName+"/"+timesName, func(t *testing.T) {
						n++
						s, r := sealed(t, n, n), b.open(t, "")
						if call.prepare {
							must(t, r.Put(t.Context(), s))
						}
						before := call.proxy.count(call.operation)
						call.proxy.lose(call.operation, kind, times)
						err := r.Put(t.Context(), s)
						call.proxy.decide(nil)
						if call.proxy.count(call.operation) == before {
							t.Fatal("the call was not made")
						}
						if times == 1 || call.writes && kind == lostAnswer { // which is read back
							must(t, err)
						} else if _, conflict := errors.AsType[*board.Conflict](err); err == nil || conflict || !strings.Contains(err.Error(), "no answer from AWS") {
							t.Fatalf("got %v, want an error that passes", err)
						}
						_, stored := b.items(t)[s.Record().Device.String()]
						if want := call.prepare || times == 1 || call.writes && kind == lostAnswer; stored != want {
							t.Errorf("the item is there: %v, want %v", stored, want)
						}
						must(t, r.Put(t.Context(), s))
						// A lost answer of one's own is not mistaken for
						// another's conflict, nor the other way round.
						if err := r.Put(t.Context(), sealed(t, n, 1000+n)); !errors.Is(err, board.ErrDeviceConflict) {
							t.Errorf("another key: got %v, want ErrDeviceConflict", err)
						}
					})
				}
			}
		}
		check(t, b)
	})
}

// Nobody else's key is overwritten by a retry: the answer is lost, and before
// the retry the device is deleted and enrolled anew with another key.
func TestLostAnswerThenAnother(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		s := sealed(t, 1, 1)
		b.dynamo.decide(func(*http.Request) fate { return lostAnswer }) // of the write, and of reading it back
		if err := b.open(t, "").Put(t.Context(), s); err == nil {
			t.Fatal("the answer was not lost")
		}
		b.dynamo.decide(nil)
		b.remove(t, deviceN(1).String())
		b.remove(t, guardPrefix+s.Record().Fingerprint().String())
		must(t, b.open(t, "").Put(t.Context(), sealed(t, 1, 2)))
		if err := b.open(t, "").Put(t.Context(), s); !errors.Is(err, board.ErrDeviceConflict) {
			t.Errorf("got %v, want ErrDeviceConflict", err)
		}
		check(t, b)
	})
}

// A caller that stops is not kept waiting by a server that hangs.
func TestCanceled(t *testing.T) {
	setAWSEnv(t)
	ctx, cancel := context.WithCancel(t.Context())
	hang := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		cancel()
		panic(http.ErrAbortHandler)
	}))
	a, err := NewAWS(t.Context(), AWSConfig{Table: "t", Bucket: "b", Region: "us-east-1", DynamoDBEndpoint: hang, S3Endpoint: hang})
	must(t, err)
	if err := a.Put(ctx, sealed(t, 1, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Put: got %v, want context.Canceled", err)
	}
	if _, err := a.Lookup(ctx, deviceN(1)); !errors.Is(err, context.Canceled) || errors.Is(err, board.ErrNotEnrolled) {
		t.Errorf("Lookup: got %v, want context.Canceled", err)
	}
}

func TestNewAWSRefusals(t *testing.T) {
	setAWSEnv(t)
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	for _, test := range []struct {
		config AWSConfig
		want   string
	}{
		{AWSConfig{Bucket: "b", Region: "r"}, "a table and a bucket"},
		{AWSConfig{Table: "t", Region: "r"}, "a table and a bucket"},
		{AWSConfig{Table: "t", Bucket: "b"}, "no region"},
		{AWSConfig{Table: "t", Bucket: "b", Region: "r", PubkeyFormat: "der"}, "pubkey_format"},
	} {
		if _, err := NewAWS(t.Context(), test.config); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: got %v, want %q", test.config, err, test.want)
		}
	}
}
