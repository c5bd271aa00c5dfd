package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"secretfree/cmd/internal/cli"
	"secretfree/spool"
)

// mount is a line of /proc/self/mountinfo.
type mount struct {
	device  string // as "8:1"
	point   string
	kind    string
	source  string
	options []string // of the mount and of the file system
}

func parseMounts(text string) (all []mount) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		a, b := strings.Fields(before), strings.Fields(after)
		if !ok || len(a) < 6 || len(b) < 2 {
			continue
		}
		m := mount{device: a[2], point: unescape.Replace(a[4]), kind: b[0], source: unescape.Replace(b[1]), options: strings.Split(a[5], ",")}
		if len(b) > 2 {
			m.options = append(m.options, strings.Split(b[2], ",")...)
		}
		all = append(all, m)
	}
	return all
}

// mountOf is where a path lies; of two mounts on one point the later one
// counts.
func mountOf(all []mount, path string) (best mount, ok bool) {
	for _, m := range all {
		if (m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/")) && len(m.point) >= len(best.point) {
			best, ok = m, true
		}
	}
	return best, ok
}

// findMount finds the mount of a folder, or of the nearest one above it that is
// there.
func (e *exam) findMount(dir string) (mount, bool) {
	for ; ; dir = filepath.Dir(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return mountOf(parseMounts(e.read("proc/self/mountinfo")), real)
		}
		if dir == filepath.Dir(dir) {
			return mount{}, false
		}
	}
}

func (e *exam) checkDisk(ctx context.Context) (found []Result) {
	if e.stateDir == "" {
		return []Result{warn("disk", "", "without a configuration the state directory is not known")}
	}
	found = append(found, e.room()...)
	m, ok := e.findMount(e.stateDir)
	if !ok {
		return append(found, warn("disk.filesystem", "", "the file system of %s could not be seen", e.stateDir))
	}
	found = append(found, judgeMount("disk.filesystem", e.stateDir, m)...)
	found = append(found, judgeOptions(m)...)
	d, ok := e.deviceOf(m)
	if !ok {
		return append(found, good("disk.device", "what lies under %s (%s) could not be seen", m.point, m.source))
	}
	found = append(found, good("disk.device", "%s is %s", d.name, d.describe()))
	if n := e.read("sys/fs/ext4/" + d.part + "/errors_count"); n != "" && n != "0" {
		found = append(found, fail("disk.errors", "Save state_dir now, run fsck on this file system, and replace the disk if it comes again.", "ext4 has found %s errors on %s", n, d.part))
	}
	return append(found, e.wear(ctx, d)...)
}

func (e *exam) room() []Result {
	info, err := os.Stat(e.stateDir)
	if err == nil && !info.IsDir() {
		return []Result{fail("disk.state", "Correct state_dir in the configuration.", "%s is no folder", e.stateDir)}
	}
	if err != nil {
		return roomError(e.stateDir, err, e.asOwner())
	}
	low, critical := e.station.Disk.Warn, e.station.Disk.Critical
	d, err := spool.RoomOf(e.stateDir, low, critical)
	if err != nil {
		return []Result{fail("disk.room", "See what the kernel says of this disk: dmesg", "%v", err)}
	}
	return []Result{judgeRoom(d)}
}

func roomError(dir string, err error, asOwner string) []Result {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Result{warn("disk.state", "Start the station: it makes its state directory at the first start.", "%s is not there: this station never ran", dir)}
	case errors.Is(err, fs.ErrPermission):
		return []Result{warn("disk.state", asOwner, "%s may not be looked into by this user", dir)}
	}
	return []Result{fail("disk.state", "See what the kernel says of this disk: dmesg", "%s cannot be looked at: %v", dir, err)}
}

func judgeRoom(d spool.Disk) Result {
	text := fmt.Sprintf("the disk is %d %% full: %s are free, room for about %d boards", d.Percent(), cli.Size(d.Free), d.Boards())
	if d.Used > 0 { // else they are not to be seen by this user
		text += "; the station's own files take " + cli.Size(d.Used)
	}
	const remedy = "Remove files of others from this file system, or take a larger disk; the guide for IT says how many years fit on which."
	switch d.Level {
	case spool.DiskLow:
		return warn("disk.room", remedy, "%s", text)
	case spool.DiskCritical:
		return fail("disk.room", remedy, "%s", text)
	}
	return good("disk.room", "%s", text)
}

