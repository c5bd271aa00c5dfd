package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationconf"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// awsRegistry is what is asked of a registry in AWS; see package cloud.
type awsRegistry interface {
	Location() cloud.Location
	DescribeCredentials(ctx context.Context) (cloud.CredentialsInfo, error)
	// RoundTrip reads nothing, and tells how long that took and what time it is
	// there.
	Ping(ctx context.Context) (took time.Duration, clock time.Time, err error)
	DescribeTable(ctx context.Context) (cloud.TableInfo, error)
	DescribeBucket(ctx context.Context) (cloud.BucketInfo, error)
	TryRights(ctx context.Context, origin string, known *board.Record) ([]cloud.Right, error)
	prober
}

// prober finds out whether a registry keeps its conditions.
type prober interface {
	ProbeConditions(ctx context.Context, origin string) ([]cloud.Probe, error)
}

const (
	trips     = 5
	slowTrip  = time.Second
	expiresIn = 15 * time.Minute

	allow = "Give the role of this station what StationPolicy in cloud/deploy/template.yaml has, and the role's principal the tag station with the station's name."
)

func (e *exam) checkRegistry(ctx context.Context) []Result {
	switch {
	case e.configErr != nil:
		return []Result{warn("registry", "Correct the configuration first.", "without a configuration it is not known where records go")}
	case e.station.Registry.Kind == stationconf.NoRegistry:
		return []Result{good("registry", "this station has no registry: records leave on a removable medium (stationctl export); when that was last done is on the medium, not here")}
	case e.station.Registry.Kind == "dir":
		return e.checkFolder(ctx, e.station.Registry.Dir)
	}
	aws, _, err := e.station.Registry.Open(ctx, e.station.SKU)
	if err != nil {
		return []Result{fail("registry", "Correct [registry] in the configuration.", "%v", err)}
	}
	return e.checkAWS(ctx, aws)
}

func (e *exam) checkAWS(ctx context.Context, a awsRegistry) (found []Result) {
	p := a.Location()
	found, ok := e.credentials(ctx, a)
	if !ok {
		return found
	}
	took, err := e.roundTrips(ctx, a, &found)
	switch {
	case errors.Is(err, cloud.ErrNotPermitted):
		found = append(found, fail("registry.rights", allow, "dynamodb:GetItem on %s, for enrolling boards, is not permitted: %v", p.Table, err))
	case err != nil:
		// The error of package cloud says what stands between, and what to do.
		found = append(found, fail("registry.reach", "Do what the line says; what the station sees, its log has too: journalctl -u stationd. Boards pass meanwhile, and wait on this disk.", "table %s in %s: %v", p.Table, p.Region, err))
		if e.running != nil && e.running.Stats.LastError == "" && e.running.Stats.Pending == 0 {
			found = append(found, warn("registry", "", "the station itself reports no trouble: it may reach the registry in another way than this user, by a proxy or credentials of its own"))
		}
		return found
	case took > slowTrip:
		found = append(found, warn("registry.time", "See the line to the internet, and whether the region is near. The line does not wait for it; the backlog grows when boards come faster.", "the registry answers in %v (half of %d times)", short(took), trips))
	default:
		found = append(found, good("registry.time", "table %s in %s answers in %v (half of %d times)", p.Table, p.Region, short(took), trips))
	}
	found = append(found, judgeTable(ctx, a, err == nil)...)
	found = append(found, judgeBucket(ctx, a)...)
	rights, err := a.TryRights(ctx, board.Origin(e.station.SKU, e.station.Station), e.sample())
	if err != nil {
		return append(found, warn("registry.rights", "", "%v", err))
	}
	return append(append(found, judgeRights(rights)...), e.probe(ctx, a)...)
}

