package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"secretfree/cmd/internal/stationconf"
	"secretfree/spool"
)

// newer makes a segment one of a newer version.
func newer(t *testing.T, segment string) {
	t.Helper()
	data, err := os.ReadFile(segment)
	must(t, err)
	first, rest, _ := bytes.Cut(data, []byte("\n"))
	entry := regexp.MustCompile(`"format":[0-9]+`).ReplaceAll(first[:len(first)-len(" 01234567")], []byte(`"format":99`))
	must(t, os.WriteFile(segment, fmt.Appendf(nil, "%s %08x\n%s", entry, crc32.Checksum(entry, crc32.MakeTable(crc32.Castagnoli)), rest), 0o600))
}

func TestPorts(t *testing.T) {
	p := newPatient(t)
	p.link("sys/dev/char/1:7/subsystem", "../../../class/tty")
	p.link("sys/dev/char/1:3/subsystem", "../../../class/tty")
	p.file("proc/devices", "Character devices:\n  1 mem\n  4 tty\n  4 ttyS\n\nBlock devices:\n  1 ramdisk\n")
	at := func(e *exam, port string) []Result { return e.checkPort(stationconf.Slot{Name: "A", Port: port}) }
	e := p.exam()
	onlyOK(t, e.checkPorts(t.Context()))
	onlyOK(t, at(e, "/dev/full"))
	want(t, at(e, p.port+"-none"), "warn port.there", "is not there")
	want(t, at(e, "auto:ffff:0001"), "warn port.there", "auto:ffff:0001 is not there")
	numbered := p.exam()
	numbered.station.Slots = []stationconf.Slot{{Name: "A", Port: "/dev/ttyUSB97"}}
	want(t, numbered.checkPorts(t.Context()), "warn port.name", "another adapter")
	want(t, at(e, p.c.Path), "fail port.kind", "is no serial port")
	want(t, at(e, "/dev/zero"), "fail port.kind", "is no serial port")

	// Who holds it.
	sleep := exec.Command("sleep", "60")
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	must(t, err)
	sleep.Stdin = null
	must(t, sleep.Start())
	t.Cleanup(func() { sleep.Process.Kill(); sleep.Wait(); null.Close() })
	want(t, at(e, "/dev/null"), "fail port.holder", "sleep (process ")
	for holder, ours := range map[string]bool{"stationd (process 7)": true, "stationd (process 8)": false, "minicom (process 7)": false, "stationd (process 7), screen (process 9)": false} {
		if (&exam{unit: map[string]string{"ExecMainPID": "7"}}).isStation(holder) != ours {
			t.Errorf("%s: ours %v", holder, !ours)
		}
	}

	// Who may open it.
	must(t, os.Chmod(p.port, 0o600))
	e.owner = owner{name: "nobody", uid: 65534, gids: []uint32{65534}, ok: true}
	want(t, at(e, p.port), "fail port.permission", "nobody may not open")
	must(t, os.Chmod(p.port, 0o620))
	want(t, at(e, p.port), "fail port.permission", "nobody may not open")
	must(t, os.Chmod(p.port, 0o666))
	onlyOK(t, at(e, p.port))
	e.UID = 4242
	want(t, at(e, "/dev/full"), "warn port.holder", "could not be seen")
	e = p.exam()
	e.owner = owner{}
	want(t, at(e, p.port), "warn port.permission", "is not known")

	// What the unit lets in.
	for list, good := range map[string]bool{
		"char-ttyUSB rw\nchar-mem rw": true, "char-ttyUSB rw": false, "char-mem r": false, "/dev/full rw": true, "char-* rwm": true, "char-m?m rw": true, "char-[ rw": false, "": false,
		"{ path=char-mem ; x }": false,
	} {
		e = p.exam()
		e.unit = map[string]string{"LoadState": "loaded", "DevicePolicy": "closed", "DeviceAllow": list}
		results := at(e, "/dev/full")
		if good {
			onlyOK(t, results)
		} else {
			want(t, results, "fail port.unit", "/dev/full is of kind mem")
			i := slices.IndexFunc(results, func(r Result) bool { return r.Check == "port.unit" })
			for _, part := range []string{dropIn, `"[Service]"`, `"DeviceAllow=char-mem rw"`} {
				if !strings.Contains(results[i].Remedy, part) {
					t.Errorf("the remedy has no %s: %s", part, results[i].Remedy)
				}
			}
		}
	}
	e.unit["DevicePolicy"], e.unit["DeviceAllow"] = "auto", ""
	onlyOK(t, at(e, "/dev/full"))

	// ModemManager.
	p.file("usr/sbin/ModemManager", "")
	want(t, at(e, "/dev/full"), "warn port.modem", "is not told to leave /dev/full alone")
	p.file("run/udev/data/c1:7", "S:serial/by-id/x\nE:ID_MM_DEVICE_IGNORE=1\n")
	onlyOK(t, at(e, "/dev/full"))
	p.file("run/udev/data/c1:7", "E:ID_MM_DEVICE_IGNORE=0\n")
	want(t, at(e, "/dev/full"), "warn port.modem", "")
	want(t, judgeList(nil, nil), "warn port", "has no serial port")
	want(t, judgeList(nil, errors.New("no /sys")), "warn port", "no /sys")
}

