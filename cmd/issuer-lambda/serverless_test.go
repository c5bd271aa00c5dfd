package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretfree/cloud/issuer/server"
)

// serverless is serverless-offline, with the test skipped where it is not.
func serverless(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("SECRETFREE_SERVERLESS")
	if _, err := os.Stat(filepath.Join(folder, "node_modules", "serverless-offline")); folder == "" || err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no serverless-offline, and CI must have it")
		}
		t.Skip("there is no serverless-offline: no events of others are seen here; .ci/serverless.sh run go test ./cmd/issuer-lambda does it")
	}
	return folder
}

// The gateway of the template, as serverless-offline has it. Its functions hand
// their events to the real program.
const gatewayConfig = `service: widgiot
frameworkVersion: "*"
provider:
  name: aws
  runtime: nodejs20.x
  region: us-east-1
  stage: prod
plugins: [serverless-offline]
custom:
  serverless-offline: {host: 127.0.0.1, httpPort: %d, lambdaPort: %d, noTimeout: true, disableCookieValidation: true}
functions:
  authorizer: {handler: shim.authorizer}
  issuer:
    handler: shim.issuer
    events:
      - http: &door
          path: new
          method: post
          authorizer: {name: authorizer, type: request, identitySource: method.request.header.device-csr, resultTtlInSeconds: 0}
      - http: {<<: *door, path: proto}
      - http: {path: challenge, method: get}
      - http: {path: ".well-known/est/{sku}/{proxy+}", method: post}
`

const shim = `const invoke = (name) => async (event) => {
  const answer = await fetch("STUBS/2015-03-31/functions/" + name + "/invocations", {method: "POST", body: JSON.stringify(event)});
  const body = await answer.json();
  if (answer.headers.get("X-Amz-Function-Error")) throw new Error(body.errorMessage);
  return body;
};
exports.authorizer = invoke("authorizer");
exports.issuer = invoke("issuer");
`

// Events that others make of requests: the authorizer and the issuer behind a
// gateway.
func TestServerlessOffline(t *testing.T) {
	folder := serverless(t)
	w, program := newTestEnv(t), build(t)
	with := func(role string) map[string]string {
		env := w.env(role, "1")
		env["LAMBDA_TASK_ROOT"] = w.root
		return env
	}
	asks, issues := newFunction(t, "authorizer", 2, with(roleAuthorizer), program), newFunction(t, "issuer", 2, with(roleIssuer), program)
	mux := http.NewServeMux()
	mux.Handle("POST /2015-03-31/functions/authorizer/invocations", asks)
	mux.Handle("POST /2015-03-31/functions/issuer/invocations", issues)
	stubs := httptest.NewServer(mux)
	defer stubs.Close()
	base := startGateway(t, folder, stubs.URL)

	send := func(t *testing.T, method, path string, header http.Header, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		must(t, err)
		r.Header = header
		answer, err := http.DefaultClient.Do(r)
		must(t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		must(t, err)
		return answer.StatusCode, string(text)
	}
	good, forged := csr(t, w.board, w.board.ID()), csr(t, w.other, w.board.ID())
	for _, path := range []string{"/prod/new", "/prod/proto"} {
		status, body := send(t, "POST", path, http.Header{"Device-Csr": {good}, "Accept": {"application/json"}}, "")
		var answer struct{ Certificate, Endpoint string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 || answer.Endpoint != "mqtt.example.invalid" {
			t.Fatalf("%s: %d %s: %v\n%s\n%s", path, status, body, err, asks.log(), issues.log())
		}
		block, _ := pem.Decode([]byte(answer.Certificate))
		if leaf, err := x509.ParseCertificate(block.Bytes); err != nil || leaf.Subject.CommonName != w.board.ID() {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, c := range map[string]struct {
		path   string
		header http.Header
		body   string
		status int
	}{
		"forged":                    {"/prod/new", http.Header{"Device-Csr": {forged}}, "", 403},
		"malformed":                 {"/prod/new", http.Header{"Device-Csr": {"%"}}, "", 403},
		"no header":                 {"/prod/new", http.Header{}, "", 401},
		"in the body":               {"/prod/new", http.Header{"Content-Type": {"application/pkcs10"}}, good, 401},
		"a header and a body":       {"/prod/new", http.Header{"Device-Csr": {good}, "Content-Type": {"application/pkcs10"}}, good, 400},
		"more than the gateway's":   {"/prod/new", http.Header{"Device-Csr": {good}, "Filler": {strings.Repeat("x", 10_240)}}, "", 431},
		"a body for EST, oversized": {"/prod/.well-known/est/widgiot/simpleenroll", http.Header{"Content-Type": {"application/pkcs10"}}, strings.Repeat("A", maxBody+1), 413},
	} {
		if status, body := send(t, "POST", c.path, c.header, c.body); status != c.status {
			t.Errorf("%s: %d %s, want %d", name, status, body, c.status)
		}
	}
	if !strings.Contains(issues.log(), `"authorizer_id":"`) || !strings.Contains(asks.log(), `"refusal":"key-mismatch"`) {
		t.Errorf("logs:\n%s\n%s", asks.log(), issues.log())
	}
	// Not asked, and refused by name: the gateway lets only through what its
	// authorizer let through, and the program does not rely on it.
	_, failed, body := issues.invoke(t.Context(), post(t, "/new", good, nil))
	if failed || !strings.Contains(string(body), string(server.Refused)) {
		t.Errorf("%v %s", failed, body)
	}
}

// startGateway returns the address of a serverless-offline that ends with the
// test.
func startGateway(t *testing.T, folder, stubs string) string {
	t.Helper()
	dir := t.TempDir()
	ports := [2]int{}
	for i := range ports { // it takes no 0
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
		must(t, l.Close())
	}
	must(t, os.WriteFile(filepath.Join(dir, "serverless.yml"), fmt.Appendf(nil, gatewayConfig, ports[0], ports[1]), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "shim.js"), []byte(strings.Replace(shim, "STUBS", stubs, 1)), 0o600))
	must(t, os.Symlink(filepath.Join(folder, "node_modules"), filepath.Join(dir, "node_modules")))
	c := exec.Command(filepath.Join(folder, "node_modules", ".bin", "osls"), "offline", "start")
	c.Dir = dir
	c.Env = append(os.Environ(), "SLS_TELEMETRY_DISABLED=1", "SLS_NOTIFICATIONS_MODE=off", "HOME="+dir, "AWS_EC2_METADATA_DISABLED=true")
	var output bytes.Buffer
	c.Stdout, c.Stderr = &output, &output
	must(t, c.Start())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() {
		_ = c.Process.Signal(os.Interrupt) // it may have ended
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = c.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("serverless-offline: %s", &output)
		}
	})
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	limit, again := time.After(time.Minute), time.NewTicker(100*time.Millisecond)
	defer again.Stop()
	for {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("serverless-offline ended: %v\n%s", err, &output)
		case <-limit:
			t.Fatal("serverless-offline does not start")
		case <-again.C:
			if conn, err := net.Dial("tcp", address); err == nil {
				must(t, conn.Close())
				return "http://" + address
			}
		}
	}
}
