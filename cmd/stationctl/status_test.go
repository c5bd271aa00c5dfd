package main

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/cmd/internal/cli"
)

// A station with TLS and a token answers to who reads its configuration, or is
// told what it takes; and to nobody else.
func TestStatusOfGuardedStation(t *testing.T) {
	const token = "view-token-0123456789"
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "this station asks for a token", http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"station":"line3-a","cloud":"all delivered","slots":[]}`)
	}))
	defer server.Close()
	server.Config.ErrorLog = nil
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certificate := file("tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	other := file("other.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: append(bytes.Clone(server.Certificate().Raw), 0)})))
	good, wrong, open := file("token", token+"\n"), file("wrong", "guess-0123456789abc"), file("open", token)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	address := server.Listener.Addr().String()
	configured := func(certificate, view string) string {
		return file("stationd.toml", fmt.Sprintf("station = \"line3-a\"\nsku = \"widgiot\"\nstate_dir = %q\nlisten = %q\n[access]\ntls_cert = %q\ntls_key = \"/nobody/reads/this\"\nview_token_file = %q\n"+
			"[[slot]]\nname = \"A\"\nport = \"/dev/ttyACM0\"\ndialect = \"auto\"\n[registry]\nkind = \"none\"\n", dir, address, certificate, view))
	}
	for name, c := range map[string]struct {
		s    status
		want string // of the error; empty: it works
	}{
		"by configuration":         {status{Config: configured(certificate, good)}, ""},
		"by address":               {status{Address: address, CA: certificate, Token: good}, ""},
		"by https address":         {status{Address: "https://" + address, CA: certificate, Token: good}, ""},
		"no token":                 {status{Address: address, CA: certificate}, "answers 401 Unauthorized: this station asks for a token"},
		"wrong token":              {status{Address: address, CA: certificate, Token: wrong}, "answers 401"},
		"a token that others read": {status{Address: address, CA: certificate, Token: open}, "has the mode 0644"},
		"an unknown certificate":   {status{Address: "https://" + address, Token: good}, "certificate signed by unknown authority"},
		"no TLS":                   {status{Address: address, Token: good}, "answers 400"},
		"no certificate":           {status{Address: address, CA: good, Token: good}, "there is no certificate (PEM)"},
	} {
		var out, people bytes.Buffer
		err := c.s.Run(t.Context(), &cli.Output{Out: &out, People: &people, Err: &people})
		if c.want == "" && (err != nil || !strings.Contains(out.String()+people.String(), "line3-a")) {
			t.Errorf("%s: %v, %s", name, err, &out)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), token)) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	s := status{Config: configured(other, good)}
	if err := s.Run(t.Context(), &cli.Output{Out: new(bytes.Buffer), People: new(bytes.Buffer)}); err == nil || !strings.Contains(err.Error(), "another certificate than that in") {
		t.Errorf("with the certificate of another station: %v", err)
	}
}

// Who has no configuration is told what to do.
func TestStatusUnconfigured(t *testing.T) {
	err := (&status{Config: filepath.Join(t.TempDir(), "stationd.toml")}).Run(t.Context(), &cli.Output{})
	for _, want := range []string{"there is no configuration ", "--config", "--address", "stationd init"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
