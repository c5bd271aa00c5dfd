package stationconf

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

const sample = "../../../systemd/stationd.toml"

func TestSampleConfiguration(t *testing.T) {
	c, err := Load(sample)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Slots) != 2 || c.Registry.Kind != "aws" || c.Listen != DefaultListen {
		t.Errorf("%+v", c)
	}
	// What is commented out must be a key, with its default: uncommented, it
	// changes nothing.
	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	commented := regexp.MustCompile(`(?m)^# ([a-z_]+ *= .*)$`)
	if n := len(commented.FindAllString(string(text), -1)); n < 8 {
		t.Fatalf("%d keys are commented out: this test looks at nothing", n)
	}
	whole := commented.ReplaceAllString(string(text), "$1")
	whole = strings.Replace(whole, `"<sku>-iot`, `"widgiot-iot`, 1)
	name := t.TempDir() + "/stationd.toml"
	if err := os.WriteFile(name, []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	if all.Listen != c.Listen || all.Transcripts != c.Transcripts || all.Log != c.Log || all.Disk != c.Disk || all.Page != c.Page || all.Access != c.Access || c.Access != (Access{}) || all.Policy.AllowUnproven || all.Policy.Label != c.Policy.Label {
		t.Errorf("a default in a comment is not the default:\n%+v\n%+v", c, all)
	}
}
