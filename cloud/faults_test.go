package cloud

import (
	"bytes"
	"context"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	minidyn "github.com/truora/minidyn/server"

	"secretfree/spool"
	"secretfree/station"
	"secretfree/station/board"
	"secretfree/uart"
)

// wire is the network between a station and AWS, in this process, so that its
// hours pass at once.
type wire struct {
	dynamo, s3 http.Handler
	until      time.Time // of the faults
	fault      networkFault
}

// networkFault is what becomes of a call. pass hands it to the server.
type networkFault func(r *http.Request, pass func() *http.Response) (*http.Response, error)

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	pass := func() *http.Response {
		handler := w.s3
		if r.Header.Get("X-Amz-Target") != "" {
			handler = w.dynamo
		}
		in := httptest.NewRequest(r.Method, r.URL.String(), io.NopCloser(body(r)))
		in.Header, in.Host, in.ContentLength = r.Header.Clone(), r.URL.Host, r.ContentLength
		in.Header.Set("Content-Length", fmt.Sprint(r.ContentLength)) // as a client's transport writes it
		out := httptest.NewRecorder()
		handler.ServeHTTP(out, in)
		if sum := r.Header.Get("X-Amz-Checksum-Sha256"); sum != "" && out.Code == http.StatusOK {
			out.Header().Set("X-Amz-Checksum-Sha256", sum) // as S3 does
		}
		answer := out.Result()
		answer.Request = r
		return answer
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if w.fault == nil || !time.Now().Before(w.until) {
		return pass(), nil
	}
	return w.fault(r, pass)
}

func body(r *http.Request) io.Reader {
	if r.Body == nil {
		return strings.NewReader("")
	}
	return r.Body
}

// silent is a call that nobody answers.
func silent(r *http.Request) error {
	<-r.Context().Done()
	return r.Context().Err()
}

func toS3(r *http.Request) bool { return r.Header.Get("X-Amz-Target") == "" }

// refusal answers in the form of the service that was asked, and does nothing.
func refusal(s3Status int, s3Code string, dynamoStatus int, dynamoCode, rest string) networkFault {
	return func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
		out := httptest.NewRecorder()
		awsError(out, r, s3Status, s3Code, dynamoStatus, dynamoCode, rest)
		answer := out.Result()
		answer.Request = r
		return answer, nil
	}
}

// share spoils so many of the calls, and lets the others through.
func share(of float64, w networkFault) networkFault {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	draw := func() float64 {
		mu.Lock()
		defer mu.Unlock()
		return random.Float64()
	}
	return func(r *http.Request, pass func() *http.Response) (*http.Response, error) {
		if draw() >= of {
			return pass(), nil
		}
		return w(r, pass)
	}
}

// TestStationThroughFaults has a station deliver to AWS through network faults.
// While it lasts the station goes on, and says why nothing moves; in the end
// everything is there, and nothing twice, without anybody's help.
func TestStationThroughFaults(t *testing.T) {
	const spell = 15 * time.Minute
	elsewhere := minidyn.NewServer() // has a table of the same name and another shape
	for name, c := range map[string]struct {
		lasts time.Duration
		fault networkFault
		says  []string // one of these; none: something gets through
	}{
		"latency": {spell, func(r *http.Request, pass func() *http.Response) (*http.Response, error) {
			time.Sleep(3 * time.Second)
			return pass(), nil
		}, nil},
		"latency beyond patience": {spell, func(r *http.Request, pass func() *http.Response) (*http.Response, error) {
			answer := pass() // it is done, but nobody waits so long
			select {
			case <-time.After(20 * time.Second):
				return answer, nil
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		}, []string{"no answer from AWS"}},
		"outage of eight hours": {8 * time.Hour, func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}, []string{"no answer from AWS: check the network"}},
		"no name server": {spell, func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: r.URL.Host, IsNotFound: true}}
		}, []string{"is not found: check the network, the name servers"}},
		"resets": {spell, func(r *http.Request, pass func() *http.Response) (*http.Response, error) {
			pass()
			return nil, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
		}, []string{"no answer from AWS"}},
		"half open": {spell, func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
			return nil, silent(r)
		}, []string{"no answer from AWS"}},
		"half open the other way": {spell, func(r *http.Request, pass func() *http.Response) (*http.Response, error) {
			pass()
			return nil, silent(r)
		}, []string{"no answer from AWS"}},
		"answers cut short": {spell, func(r *http.Request, pass func() *http.Response) (*http.Response, error) {
			answer := pass()
			whole, err := io.ReadAll(answer.Body)
			answer.Body = io.NopCloser(io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), broken{}))
			return answer, err
		}, []string{"no answer from AWS", "writing the items", "reading"}},
		"nine of ten throttled": {2 * time.Hour, share(0.9, refusal(503, "SlowDown", 400, "ThrottlingException", "")), nil},
		"throttled":             {spell, refusal(503, "SlowDown", 400, "ThrottlingException", ""), []string{"AWS asks to slow down"}},
		"faults of AWS":         {spell, refusal(500, "InternalError", 500, "InternalServerError", ""), []string{"a fault of its own"}},
		"wrong credentials":     {spell, refusal(403, "InvalidAccessKeyId", 400, "UnrecognizedClientException", ""), []string{"AWS does not know these credentials"}},
		"wrong secret":          {spell, refusal(403, "SignatureDoesNotMatch", 400, "InvalidSignatureException", ""), []string{"secret key does not belong"}},
		"expired credentials":   {spell, refusal(400, "ExpiredToken", 400, "ExpiredTokenException", ""), []string{"have expired: renew them"}},
		"a wrong clock": {spell, refusal(403, "RequestTimeTooSkewed", 400, "InvalidSignatureException",
			"Signature not yet current: 20261124T102030Z is still later than 20261124T101530Z"), []string{"the clock of this machine is wrong"}},
		"another's bucket": {spell, func(r *http.Request, pass func() *http.Response) (*http.Response, error) {
			if !toS3(r) {
				return pass(), nil
			}
			return refusal(403, "AccessDenied", 0, "", "")(r, pass)
		}, []string{"make sure that the bucket is yours"}},
		"a table of another shape": {spell, func(r *http.Request, pass func() *http.Response) (*http.Response, error) {
			if toS3(r) {
				return pass(), nil
			}
			return (&wire{dynamo: elsewhere}).RoundTrip(r)
		}, []string{"partition key must be device-id"}},
	} {
		t.Run(name, func(t *testing.T) {
			setAWSEnv(t)
			w := &wire{dynamo: minidyn.NewServer(), s3: gofakes3.New(s3mem.New(), gofakes3.WithLogger(gofakes3.DiscardLog())).Server()}
			dir := filepath.Join(t.TempDir(), "line3-a")
			synctest.Test(t, func(t *testing.T) {
				b := wiredStore(t, w, elsewhere)
				const boards = 4
				s := openStation(t, dir, "line3-a", b)
				w.until, w.fault = time.Now().Add(c.lasts), c.fault
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- s.Run(ctx) }()
				for n := range boards {
					r := recordOf(t, "line3-a", n, n)
					_, err := s.Append(t.Context(), spool.Reading{Record: &r})
					must(t, err)
					time.Sleep(time.Second)
				}
				time.Sleep(c.lasts - time.Minute - boards*time.Second)
				stats := s.Stats()
				switch {
				case c.says == nil && stats.Delivered == 0:
					t.Errorf("during faults, which lets some through: %+v", stats)
				case c.says != nil && (stats.Pending == 0 || !containsOne(stats.LastError, c.says)):
					t.Errorf("in bad fault: %+v, want one of %q", stats, c.says)
				}
				if c.says != nil {
					onPage(t, s, c.says)
				}
				time.Sleep(4 * time.Minute)
				cancel()
				must(t, <-ended)
				if stats := s.Stats(); stats.Pending > 0 || stats.Dead > 0 || stats.LastError != "" || stats.Broken != "" {
					t.Errorf("after it: %+v", stats)
				}
				if items, objects := len(b.items(t)), len(b.objects(t)); items != 2*boards || objects != boards {
					t.Errorf("%d items and guards and %d objects of %d boards", items, objects, boards)
				}
				check(t, b)
				must(t, s.Close())
			})
		})
	}
}

