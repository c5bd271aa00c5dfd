package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
	"github.com/rs/zerolog"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/server"
	"secretfree/cmd/internal/issuerd"
)

// What API Gateway lets pass, and what a request may need, in bytes. Something
// else than API Gateway may call a function.
const (
	maxHeaders = 10_240                     // with the names, and the four bytes around each
	maxBody    = (issuer.MaxText/3 + 1) * 4 // as base64
)

// What the authorizer tells the issuer, by way of API Gateway.
const (
	contextID     = "correlationId"
	contextDigest = "deviceCsrSha256" // of the bytes of the header, in hex
)

// refusal is the name of a reason why a request does not reach the issuer; see
// issuer.Refusal.
type refusal string

const (
	headersTooLarge refusal = "headers-too-large"
	bodyTooLarge    refusal = "body-too-large"
	notBase64       refusal = "body-not-base64"
	noAuthorizer    refusal = "no-authorizer"       // the authorizer was not asked
	otherRequest    refusal = "authorizer-mismatch" // it was asked about another request
)

func (r refusal) Error() string { return string(r) }

// gatewayHandler is what stands between API Gateway (a REST API with Lambda
// proxy integration) and the issuer's HTTP handler. The libraries that do this
// put the whole event into headers and the path through a parser, and print
// both when they fail.
type gatewayHandler struct {
	handler http.Handler
	// requireAuthorizer refuses a request that the authorizer has not seen, bar
	// those on paths that have none: see withoutAuthorizer.
	requireAuthorizer bool
	log               zerolog.Logger
}

var (
	errNotAnEvent = errors.New("this is no event of a REST API of API Gateway with proxy integration")
	errInternal   = errors.New("internal error")
)

func (f *gatewayHandler) invoke(ctx context.Context, event events.APIGatewayProxyRequest) (_ events.APIGatewayProxyResponse, err error) {
	start := time.Now()
	defer func() {
		if recovered(f.log, recover()) {
			err = errInternal
		}
	}()
	if event.HTTPMethod == "" || event.Resource == "" && event.Path == "" {
		return events.APIGatewayProxyResponse{}, errNotAnEvent
	}
	path := pathOf(event)
	line := f.log.Info().Str("request_id", event.RequestContext.RequestID).Str("path", path)
	if id, ok := event.RequestContext.Authorizer[contextID].(string); ok {
		line = line.Str("authorizer_id", id)
	}
	request, err := f.request(ctx, event, path)
	if err != nil {
		refused, outcome := errorAnswer(event, err)
		line.Str("outcome", string(outcome)).Str("refusal", err.Error()).Int("status", refused.StatusCode).Msg("not let through")
		return refused, nil
	}
	w := &answer{header: http.Header{}}
	f.handler.ServeHTTP(w, request)
	line.Int("status", w.code()).Dur("took_ms", time.Since(start)).Msg("answered")
	return w.event(), nil
}

// request makes the HTTP request of an event. Its errors are refusals.
func (f *gatewayHandler) request(ctx context.Context, event events.APIGatewayProxyRequest, path string) (*http.Request, error) {
	header := headersOf(event.MultiValueHeaders, event.Headers)
	if sizeOf(header) > maxHeaders {
		return nil, headersTooLarge
	}
	if len(event.Body) > maxBody {
		return nil, bodyTooLarge
	}
	body := []byte(event.Body)
	if event.IsBase64Encoded {
		decoded, err := base64.StdEncoding.DecodeString(event.Body)
		if err != nil {
			return nil, notBase64
		}
		body = decoded
	}
	if f.requireAuthorizer && !withoutAuthorizer(path) {
		if err := authorized(event.RequestContext.Authorizer, header); err != nil {
			return nil, err
		}
	}
	query := url.Values(event.MultiValueQueryStringParameters)
	if query == nil {
		query = url.Values{}
		for name, value := range event.QueryStringParameters {
			query.Set(name, value)
		}
	}
	r := &http.Request{
		Method: event.HTTPMethod, URL: &url.URL{Path: path, RawQuery: query.Encode()}, Host: header.Get("Host"),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
		RemoteAddr: net.JoinHostPort(event.RequestContext.Identity.SourceIP, "0"),
	}
	r.RequestURI = r.URL.RequestURI()
	return r.WithContext(ctx), nil
}