// judgeMount says whether a kind of file system keeps what it was given.
func judgeMount(check, dir string, m mount) []Result {
	const elsewhere = "Put state_dir on a disk of this machine, with ext4 or xfs; it must be the only copy that is written to."
	kind, _, _ := strings.Cut(m.kind, ".")
	switch {
	case slices.Contains([]string{"tmpfs", "ramfs"}, kind):
		return []Result{fail(check, elsewhere, "%s is on %s, which is gone when this machine restarts", dir, m.kind)}
	case slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "virtiofs", "ncpfs"}, kind):
		return []Result{fail(check, elsewhere, "%s is on a network share (%s): its outage stops the line, and locks and syncs there are not to be trusted", dir, m.kind)}
	case kind == "fuse" || kind == "fuseblk":
		return []Result{warn(check, elsewhere, "%s is on %s, a file system that is a program: whether it syncs is up to that", dir, m.kind)}
	case kind == "overlay" || kind == "aufs":
		return []Result{warn(check, "Mount a folder of the machine there (a volume).", "%s is in a container's own layer (%s), which goes with the container", dir, m.kind)}
	case kind == "vfat" || kind == "exfat" || kind == "ntfs" || kind == "ntfs3":
		return []Result{warn(check, elsewhere, "%s is on %s, which has no journal and no permissions", dir, m.kind)}
	}
	return []Result{good(check, "%s is on %s, mounted at %s from %s", dir, m.kind, m.point, m.source)}
}

func judgeOptions(m mount) (found []Result) {
	const fstab = "Remove it from /etc/fstab and mount again, or restart."
	for _, o := range m.options {
		switch o {
		case "ro":
			return []Result{fail("disk.options", "See why: dmesg. A disk with errors is mounted so; run fsck, or replace it. Otherwise correct /etc/fstab.", "%s is mounted read-only: no board can pass", m.point)}
		case "nobarrier", "barrier=0", "nobarriers":
			found = append(found, warn("disk.options", fstab, "%s is mounted with %s: after a power cut, what was synced may be gone", m.point, o))
		case "data=writeback":
			found = append(found, warn("disk.options", fstab, "%s is mounted with %s: after a power cut, a file may hold what was there before it", m.point, o))
		}
	}
	return found
}

// device is the disk under a file system.
type device struct {
	name     string // of the whole disk, as "mmcblk0"
	part     string // of the partition, as "mmcblk0p2"
	kind     string
	spinning bool
	cache    string // as the kernel has it: "write back" or "write through"; empty if it is not known
	dir      string
}

const (
	kindEMMC    = "an eMMC"
	kindSD      = "an SD card"
	kindNVMe    = "an NVMe disk"
	kindVirtual = "a virtual disk"
	kindDisk    = "a disk"
)

func (d device) describe() string {
	text := d.kind
	if d.spinning {
		text += " that spins"
	}
	if d.cache != "" {
		text += ", its cache is " + d.cache
	}
	return text
}

func (e *exam) deviceOf(m mount) (d device, ok bool) {
	dir, err := filepath.EvalSymlinks(e.path("sys/dev/block/" + m.device))
	if err != nil {
		// btrfs and others have a number that is no disk's.
		if dir, err = filepath.EvalSymlinks(e.path("sys/class/block/" + filepath.Base(m.source))); err != nil {
			return d, false
		}
	}
	d.part = filepath.Base(dir)
	for range 8 { // LVM, LUKS and RAID lie on others
		under, err := os.ReadDir(filepath.Join(dir, "slaves"))
		if err != nil || len(under) == 0 {
			break
		}
		next, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", under[0].Name()))
		if err != nil {
			break
		}
		dir = next
	}
	if _, err := os.Stat(filepath.Join(dir, "queue")); err != nil {
		dir = filepath.Dir(dir) // from a partition to its disk
	}
	attribute := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(data))
	}
	d.name, d.dir, d.cache, d.spinning, d.kind = filepath.Base(dir), dir, attribute("queue/write_cache"), attribute("queue/rotational") == "1", kindDisk
	vendor := attribute("device/vendor")
	switch {
	case strings.HasPrefix(d.name, "mmcblk") && attribute("device/type") == "SD":
		d.kind = kindSD
	case strings.HasPrefix(d.name, "mmcblk"):
		d.kind = kindEMMC
	case strings.HasPrefix(d.name, "nvme"):
		d.kind = kindNVMe
	case strings.HasPrefix(d.name, "vd"), strings.HasPrefix(d.name, "xvd"), slices.Contains([]string{"QEMU", "VMware", "VBOX", "Msft"}, vendor):
		d.kind = kindVirtual
	}
	if d.kind == kindVirtual || d.kind == kindSD || d.kind == kindEMMC {
		d.spinning = false // what virtio says of itself is a default
	}
	return d, true
}

