package daemon

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"secretfree/cloud/issuer"
	"secretfree/cmd/internal/issuerd"
)

// enrolment is a device that asks an issuer over EST: its folder, and where the
// issuer is.
type enrolment struct {
	*testEnv
	host string // and port
	url  string // of the operations
}

func (e enrolment) command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = e.dir
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return out
}

// shell runs a line with the exit code of all its parts.
func (e enrolment) shell(t *testing.T, line string) []byte {
	t.Helper()
	return e.command(t, "bash", "-euo", "pipefail", "-c", line)
}

// estClient is a client that others wrote. Each writes what it got into files
// of PEM or DER.
type estClient interface {
	cacerts(t *testing.T, e enrolment) []byte
	enroll(t *testing.T, e enrolment) []byte
	reenroll(t *testing.T, e enrolment) []byte // with device.pem and device.key
}

// certificates reads PEM or DER, one or more.
func certificates(t *testing.T, data []byte) []*x509.Certificate {
	t.Helper()
	var der []byte
	for rest := data; ; {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		der, rest = append(der, block.Bytes...), after
	}
	if der == nil {
		der = data
	}
	all, err := x509.ParseCertificates(der)
	if err != nil || len(all) == 0 {
		t.Fatalf("no certificates: %v: %.200q", err, data)
	}
	return all
}

type globalsign struct{ path string }

func (c globalsign) run(t *testing.T, e enrolment, args ...string) []byte {
	return e.command(t, c.path, append(args, "-server", e.host, "-explicit", e.path("tls.crt"), "-aps", testSKU)...)
}

func (c globalsign) cacerts(t *testing.T, e enrolment) []byte { return c.run(t, e, "cacerts") }

func (c globalsign) enroll(t *testing.T, e enrolment) []byte {
	return c.run(t, e, "enroll", "-csr", "device.csr.pem")
}

func (c globalsign) reenroll(t *testing.T, e enrolment) []byte {
	return c.run(t, e, "reenroll", "-csr", "device.csr.pem", "-certs", "device.pem", "-key", "device.key")
}

type strongswan struct{ path string }

func (c strongswan) cacerts(t *testing.T, e enrolment) []byte {
	e.command(t, c.path, "--estca", "--url", "https://"+e.host, "--cacert", "tls.crt", "--caout", "got.pem", "--outform", "pem", "--force")
	// One file for each certificate.
	files, err := filepath.Glob(e.path("got*.pem"))
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	return all
}

func (c strongswan) enroll(t *testing.T, e enrolment) []byte {
	return e.command(t, c.path, "--est", "--url", "https://"+e.host, "--cacert", "tls.crt", "--in", "device.csr", "--cacert", "root.pem", "--cacert", "issuing.pem", "--outform", "pem")
}

func (c strongswan) reenroll(t *testing.T, e enrolment) []byte {
	return e.command(t, c.path, "--est", "--url", "https://"+e.host, "--cacert", "tls.crt", "--in", "device.csr", "--cacert", "root.pem", "--cacert", "issuing.pem", "--outform", "pem",
		"--cert", "device.pem", "--key", "device.key")
}

type plainCurl struct{}

func (plainCurl) cacerts(t *testing.T, e enrolment) []byte {
	return e.shell(t, "curl -sS --fail --cacert tls.crt "+e.url+"/cacerts | base64 -d | openssl pkcs7 -inform DER -print_certs")
}

func (plainCurl) post(t *testing.T, e enrolment, what string) []byte {
	return e.shell(t, "openssl base64 -in device.csr | curl -sS --fail --cacert tls.crt -H 'Content-Type: application/pkcs10' -H 'Content-Transfer-Encoding: base64' --data-binary @- "+
		e.url+what+" | base64 -d | openssl pkcs7 -inform DER -print_certs")
}

func (c plainCurl) enroll(t *testing.T, e enrolment) []byte { return c.post(t, e, "/simpleenroll") }

func (c plainCurl) reenroll(t *testing.T, e enrolment) []byte {
	return c.post(t, e, "/simplereenroll --cert device.pem --key device.key")
}

// clients are those that EST is tested with.
func clients(t *testing.T) map[string]func(*testing.T) estClient {
	const why = "run the test in .ci/est.sh run, which installs it"
	return map[string]func(t *testing.T) estClient{
		"globalsign": func(t *testing.T) estClient {
			name := os.Getenv("SECRETFREE_ESTCLIENT")
			if name == "" {
				name = "estclient"
			}
			return globalsign{peer(t, name, why)}
		},
		"strongSwan": func(t *testing.T) estClient { return strongswan{peer(t, "pki", why)} },
		"curl": func(t *testing.T) estClient {
			for _, name := range []string{"bash", "curl", "openssl", "base64"} {
				peer(t, name, "nothing speaks EST without it")
			}
			return plainCurl{}
		},
	}
}