func TestMounts(t *testing.T) {
	all := parseMounts("22 1 8:2 / / rw - ext4 /dev/sda2 rw,data=writeback\n24 22 0:40 / /var/lib/a\\040b rw,noatime shared:3 - tmpfs tmpfs rw,size=1k\nnonsense\n25 22 8:3 / /var/lib rw - xfs /dev/sda3 rw\n26 25 8:4 / /var/lib ro - ext4 /dev/sda4 rw\n")
	for path, want := range map[string]string{"/": "8:2", "/var": "8:2", "/var/lib": "8:4", "/var/library": "8:2", "/var/lib/stationd": "8:4", "/var/lib/a b": "0:40", "/var/lib/a b/c": "0:40"} {
		if m, ok := mountOf(all, path); !ok || m.device != want {
			t.Errorf("%s: %+v, want %s", path, m, want)
		}
	}
	for kind, test := range map[string]struct{ want, text string }{
		"tmpfs": {"fail", "is gone when this machine restarts"}, "ramfs": {"fail", "is gone"}, "nfs4": {"fail", "network share (nfs4)"}, "cifs": {"fail", "network share"},
		"fuse.sshfs": {"warn", "a file system that is a program"}, "fuseblk": {"warn", "a program"}, "overlay": {"warn", "container's own layer"}, "vfat": {"warn", "no journal and no permissions"},
		"ext4": {"ok", "is on ext4"}, "xfs": {"ok", "xfs"}, "btrfs": {"ok", "btrfs"},
	} {
		want(t, judgeMount("disk.filesystem", "/state", mount{kind: kind}), test.want+" disk.filesystem", test.text)
	}
	for option, test := range map[string]struct{ want, text string }{
		"ro": {"fail", "read-only"}, "nobarrier": {"warn", "with nobarrier"}, "barrier=0": {"warn", "with barrier=0"}, "data=writeback": {"warn", "what was there before"},
	} {
		want(t, judgeOptions(mount{point: "/", options: []string{"rw", option}}), test.want+" disk.options", test.text)
	}
	onlyOK(t, judgeOptions(mount{options: []string{"rw", "relatime", "errors=remount-ro"}}))
}

