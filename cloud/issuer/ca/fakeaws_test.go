package ca

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"secretfree/cloud/issuer/issuertest"
)

// faults stands before a server of AWS as the HTTP client of the SDK, and
// spoils what it is told to. Nothing in it waits for a network, so that a test
// may have a clock of its own.
type faults struct {
	server    http.Handler
	operation func(*http.Request) string

	mu   sync.Mutex // covers all below
	seen map[string]int
	fail func(operation string) fate
}

// fate is what becomes of a request.
type fate int

const (
	passed      fate = iota
	notApplied       // it is lost
	lostAnswer       // it is done, and its answer is lost
	serverFault      // 500
	serverLies       // it is done, and the answer is 500
	throttled
	hung // nothing comes for as long as the client waits
)

var fates = map[string]fate{
	"not applied": notApplied, "lost answer": lostAnswer, "server fault": serverFault, "server lies": serverLies, "throttled": throttled,
}

func newFaults(server http.Handler, operation func(*http.Request) string) *faults {
	return &faults{server: server, operation: operation, seen: map[string]int{}}
}

// target is the operation of a service with JSON 1.1.
func target(r *http.Request) string {
	_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	return operation
}

var errConnection = errors.New("the connection broke")

// Do is that of the SDK's HTTP client.
func (w *faults) Do(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	what := w.operation(r)
	w.mu.Lock()
	w.seen[what]++
	f := passed
	if w.fail != nil {
		f = w.fail(what)
	}
	w.mu.Unlock()

	answer := httptest.NewRecorder()
	if f == passed || f == lostAnswer || f == serverLies {
		if r.Body == nil {
			r.Body = http.NoBody
		}
		w.server.ServeHTTP(answer, r)
	}
	switch f {
	case notApplied, lostAnswer:
		return nil, &url.Error{Op: r.Method, URL: r.URL.String(), Err: errConnection}
	case hung:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case serverFault, serverLies:
		answer = httptest.NewRecorder()
		refuse(answer, http.StatusInternalServerError, "InternalFailure", "")
	case throttled:
		refuse(answer, http.StatusBadRequest, "ThrottlingException", "Rate exceeded")
	}
	return answer.Result(), nil
}

// lose makes the next n requests of an operation fail; negative: all, until it
// is called again.
func (w *faults) lose(what string, f fate, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = func(operation string) fate {
		if operation != what || n == 0 {
			return passed
		}
		n--
		return f
	}
}

func (w *faults) clear() { w.lose("", passed, 0) }

func (w *faults) count(operation string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[operation]
}

// refuse answers with an error as AWS's JSON services do; rest are more fields
// of it, in pairs.
func refuse(w http.ResponseWriter, status int, code, message string, rest ...string) {
	body := map[string]string{"__type": code, "message": message}
	for i := 0; i+1 < len(rest); i += 2 {
		body[rest[i]] = rest[i+1]
	}
	w.Header().Set("X-Amzn-Errortype", code)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// answer answers a request with what do makes of its body.
func answer[In any](w http.ResponseWriter, r *http.Request, do func(In) any) {
	var in In
	body, err := io.ReadAll(r.Body)
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, &in)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "ValidationException", err.Error())
		return
	}
	switch out := do(in).(type) {
	case fakeError:
		refuse(w, out.status, out.code, out.message, out.rest...)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out)
	}
}

type fakeError struct {
	status        int
	code, message string
	rest          []string
}

func badRequest(code, message string) fakeError {
	return fakeError{status: http.StatusBadRequest, code: code, message: message}
}

// awsEnvironment has credentials and a region that any fake takes.
func awsEnvironment(t *testing.T) {
	t.Helper()
	path := issuertest.NoAWSEnvironment(t)
	issuertest.WriteCredentials(t, path, "testkey", "testsecret")
	t.Setenv("AWS_REGION", testRegion)
}

const testRegion = "us-east-1"

// motoEndpoint is that of a running moto, which must be there in CI.
func motoEndpoint(t *testing.T) string {
	t.Helper()
	const env = "SECRETFREE_MOTO_ENDPOINT"
	endpoint := os.Getenv(env)
	if endpoint == "" {
		message := env + " is not set: run this under .ci/peers.sh run"
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	awsEnvironment(t)
	return endpoint
}
