package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/aws/aws-lambda-go/events"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/youmark/pkcs8"

	"secretfree/cloud"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/claims"
	"secretfree/cloud/issuer/server"
)

const hostileFolder = "../../cloud/issuer/testdata/hostile"

// hostile is a file of the issuer's corpus: see the README.md there. Its form
// is checked by the issuer's own tests.
type hostile struct {
	name, want string
	clock      time.Time
	status     int
	answer     string
	path       string
	header     map[string][]string
	body       []byte
	policy     string
	stations   string
	registry   []txtar.File
}

func readHostile(t *testing.T, path string) hostile {
	t.Helper()
	archive, err := txtar.ParseFile(path)
	must(t, err)
	h := hostile{header: map[string][]string{}}
	h.name, h.want, _ = strings.Cut(strings.TrimSuffix(filepath.Base(path), ".txt"), ".")
	for line := range strings.Lines(string(archive.Comment)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch key {
		case "clock":
			h.clock, err = time.Parse(time.RFC3339, value)
		case "status":
			h.status, err = strconv.Atoi(value)
		case "answer":
			h.answer = value
		}
		must(t, err)
	}
	for _, file := range archive.Files {
		switch text := string(file.Data); file.Name {
		case "request":
			first, rest, _ := strings.Cut(text, "\n")
			h.path = strings.TrimPrefix(first, "POST ")
			for line := range strings.Lines(rest) {
				key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
				h.header[key] = append(h.header[key], value)
			}
		case "body":
			h.body = file.Data
		case "body.base64":
			h.body, err = base64.StdEncoding.DecodeString(text)
			must(t, err)
		case "policy.toml":
			h.policy = text
		case "stations":
			h.stations = text
		default:
			h.registry = append(h.registry, file)
		}
	}
	return h
}

// settings makes the registry of h and what else both functions need.
func (h hostile) settings(t *testing.T, authority string) (config, root string) {
	t.Helper()
	dir := t.TempDir()
	registry, store, root := filepath.Join(dir, "registry"), filepath.Join(dir, "claims"), filepath.Join(dir, "task")
	must(t, cloud.InitDir(registry))
	must(t, claims.InitDir(store))
	must(t, os.MkdirAll(filepath.Join(registry, "items"), 0o755))
	for _, file := range h.registry {
		must(t, os.WriteFile(filepath.Join(registry, filepath.FromSlash(file.Name)), file.Data, 0o644))
	}
	must(t, os.MkdirAll(filepath.Join(root, "stations"), 0o755))
	for i, station := range strings.Fields(h.stations) {
		must(t, os.WriteFile(filepath.Join(root, "stations", fmt.Sprint(i, ".pub")), []byte(station+"\n"), 0o644))
	}
	key := filepath.Join(dir, "challenge.key")
	must(t, os.WriteFile(key, []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("k"), 32))+"\n"), 0o600))
	return fmt.Sprintf(`sku = "widgiot"
registry = {kind = "dir", dir = %q}
ca = {kind = "local", dir = %q, passphrase_file = %q}
issuance = {dir = %q}
challenge = {key_file = %q}
log = {level = "debug"}
%s`, registry, authority, filepath.Join(authority, "passphrase"), store, key, h.policy), root
}

// oldCA is a CA of the corpus's time. The key of a real one is slow to open by
// intent; this one's is not.
func oldCA(t *testing.T, at time.Time) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	passphrase := []byte("correct horse battery staple")
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(at))
		must(t, ca.InitLocal(ca.LocalInit{Dir: dir, Name: "Widgiot", Passphrase: passphrase}))
	})
	name := filepath.Join(dir, "issuing.key")
	data, err := os.ReadFile(name)
	must(t, err)
	block, _ := pem.Decode(data)
	key, err := pkcs8.ParsePKCS8PrivateKeyECDSA(block.Bytes, passphrase)
	must(t, err)
	block.Bytes, err = pkcs8.MarshalPrivateKey(key, passphrase, &pkcs8.Opts{
		Cipher: pkcs8.AES256CBC, KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 1000, HMACHash: crypto.SHA256},
	})
	must(t, err)
	must(t, os.WriteFile(name, pem.EncodeToMemory(block), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "passphrase"), append(passphrase, '\n'), 0o600))
	return dir
}

// Both functions give each file of the issuer's corpus its name, the stranger
// one of three constants, and the log at its most talkative nothing of the
// request.
func TestHostileCorpus(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(hostileFolder, "*.txt"))
	if err != nil || len(names) < 40 {
		t.Fatalf("%d files: %v", len(names), err)
	}
	authority := oldCA(t, readHostile(t, names[0]).clock.AddDate(0, -1, 0))
	for _, name := range names {
		h := readHostile(t, name)
		t.Run(h.name+"."+h.want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(h.clock))
				h.check(t, authority)
			})
		})
	}
}

