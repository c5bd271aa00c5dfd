package stationd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// Every refusal names the file, the line and the remedy.
func TestConfigRefusals(t *testing.T) {
	const good = `station = "line3-a"
sku = "widgiot"
state_dir = "/var/lib/stationd"
listen = "127.0.0.1:8080"
hosts = ["line3-a.factory.example"]
[[slot]]
name = "A"
port = "/dev/serial/by-path/one"
dialect = "ti-at"
[[slot]]
name = "B"
port = "/dev/serial/by-path/two"
dialect = "auto"
[policy]
algorithms = ["P-256"]
lot = "/srv/lot.txt"
[transcripts]
failed = 1
passed = 0
max_mib = 1
[registry]
kind = "dir"
dir = "/srv/registry"
[log]
level = "info"
[export]
trusted_receipts = []
`
	load := func(t *testing.T, text string) (string, error) {
		name := filepath.Join(t.TempDir(), "stationd.toml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(name)
		return name, err
	}
	if _, err := load(t, good); err != nil {
		t.Fatal(err)
	}
	long := "/" + strings.Repeat("x", maxStateDir)
	for _, c := range []struct{ old, new, want string }{
		{`"line3-a"`, `"Line 3"`, `:1: station is "Line 3". Write 1 to 63 of a-z`},
		{`"widgiot"`, `""`, `:2: sku is "". Write 1 to 63 of a-z`},
		{`"/var/lib/stationd"`, `"state"`, `:3: state_dir is "state". Write the absolute path`},
		{`"/var/lib/stationd"`, `"` + long + `"`, fmt.Sprintf(":3: state_dir has %d bytes. Write a shorter path, of %d bytes", len(long), maxStateDir)},
		{`"127.0.0.1:8080"`, `"nonsense"`, `:4: listen is "nonsense". Write an address and a port`},
		{`"127.0.0.1:8080"`, `"127.0.0.1:99999"`, `:4: listen is "127.0.0.1:99999". Write`},
		{`"127.0.0.1:8080"`, `"127.0.0.1:http"`, `:4: listen is "127.0.0.1:http". Write`},
		{`"127.0.0.1:8080"`, `"127.0.0.1:"`, `:4: listen is "127.0.0.1:". Write`},
		{`"127.0.0.1:8080"`, `"127.0.0.300:8080"`, `:4: listen is "127.0.0.300:8080". Write`},
		{`"127.0.0.1:8080"`, `"a b:8080"`, `:4: listen is "a b:8080". Write`},
		{`"127.0.0.1:8080"`, `"http://localhost:8080"`, `:4: listen is "http://localhost:8080". Write`},
		{`["line3-a.factory.example"]`, `["http://line3-a"]`, `:5: hosts has "http://line3-a". Write names alone`},
		{`["line3-a.factory.example"]`, `["line3-a:8080"]`, `:5: hosts has "line3-a:8080". Write names alone`},
		{`["line3-a.factory.example"]`, `"line3-a"`, `:5: hosts takes a list of texts, and this is a text.`},
		{`name = "B"`, `name = " B"`, `:11: the name of slot 2 is " B". Write 1 to 32`},
		{`name = "B"`, `name = "A"`, `:11: slots 1 and 2 are both named "A". Give`},
		{`by-path/two`, `by-path/../by-path/one`, `:12: slots 1 and 2 both use`},
		{`"/dev/serial/by-path/two"`, `"ttyUSB0"`, `:12: the port of slot "B" is "ttyUSB0". Write`},
		{`"auto"`, `"at"`, `:13: the dialect of slot "B" is "at". Write one of`},
		{`["P-256"]`, `["P-521"]`, `:15: policy.algorithms has "P-521". Write some of`},
		{`["P-256"]`, `["RSA"]`, `:15: policy.algorithms is ["RSA"]. Add "P-256"`},
		{`"/srv/lot.txt"`, `"lot.txt"`, `:16: policy.lot is "lot.txt". Write the absolute path`},
		{`failed = 1`, `failed = 0`, `:18: transcripts.failed is 0. Write a number from 1 to`},
		{`max_mib = 1`, `max_mib = 1000000`, `:20: transcripts.max_mib is 1000000. Write a number`},
		{`"/srv/registry"`, `"registry"`, `:23: registry.dir is "registry". Write`},
		{`"dir"`, `"none"`, `:21: registry.kind is "none", and there is more. Remove`},
		{`"info"`, `"loud"`, `:25: log.level is "loud". Write`},
		{`trusted_receipts = []`, `trusted_receipts = ["x"]`, `:27: export.trusted_receipts: key 1 is no public key. Write`},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("there is no %s", c.old)
		}
		if name, err := load(t, text); err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), name+":") {
			t.Errorf("%s: %v, want %s", c.new, err, c.want)
		}
	}
	for _, listen := range []string{":8080", "0.0.0.0:80", "[::1]:8080", "localhost:65535", "line3_a:8080", "line3-a.factory.example:8080"} {
		if _, err := load(t, strings.Replace(good, "127.0.0.1:8080", listen, 1)); err != nil {
			t.Errorf("listen = %q: %v", listen, err)
		}
	}
}

// The longest path that is allowed can be listened in; one byte more cannot.
func TestLongestStateDir(t *testing.T) {
	f := newFactory(t)
	f.state = filepath.Join(f.dir, strings.Repeat("x", maxStateDir-len(f.dir)-1))
	d := f.start()
	control, err := OpenControl(f.state, nil)
	if err != nil || control.client == nil {
		t.Errorf("the control socket: %+v, %v", control, err)
	}
	d.stop()
	c := f.config()
	c.StateDir += "x"
	if _, err := Open(t.Context(), c, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "choose one of 94 at the most") {
		t.Errorf("one byte more: %v", err)
	}
	// A copy of a station may lie deeper; nothing runs there, and stationctl looks into its files.
	if err := os.RemoveAll(c.StateDir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.state, c.StateDir); err != nil {
		t.Fatal(err)
	}
	if control, err = OpenControl(c.StateDir, nil); err != nil || control.client != nil {
		t.Fatalf("a copy: %+v, %v", control, err)
	}
	if _, err := control.Sign(t.Context()); err != nil {
		t.Errorf("a copy: %v", err)
	}
	if err := control.Close(); err != nil {
		t.Error(err)
	}
}
