package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationconf"
	"secretfree/spool"
	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

const (
	stalled    = 5 * time.Minute  // as the station's own health has it
	unarchived = time.Hour        // and its notices
	unsigned   = 10 * time.Minute // a station that runs signs every minute
	hanging    = 10 * time.Second
	longWait   = 7 * 24 * time.Hour // for a removable medium

	repair = "stationctl spool repair says what can be had back, from copies and from the registry; --apply does it."
)

const maxPub = 4 << 10

func (e *exam) verifier() (note.Verifier, error) {
	f, err := os.Open(filepath.Join(e.stateDir, "station.pub"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, maxPub)
	n, err := f.Read(data)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(strings.TrimSpace(string(data[:n])))
}

func (e *exam) checkJournal(context.Context) (found []Result) {
	if e.stateDir == "" {
		return nil
	}
	if !e.sees() {
		if f, err := os.Open(e.stateDir); err != nil {
			return []Result{warn("journal", e.asOwner(), "the journal could not be looked at: %v", err)}
		} else {
			f.Close()
		}
	}
	v, err := e.verifier()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Join(e.stateDir, "journal")); err == nil {
			return []Result{fail("journal.key", "Start the station with station.key in place: it writes station.pub again. If station.key is lost too, restore it from a backup; the public key also stands in the first line of each segment of the journal.", "%s has a journal, and no station.pub", e.stateDir)}
		}
		return []Result{good("journal", "there is no journal yet")}
	case err != nil:
		return []Result{fail("journal.key", "If station.key is whole, move station.pub away and start the station: it writes the file again. Otherwise restore both files from one backup.", "%s cannot be used: %v", filepath.Join(e.stateDir, "station.pub"), err)}
	}
	found = append(found, e.checkKey(v)...)
	g, err := journal.Inspect(e.stateDir, v)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return append(found, warn("journal", e.asOwner(), "the journal could not be looked at: %v", err))
	case errors.Is(err, journal.ErrCheckpoint):
		found = append(found, fail("journal.checkpoint", "Start the station: it makes the checkpoint again from the journal and moves the damaged file to journal/quarantine. If station.pub is not that of this station, restore both key files from one backup first.", "%v", err))
	case errors.Is(err, journal.ErrTampered):
		found = append(found, fail("journal", "Do not start it again before it is known why: a journal that was set back, or was changed. Save state_dir as it is, compare it with a backup (stationctl spool verify --state-dir), and see "+repair, "the journal does not fit what was signed: %v", err))
	case errors.Is(err, board.ErrNewer):
		found = append(found, fail("journal", "Install the newer version again; nothing was changed.", "%v", err))
	case err != nil:
		found = append(found, fail("journal", repair, "the journal cannot be read: %v", err))
	default:
		found = append(found, e.judgeGlance(g)...)
	}
	return append(found, e.checkStats()...)
}

// checkKey looks at the private key's file from outside; it is never read.
func (e *exam) checkKey(v note.Verifier) (found []Result) {
	if e.configErr == nil && v.Name() != board.Origin(e.station.SKU, e.station.Station) {
		found = append(found, fail("journal.key", "Set sku and station back, or use another state_dir: a station cannot change its name.", "the key is of %s, and the configuration says %s", v.Name(), board.Origin(e.station.SKU, e.station.Station)))
	}
	path := filepath.Join(e.stateDir, "station.key")
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return append(found, fail("journal.key", "Restore it from a backup. Without a backup give the station a new name and an empty state_dir, and keep this one: its station.pub verifies the records that were made until now.", "%s is missing", path))
	case err != nil:
		return found
	case info.Mode().Perm()&0o077 != 0:
		found = append(found, fail("journal.key", "chmod 600 "+path, "%s has mode %v: others may read the station's private key, and the station does not start", path, info.Mode()))
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && e.owner.ok && stat.Uid != e.owner.uid {
		found = append(found, fail("journal.key", fmt.Sprintf("chown -R %s %s", e.owner.name, e.stateDir), "%s does not belong to the station's user %s, who cannot read it", path, e.owner.name))
	}
	return found
}