func (h hostile) check(t *testing.T, authority string) {
	config, root := h.settings(t, authority)
	var logs bytes.Buffer
	env := map[string]string{roleSetting: roleIssuer, configSetting: config}
	if h.name == "foreign-sku" { // the policy that trusts its station is none that starts
		if _, err := open(t.Context(), getenv(env), root, &logs); err == nil || !strings.Contains(err.Error(), `is a station of the SKU "gadget"`) {
			t.Errorf("a station of another SKU: %v", err)
		}
		return
	}
	handler, err := open(t.Context(), getenv(env), root, &logs)
	must(t, err)
	h.ask(t, handler.(func(context.Context, events.APIGatewayProxyRequest) (events.APIGatewayProxyResponse, error)), &logs)
	if h.body == nil { // which an authorizer does not see
		logs.Reset()
		env[roleSetting] = roleAuthorizer
		handler, err := open(t.Context(), getenv(env), root, &logs)
		must(t, err)
		h.authorize(t, handler.(func(context.Context, events.APIGatewayCustomAuthorizerRequestTypeRequest) (events.APIGatewayCustomAuthorizerResponse, error)), &logs)
	}
}

// ask has the issuer answer h.
func (h hostile) ask(t *testing.T, invoke func(context.Context, events.APIGatewayProxyRequest) (events.APIGatewayProxyResponse, error), logs *bytes.Buffer) {
	const id = "0123456789abcdef"
	out, err := invoke(t.Context(), events.APIGatewayProxyRequest{
		Resource: h.path, Path: h.path, HTTPMethod: "POST", MultiValueHeaders: h.header,
		Body: base64.StdEncoding.EncodeToString(h.body), IsBase64Encoded: true,
		RequestContext: events.APIGatewayProxyRequestContext{RequestID: id},
	})
	must(t, err)
	status, refused := h.status, h.want
	switch h.name { // API Gateway and the front have caps of their own, which come first
	case "header-of-12-kb":
		status, refused = 431, string(headersTooLarge)
	case "body-of-12-kb":
		status, refused = 413, string(bodyTooLarge)
	}
	var line struct{ ID, Outcome, Refusal string }
	first, _, _ := bytes.Cut(logs.Bytes(), []byte("\n"))
	must(t, json.Unmarshal(first, &line))
	if line.ID == "" {
		line.ID = id
	}
	if want := strings.Replace(h.answer, `"*"`, strconv.Quote(line.ID), 1) + "\n"; out.StatusCode != status || status != 200 && out.Body != want {
		t.Errorf("answered %d %q, want %d %q", out.StatusCode, out.Body, status, want)
	}
	switch h.want {
	case "approved":
		refused = ""
		if strings.Contains(h.path, "/est/") { // base64 of PKCS #7, without line breaks
			der, err := base64.StdEncoding.Strict().DecodeString(out.Body)
			must(t, err)
			p7, err := pkcs7.Parse(der)
			must(t, err)
			if len(p7.Certificates) != 1 {
				t.Errorf("%d certificates", len(p7.Certificates))
			}
			break
		}
		var answer struct{ Certificate string }
		must(t, json.Unmarshal([]byte(out.Body), &answer))
		block, _ := pem.Decode([]byte(answer.Certificate))
		_, err := x509.ParseCertificate(block.Bytes)
		must(t, err)
	case string(server.TryLater):
		refused = ""
	}
	if line.Refusal != refused {
		t.Errorf("logged %s, want %q", logs, refused)
	}
	h.keepQuiet(t, logs)
}

// authorize has the authorizer say beforehand what the issuer would.
func (h hostile) authorize(t *testing.T, invoke func(context.Context, events.APIGatewayCustomAuthorizerRequestTypeRequest) (events.APIGatewayCustomAuthorizerResponse, error), logs *bytes.Buffer) {
	out, err := invoke(t.Context(), events.APIGatewayCustomAuthorizerRequestTypeRequest{
		Type: "REQUEST", MethodArn: calledMethod, HTTPMethod: "POST", Path: h.path, Resource: h.path, MultiValueHeaders: h.header,
	})
	var line struct{ Refusal string }
	must(t, json.Unmarshal(logs.Bytes(), &line))
	switch h.want {
	case string(server.TryLater):
		if err == nil || line.Refusal != "" {
			t.Errorf("authorized %+v, logged %s", out, logs)
		}
	case "approved":
		if err != nil || out.PolicyDocument.Statement[0].Effect != "Allow" {
			t.Errorf("authorized %+v, %v: %s", out, err, logs)
		}
	default:
		if err != nil || out.PolicyDocument.Statement[0].Effect != "Deny" || line.Refusal != h.want {
			t.Errorf("authorized %+v, %v: %s", out, err, logs)
		}
	}
	h.keepQuiet(t, logs)
}

// keepQuiet finds pieces of the request in a log: of a header that proves
// something, or of the body, in base64 or as it came.
func (h hostile) keepQuiet(t *testing.T, logs *bytes.Buffer) {
	const piece = 16
	texts := []string{base64.StdEncoding.EncodeToString(h.body)}
	if len(h.body) > 0 && h.body[0] != 0x30 { // in DER the device id is as in a log
		texts = append(texts, string(h.body))
	}
	for name, values := range h.header {
		for _, value := range values {
			if strings.HasPrefix(strings.ToLower(name), "device-") {
				texts = append(texts, value)
			}
			if inner, err := base64.StdEncoding.DecodeString(value); err == nil {
				texts = append(texts, string(inner))
			}
		}
	}
	for _, text := range texts {
		for at := 0; at+piece <= len(text); at++ {
			if found := text[at : at+piece]; strings.Contains(logs.String(), found) && !strings.Contains("-----BEGIN CERTIFICATE REQUEST-----", found) {
				t.Errorf("the log has %q of the request: %s", found, logs)
				return
			}
		}
	}
}