func TestDisk(t *testing.T) {
	p := newPatient(t)
	e := p.exam()
	onlyOK(t, e.checkDisk(t.Context()))
	want(t, e.checkDisk(t.Context()), "ok disk.wear", "up to 20 % of its life")
	p.file("sys/fs/ext4/mmcblk0p2/errors_count", "0\n")
	onlyOK(t, e.checkDisk(t.Context()))
	p.file("sys/fs/ext4/mmcblk0p2/errors_count", "3\n")
	want(t, e.checkDisk(t.Context()), "fail disk.errors", "3 errors")
	p.file("proc/self/mountinfo", "")
	want(t, e.checkDisk(t.Context()), "warn disk.filesystem", "could not be seen")

	for free, level := range map[int64]spool.DiskLevel{50: spool.DiskOK, 15: spool.DiskLow, 1: spool.DiskCritical} {
		word := map[spool.DiskLevel]string{spool.DiskOK: "ok", spool.DiskLow: "warn", spool.DiskCritical: "fail"}[level]
		want(t, []Result{judgeRoom(spool.Disk{Free: free, Size: 100, Level: level})}, word+" disk.room", fmt.Sprintf("%d %% full", 100-free))
	}
	for dir, test := range map[string]struct{ want, text string }{
		p.state + "/none":        {"warn disk.state", "never ran"},
		p.c.Path:                 {"fail disk.state", "is no folder"},
		p.c.Path + "/x":          {"fail disk.state", "not a directory"},
		strings.Repeat("x", 300): {"fail disk.state", "name too long"},
	} {
		e.stateDir = dir
		want(t, e.room(), test.want, test.text)
	}
	want(t, roomError("/s", fs.ErrPermission, "as root"), "warn disk.state", "may not be looked into")
}

func TestDevices(t *testing.T) {
	p := newPatient(t)
	p.disk("sda", "sda1", "8:1", map[string]string{"queue/write_cache": "write back", "queue/rotational": "1", "device/vendor": "ATA"})
	p.disk("sdc", "sdc1", "8:33", map[string]string{"queue/rotational": "1", "device/vendor": "QEMU    "})
	p.disk("nvme0n1", "nvme0n1p3", "259:3", map[string]string{"queue/write_cache": "write through", "queue/rotational": "0"})
	p.disk("mmcblk1", "mmcblk1p1", "179:9", map[string]string{"queue/rotational": "0", "device/type": "SD"})
	p.file("sys/devices/dm-0/queue/rotational", "0")
	p.link("sys/devices/dm-0/slaves/nvme0n1p3", "../../nvme0n1/nvme0n1p3")
	p.link("sys/dev/block/254:0", "../../devices/dm-0")
	p.link("sys/class/block/sda1", "../../devices/sda/sda1")
	e := &exam{Config: p.c}
	for _, test := range []struct{ number, source, name, describe string }{
		{"8:1", "", "sda", "a disk that spins, its cache is write back"},
		{"0:33", "/dev/sda1", "sda", "a disk that spins, its cache is write back"},
		{"8:33", "", "sdc", "a virtual disk"},
		{"259:3", "", "nvme0n1", "an NVMe disk, its cache is write through"},
		{"254:0", "", "nvme0n1", "an NVMe disk, its cache is write through"},
		{"179:9", "", "mmcblk1", "an SD card"},
		{"179:2", "", "mmcblk0", "an eMMC, its cache is write back"},
	} {
		if d, ok := e.deviceOf(mount{device: test.number, source: test.source}); !ok || d.name != test.name || d.describe() != test.describe {
			t.Errorf("%+v: %+v, %s", test, d, d.describe())
		}
	}
	if d, ok := e.deviceOf(mount{device: "0:99", source: "none"}); ok {
		t.Errorf("%+v", d)
	}
	smart := func(out string, err error) func(context.Context, string, ...string) ([]byte, error) {
		return func(context.Context, string, ...string) ([]byte, error) { return []byte(out), err }
	}
	nvme := device{name: "nvme0n1", kind: kindNVMe}
	for _, test := range []struct {
		out        string
		err        error
		want, text string
	}{
		{"", &exec.Error{Name: "smartctl", Err: exec.ErrNotFound}, "ok", "not installed"},
		{"", errors.New("exit status 2"), "ok", "needs root"},
		{`{"smart_status":{"passed":true},"nvme_smart_health_information_log":{"percentage_used":3}}`, nil, "ok", "3 % of its life"},
		{`{"smart_status":{"passed":true},"nvme_smart_health_information_log":{"percentage_used":91}}`, nil, "warn", "91 % of its life"},
		{`{"smart_status":{"passed":true},"endurance_used":{"current_percent":85}}`, nil, "warn", "85 %"},
		{`{"smart_status":{"passed":true},"nvme_smart_health_information_log":{"critical_warning":4}}`, nil, "fail", "says that it fails"},
		{`{"smart_status":{"passed":false}}`, errors.New("exit status 8"), "fail", "says that it fails"},
		{`{"smart_status":{"passed":true}}`, nil, "ok", "is healthy"},
		{`{}`, nil, "ok", "could not be seen"}, {`nonsense`, nil, "ok", "could not be seen"},
	} {
		e.Command = smart(test.out, test.err)
		want(t, e.wear(t.Context(), nvme), test.want+" disk.wear", test.text)
	}
	want(t, e.wear(t.Context(), device{name: "mmcblk1", kind: kindSD}), "warn disk.wear", "an SD card")
	if r := e.wear(t.Context(), device{kind: kindVirtual}); r != nil {
		t.Errorf("%+v", r)
	}
	for _, test := range []struct{ life, eol, want, text string }{
		{"0x01 0x01", "0x01", "ok", "up to 10 %"}, {"0x02 0x08", "0x01", "ok", "up to 80 %"}, {"0x09 0x01", "0x01", "warn", "up to 90 %"},
		{"0x01 0x01", "0x02", "warn", "pre_eol_info 0x02"}, {"0x0b 0x01", "0x01", "fail", "at the end of its life"}, {"0x01 0x01", "0x03", "fail", "at the end"},
		{"0x00 0x00", "0x00", "ok", "does not say"}, {"", "", "ok", "does not say"},
	} {
		want(t, judgeEMMC("mmcblk0", test.life, test.eol, "replace"), test.want+" disk.wear", test.text)
	}
}

