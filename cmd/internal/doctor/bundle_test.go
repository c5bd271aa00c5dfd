package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"secretfree/cmd/internal/control"
	"secretfree/spool/journal"
)

// unpack reads all of a bundle.
func unpack(t *testing.T, data []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(data))
	must(t, err)
	out := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		if h.Mode != 0o600 || !strings.HasPrefix(h.Name, "station/") {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
		text, err := io.ReadAll(archive)
		must(t, err)
		out[strings.TrimPrefix(h.Name, "station/")] = string(text)
	}
}

// leaks looks for secrets in files, and for their other forms; it has none of
// the code under test.
func leaks(files map[string]string, secrets map[string]string) (found []string) {
	for name, text := range files {
		text = name + "\n" + text
		for what, secret := range secrets {
			shown := []string{secret, hex.EncodeToString([]byte(secret)), strings.ReplaceAll(secret, "/", `\/`), strings.ReplaceAll(secret, "+", `\u002b`), strings.ReplaceAll(secret, "\n", `\n`)}
			for before := range 3 {
				whole := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + secret))
				inner := whole[(before*8+5)/6 : len(whole)-4]
				shown = append(shown, inner, strings.NewReplacer("+", "-", "/", "_").Replace(inner))
			}
			for _, form := range shown {
				if len(form) >= 6 && strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
					found = append(found, fmt.Sprintf("%s is in %s as %s", what, name, form))
				}
			}
		}
	}
	return found
}

// spiked is a patient with secrets wherever they can lie.
func spiked(t *testing.T) (*patient, BundleConfig, map[string]string) {
	p := newPatient(t)
	p.journal(5).Close()
	key, err := os.ReadFile(p.state + "/station.key")
	must(t, err)
	private := strings.TrimSpace(string(key))
	secrets := map[string]string{
		"the station's key": private, "its inner part": strings.SplitN(private, "+", 5)[4],
		"the secret key of AWS": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzEXAMPLEKEY", "the access key": "AKIAIOSFODNN7EXAMPLE", "the session token": "IQoJb3JpZ2luX2VjEHgaCXVzLWVhc3QtMSJHMEUCIQDk" + strings.Repeat("a8B/", 30),
		"a token file": "technician-6Zq0X1kPw7Lh2", "a comment": "correct-horse-battery", "an unknown key": "hunter2hunter2", "a value": "s3cr3t-in-a-url", "a PEM": "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgX",
		"a password in the log": "Tr0ub4dor&3", "a header in the log": "Zm9vOmJhcg-in-a-header", "a hex key": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "an API token": "0123456789abcdef0123456789abcdef",
		"a passphrase": "open sesame please", "JSON in JSON": "nested-pass-1",
	}
	tokenFile, credentials := filepath.Join(filepath.Dir(p.state), "token"), filepath.Join(filepath.Dir(p.state), "credentials")
	must(t, os.WriteFile(tokenFile, []byte(secrets["a token file"]+"\n"), 0o600))
	must(t, os.WriteFile(credentials, []byte("[default]\naws_access_key_id = "+secrets["the access key"]+"\naws_secret_access_key = "+secrets["the secret key of AWS"]+"\n"), 0o600))
	must(t, os.MkdirAll(p.state+"/transcripts", 0o700))
	must(t, os.WriteFile(p.state+"/transcripts/1-A-failed.uart", []byte("dialect: ti-at\n\n0.1 < 4d1f8e27b3c05a9e61f2d47788aabbcc\n"), 0o600))
	p.top = fmt.Sprintf("# %s\nhosts = [\"https://admin:%s@line3\"]\n# password: %s\n", secrets["a comment"], secrets["a value"], secrets["a comment"])
	p.rest = fmt.Sprintf("[registry]\nkind = \"aws\"\nbucket = \"a-bucket\" # %s\naws_secret_access_key = %q\nregion = \"us-east-1\"\n[access]\ntechnician_token_file = %q\n[%s]\nx = %q\n",
		secrets["a comment"], secrets["the secret key of AWS"], tokenFile, secrets["an unknown key"], secrets["an unknown key"])
	p.configure()
	p.file("run/systemd/system/x", "")
	p.c.Command = func(_ context.Context, name string, args ...string) ([]byte, error) {
		switch name {
		case "systemctl":
			return fmt.Appendf(nil, "LoadState=loaded\nActiveState=active\nEnvironment=AWS_SECRET_ACCESS_KEY=%s\n", secrets["the secret key of AWS"]), nil
		case "journalctl":
			return fmt.Appendf(nil, `{"level":"error","password":"%s","message":"starting"}
GET / Authorization: Bearer %s
aws_secret_access_key=%s session %s id %s
{"message":"{\"passphrase\": \"%s\", \"token\":\"%s\"}"}
passphrase = "%s"
-----BEGIN PRIVATE KEY-----
%s
-----END PRIVATE KEY-----
the key %s and %s, in base64 %s, in hex %x, with a token %s
a private key %s was printed
`, secrets["a password in the log"], secrets["a header in the log"], secrets["the secret key of AWS"], secrets["the session token"], secrets["the access key"], secrets["JSON in JSON"], secrets["JSON in JSON"],
				secrets["a passphrase"], secrets["a PEM"], secrets["a hex key"], secrets["an API token"], base64.StdEncoding.EncodeToString([]byte("x"+secrets["the secret key of AWS"])), secrets["the secret key of AWS"],
				base64.URLEncoding.EncodeToString([]byte(secrets["the session token"])), private), nil
		}
		return nil, errors.New("not found")
	}
	p.c.Get = func(context.Context, string, string) ([]byte, int, error) {
		return []byte(`{"notices":[{"text":"the token: ` + secrets["the session token"] + `"}]}`), 200, nil
	}
	c := BundleConfig{Config: p.c, Results: []Result{fail("registry", "x", "http://u:%s@host and %s", secrets["a value"], secrets["the secret key of AWS"])}, Entries: 3, Transcripts: true,
		Describe: func(e journal.Entry) ([]byte, []string, error) {
			if e.Record() == nil {
				return fmt.Appendf(nil, `{"seq":%d}`, e.Seq), nil, nil
			}
			id := strings.Repeat("ab", 15) + fmt.Sprintf("%02d", e.Seq)
			return fmt.Appendf(nil, `{"seq":%d,"device":"%s"}`, e.Seq, id), []string{id}, nil
		},
		Environ: []string{"PATH=/bin", "AWS_SECRET_ACCESS_KEY=" + secrets["the secret key of AWS"], "AWS_SESSION_TOKEN=" + secrets["the session token"], "MY_PASSWORD=" + secrets["a password in the log"]},
	}
	return p, c, secrets
}

