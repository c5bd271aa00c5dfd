package cloud

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	minidyn "github.com/truora/minidyn/server"

	"secretfree/station/board"
)

// peer finds a program, and skips the test without it; in CI it must be there.
// try is how it shows that it has what the test needs.
func peer(t *testing.T, name string, try ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		err = exec.CommandContext(t.Context(), path, try...).Run()
	}
	if err != nil {
		message := fmt.Sprintf("needs the peer %s %s: %v", name, strings.Join(try, " "), err)
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	return path
}

// verdict is what a peer makes of an item, as DynamoDB puts it on the wire, and
// of a request in PEM.
type verdict func(t *testing.T, form PubkeyFormat, item json.RawMessage, csr []byte) (allow bool, err error)

// byPython asks one process for all verdicts: it takes long to start.
func byPython(t *testing.T, python string) verdict {
	c := exec.CommandContext(context.Background(), python, "testdata/authorizer.py")
	in, err := c.StdinPipe()
	must(t, err)
	out, err := c.StdoutPipe()
	must(t, err)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	must(t, c.Start())
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), c.Wait()); err != nil {
			t.Errorf("%v\n%s", err, stderr.String())
		}
	})
	answers := bufio.NewScanner(out)
	return func(t *testing.T, form PubkeyFormat, item json.RawMessage, csr []byte) (bool, error) {
		line, err := json.Marshal(map[string]any{"item": item, "header": base64.StdEncoding.EncodeToString(csr), "form": form})
		must(t, err)
		if _, err := in.Write(append(line, '\n')); err != nil {
			return false, err
		}
		if !answers.Scan() {
			return false, fmt.Errorf("no answer: %w", cmp.Or(answers.Err(), io.EOF))
		}
		switch answers.Text() {
		case "allow", "deny":
			return answers.Text() == "allow", nil
		}
		return false, errors.New(answers.Text())
	}
}

func byOpenSSL(openssl string) verdict {
	return func(t *testing.T, form PubkeyFormat, item json.RawMessage, csr []byte) (bool, error) {
		var attributes struct {
			Pubkey struct{ S string } `json:"pubkey"`
		}
		must(t, json.Unmarshal(item, &attributes))
		stored := []byte(attributes.Pubkey.S)
		if form == PubkeyBase64PEM {
			var err error
			if stored, err = pipe(t.Context(), stored, openssl, "base64", "-d", "-A"); err != nil {
				return false, err
			}
		}
		known, err := pipe(t.Context(), stored, openssl, "pkey", "-pubin", "-pubout")
		if err != nil {
			return false, err
		}
		asks, err := pipe(t.Context(), csr, openssl, "req", "-noout", "-pubkey")
		return bytes.Equal(known, asks), err
	}
}

func pipe(ctx context.Context, input []byte, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	c.Stdin, c.Stderr = bytes.NewReader(input), &stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, stderr.String())
	}
	return out, nil
}

// rawItem asks the table without the SDK.
func rawItem(t *testing.T, url, table string, device board.DeviceID) json.RawMessage {
	t.Helper()
	body := fmt.Sprintf(`{"TableName":%q,"Key":{"device-id":{"S":%q}},"ConsistentRead":true}`, table, device)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	must(t, err)
	r.Header.Set("X-Amz-Target", "DynamoDB_20120810.GetItem")
	r.Header.Set("Content-Type", "application/x-amz-json-1.0")
	answer, err := http.DefaultClient.Do(r)
	must(t, err)
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	must(t, err)
	var got struct{ Item json.RawMessage }
	must(t, json.Unmarshal(data, &got))
	if len(got.Item) == 0 {
		t.Fatalf("no item of device %s: %s", device, data)
	}
	return got.Item
}

// TestReferenceReaders has others read what a Put and an import leave in the
// table, in each form of pubkey, as the reference's authorizers do, and decide
// on requests that are not ours either: the board's own, and another key's
// under the same name.
func TestReferenceReaders(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) verdict{
		"python":  func(t *testing.T) verdict { return byPython(t, peer(t, "python3", "-c", "import cryptography")) },
		"openssl": func(t *testing.T) verdict { return byOpenSSL(peer(t, "openssl", "version")) },
	} {
		t.Run(name, func(t *testing.T) { testReader(t, open(t)) })
	}
}

func testReader(t *testing.T, decide verdict) {
	openssl := peer(t, "openssl", "version")
	dynamo := serve(t, minidyn.NewServer())
	b := newAWSStore(t, dynamo, serve(t, gofakes3.New(s3mem.New(), gofakes3.WithLogger(gofakes3.DiscardLog())).Server()))
	n := 0
	for kind, generate := range map[string]func() (crypto.Signer, error){
		"P-256": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		"P-384": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
		"RSA":   func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	} {
		own, err := generate()
		must(t, err)
		other, err := generate()
		must(t, err)
		for _, form := range []PubkeyFormat{PubkeyBase64PEM, PubkeyPEM} {
			for _, way := range []string{"put", "imported"} {
				t.Run(fmt.Sprintf("%s/%s/%s", kind, form, way), func(t *testing.T) {
					n++
					r := recordOf(t, "line3-a", n, n)
					r.Key, err = board.NewKey(own.Public(), nil)
					must(t, err)
					registry := b.open(t, form)
					if way == "put" {
						must(t, registry.Put(t.Context(), seal(t, r)))
					} else {
						text := string(r.Key.PEM())
						if form == PubkeyBase64PEM {
							text = base64.StdEncoding.EncodeToString([]byte(text))
						}
						load(t, b, r.Device.String(), text)
						must(t, registry.Import(t.Context(), listLoaded(t, registry)[r.Device.String()], seal(t, r)))
					}
					item := rawItem(t, dynamo, b.config.Table, r.Device)
					for who, key := range map[string]crypto.Signer{"its own": own, "another's": other} {
						csr := requestBy(t, openssl, r.Device.String(), key)
						allow, err := decide(t, form, item, csr)
						if err != nil || allow != (who == "its own") {
							t.Errorf("%s request: allowed: %v, %v", who, allow, err)
						}
					}
					// The form matters: who reads the other one reads no key.
					wrong := PubkeyPEM
					if form == PubkeyPEM {
						wrong = PubkeyBase64PEM
					}
					if allow, err := decide(t, wrong, item, requestBy(t, openssl, r.Device.String(), own)); err == nil || allow {
						t.Errorf("read as %s: allowed: %v, %v", wrong, allow, err)
					}
					check(t, b)
					b.remove(t, r.Device.String()) // so that its key may be another's
					b.remove(t, guardPrefix+r.Fingerprint().String())
				})
			}
		}
	}
}

// requestBy lets OpenSSL make a request under a name.
func requestBy(t *testing.T, openssl, name string, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	file := filepath.Join(t.TempDir(), "board.key") // of a simulated board
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	csr, err := pipe(t.Context(), nil, openssl, "req", "-new", "-sha256", "-key", file, "-subj", "/CN="+name)
	must(t, err)
	return csr
}
