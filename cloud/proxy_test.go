package cloud

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
)

// proxy stands before S3 or DynamoDB, passes requests on, and spoils them as it
// is told.
type proxy struct {
	url     string
	forward http.Handler

	mu   sync.Mutex // covers all below
	seen map[string]int
	fail func(r *http.Request) fate
}

// fate is what becomes of a request.
type fate int

const (
	passed      fate = iota
	notApplied       // the connection closes before the request is passed on
	lostAnswer       // it is passed on and done, and then the connection closes
	reset            // the connection is reset
	hung             // nothing comes for as long as the client waits
	cutAnswer        // it is done, and half of the answer comes
	emptyAnswer      // it is done, and the answer is not what the SDK expects
	nothing          // 200 and no more, from something between
	page             // a log-in page of the network
	login            // a redirection to one
	believed         // 200 and what a good answer has, and nothing is done
	serverFault      // 500
	serverLies       // it is done, and the answer is 500
	throttled        // AWS asks to slow down
	contested        // another writer is at the same item, of a transaction the first
	denied           // these credentials may not do it
	unknownKey       // AWS does not know the credentials
	wrongSecret      // the signature is not that of the access key
	expired          // the credentials have expired
	wrongClock       // the request's time is too far from AWS's own
)

// done tells whether the request reaches the server.
func (f fate) done() bool {
	switch f {
	case passed, lostAnswer, cutAnswer, emptyAnswer, serverLies:
		return true
	}
	return false
}

func newProxy(t testing.TB, target string) *proxy {
	u, err := url.Parse(target)
	must(t, err)
	p := &proxy{seen: map[string]int{}}
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: wholeAnswers{},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	p.url = serve(t, p)
	return p
}

// wholeAnswers reads again where the peer itself broke off its answer: on a
// busy machine DynamoDB Local now and then does. Faults are the proxy's to
// choose.
type wholeAnswers struct{}

func (wholeAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	if !slices.Contains([]string{"GetItem", "TransactGetItems", "Query", "Scan"}, operation(r)) {
		return http.DefaultTransport.RoundTrip(r)
	}
	asked, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		again := r.Clone(r.Context())
		again.Body = io.NopCloser(bytes.NewReader(asked))
		answer, err := http.DefaultTransport.RoundTrip(again)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if errors.Is(err, io.ErrUnexpectedEOF) && try < 5 {
			continue
		}
		if err != nil {
			return nil, err
		}
		answer.Body, answer.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return answer, nil
	}
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := p.take(r)
	if f == passed {
		p.forward.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	var request struct{ TransactItems []json.RawMessage }
	if f.done() {
		p.forward.ServeHTTP(answer, r)
	} else {
		body, _ := io.ReadAll(r.Body) // to its end, so that the connection stays good
		_ = json.Unmarshal(body, &request)
	}
	switch f {
	case notApplied, lostAnswer:
		panic(http.ErrAbortHandler)
	case reset:
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	case hung:
		<-r.Context().Done()
	case cutAnswer:
		w.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()+1))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
		panic(http.ErrAbortHandler)
	case emptyAnswer:
		_, _ = io.WriteString(w, "{")
	case nothing:
		w.WriteHeader(http.StatusOK)
	case page:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<!DOCTYPE html><title>Welcome to the plant</title>")
	case login:
		http.Redirect(w, r, "http://portal.test/login", http.StatusFound)
	case believed:
		if operation(r) == http.MethodPut {
			s3OK(w, r)
			return
		}
		_, _ = io.WriteString(w, "{}")
	case serverFault, serverLies:
		awsError(w, r, 500, "InternalError", 500, "InternalServerError", "")
	case throttled:
		awsError(w, r, 503, "SlowDown", 400, "ThrottlingException", "")
	case contested:
		reasons := `{"Code":"TransactionConflict"}` + strings.Repeat(`,{"Code":"None"}`, max(0, len(request.TransactItems)-1))
		awsError(w, r, 409, "ConditionalRequestConflict", 400, "TransactionCanceledException", `,"CancellationReasons":[`+reasons+`]`)
	case denied:
		awsError(w, r, 403, "AccessDenied", 400, "AccessDeniedException", "")
	case unknownKey:
		awsError(w, r, 403, "InvalidAccessKeyId", 400, "UnrecognizedClientException", "")
	case wrongSecret:
		awsError(w, r, 403, "SignatureDoesNotMatch", 400, "InvalidSignatureException", "")
	case expired:
		awsError(w, r, 400, "ExpiredToken", 400, "ExpiredTokenException", "")
	case wrongClock:
		awsError(w, r, 403, "RequestTimeTooSkewed", 400, "InvalidSignatureException", "Signature not yet current: 20261124T102030Z is still later than 20261124T101530Z")
	}
}

// awsError answers in the form of the service that was asked. rest is more of
// the JSON, or where it is none, the message.
func awsError(w http.ResponseWriter, r *http.Request, s3Status int, s3Code string, dynamoStatus int, dynamoCode, rest string) {
	message := "what AWS says"
	if r.Header.Get("X-Amz-Target") == "" {
		w.WriteHeader(s3Status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", s3Code, message)
		return
	}
	if !strings.HasPrefix(rest, ",") && rest != "" {
		message, rest = rest, ""
	}
	w.WriteHeader(dynamoStatus)
	fmt.Fprintf(w, `{"__type":"com.amazonaws.dynamodb.v20120810#%s","message":"%s"%s}`, dynamoCode, message, rest)
}

// s3OK says of each object that it is stored.
func s3OK(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Amz-Checksum-Sha256", r.Header.Get("X-Amz-Checksum-Sha256"))
}

func operation(r *http.Request) string {
	if _, target, ok := strings.Cut(r.Header.Get("X-Amz-Target"), "."); ok {
		return target
	}
	return r.Method
}

func (p *proxy) take(r *http.Request) fate {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[operation(r)]++
	if p.fail == nil {
		return passed
	}
	return p.fail(r)
}

// decide lets a function decide on each request, one at a time; nil passes all
// on.
func (p *proxy) decide(fail func(r *http.Request) fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = fail
}

// lose makes the next n requests of an operation fail; negative: all, until it
// is called again.
func (p *proxy) lose(what string, f fate, n int) {
	p.decide(func(r *http.Request) fate {
		if operation(r) != what || n == 0 {
			return passed
		}
		n--
		return f
	})
}

func (p *proxy) count(operation string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[operation]
}
