package cmd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
)

// sysusers makes the user of a daemon.
func sysusers(daemon string) string { return "../systemd/sysusers.d/" + packageOf(daemon) + ".conf" }

func packageOf(daemon string) string { return "secretfree-" + strings.TrimSuffix(daemon, "d") }

// settings of a unit, by section and name; a setting may be there more than
// once.
func settings(t *testing.T, name string) map[string][]string {
	t.Helper()
	f, err := os.Open(filepath.Join("../systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	options, err := unit.DeserializeOptions(f)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, o := range options {
		all[o.Section+"."+o.Name] = append(all[o.Section+"."+o.Name], o.Value)
	}
	return all
}

// The units start the commands with the configuration that they look for by
// themselves, as users that exist, and whatever a unit needs of another file is
// there.
func TestUnits(t *testing.T) {
	drivers := map[string]string{"char-ttyACM": "cdc_acm", "char-ttyUSB": "usbserial", "char-ttyS": "", // "" is in the kernel of every machine that has such ports
		"char-ttyAMA": "", "char-ttymxc": "", "char-ttySAC": "", "char-ttyHS": "", "char-ttyO": ""}
	for _, name := range []string{"stationd", "issuerd"} {
		users, err := os.ReadFile(sysusers(name))
		if err != nil {
			t.Fatal(err)
		}
		s := settings(t, name+".service")
		for key, want := range map[string]string{
			"Service.ExecStart": "/usr/bin/" + name + " --config /etc/secretfree/" + name + ".toml", "Service.Type": "notify",
			"Service.User": name, "Service.Group": name, "Service.StateDirectory": name, "Service.Restart": "always",
			"Service.RestartPreventExitStatus": "2", "Service.Environment": "GOTRACEBACK=crash", "Service.LimitCORE": "0",
			"Service.EnvironmentFile": "-/etc/default/" + name,
			"Service.ProtectSystem":   "strict", "Service.NoNewPrivileges": "yes",
		} {
			if got := s[key]; len(got) != 1 || got[0] != want {
				t.Errorf("%s.service: %s is %q, want %q", name, key, got, want)
			}
		}
		if !strings.Contains(string(users), "\nu "+name+" - ") {
			t.Errorf("%s makes no user %s", sysusers(name), name)
		}
		for _, group := range s["Service.SupplementaryGroups"] {
			if !strings.Contains(string(users), "\nm "+name+" "+group+"\n") {
				t.Errorf("%s does not put %s into the group %s", sysusers(name), name, group)
			}
		}
		sample, err := os.ReadFile("../systemd/" + name + ".toml")
		if err != nil || !strings.Contains(string(sample), `"/var/lib/`+name) {
			t.Errorf("the sample of %s does not use StateDirectory=: %v", name, err)
		}
		for _, allowed := range s["Service.DeviceAllow"] {
			device, _, _ := strings.Cut(allowed, " ")
			driver, known := drivers[device]
			if !known {
				t.Errorf("%s.service allows %s, and this test does not know what loads it", name, device)
			}
			for _, key := range []string{"Unit.Wants", "Unit.After"} {
				if driver != "" && !slices.Contains(strings.Fields(strings.Join(s[key], " ")), "modprobe@"+driver+".service") {
					t.Errorf("%s.service allows %s, and its %s has no modprobe@%s.service", name, device, key, driver)
				}
			}
		}
	}
	if n := len(settings(t, "stationd.service")["Service.DeviceAllow"]); n < 8 {
		t.Errorf("stationd.service allows %d kinds of ports", n)
	}
}

// Whoever asks systemctl for more is sent to a manual page that the package
// has.
func TestUnitsDocumentation(t *testing.T) {
	for _, name := range units(t, "*.service", "*.socket") {
		daemon := strings.FieldsFunc(name, func(r rune) bool { return r == '-' || r == '.' })[0]
		tool := strings.TrimSuffix(daemon, "d") + "ctl"
		if got, want := settings(t, name)["Unit.Documentation"], "man:"+daemon+"(8) man:"+tool+"(1)"; len(got) != 1 || got[0] != want {
			t.Errorf("%s: Documentation is %q, want %q", name, got, want)
		}
	}
}

// The sockets are those that the daemons take by this name, and the service
// that each starts is of the same name.
func TestSocketUnits(t *testing.T) {
	for name, address := range map[string]string{"issuerd": "443", "stationd": "127.0.0.1:8080"} {
		s := settings(t, name+".socket")
		for key, want := range map[string]string{"Socket.ListenStream": address, "Socket.FileDescriptorName": "listen", "Install.WantedBy": "sockets.target"} {
			if got := s[key]; len(got) != 1 || got[0] != want {
				t.Errorf("%s.socket: %s is %q, want %q", name, key, got, want)
			}
		}
		if got := s["Socket.Service"]; got != nil {
			t.Errorf("%s.socket starts %q", name, got)
		}
	}
}

// What a timer starts is the daemon's own command, as its user, with its files
// in reach.
func TestTimers(t *testing.T) {
	for name, command := range map[string]string{
		"issuerd-sweep":      "/usr/bin/issuerctl sweep --apply --json --config /etc/secretfree/issuerd.toml",
		"stationd-reconcile": "/usr/bin/stationctl reconcile --json --config /etc/secretfree/stationd.toml",
		"stationd-export":    "/usr/bin/stationctl export --json --config /etc/secretfree/stationd.toml ${STICK}",
	} {
		daemon, _, _ := strings.Cut(name, "-")
		s := settings(t, name+".service")
		for key, want := range map[string]string{"Service.Type": "oneshot", "Service.ExecStart": command, "Service.EnvironmentFile": "-/etc/default/" + daemon, "Service.User": daemon, "Service.Group": daemon,
			"Service.StateDirectory": daemon, "Service.StateDirectoryMode": "0700", "Service.UMask": "0077"} {
			if got := s[key]; len(got) != 1 || got[0] != want {
				t.Errorf("%s.service: %s is %q, want %q", name, key, got, want)
			}
		}
		if s["Install.WantedBy"] != nil {
			t.Errorf("%s.service would run at each boot", name)
		}
		timer := settings(t, name+".timer")
		if got := timer["Install.WantedBy"]; len(timer["Timer.OnCalendar"]) != 1 || len(got) != 1 || got[0] != "timers.target" || timer["Timer.Unit"] != nil {
			t.Errorf("%s.timer: %v", name, timer)
		}
	}
	s := settings(t, "stationd-export.service")
	_, stick, _ := strings.Cut(s["Service.Environment"][0], "STICK=")
	text, err := os.ReadFile("../systemd/stationd-export.service")
	if err != nil {
		t.Fatal(err)
	}
	// The line for /etc/fstab: no automount, which is a mount point without a
	// stick too, and would be asked for one every five minutes.
	line := regexp.MustCompile(`(?m)^#   LABEL=([A-Z]+) (/\S+) vfat (\S+) 0 0$`).FindStringSubmatch(string(text))
	if line == nil || strings.Contains(line[3], "automount") || !strings.Contains(","+line[3]+",", ",noauto,nofail,") {
		t.Fatalf("the line for /etc/fstab is %q", line)
	}
	guide, err := os.ReadFile("../systemd/README.md")
	if err != nil || !strings.Contains(string(guide), strings.TrimPrefix(line[0], "#   ")) {
		t.Errorf("IT's guide has another line for /etc/fstab: %v", err)
	}
	if got := s["Unit.ConditionPathExists"]; line[2] != stick || len(got) != 1 || got[0] != "/dev/disk/by-label/"+line[1] || !slices.Contains(s["Service.ReadWritePaths"], "-"+stick) ||
		!slices.Equal(s["Service.ExecStartPre"], []string{"+/usr/bin/systemctl start ${STICK}"}) {
		t.Errorf("the export writes to %q, waits for %q, mounts by %q and may write to %q", stick, got, s["Service.ExecStartPre"], s["Service.ReadWritePaths"])
	}
}

var udevRule = regexp.MustCompile(`^ATTRS\{idVendor\}=="[0-9a-f]{4}", ATTRS\{idProduct\}=="[0-9a-f]{4}", ENV\{ID_MM_DEVICE_IGNORE\}="1"$`)

// The rules keep ModemManager away from adapters and give their ports to the
// group of the station, and do nothing else.
func TestUdevRules(t *testing.T) {
	text, err := os.ReadFile("../systemd/udev/70-secretfree.rules")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"0451", ATTRS{idProduct}=="bef3"`) {
		t.Error("there is no rule for the probe of the LaunchPads")
	}
	groups := settings(t, "stationd.service")["Service.SupplementaryGroups"]
	permit := fmt.Sprintf(`SUBSYSTEM=="tty", ENV{ID_MM_DEVICE_IGNORE}=="1", GROUP="%s", MODE="0660", TAG-="uaccess"`, strings.Join(groups, " "))
	// The machine's own ports are the kinds that the unit allows and that are
	// on no USB.
	var own []string
	for _, allowed := range settings(t, "stationd.service")["Service.DeviceAllow"] {
		kind := strings.TrimSuffix(strings.TrimPrefix(allowed, "char-"), " rw")
		if kind != "ttyACM" && kind != "ttyUSB" {
			own = append(own, kind+"[0-9]*")
		}
	}
	platform := fmt.Sprintf(`SUBSYSTEM=="tty", KERNEL=="%s", ENV{ID_MM_DEVICE_IGNORE}="1"`, strings.Join(own, "|"))
	if !strings.Contains(string(text), "\n"+platform+"\n") {
		t.Errorf("there is no rule %s", platform)
	}
	if !strings.Contains(string(text), "\n"+permit+"\n") {
		t.Errorf("there is no rule %s", permit)
	}
	frame := []string{"", permit, platform, `ACTION=="remove", GOTO="secretfree_end"`, `SUBSYSTEM!="usb", SUBSYSTEM!="tty", GOTO="secretfree_end"`, `LABEL="secretfree_end"`}
	for i, line := range strings.Split(string(text), "\n") {
		if !udevRule.MatchString(line) && !strings.HasPrefix(line, "#") && !slices.Contains(frame, line) {
			t.Errorf("line %d is no such rule: %s", i+1, line)
		}
	}
}

// A folder that the sample names as a registry can be written to under the
// unit.
func TestRegistryFolder(t *testing.T) {
	sample, err := os.ReadFile("../systemd/stationd.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(sample), `dir  = "`)
	folder, _, ok := strings.Cut(after, `"`)
	if writable := settings(t, "stationd.service")["Service.ReadWritePaths"]; !ok || !slices.Contains(writable, "-"+folder) {
		t.Errorf("the sample has the registry %q, the unit lets stationd write to %q", folder, writable)
	}
}

// What tmpfiles makes is what the units would make: the state directory of the
// user, and the folder of the configuration.
func TestTmpfiles(t *testing.T) {
	for _, daemon := range []string{"stationd", "issuerd"} {
		path := "../systemd/tmpfiles.d/" + packageOf(daemon) + ".conf"
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s := settings(t, daemon+".service")
		state := fmt.Sprintf("d /var/lib/%s %s %s %s -", s["Service.StateDirectory"][0], s["Service.StateDirectoryMode"][0], s["Service.User"][0], s["Service.Group"][0])
		etc := fmt.Sprintf("d /etc/%s 0755 root root -", s["Service.ConfigurationDirectory"][0])
		var lines []string
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		if !slices.Equal(lines, []string{etc, state}) {
			t.Errorf("%s has %q, want %q and %q", path, lines, etc, state)
		}
	}
}

// peer is a program of systemd, with the test skipped where there is none.
func peer(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("there is no %s, and CI must have it", name)
		}
		t.Skipf("there is no %s: systemd itself does not check this here", name)
	}
	return path
}

