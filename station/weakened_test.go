package station

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// A reader without the second reading of the serial number must not get through the campaign: it finds the wrong identities that
// this prevents.
func TestCampaignFindsAWeakenedParser(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the tests once more")
	}
	cmd := exec.Command("go", "test", "-tags", "weakened", "-count", "1", "-run", "^TestCampaign$", ".", "-seed", "1", "-dialogues", "1500")
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("it got through:\n%s", out)
	}
	if !regexp.MustCompile(`wrong identity: [0-9a-f]{32} with key [0-9a-f]{64}`).Match(out) || !bytes.Contains(out, []byte("--- FAIL: TestCampaign")) {
		t.Fatalf("%v, and not for a wrong identity:\n%s", err, out)
	}
}