// Three clients that others wrote learn the CA, enrol, and renew with what they
// got.
func TestESTClients(t *testing.T) {
	for name, client := range clients(t) {
		t.Run(name, func(t *testing.T) {
			c := client(t)
			p, _ := newTLSPlace(t, "")
			past := p.issueBefore(t, 48*time.Hour)
			d := p.run(t)
			for _, file := range []string{"root.pem", "issuing.pem"} {
				text, err := os.ReadFile(filepath.Join(p.ca, file))
				if err != nil {
					t.Fatal(err)
				}
				p.write(t, file, text)
			}
			p.write(t, "device.csr", p.request(t))
			p.write(t, "device.csr.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: p.request(t)}))
			e := enrolment{p, d.Addr(), "https://" + d.Addr() + "/.well-known/est/" + testSKU}

			var want [][]byte
			for _, file := range []string{"issuing.pem", "root.pem"} {
				text, err := os.ReadFile(p.path(file))
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, certificates(t, text)[0].Raw)
			}
			got := certificates(t, c.cacerts(t, e))
			for _, raw := range want {
				found := false
				for _, certificate := range got {
					found = found || bytes.Equal(certificate.Raw, raw)
				}
				if !found {
					t.Errorf("cacerts: %d certificates, not all of the chain", len(got))
				}
			}
			// The first is two days old by now, so that it may be renewed.
			first := certificates(t, c.enroll(t, e))[0]
			if !bytes.Equal(first.Raw, past.Leaf) {
				t.Error("enroll: another certificate than it has")
			}
			p.write(t, "device.pem", issuer.Certificate{Leaf: first.Raw}.LeafPEM())
			second := certificates(t, c.reenroll(t, e))[0]
			if bytes.Equal(second.Raw, first.Raw) || second.Subject.CommonName != p.device.String() || !second.NotAfter.After(first.NotAfter) {
				t.Errorf("reenroll: %v until %v, after one until %v", second.Subject, second.NotAfter, first.NotAfter)
			}
			if err := second.CheckSignatureFrom(certificates(t, want[0])[0]); err != nil {
				t.Error(err)
			}
			// Renewed again on its first day, it gets the same one.
			p.write(t, "device.pem", issuer.Certificate{Leaf: second.Raw}.LeafPEM())
			if again := certificates(t, c.reenroll(t, e))[0]; !again.Equal(second) {
				t.Error("reenroll again: another one")
			}
			_, metrics, _ := fetch(t, http.DefaultClient, "http://"+d.MetricsAddr()+"/metrics")
			if !strings.Contains(metrics, "issuerd_est_issued_total 3\n") {
				t.Errorf("the metrics:\n%s", metrics)
			}
		})
	}
}

// issueBefore gives the device its first certificate some time ago.
func (p *testEnv) issueBefore(t *testing.T, ago time.Duration) issuer.Certificate {
	t.Helper()
	c, err := issuerd.Load(p.path("issuerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := c.OpenIssuer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	policy, err := c.IssuerPolicy(nil)
	if err != nil {
		t.Fatal(err)
	}
	i, err := issuer.New(issuer.Config{Policy: policy, Registry: o.Registry, CAs: o.CAs, Claims: o.Claims, Now: func() time.Time { return time.Now().Add(-ago) }})
	if err != nil {
		t.Fatal(err)
	}
	request, err := issuer.ParseRequest(p.request(t))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := i.Issue(t.Context(), request, o.New)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	return certificate
}

// A client that shows a stranger's certificate in TLS enrols, and cannot renew.
func TestESTForeignPeer(t *testing.T) {
	p, first := newTLSPlace(t, "")
	d := p.run(t)
	client := trusting(first)
	foreign := &testEnv{dir: t.TempDir()}
	foreign.pair(t, "c.crt", "c.key", p.device.String(), time.Hour) // of the device's name, and nobody's
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = append(client.Transport.(*http.Transport).TLSClientConfig.Certificates, loadPair(t, foreign))
	for operation, want := range map[string]int{"simpleenroll": http.StatusOK, "simplereenroll": http.StatusForbidden} {
		response, err := client.Post("https://"+d.Addr()+"/.well-known/est/"+operation, "application/pkcs10", strings.NewReader(base64.StdEncoding.EncodeToString(p.request(t))))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != want {
			t.Errorf("%s: %s, %s", operation, response.Status, body)
		}
		if want != http.StatusOK {
			continue
		}
		der, err := base64.StdEncoding.DecodeString(string(body))
		if err != nil {
			t.Fatal(err)
		}
		if p7, err := pkcs7.Parse(der); err != nil || len(p7.Certificates) != 1 {
			t.Errorf("%v", err)
		}
	}
	if !strings.Contains(p.log.String(), `"refusal":"no-peer"`) {
		t.Error("the log has no refusal of that name")
	}
}

func loadPair(t *testing.T, p *testEnv) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.path("c.crt"), p.path("c.key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
