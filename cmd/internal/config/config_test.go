package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/cloud"
	"secretfree/station/board"
)

type sample struct {
	Name     string   `toml:"name"`
	Count    int      `toml:"count"`
	On       bool     `toml:"on"`
	List     []string `toml:"list"`
	Registry Registry `toml:"registry"`
	Slots    []struct {
		Port string `toml:"port"`
		Baud int    `toml:"baud"`
	} `toml:"slot"`
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "a.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLoadNamesLineAndRemedy(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		line int
		want string
	}{
		"unknown key":                  {"name = \"x\"\nnmae = 1\n", 2, `unknown key "nmae". Correct or remove it; known at the top level: count, list, name, on, registry, slot.`},
		"unknown key in table":         {"\n[registry]\nkind = \"dir\"\nfolder = \"/x\"\n", 4, `unknown key "registry.folder". Correct or remove it; known in [registry]: bucket, dir,`},
		"unknown key in list":          {"[[slot]]\nport = \"a\"\n[[slot]]\nprt = \"b\"\n", 4, `unknown key "slot.prt". Correct or remove it; known in [slot]: baud, port.`},
		"unknown table":                {"name = \"x\"\n[regisrty]\nkind = \"dir\"\n", 2, `unknown key "regisrty"`},
		"no quotes":                    {"name = \"x\"\ncount = abc\n", 2, "Correct this line"},
		"a text for a number":          {"name = \"x\"\ncount = \"7\"\n", 2, `count takes a whole number, and this is a text. Write it as: count = 7.`},
		"a fraction":                   {"count = 1.5\n", 1, `count takes a whole number, and this is a number with a fraction. Write`},
		"a huge number":                {"count = 99999999999999999999\n", 1, `number is too large`},
		"a number for a text":          {"name = 1\n", 1, `name takes a text, and this is a whole number. Write it as: name = "…".`},
		"yes or no":                    {"on = \"yes\"\n", 1, `on takes true or false, and this is a text. Write it as: on = true.`},
		"a text for a list":            {"list = \"a\"\n", 1, `list takes a list of texts, and this is a text. Write it as: list = ["…"].`},
		"a number in a list":           {"list = [\"a\", 1]\n", 1, `list takes a list of texts, and there is a whole number in it. Write it as: list = ["…"].`},
		"a text for a table":           {"registry = \"dir\"\n", 1, `registry takes a table, and this is a text. Write it as: [registry].`},
		"a list for a table":           {"[[registry]]\nkind = \"dir\"\n", 1, `registry takes a table, and this is a list of tables. Write it as: [registry].`},
		"a text in a table":            {"[registry]\nkind = true\n", 2, `registry.kind takes a text, and this is true or false. Write it as: kind = "…".`},
		"a number for tables":          {"slot = 1\n", 1, `slot takes a list of tables, and this is a whole number. Write it as: [[slot]].`},
		"a number in a list of tables": {"[[slot]]\nport = \"a\"\n[[slot]]\nport = 7\n", 4, `slot.port takes a text, and this is a whole number. Write it as: port = "…".`},
		"a date":                       {"count = 2026-01-01\n", 1, `count takes a whole number, and this is a date. Write`},
		"a table for a text":           {"name.x = 1\n", 1, `name takes a text, and this is a table. Write`},
		"twice":                        {"name = \"x\"\nname = \"y\"\n", 2, "Correct"},
		"cut short":                    {"name = \"x", 1, "Correct this line"},
	} {
		t.Run(name, func(t *testing.T) {
			file := write(t, c.text)
			_, err := Load(file, new(sample))
			e, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("got %v, want an *Error", err)
			}
			if strings.Contains(err.Error(), "struct") || strings.Contains(err.Error(), "Go ") {
				t.Errorf("%q speaks of this program's types", err)
			}
			if e.Line != c.line || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), file+":") {
				t.Errorf("got %q at line %d, want %q at line %d", err, e.Line, c.want, c.line)
			}
		})
	}
}