func TestBundleHoldsNoSecret(t *testing.T) {
	for _, withoutIDs := range []bool{false, true} {
		p, c, secrets := spiked(t)
		c.WithoutIDs, c.Transcripts = withoutIDs, !withoutIDs
		parts := []string{"about.txt", "doctor.jsonl", "config.toml", "journal.json", "unit.json", "log.txt", "station.pub", "checkpoint", "entries.jsonl"}
		if withoutIDs { // with a configuration that is right, so that the page is asked
			p.top, p.rest = "", ""
			p.configure()
			parts = append(parts, "status.json", "metrics.txt")
		}
		name := filepath.Join(filepath.Dir(p.state), "bundle.tar.gz")
		must(t, WriteBundle(t.Context(), name, c))
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		data, err := os.ReadFile(name)
		must(t, err)
		files := unpack(t, data)
		for _, leak := range leaks(files, secrets) {
			t.Error(leak)
		}
		for _, part := range parts {
			if files[part] == "" {
				t.Errorf("there is no %s in %v", part, slices.Sorted(maps.Keys(files)))
			}
		}
		for part, text := range map[string]string{"config.toml": `station = 'line3-a'`, "station.pub": "widgiot/line3-a+", "log.txt": "was printed", "checkpoint": "widgiot/line3-a\n6\n", "journal.json": `"Pending": 5`, "unit.json": `"active"`} {
			if !strings.Contains(files[part], text) {
				t.Errorf("%s has no %q:\n%s", part, text, files[part])
			}
		}
		pub, err := os.ReadFile(p.state + "/station.pub")
		if must(t, err); files["station.pub"] != string(pub) {
			t.Errorf("the public key is %q, want %q", files["station.pub"], pub)
		}
		if n := strings.Count(files["entries.jsonl"], "\n"); n != 3 {
			t.Errorf("%d entries", n)
		}
		id := strings.Repeat("ab", 15) + "05"
		if shown := strings.Contains(files["entries.jsonl"], id); shown == withoutIDs {
			t.Errorf("without ids %v: %s", withoutIDs, files["entries.jsonl"])
		}
		if _, ok := files["transcripts/1-A-failed.uart"]; ok == withoutIDs {
			t.Errorf("transcripts: %v", ok)
		}
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(name), ".bundle-*"))
		if err := WriteBundle(t.Context(), name, c); !errors.Is(err, ErrExists) || len(left) > 0 {
			t.Errorf("a second time: %v; left %v", err, left)
		}
	}
}

// The search above finds what is there: in the clear, in base64 at any place,
// in hex, in JSON.
func TestLeaksAreFound(t *testing.T) {
	p, c, secrets := spiked(t)
	c.Results = nil
	c.Transcripts = true // these are taken as they are, but for PEM and what is known
	for what, secret := range secrets {
		if what == "the station's key" {
			continue // it has a form that is removed anywhere
		}
		for how, text := range map[string]string{"in the clear": secret, "in base64": base64.StdEncoding.EncodeToString([]byte("ab" + secret + "cd")), "in hex": hex.EncodeToString([]byte(secret))} {
			must(t, os.WriteFile(p.state+"/transcripts/1-A-failed.uart", []byte("dialect: ti-at\n\n"+text+"\n"), 0o600))
			c.Environ = nil
			var data bytes.Buffer
			must(t, writeBundle(t.Context(), &data, c))
			found := leaks(unpack(t, data.Bytes()), secrets)
			if !slices.ContainsFunc(found, func(leak string) bool { return strings.HasPrefix(leak, what+" is in transcripts/") }) {
				t.Errorf("%s, %s, is not found: %v", what, how, found)
			}
		}
	}
}

