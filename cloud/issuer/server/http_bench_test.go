package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/claims"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/station/board"
)

// benchClients ask at once, each over a connection of its own that stays open.
const benchClients = 8

// benchRound is how many fresh devices ask in one round: few, so that what else
// the machine does falls on both sides.
const benchRound = 10 * benchClients

// BenchmarkHTTPBare sets first certificates of fresh devices against a handler
// that parses the request, checks its signature and signs, both in a process of
// their own. of-bare is how many certificates a second there are where the bare
// handler gives 1; the median of the rounds counts. Asked: 0.7 or more.
func BenchmarkHTTPBare(b *testing.B) {
	factory := issuertest.NewStation(b, issuertest.SKU, "line3-a")
	ours := startServed(b, factory, served{})
	bare := asked{name: "bare", url: ours.base + "/bare", client: ours.client, body: requestBody}
	alone := ours.asked()
	alone.accept, alone.certificate = "application/x-pem-file", nil // as the bare handler answers
	compare(b, factory, ours, alone, bare, "of-bare")
}

// asked is what a round asks.
type asked struct {
	name   string
	url    string
	accept string
	client func() *http.Client
	body   func(fresh) (contentType string, body []byte)
	// certificate is the PEM in an answer; nil: the answer as it is.
	certificate func([]byte) (string, error)
}

// fresh is a device that has never asked.
type fresh struct {
	issuertest.Board
	item board.Enrolment
	der  []byte
	pem  []byte
}

func freshDevices(b *testing.B, factory issuertest.Station, n int) (out []fresh) {
	b.Helper()
	for range n {
		device := issuertest.NewBoard(b)
		request := device.CSR()
		request.SHA256 = true // which all of them take
		der := request.DER(b)
		out = append(out, fresh{device, issuertest.Enrolment(b, device.Record(b, factory), factory), der,
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})})
	}
	return out
}

// compare runs rounds of both in turn, each round the other first, so that
// whatever else the machine does hits both alike.
func compare(b *testing.B, factory issuertest.Station, known process, ours, theirs asked, metric string) {
	b.Helper()
	var ratios []float64
	var took [2]time.Duration
	clients := [2][]*http.Client{}
	for i, t := range []asked{ours, theirs} {
		for range benchClients {
			clients[i] = append(clients[i], t.client())
		}
	}
	round := func(first int) (round [2]time.Duration) {
		devices := freshDevices(b, factory, benchRound)
		known.enrol(b, devices)
		for _, i := range []int{first, 1 - first} {
			round[i] = []asked{ours, theirs}[i].ask(b, clients[i], devices)
		}
		return round
	}
	round(0) // connections, and what is made at the first time
	n := 0
	for b.Loop() {
		one := round(n % 2)
		n++
		ratios = append(ratios, float64(one[1])/float64(one[0]))
		took[0], took[1] = took[0]+one[0], took[1]+one[1]
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], metric)
	b.ReportMetric(ratios[0], "least")
	b.ReportMetric(ratios[len(ratios)-1], "most")
	b.ReportMetric(float64(n*benchRound)/took[0].Seconds(), "ours/s")
	b.ReportMetric(float64(n*benchRound)/took[1].Seconds(), theirs.name+"/s")
	b.ReportMetric(0, "ns/op") // a round's preparation tells nothing
}

