// Package stationd runs a station: it opens the journal, the registry, the
// ports and the page that a configuration names, and joins them into one
// daemon. The demo runs the same code as the command. Start with Serve.
package stationd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/cmd/internal/stationconf"
	"secretfree/cmd/internal/web"
	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station"
	"secretfree/station/board"
	"secretfree/uart"
)

// Stopping takes less than 5 s in all: systemd, and people, wait for it.
const (
	slotsLimit  = 1500 * time.Millisecond // appends in flight finish
	serverLimit = 500 * time.Millisecond
	drainLimit  = 1500 * time.Millisecond // what is queued goes out, if it goes
	spoolLimit  = time.Second             // the last checkpoint, and the files
)

// A page holds one connection for its events, and a browser up to five more for
// a moment.
const (
	maxConnections = 256
	maxPerAddress  = 16
	maxHeaders     = 16 << 10
)

// stalled is how long records may wait without one being confirmed before the
// station's health is red.
const stalled = 5 * time.Minute

// diskLimit is how long a call to the disk may take before the station's health
// is red. A healthy disk takes milliseconds.
const diskLimit = 10 * time.Second

// Daemon is a station with everything that it needs.
type Daemon struct {
	spool    *spool.Spool
	station  *station.Station
	listener net.Listener
	server   *http.Server
	gate     *gate
	log      zerolog.Logger

	diskLimit       time.Duration
	offline         bool // records leave on a removable medium
	clock           clockCheck
	stall           stallTimer
	transcripts     *transcriptStore
	timings         timings
	receipts        note.Verifiers // who may settle records by a receipt
	controlListener net.Listener
	controlServer   *http.Server
}

// Serve opens a station and runs it until ctx ends. While its disk is full, the
// page says why the station is not open. If ctx ends before it is
// open, as while a large index is made anew, it is not waited for: nothing has
// passed yet.
func Serve(ctx context.Context, c stationconf.Config, log zerolog.Logger) error {
	type opened struct {
		d   *Daemon
		err error
	}
	done := make(chan opened, 1)
	go func() {
		d, err := openWithRoom(ctx, c, log)
		done <- opened{d, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return o.err
		}
		if os.Getenv("GOGC") == "" {
			// A station has memory of its own of 2 MiB and time to spare, and
			// shares a small machine: half of the usual garbage is enough.
			debug.SetGCPercent(50)
		}
		return o.d.Run(ctx)
	case <-ctx.Done():
		log.Info().AnErr("cause", context.Cause(ctx)).Msg("stopped before it was ready")
		return nil
	}
}

// Open takes the state directory and the page's address. A configuration must
// come from Load.
func Open(ctx context.Context, c stationconf.Config, log zerolog.Logger) (*Daemon, error) {
	return openAt(ctx, c, log, func() (net.Listener, error) { return listen(c) })
}

// openAt is Open with the listener of the page, which it takes last of all that
// may take long.
func openAt(ctx context.Context, c stationconf.Config, log zerolog.Logger, take func() (net.Listener, error)) (*Daemon, error) {
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	identity, err := journal.LoadIdentity(c.StateDir, board.Origin(c.SKU, c.Station))
	if err != nil {
		return nil, err
	}
	sink, kept, err := openRegistry(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("opening the registry: %w", err)
	}
	d := &Daemon{log: log, diskLimit: diskLimit, offline: c.Registry.Kind == stationconf.NoRegistry}
	if aws, ok := sink.(*cloud.AWS); ok {
		d.clock.serverTime = aws.ServerTime
	}
	if d.receipts, err = c.Receipts(); err != nil {
		return nil, err
	}
	var copies spool.Archive
	var accepted spool.CheckpointStore
	if kept != nil {
		copies, accepted = kept, kept
	}
	if many, ok := sink.(spool.BatchSink); ok {
		sink = timedSink{many, &d.timings}
	}
	if d.spool, err = spool.Open(spool.Config{
		Dir: c.StateDir, Identity: identity, Sink: sink, Archive: copies, Checkpoints: accepted, DiskLow: c.Disk.Warn, DiskCritical: c.Disk.Critical,
		Notify: func(notice string) { log.Warn().Msg(notice) },
	}); err != nil {
		return nil, err
	}
	if err := d.open(ctx, c, take); err != nil {
		return nil, errors.Join(err, d.spool.Close())
	}
	return d, nil
}

