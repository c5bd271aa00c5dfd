package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"secretfree/station/board"
)

const secretToken = "a-session-token"

// TestFaults answers as AWS does when something is wrong, and looks for the
// sentence. Each is an error that passes: no verdict on the record.
func TestFaults(t *testing.T) {
	setAWSEnv(t)
	s3Error := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>what AWS says</Message></Error>", code)
		}
	}
	dynamoError := func(status int, code, rest string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"__type":"com.amazonaws.dynamodb.v20120810#%s","message":"what AWS says"%s}`, code, rest)
		}
	}
	canceled := func(reason string) http.HandlerFunc {
		return dynamoError(400, "TransactionCanceledException", `,"CancellationReasons":[{"Code":"None"},{"Code":"`+reason+`"}]`)
	}
	for _, test := range []struct {
		name   string
		s3     http.HandlerFunc
		dynamo http.HandlerFunc
		want   string
	}{
		{"no bucket", s3Error(404, "NoSuchBucket"), nil, "there is no bucket"},
		{"wrong region", s3Error(301, "PermanentRedirect"), nil, "is in another region"},
		{"wrong region, signed", s3Error(400, "AuthorizationHeaderMalformed"), nil, "is in another region"},
		{"bucket not permitted", s3Error(403, "AccessDenied"), nil, "allow it in the IAM role"},
		{"unknown access key", s3Error(403, "InvalidAccessKeyId"), nil, "AWS does not know these credentials"},
		{"expired", s3Error(400, "ExpiredToken"), nil, "have expired"},
		{"wrong clock", s3Error(403, "RequestTimeTooSkewed"), nil, "NTP"},
		{"wrong secret", s3Error(403, "SignatureDoesNotMatch"), nil, "secret key does not belong"},
		{"S3 slow down", s3Error(503, "SlowDown"), nil, "slow down"},
		{"S3 fault", s3Error(500, "InternalError"), nil, "a fault of its own"},
		{"S3 concurrent write", s3Error(409, "ConditionalRequestConflict"), nil, "another writer"},
		{"object there, then not", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				s3Error(412, "PreconditionFailed")(w, r)
				return
			}
			s3Error(404, "NoSuchKey")(w, r)
		}, nil, "NoSuchKey"},
		{"no table", s3OK, dynamoError(400, "ResourceNotFoundException", ""), "there is no table"},
		{"table not permitted", s3OK, dynamoError(400, "AccessDeniedException", ""), "allow it in the IAM role"},
		{"unknown credentials", s3OK, dynamoError(400, "UnrecognizedClientException", ""), "AWS does not know these credentials"},
		{"expired at the table", s3OK, dynamoError(400, "ExpiredTokenException", ""), "have expired"},
		{"table throttled", s3OK, dynamoError(400, "ThrottlingException", ""), "slow down"},
		{"table over capacity", s3OK, dynamoError(400, "ProvisionedThroughputExceededException", ""), "slow down"},
		{"wrong shape", s3OK, dynamoError(400, "ValidationException", ""), "partition key must be device-id"},
		{"transaction in conflict", s3OK, canceled("TransactionConflict"), "another writer"},
		{"transaction throttled", s3OK, canceled("ThrottlingError"), "slow down"},
		{"transaction of wrong shape", s3OK, canceled("ValidationError"), "partition key must be device-id"},
		{"DynamoDB fault", s3OK, dynamoError(500, "InternalServerError", ""), "a fault of its own"},
		{"condition failed on nothing", s3OK, func(w http.ResponseWriter, r *http.Request) {
			if operation(r) == "GetItem" {
				fmt.Fprint(w, "{}")
				return
			}
			canceled("ConditionalCheckFailed")(w, r)
		}, "TransactionCanceledException"},
		{"answer is no JSON", s3OK, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{") }, "writing the items"},
		{"signature expired", s3OK, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"__type":"x#InvalidSignatureException","message":"Signature expired: x-amz-security-token:%s"}`, r.Header.Get("X-Amz-Security-Token"))
		}, "NTP"},
		{"signature quotes the token", s3OK, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"__type":"x#InvalidSignatureException","message":"x-amz-security-token:%s"}`, r.Header.Get("X-Amz-Security-Token"))
		}, "secret key does not belong"},
		{"endless message", s3OK, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"__type":"x#Other","message":"%s"}`, strings.Repeat("long\\n", 1000))
		}, "Other: long long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("AWS_SESSION_TOKEN", secretToken)
			a := onceAWS(t, serve(t, test.dynamo), serve(t, test.s3))
			err := a.Put(t.Context(), sealed(t, 1, 1))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			if _, conflict := errors.AsType[*board.Conflict](err); conflict || errors.Is(err, board.ErrRecord) || errors.Is(err, ErrDamaged) {
				t.Errorf("got a verdict: %v", err)
			}
			if strings.Contains(err.Error(), secretToken) {
				t.Errorf("the error tells the session token: %v", err)
			}
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 800 {
				t.Errorf("the error is no short line: %q", err)
			}
		})
	}
}

// A Lookup that fails never says that there is nothing.
func TestLookupFaults(t *testing.T) {
	setAWSEnv(t)
	a := onceAWS(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(400)
		fmt.Fprint(w, `{"__type":"x#ResourceNotFoundException","message":"Requested resource not found"}`)
	})), "http://127.0.0.1:1")
	if _, err := a.Lookup(t.Context(), deviceN(1)); err == nil || errors.Is(err, board.ErrNotEnrolled) || !strings.Contains(err.Error(), "there is no table") {
		t.Errorf("got %v", err)
	}
}

func TestTransportFaults(t *testing.T) {
	setAWSEnv(t)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for _, test := range []struct {
		name, endpoint, accessKey, want string
	}{
		{"nobody listens", closed.URL, "testkey", "check the network"},
		{"no such name", "http://s3.invalid", "testkey", "the name s3.invalid is not found"},
		{"no credentials", closed.URL, "", "no AWS credentials were found"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("AWS_ACCESS_KEY_ID", test.accessKey)
			err := onceAWS(t, test.endpoint, test.endpoint).Put(t.Context(), sealed(t, 1, 1))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// onceAWS does not retry, so that a test need not wait.
func onceAWS(t *testing.T, dynamoURL, s3URL string) *AWS {
	t.Helper()
	a, err := NewAWS(context.Background(), AWSConfig{Table: "table", Bucket: "bucket", Region: "us-east-1", DynamoDBEndpoint: dynamoURL, S3Endpoint: s3URL})
	must(t, err)
	return once(a)
}

func once(a *AWS) *AWS {
	a.dynamo = dynamodb.New(a.dynamo.Options(), func(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} })
	a.s3 = s3.New(a.s3.Options(), func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
	a.slow = s3.New(a.slow.Options(), func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
	return a
}