// ask has every device ask once, and returns how long that took. Each must get
// a certificate for its key.
func (t asked) ask(b *testing.B, clients []*http.Client, devices []fresh) time.Duration {
	b.Helper()
	requests, answers := make([]*http.Request, len(devices)), make([][]byte, len(devices))
	for i, d := range devices {
		kind, body := t.body(d)
		r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, t.url, bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		r.Header.Set("Content-Type", kind)
		if t.accept != "" {
			r.Header.Set("Accept", t.accept)
		}
		requests[i] = r
	}
	var asking sync.WaitGroup
	failed := make([]error, len(clients))
	start := time.Now()
	for c, client := range clients {
		asking.Go(func() {
			for i := c; i < len(requests) && failed[c] == nil; i += len(clients) {
				answers[i], failed[c] = answerOf(client, requests[i])
			}
		})
	}
	asking.Wait()
	took := time.Since(start)
	if err := errors.Join(failed...); err != nil {
		b.Fatalf("%s: %v", t.name, err)
	}
	for i, d := range devices {
		text := string(answers[i])
		if t.certificate != nil {
			var err error
			if text, err = t.certificate(answers[i]); err != nil {
				b.Fatalf("%s: %v", t.name, err)
			}
		}
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			b.Fatalf("%s answered %q", t.name, answers[i])
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !d.Key.Public().(*ecdsa.PublicKey).Equal(leaf.PublicKey) || leaf.Subject.CommonName != d.ID.String() {
			b.Fatalf("%s answered another certificate, or none: %v", t.name, err)
		}
	}
	return took
}

func answerOf(client *http.Client, r *http.Request) ([]byte, error) {
	response, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return text, err
}

// jsonField takes a certificate out of an answer in JSON.
func jsonField(path ...string) func([]byte) (string, error) {
	return func(answer []byte) (string, error) {
		var at any
		if err := json.Unmarshal(answer, &at); err != nil {
			return "", err
		}
		for _, name := range path {
			object, _ := at.(map[string]any)
			at = object[name]
		}
		text, ok := at.(string)
		if !ok {
			return "", fmt.Errorf("there is no %v in %s", path, answer)
		}
		return text, nil
	}
}

// served is an issuer in a process of its own, which is this program once more:
// see TestMain.
type served struct {
	CA      string // the folder that holds ca and passphrase
	Station string // its public key
	Claims  string // a folder of claims; empty: in memory
	TLS     string // a folder with tls.pem and tls.key; empty: plain HTTP
}

const servedSetting = "SECRETFREE_TEST_SERVED"

// serveAsTold is what the process does: it prints its address, and ends when
// its standard input does.
func serveAsTold(setting string) error {
	var s served
	if err := json.Unmarshal([]byte(setting), &s); err != nil {
		return err
	}
	authority, err := ca.OpenLocal(ca.LocalConfig{Dir: filepath.Join(s.CA, "ca"), PassphraseFile: filepath.Join(s.CA, "passphrase")})
	if err != nil {
		return err
	}
	trusted, err := note.NewVerifier(s.Station)
	if err != nil {
		return err
	}
	config := issuer.Config{
		Policy: issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{trusted}}, Registry: new(issuertest.Registry),
		CAs: map[string]issuer.CA{issuertest.CAName: authority}, Claims: new(claimsByDevice),
	}
	if s.Claims != "" {
		if config.Claims, err = claims.OpenDir(s.Claims); err != nil {
			return err
		}
	}
	iss, err := issuer.New(config)
	if err != nil {
		return err
	}
	handler, err := NewHandler(HandlerConfig{Issuer: iss, New: issuertest.CAName, Proto: issuertest.CAName})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.Handle("POST /bare", bareIssuer{authority})
	mux.HandleFunc("PUT /registry", func(w http.ResponseWriter, r *http.Request) {
		var envelopes [][]byte
		err := json.NewDecoder(r.Body).Decode(&envelopes)
		for _, envelope := range envelopes {
			sealed, openErr := board.OpenEnvelope(envelope, trusted)
			err = errors.Join(err, openErr)
			config.Registry.(*issuertest.Registry).Put(issuertest.EnrolmentOf(sealed))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	// As issuerd has it.
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 45 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 10 << 10}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	if s.TLS != "" {
		err = server.ServeTLS(listener, filepath.Join(s.TLS, "tls.pem"), filepath.Join(s.TLS, "tls.key"))
	} else {
		err = server.Serve(listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// bareIssuer does what no issuer can do without, and nothing else: parse, check
// the request's signature, sign.
type bareIssuer struct{ ca *ca.Local }

func (h bareIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	leaf, err := h.issue(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: leaf})
}

func (h bareIssuer) issue(r *http.Request) ([]byte, error) {
	der, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	var serial issuer.Serial
	_, _ = rand.Read(serial[:]) // never fails (crypto/rand)
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial.Int(), Subject: csr.Subject, NotBefore: time.Now(), NotAfter: time.Now().Add(issuer.DefaultValidity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}, h.ca.Issuing(), csr.PublicKey, h.ca.Signer(r.Context()))
}

// claimsByDevice keeps claims in memory, and finds those of a device without
// looking at all others.
type claimsByDevice struct{ of sync.Map }

func (c *claimsByDevice) device(d board.DeviceID) *issuertest.Claims {
	m, _ := c.of.LoadOrStore(d, new(issuertest.Claims))
	return m.(*issuertest.Claims)
}

func (c *claimsByDevice) Issuances(ctx context.Context, d board.DeviceID) ([]issuer.Issuance, error) {
	return c.device(d).Issuances(ctx, d)
}

func (c *claimsByDevice) Create(ctx context.Context, i issuer.Issuance) (issuer.Issuance, error) {
	return c.device(i.Claim.Device).Create(ctx, i)
}

func (c *claimsByDevice) Replace(ctx context.Context, i issuer.Issuance) (issuer.Issuance, error) {
	return c.device(i.Claim.Device).Replace(ctx, i)
}

func (c *claimsByDevice) Serial(context.Context, issuer.Serial) (issuer.Issuance, error) {
	return issuer.Issuance{}, issuer.ErrNoClaim
}

func (c *claimsByDevice) All(context.Context) iter.Seq2[issuer.Issuance, error] {
	return func(func(issuer.Issuance, error) bool) {}
}

// process is a server of a benchmark.
type process struct {
	base  string      // of its URLs
	roots *tls.Config // nil: plain HTTP
}

func (p process) client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: p.roots, MaxIdleConnsPerHost: 1, MaxConnsPerHost: 1}}
}

