package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/server"
)

// seen is what an HTTP handler saw of an event.
type seen struct {
	Method, Path, Query, Host, Remote, Body string
	Length                                  int64
	Header                                  map[string][]string
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	w.Header().Add("Set-Cookie", "a=1")
	w.Header().Add("Set-Cookie", "b=2")
	w.WriteHeader(http.StatusAccepted)
	w.Header().Set("Too-Late", "x")
	w.WriteHeader(http.StatusTeapot)
	_ = json.NewEncoder(w).Encode(seen{r.Method, r.URL.Path, r.URL.RawQuery, r.Host, r.RemoteAddr, string(body), r.ContentLength, r.Header})
}

func newGatewayHandler(handler http.HandlerFunc) *gatewayHandler {
	return &gatewayHandler{handler: handler, log: zerolog.Nop()}
}

func TestEventToRequest(t *testing.T) {
	event := events.APIGatewayProxyRequest{
		Resource: "/.well-known/est/{sku}/{proxy+}", Path: "/base/.well-known/est/widgiot/simpleenroll", HTTPMethod: "POST",
		PathParameters:    map[string]string{"sku": "widgiot", "proxy": "simpleenroll"},
		Headers:           map[string]string{"accept": "b/b", "HOST": "api.example.com"}, // has the last value only
		MultiValueHeaders: map[string][]string{"accept": {"a/a", "b/b"}, "HOST": {"api.example.com"}},
		Body:              base64.StdEncoding.EncodeToString([]byte{0x30, 0xff, 0x00}), IsBase64Encoded: true,
		MultiValueQueryStringParameters: map[string][]string{"q": {"1", "2 3"}},
		RequestContext:                  events.APIGatewayProxyRequestContext{Identity: events.APIGatewayRequestIdentity{SourceIP: "2001:db8::1"}},
	}
	out, err := newGatewayHandler(echo).invoke(t.Context(), event)
	if err != nil || out.StatusCode != http.StatusAccepted || out.IsBase64Encoded {
		t.Fatal(out, err)
	}
	if cookies := out.MultiValueHeaders["Set-Cookie"]; !slices.Equal(cookies, []string{"a=1", "b=2"}) || out.MultiValueHeaders["Too-Late"] != nil {
		t.Errorf("headers %v", out.MultiValueHeaders)
	}
	var got seen
	must(t, json.Unmarshal([]byte(out.Body), &got))
	want := seen{"POST", "/.well-known/est/widgiot/simpleenroll", "q=1&q=2+3", "api.example.com", "[2001:db8::1]:0", "0\ufffd\x00", 3,
		map[string][]string{"Accept": {"a/a", "b/b"}, "Host": {"api.example.com"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	// The older form of an event, and a path that a parser of URLs would take
	// apart.
	out, err = newGatewayHandler(echo).invoke(t.Context(), events.APIGatewayProxyRequest{Path: "/a%zz?b", HTTPMethod: "GET",
		Headers: map[string]string{"Accept": "a/a"}, QueryStringParameters: map[string]string{"q": "1"}})
	must(t, err)
	got = seen{}
	must(t, json.Unmarshal([]byte(out.Body), &got))
	if got.Path != "/a%zz?b" || got.Query != "q=1" || got.Header["Accept"][0] != "a/a" {
		t.Errorf("%+v", got)
	}
}

func TestBinaryAnswer(t *testing.T) {
	out, err := newGatewayHandler(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte{0x30, 0xff}) }).invoke(t.Context(),
		events.APIGatewayProxyRequest{Path: "/", HTTPMethod: "GET"})
	if err != nil || out.StatusCode != 200 || !out.IsBase64Encoded || out.Body != "MP8=" {
		t.Error(out, err)
	}
	out, err = newGatewayHandler(func(http.ResponseWriter, *http.Request) {}).invoke(t.Context(), events.APIGatewayProxyRequest{Path: "/", HTTPMethod: "GET"})
	if err != nil || out.StatusCode != 200 || out.Body != "" {
		t.Error(out, err)
	}
}

// What the front refuses does not reach the issuer.
func TestFrontRefusals(t *testing.T) {
	const value = "a request"
	told := func(digest any) map[string]any { return map[string]any{contextID: "1", contextDigest: digest} }
	header := func(values ...string) map[string][]string { return map[string][]string{"Device-CSR": values} }
	for name, c := range map[string]struct {
		event  events.APIGatewayProxyRequest
		status int
		want   refusal // "": let through
	}{
		"approved":         {events.APIGatewayProxyRequest{MultiValueHeaders: header(value), RequestContext: gateway(told(digestOf(value)))}, 200, ""},
		"not asked":        {events.APIGatewayProxyRequest{MultiValueHeaders: header(value)}, 403, noAuthorizer},
		"no digest":        {events.APIGatewayProxyRequest{MultiValueHeaders: header(value), RequestContext: gateway(told(""))}, 403, noAuthorizer},
		"a number":         {events.APIGatewayProxyRequest{MultiValueHeaders: header(value), RequestContext: gateway(told(7.0))}, 403, noAuthorizer},
		"another request":  {events.APIGatewayProxyRequest{MultiValueHeaders: header(value + " "), RequestContext: gateway(told(digestOf(value)))}, 403, otherRequest},
		"a second header":  {events.APIGatewayProxyRequest{MultiValueHeaders: header(value, value), RequestContext: gateway(told(digestOf(value)))}, 403, noAuthorizer},
		"no header":        {events.APIGatewayProxyRequest{Body: value, RequestContext: gateway(told(digestOf("")))}, 403, noAuthorizer},
		"a body for EST":   {events.APIGatewayProxyRequest{Resource: "/.well-known/est/widgiot/simpleenroll", Body: value}, 200, ""},
		"a challenge":      {events.APIGatewayProxyRequest{Resource: "/challenge", HTTPMethod: "GET"}, 200, ""},
		"nearly EST":       {events.APIGatewayProxyRequest{Resource: "/.well-known/estate"}, 403, noAuthorizer},
		"all headers fit":  {events.APIGatewayProxyRequest{Resource: "/challenge", MultiValueHeaders: map[string][]string{"A": {strings.Repeat("x", 10_235)}}}, 200, ""},
		"a byte too many":  {events.APIGatewayProxyRequest{Resource: "/challenge", MultiValueHeaders: map[string][]string{"A": {strings.Repeat("x", 10_236)}}}, 431, headersTooLarge},
		"many headers":     {events.APIGatewayProxyRequest{Resource: "/challenge", MultiValueHeaders: map[string][]string{"A": make([]string, 2_049)}}, 431, headersTooLarge},
		"a body that fits": {events.APIGatewayProxyRequest{Resource: "/.well-known/est/w/e", Body: base64.StdEncoding.EncodeToString(make([]byte, issuer.MaxText)), IsBase64Encoded: true}, 200, ""},
		"a huge body":      {events.APIGatewayProxyRequest{Resource: "/.well-known/est/w/e", Body: strings.Repeat("A", maxBody+1), IsBase64Encoded: true}, 413, bodyTooLarge},
		"a broken body":    {events.APIGatewayProxyRequest{Resource: "/.well-known/est/w/e", Body: "%", IsBase64Encoded: true}, 400, notBase64},
	} {
		t.Run(name, func(t *testing.T) {
			reached := false
			var logs bytes.Buffer
			f := &gatewayHandler{requireAuthorizer: true, log: zerolog.New(&logs), handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true })}
			if c.event.Resource == "" {
				c.event.Resource = "/new"
			}
			if c.event.HTTPMethod == "" {
				c.event.HTTPMethod = "POST"
			}
			out, err := f.invoke(t.Context(), c.event)
			if err != nil || out.StatusCode != c.status || reached != (c.want == "") {
				t.Errorf("%v %v, reached %v", out, err, reached)
			}
			var line struct{ Refusal, Message string }
			if err := json.Unmarshal(logs.Bytes(), &line); err != nil || refusal(line.Refusal) != c.want {
				t.Errorf("logged %s", &logs)
			}
			if strings.Contains(logs.String(), value) {
				t.Errorf("the request is in the log: %s", &logs)
			}
		})
	}
}

