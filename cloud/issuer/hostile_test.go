package issuer_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud"
	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/server"
	"secretfree/station/board"
)

const hostileFolder = "testdata/hostile"

// hostile is a file of the corpus; its form is told in the folder's README.md.
type hostile struct {
	name   string
	want   string // a Refusal, or try-later, or approved
	clock  time.Time
	status int
	answer string

	path     string
	header   [][2]string
	body     []byte
	policy   []byte // TOML, as in issuerd's configuration
	stations []string
	registry []txtar.File
}

// hostileFiles are all of the corpus.
func hostileFiles(t testing.TB) []hostile {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(hostileFolder, "*.txt"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no files in %s: %v", hostileFolder, err)
	}
	var all []hostile
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		h, err := parseHostile(filepath.Base(name), data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, h)
	}
	return all
}

func parseHostile(name string, data []byte) (h hostile, err error) {
	archive := txtar.Parse(data)
	if !bytes.Equal(txtar.Format(archive), data) {
		return h, errors.New("it is not as it would be written")
	}
	parts := strings.Split(name, ".")
	if len(parts) != 3 || parts[2] != "txt" {
		return h, errors.New("want a name <flaw>.<expected>.txt")
	}
	h.name, h.want = parts[0], parts[1]
	told := false
	for line := range strings.Lines(string(archive.Comment)) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch {
		case strings.HasPrefix(line, "# "):
			told = true
		case ok && key == "clock" && h.clock.IsZero():
			h.clock, err = time.Parse(time.RFC3339, value)
		case ok && key == "status" && h.status == 0:
			h.status, err = strconv.Atoi(value)
		case ok && key == "answer" && h.answer == "":
			h.answer = value
		default:
			err = fmt.Errorf("the line %q", line)
		}
		if err != nil {
			return h, err
		}
	}
	if !told || h.clock.IsZero() || h.status == 0 || h.answer == "" {
		return h, errors.New("want # what is wrong, clock, status and answer")
	}
	for _, file := range archive.Files {
		switch {
		case file.Name == "request" && h.path == "":
			lines := strings.Split(strings.TrimSuffix(string(file.Data), "\n"), "\n")
			h.path = strings.TrimPrefix(lines[0], "POST ")
			for _, line := range lines[1:] {
				key, value, ok := strings.Cut(line, ": ")
				if !ok {
					return h, fmt.Errorf("the header %q", line)
				}
				h.header = append(h.header, [2]string{key, value})
			}
		case file.Name == "body":
			h.body = file.Data
		case file.Name == "body.base64":
			if h.body, err = base64.StdEncoding.DecodeString(string(file.Data)); err != nil {
				return h, err
			}
		case file.Name == "policy.toml":
			h.policy = file.Data
		case file.Name == "stations":
			h.stations = strings.Fields(string(file.Data))
		case strings.HasPrefix(file.Name, "items/"):
			h.registry = append(h.registry, file)
		default:
			return h, fmt.Errorf("the part %q", file.Name)
		}
	}
	if !strings.HasPrefix(h.path, "/") || len(h.stations) == 0 {
		return h, errors.New("want the parts request and stations")
	}
	return h, nil
}

// httpHeader is the header of h, without a client's or a server's touch.
func (h hostile) httpHeader() http.Header {
	header := http.Header{}
	for _, line := range h.header {
		header.Add(line[0], line[1])
	}
	return header
}

