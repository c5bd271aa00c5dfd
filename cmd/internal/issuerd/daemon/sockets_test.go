package daemon

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// attempt asks until somebody answers; the kernel has the connection wait
// meanwhile.
func attempt(t *testing.T, method, url string, body []byte) (status int) {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second}
	request, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/pkcs10")
	response, err := client.Do(request)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer response.Body.Close()
	return response.StatusCode
}

// self is this test as a daemon.
func (p *testEnv) self(t *testing.T, wrapper ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(wrapper, exe)
	c := exec.Command(args[0], args[1:]...)
	c.Env = append(os.Environ(), childConfig+"="+p.path("issuerd.toml"))
	c.Stdout, c.Stderr = p.log, p.log
	return c
}

func listenLoopback(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// Sockets that are passed by name are served, in the place of the addresses of
// the configuration; a request that came before the daemon was there is
// answered.
func TestSocketsPassed(t *testing.T) {
	p := newTestEnv(t, "listen = \"127.0.0.1:1\"", "") // which nobody may open
	main, metrics := listenLoopback(t), listenLoopback(t)
	// A shell, because LISTEN_PID must be the daemon's own.
	c := p.self(t, "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=metrics:listen exec "$0"`)
	for _, l := range []*net.TCPListener{metrics, main} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c.ExtraFiles = append(c.ExtraFiles, f)
	}
	der := p.request(t)
	early := make(chan int)
	go func() { early <- attempt(t, "POST", "http://"+main.Addr().String()+"/new", der) }()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if status := <-early; status != http.StatusOK {
		t.Errorf("the early request: %d", status)
	}
	if status := attempt(t, "GET", "http://"+metrics.Addr().String()+"/metrics", nil); status != http.StatusOK {
		t.Errorf("the metrics: %d", status)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("%s", p.log)
	}
}

// The first connection starts it, as issuerd.socket does.
func TestSocketActivate(t *testing.T) {
	tool := peer(t, "systemd-socket-activate", "systemd itself starts no issuer here")
	p := newTestEnv(t, "", "")
	l := listenLoopback(t)
	address := l.Addr().String()
	l.Close()
	c := p.self(t, tool, "--listen="+address, "--fdname=listen", "--setenv="+childConfig)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Signal(syscall.SIGTERM)
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close() // it counts as the first
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens: %v\n%s", err, p.log)
		}
	}
	if status := attempt(t, "POST", "http://"+address+"/new", p.request(t)); status != http.StatusOK {
		t.Errorf("%d\n%s", status, p.log)
	}
}