func gateway(told map[string]any) events.APIGatewayProxyRequestContext {
	return events.APIGatewayProxyRequestContext{Authorizer: told}
}

func TestFrontPanics(t *testing.T) {
	var logs bytes.Buffer
	f := &gatewayHandler{log: zerolog.New(&logs), handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("what a stranger sent") })}
	_, err := f.invoke(t.Context(), events.APIGatewayProxyRequest{Path: "/new", HTTPMethod: "POST"})
	if !errors.Is(err, errInternal) || !strings.Contains(logs.String(), `"panic":"string"`) || strings.Contains(logs.String(), "stranger") {
		t.Errorf("%v; logged %s", err, &logs)
	}
	if _, err := f.invoke(t.Context(), events.APIGatewayProxyRequest{}); !errors.Is(err, errNotAnEvent) {
		t.Errorf("no event: %v", err)
	}
}

// The authorizer grants nothing: with its word for it, the issuer still refuses
// a request that is signed with a wrong key.
func TestForgedAuthorization(t *testing.T) {
	w := newTestEnv(t)
	var logs bytes.Buffer
	handler, err := open(t.Context(), getenv(w.env(roleIssuer, "1")), w.root, &logs)
	must(t, err)
	invoke := handler.(func(context.Context, events.APIGatewayProxyRequest) (events.APIGatewayProxyResponse, error))
	forged, good := csr(t, w.other, w.board.ID()), csr(t, w.board, w.board.ID())
	for _, c := range []struct {
		value, digest string
		status        int
	}{{forged, forged, 403}, {good, forged, 403}, {good, good, 200}} {
		out, err := invoke(t.Context(), events.APIGatewayProxyRequest{Resource: "/new", HTTPMethod: "POST",
			MultiValueHeaders: map[string][]string{server.HeaderCSR: {c.value}},
			RequestContext:    gateway(map[string]any{contextID: "f00d", contextDigest: digestOf(c.digest), "principalId": w.board.ID()})})
		if err != nil || out.StatusCode != c.status {
			t.Errorf("%v %v, want %d", out, err, c.status)
		}
	}
	for _, want := range []string{`"refusal":"key-mismatch"`, `"refusal":"authorizer-mismatch"`, `"authorizer_id":"f00d"`, `"role":"issuer"`} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("the log has no %s: %s", want, &logs)
		}
	}
	if strings.Contains(logs.String(), good[:40]) {
		t.Errorf("the log has the request: %s", &logs)
	}
}