// spoolJournal is a spool as a station takes it.
type spoolJournal struct{ *spool.Spool }

func (j spoolJournal) Append(ctx context.Context, o station.Outcome) (board.Receipt, error) {
	return j.Spool.Append(ctx, spool.Reading{Record: o.Record})
}

// onPage makes sure that the technician's page says why nothing moves.
func onPage(t *testing.T, s *spool.Spool, says []string) {
	t.Helper()
	dialect, err := uart.DialectByName("ti-at")
	must(t, err)
	b, err := station.New(station.Config{
		SKU: "widgiot", Station: "line3-a", Journal: spoolJournal{s},
		Slots: []station.SlotConfig{{Name: "A", Port: "/dev/null", Dialect: dialect, Open: func(context.Context) (uart.Conn, error) { return nil, net.ErrClosed }}},
		Backlog: func() station.Backlog {
			stats := s.Stats()
			return station.Backlog{Pending: stats.Pending, LastError: stats.LastError}
		},
		Delivery: func(board.DeviceID) station.Delivery { return station.Waiting },
	})
	must(t, err)
	out := httptest.NewRecorder()
	b.Handler().ServeHTTP(out, httptest.NewRequest(http.MethodGet, "http://localhost/", nil))
	_, notices, _ := strings.Cut(out.Body.String(), `<div id="notices"`)
	notices, _, _ = strings.Cut(html.UnescapeString(notices), "</div>")
	if !strings.Contains(notices, "The cloud does not confirm") || !containsOne(notices, says) {
		t.Errorf("the page says %q (HTTP %d), want one of %q", notices, out.Code, says)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// wiredStore is a table and a bucket at the end of a wire, and a table of the
// same name that is not the registry's.
func wiredStore(t *testing.T, w *wire, elsewhere http.Handler) *awsStore {
	t.Helper()
	b := &awsStore{client: &http.Client{Transport: w, Timeout: callTimeout}}
	b.config = AWSConfig{Table: "widgiot", Bucket: "widgiot-pubkeys", Region: "us-east-1", DynamoDBEndpoint: "http://dynamodb.test", S3Endpoint: "http://s3.test"}
	b.raw = b.open(t, "").(*AWS)
	create := func(client *dynamodb.Client, key string) error {
		_, err := client.CreateTable(t.Context(), &dynamodb.CreateTableInput{
			TableName: &b.config.Table, BillingMode: types.BillingModePayPerRequest,
			AttributeDefinitions: []types.AttributeDefinition{{AttributeName: &key, AttributeType: types.ScalarAttributeTypeS}},
			KeySchema:            []types.KeySchemaElement{{AttributeName: &key, KeyType: types.KeyTypeHash}},
		})
		return err
	}
	must(t, create(b.raw.dynamo, "device-id"))
	other := dynamodb.New(b.raw.dynamo.Options(), func(o *dynamodb.Options) {
		o.HTTPClient = &http.Client{Transport: &wire{dynamo: elsewhere}}
	})
	if err := create(other, "id"); err != nil && !strings.Contains(err.Error(), "ResourceInUse") {
		t.Fatal(fmt.Errorf("the other table: %w", err))
	}
	_, err := b.raw.s3.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(b.config.Bucket)})
	must(t, err)
	return b
}
