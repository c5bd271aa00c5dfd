package stationconf

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"secretfree/cloud"
	"secretfree/station"
	"secretfree/systemd"
	"secretfree/uart"
)

// The sample and what is written are one text: of the sample's own values the
// sample is made.
func TestComposeSample(t *testing.T) {
	c, err := Load(sample)
	if err != nil {
		t.Fatal(err)
	}
	text, err := Compose(Choices{SKU: c.SKU, Station: c.Station, Slots: c.Slots, Registry: c.Registry.Kind, Bucket: c.Registry.Bucket, Region: c.Registry.Region})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(systemd.StationConfig, text); diff != "" {
		t.Error(diff)
	}
}

// What is chosen is what is loaded, whatever the characters.
func TestCompose(t *testing.T) {
	for name, c := range map[string]Choices{
		"nothing but what is needed": {SKU: "w", Station: "a", Slots: []Slot{{Name: "A", Port: "/dev/a", Dialect: "auto"}}, Registry: "none"},
		"all of it": {SKU: "widgiot", Station: "line3-a", Registry: "dir", Dir: "/srv/a $1 \"b\" \\ ü\u007f", Listen: "[::1]:80", Language: "vi", StateDir: "/s\tx",
			Slots: []Slot{{Name: `A "left" $0`, Port: "/dev/a", Dialect: "ti-at"}, {Name: "B", Port: `/dev/\b`, Dialect: "report"}, {Name: "C", Port: "auto:0451:bef3", Dialect: "auto"}}},
		"aws without a region": {SKU: "w", Station: "a", Slots: []Slot{{Name: "A", Port: "/dev/a", Dialect: "auto"}}, Registry: "aws", Bucket: "b-b"},
	} {
		text, err := Compose(c)
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := parse(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		back := Choices{SKU: got.SKU, Station: got.Station, Slots: got.Slots, Registry: got.Registry.Kind, Bucket: got.Registry.Bucket, Region: got.Registry.Region,
			Dir: got.Registry.Dir, Listen: got.Listen, StateDir: got.StateDir, Language: got.Page.Language}
		if c.Listen == "" {
			c.Listen = DefaultListen
		}
		if c.Language == "" {
			c.Language = station.English
		}
		if c.StateDir == "" {
			c.StateDir = "/var/lib/stationd"
		}
		if diff := cmp.Diff(c, back); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if _, err := Compose(Choices{}); err == nil {
		t.Error("a configuration without a slot")
	}
}

func TestInstall(t *testing.T) {
	name := filepath.Join(t.TempDir(), "etc", "stationd.toml")
	mine := Owned{UID: -1, GID: -1, Mode: 0o640}
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if kept, err := Install(name, "one", false, mine); kept != "" || err != nil || read(name) != "one" {
		t.Fatal(kept, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o640 {
		t.Error(info.Mode(), err)
	}
	if _, err := Install(name, "two", false, mine); !errors.Is(err, ErrExists) || read(name) != "one" {
		t.Errorf("written over: %v", err)
	}
	if kept, err := Install(name, "two", true, mine); kept != name+".old" || err != nil || read(name) != "two" || read(kept) != "one" {
		t.Errorf("%q, %v", kept, err)
	}
	if kept, err := Install(name, "three", true, mine); err != nil || read(name) != "three" || read(kept) != "two" {
		t.Errorf("an older old one is in the way: %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(name)); err != nil || len(left) != 2 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if _, err := Install(filepath.Join(name, "x"), "", false, mine); err == nil {
		t.Error("a folder that is a file")
	}
}

// With as many answers as it takes, and with each bad one told why.
func TestAsk(t *testing.T) {
	root := t.TempDir()
	ports := []uart.Listed{
		{Path: "/dev/serial/by-path/one", Device: "/dev/ttyACM0", Vendor: "0451", Product: "bef3", Adapter: "XDS110 (L1)", Port: 1, Ports: 2},
		{Path: "/dev/serial/by-path/two", Device: "/dev/ttyACM1", Vendor: "0451", Product: "bef3", Adapter: "XDS110 (L1)", Port: 2, Ports: 2},
		{Path: "/dev/ttyUSB0", Device: "/dev/ttyUSB0", Vendor: "1a86", Product: "7523", Port: 1, Ports: 1},
	}
	slots := func(paths ...string) (list []Slot) {
		for i, path := range paths {
			list = append(list, Slot{Name: SlotName(i), Port: path})
		}
		return list
	}
	for name, c := range map[string]struct {
		given   Choices
		answers string
		want    Choices
		says    []string
	}{
		"all": {answers: "w\nline1\n1-3\nnone\n", want: Choices{SKU: "w", Station: "line1", Registry: "none", Slots: slots(ports[0].Path, ports[1].Path, ports[2].Path)},
			says: []string{"1 of 4", "ttyACM0, XDS110 (L1), port 1 of 2, held by minicom", "the silent port of an XDS110", "ttyUSB0, USB 1a86:7523", "slot C is /dev/ttyUSB0"}},
		"again": {answers: "\nW\nw\n\nline1\n0\n2-1\n4\n1 1\nx\n\n,\n3 1\nno\n\nnone\n", want: Choices{SKU: "w", Station: "line1", Registry: "none", Slots: slots(ports[2].Path, ports[0].Path)},
			says: []string{"an answer is needed", `sku is "W"`, "0 is not in the list", "2-1 is not in the list", "4 is not in the list, which has 3 ports", "slots 1 and 2 both use",
				`"x" is neither`, "which are slots?", `no registry of kind "no"`}},
		"a folder": {answers: "dir\nrelative\n" + root + "/no/no\n" + root + "\n" + root + "/registry\n", given: Choices{SKU: "w", Station: "line1", Slots: slots("/dev/a")},
			want: Choices{SKU: "w", Station: "line1", Slots: slots("/dev/a"), Registry: "dir", Dir: root + "/registry"},
			says: []string{`registry.dir is "relative"`, "there is no folder", "holds other things (letter)"}},
		"aws": {answers: "B\nbucket\nus east\n\n", given: Choices{SKU: "w", Station: "line1", Slots: slots("/dev/a"), Registry: "aws"},
			want: Choices{SKU: "w", Station: "line1", Slots: slots("/dev/a"), Registry: "aws", Bucket: "bucket"}, says: []string{`registry.bucket is "B"`, `registry.region is "us east"`}},
		"nothing is missing": {given: Choices{SKU: "w", Station: "line1", Slots: slots("/dev/a"), Registry: "none"}, want: Choices{SKU: "w", Station: "line1", Slots: slots("/dev/a"), Registry: "none"}},
	} {
		if err := os.WriteFile(filepath.Join(root, "letter"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		q := Questions{In: strings.NewReader(c.answers), Out: &out, Ports: func() ([]uart.Listed, error) { return ports, nil }, Use: func(path string) error {
			if path == ports[0].Path {
				return errors.New("held by minicom")
			}
			return nil
		}}
		got := c.given
		if err := q.Ask(t.Context(), &got); err != nil {
			t.Errorf("%s: %v\n%s", name, err, &out)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		for _, want := range c.says {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: it does not say %q:\n%s", name, want, &out)
			}
		}
		// Fewer answers than it takes are none.
		if lines := strings.SplitAfter(c.answers, "\n"); c.answers != "" {
			q.In, got = strings.NewReader(strings.Join(lines[:len(lines)-2], "")), c.given
			if err := q.Ask(t.Context(), &got); !errors.Is(err, ErrNoAnswer) {
				t.Errorf("%s, with an answer too few: %v", name, err)
			}
		}
	}
}

func TestAskFails(t *testing.T) {
	broken := errors.New("no sysfs")
	q := Questions{In: strings.NewReader("w\nline1\n1\n"), Out: new(bytes.Buffer), Ports: func() ([]uart.Listed, error) { return nil, broken }}
	if err := q.Ask(t.Context(), new(Choices)); !errors.Is(err, broken) {
		t.Errorf("no list of ports: %v", err)
	}
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // ends the reader that waits
	cancel(stopped)
	q.In = r
	if err := q.Ask(ctx, new(Choices)); !errors.Is(err, stopped) || !strings.Contains(err.Error(), "nothing was written") {
		t.Errorf("stopped: %v", err)
	}
}

func TestSlotName(t *testing.T) {
	for i, want := range map[int]string{0: "A", 25: "Z", 26: "AA", 51: "AZ", 52: "BA", 63: "BL"} {
		if got := SlotName(i); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
}

// A folder for the registry is made with its owner; one that is a registry is
// left as it is.
func TestMakeFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "registry")
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 4711, 4712
	}
	if err := MakeFolder(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Stat(path, &stat); err != nil || int(stat.Uid) != uid || int(stat.Gid) != gid {
			t.Errorf("%s belongs to %d:%d, %v", path, stat.Uid, stat.Gid, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := MakeFolder(dir, uid+1, gid); err != nil {
		t.Errorf("once more: %v", err)
	}
	if err := CheckFolder(dir); err != nil {
		t.Errorf("a registry: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := MakeFolder(plain, -1, -1); err != nil {
		t.Fatal(err)
	}
	if err := cloud.InitDir(plain); err != nil {
		t.Error(err)
	}
}