// units are the names of all files of some kinds.
func units(t *testing.T, kinds ...string) (names []string) {
	t.Helper()
	for _, kind := range kinds {
		found, err := filepath.Glob("../systemd/" + kind)
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s: %v", kind, err)
		}
		for _, path := range found {
			names = append(names, filepath.Base(path))
		}
	}
	return names
}

var exposure = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

// maxExposure is what systemd may say at most of a service: 0 is safe, 10 is
// without any protection.
const maxExposure = 2.0

// What a service could do to the machine if its program were taken over is
// little, and systemd's own measure sees where it is not.
func TestExposure(t *testing.T) {
	analyze := peer(t, "systemd-analyze")
	measure := func(path string) float64 {
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--no-pager", "--offline=true", path).CombinedOutput()
		found := exposure.FindSubmatch(out)
		if err != nil || found == nil {
			t.Fatalf("systemd-analyze security %s: %v\n%s", path, err, out)
		}
		level, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		return level
	}
	dir := t.TempDir()
	for _, name := range units(t, "*.service") {
		level := measure(filepath.Join("../systemd", name))
		t.Logf("%s: %.1f", name, level)
		if level > maxExposure {
			t.Errorf("the exposure of %s is %.1f, want %.1f at most", name, level, maxExposure)
		}
		text, err := os.ReadFile(filepath.Join("../systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		loose := regexp.MustCompile(`(?m)^(CapabilityBoundingSet|SystemCallFilter)=.*\n`).ReplaceAll(text, nil)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, loose, 0o600); err != nil {
			t.Fatal(err)
		}
		if level := measure(path); level <= maxExposure {
			t.Errorf("without capabilities and system calls taken away, the exposure of %s is %.1f: this test sees nothing", name, level)
		}
	}
}

// systemd knows every setting of the units.
func TestUnitsVerify(t *testing.T) {
	analyze := peer(t, "systemd-analyze")
	dir := t.TempDir()
	started := regexp.MustCompile(`(ExecStart(?:Pre)?=)/usr/bin/[a-z]+`)
	for _, name := range units(t, "*.service", "*.socket", "*.timer") {
		text, err := os.ReadFile("../systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		self, err := os.Executable() // in the place of what is not installed here
		if err != nil {
			t.Fatal(err)
		}
		installed := started.ReplaceAllString(string(text), "${1}"+self)
		for what, c := range map[string]struct {
			text string
			good bool
		}{"as it is": {installed, true}, "with a setting that there is not": {strings.NewReplacer("[Service]", "[Service]\nNoSuchSetting=yes", "[Socket]", "[Socket]\nNoSuchSetting=yes", "[Timer]", "[Timer]\nNoSuchSetting=yes").Replace(installed), false}} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", path).CombinedOutput()
			if err := os.WriteFile(path, []byte(installed), 0o600); err != nil { // for a timer that starts it
				t.Fatal(err)
			}
			if good := err == nil && !strings.Contains(string(out), name); good != c.good {
				t.Errorf("%s %s: %v\n%s", name, what, err, out)
			}
		}
	}
}

// systemd makes the users as the units name them.
func TestSysusers(t *testing.T) {
	tool := peer(t, "systemd-sysusers")
	if os.Getuid() != 0 {
		t.Skip("making users in a folder needs root")
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	var text []byte
	for _, daemon := range []string{"stationd", "issuerd"} {
		one, err := os.ReadFile(sysusers(daemon))
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, one...)
	}
	c := exec.CommandContext(t.Context(), tool, "--root="+root, "-")
	c.Stdin = strings.NewReader(string(text))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("systemd-sysusers: %v\n%s", err, out)
	}
	for file, wants := range map[string][]string{"passwd": {"stationd:", "issuerd:"}, "group": {"stationd:", "issuerd:", "dialout:"}} {
		made, err := os.ReadFile(filepath.Join(root, "etc", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wants {
			if !strings.Contains("\n"+string(made), "\n"+want) {
				t.Errorf("%s has no %s:\n%s", file, want, made)
			}
		}
		if file == "group" && !strings.Contains(string(made), ":stationd\n") {
			t.Errorf("stationd is not in the group dialout:\n%s", made)
		}
	}
}
