package issuerd

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigURLs(t *testing.T) {
	for text, want := range map[string]string{
		`crl_url = "crl.example.com/x.crl"`:                       `ca.crl_url is "crl.example.com/x.crl". Write a URL such as "http://crl.example.com/crl/local.crl".`,
		`crl_url = "ftp://crl.example.com/x"`:                     `Write a URL such as`,
		`ocsp_url = "http://"`:                                    `Write a URL such as "http://ocsp.example.com/ocsp".`,
		`ocsp_url = "http://a b/"`:                                `Write a URL such as`,
		`ocsp_url = "http://x/` + strings.Repeat("x", 1024) + `"`: `Write a URL such as`,
		`ocsp_url = "https://u:p@x/"`:                             `Write a URL such as`,
		`crl_url = "https://x.example/a?b=c"`:                     "",
	} {
		sample, err := os.ReadFile("../../../systemd/issuerd.toml")
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "issuerd.toml")
		if err := os.WriteFile(name, bytes.Replace(sample, []byte("[ca]"), []byte("[ca]\n"+text), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(name); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.60s: %v, want %s", text, err, want)
		}
	}
}
