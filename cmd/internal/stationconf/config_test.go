package stationconf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/cmd/internal/control"
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
[page]
language = "de"
contact_it = "Ana, ext. 4711"
contact_quality = ""
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
	long := "/" + strings.Repeat("x", control.MaxStateDir)
	for _, c := range []struct{ old, new, want string }{
		{`"line3-a"`, `"Line 3"`, `:1: station is "Line 3". Write 1 to 63 of a-z`},
		{`"widgiot"`, `""`, `:2: sku is "". Write 1 to 63 of a-z`},
		{`"/var/lib/stationd"`, `"state"`, `:3: state_dir is "state". Write the absolute path`},
		{`"/var/lib/stationd"`, `"` + long + `"`, fmt.Sprintf(":3: state_dir has %d bytes. Write a shorter path, of %d bytes", len(long), control.MaxStateDir)},
		{`algorithms = ["P-256"]`, `label = "always"`, `:15: policy.label is "always". Write "optional" or "required".`},
		{`"de"`, `"tlh"`, `:29: page.language is "tlh". Write one of: en, de, es, vi, zh.`},
		{`"Ana, ext. 4711"`, `"` + strings.Repeat("ä", 61) + `"`, `:30: page.contact_it: "`},
		{`contact_quality = ""`, `contact_quality = "a\nb"`, `:31: page.contact_quality: "a\nb" is not up to 60 printable characters. Write whom to call`},
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
		{`level = "info"`, `format = "xml"`, `:25: log.format is "xml". Write "auto"`},
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
	for _, c := range []struct {
		listen  string
		network bool
	}{{"[::1]:8080", false}, {"localhost:65535", false}, {"127.9.9.9:1", false}, {":8080", true}, {"0.0.0.0:80", true}, {"192.0.2.7:8080", true}, {"line3_a:8080", true}, {"line3-a.factory.example:8080", true}} {
		open := strings.Replace(good, "127.0.0.1:8080", c.listen, 1)
		name, err := load(t, open)
		if !c.network && err != nil {
			t.Errorf("listen = %q: %v", c.listen, err)
		}
		if want := fmt.Sprintf(`%s:4: listen is %q, which others reach, with neither TLS nor a token. Write "127.0.0.1:8080"`, name, c.listen); c.network && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("listen = %q: %v, want %s", c.listen, err, want)
		}
		for _, access := range []string{"tls_cert = \"/etc/tls.crt\"\ntls_key = \"/etc/tls.key\"", "view_token_file = \"/etc/view\"", "technician_token_file = \"/etc/tech\""} {
			if _, err := load(t, open+"[access]\n"+access+"\n"); err != nil {
				t.Errorf("listen = %q with %s: %v", c.listen, access, err)
			}
		}
	}
	for _, c := range []struct{ access, want string }{
		{`tls_cert = "tls.crt"`, `:33: access.tls_cert is "tls.crt". Write the absolute path`},
		{`tls_cert = "/tls.crt"`, `:33: there is a certificate and no key. Write access.tls_key too`},
		{`tls_key = "/tls.key"`, `:33: there is a key and no certificate. Write access.tls_cert too`},
		{`view_token_file = "view"`, `:33: access.view_token_file is "view". Write the absolute path`},
		{"view_token_file = \"/token\"\ntechnician_token_file = \"/token\"", `:34: viewers and technicians have the same file. Give each role`},
		{`token = "secret"`, `:33: unknown key "access.token". Correct or remove it; known in [access]: technician_token_file, tls_cert, tls_key, view_token_file`},
	} {
		if name, err := load(t, good+"[access]\n"+c.access+"\n"); err == nil || !strings.HasPrefix(err.Error(), name+c.want) {
			t.Errorf("%s: %v, want %s", c.access, err, c.want)
		}
	}
}