// wear tells how worn a disk is, as far as it says.
func (e *exam) wear(ctx context.Context, d device) []Result {
	const replace = "Replace it soon: copy state_dir to a new disk while the station is stopped."
	if d.kind == kindSD {
		return []Result{warn("disk.wear", "Take an eMMC or an SSD for state_dir, best one with power-loss protection.", "%s is an SD card: these wear out without a warning, and few keep what was synced when the power goes", d.name)}
	}
	if d.kind == kindEMMC {
		return judgeEMMC(d.name, e.readAttribute(d, "device/life_time"), e.readAttribute(d, "device/pre_eol_info"), replace)
	}
	if d.kind == kindVirtual || d.kind == kindDisk && d.spinning {
		return nil
	}
	// smartctl's exit code has bits for what it found; the output counts.
	out, err := e.Command(ctx, "smartctl", "--json", "-H", "-A", "/dev/"+d.name)
	if len(out) == 0 {
		if errors.Is(err, exec.ErrNotFound) {
			return []Result{good("disk.wear", "how worn %s is could not be seen: smartctl is not installed (package smartmontools)", d.name)}
		}
		return []Result{good("disk.wear", "how worn %s is could not be seen (smartctl needs root)", d.name)}
	}
	return judgeSMART(d.name, out, replace)
}

func (e *exam) readAttribute(d device, name string) string {
	data, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// judgeEMMC reads what JEDEC has: life_time in steps of 10 % for both kinds of
// cells, 0x0b beyond its end; pre_eol_info 1 good, 2 at 80 % of the spare
// blocks, 3 at 90 %.
func judgeEMMC(name, life, eol, replace string) []Result {
	worst := int64(0)
	for word := range strings.FieldsSeq(life) {
		if n, err := strconv.ParseInt(word, 0, 16); err == nil {
			worst = max(worst, n)
		}
	}
	spare, err := strconv.ParseInt(eol, 0, 16)
	if err != nil {
		spare = 0
	}
	text := fmt.Sprintf("the eMMC %s says that up to %d %% of its life are used", name, worst*10)
	switch {
	case worst >= 0x0b || spare >= 3:
		return []Result{fail("disk.wear", replace, "the eMMC %s says that it is at the end of its life (life_time %s, pre_eol_info %s)", name, life, eol)}
	case worst >= 9 || spare == 2:
		return []Result{warn("disk.wear", replace, "%s (pre_eol_info %s)", text, eol)}
	case worst == 0:
		return []Result{good("disk.wear", "the eMMC %s does not say how worn it is", name)}
	}
	return []Result{good("disk.wear", "%s", text)}
}

func judgeSMART(name string, out []byte, replace string) []Result {
	var s struct {
		Status *struct {
			Passed bool `json:"passed"`
		} `json:"smart_status"`
		NVMe *struct {
			Used     int64 `json:"percentage_used"`
			Critical int64 `json:"critical_warning"`
		} `json:"nvme_smart_health_information_log"`
		Endurance *struct {
			Used int64 `json:"current_percent"`
		} `json:"endurance_used"`
	}
	if err := json.Unmarshal(out, &s); err != nil || s.Status == nil && s.NVMe == nil && s.Endurance == nil {
		return []Result{good("disk.wear", "how worn %s is could not be seen", name)}
	}
	used := int64(-1)
	if s.NVMe != nil {
		used = s.NVMe.Used
	}
	if s.Endurance != nil {
		used = max(used, s.Endurance.Used)
	}
	switch {
	case s.Status != nil && !s.Status.Passed, s.NVMe != nil && s.NVMe.Critical != 0:
		return []Result{fail("disk.wear", replace, "%s says that it fails: smartctl -a /dev/%s", name, name)}
	case used >= 80:
		return []Result{warn("disk.wear", replace, "%s says that %d %% of its life are used", name, used)}
	case used >= 0:
		return []Result{good("disk.wear", "%s says that %d %% of its life are used", name, used)}
	}
	return []Result{good("disk.wear", "%s says that it is healthy", name)}
}

// freeOf is the room on a file system, for those who are not root.
func freeOf(dir string) (free, size int64, err error) {
	var f unix.Statfs_t
	if err := unix.Statfs(dir, &f); err != nil {
		return 0, 0, err
	}
	block := int64(f.Bsize)
	return int64(f.Bavail) * block, int64(f.Blocks) * block, nil
}
