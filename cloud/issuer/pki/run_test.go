package pki

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// allSteps is the order that the package comment promises.
var allSteps = []string{
	"root-key", "root-certificate", "line-key", "line-certificate", "crl/root/1", "crl/line/1",
	"regions/us-east-1/key", "regions/europe/csr", "regions/us-east-1/certificate", "regions/europe/certificate",
	"regions/us-east-1/verification", "regions/us-east-1/register", "regions/us-east-1/ocsp-key", "regions/us-east-1/ocsp-certificate",
	"regions/europe/import", "regions/europe/verification", "regions/europe/register", "publish/root/1", "publish/line/1",
}

func ids(steps []Step) []string {
	var ids []string
	for _, s := range steps {
		ids = append(ids, s.ID)
	}
	return ids
}

// finished checks what a whole ceremony leaves, whatever way it took.
func finished(t *testing.T, dir string, w *testEnv) {
	t.Helper()
	c := testConfig(dir, w)
	left, err := Left(c)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", ids(left))
	}
	entries, err := ReadJournal(dir)
	must(t, err)
	var kept []string
	for _, e := range entries {
		if !strings.Contains(e.Step, "/verification") {
			kept = append(kept, e.Step)
		}
	}
	want := slices.DeleteFunc(slices.Clone(allSteps), func(s string) bool { return strings.Contains(s, "/verification") })
	if !slices.Equal(kept, want) {
		t.Errorf("the journal has %v", kept)
	}
	x := open(t, c, nil)
	defer x.Close()
	europe, err := x.issuing(c.Plan.Regions[1])
	must(t, err)
	if w.pca.certificate == nil || !w.pca.certificate.Equal(europe) || len(w.pca.issued) != 1 {
		t.Errorf("Private CA has another certificate, or signed %d", len(w.pca.issued))
	}
	here, err := x.issuing(c.Plan.Regions[0])
	must(t, err)
	if !w.iot["us-east-1"].ca.Equal(here) || !w.iot["eu-west-1"].ca.Equal(europe) {
		t.Error("IoT Core has another certificate")
	}
	for _, authority := range []string{RootKey, LineKey} {
		der, err := os.ReadFile(filepath.Join(dir, crlFile(authority, 1)))
		must(t, err)
		if !bytes.Equal(w.objects["crl/"+authority+"-1.crl"], der) || !bytes.Equal(w.objects["crl/"+authority+".crl"], der) {
			t.Errorf("the list of %s is not the one in the bucket", authority)
		}
	}
	noSecrets(t, tree(t, dir), testKeys(dir))
}

func TestDryRunChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		left, err := Left(testConfig(dir, w))
		must(t, err)
		if got := ids(left); !slices.Equal(got, allSteps) {
			t.Errorf("left: %v", got)
		}
		for _, s := range left {
			if s.Does == "" {
				t.Errorf("%s does not say what it does", s.ID)
			}
		}
		if files := tree(t, dir); len(files) > 0 || len(w.events) > 0 {
			t.Errorf("it made %d files and %d calls", len(files), len(w.events))
		}
		var begun []string
		c := testConfig(dir, w)
		c.Begin = func(s Step) { begun = append(begun, s.ID) }
		run(t, c)
		if !slices.Equal(begun, allSteps) {
			t.Errorf("what was done is not what was told: %v", begun)
		}
		finished(t, dir, w)
		before := tree(t, dir)
		_, err = Left(testConfig(dir, w))
		must(t, err)
		calls := len(w.events)
		run(t, testConfig(dir, w))
		if after := tree(t, dir); len(after) != len(before) || !bytes.Equal(after[journalFile], before[journalFile]) || len(w.events) != calls {
			t.Error("a run with nothing to do did something")
		}
	})
}

// Whatever breaks, and whether it had its effect or not, the next run goes on
// to the same end: here every run but the last breaks, each at a place where
// none broke before.
func TestEveryBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		w.broken = map[string]bool{}
		for {
			x := open(t, testConfig(dir, w), w)
			err := x.Run(t.Context())
			must(t, x.Close())
			if err == nil {
				break
			}
			if !errors.Is(err, errBroken) {
				t.Fatalf("after %d breaks: %v", len(w.broken), err)
			}
			noSecrets(t, map[string][]byte{"the error": []byte(err.Error())}, testKeys(dir))
		}
		finished(t, dir, w)
		if len(w.broken) < 100 {
			t.Errorf("only %d breaks", len(w.broken))
		}
	})
}