// probe writes a pair of items and of objects, and removes them.
func (e *exam) probe(ctx context.Context, p prober) (found []Result) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	probes, err := p.ProbeConditions(ctx, board.Origin(e.station.SKU, e.station.Station))
	if err != nil {
		return []Result{warn("registry.conditions", "", "%v", err)}
	}
	for _, probe := range probes {
		switch {
		case probe.Err == nil:
			found = append(found, good("registry.conditions", "%s refuses a second write under one name, as it must", probe.Store))
		case errors.Is(probe.Err, cloud.ErrOverwrites):
			found = append(found, fail("registry.conditions", "Stop the stations that use it, and take AWS, or a store that keeps its conditions.", "%v", probe.Err))
		case errors.Is(probe.Err, cloud.ErrNotPermitted):
			found = append(found, warn("registry.conditions", "Update the stack from cloud/deploy/template.yaml: StationPolicy permits it. Boards are enrolled without it.", "whether %s keeps its conditions could not be probed: %v", probe.Store, probe.Err))
		default:
			found = append(found, warn("registry.conditions", "Try again.", "whether %s keeps its conditions could not be probed: %v", probe.Store, probe.Err))
		}
	}
	return found
}

func (e *exam) credentials(ctx context.Context, a awsRegistry) ([]Result, bool) {
	p := a.Location()
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	seen, err := a.DescribeCredentials(ctx)
	if err != nil {
		remedy := "Give this machine a role, or the user of the station a credentials file. "
		if !e.owner.ok || e.UID != int(e.owner.uid) {
			remedy += "These are the credentials of the user who runs this: " + e.asOwner()
		}
		return []Result{fail("registry.credentials", remedy, "%v", err)}, false
	}
	text := fmt.Sprintf("credentials come from %s; the region is %s", seen.Source, p.Region)
	if !seen.Expires.IsZero() {
		text += ", and they expire at " + stamp(seen.Expires)
	}
	switch {
	case !seen.Expires.IsZero() && seen.Expires.Before(e.Now()):
		return []Result{fail("registry.credentials", "Renew them; they are picked up without a restart.", "%s: they have expired", text)}, true
	case !seen.Expires.IsZero() && seen.Expires.Sub(e.Now()) < expiresIn && !renewsItself(seen.Source):
		return []Result{warn("registry.credentials", "Renew them, or give this machine a role, which renews them by itself.", "%s", text)}, true
	case e.owner.ok && e.UID != int(e.owner.uid) && !renewsItself(seen.Source):
		return []Result{warn("registry.credentials", fmt.Sprintf("See with the station's own: sudo -u '%s' stationctl doctor. What its unit sets (systemctl edit stationd, Environment=) is not seen either way.", e.owner.name),
			"%s; these are of the user who runs this, and the station runs as %s", text, e.owner.name)}, true
	}
	return []Result{good("registry.credentials", "%s", text)}, true
}

// renewsItself tells roles of the machine, which all its users have.
func renewsItself(source string) bool {
	return slices.Contains([]string{"EC2RoleProvider", "CredentialsEndpointProvider", "WebIdentityCredentials"}, source)
}

// roundTrips measures, and compares the clocks by the quickest.
func (e *exam) roundTrips(ctx context.Context, a awsRegistry, found *[]Result) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	var times []time.Duration
	var best Result
	quickest := time.Duration(1<<63 - 1)
	for range trips {
		took, clock, err := a.Ping(ctx)
		if !clock.IsZero() && took < quickest {
			// The clocks are compared at the middle of the trip.
			best, quickest = judgeDrift(e.Now().Add(-took/2), clock, took), took
		}
		if err != nil {
			if best.Check != "" {
				*found = append(*found, best)
			}
			return 0, err
		}
		times = append(times, took)
	}
	if best.Check == "" {
		best = good("clock.registry", "the registry does not tell what time it is")
	}
	*found = append(*found, best)
	return latencyOf(times).P50, nil
}

