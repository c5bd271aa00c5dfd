package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/spool/journal"
)

func (e *exam) checkVersions(ctx context.Context) []Result {
	kernel := e.read("proc/sys/kernel/osrelease")
	if kernel == "" {
		kernel = "unknown"
	}
	systemd := "none"
	if e.unit != nil {
		systemd = "unknown"
		if out, err := e.Command(ctx, "systemctl", "--version"); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			systemd = strings.TrimPrefix(strings.TrimSpace(first), "systemd ")
		}
	}
	rest := "kernel " + kernel + ", systemd " + systemd
	mine := cli.Version()
	switch {
	case e.running == nil:
		return []Result{good("version", "stationctl %s, which writes journal format %d; %s", mine, journal.Format, rest)}
	case e.running.Version != mine:
		return []Result{warn("version", "Restart the station, so that what is installed runs: systemctl restart stationd. If it stays, two versions are installed: which -a stationd stationctl.",
			"stationd %s runs, and stationctl is %s; %s", e.running.Version, mine, rest)}
	}
	return []Result{good("version", "stationd and stationctl %s, journal format %d; %s", mine, journal.Format, rest)}
}

func (e *exam) checkUnit(context.Context) (found []Result) {
	u := e.unit
	const look = "See why: systemctl status stationd; journalctl -u stationd -n 50"
	switch {
	case u == nil:
		return []Result{good("unit", "systemd does not run this machine, or does not answer: the unit is not looked at")}
	case u["LoadState"] == "not-found":
		return []Result{warn("unit", "Install the package, or copy systemd/stationd.service, then: systemctl daemon-reload && systemctl enable --now stationd", "there is no unit %s: nobody starts the station again", unitName)}
	case u["LoadState"] != "loaded":
		found = append(found, fail("unit", "See what systemd says of it: systemd-analyze verify "+unitName, "the unit %s is %s", unitName, u["LoadState"]))
	}
	if s := u["UnitFileState"]; s != "enabled" && s != "enabled-runtime" && s != "static" {
		found = append(found, warn("unit.enabled", "systemctl enable stationd", "the station is not started when this machine starts (%s)", s))
	}
	switch state := u["ActiveState"]; {
	case state == "active":
		found = append(found, good("unit", "%s is active since %s", unitName, u["ActiveEnterTimestamp"]))
	case state == "failed" || state == "activating" && u["SubState"] == "auto-restart":
		found = append(found, fail("unit", look, "%s does not start: %s (%s)", unitName, state, u["Result"]))
	default:
		found = append(found, warn("unit", "systemctl start stationd", "%s is %s", unitName, state))
	}
	if n := u["NRestarts"]; n != "" && n != "0" {
		found = append(found, warn("unit.restarts", look, "the station was started again %s times because it ended by itself or hung", n))
	}
	return found
}

func (e *exam) checkDaemon(ctx context.Context) []Result {
	if e.running != nil {
		return []Result{health(e.running.Red)}
	}
	if e.configErr != nil {
		return []Result{warn("daemon", "Correct the configuration first.", "without a configuration it is not known where a station would listen")}
	}
	if e.wouldStart() {
		return []Result{warn("daemon", "Open the page, or: systemctl start stationd", "stationd does not run; %s starts it when somebody opens the page, and no board is read before", socketName)}
	}
	body, status, err := e.Get(ctx, e.station.Listen, "/healthz")
	switch {
	case err == nil && errors.Is(e.controlErr, control.ErrNotRunning) && e.sees():
		if running, err := askRunning(ctx, e.stateDir); err == nil { // a socket of systemd has started it by being asked
			return []Result{health(running.Red)}
		}
		return []Result{fail("daemon", "If another program or station has this address, choose another one for listen; then start the station.", "stationd does not run here, and something else answers at %s", e.station.Listen)}
	case err == nil && status == http.StatusOK:
		return []Result{health(nil)}
	case err == nil && status == http.StatusServiceUnavailable:
		var said struct {
			Reasons []string `json:"reasons"`
		}
		if json.Unmarshal(body, &said) != nil || len(said.Reasons) == 0 {
			said.Reasons = []string{"it does not say why to those who show no token: " + e.asOwner()}
		}
		return []Result{health(said.Reasons)}
	case err == nil:
		return []Result{warn("daemon", "If another program has this address, choose another one for listen.", "what answers at %s is no station that tells its health: %d %s", e.station.Listen, status, http.StatusText(status))}
	case e.unit["ActiveState"] == "active":
		return []Result{fail("daemon", "See what it says: journalctl -u stationd -n 50; then: systemctl restart stationd", "the unit is active, and nothing answers at %s: %v", e.station.Listen, err)}
	case e.controlErr != nil && !errors.Is(e.controlErr, control.ErrNotRunning) && !e.sees():
		return []Result{warn("daemon", e.asOwner(), "whether stationd runs could not be seen")}
	}
	return []Result{warn("daemon", "Start it: systemctl start stationd", "stationd does not run")}
}

func health(red []string) Result {
	if len(red) == 0 {
		return good("daemon", "stationd runs, and its health is good")
	}
	return fail("daemon", "Each reason says what to do; see also the lines below.", "stationd runs, and its health is red: %s", strings.Join(red, "; "))
}
