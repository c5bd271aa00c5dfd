package stationd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/stationconf"
)

// socketEnv names the configuration of a child of TestSocketPassed.
const socketEnv = "SECRETFREE_TEST_SOCKET"

func TestSocketDaemon(t *testing.T) {
	name := os.Getenv(socketEnv)
	if name == "" {
		t.Skip("it is a part of TestSocketPassed")
	}
	c, err := stationconf.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := Serve(ctx, c, zerolog.New(os.Stderr)); err != nil {
		t.Fatal(err)
	}
}

// started is a daemon that systemd, in the shape of a shell, hands a socket to,
// by a name. LISTEN_PID must be the daemon's own.
func (f *factory) started(name string, l *net.TCPListener) (*exec.Cmd, *lockedBuffer) {
	f.t.Helper()
	f.config()
	path := filepath.Join(f.dir, "stationd.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	// An address that nobody may open.
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), "127.0.0.1:0", "127.0.0.1:1", 1)), 0o600); err != nil {
		f.t.Fatal(err)
	}
	file, err := l.File()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { file.Close() })
	log := new(lockedBuffer)
	c := exec.CommandContext(f.t.Context(), "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=`+name+` exec "$0" -test.run='^TestSocketDaemon$'`, os.Args[0])
	c.Env = append(os.Environ(), socketEnv+"="+path)
	c.ExtraFiles, c.Stdout, c.Stderr = []*os.File{file}, log, log
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	return c, log
}

func listenOn(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// The socket that systemd opened is served in the place of the address of the
// configuration; who came before the daemon was there is answered.
func TestSocketPassed(t *testing.T) {
	l := listenOn(t, "127.0.0.1:0")
	early := make(chan error, 1)
	go func() {
		client := &http.Client{Timeout: 30 * time.Second}
		answer, err := client.Get("http://" + l.Addr().String() + "/status")
		if err == nil {
			answer.Body.Close()
		}
		early <- err
	}()
	c, log := newFactory(t).started("listen", l)
	if err := <-early; err != nil {
		t.Errorf("the early request: %v", err)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
}

// A socket of another name, and one that a network reaches where nothing
// protects the page, are refused; the error says what to write.
func TestSocketRefused(t *testing.T) {
	for _, refused := range []struct{ name, address, want string }{
		{"page", "127.0.0.1:0", `systemd hands over a socket named "page": write FileDescriptorName=listen into its unit`},
		{"listen", "0.0.0.0:0", `which others reach, and there is neither TLS nor a token: write a table [access] into the configuration, or ListenStream=127.0.0.1:8080 into the unit`},
	} {
		c, log := newFactory(t).started(refused.name, listenOn(t, refused.address))
		if err := c.Wait(); err == nil || !strings.Contains(log.String(), refused.want) {
			t.Errorf("%s on %s: %v\n%s", refused.name, refused.address, err, log)
		}
	}
}

// A socket that a network reaches makes nobody a technician, whatever the
// configuration says of an address: with TLS alone who reaches it may look, and
// tokens without TLS are told of.
func TestSocketOnNetwork(t *testing.T) {
	f := newFactory(t)
	certificate, key, leaf := f.pair("line3-a")
	f.extra = fmt.Sprintf("[access]\ntls_cert = %q\ntls_key = %q\n", certificate, key)
	l := listenOn(t, "0.0.0.0:0")
	c, log := f.started("listen", l)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	page := fmt.Sprintf("https://127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port)
	for _, ask := range []struct {
		method, path string
		want         int
	}{{http.MethodGet, "/status", 200}, {http.MethodPost, "/lot", 403}, {http.MethodPost, "/scan", 403}} {
		request, err := http.NewRequestWithContext(t.Context(), ask.method, page+ask.path, strings.NewReader("name=evil&text=evil"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		answer, err := client.Do(request)
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		answer.Body.Close()
		if answer.StatusCode != ask.want {
			t.Errorf("%s %s of a stranger: %s, want %d", ask.method, ask.path, answer.Status, ask.want)
		}
	}
	if err := errors.Join(c.Process.Signal(syscall.SIGTERM), c.Wait()); err != nil {
		t.Errorf("%v\n%s", err, log)
	}

	f = newFactory(t)
	view := filepath.Join(f.dir, "view")
	f.file(view, "view-token-0123456789")
	f.extra = fmt.Sprintf("[access]\nview_token_file = %q\n", view)
	l = listenOn(t, "0.0.0.0:0")
	c, log = f.started("listen", l)
	answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/status", l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	answer.Body.Close()
	if err := errors.Join(c.Process.Signal(syscall.SIGTERM), c.Wait()); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	if answer.StatusCode != 401 || !strings.Contains(log.String(), "tokens cross the network unencrypted") {
		t.Errorf("tokens without TLS: %s\n%s", answer.Status, log)
	}
}