// startServer runs a server until the benchmark ends. Its output is shown if it
// failed to start.
func startServer(b *testing.B, env []string, program string, args ...string) (output io.Reader) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), program, args...) // killed at the end, should it not end by itself
	cmd.Env = append(os.Environ(), env...)
	if os.Getenv("SECRETFREE_BENCH_OUTPUT") != "" {
		cmd.Stderr = os.Stderr
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	return stdout
}

// startServed starts an issuer; CA and Station are filled in.
func startServed(b *testing.B, factory issuertest.Station, s served) process {
	b.Helper()
	parent, err := catest.Dir()
	if err != nil {
		b.Fatal(err)
	}
	s.CA, s.Station = parent, factory.Public
	setting, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	line, err := bufio.NewReader(startServer(b, []string{servedSetting + "=" + string(setting)}, os.Args[0])).ReadString('\n')
	if err != nil {
		b.Fatal("the issuer does not start")
	}
	p := process{base: "http://" + strings.TrimSpace(line)}
	if s.TLS != "" {
		text, err := os.ReadFile(filepath.Join(s.TLS, "tls.pem"))
		if err != nil {
			b.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(text)
		p = process{base: "https://" + strings.TrimSpace(line), roots: &tls.Config{RootCAs: roots}}
	}
	return p
}

// enrol puts devices into the registry of an issuer.
func (p process) enrol(b *testing.B, devices []fresh) {
	b.Helper()
	envelopes := make([][]byte, len(devices))
	for i, d := range devices {
		envelopes[i] = d.item.Envelope
	}
	body, err := json.Marshal(envelopes)
	if err != nil {
		b.Fatal(err)
	}
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPut, p.base+"/registry", bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := answerOf(p.client(), r); err != nil {
		b.Fatal(err)
	}
}

func (p process) asked() asked {
	return asked{name: "ours", url: p.base + "/new", client: p.client, body: requestBody, certificate: jsonField("certificate")}
}

func requestBody(d fresh) (string, []byte) { return "application/pkcs10", d.der }