func (h hostile) parsePolicy(t testing.TB) issuer.Policy {
	t.Helper()
	var read struct {
		Policy struct {
			Algorithms       []board.Algorithm `toml:"algorithms"`
			RefuseSHA1       bool              `toml:"refuse_sha1"`
			AllowNoProof     bool              `toml:"allow_no_proof"`
			RequireChallenge bool              `toml:"require_challenge"`
			MinGeneration    int               `toml:"min_generation"`
			Holds            []struct {
				Station string    `toml:"station"`
				From    time.Time `toml:"from"`
				To      time.Time `toml:"to"`
				Why     string    `toml:"why"`
			} `toml:"hold"`
		} `toml:"policy"`
	}
	if err := toml.NewDecoder(bytes.NewReader(h.policy)).DisallowUnknownFields().Decode(&read); err != nil {
		t.Fatalf("policy.toml: %v", err)
	}
	r := read.Policy
	p := issuer.Policy{
		SKU: issuertest.SKU, Algorithms: r.Algorithms, RefuseSHA1: r.RefuseSHA1, AllowNoProof: r.AllowNoProof,
		RequireFresh: r.RequireChallenge, MinGeneration: r.MinGeneration, Challenges: issuertest.Challenges(t),
	}
	for _, hold := range r.Holds {
		p.Holds = append(p.Holds, issuer.LotHold(hold))
	}
	for _, public := range h.stations {
		v, err := note.NewVerifier(public)
		if err != nil {
			t.Fatal(err)
		}
		p.Stations = append(p.Stations, v)
	}
	return p
}

