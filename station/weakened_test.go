package station

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// weakening takes a check out of a source file of package uart.
type weakening struct{ file, check, without string }

// weakenings are what keeps a wrong identity out of a reading: the second
// reading of the serial number, and the OK after an answer.
func weakenings() []weakening {
	return []weakening{
		{"tiat.go", "if again != device {", "if false && again != device {"},
		{"tiat.go", "line, heard, err := l.lineOrSilence(ctx, silence)\n", "line, heard, err := l.lineOrSilence(ctx, silence)\n" +
			"if have && errors.Is(err, ErrTimeout) {\nreturn value, prompted, nil\n}\n"},
		{"report.go", "if again != report.Device {", "if false && again != report.Device {"},
		{"ticsr.go", "func (r *csrReading) listen(t csrTurn) error {\n", "func (r *csrReading) listen(t csrTurn) error {\nif true {\nreturn nil\n}\n"},
		{"ticsr.go", "if other || r.doubted", "if false && other || false && r.doubted"},
	}
}

// overlay writes weakened copies of the files of package uart, and the file
// that has the Go tool build them in place of the real ones. It returns the
// path of that file.
func overlay(t *testing.T) string {
	t.Helper()
	folder, err := filepath.Abs("../uart")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for _, w := range weakenings() {
		path := filepath.Join(folder, w.file)
		copied := filepath.Join(dir, w.file)
		from := path
		if replace[path] != "" {
			from = copied
		}
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(content), w.check); n != 1 {
			t.Fatalf("%s has the check %q %d times, want once: say here what takes its place", w.file, w.check, n)
		}
		replace[path] = copied
		if err := os.WriteFile(copied, []byte(strings.Replace(string(content), w.check, w.without, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	content, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A reader without the second reading of the serial number must not get
// through the campaign: it finds the wrong identities that this prevents.
func TestCampaignFindsAWeakenedParser(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the tests once more")
	}
	cmd := exec.Command("go", "test", "-vet=off", "-overlay", overlay(t), "-count", "1", "-run", "^TestCampaign$", ".", "-seed", "1", "-dialogues", "1500")
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("it got through:\n%s", out)
	}
	if !regexp.MustCompile(`wrong identity: [0-9a-f]{32} with key [0-9a-f]{64}`).Match(out) || !bytes.Contains(out, []byte("--- FAIL: TestCampaign")) {
		t.Fatalf("%v, and not for a wrong identity:\n%s", err, out)
	}
}
