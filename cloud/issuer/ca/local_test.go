package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/keyfile"
)

func TestLocalCASignsTheSameTwice(t *testing.T) {
	a := issuertest.Approved(t)
	claim := issuertest.NewClaim(t, a)
	first, err := localCA(t).Issue(t.Context(), a, claim, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := localCA(t).Issue(t.Context(), a, claim, nil)
	if err != nil || !issuertest.Equal(first, again) {
		t.Errorf("the same claim gave another certificate, or %v", err)
	}
	other, err := localCA(t).Issue(t.Context(), a, issuertest.NewClaim(t, a), nil)
	if err != nil || issuertest.Equal(first, other) {
		t.Errorf("another claim gave the same certificate, or %v", err)
	}
}

func TestInitLocalCA(t *testing.T) {
	parent, err := sharedFolder()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, "ca")
	before := readAll(t, dir)
	if len(before) != 4 {
		t.Errorf("%d files", len(before))
	}
	for file, text := range before {
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", file, info.Mode(), err)
		}
		block, rest := pem.Decode([]byte(text))
		if block == nil || len(rest) > 0 {
			t.Errorf("%s is not one PEM block", file)
		} else if want := map[string]string{".pem": "CERTIFICATE", ".key": "ENCRYPTED PRIVATE KEY"}[filepath.Ext(file)]; block.Type != want {
			t.Errorf("%s holds %s", file, block.Type)
		}
	}
	ca := localCA(t)
	if !ca.Root().IsCA || ca.Root().MaxPathLen != 1 || ca.Issuing().MaxPathLen != 0 || !ca.Issuing().MaxPathLenZero {
		t.Errorf("path lengths %d, %d", ca.Root().MaxPathLen, ca.Issuing().MaxPathLen)
	}
	if ca.NotAfter().Before(time.Now().Add(issuer.DefaultValidity)) {
		t.Errorf("the issuing CA ends on %v, before the first certificate", ca.NotAfter())
	}

	fresh := filepath.Join(t.TempDir(), "ca")
	good := LocalInit{Dir: fresh, Name: "Test", Passphrase: []byte("x")}
	for name, spoil := range map[string]func(c *LocalInit){
		"a folder in use":         func(c *LocalInit) { c.Dir = dir },
		"a parent that is not":    func(c *LocalInit) { c.Dir = filepath.Join(fresh, "deep", "ca") },
		"no passphrase":           func(c *LocalInit) { c.Passphrase = nil },
		"no name":                 func(c *LocalInit) { c.Name = "" },
		"a long name":             func(c *LocalInit) { c.Name = strings.Repeat("x", 49) },
		"a name with a line end":  func(c *LocalInit) { c.Name = "a\nb" },
		"outliving its root":      func(c *LocalInit) { c.RootValidity = time.Hour; c.Validity = 2 * time.Hour },
		"a validity of no length": func(c *LocalInit) { c.Validity = time.Second },
	} {
		c := good
		spoil(&c)
		if err := InitLocal(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if after := readAll(t, dir); len(after) != len(before) || after[issuingKeyFile] != before[issuingKeyFile] || after[rootKeyFile] != before[rootKeyFile] {
		t.Error("the CA that was there has changed")
	}
	if left := readAll(t, parent); len(left) != 1 { // the passphrase
		t.Errorf("left behind: %d files", len(left))
	}
	if entries, err := os.ReadDir(filepath.Dir(fresh)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}

	// An empty folder is taken; the root's key can have a passphrase of its
	// own.
	if err := os.Mkdir(fresh, 0o755); err != nil {
		t.Fatal(err)
	}
	good.RootPassphrase = []byte("y")
	if err := InitLocal(good); err != nil {
		t.Fatal(err)
	}
	der, err := keyfile.Block(filepath.Join(fresh, issuingKeyFile), "ENCRYPTED PRIVATE KEY")
	if err != nil {
		t.Fatal(err)
	}
	iterations, err := asn1.Marshal(600_000)
	if err != nil || !bytes.Contains(der, iterations) {
		t.Errorf("the key is not stretched 600 000 times, or %v", err)
	}
	if _, err := keyfile.Read(filepath.Join(fresh, rootKeyFile), []byte("y")); err != nil {
		t.Error(err)
	}
	if _, err := keyfile.Read(filepath.Join(fresh, rootKeyFile), []byte("x")); err == nil || !strings.Contains(err.Error(), "wrong passphrase") {
		t.Errorf("the root's key under the issuing CA's passphrase: %v", err)
	}
}

// readAll returns the plain files of a folder.
func readAll(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		if entry.IsDir() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = string(data)
	}
	return files
}

