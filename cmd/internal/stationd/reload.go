package stationd

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/mod/sumdb/note"

	"secretfree/cmd/internal/config"
	"secretfree/spool"
	"secretfree/station"
)

// Reloads have a running station take its configuration again. The zero value
// is a station that never does.
type Reloads struct {
	Asked <-chan os.Signal       // each asks for one
	Load  func() (Config, error) // LoadToServe of the file
	Log   func(config.Log)       // takes the level
}

// reloadLimit is how long a stop waits for a reload that is under way, as on a
// disk that hangs.
const reloadLimit = 500 * time.Millisecond

func (d *Daemon) reloads(ctx context.Context, r Reloads) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.Asked:
			d.reload(r)
		}
	}
}

// reloaded tells of the last reload.
type reloaded struct {
	failed bool
	taken  time.Time // when a configuration was taken last, at the start or later
}

// reload takes the configuration anew: what can be changed while the station
// runs, all of it, or nothing if the file is not good. systemd is told when it
// begins and ends.
func (d *Daemon) reload(r Reloads) {
	d.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	status := "STATUS=The last reload of the configuration was good."
	if err := d.adopt(r); err != nil {
		d.log.Error().Err(err).Msg("the configuration was not taken; the one before holds")
		last := *d.reloaded.Load()
		last.failed = true
		d.reloaded.Store(&last)
		status = "STATUS=The last reload of the configuration failed: " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	d.notify(daemon.SdNotifyReady + "\n" + status)
}

func (d *Daemon) adopt(r Reloads) error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	file, err := r.Load()
	if err != nil {
		return err
	}
	next, later := d.config.mix(file)
	receipts, err := next.Receipts()
	if err != nil {
		return err
	}
	// The last that can refuse is the first that changes something.
	list := next.list(d.list)
	if err := d.station.Adopt(next.settings(list)); err != nil {
		return err
	}
	d.list = list
	d.receipts.Store(&receipts)
	d.spool.SetLimits(next.limits())
	if r.Log != nil {
		r.Log(next.Log)
	}
	if err := d.transcripts.adopt(next.Transcripts); err != nil {
		d.log.Warn().Err(err).Msg("the limits of transcripts hold, but not all that is too much could be removed")
	}
	d.gate.reload()
	changed := differences(d.config, next)
	d.config = next
	d.reloaded.Store(&reloaded{taken: time.Now()})
	switch line := d.log.Info().Strs("changed", changed); len(changed) {
	case 0:
		line.Msg("the configuration was read again: nothing that holds has changed")
	default:
		line.Msg("the configuration was read again: " + strings.Join(changed, ", ") + " changed")
	}
	if len(later) > 0 {
		d.log.Warn().Strs("keys", later).Msg("needs a restart: " + strings.Join(later, ", "))
	}
	return nil
}

// restartKeys are what a running station cannot change; a table stands for all
// in it. [access] is which files there are: what is in them is read again.
func restartKeys() []string {
	return []string{"station", "sku", "state_dir", "listen", "slot", "registry", "access", "log.format"}
}

// mix is what of a new configuration can hold before a restart, and the keys of
// what cannot.
func (c Config) mix(file Config) (next Config, later []string) {
	for _, key := range differences(c, file) {
		table, _, _ := strings.Cut(key, ".")
		if slices.Contains(restartKeys(), key) || slices.Contains(restartKeys(), table) {
			later = append(later, key)
		}
	}
	next = file
	next.Station, next.SKU, next.StateDir, next.Listen, next.Slots, next.Registry, next.Access, next.Log.Format =
		c.Station, c.SKU, c.StateDir, c.Listen, c.Slots, c.Registry, c.Access, c.Log.Format
	return next, later
}

// list is that of the lot; nil without one. Of the same file it is the one
// before: what was read of it holds.
func (c Config) list(before *lot) *lot {
	switch {
	case c.Policy.Lot == "":
		return nil
	case before != nil && before.path == c.Policy.Lot:
		return before
	}
	return &lot{path: c.Policy.Lot}
}

// settings are the station's part; list is nil without one.
func (c Config) settings(list *lot) station.Settings {
	policy := station.Policy{AllowUnproven: c.Policy.AllowUnproven, Algorithms: c.Policy.Algorithms, NeedsLabel: c.Policy.Label == LabelRequired}
	if list != nil {
		policy.Lot, policy.Listed = list.check, list.listed
	}
	page := station.Page{Language: c.Page.Language, Sound: c.Page.Sound, ContactIT: c.Page.ContactIT, ContactQuality: c.Page.ContactQuality}
	return station.Settings{Policy: policy, Page: page, Hosts: c.hosts()}
}

// limits are the spool's part.
func (c Config) limits() spool.Limits {
	return spool.Limits{DiskLow: c.Disk.Warn, DiskCritical: c.Disk.Critical}
}

// differences are the keys with another value, in the order of the struct.
func differences(a, b Config) []string {
	var keys []string
	var compare func(prefix string, a, b reflect.Value)
	compare = func(prefix string, a, b reflect.Value) {
		for i := range a.NumField() {
			name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("toml"), ",")
			key, x, y := prefix+name, a.Field(i), b.Field(i)
			switch {
			case x.Kind() == reflect.Struct:
				compare(key+".", x, y)
			case x.Kind() == reflect.Slice && x.Len() == 0 && y.Len() == 0: // nil or not
			case !reflect.DeepEqual(x.Interface(), y.Interface()):
				keys = append(keys, key)
			}
		}
	}
	compare("", reflect.ValueOf(a), reflect.ValueOf(b))
	return keys
}

// verifiers are the keys whose receipts count at present.
func (d *Daemon) verifiers() note.Verifiers { return *d.receipts.Load() }

// stopReloads ends what start began, and waits for it for a moment.
func stopReloads(cancel context.CancelFunc, ended <-chan struct{}) error {
	cancel()
	timer := time.NewTimer(reloadLimit)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-timer.C:
		return fmt.Errorf("stopped without waiting for a reload of the configuration: the disk has not answered for %v", reloadLimit)
	}
}
