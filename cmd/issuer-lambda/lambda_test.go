package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// behaviour makes this test's own program a function of Lambda, for what the
// real one must not do.
const behaviour = "SECRETFREE_TEST_BEHAVIOUR"

func TestMain(m *testing.M) {
	if what := os.Getenv(behaviour); what != "" {
		serve(func(ctx context.Context, ask string) (string, error) {
			switch ask {
			case "panic":
				panic("on purpose")
			case "exit":
				os.Exit(3)
			case "hang":
				select {}
			case "large":
				return strings.Repeat("x", maxPayload), nil
			}
			return "well: " + ask, nil
		}, zerolog.New(os.Stderr))
		return
	}
	os.Exit(m.Run())
}

// build makes the program as it runs on Lambda, bar the architecture.
func build(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bootstrap")
	c := exec.CommandContext(t.Context(), "go", "build", "-tags", "lambda.norpc", "-ldflags=-s -w", "-o", path, ".")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// post is the event of a request as API Gateway makes it, after the authorizer.
func post(t testing.TB, path, value string, told map[string]any) []byte {
	t.Helper()
	out, err := json.Marshal(events.APIGatewayProxyRequest{
		Resource: path, Path: path, HTTPMethod: "POST", RequestContext: gateway(told),
		Headers: map[string]string{"Device-Csr": value}, MultiValueHeaders: map[string][]string{"Device-Csr": {value}},
	})
	must(t, err)
	return out
}

func question(t testing.TB, value string) []byte {
	t.Helper()
	out, err := json.Marshal(events.APIGatewayCustomAuthorizerRequestTypeRequest{
		Type: "REQUEST", MethodArn: calledMethod, HTTPMethod: "POST", Path: "/new", Resource: "/new",
		MultiValueHeaders: map[string][]string{"Device-Csr": {value}},
	})
	must(t, err)
	return out
}

// The real program in both roles, under Lambda's runtime API.
func TestLambda(t *testing.T) {
	w, program := newTestEnv(t), build(t)
	with := func(role string) map[string]string {
		env := w.env(role, "1")
		env["LAMBDA_TASK_ROOT"] = w.root
		return env
	}
	asks := newFunction(t, "authorizer", 1, with(roleAuthorizer), program)
	issues := newFunction(t, "issuer", 8, with(roleIssuer), program)
	good, forged := csr(t, w.board, w.board.ID()), csr(t, w.other, w.board.ID())

	authorize := func(t *testing.T, value string) events.APIGatewayCustomAuthorizerResponse {
		t.Helper()
		status, failed, body := asks.invoke(t.Context(), question(t, value))
		var out events.APIGatewayCustomAuthorizerResponse
		if err := json.Unmarshal(body, &out); err != nil || status != 200 || failed || len(out.PolicyDocument.Statement) != 1 {
			t.Fatalf("%d %v %s: %v; its log: %s", status, failed, body, err, asks.log())
		}
		return out
	}
	issue := func(t *testing.T, value string, told map[string]any) (int, string) {
		t.Helper()
		status, failed, body := issues.invoke(t.Context(), post(t, "/new", value, told))
		var out events.APIGatewayProxyResponse
		if err := json.Unmarshal(body, &out); err != nil || status != 200 || failed {
			t.Fatalf("%d %v %s: %v; its log: %s", status, failed, body, err, issues.log())
		}
		return out.StatusCode, out.Body
	}

	allowed := authorize(t, good)
	if s := allowed.PolicyDocument.Statement[0]; s.Effect != "Allow" || !cmp.Equal(s.Resource, []string{calledMethod}) || allowed.PrincipalID != w.board.ID() {
		t.Errorf("allowed: %+v", allowed)
	}
	if denied := authorize(t, forged); denied.PolicyDocument.Statement[0].Effect != "Deny" {
		t.Errorf("denied: %+v", denied)
	}

	status, body := issue(t, good, allowed.Context)
	var answer struct{ Certificate, CertificateChain, Endpoint string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 || answer.Endpoint != "mqtt.example.invalid" {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	block, _ := pem.Decode([]byte(answer.Certificate))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || leaf.Subject.CommonName != w.board.ID() {
		t.Errorf("the certificate is of %v: %v", leaf.Subject, err)
	}
	if status, _ := issue(t, good, nil); status != 403 {
		t.Errorf("without the authorizer: %d", status)
	}
	if status, _ := issue(t, forged, map[string]any{contextID: "1", contextDigest: digestOf(forged)}); status != 403 {
		t.Errorf("with a forged authorization: %d", status)
	}

	// Eight at once, each in a sandbox of its own, get the one certificate.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			status, failed, got := issues.invoke(t.Context(), post(t, "/proto", good, allowed.Context))
			var out events.APIGatewayProxyResponse
			if err := json.Unmarshal(got, &out); err != nil || status != 200 || failed || out.Body != body {
				t.Errorf("%d %v %s: %v", status, failed, got, err)
			}
		})
	}
	all.Wait()
	if status, _, body := issues.invoke(t.Context(), make([]byte, 7<<20)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("7 MB: %d %s", status, body)
	}
	if _, failed, body := issues.invoke(t.Context(), []byte(`{"version":"2.0","routeKey":"POST /new"}`)); !failed || !strings.Contains(string(body), "no event of a REST API") {
		t.Errorf("an event of another kind: %v %s", failed, body)
	}
	for _, f := range []*function{asks, issues} {
		if log := f.log(); strings.Contains(log, good[:40]) || strings.Contains(log, "BEGIN CERT") {
			t.Errorf("requests are in the log: %s", log)
		}
		for line := range strings.Lines(f.log()) {
			if !json.Valid([]byte(line)) {
				t.Errorf("a line of the log is no JSON: %s", line)
			}
		}
	}

	// An outage of the registry is no verdict.
	must(t, os.Rename(w.registry, w.registry+".away"))
	if _, failed, body := asks.invoke(t.Context(), question(t, good)); !failed || strings.Contains(string(body), "Allow") {
		t.Errorf("without a registry: %v %s", failed, body)
	}
	must(t, os.Rename(w.registry+".away", w.registry))
	if again := authorize(t, good); again.PolicyDocument.Statement[0].Effect != "Allow" {
		t.Errorf("after the outage: %+v", again)
	}

	// Wrong settings end the process, and say why.
	wrong := newFunction(t, "wrong", 1, map[string]string{roleSetting: "both"}, program)
	if _, failed, body := wrong.invoke(t.Context(), question(t, good)); !failed || !strings.Contains(string(body), "Runtime.ExitError") || !strings.Contains(wrong.log(), `want \"issuer\"`) {
		t.Errorf("wrong settings: %v %s; its log: %s", failed, body, wrong.log())
	}
}