func TestSettings(t *testing.T) {
	root := t.TempDir()
	writeStation(t, root, "widgiot/line3-a+a64b52db+AfDiWRurqd4c2IZH5lSixX7TSN5dgA5Lu2LHLHOk6rQ1")
	const config = `sku = "widgiot"
registry = {kind = "dir", dir = "/nowhere"}
ca = {kind = "local", dir = "/nowhere", passphrase_file = "/nowhere/ca.pass"}
issuance = {dir = "/nowhere"}
`
	good := map[string]string{roleSetting: roleIssuer, configSetting: config}
	if c, err := configuration(config, filepath.Join(root, "stations")); err != nil || len(c.Stations) != 1 || c.Stations[0].Name != "widgiot/line3-a" {
		t.Fatal(c, err)
	}
	with := func(key, value string) map[string]string {
		changed := maps.Clone(good)
		changed[key] = value
		return changed
	}
	for _, c := range []struct {
		env  map[string]string
		root string
		want string
	}{
		{with(roleSetting, ""), root, `SECRETFREE_ROLE is "", want "issuer" or "authorizer"`},
		{with(roleSetting, "both"), root, `SECRETFREE_ROLE is "both"`},
		{with(requireSetting, "yes"), root, `SECRETFREE_REQUIRE_AUTHORIZER is "yes"`},
		{with(configSetting, " "), root, `SECRETFREE_CONFIG is empty`},
		{with(configSetting, "sku = 1"), root, `SECRETFREE_CONFIG:1: sku takes a text`},
		{good, root, `opening the CA`},
		{good, t.TempDir(), `there is no trusted station`},
	} {
		if _, err := open(t.Context(), getenv(c.env), c.root, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	for _, text := range []string{"not a key", "widgiot/line3-a+a64b52db+AfDiWRurqd4c2IZH5lSixX7TSN5dgA5Lu2LHLHOk6rQ1\nsecond line"} {
		root := t.TempDir()
		writeStation(t, root, text)
		if _, err := open(t.Context(), getenv(good), root, io.Discard); err == nil || !strings.Contains(err.Error(), "is not the station.pub of a station") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