// openRegistry also returns where copies of the journal go; nil if nowhere.
func openRegistry(ctx context.Context, c stationconf.Config) (spool.Sink, *archive, error) {
	if c.Registry.Kind == stationconf.NoRegistry {
		return control.NoSink{Why: "this station has no registry: records leave it by stationctl export"}, nil, nil
	}
	aws, dir, err := c.Registry.Open(ctx, c.SKU)
	if err != nil {
		return nil, nil, err
	}
	origin := board.Origin(c.SKU, c.Station)
	if dir != nil {
		return dir, &archive{dir, origin}, nil
	}
	return aws, &archive{aws, origin}, nil
}

func (d *Daemon) open(ctx context.Context, c stationconf.Config, take func() (net.Listener, error)) (err error) {
	d.transcripts, err = openTranscripts(filepath.Join(c.StateDir, "transcripts"), c.Transcripts)
	if err != nil {
		return err
	}
	past := history{spool: d.spool, transcripts: d.transcripts}
	leaks, err := past.leaks(ctx, c.Slots, time.Now())
	if err != nil {
		d.log.Warn().Err(err).Msg("leaks that nobody has acknowledged are not shown: the earlier verdicts cannot be read")
	}
	var slots []station.SlotConfig
	for _, slot := range c.Slots {
		dialect, err := uart.DialectByName(slot.Dialect)
		if err != nil {
			return err
		}
		port, err := slot.Modem()
		if err != nil {
			return err
		}
		config := station.SlotConfig{
			Name: slot.Name, Port: slot.Port, Dialect: dialect, Open: port.Wait, Node: port.Node, Reset: port.Reset, Present: port.Present,
		}
		if leak, ok := leaks[slot.Name]; ok {
			config.Leak = &leak
		}
		slots = append(slots, config)
	}
	counts := openWorkOrders(c.StateDir)
	counted, earlier, err := counts.load()
	if err != nil {
		d.log.Warn().Err(err).Msg("the name of the work order is lost")
	}
	if d.listener, err = take(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.listener.Close())
		}
	}()
	// What others may do depends on where the page really is: a socket of
	// systemd counts, and not what the configuration says then.
	if d.gate, err = openGate(c, stationconf.OnNetwork(d.Addr()), d.log); err != nil {
		return err
	}
	d.station, err = station.New(station.Config{
		SKU: c.SKU, Station: c.Station, Version: cli.Version(), Slots: slots, Journal: timedJournal{d.spool, &d.timings},
		Policy: policyOf(c), Page: pageOf(c), Hosts: c.AllowedHosts(), Lot: counted, Earlier: earlier, KeepLot: counts.keep,
		Backlog: d.backlog, Delivery: d.delivery, Health: d.health, Notices: d.notices,
		Transcript: d.transcripts.keep, History: past, Evidence: past, Access: d.gate.access(), Log: d.log,
	})
	if err != nil {
		return err
	}
	d.listener = web.Cap{
		Total: maxConnections, PerAddress: maxPerAddress, Refusal: "too many connections to this station are open: close some pages",
	}.Limit(d.listener, d.log)
	d.listener = d.gate.listen(d.listener)
	if d.controlListener, err = listenControl(c.StateDir); err != nil {
		return err
	}
	d.controlServer = &http.Server{
		Handler: d.control(), ReadTimeout: 10 * time.Second, WriteTimeout: control.Limit, MaxHeaderBytes: maxHeaders, ErrorLog: web.ErrorLog(d.log),
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", d.station.Guard(d.metrics()))
	mux.Handle("/", d.station.Handler())
	d.server = pageServer(mux, d.log)
	return nil
}

// socketListen is the name of the socket that systemd may hand over in the
// place of the page's address.
const socketListen = "listen"

// listen takes the socket that systemd opened, or opens the address. What holds
// for an address on a network holds for a socket there.
func listen(c stationconf.Config) (net.Listener, error) {
	given, err := web.Sockets(socketListen)
	if err != nil {
		return nil, err
	}
	if l := given[socketListen]; l != nil {
		if stationconf.OnNetwork(l.Addr().String()) && !c.Access.TLS() && !c.Access.HasTokens() {
			return nil, errors.Join(fmt.Errorf("systemd hands over a socket on %s, which others reach, and there is neither TLS nor a token: write a table [access] into the "+
				"configuration, or ListenStream=%s into the unit", l.Addr(), stationconf.DefaultListen), l.Close())
		}
		return l, nil
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("opening the page's address (listen in the configuration): %w", err)
	}
	return l, nil
}

// pageServer bounds what a client may take its time for.
func pageServer(h http.Handler, log zerolog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaders, ErrorLog: web.ErrorLog(log),
	}
}

