package cmd_test

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// member is a file of a package.
type member struct {
	tar.Header
	data []byte
}

func members(t *testing.T, deb, what string) map[string]member {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), peer(t, "dpkg-deb"), what, deb).Output()
	if err != nil {
		t.Fatalf("dpkg-deb %s %s: %v", what, deb, err)
	}
	all := map[string]member{}
	for r := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[path.Clean("/"+h.Name)] = member{*h, data}
	}
}

// What .ci/package.sh has made is what is in this tree: units, rules and
// samples as they are here, static programs without a path of the machine that
// built them, and a conffile of nothing that starts a station.
func TestPackages(t *testing.T) {
	dir := os.Getenv("SECRETFREE_DEBS")
	if dir == "" {
		t.Skip("SECRETFREE_DEBS names no folder with packages: .ci/package.sh check makes them, and runs this")
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) == 0 {
		t.Fatalf("no packages in %s: %v", dir, err)
	}
	for _, deb := range debs {
		name, rest, _ := strings.Cut(filepath.Base(deb), "_")
		t.Run(strings.TrimSuffix(name+"_"+rest, ".deb"), func(t *testing.T) { checkPackage(t, name, deb) })
	}
}

func checkPackage(t *testing.T, name, deb string) {
	daemon, tool := "stationd", "stationctl"
	if name == packageOf("issuerd") {
		daemon, tool = "issuerd", "issuerctl"
	}
	files, control := members(t, deb, "--fsys-tarfile"), members(t, deb, "--ctrl-tarfile")
	copies := map[string]string{
		"/usr/lib/sysusers.d/" + name + ".conf":                    sysusers(daemon),
		"/usr/lib/tmpfiles.d/" + name + ".conf":                    "../systemd/tmpfiles.d/" + name + ".conf",
		"/usr/share/doc/" + name + "/examples/" + daemon + ".toml": "../systemd/" + daemon + ".toml",
		"/etc/default/" + daemon:                                   "../systemd/default/" + daemon,
	}
	for _, unit := range units(t, daemon+"*.service", daemon+"*.socket", daemon+"*.timer") {
		copies["/usr/lib/systemd/system/"+unit] = "../systemd/" + unit
	}
	if daemon == "stationd" {
		copies["/usr/lib/udev/rules.d/70-secretfree.rules"] = "../systemd/udev/70-secretfree.rules"
	}
	for installed, source := range copies {
		want, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := files[installed]; !ok || !bytes.Equal(got.data, want) {
			t.Errorf("%s is not %s", installed, source)
		}
	}
	for _, program := range []string{daemon, tool} {
		data := files["/usr/bin/"+program].data
		f, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Errorf("%s is not static", program)
		}
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		for _, place := range []string{home + "/go/pkg/mod", os.TempDir() + "/"} {
			if bytes.Contains(data, []byte(place+"secretfree")) || bytes.Contains(data, []byte(place+"/github.com")) {
				t.Errorf("%s has a path in it that begins with %s", program, place)
			}
		}
	}
	for _, manual := range []string{"/usr/share/man/man8/" + daemon + ".8.gz", "/usr/share/man/man1/" + tool + ".1.gz", "/usr/share/doc/" + name + "/copyright"} {
		if len(files[manual].data) < 300 {
			t.Errorf("%s has %d bytes", manual, len(files[manual].data))
		}
	}
	if got := string(control["/conffiles"].data); got != "/etc/default/"+daemon+"\n" {
		t.Errorf("the conffiles are %q", got)
	}
	var when time.Time
	for file, m := range files {
		if strings.HasPrefix(file, "/etc/secretfree/") || strings.HasPrefix(file, "/var/") || strings.HasPrefix(file, "/srv/") {
			t.Errorf("%s is in the package: dpkg would own it", file)
		}
		mode := int64(0o644)
		if m.Typeflag == tar.TypeDir || path.Dir(file) == "/usr/bin" {
			mode = 0o755
		}
		if m.Uid != 0 || m.Gid != 0 || m.Mode != mode {
			t.Errorf("%s has owner %d:%d and mode %04o, want 0:0 and %04o", file, m.Uid, m.Gid, m.Mode, mode)
		}
		if when.IsZero() {
			when = m.ModTime
		}
		if !m.ModTime.Equal(when) {
			t.Errorf("%s is of %v, others of %v", file, m.ModTime, when)
		}
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		text := control["/"+script].data
		c := exec.CommandContext(t.Context(), "sh", "-n")
		c.Stdin = bytes.NewReader(text)
		if out, err := c.CombinedOutput(); err != nil || !bytes.HasPrefix(text, []byte("#!/bin/sh\n")) || bytes.Contains(text, []byte("@")) {
			t.Errorf("%s: %v %s\n%s", script, err, out, text)
		}
	}
}