func TestOpenLocalCARefuses(t *testing.T) {
	parent, err := sharedFolder()
	if err != nil {
		t.Fatal(err)
	}
	source := readAll(t, filepath.Join(parent, "ca"))
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := keyfile.Encrypt(other, []byte(testPassphrase), 1)
	if err != nil {
		t.Fatal(err)
	}
	foreignRoot := selfSigned(t, other)
	for name, c := range map[string]struct {
		file, text, want string
	}{
		"no root":                 {rootCertificateFile, "", "root.pem"},
		"a foreign root":          {rootCertificateFile, foreignRoot, "signed by unknown authority"},
		"a root that is garbage":  {rootCertificateFile, "x", "not one PEM block"},
		"another key":             {issuingKeyFile, string(otherKey), "not that of the certificate"},
		"a key in the clear":      {issuingKeyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: plain})), "not encrypted"},
		"a certificate for a key": {issuingKeyFile, source[rootCertificateFile], "ENCRYPTED PRIVATE KEY"},
		"a damaged key":           {issuingKeyFile, string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})), "wrong passphrase"},
		"two keys":                {issuingKeyFile, source[issuingKeyFile] + source[issuingKeyFile], "not one PEM block"},
		"no CA": {issuingCertificateFile, func() string {
			// A certificate of the issuing key that may not sign certificates.
			template := &x509.Certificate{SerialNumber: issuer.Serial{1}.Int(), NotAfter: time.Now().Add(time.Hour)}
			der, err := x509.CreateCertificate(rand.Reader, template, template, localCA(t).key.Public(), localCA(t).key)
			if err != nil {
				t.Fatal(err)
			}
			return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		}(), "not that of a CA"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range source {
				if file == c.file {
					text = c.text
				}
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := OpenLocal(LocalConfig{Dir: dir, PassphraseFile: filepath.Join(parent, "passphrase")})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
			if err != nil && (strings.Contains(err.Error(), testPassphrase) || strings.Contains(err.Error(), "MI")) {
				t.Errorf("a secret in %v", err)
			}
		})
	}

	passphrase := filepath.Join(t.TempDir(), "passphrase")
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"empty":     {"", 0o600, "is empty"},
		"a line":    {"\n", 0o600, "is empty"},
		"too long":  {strings.Repeat("x", 1025), 0o600, "longer than"},
		"for all":   {testPassphrase, 0o644, "chmod 600"},
		"the wrong": {"wrong\n", 0o600, "wrong passphrase"},
	} {
		if err := os.WriteFile(passphrase, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(passphrase, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := OpenLocal(LocalConfig{Dir: filepath.Join(parent, "ca"), PassphraseFile: passphrase})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("passphrase, %s: got %v, want %q in it", name, err, c.want)
		}
	}
	if _, err := keyfile.Passphrase(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no passphrase file: %v", err)
	}
	if err := os.Remove(passphrase); err != nil { // whatever its mode is now
		t.Fatal(err)
	}
	if err := os.WriteFile(passphrase, []byte(" two words \r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := keyfile.Passphrase(passphrase); err != nil || string(got) != " two words " {
		t.Errorf("%q, %v", got, err)
	}
}

func selfSigned(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: issuer.Serial{1}.Int(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// OpenSSL makes a request, reads the CA's key and believes the certificate.
func TestOpenSSL(t *testing.T) {
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed, and in CI this peer must be there")
		}
		t.Skip("needs the openssl command")
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		command := exec.CommandContext(t.Context(), path, args...)
		command.Dir = dir
		var out, stderr bytes.Buffer
		command.Stdout, command.Stderr = &out, &stderr
		if err := command.Run(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", args[0], err, stderr.String())
		}
		return out.String()
	}
	w := issuertest.NewEnv(t, localCA(t))
	key, err := x509.MarshalPKCS8PrivateKey(w.Board.Key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("board.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})) // of a simulated board
	run("req", "-new", "-sha256", "-key", "board.key", "-subj", "/O=Widgets/CN="+w.Board.ID.String(), "-out", "board.csr")
	text, err := os.ReadFile(filepath.Join(dir, "board.csr"))
	if err != nil {
		t.Fatal(err)
	}
	request, err := issuer.ParseRequest(text)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName)
	if err != nil {
		t.Fatal(err)
	}
	// The requests that the tests build are requests to OpenSSL as well.
	write("ours.csr", w.Board.CSR().PEM(t))
	run("req", "-in", "ours.csr", "-noout", "-verify")

	root, issuing := certificate.Chain[1], certificate.Chain[0]
	write("root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}))
	write("issuing.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuing}))
	write("leaf.pem", certificate.LeafPEM())
	run("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "root.pem", "-untrusted", "issuing.pem", "leaf.pem")
	if got := run("x509", "-in", "leaf.pem", "-noout", "-subject", "-nameopt", "RFC2253"); strings.TrimSpace(got) != "subject=CN="+w.Board.ID.String() {
		t.Errorf("OpenSSL reads %q", got)
	}

	parent, err := sharedFolder()
	if err != nil {
		t.Fatal(err)
	}
	public := run("pkey", "-in", filepath.Join(parent, "ca", issuingKeyFile), "-passin", "file:"+filepath.Join(parent, "passphrase"), "-pubout")
	if want := run("x509", "-in", "issuing.pem", "-noout", "-pubkey"); public != want {
		t.Errorf("the key in %s is %s, want %s", issuingKeyFile, public, want)
	}
}

// A root may sign a CA in between, which signs the issuing one.
func TestOpenLocalCAWithAChain(t *testing.T) {
	dir := t.TempDir()
	passphrase := filepath.Join(t.TempDir(), "passphrase")
	write := func(path string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(passphrase, []byte(testPassphrase))
	var keys []*ecdsa.PrivateKey
	var certificates []*x509.Certificate
	var texts [][]byte
	for i, name := range []string{"root", "line", "issuing"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: issuer.Serial{byte(i + 1)}.Int(), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(issuer.DefaultValidity * 2),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, MaxPathLen: 2 - i, MaxPathLenZero: true, SubjectKeyId: []byte(name),
		}
		parent, signer := template, key
		if i > 0 {
			parent, signer = certificates[i-1], keys[i-1]
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		keys, certificates = append(keys, key), append(certificates, certificate)
		texts = append(texts, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	keyText, err := keyfile.Encrypt(keys[2], []byte(testPassphrase), 1)
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, issuingKeyFile), keyText)
	write(filepath.Join(dir, rootCertificateFile), texts[0])
	write(filepath.Join(dir, issuingCertificateFile), texts[2])
	for name, c := range map[string]struct {
		chain []byte
		want  string
	}{
		"none":                      {nil, "signed by unknown authority"},
		"garbage":                   {[]byte("x"), "is not 1 to"},
		"a certificate too much":    {bytes.Repeat(texts[1], issuer.MaxChain-1), "is not 1 to"},
		"one that is garbage":       {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "reading"},
		"the root as well":          {slices.Concat(texts[1], texts[0]), "does not hold just the CAs between"},
		"the issuing CA as well":    {slices.Concat(texts[2], texts[1]), "does not hold just the CAs between"},
		"a folder in a file's name": {[]byte("folder"), "is a directory"},
		"as it should be":           {texts[1], ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, chainFile)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if string(c.chain) == "folder" {
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
			} else if c.chain != nil {
				write(path, c.chain)
			}
			ca, err := OpenLocal(LocalConfig{Dir: dir, PassphraseFile: passphrase})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q in it", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			a := issuertest.Approved(t)
			certificate, err := ca.Issue(t.Context(), a, issuertest.NewClaim(t, a), nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(certificate.Chain) != 3 || !bytes.Equal(certificate.Chain[1], certificates[1].Raw) || !bytes.Equal(certificate.Chain[2], ca.Root().Raw) {
				t.Errorf("a chain of %d", len(certificate.Chain))
			}
		})
	}
	if _, err := keyfile.Encrypt(keys[2], nil, 1); err == nil || !strings.Contains(err.Error(), "passphrase is empty") {
		t.Errorf("a key without a passphrase: %v", err)
	}
}

// Who only checks and revokes needs no key, and can sign nothing.
func TestKeylessCA(t *testing.T) {
	parent, err := sharedFolder()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{rootCertificateFile, issuingCertificateFile} {
		data, err := os.ReadFile(filepath.Join(parent, "ca", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := OpenLocal(LocalConfig{Dir: dir, Keyless: true})
	if err != nil {
		t.Fatal(err)
	}
	a := issuertest.Approved(t)
	if _, err := ca.Issue(t.Context(), a, issuertest.NewClaim(t, a), nil); !errors.Is(err, errKeyless) {
		t.Errorf("signed: %v", err)
	}
	if ca.HasKey() || !localCA(t).HasKey() {
		t.Error("it has its key")
	}
	if !ca.Profile().Roots[0].Equal(localCA(t).Root()) {
		t.Error("another root")
	}
	if err := ca.Revoke(t.Context(), issuer.Issuance{}, issuer.KeyCompromise); err != nil {
		t.Error(err)
	}
}

// Organization and country stand in the subjects of both CAs, and the chain
// holds.
func TestInitLocalSubject(t *testing.T) {
	dir := t.TempDir()
	passphrase := filepath.Join(dir, "passphrase")
	if err := os.WriteFile(passphrase, []byte(testPassphrase), 0o600); err != nil {
		t.Fatal(err)
	}
	init := LocalInit{Dir: filepath.Join(dir, "ca"), Name: "Test", Organization: "Widgets Inc", Country: "SE", Passphrase: []byte(testPassphrase), Iterations: 1000}
	if err := InitLocal(init); err != nil {
		t.Fatal(err)
	}
	opened, err := OpenLocal(LocalConfig{Dir: init.Dir, PassphraseFile: passphrase})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*x509.Certificate{"Test Issuing CA": opened.Issuing(), "Test Root CA": opened.Root()} {
		if got := c.Subject.String(); got != "CN="+name+",O=Widgets Inc,C=SE" {
			t.Errorf("the subject is %s", got)
		}
	}
	for name, spoil := range map[string]func(*LocalInit){
		"small letters":     func(i *LocalInit) { i.Country = "se" },
		"three letters":     func(i *LocalInit) { i.Country = "SWE" },
		"a long one":        func(i *LocalInit) { i.Organization = strings.Repeat("x", 65) },
		"a line end in one": func(i *LocalInit) { i.Organization = "a\nb" },
	} {
		bad := init
		bad.Dir = filepath.Join(dir, "bad")
		spoil(&bad)
		if err := InitLocal(bad); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