// What a function may do wrong ends in an error, and the next event finds it
// well.
func TestLambdaFaults(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	f := newFunction(t, "faulty", 1, map[string]string{behaviour: "any"}, self)
	server := httptest.NewServer(f)
	defer server.Close()
	for _, c := range []struct{ ask, want string }{
		{"1", "well: 1"}, {"panic", "on purpose"}, {"2", "well: 2"}, {"exit", "Runtime.ExitError"}, {"3", "well: 3"},
		{"large", "Function.ResponseSizeTooLarge"}, {"4", "well: 4"}, {"hang", "Sandbox.Timedout"}, {"5", "well: 5"},
	} {
		f.timeout = time.Minute
		if c.ask == "hang" {
			f.timeout = 200 * time.Millisecond
		}
		answer, err := http.Post(server.URL, "application/json", strings.NewReader(`"`+c.ask+`"`))
		must(t, err)
		body, err := io.ReadAll(answer.Body)
		must(t, err)
		must(t, answer.Body.Close())
		if failed := answer.Header.Get("X-Amz-Function-Error") != ""; failed == strings.HasPrefix(c.want, "well") || !strings.Contains(string(body), c.want) {
			t.Errorf("%s: %v %s", c.ask, failed, body)
		}
	}
	// All sandboxes are busy.
	s := <-f.sandboxes
	if status, _, body := f.invoke(t.Context(), []byte(`"x"`)); status != http.StatusTooManyRequests {
		t.Errorf("%d %s", status, body)
	}
	f.sandboxes <- s
}