// Addr is where the page is.
func (d *Daemon) Addr() string { return d.listener.Addr().String() }

// Status is what GET /status answers.
func (d *Daemon) Status() station.Status { return d.station.Status() }

// Run serves until ctx ends, then stops in order: the slots finish what they
// are writing, the page ends, what is queued goes out if it goes at once, the
// spool signs a last checkpoint. It takes less than 5 s and returns nil;
// nothing that has passed is lost if it is cut short. An error means that the
// page could not be served, or that something, as a disk that hangs, was not
// waited for: it holds files of the station until the process ends. It runs
// once.
func (d *Daemon) Run(ctx context.Context) error {
	outer := context.WithoutCancel(ctx)
	slotsCtx, stopSlots := context.WithCancelCause(outer)
	defer stopSlots(nil)
	spoolCtx, stopSpool := context.WithCancel(outer)
	defer stopSpool()

	slots, page, delivery := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { delivery <- d.spool.Run(spoolCtx) }()
	go func() { slots <- d.station.Run(slotsCtx) }()
	go func() { page <- d.server.Serve(d.listener) }()
	control := make(chan error, 1)
	go func() { control <- d.controlServer.Serve(d.controlListener) }()
	watch := make(chan error, 1)
	go func() { watch <- d.watch(slotsCtx) }()
	d.notify(daemon.SdNotifyReady)
	scheme := "http://"
	if d.gate.pair != nil {
		scheme = "https://"
	}
	// What the opening of a long journal left over is given back now; the
	// collector would keep it for as long as nothing happens.
	debug.FreeOSMemory()
	d.log.Info().Str("page", scheme+d.Addr()+"/").Msg("ready")

	var failed error
	select {
	case <-ctx.Done():
	case err := <-page:
		failed = fmt.Errorf("serving the page: %w", err)
	case err := <-delivery:
		failed = fmt.Errorf("delivering to the registry ended: %w", err)
		delivery <- nil
	}
	d.notify(daemon.SdNotifyStopping)
	d.log.Info().AnErr("cause", context.Cause(ctx)).Msg("stopping")

	var hangs []string
	await := func(what string, ended <-chan error, limit time.Duration) (err error) {
		timer := time.NewTimer(max(limit, 50*time.Millisecond)) // what has ended may be about to tell
		defer timer.Stop()
		select {
		case err = <-ended:
		case <-timer.C:
			hangs = append(hangs, what)
		}
		return err
	}
	deadline := time.Now().Add(slotsLimit)
	stopSlots(context.Cause(ctx))
	await("writing a board down", slots, time.Until(deadline))
	await("looking after the delivery", watch, time.Until(deadline))
	bounded, cancel := context.WithTimeout(outer, serverLimit)
	defer cancel()
	if err := d.server.Shutdown(bounded); err != nil {
		d.server.Close()
	}
	d.controlServer.Close()
	<-control
	if len(hangs) == 0 {
		d.drain()
	}
	deadline = time.Now().Add(spoolLimit)
	stopSpool()
	await("signing the journal", delivery, time.Until(deadline))
	if len(hangs) == 0 {
		closed := make(chan error, 1)
		go func() { closed <- d.spool.Close() }()
		failed = errors.Join(failed, await("closing the files", closed, time.Until(deadline)))
	}
	stats := d.stats()
	if len(hangs) > 0 {
		return errors.Join(failed, unsettled(hangs, stats))
	}
	d.log.Info().Int("pending", stats.Pending).Msg("stopped")
	return failed
}

// drain gives the queue a moment, as long as it moves.
func (d *Daemon) drain() {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(drainLimit); time.Now().Before(deadline); <-ticker.C {
		if stats := d.spool.Stats(); stats.Pending == 0 || stats.LastError != "" {
			return
		}
	}
}

// stats is of the spool. That nothing is delivered where records are carried is
// no error.
func (d *Daemon) stats() spool.Stats {
	stats := d.spool.Stats()
	if d.offline {
		stats.LastError = ""
	}
	stats.Clock = d.clock.problem(stats)
	return stats
}

func (d *Daemon) backlog() station.Backlog {
	stats := d.stats()
	b := station.Backlog{Pending: stats.Pending, Dead: stats.Dead, LastError: stats.LastError, Offline: d.offline, Signed: stats.Signed}
	if !stats.Oldest.IsZero() {
		b.OldestSeconds = int64(max(0, time.Since(stats.Oldest)) / time.Second)
	}
	return b
}

func (d *Daemon) delivery(device board.DeviceID) station.Delivery {
	delivery, err := d.spool.DeliveryOf(device)
	if err != nil {
		return station.Waiting // if it cannot be read, it waits
	}
	return station.Delivery(delivery)
}