func (e *exam) judgeGlance(g journal.Info) (found []Result) {
	if r, bad := judgeNewest(e.Now(), g.Newest); bad {
		found = append(found, r)
	}
	if n := len(g.Damage); n > 0 {
		found = append(found, fail("journal.damage", repair, "the newest segment is damaged: %s", g.Damage[0]))
	}
	if g.Entries > g.Signed && e.running != nil && !g.Newest.IsZero() && e.Now().Sub(g.Newest) > unsigned {
		found = append(found, warn("journal.signed", "See what the station says: journalctl -u stationd -n 50", "%s are under no signed checkpoint; the last was signed at %s",
			cli.Count(g.Entries-g.Signed, "entry", "entries"), stamp(g.SignedAt)))
	}
	if g.Torn > 0 && e.running == nil {
		found = append(found, warn("journal.torn", "Start the station: it moves these bytes to journal/quarantine, and its log says whether a board can have passed on them.", "the last line is not whole (%s)", cli.Count(g.Torn, "byte", "bytes")))
	}
	signed := "there is no checkpoint yet"
	if g.Signed > 0 {
		signed = fmt.Sprintf("the newest checkpoint, of %s, has %d of them and a good signature", stamp(g.SignedAt), g.Signed)
	}
	return append(found, good("journal", "%s in %s of format %d, the newest of %s; %s",
		cli.Count(g.Entries, "entry", "entries"), cli.Count(g.Segments, "segment", "segments"), g.Format, stamp(g.Newest), signed))
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

func (e *exam) checkStats() []Result {
	if e.running != nil {
		return e.judgeStats(e.running.Stats, true)
	}
	return e.judgeStopped(spool.StoppedStats(e.stateDir))
}

func (e *exam) judgeStopped(stats spool.Stats, err error) []Result {
	switch {
	case errors.Is(err, durable.ErrLocked):
		return []Result{warn("journal.queue", e.asOwner(), "a station runs, and what waits for the registry could not be asked: %v", e.controlErr)}
	case errors.Is(err, spool.ErrNoIndex):
		return []Result{good("journal.queue", "there is no index: the next start makes it anew from the journal, and delivers what may be missing again")}
	case err != nil:
		return []Result{warn("journal.queue", e.asOwner(), "the index could not be read: %v", err)}
	}
	return e.judgeStats(stats, false)
}

func (e *exam) judgeStats(s spool.Stats, runs bool) (found []Result) {
	now := e.Now()
	add := func(bad bool, r Result) {
		if bad {
			found = append(found, r)
		}
	}
	add(s.Broken != "", fail("journal.disk", "See what the kernel says of the disk (dmesg), replace it if it fails, and restart the station.", "the station does not trust its disk: %s", s.Broken))
	add(!s.WritingSince.IsZero() && now.Sub(s.WritingSince) > hanging, fail("journal.disk", "See what the kernel says of the disk: dmesg. Boards wait until it answers.", "the disk has not answered since %s", stamp(s.WritingSince)))
	add(s.Damaged > 0, fail("journal.damage", repair, "%s of the journal cannot be read and %s kept aside", cli.Count(s.Damaged, "entry", "entries"), isAre(s.Damaged)))
	add(s.Unsigned != "", fail("journal.signed", repair, "%s", s.Unsigned))
	add(s.Clock != "", fail("clock.station", setClock, "%s", s.Clock))
	add(s.Forked, fail("journal.forked", "Find the other machine, or who set this one back. The machine without this line goes on; this one needs a station name and a state_dir of its own: see \"Two journals of one station\" in the guide.", "two journals have the name of this station: %s", s.ArchiveError))
	add(s.Dead > 0, fail("journal.dead", "stationctl spool dead says which and why; once the registry was put right: stationctl spool requeue SEQ. It is a matter for quality, too.", "the registry has refused %s for good", cli.Count(s.Dead, "record", "records")))
	late := s.ArchiveError != "" && !s.Forked && !s.UnarchivedSince.IsZero() && now.Sub(s.UnarchivedSince) > unarchived
	add(late, warn("journal.archive", "See the rights of s3:PutObject on journal/ below.", "the registry takes no copies of the journal since %s: %s", stamp(s.UnarchivedSince), s.ArchiveError))
	return append(found, e.judgeQueue(s, runs))
}

func isAre(n uint64) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func (e *exam) judgeQueue(s spool.Stats, runs bool) Result {
	if s.Pending == 0 {
		return good("journal.queue", "nothing waits for the registry; it has copies of %s of the journal, and of %d not yet", cli.Count(s.Archived, "sealed segment", "sealed segments"), s.Unarchived)
	}
	age := e.Now().Sub(s.Oldest).Round(time.Second)
	text := fmt.Sprintf("%s for the registry, the oldest since %v", cli.Count(s.Pending, "record waits", "records wait"), age)
	since := s.Oldest
	if s.LastSuccess.After(since) {
		since = s.LastSuccess
	}
	switch {
	case e.station.Registry.Kind == stationconf.NoRegistry && age > longWait:
		return warn("journal.queue", "Take them away on a removable medium: stationctl export; then bring the receipts back.", "%s", text)
	case e.station.Registry.Kind == stationconf.NoRegistry:
		return good("journal.queue", "%s: they leave on a removable medium", text)
	case !runs:
		return warn("journal.queue", "Start the station: systemctl start stationd", "%s, and nobody delivers them", text)
	case e.Now().Sub(since) > stalled:
		return fail("journal.queue", "See the lines about the registry below.", "%s, and none was confirmed in the last %d minutes: %s", text, stalled/time.Minute, s.LastError)
	case s.LastError != "":
		return warn("journal.queue", "See the lines about the registry below.", "%s; the last try failed: %s", text, s.LastError)
	}
	return good("journal.queue", "%s, and they are being delivered", text)
}

func (e *exam) checkDeep(context.Context) []Result {
	if e.stateDir == "" {
		return nil
	}
	v, err := e.verifier()
	if err != nil {
		return []Result{warn("journal.deep", e.asOwner(), "the whole journal could not be checked: %v", err)}
	}
	indexed, err := spool.IndexedEntries(e.stateDir)
	if err != nil { // it is the station's while it runs: the checkpoints alone tell where the journal ends
		indexed = nil
	}
	report, err := journal.VerifyDirKnowing(e.stateDir, v, indexed)
	if err != nil {
		return []Result{fail("journal.deep", repair, "the journal does not hold: %v", err)}
	}
	return []Result{good("journal.deep", "the whole journal holds: %s, of them %s; %d are under a signed checkpoint",
		cli.Count(report.Entries, "entry", "entries"), cli.Count(report.Records, "record", "records"), report.Signed)}
}