func TestSync(t *testing.T) {
	p := newPatient(t)
	e := p.exam()
	for _, test := range []struct {
		l          Latency
		m          mount
		d          device
		want, text string
	}{
		{Latency{200, time.Millisecond, 9 * time.Millisecond, 50 * time.Millisecond}, mount{}, device{}, "ok", "half took less than 1ms"},
		{Latency{9, 90 * time.Millisecond, 400 * time.Millisecond, time.Second}, mount{}, device{}, "warn", "the disk is slow"},
		{Latency{200, 20 * time.Microsecond, 40 * time.Microsecond, time.Millisecond}, mount{}, device{kind: kindVirtual}, "warn", "faster than a disk can write"},
		{Latency{200, 20 * time.Microsecond, 40 * time.Microsecond, time.Millisecond}, mount{}, device{kind: kindDisk}, "warn", "faster than flash can write"},
		{Latency{200, 20 * time.Microsecond, 40 * time.Microsecond, time.Millisecond}, mount{}, device{kind: kindNVMe, cache: "write back"}, "warn", "faster than flash can write"},
		{Latency{200, 20 * time.Microsecond, 40 * time.Microsecond, time.Millisecond}, mount{}, device{kind: kindNVMe, cache: "write through"}, "ok", "no cache that a power cut empties"},
		{Latency{}, mount{}, device{}, "fail", "not one small append"},
	} {
		want(t, judgeSync(test.l, test.m, test.d), test.want+" disk.sync", test.text)
	}
	if r := judgeSync(Latency{N: 1}, mount{kind: "tmpfs"}, device{}); r != nil {
		t.Errorf("%+v", r)
	}
	for err, text := range map[error]string{fs.ErrPermission: "warn could not be measured", errors.New("input/output error"): "fail input/output error"} {
		e.Sync = func(context.Context, string, time.Duration) (Latency, error) { return Latency{}, err }
		level, text, _ := strings.Cut(text, " ")
		want(t, e.checkSync(t.Context()), level+" disk.sync", text)
	}
	if _, err := nameless(filepath.Join(p.root, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