// open makes the registry of h.
func (h hostile) open(t testing.TB) issuer.Registry {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "registry")
	if err := cloud.InitDir(dir); err != nil {
		t.Fatal(err)
	}
	for _, file := range h.registry {
		if err := os.MkdirAll(filepath.Join(dir, "items"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(file.Name)), file.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	registry, err := cloud.OpenDir(cloud.DirConfig{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	return registry
}

// hostileCA is as old as the corpus.
func hostileCA(t *testing.T) issuer.CA {
	t.Helper()
	dir := t.TempDir()
	passphrase := filepath.Join(dir, "passphrase")
	if err := os.WriteFile(passphrase, []byte(catest.Passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) { // which begins with the year 2000
		time.Sleep(time.Until(corpusClock.AddDate(0, -1, 0)))
		if err := ca.InitLocal(ca.LocalInit{Dir: filepath.Join(dir, "ca"), Name: "Test", Passphrase: []byte(catest.Passphrase), Iterations: 1000}); err != nil {
			t.Fatal(err)
		}
	})
	authority, err := ca.OpenLocal(ca.LocalConfig{Dir: filepath.Join(dir, "ca"), PassphraseFile: passphrase})
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// Each file of the corpus is refused by its name, by Decide and over HTTP; a
// stranger reads one of three constants; nothing of the request is in the log.
func TestHostileCorpus(t *testing.T) {
	authority := hostileCA(t)
	for _, h := range hostileFiles(t) {
		t.Run(h.name+"."+h.want, func(t *testing.T) {
			h.checkExpected(t)
			registry, policy := h.open(t), h.parsePolicy(t)
			h.decide(t, registry, policy)
			h.serve(t, registry, policy, authority)
		})
	}
}

// checkExpected compares what h says of itself.
func (h hostile) checkExpected(t *testing.T) {
	outcome := server.Outcome(h.want)
	if refusal := issuer.Refusal(h.want); slices.Contains(refusalNames(t), h.want) {
		outcome, _ = server.Classify(refusal)
	}
	status, answer := 0, fmt.Sprintf(`{"error":%q,"id":"*"}`, outcome)
	switch outcome {
	case server.Malformed:
		status = 400
	case server.Refused:
		status = 403
	case server.TryLater:
		status = 503
	case "approved":
		status, answer = 200, "a certificate"
	}
	if h.status != status || h.answer != answer {
		t.Fatalf("%s is status %d, answer %s; the file says %d, %s", h.want, status, answer, h.status, h.answer)
	}
}

// decide asks what the doors ask, without one.
func (h hostile) decide(t *testing.T, registry issuer.Registry, policy issuer.Policy) {
	request, err := server.RequestFrom(h.httpHeader(), h.body)
	var approved issuer.Approved
	if err == nil {
		if strings.HasSuffix(h.path, "/simplereenroll") {
			request = request.AsRenewal()
		}
		var item *board.Enrolment
		if id, ok := request.Claimed(); ok {
			e, lookupErr := registry.Lookup(t.Context(), id)
			if lookupErr == nil {
				item = &e
			} else if !errors.Is(lookupErr, board.ErrNotEnrolled) {
				err = lookupErr
			}
		}
		if err == nil {
			approved, err = issuer.Decide(request, item, policy, h.clock)
		}
		if err == nil { // the device has had nothing yet
			if _, _, err = approved.Plan(nil, policy, h.clock); err != nil {
				approved = issuer.Approved{}
			}
		}
	}
	outcome, refusal := server.Classify(err)
	got := string(refusal)
	switch outcome {
	case server.Issued:
		got = "approved"
	case server.TryLater:
		got = string(server.TryLater)
	}
	if got != h.want || (approved != (issuer.Approved{})) != (h.want == "approved") {
		t.Errorf("decided %q (%v), want %q", got, err, h.want)
	}
}

// serve sends h to a real server, as it is.
func (h hostile) serve(t *testing.T, registry issuer.Registry, policy issuer.Policy, authority issuer.CA) {
	claims, counting := &issuertest.Claims{}, &issuertest.CountingCA{CA: authority}
	i, err := issuer.New(issuer.Config{
		Policy: policy, Registry: registry, Claims: claims, CAs: map[string]issuer.CA{issuertest.CAName: counting}, Now: func() time.Time { return h.clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	var decisions []server.Decision
	var logs bytes.Buffer
	handler, err := server.NewHandler(server.HandlerConfig{Issuer: i, New: issuertest.CAName, Proto: issuertest.CAName, Challenges: policy.Challenges, Log: func(d server.Decision) {
		decisions = append(decisions, d)
		fmt.Fprintf(&logs, "%+v\n", d)
	}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.ErrorLog = log.New(&logs, "", 0)
	srv.Config.MaxHeaderBytes = 64 << 10
	srv.Start()
	status, answer := h.send(t, srv.Listener.Addr())
	srv.Close() // waits for the handler, and so for the log

	if len(decisions) != 1 {
		t.Fatalf("%d decisions were logged", len(decisions))
	}
	d := decisions[0]
	want := strings.Replace(h.answer, `"*"`, strconv.Quote(d.ID), 1) + "\n"
	if status != h.status || h.want != "approved" && answer != want {
		t.Errorf("answered %d %q, want %d %q", status, answer, h.status, want)
	}
	refusal := issuer.Refusal(h.want)
	if h.want == "approved" || h.want == string(server.TryLater) {
		refusal = ""
	}
	if d.Refusal != refusal {
		t.Errorf("logged the refusal %q (%v), want %q", d.Refusal, d.Err, refusal)
	}
	if made := len(counting.Issued); (made == 1) != (h.want == "approved") || (len(claims.Snapshot()) == 1) != (h.want == "approved") {
		t.Errorf("%d certificates, %d claims", made, len(claims.Snapshot()))
	}
	if leaked := h.leak(logs.String()); leaked != "" {
		t.Errorf("the log has %q of the request: %s", leaked, &logs)
	}
}

// send writes the bytes of h itself, because a client would put them right.
func (h hostile) send(t *testing.T, to net.Addr) (status int, answer string) {
	conn, err := net.Dial(to.Network(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var text bytes.Buffer
	fmt.Fprintf(&text, "POST %s HTTP/1.1\r\nHost: issuer\r\nConnection: close\r\nContent-Length: %d\r\n", h.path, len(h.body))
	for _, line := range h.header {
		fmt.Fprintf(&text, "%s: %s\r\n", line[0], line[1])
	}
	text.WriteString("\r\n")
	text.Write(h.body)
	if _, err := conn.Write(text.Bytes()); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(got)
}

// leak finds a piece of the request in a log: of a header that proves
// something, or of the body, in base64 or as it came.
func (h hostile) leak(logs string) string {
	const (
		piece = 16
		label = "-----BEGIN CERTIFICATE REQUEST-----"
	)
	texts := []string{base64.StdEncoding.EncodeToString(h.body)}
	if len(h.body) > 0 && h.body[0] != 0x30 { // in DER the device id is as in a log
		texts = append(texts, string(h.body))
	}
	for _, line := range h.header {
		if strings.HasPrefix(strings.ToLower(line[0]), "device-") {
			texts = append(texts, line[1])
		}
		if inner, err := base64.StdEncoding.DecodeString(line[1]); err == nil {
			texts = append(texts, string(inner))
		}
	}
	for _, text := range texts {
		for at := 0; at+piece <= len(text); at++ {
			if strings.Contains(logs, text[at:at+piece]) && !strings.Contains(label, text[at:at+piece]) {
				return text[at : at+piece]
			}
		}
	}
	return ""
}

// A search for leaks that finds none must be able to.
func TestHostileLeakIsFound(t *testing.T) {
	for _, h := range hostileFiles(t) {
		if h.name != "plain" {
			continue
		}
		value := h.header[0][1]
		inner, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		for _, logs := range []string{"x" + value[100:120], "x" + string(inner[60:80])} {
			if h.leak(logs) == "" {
				t.Errorf("%q is not found", logs)
			}
		}
		return
	}
	t.Error("there is no file plain")
}

// elsewhere are the refusals that no single request reaches, and the tests that
// do.
var elsewhere = map[issuer.Refusal]struct{ why, test string }{
	issuer.ItemMismatch:       {"a registry gives no item of another device: it says that it is damaged", "TestDecideRefuses"},
	issuer.StateUnknown:       {"a registry gives no signed item without a state: it says that it is damaged", "TestDecideRefuses"},
	issuer.ChallengeReplayed:  {"it takes an earlier issuance", "TestPlan"},
	issuer.CertificateExpired: {"it takes an earlier issuance", "TestIssueAfterExpiry"},
	issuer.CertificateRevoked: {"it takes an earlier issuance", "TestPlan"},
}

// Every refusal has a file, or a test of its own.
func TestHostileCorpusIsComplete(t *testing.T) {
	files := map[string]int{}
	for _, h := range hostileFiles(t) {
		files[h.want]++
	}
	names := refusalNames(t)
	for _, name := range names {
		other, excused := elsewhere[issuer.Refusal(name)]
		switch {
		case files[name] == 0 && !excused:
			t.Errorf("no file is refused as %s", name)
		case files[name] > 0 && excused:
			t.Errorf("%s has a file, and an excuse: %s", name, other.why)
		case excused && !testExists(t, other.test):
			t.Errorf("%s: there is no test %s", name, other.test)
		}
		delete(files, name)
	}
	for _, other := range []string{"approved", string(server.TryLater)} {
		if files[other] == 0 {
			t.Errorf("no file is %s", other)
		}
		delete(files, other)
	}
	if len(files) > 0 {
		t.Errorf("unknown expectations: %v", files)
	}
}

// refusalNames are the values of the constants of type Refusal, from their
// source.
func refusalNames(t testing.TB) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Refusal" {
			for _, value := range spec.Values {
				name, err := strconv.Unquote(value.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, name)
			}
		}
		return true
	})
	if len(names) < 30 {
		t.Fatalf("only %d refusals were found", len(names))
	}
	return names
}

func testExists(t testing.TB, name string) bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte("\nfunc "+name+"(")) {
			return true
		}
	}
	return false
}

// What is no file of the corpus is not taken for one.
func TestHostileFormIsStrict(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(hostileFolder, "plain.approved.txt"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	good, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseHostile("plain.approved.txt", good); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"# ", "#"}, {"clock: ", "time: "}, {"status: 200\n", ""}, {"status: ", "status: 4"}, {"-- request --", "-- demand --"},
		{"-- stations --", "-- station --"}, {"POST /new", "GET new"}, {"device-csr: ", "device-csr "},
	} {
		bad := strings.Replace(string(good), change[0], change[1], 1)
		h, err := parseHostile("plain.approved.txt", []byte(bad))
		if err == nil && h.status == 200 {
			t.Errorf("%q in the place of %q was taken", change[1], change[0])
		}
	}
	for _, name := range []string{"plain.txt", "plain.approved", "a.b.c.txt"} {
		if _, err := parseHostile(name, good); err == nil {
			t.Errorf("the name %s was taken", name)
		}
	}
}
