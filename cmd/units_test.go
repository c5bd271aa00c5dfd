package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
)

const sysusers = "../systemd/sysusers.d/secretfree.conf"

// settings of a unit, by section and name; a setting may be there more than once.
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

// The units start the commands with the configuration that they look for by themselves, as users that exist, and whatever
// a unit needs of another file is there.
func TestUnits(t *testing.T) {
	users, err := os.ReadFile(sysusers)
	if err != nil {
		t.Fatal(err)
	}
	drivers := map[string]string{"char-ttyACM": "cdc_acm", "char-ttyUSB": "usbserial", "char-ttyS": ""} // "" is in every kernel
	for _, name := range []string{"stationd", "issuerd"} {
		s := settings(t, name+".service")
		for key, want := range map[string]string{
			"Service.ExecStart": "/usr/bin/" + name + " --config /etc/secretfree/" + name + ".toml", "Service.Type": "notify",
			"Service.User": name, "Service.Group": name, "Service.StateDirectory": name, "Service.Restart": "always",
			"Service.RestartPreventExitStatus": "2", "Service.ProtectSystem": "strict", "Service.NoNewPrivileges": "yes",
		} {
			if got := s[key]; len(got) != 1 || got[0] != want {
				t.Errorf("%s.service: %s is %q, want %q", name, key, got, want)
			}
		}
		if !strings.Contains(string(users), "\nu "+name+" - ") {
			t.Errorf("%s makes no user %s", sysusers, name)
		}
		for _, group := range s["Service.SupplementaryGroups"] {
			if !strings.Contains(string(users), "\nm "+name+" "+group+"\n") {
				t.Errorf("%s does not put %s into the group %s", sysusers, name, group)
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
	if n := len(settings(t, "stationd.service")["Service.DeviceAllow"]); n < 3 {
		t.Errorf("stationd.service allows %d kinds of ports", n)
	}
}

// The socket is the one that issuerd takes by this name, and the service that it starts is of the same name.
func TestSocketUnit(t *testing.T) {
	s := settings(t, "issuerd.socket")
	for key, want := range map[string]string{"Socket.ListenStream": "443", "Socket.FileDescriptorName": "listen", "Install.WantedBy": "sockets.target"} {
		if got := s[key]; len(got) != 1 || got[0] != want {
			t.Errorf("issuerd.socket: %s is %q, want %q", key, got, want)
		}
	}
	if got := s["Socket.Service"]; got != nil {
		t.Errorf("it starts %q", got)
	}
	if got := settings(t, "issuerd.service")["Service.ExecReload"]; len(got) != 1 || got[0] != "/bin/kill -HUP $MAINPID" {
		t.Errorf("issuerd.service: ExecReload is %q", got)
	}
}

var udevRule = regexp.MustCompile(`^ATTRS\{idVendor\}=="[0-9a-f]{4}", ATTRS\{idProduct\}=="[0-9a-f]{4}", ENV\{ID_MM_DEVICE_IGNORE\}="1"$`)

// The rules keep ModemManager away from adapters, and do nothing else.
func TestUdevRules(t *testing.T) {
	text, err := os.ReadFile("../systemd/udev/70-secretfree.rules")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"0451", ATTRS{idProduct}=="bef3"`) {
		t.Error("there is no rule for the probe of the LaunchPads")
	}
	frame := []string{"", `ACTION=="remove", GOTO="secretfree_end"`, `SUBSYSTEM!="usb", SUBSYSTEM!="tty", GOTO="secretfree_end"`, `LABEL="secretfree_end"`}
	for i, line := range strings.Split(string(text), "\n") {
		if !udevRule.MatchString(line) && !strings.HasPrefix(line, "#") && !slices.Contains(frame, line) {
			t.Errorf("line %d is no such rule: %s", i+1, line)
		}
	}
}

// A folder that the sample names as a registry can be written to under the unit.
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

// A station cannot be built with the weakness that the mutation campaign must find.
func TestNoWeakenedStation(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "vet", "-tags", "weakened", "../cmd/internal/stationd").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "noStationIsBuiltWithTheTagWeakened") {
		t.Errorf("it can: %v\n%s", err, out)
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

// systemd knows every setting of the units.
func TestUnitsVerify(t *testing.T) {
	analyze := peer(t, "systemd-analyze")
	dir := t.TempDir()
	started := regexp.MustCompile(`ExecStart=/usr/bin/[a-z]+`)
	for _, name := range []string{"stationd.service", "issuerd.service", "issuerd.socket", "issuerd-sweep.service", "issuerd-sweep.timer"} {
		text, err := os.ReadFile("../systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		self, err := os.Executable() // in the place of what is not installed here
		if err != nil {
			t.Fatal(err)
		}
		installed := started.ReplaceAllString(string(text), "ExecStart="+self)
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
	path, err := filepath.Abs(sysusers)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
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
