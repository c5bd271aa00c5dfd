// Package doctor examines a station: its machine, its ports, its disk, its
// registry and its journal. It changes nothing, bar a file without a name in
// the state directory that it writes to see how long that takes, and a pair of
// writes of its own to the registry, which it removes, to see that the second is
// refused.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/cmd/internal/stationconf"
)

// Level says how bad a finding is.
type Level string

// How bad a finding is.
const (
	OK   Level = "ok"
	Warn Level = "warn" // the line goes on; somebody should act
	Fail Level = "fail" // something does not work, or will lose records
)

// Result is one finding.
type Result struct {
	Check  string `json:"check"` // a stable word, as "disk.sync"
	Level  Level  `json:"level"`
	Text   string `json:"text"`
	Remedy string `json:"remedy"` // what to do; empty if nothing
	TookMS int64  `json:"took_ms"`
}

func good(check, format string, args ...any) Result {
	return Result{Check: check, Level: OK, Text: fmt.Sprintf(format, args...)}
}

func warn(check, remedy, format string, args ...any) Result {
	return Result{Check: check, Level: Warn, Text: fmt.Sprintf(format, args...), Remedy: remedy}
}

func fail(check, remedy, format string, args ...any) Result {
	return Result{Check: check, Level: Fail, Text: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Machine is where the station runs. Tests have others.
type Machine struct {
	Root  string // what /proc, /sys, /etc, /run and /usr are under
	UID   int    // who examines
	Now   func() time.Time
	Built time.Time // of this program; zero if it does not know
	// Command runs a program and returns what it writes to its standard output.
	Command func(ctx context.Context, name string, args ...string) ([]byte, error)
	// Synchronised tells whether the kernel's clock follows a server.
	Synchronised func() (bool, error)
	// Sync measures small appends that are synced, in a folder, for a time at
	// the most.
	Sync func(ctx context.Context, dir string, limit time.Duration) (Latency, error)
}

// ThisMachine is the one that this program runs on.
func ThisMachine() Machine {
	m := Machine{Root: "/", UID: os.Geteuid(), Now: time.Now, Sync: measureSync,
		Command: func(ctx context.Context, name string, args ...string) ([]byte, error) {
			c := exec.CommandContext(ctx, name, args...)
			c.WaitDelay = time.Second
			return c.Output()
		},
		Synchronised: func() (bool, error) {
			var t unix.Timex
			_, err := unix.Adjtimex(&t)
			return t.Status&unix.STA_UNSYNC == 0, err
		},
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				m.Built, _ = time.Parse(time.RFC3339, s.Value)
			}
		}
	}
	return m
}

func (m Machine) path(name string) string { return filepath.Join(m.Root, name) }