func judgeTable(ctx context.Context, a awsRegistry, read bool) []Result {
	table := a.Location().Table
	seen, err := a.DescribeTable(ctx)
	switch {
	case errors.Is(err, cloud.ErrNotPermitted) && read:
		return []Result{good("registry.table", "table %s is there and has the right key; the rest is not shown to this user, and a station needs no more", table)}
	case errors.Is(err, cloud.ErrNotPermitted):
		return nil
	case err != nil:
		return []Result{warn("registry.table", "", "%v", err)}
	case seen.Key != cloud.WantedKey:
		return []Result{fail("registry.table", "Make a table with the partition key device-id (S) and no sort key, as cloud/deploy/template.yaml does; or correct table in the configuration.", "table %s has the key %s, want %s", table, seen.Key, cloud.WantedKey)}
	case !seen.Active:
		return []Result{warn("registry.table", "Wait, or see what the console says of it.", "table %s is not active", table)}
	}
	var missing []string
	if seen.Recovery != nil && !*seen.Recovery {
		missing = append(missing, "recovery to a point in time is off")
	}
	if !seen.Protected {
		missing = append(missing, "it can be deleted by one call")
	}
	billing := "with provisioned capacity"
	if seen.OnDemand {
		billing = "on demand"
	}
	if len(missing) > 0 {
		return []Result{warn("registry.table", "Turn on point-in-time recovery and deletion protection, as cloud/deploy/template.yaml has them.", "table %s (%s): %s", table, billing, strings.Join(missing, "; "))}
	}
	return []Result{good("registry.table", "table %s has the key %s and is billed %s", table, seen.Key, billing)}
}

func judgeBucket(ctx context.Context, a awsRegistry) []Result {
	bucket := a.Location().Bucket
	seen, err := a.DescribeBucket(ctx)
	switch {
	case err != nil:
		return []Result{fail("registry.bucket", "Do what the line says.", "%v", err)}
	case seen.Versioned == nil:
		return []Result{good("registry.bucket", "whether bucket %s keeps versions is not shown to this user, and a station need not know", bucket)}
	case !*seen.Versioned:
		return []Result{warn("registry.bucket", "Turn on versioning, as cloud/deploy/template.yaml has it.", "bucket %s keeps no versions: what somebody deletes there is gone", bucket)}
	case seen.Locked != nil && *seen.Locked:
		return []Result{good("registry.bucket", "bucket %s keeps versions and locks objects", bucket)}
	}
	return []Result{good("registry.bucket", "bucket %s keeps versions", bucket)}
}

func judgeRights(rights []cloud.Right) (found []Result) {
	var have, unknown []string
	for _, r := range rights {
		what := r.Action + " on " + r.On
		switch {
		case r.Known && !r.Allowed:
			found = append(found, fail("registry.rights", allow, "%s, for %s, is not permitted: %v", what, r.Why, r.Err))
		case errors.Is(r.Err, cloud.ErrNoConditions):
			found = append(found, fail("registry.store", "Stop the stations that use it, and take DynamoDB, or a server that keeps its rules.", "%s: %v", what, r.Err))
		case r.Known && r.Err != nil:
			found = append(found, warn("registry.store", "Take AWS, or a server that keeps its rules.", "%s: %v", what, r.Err))
		case r.Known:
			have = append(have, what)
		case strings.Contains(r.Err.Error(), "there is nothing yet"):
			unknown = append(unknown, what)
		default:
			found = append(found, warn("registry.rights", "Try again.", "%s, for %s, could not be tried: %v", what, r.Why, r.Err))
		}
	}
	if len(have) > 0 {
		text := "permitted: " + strings.Join(have, ", ")
		if len(unknown) > 0 {
			text += "; there is nothing yet to try these on: " + strings.Join(unknown, ", ")
		}
		found = append(found, good("registry.rights", "%s", text))
	}
	return found
}