func TestBundleOfLittle(t *testing.T) {
	p := newPatient(t)
	must(t, os.RemoveAll(p.state))
	var data bytes.Buffer
	must(t, writeBundle(t.Context(), &data, BundleConfig{Config: p.c}))
	if about := unpack(t, data.Bytes())["about.txt"]; !strings.Contains(about, "config.toml: not here") {
		t.Error(about)
	}
	p.top = "not toml\n= 3 secret\nstate_dir = 'hunter2hunter2'\n"
	p.configure()
	data.Reset()
	must(t, writeBundle(t.Context(), &data, BundleConfig{Config: p.c}))
	files := unpack(t, data.Bytes())
	if text := files["config.toml"]; !strings.Contains(text, "state_dir = (removed)") || strings.Contains(text, "hunter2") || !strings.Contains(text, "[[slot]]") {
		t.Error(text)
	}
	if err := WriteBundle(t.Context(), filepath.Join(p.root, "none", "x.tar.gz"), BundleConfig{Config: p.c}); err == nil {
		t.Error("a bundle in a folder that is not there")
	}
	b := &bundle{size: maxBundle, want: BundleConfig{}}
	if err := b.add("x", []byte("y")); err == nil || !strings.Contains(err.Error(), "grows beyond") {
		t.Error(err)
	}
}

// What is no secret stays readable.
func TestScrubberKeeps(t *testing.T) {
	s := newScrubber(nil, false)
	id := "4d1f8e27b3c05a9e61f2d47788aabbcc"
	s.known[id] = true
	for _, text := range []string{
		"slot A: /dev/serial/by-path/pci-0000:00:14.0-usb-0:1.1:1.0-port0 is held by minicom (process 12)",
		"/dev/serial/by-id/usb-Silicon_Labs_CP2102_USB_to_UART_Bridge_Controller_0001-if00-port0",
		`{"level":"info","slot":"A","device":"` + id + `","message":"passed"}`, "stationd_spool_pending_records 3", `{"check":"registry.credentials","level":"ok"}`,
		"line3-a v1.2.3-0.20261129012345-abcdefabcdef go1.26.11", "widgiot/line3-a+0a1b2c3d+AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAh",
	} {
		if got := s.clean([]byte(text)); string(got) != text {
			t.Errorf("%s\nbecame\n%s", text, got)
		}
	}
	a, b := s.clean([]byte("1123456789abcdef0123456789abcdef")), s.clean([]byte("1123456789ABCDEF0123456789ABCDEF"))
	if !bytes.Equal(a, b) || !strings.HasPrefix(string(a), "id-") {
		t.Errorf("%s, %s", a, b)
	}
}

// A MAC address is a name of a device: it goes where ids go, and stays where
// they stay.
func TestScrubberHidesAddresses(t *testing.T) {
	const mac = "12:34:56:78:90:ab"
	text := []byte(`{"message":"the label names the mac ` + mac + `","text":"` + strings.ToUpper(strings.ReplaceAll(mac, ":", "-")) + `"} /dev/serial/by-path/pci-0000:00:14.0-usb-0:1.1:1.0-port0 2026-11-29T02:48:51Z`)
	if got := newScrubber(nil, false).clean(text); !bytes.Equal(got, text) {
		t.Errorf("with ids: %s", got)
	}
	got := string(newScrubber(nil, true).clean(text))
	names := regexp.MustCompile(`id-[0-9a-f]{12}`).FindAllString(got, -1)
	if strings.Contains(got, mac) || strings.Contains(got, "12-34") || len(names) != 2 || names[0] != names[1] || !strings.HasSuffix(got, " /dev/serial/by-path/pci-0000:00:14.0-usb-0:1.1:1.0-port0 2026-11-29T02:48:51Z") {
		t.Errorf("without ids: %s", got)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte("station = \"a\"\n# x\n[registry]\nkind = \"dir\"\n[[slot]]\nname = 1\n"))
	f.Add([]byte("slot = 3\nregistry = []\n\"\" = 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		const secret = "Xyzzy0Plugh1Frotz2Nitfol3Rezrov4Gnusto5Bozbar6"
		text := append([]byte("# "+secret+"\nnot_a_setting = \""+secret+"\"\n"), data...)
		if out := newScrubber(nil, false).settings(text); bytes.Contains(out, []byte(secret)) {
			t.Errorf("%s", out)
		}
	})
}

// The station that runs is asked without a token.
func TestBundleAsksTheControlSocket(t *testing.T) {
	p := newPatient(t)
	b := &bundle{exam: p.exam()}
	if got := b.ask(t.Context(), "/status"); got != nil || len(b.notes) != 1 || !strings.Contains(b.notes[0], "connection refused") {
		t.Errorf("%s, %v", got, b.notes)
	}
	if _, err := control.Get(t.Context(), p.state, "/status"); !errors.Is(err, control.ErrNotRunning) {
		t.Error(err)
	}
}
