package daemon

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"secretfree/cloud/issuer"
)

// exchange is the section of the issuer's README that is for who writes
// firmware.
func exchange(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../../../cloud/issuer/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## One exchange, byte by byte\n")
	if !ok {
		t.Fatal("the section is gone")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// fenced are the blocks of a language, whatever else is said of them, in order.
func fenced(section, language string) (blocks []string) {
	for _, m := range regexp.MustCompile("(?s)\n```"+language+"(?: [^\n]*)?\n(.*?\n)```\n").FindAllStringSubmatch(section, -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// The commands of the README, run as they stand there, get a certificate from
// an issuer that wants fresh requests.
func TestExchangeCommands(t *testing.T) {
	const why = "the README's commands are not run"
	shell := peer(t, "bash", why)
	peer(t, "curl", why)
	peer(t, "openssl", why)
	p := newTestEnv(t, `listen = "127.0.0.1:0"`, "[policy]\nrequire_challenge = true\n")
	d := p.run(t)
	root, err := os.ReadFile(filepath.Join(p.ca, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "root.pem", root)
	blocks := fenced(exchange(t), "sh")
	if len(blocks) < 4 {
		t.Fatalf("%d blocks of commands", len(blocks))
	}
	c := exec.CommandContext(t.Context(), shell, "-euo", "pipefail", "-c", strings.Join(blocks, ""))
	c.Dir = p.dir
	c.Env = append(os.Environ(), "ISSUER=http://"+d.Addr(), "DEVICE="+p.device.String(), "no_proxy=*")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "device.pem: OK\n") {
		t.Errorf("%v\n%s", err, out)
	}
	// Each answered a challenge of its own.
	if n := strings.Count(p.log.String(), `"path":"/new","outcome":"issued"`); n != 2 {
		t.Errorf("%d certificates", n)
	}
}

// The bytes that the README shows are those that it says they are.
func TestExchangeBytes(t *testing.T) {
	section := exchange(t)
	var der []byte
	for line := range strings.Lines(section) {
		digits, ok := strings.CutPrefix(line, "    ")
		if !ok || strings.HasPrefix(digits, "#") {
			continue
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		der = append(der, b...)
	}
	request, err := issuer.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if device, ok := request.Claimed(); !ok || !strings.Contains(section, "device `"+device.String()+"`") {
		t.Error("it is of another device")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
	challenge := regexp.MustCompile(`sfc1\.[A-Z2-7]{45}`).FindString(section)
	if challenge == "" || !bytes.Contains(der, []byte("\x0c\x32"+challenge)) {
		t.Errorf("it does not answer %q", challenge)
	}
	detached := regexp.MustCompile(`\ndevice-challenge: (.*)\ndevice-sig: (.*)\n`).FindStringSubmatch(section)
	if detached == nil || detached[1] != challenge {
		t.Fatalf("beside the request: %q", detached)
	}
	signature, err := base64.StdEncoding.DecodeString(detached[2])
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(challenge))
	if !ecdsa.VerifyASN1(csr.PublicKey.(*ecdsa.PublicKey), sum[:], signature) {
		t.Error("the signature beside it is not of this key over this challenge")
	}
	for _, want := range []string{"The " + strconv.Itoa(len(der)) + " bytes of `device.csr`", "\nContent-Length: " + strconv.Itoa(len(der)) + "\n", "\nContent-Length: " + strconv.Itoa(len(challenge)) + "\n"} {
		if !strings.Contains(section, want) {
			t.Errorf("it does not say %q", want)
		}
	}
}