// sample is a board that may be enrolled.
func (e *exam) sample() *board.Record {
	v, err := e.verifier()
	if err != nil {
		return nil
	}
	g, err := journal.Inspect(e.stateDir, v)
	if err != nil || g.Sample == nil {
		return nil
	}
	record := g.Sample.Record()
	return &record
}

func (e *exam) checkFolder(ctx context.Context, dir string) (found []Result) {
	registry, err := cloud.OpenDir(cloud.DirConfig{Path: dir})
	if err == nil {
		err = registry.Look()
	}
	if err != nil {
		return folderError(dir, err, e.sees(), e.asOwner())
	}
	for _, name := range []string{"", "/items", "/guards", "/pubkeys", "/registry.json"} {
		if !e.mayWrite(dir + name) {
			return []Result{fail("registry.folder", fmt.Sprintf("chown -R %s %s; a folder elsewhere than /srv/registry also needs ReadWritePaths= (systemctl edit stationd).", e.owner.name, dir), "the station's user %s may not write to %s", e.owner.name, dir+name)}
		}
	}
	found = append(found, good("registry.folder", "%s is a registry, and the station may write there", dir))
	found = append(found, e.probe(ctx, registry)...)
	m, ok := e.findMount(dir)
	if ok {
		// A share is what this is for; what else may be wrong with a file
		// system is as bad here.
		for _, r := range judgeMount("registry.filesystem", dir, m) {
			if kind, _, _ := strings.Cut(m.kind, "."); r.Level == Fail && kind != "tmpfs" && kind != "ramfs" {
				r = warn("registry.filesystem", "Have only this machine write there, or make sure that the share has locks (flock) between machines.", "%s is on a network share (%s)", dir, m.kind)
			}
			found = append(found, r)
		}
	}
	found = append(found, judgeFull(dir, e.station.Disk)...)
	if sameDisk(dir, e.stateDir) {
		found = append(found, warn("registry.copy", "Put the registry on another disk, best on another machine.", "the registry is on the file system of state_dir: one lost disk loses both"))
	}
	return found
}

func sameDisk(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Dev == y.Dev
}

// mayWrite asks the kernel if the station's user examines, and otherwise goes
// by the mode: access lists are not seen then.
func (e *exam) mayWrite(path string) bool {
	if !e.owner.ok || e.UID == int(e.owner.uid) {
		return unix.Access(path, unix.W_OK) == nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	return e.owner.may(info, 0o2)
}

func folderError(dir string, err error, sees bool, asOwner string) []Result {
	switch {
	case errors.Is(err, cloud.ErrNoRegistry):
		return []Result{fail("registry.folder", fmt.Sprintf("If its disk or share is missing, mount it. A new one: stationctl registry init %s", dir), "%s is no registry: %v", dir, err)}
	case errors.Is(err, os.ErrPermission) && !sees:
		return []Result{warn("registry.folder", asOwner, "%s could not be looked into: %v", dir, err)}
	}
	return []Result{fail("registry.folder", "Give the folder to the user of the station, or mount it.", "%s cannot be used: %v", dir, err)}
}

// judgeFull measures the file system of a registry by the limits of the
// station's own.
func judgeFull(dir string, limits stationconf.Disk) []Result {
	free, size, err := freeOf(dir)
	if err != nil {
		return []Result{warn("registry.room", "", "the room in %s could not be measured: %v", dir, err)}
	}
	percent := int64(0)
	if size > 0 {
		percent = 100 - free*100/size
	}
	switch {
	case percent >= int64(limits.Critical):
		return []Result{fail("registry.room", "Make room there; records wait on the station's disk meanwhile.", "the file system of the registry is %d %% full: %s are free", percent, cli.Size(free))}
	case percent >= int64(limits.Warn):
		return []Result{warn("registry.room", "Make room there.", "the file system of the registry is %d %% full: %s are free", percent, cli.Size(free))}
	}
	return []Result{good("registry.room", "%s are free in the registry", cli.Size(free))}
}