func TestLoadRefusesHugeAndMissing(t *testing.T) {
	_, err := Load(write(t, strings.Repeat("#", MaxSize+1)), new(sample))
	if err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge file: %v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml"), new(sample)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestErrorfFindsLines(t *testing.T) {
	name := write(t, "# a comment\nname = \"x\"\n\n[registry]\n  kind = \"dir\"\n\n[[slot]]\nport = \"a\"\n[[slot]]\n\n\"port\" = \"b\"\n")
	file, err := Load(name, new(sample))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]int{
		"name": 2, "registry": 4, "registry.kind": 5, "registry.dir": 4, "slot[0]": 7, "slot[0].port": 8,
		"slot[1].port": 11, "slot[1].baud": 9, "slot[2].port": 0, "count": 0,
	} {
		e, _ := errors.AsType[*Error](file.Errorf(key, "Mend it.", "bad %d", 1))
		if e.Line != want || e.File != name || e.Problem != "bad 1" || e.Remedy != "Mend it." {
			t.Errorf("%s: %+v, want line %d", key, e, want)
		}
	}
}

func TestRegistryCheck(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"dir":                  {"[registry]\nkind = \"dir\"\ndir = \"/srv/r\"\n", ""},
		"aws":                  {"[registry]\nkind = \"aws\"\nbucket = \"keys\"\nregion = \"us-east-1\"\npubkey_format = \"pem\"\n", ""},
		"none":                 {"name = \"x\"\n", `registry.kind is missing. Add a table [registry]`},
		"unknown":              {"[registry]\nkind = \"gcp\"\n", `:2: registry.kind is "gcp". Write "aws" or "dir".`},
		"relative":             {"[registry]\nkind = \"dir\"\ndir = \"r\"\n", `:3: registry.dir is "r". Write the absolute path`},
		"no bucket":            {"[registry]\nkind = \"aws\"\n", `:1: registry.bucket is missing`},
		"bucket with dir":      {"[registry]\nkind = \"dir\"\ndir = \"/r\"\nbucket = \"b\"\n", `:4: registry.bucket does not go with registry.kind = "dir". Remove it, or write kind = "aws".`},
		"dir with aws":         {"[registry]\nkind = \"aws\"\nbucket = \"keys\"\ndir = \"/r\"\n", `:4: registry.dir does not go with registry.kind = "aws"`},
		"bucket with a scheme": {"[registry]\nkind = \"aws\"\nbucket = \"s3://keys\"\n", `:3: registry.bucket is "s3://keys". Write the name of the bucket alone`},
		"table with a blank":   {"[registry]\nkind = \"aws\"\nbucket = \"keys\"\ntable = \"my table\"\n", `:4: registry.table is "my table". Write the name of the table`},
		"region with a blank":  {"[registry]\nkind = \"aws\"\nbucket = \"keys\"\nregion = \" us-east-1\"\n", `:4: registry.region is " us-east-1". Write the name of the region`},
		"region in words":      {"[registry]\nkind = \"aws\"\nbucket = \"keys\"\nregion = \"Frankfurt\"\n", `:4: registry.region is "Frankfurt". Write`},
		"endpoint, no scheme":  {"[registry]\nkind = \"aws\"\nbucket = \"keys\"\ndynamodb_endpoint = \"localhost:8000\"\n", `:4: registry.dynamodb_endpoint is "localhost:8000". Write http:// or https://`},
		"endpoint, bad port":   {"[registry]\nkind = \"aws\"\nbucket = \"keys\"\ns3_endpoint = \"http://localhost:99999\"\n", `:4: registry.s3_endpoint is "http://localhost:99999". Write http:// or https://`},
		"endpoints":            {"[registry]\nkind = \"aws\"\nbucket = \"keys\"\nregion = \"garage\"\ns3_endpoint = \"https://[::1]:7070/\"\ndynamodb_endpoint = \"http://vpce-1.example\"\n", ""},
		"wrong pubkey format":  {"[registry]\nkind = \"dir\"\ndir = \"/r\"\npubkey_format = \"der\"\n", `:4: registry.pubkey_format is "der". Write "base64-pem" or "pem".`},
	} {
		t.Run(name, func(t *testing.T) {
			var s sample
			file, err := Load(write(t, c.text), &s)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Registry.Check(file)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestOpenHintsAtInit(t *testing.T) {
	dir := t.TempDir()
	_, registry, err := Registry{Kind: "dir", Dir: dir}.Open(t.Context(), "widgiot")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Lookup(t.Context(), board.DeviceID{1}); !errors.Is(err, cloud.ErrNoRegistry) || !strings.Contains(err.Error(), "stationctl registry init "+dir) {
		t.Errorf("lookup in a folder that is no registry: %v", err)
	}
}