// One break, and then a run to the end: at some of the places.
func TestOneBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := 0
		for n := 1; ; n += 17 {
			dir, w := t.TempDir(), newTestEnv(t)
			w.breakAt = n
			x := open(t, testConfig(dir, w), w)
			err := x.Run(t.Context())
			must(t, x.Close())
			if err == nil {
				break
			}
			if !errors.Is(err, errBroken) {
				t.Fatalf("broken at event %d, %s: %v", n, w.events[n-1], err)
			}
			broken++
			noSecrets(t, map[string][]byte{"the error": []byte(err.Error())}, testKeys(dir))
			run(t, testConfig(dir, w))
			finished(t, dir, w)
			if t.Failed() {
				t.Fatalf("after a break at event %d, %s", n, w.events[n-1])
			}
		}
		if broken < 7 {
			t.Errorf("only %d breaks", broken)
		}
	})
}

// What was made and not noted, because the journal was cut anywhere, is found
// again.
func TestEveryTornJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		run(t, testConfig(dir, w))
		name := filepath.Join(dir, journalFile)
		journal, err := os.ReadFile(name)
		must(t, err)
		certificates := func() map[string][]byte {
			files := tree(t, dir)
			for name := range files {
				if name == journalFile || strings.Contains(name, "verification") {
					delete(files, name)
				}
			}
			return files
		}
		before := certificates()
		lines := bytes.SplitAfter(journal, []byte("\n"))
		for i := range lines[:len(lines)-1] {
			whole := bytes.Join(lines[:i], nil)
			torn := slices.Concat(whole, lines[i][:len(lines[i])/2])
			must(t, os.WriteFile(name, torn, 0o600))
			must(t, os.WriteFile(filepath.Join(dir, temp+"left"), []byte("half"), 0o600))
			if entries, err := ReadJournal(dir); err != nil || len(entries) != i {
				t.Fatalf("%d entries, %v", len(entries), err)
			}
			run(t, testConfig(dir, w))
			finished(t, dir, w)
			after := certificates()
			for name, data := range before {
				if !bytes.Equal(after[name], data) {
					t.Errorf("%s is another", name)
				}
			}
			if len(after) != len(before) {
				t.Errorf("%d files", len(after))
			}
			if t.Failed() {
				t.Fatalf("after a journal that was cut in line %d", i+1)
			}
		}
	})
}

// A run without the passphrase of an offline key stops there, says whose it is,
// and goes on when it is given.
func TestKeyHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		for _, c := range []struct {
			without []string
			step    string
			key     string
		}{
			{[]string{RootKey, LineKey, "regions/us-east-1/issuing"}, "root-key", RootKey},
			{[]string{LineKey, "regions/us-east-1/issuing"}, "line-key", LineKey},
			{[]string{"regions/us-east-1/issuing", RootKey}, "line-certificate", RootKey},
			{[]string{LineKey, "regions/us-east-1/issuing"}, "crl/line/1", LineKey},
			{[]string{RootKey, "regions/us-east-1/issuing"}, "regions/us-east-1/key", "regions/us-east-1/issuing"},
			{[]string{RootKey, LineKey}, "regions/us-east-1/certificate", LineKey},
			{[]string{RootKey, "regions/us-east-1/ocsp"}, "regions/us-east-1/ocsp-key", "regions/us-east-1/ocsp"},
		} {
			config := testConfig(dir, w)
			config.Keys = testKeys(dir, c.without...)
			x := open(t, config, nil)
			err := x.Run(t.Context())
			must(t, x.Close())
			step, ok := errors.AsType[*StepError](err)
			if !ok || !errors.Is(err, ErrNoPassphrase) || step.Step.ID != c.step || step.Step.Key != c.key {
				t.Errorf("without %v: %v, want a stop at %s", c.without, err, c.step)
			}
		}
		// The rest needs no key that is offline: it may be in a safe.
		for _, key := range []string{RootKey, LineKey} {
			must(t, os.Rename(filepath.Join(dir, key+".key"), filepath.Join(t.TempDir(), "safe")))
		}
		config := testConfig(dir, w)
		config.Keys = testKeys(dir, RootKey, LineKey)
		run(t, config)
		finished(t, dir, w)
		x := open(t, testConfig(dir, w), nil)
		if err := x.SignCRLs(t.Context(), RootKey); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "root.key") {
			t.Errorf("a list without the key: %v", err)
		}
	})
}

func TestReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		if _, err := Report(dir); !errors.Is(err, ErrNoCeremony) {
			t.Errorf("a report on nothing: %v", err)
		}
		run(t, testConfig(dir, w))
		write := func() string {
			t.Helper()
			lines, err := Report(dir)
			must(t, err)
			var text bytes.Buffer
			for _, l := range lines {
				must(t, l.WriteText(&text))
			}
			return text.String()
		}
		report := write()
		if again := write(); again != report {
			t.Error("the report is another each time")
		}
		x := open(t, testConfig(dir, w), nil)
		defer x.Close()
		for _, file := range []string{"root", "line", "regions/us-east-1/issuing", "regions/europe/issuing", "regions/us-east-1/ocsp"} {
			text, err := os.ReadFile(x.path(file + ".pem"))
			must(t, err)
			c, err := parseCertificate(text)
			must(t, err)
			for _, want := range []string{digest(c.Raw), serialText(c.SerialNumber), c.Subject.String(), digest(text) + "  " + file + ".pem (as made)"} {
				if !strings.Contains(report, want) {
					t.Errorf("the report does not tell %q of %s", want, file)
				}
			}
		}
		for _, want := range []string{"path length  0", "path length  1", "path length  2", "the tests", testARN, "ca_certificate_id = " + w.iot["eu-west-1"].id, "number 1"} {
			if !strings.Contains(report, want) {
				t.Errorf("the report does not tell %q", want)
			}
		}
		must(t, os.Remove(x.path("root.key")))
		if !strings.Contains(write(), "root.key (away)") {
			t.Error("the report does not tell that the root's key is away")
		}
		must(t, os.WriteFile(x.path("line.pem"), []byte("x"), 0o600))
		if !strings.Contains(write(), "line.pem (changed)") {
			t.Error("the report does not tell that a certificate was changed")
		}
	})
}

func TestRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		x := open(t, testConfig(dir, w), nil)
		if err := x.Revoke("us-east-1", "superseded"); err == nil || !strings.Contains(err.Error(), "no certificate") {
			t.Errorf("revoking what is not: %v", err)
		}
		must(t, x.Run(t.Context()))
		if err := x.Revoke("us-east-1", "boredom"); err == nil || !strings.Contains(err.Error(), "key-compromise") {
			t.Errorf("revoking for no reason: %v", err)
		}
		must(t, x.Revoke("europe", "key-compromise"))
		must(t, x.Revoke("europe", "key-compromise"))
		if err := x.Revoke("europe", "superseded"); !errors.Is(err, errConflict) {
			t.Errorf("revoking for another reason: %v", err)
		}
		left, err := x.Left()
		must(t, err)
		if got := ids(left); !slices.Equal(got, []string{"crl/line/2", "publish/line/2"}) {
			t.Errorf("left: %v", got)
		}
		must(t, x.Run(t.Context()))
		line, err := x.authority(LineKey)
		must(t, err)
		europe, err := x.issuing(x.c.Plan.Regions[1])
		must(t, err)
		crl, err := parseCRL(w.objects["crl/line.crl"], line)
		must(t, err)
		if crl.Number != 2 || !slices.Equal(crl.Serials, []string{serialText(europe.SerialNumber)}) {
			t.Errorf("the list is %+v", crl)
		}
		must(t, x.Revoke("", "ca-compromise"))
		must(t, x.SignCRLs(t.Context(), RootKey, LineKey))
		root, err := x.authority(RootKey)
		must(t, err)
		if crl, err = parseCRL(w.objects["crl/root.crl"], root); err != nil || crl.Number != 2 || !slices.Equal(crl.Serials, []string{serialText(line.SerialNumber)}) {
			t.Errorf("the list is %+v, %v", crl, err)
		}
		if crl, err = parseCRL(w.objects["crl/line.crl"], line); err != nil || crl.Number != 3 || len(crl.Serials) != 1 {
			t.Errorf("the list is %+v, %v", crl, err)
		}
		if err := x.SignCRLs(t.Context(), "moon"); err == nil {
			t.Error("the moon signed a list")
		}
		if left, err := x.Left(); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", ids(left), err)
		}
		// A list that has expired is signed anew.
		time.Sleep(31 * day) // of the bubble
		left, err = x.Left()
		must(t, err)
		if got := fmt.Sprint(ids(left)); got != "[crl/root/3 crl/line/4 publish/root/3 publish/line/4]" {
			t.Errorf("left: %v", got)
		}
	})
}

// A CA that is revoked before it is done takes no more steps; the others do.
func TestRevokedTakesNoSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		x := open(t, testConfig(dir, w), nil)
		for {
			left, err := x.Left()
			must(t, err)
			if left[0].ID == "regions/us-east-1/verification" {
				break
			}
			must(t, x.take(t.Context(), left[0]))
		}
		must(t, x.Revoke("us-east-1", "cessation"))
		must(t, x.Run(t.Context()))
		if w.iot["us-east-1"].ca != nil || w.iot["eu-west-1"].ca == nil {
			t.Error("the revoked CA was registered, or the other was not")
		}
	})
}