// read returns a small file of the machine without white space around it; empty
// if it cannot be read.
func (m Machine) read(name string) string {
	data, err := os.ReadFile(m.path(name))
	if err != nil || len(data) > 1<<20 {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// Config says what is examined.
type Config struct {
	Path string // of the station's configuration
	Deep bool   // the whole journal too
	Machine
	// Get asks the page of the station that runs. It is not called without a
	// configuration.
	Get func(ctx context.Context, listen, path string) (body []byte, status int, err error)
}

// exam is one examination.
type exam struct {
	Config
	station    stationconf.Config
	configErr  error  // why there is none
	stateDir   string // empty if it is not known
	owner      owner
	unit       map[string]string     // what systemd says of the unit; nil if it was not asked
	socket     bool                  // systemd listens for the unit
	running    *control.DaemonStatus // nil if it does not run, or was not to be seen
	controlErr error                 // why it was not
}

// owner is the user of the station.
type owner struct {
	name string
	uid  uint32
	gids []uint32
	ok   bool // that it is known
}

const (
	unitName   = "stationd.service"
	socketName = "stationd.socket"
)

// limit of one check; the whole takes little more, since they run at once.
const (
	checkLimit    = 5 * time.Second
	registryLimit = 11 * time.Second
	deepLimit     = 12 * time.Hour
	grace         = time.Second // for a check whose context has ended to say so
)

type check struct {
	name  string
	limit time.Duration
	run   func(ctx context.Context) []Result
}

// Examine runs all checks, in less than 15 s unless Deep, and returns what they
// found, in the order of the checks. A check that hangs, as on a share that is
// away, is a finding; what it waits for is left behind.
func Examine(ctx context.Context, c Config) []Result {
	e := newExam(ctx, c)
	checks := []check{
		{"config", checkLimit, e.checkConfig},
		{"access", checkLimit, e.checkAccess},
		{"version", checkLimit, e.checkVersions},
		{"unit", checkLimit, e.checkUnit},
		{"daemon", checkLimit, e.checkDaemon},
		{"port", checkLimit, e.checkPorts},
		{"disk", checkLimit, e.checkDisk},
		{"disk.sync", checkLimit, e.checkSync},
		{"clock", checkLimit, e.checkClock},
		{"journal", checkLimit, e.checkJournal},
		{"registry", registryLimit, e.checkRegistry},
	}
	if c.Deep {
		checks = append(checks, check{"journal.deep", deepLimit, e.checkDeep})
	}
	return runAll(ctx, checks)
}

func runAll(ctx context.Context, checks []check) (all []Result) {
	pending := make([]<-chan []Result, len(checks))
	for i, c := range checks {
		done := make(chan []Result, 1)
		pending[i] = done
		go func() { done <- runOne(ctx, c) }()
	}
	for _, done := range pending {
		all = append(all, <-done...)
	}
	return all
}

func runOne(ctx context.Context, c check) []Result {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	done := make(chan []Result, 1)
	go func() { done <- c.run(ctx) }() // left behind if it hangs
	var found []Result
	timer := time.NewTimer(c.limit + grace)
	defer timer.Stop()
	select {
	case found = <-done:
	case <-timer.C:
		found = []Result{fail(c.name, "Something on this machine hangs, such as a disk or a share that is away: see what the kernel says (dmesg), and what is mounted (findmnt).", "no answer in %v", c.limit)}
	}
	for i := range found {
		found[i].TookMS = time.Since(began).Milliseconds()
	}
	return found
}

// Failed reports whether something fails.
func Failed(results []Result) bool {
	for _, r := range results {
		if r.Level == Fail {
			return true
		}
	}
	return false
}

// defaultState is where the unit keeps the state.
const defaultState = "/var/lib/stationd"

func newExam(ctx context.Context, c Config) *exam {
	e := &exam{Config: c}
	e.station, e.configErr = stationconf.Load(c.Path)
	e.stateDir = e.station.StateDir
	if e.configErr != nil {
		if e.stateDir = loose(c.Path); e.stateDir == "" {
			if _, err := os.Stat(c.path(defaultState)); err == nil {
				e.stateDir = c.path(defaultState)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit/2)
	defer cancel()
	e.unit = e.askUnit(ctx)
	e.socket = e.askSocket(ctx)
	type answer struct {
		owner   owner
		running *control.DaemonStatus
		err     error
	}
	asked := make(chan answer, 1)
	go func() { // a state directory may hang
		a := answer{owner: e.findOwner(e.stateDir)}
		if e.stateDir != "" {
			a.running, a.err = askRunning(ctx, e.stateDir)
		}
		asked <- a
	}()
	select {
	case a := <-asked:
		e.owner, e.running, e.controlErr = a.owner, a.running, a.err
	case <-ctx.Done():
		e.owner, e.controlErr = e.findOwner(""), ctx.Err()
	}
	return e
}

// loose finds the state directory in a configuration that is wrong elsewhere.
func loose(path string) string {
	var c struct {
		StateDir string `toml:"state_dir"`
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 1<<20 {
		return ""
	}
	data, err := os.ReadFile(path)
	if err != nil || toml.Unmarshal(data, &c) != nil || !filepath.IsAbs(c.StateDir) {
		return ""
	}
	return c.StateDir
}

func askRunning(ctx context.Context, stateDir string) (*control.DaemonStatus, error) {
	client, err := control.Open(stateDir, nil)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	running, err := client.Stats(ctx)
	if err != nil {
		return nil, err
	}
	return &running, nil
}

// askUnit is nil where systemd does not run the machine, or does not answer.
func (e *exam) askUnit(ctx context.Context) map[string]string {
	if _, err := os.Stat(e.path("run/systemd/system")); err != nil {
		return nil
	}
	out, err := e.Command(ctx, "systemctl", "show", unitName, "--property="+
		"LoadState,UnitFileState,ActiveState,SubState,NRestarts,Result,DevicePolicy,DeviceAllow,SupplementaryGroups,User,ExecMainPID,ActiveEnterTimestamp")
	if err != nil {
		return nil
	}
	unit := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			if unit[key] != "" && value != "" {
				value = unit[key] + "\n" + value // DeviceAllow is there once for each
			}
			unit[key] = value
		}
	}
	return unit
}

// askSocket tells whether systemd has the page's address, and starts the
// station when somebody asks there.
func (e *exam) askSocket(ctx context.Context) bool {
	if e.unit == nil {
		return false
	}
	out, err := e.Command(ctx, "systemctl", "show", socketName, "--property=ActiveState")
	return err == nil && strings.TrimSpace(string(out)) == "ActiveState=active"
}

// wouldStart tells whether to ask the page would start a station that is
// stopped.
func (e *exam) wouldStart() bool {
	return e.socket && e.running == nil && e.unit["ActiveState"] != "active"
}

// findOwner takes the owner of the state directory, since nobody else can run
// the station; else the unit's user, else stationd.
func (e *exam) findOwner(stateDir string) owner {
	var found *user.User
	if info, err := os.Stat(stateDir); stateDir != "" && err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			if found, err = user.LookupId(strconv.Itoa(int(stat.Uid))); err != nil {
				return owner{name: "#" + strconv.Itoa(int(stat.Uid)), uid: stat.Uid, ok: true}
			}
		}
	}
	for _, name := range []string{e.unit["User"], "stationd"} {
		if found == nil && name != "" {
			found, _ = user.Lookup(name)
		}
	}
	if found == nil {
		return owner{}
	}
	uid, err := strconv.ParseUint(found.Uid, 10, 32)
	if err != nil {
		return owner{}
	}
	o := owner{name: found.Username, uid: uint32(uid), ok: true}
	ids, _ := found.GroupIds()
	for _, name := range strings.Fields(e.unit["SupplementaryGroups"]) {
		if g, err := user.LookupGroup(name); err == nil {
			ids = append(ids, g.Gid)
		}
	}
	for _, id := range ids {
		if gid, err := strconv.ParseUint(id, 10, 32); err == nil {
			o.gids = append(o.gids, uint32(gid))
		}
	}
	return o
}

// sees reports whether whoever examines may see what the station's user sees.
func (e *exam) sees() bool { return e.UID == 0 || e.owner.ok && e.UID == int(e.owner.uid) }

// asOwner is the remedy for what only the station's user, or root, can see.
func (e *exam) asOwner() string {
	name := e.owner.name
	if name == "" || name == "root" {
		return "Run it as root: sudo stationctl doctor"
	}
	return fmt.Sprintf("Run it as root or as the station's user: sudo -u '%s' stationctl doctor", name)
}

func (e *exam) checkConfig(context.Context) []Result {
	switch {
	case errors.Is(e.configErr, fs.ErrNotExist):
		return []Result{fail("config", "Make one: stationd init; or name it with --config. Ports, clock and disk are looked at all the same.", "there is no configuration %s", e.Path)}
	case errors.Is(e.configErr, fs.ErrPermission):
		return []Result{fail("config", e.asOwner(), "the configuration %s may not be read by this user", e.Path)}
	case e.configErr != nil:
		return []Result{fail("config", "Correct the file; stationd --check says whether it is right.", "%v", e.configErr)}
	}
	c := e.station
	return []Result{good("config", "%s is right: station %s, product %s, %s, registry %s", e.Path, c.Station, c.SKU, cli.Count(len(c.Slots), "slot", "slots"), c.Registry.Kind)}
}