func (d *Daemon) health() []station.Problem { return d.red(d.stats()) }

// red is what is due and does not move.
func (d *Daemon) red(stats spool.Stats) []station.Problem {
	var red []station.Problem
	add := func(p station.Problem, format string, args ...any) {
		p.Urgent, p.Call = true, station.CallIT
		p.Detail = strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ") // an error of several causes has several lines
		red = append(red, p)
	}
	if stats.Broken != "" {
		add(station.Problem{Word: "health-disk-untrusted"}, "the disk is not trusted: %s", stats.Broken)
	}
	if since, err := d.hangs(stats); err != nil {
		add(station.Problem{Word: "health-disk-stalled", Args: []any{since}}, "%v", err)
	}
	if stats.Damaged > 0 {
		add(station.Problem{Word: "health-journal-damaged"}, "parts of the journal cannot be read and are kept aside (%s): stationctl spool repair", cli.Count(stats.Damaged, "entry", "entries"))
	}
	if stats.Unsigned != "" {
		add(station.Problem{Word: "health-unsigned"}, "the journal is not signed: %s", stats.Unsigned)
	}
	if err := d.gate.health(); err != nil {
		add(station.Problem{Word: "health-certificate"}, "%v", err)
	}
	if stats.Clock != "" {
		add(station.Problem{Word: "health-clock"}, "the clock: %s", stats.Clock)
	}
	if stats.Forked {
		add(station.Problem{Word: "health-forked"}, "two journals have the name of this station: %s. Boards pass and are delivered, and nothing more of this journal is archived. stationctl doctor on each machine says which journal the registry has accepted; this one needs a station name and a state folder of its own", stats.ArchiveError)
		red[len(red)-1].Call = station.CallQuality
	}
	since := stats.Oldest
	if stats.LastSuccess.After(since) {
		since = stats.LastSuccess
	}
	if silent := max(time.Since(since), d.stall.silent(time.Now())); stats.Pending > 0 && silent > stalled && !d.offline {
		add(station.Problem{Word: "health-registry-silent", Args: []any{silent}},
			"waiting for the registry: %s, and none was confirmed in the last %d minutes", cli.Count(stats.Pending, "record", "records"), stalled/time.Minute)
	}
	return red
}

// hangs tells of a disk that does not come back from a call, and for how long.
func (d *Daemon) hangs(stats spool.Stats) (time.Duration, error) {
	if since := time.Since(stats.WritingSince); !stats.WritingSince.IsZero() && since > d.diskLimit {
		return since, fmt.Errorf("stalled disk: the disk of this station has not answered for %d s; boards wait until it does. See what the kernel says of it (dmesg), and replace it if it does not come back", since/time.Second)
	}
	return 0, nil
}

// unsettled says what was not waited for, and why.
func unsettled(hangs []string, stats spool.Stats) error {
	why := "the disk or the registry's folder does not answer"
	if !stats.WritingSince.IsZero() {
		why = fmt.Sprintf("the disk has not answered for %d s", time.Since(stats.WritingSince)/time.Second)
	}
	return fmt.Errorf("stopped without waiting for %s: %s. What has passed is in the journal, and the next start finds it", strings.Join(hangs, ", "), why)
}

func (d *Daemon) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		d.log.Warn().Err(err).Msg("telling systemd: " + state)
	}
}

// watch feeds systemd's watchdog while the station makes progress, and logs
// what changes in the delivery. It returns nil when ctx ends.
func (d *Daemon) watch(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		d.log.Warn().Err(err).Msg("reading systemd's watchdog settings")
	}
	var fed time.Time
	stuck := "" // what is in the log of a watchdog that is not fed
	told := deliveryLogger{log: d.log}
	var looked time.Time
	for {
		if now := time.Now(); looked.IsZero() || now.Sub(looked) >= lookAtClock {
			looked = now
			d.spool.CheckClock(d.clock.look(now))
		}
		stats := d.stats()
		d.stall.look(time.Now(), stats)
		if interval > 0 && time.Since(fed) >= interval/3 {
			_, hangs := d.hangs(stats)
			if err := errors.Join(d.station.Alive(), hangs); err == nil {
				d.notify(daemon.SdNotifyWatchdog)
				fed, stuck = time.Now(), ""
			} else if err.Error() != stuck {
				stuck = err.Error()
				d.log.Error().Err(err).Msg("no progress; the watchdog is not fed")
			}
		}
		told.report(stats)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
