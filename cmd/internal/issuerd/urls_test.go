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

// A local CA whose certificates lead to no list and no responder is warned
// about.
func TestWarnings(t *testing.T) {
	local := CA{Kind: "local"}
	for name, c := range map[string]struct {
		config Config
		want   int
	}{
		"neither":         {Config{CA: local}, 1},
		"a list":          {Config{CA: CA{Kind: "local", CRLURL: "http://x.example/crl/local.crl"}}, 0},
		"a responder":     {Config{CA: CA{Kind: "local", OCSPURL: "http://x.example/ocsp"}}, 0},
		"both CAs":        {Config{CA: local, Proto: &local}, 2},
		"what AWS writes": {Config{CA: CA{Kind: "acmpca"}, Proto: &CA{Kind: "iotcore"}}, 0},
	} {
		if got := c.config.Warnings(); len(got) != c.want {
			t.Errorf("%s: %q, want %d", name, got, c.want)
		}
	}
}
