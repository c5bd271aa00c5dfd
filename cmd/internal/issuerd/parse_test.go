package issuerd

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// A text means what it means in a file, and errors have the name and the line.
func TestParse(t *testing.T) {
	const sample = "../../../systemd/issuerd.toml"
	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(sample)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := Parse("SETTINGS", text)
	if err != nil || !reflect.DeepEqual(parsed, loaded) {
		t.Errorf("parsed %+v, loaded %+v: %v", parsed, loaded, err)
	}
	for old, want := range map[string]string{
		`sku = "widgiot"`: `SETTINGS:7: sku is "Widgiot". Write`,
		`kind   = "aws"`:  `SETTINGS:27: registry.kind is "Widgiot". Write`,
		`[[trusted_stat`:  fmt.Sprintf(`SETTINGS:%d: `, 1+strings.Count(string(text[:strings.Index(string(text), "[[trusted_stat")]), "\n")),
	} {
		broken := strings.Replace(string(text), old, strings.NewReplacer(`"widgiot"`, `"Widgiot"`, `"aws"`, `"Widgiot"`, "[[", "[").Replace(old), 1)
		if broken == string(text) {
			t.Fatalf("there is no %s", old)
		}
		if _, err := Parse("SETTINGS", []byte(broken)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", old, err, want)
		}
	}
	if _, err := Parse("SETTINGS", make([]byte, 2<<20)); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge text: %v", err)
	}
}