// withoutAuthorizer are the paths whose request is in the body, which an
// authorizer does not see, or which have none. The issuer alone decides there,
// by the same rules.
func withoutAuthorizer(path string) bool {
	return path == "/challenge" || path == "/healthz" || strings.HasPrefix(path, "/.well-known/est/")
}

// authorized binds what the authorizer approved to what is issued: both must be
// about the same bytes. It grants nothing: the issuer decides again.
func authorized(told map[string]any, header http.Header) error {
	digest, ok := told[contextDigest].(string)
	values := header.Values(server.HeaderCSR)
	if !ok || digest == "" || len(values) != 1 {
		return noAuthorizer
	}
	if digest != digestOf(values[0]) {
		return otherRequest
	}
	return nil
}

func digestOf(value string) string {
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// headersOf keeps every value of a header, and finds it in whatever case the
// device wrote it.
func headersOf(multi map[string][]string, single map[string]string) http.Header {
	header := http.Header{}
	for name, values := range multi {
		for _, value := range values {
			header.Add(name, value)
		}
	}
	if len(multi) == 0 {
		for name, value := range single {
			header.Add(name, value)
		}
	}
	return header
}

func sizeOf(header http.Header) int {
	size := 0
	for name, values := range header {
		for _, value := range values {
			size += len(name) + len(": ") + len(value) + len("\r\n")
		}
	}
	return size
}

// pathOf is the path below the stage and below the base path of a domain name,
// which event.Path has in it: that of the resource, with its parameters.
func pathOf(event events.APIGatewayProxyRequest) string {
	if event.Resource == "" {
		return event.Path
	}
	parts := strings.Split(event.Resource, "/")
	for i, part := range parts {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			parts[i] = event.PathParameters[strings.TrimSuffix(strings.TrimSuffix(name, "}"), "+")]
		}
	}
	return strings.Join(parts, "/")
}

func errorAnswer(event events.APIGatewayProxyRequest, err error) (events.APIGatewayProxyResponse, server.Outcome) {
	status, outcome := http.StatusBadRequest, server.Malformed
	switch err {
	case headersTooLarge:
		status = http.StatusRequestHeaderFieldsTooLarge
	case bodyTooLarge:
		status = http.StatusRequestEntityTooLarge
	case noAuthorizer, otherRequest:
		status, outcome = http.StatusForbidden, server.Refused
	}
	body, _ := json.Marshal(struct { // strings always encode
		Error server.Outcome `json:"error"`
		ID    string         `json:"id"`
	}{outcome, event.RequestContext.RequestID})
	return events.APIGatewayProxyResponse{
		StatusCode: status, Body: string(body) + "\n",
		MultiValueHeaders: map[string][]string{"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}},
	}, outcome
}

// decided logs a request as issuerd does.
func (f *gatewayHandler) decided(d server.Decision) { issuerd.LogDecision(f.log, d) }

// recovered logs where a panic came from, and of its value only the type: it
// may hold what a stranger sent.
func recovered(log zerolog.Logger, v any) bool {
	if v == nil {
		return false
	}
	log.Error().Str("panic", fmt.Sprintf("%T", v)).Bytes("stack", debug.Stack()).Msg("a request ended in a panic")
	return true
}

// answer is the http.ResponseWriter of one event.
type answer struct {
	header http.Header
	status int
	sent   http.Header // as it was at WriteHeader
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK { // there is no way for a 1xx
		a.status, a.sent = status, a.header.Clone()
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

func (a *answer) code() int {
	a.WriteHeader(http.StatusOK)
	return a.status
}

func (a *answer) event() events.APIGatewayProxyResponse {
	out := events.APIGatewayProxyResponse{StatusCode: a.code(), MultiValueHeaders: a.sent, Body: a.body.String()}
	if !utf8.Valid(a.body.Bytes()) {
		out.Body, out.IsBase64Encoded = base64.StdEncoding.EncodeToString(a.body.Bytes()), true
	}
	return out
}
