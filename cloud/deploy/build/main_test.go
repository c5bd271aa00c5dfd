package main

import (
	"archive/zip"
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Two copies of the sources, in two folders, give the same bytes. small stands
// for the real program, which takes minutes to compile without paths.
const small = "secretfree/cloud/deploy/build"

func TestReproducible(t *testing.T) {
	if os.Getenv("CI") != "true" {
		t.Skip("compiles the standard library without paths: set CI=true")
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	var packages [][]byte
	for _, folder := range []string{"a", "a longer name"} {
		dir := filepath.Join(t.TempDir(), folder)
		for _, part := range []string{"go.mod", "go.sum", "cloud", "cmd", "spool", "station", "uart"} {
			copyTree(t, filepath.Join(root, part), filepath.Join(dir, part))
		}
		write(t, filepath.Join(dir, "keys", "line3-a.pub"), "a key")
		write(t, filepath.Join(dir, "keys", "README"), "no key")
		write(t, filepath.Join(dir, "ca", "root.pem"), "a root")
		write(t, filepath.Join(dir, "ca", "issuing.pem"), "a CA")
		write(t, filepath.Join(dir, "ca", "issuing.key"), "never this")
		t.Chdir(dir)
		if err := run(t.Context(), "dist", "keys", "ca", runtime.GOARCH, small); err != nil {
			t.Fatal(err)
		}
		packed, err := os.ReadFile(filepath.Join("dist", packageName))
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, packed)
	}
	if !bytes.Equal(packages[0], packages[1]) {
		t.Error("the folder makes a difference")
	}
	r, err := zip.NewReader(bytes.NewReader(packages[0]), int64(len(packages[0])))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range r.File {
		got[f.Name] = f.Mode().String()
	}
	want := map[string]string{"bootstrap": "-rwxr-xr-x", "stations/line3-a.pub": "-rw-r--r--", "ca/root.pem": "-rw-r--r--", "ca/issuing.pem": "-rw-r--r--"}
	if len(got) != len(want) {
		t.Errorf("the package holds %v", got)
	}
	for name, mode := range want {
		if got[name] != mode {
			t.Errorf("%s is %q, want %q", name, got[name], mode)
		}
	}
}

func TestRefusals(t *testing.T) {
	empty, keys := t.TempDir(), t.TempDir()
	write(t, filepath.Join(keys, "a.pub"), "a key")
	leaky := t.TempDir()
	write(t, filepath.Join(leaky, "root.pem"), "-----BEGIN EC PRIVATE KEY-----")
	for _, c := range []struct{ stations, ca, arch, want string }{
		{"", "", "arm64", "-stations has to name a folder"},
		{empty, "", "arm64", "-stations has to name a folder"},
		{keys, empty, "arm64", "root.pem"},
		{keys, leaky, "arm64", "holds a private key"},
		{keys, "", "z80", "go build"},
	} {
		if err := run(t.Context(), t.TempDir(), c.stations, c.ca, c.arch, small); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(text))
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
