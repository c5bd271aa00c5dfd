package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/config"
	"secretfree/cmd/internal/stationconf"
	"secretfree/spool/journal"
	"secretfree/station"
)

type fleet struct {
	Config    []string      `name:"config" sep:"none" placeholder:"FILE" help:"A configuration with sku and [registry], such as stationd.toml or import.toml: shows the stations in its archive. May be repeated."`
	Station   []string      `name:"station" sep:"none" placeholder:"NAME=URL" help:"A station to query, such as line3-a=https://line3-a.factory.example:8443. May be repeated."`
	Stations  string        `name:"stations" placeholder:"FILE" help:"A file of stations to query, one NAME=URL per line; # begins a comment."`
	Key       []string      `name:"key" sep:"none" placeholder:"FILE" help:"The public key of a station (station.pub), to check the signature of its checkpoint. May be repeated."`
	TokenFile string        `name:"token-file" placeholder:"FILE" help:"A file with the token for the stations. It is sent only over https or to this machine."`
	CA        string        `name:"ca" placeholder:"FILE" help:"CA certificates (PEM) for the stations' TLS, in addition to those of this machine."`
	Silent    time.Duration `name:"silent" placeholder:"TIME" help:"Maximum age of the newest checkpoint in the archive: 26h, or 15m if the station reports a newer one."`
	Behind    time.Duration `name:"behind" default:"15m" placeholder:"TIME" help:"Maximum time that a record may wait for the registry (${default})."`
	Limit     time.Duration `name:"limit" default:"10s" placeholder:"TIME" help:"Time limit for each station (${default})."`
	Deep      bool          `name:"deep" help:"Also read all archived segments and verify them against their checkpoints."`
}

const (
	fleetAtOnce   = 16
	silentArchive = 26 * time.Hour
	silentStatus  = 15 * time.Minute
	deepLimit     = 10 * time.Minute // for each station
	maxFleet      = 1000             // stations that are asked
)

func (fleet) Help() string {
	return `One view over many stations: from their archive in the registry, from the stations themselves, or from both. There is
no server for it. One station that is away does not keep the others from being shown.

A station is red if
  silent     nothing was stored in the archive for --silent (26h: a station that reads no boards stores nothing, so make it
             longer than a weekend), or it answers that it has signed more than the archive has, which got nothing for 15m
  away       it does not answer, or is no station
  health     its own health is red
  dead       the registry has refused records of it for good
  behind     a record waits for longer than --behind
  forked     there are two journals of its name: it says so, or it has signed less than the registry has accepted, archived
             segments share entries, archives have the same size with other roots, or (--deep) segments are not what a
             checkpoint has signed
  forged     --key names a key for it, and the checkpoint is not signed by that
  unread     the archive cannot be read
It is yellow if a smaller checkpoint was stored long after a greater one: after a repair, or by a second machine.

A checkpoint without --key is shown as unverified: whoever can write the archive could have made it.

Examples:
  stationctl fleet --config /etc/secretfree/stationd.toml
      All stations of the registry. Exit 0, or 1 if any is red.
  stationctl fleet --stations floor.txt --token-file view.token
      Asks the stations themselves.
  stationctl fleet --config a.toml --config b.toml --key line3-a.pub --deep --json
      Two regions, compared; one JSON object for each station.
The machine needs s3:ListBucket and s3:GetObject on journal/* of the bucket, and dynamodb:GetItem on the table.`
}

// member is one station.
type member struct {
	Station  string   `json:"station"`
	Level    string   `json:"level"`  // "green", "yellow" or "red"
	Why      []string `json:"why"`    // words, as in the help
	Detail   []string `json:"detail"` // for people: what is red begins with its word
	Verified bool     `json:"verified"`
	Size     uint64   `json:"size"`               // of the newest checkpoint in the archive
	Stored   string   `json:"stored,omitempty"`   // when
	Archived *uint64  `json:"archived,omitempty"` // entries in archived segments
	Signed   *uint64  `json:"signed,omitempty"`   // as the station says
	Pending  *int     `json:"pending,omitempty"`
	Dead     *int     `json:"dead,omitempty"`
	Oldest   int64    `json:"oldest_seconds"`
	Version  string   `json:"version,omitempty"`
	Health   string   `json:"health,omitempty"` // "good" or "red", as the station says
	address  string
	archives []archived
	asked    bool
	storedAt time.Time
}

// archived is a station in one archive.
type archived struct {
	from journals
	cloud.ArchivedJournal
	err error
}

// journals is the archive of all stations; see package cloud.
type journals interface {
	Stations(ctx context.Context) ([]string, error)
	JournalOf(ctx context.Context, station string) (cloud.ArchivedJournal, error)
	CheckpointAt(ctx context.Context, station string, size uint64) ([]byte, error)
	AcceptedCheckpoint(ctx context.Context, origin string) ([]byte, error)
	Segment(ctx context.Context, origin string, first uint64) ([]byte, error)
}

func (m *member) red(why, format string, args ...any) {
	m.Level = "red"
	m.Why = append(m.Why, why)
	m.Detail = append(m.Detail, why+": "+fmt.Sprintf(format, args...))
}

func (f *fleet) Run(ctx context.Context, out *cli.Output) error {
	members, err := f.members(ctx)
	if err != nil {
		return err
	}
	keys, err := readKeys(f.Key)
	if err != nil {
		return err
	}
	ask, err := f.asker()
	if err != nil {
		return err
	}
	turn := make(chan struct{}, fleetAtOnce)
	var all sync.WaitGroup
	for _, m := range members {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			f.look(ctx, m, keys, ask)
		})
	}
	all.Wait()
	return showFleet(out, members)
}

// members are the stations of the archives and those that are to be asked, by
// name.
func (f *fleet) members(ctx context.Context) ([]*member, error) {
	byName := map[string]*member{}
	get := func(name string) *member {
		if byName[name] == nil {
			byName[name] = &member{Station: name, Level: "green", Why: []string{}, Detail: []string{}}
		}
		return byName[name]
	}
	for _, name := range f.Config {
		from, err := openJournals(ctx, name)
		if err != nil {
			return nil, err
		}
		bounded, cancel := context.WithTimeout(ctx, 4*f.Limit)
		names, err := from.Stations(bounded)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, station := range names {
			m := get(station)
			m.archives = append(m.archives, archived{from: from})
		}
	}
	type told struct{ where, line string }
	var lines []told
	for _, line := range f.Station {
		lines = append(lines, told{"--station", line})
	}
	if f.Stations != "" {
		text, err := os.ReadFile(f.Stations)
		if err != nil {
			return nil, fmt.Errorf("reading the stations: %w", err)
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, told{fmt.Sprintf("%s:%d", f.Stations, n), line})
			}
		}
	}
	for _, l := range lines {
		name, address, ok := strings.Cut(l.line, "=")
		name, address = strings.TrimSpace(name), strings.TrimSuffix(strings.TrimSpace(address), "/")
		if !ok || name == "" || !isPage(address) {
			name, _, _ = strings.Cut(name, ":") // the address is not told: somebody may have written a password into it
			return nil, fmt.Errorf("%w: %s: %.80q is no NAME=URL without a user and a query: write the station's name before its address, as line3-a=https://line3-a.factory.example:8443", cli.ErrMisuse, l.where, name)
		}
		m := get(name)
		if m.address != "" {
			return nil, fmt.Errorf("%w: %s: station %s has two addresses, the other is %s: take one out", cli.ErrMisuse, l.where, m.Station, m.address)
		}
		m.address = address
	}
	if len(f.Config) == 0 && len(lines) == 0 {
		return nil, fmt.Errorf("say where the stations are: --config FILE, --station NAME=URL or --stations FILE: %w", cli.ErrMisuse)
	}
	if len(lines) > maxFleet {
		return nil, fmt.Errorf("%d stations are to be asked, at most %d can be: %w", len(lines), maxFleet, cli.ErrMisuse)
	}
	var members []*member
	for _, m := range byName {
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b *member) int { return cmp.Compare(a.Station, b.Station) })
	return members, nil
}

// openJournals opens the registry of a station's configuration, or of an
// importer's.
func openJournals(ctx context.Context, name string) (journals, error) {
	var registry config.Registry
	sku := ""
	if c, err := stationconf.Load(name); err == nil {
		registry, sku = c.Registry, c.SKU
	} else {
		i, other := loadImport(name)
		if text, readErr := os.ReadFile(name); other != nil && readErr == nil && strings.Contains(string(text), "[[slot]]") {
			return nil, err
		}
		if other != nil {
			return nil, other
		}
		registry, sku = i.Registry, i.SKU
	}
	if registry.Kind == stationconf.NoRegistry {
		return nil, fmt.Errorf("%s: registry.kind is %q, which has no archive: ask the station itself, with --station", name, registry.Kind)
	}
	aws, dir, err := registry.Open(ctx, sku)
	if err != nil {
		return nil, fmt.Errorf("opening the registry of %s: %w", name, err)
	}
	if dir != nil {
		return dir, nil
	}
	return aws, nil
}

func readKeys(files []string) (map[string]note.Verifier, error) {
	keys := map[string]note.Verifier{}
	for _, file := range files {
		v, err := readKey(file)
		if err != nil {
			return nil, err
		}
		keys[v.Name()] = v
	}
	return keys, nil
}

// asker makes what asks a station.
func (f *fleet) asker() (func(ctx context.Context, address, path string) ([]byte, int, error), error) {
	plain, err := (&status{Address: "https://fleet", CA: f.CA}).target()
	if err != nil {
		return nil, err
	}
	known := plain
	if f.TokenFile != "" {
		if known, err = (&status{Address: "https://fleet", CA: f.CA, Token: f.TokenFile}).target(); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, address, path string) ([]byte, int, error) {
		scheme, host, _ := strings.Cut(address, "://")
		t := plain
		if safe(address) {
			t = known
		}
		t.scheme, t.address = scheme, host
		return t.get(ctx, path)
	}, nil
}

// isPage tells whether an address may be that of a station's page.
func isPage(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.User == nil && !strings.ContainsAny(address, "?#@")
}

// safe tells whether a token may be shown at such an address: it goes there
// encrypted, or does not leave this machine.
func safe(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.User != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "https" || strings.EqualFold(u.Hostname(), "localhost") || err == nil && ip.Unmap().IsLoopback()
}

func (f *fleet) look(ctx context.Context, m *member, keys map[string]note.Verifier, ask func(context.Context, string, string) ([]byte, int, error)) {
	bounded, cancel := context.WithTimeout(ctx, f.Limit)
	defer cancel()
	if m.address != "" {
		f.ask(bounded, m, ask)
	}
	for i := range m.archives {
		a := &m.archives[i]
		a.ArchivedJournal, a.err = a.from.JournalOf(bounded, m.Station)
		f.judgeArchive(m, *a, keys)
		f.judgeAccepted(bounded, m, *a)
	}
	f.compare(m)
	if len(m.archives) > 0 {
		f.judgeSilence(m)
	}
	if f.Deep {
		deep, cancel := context.WithTimeout(ctx, deepLimit)
		defer cancel()
		for _, a := range m.archives {
			if a.err == nil {
				verifyArchive(deep, m, a)
			}
		}
	}
}

func (f *fleet) ask(ctx context.Context, m *member, ask func(context.Context, string, string) ([]byte, int, error)) {
	body, code, err := ask(ctx, m.address, "/status")
	var s station.Status
	if err == nil && code == http.StatusOK {
		err = json.Unmarshal(body, &s)
	}
	switch {
	case err != nil:
		var sent *url.Error // it has the address once more
		if errors.As(err, &sent) {
			err = sent.Err
		}
		m.red("away", "%s: %v", m.address, err)
		return
	case code != http.StatusOK:
		m.red("away", "%s answers %d %s", m.address, code, http.StatusText(code))
		return
	case s.Station == "":
		m.red("away", "what answers at %s is no station", m.address)
		return
	case s.Station != m.Station:
		m.red("away", "%s is station %s", m.address, s.Station)
		return
	}
	m.asked, m.Oldest, m.Health = true, s.Backlog.OldestSeconds, "good"
	m.Pending, m.Dead = &s.Backlog.Pending, &s.Backlog.Dead
	for _, n := range s.Notices {
		if n.Word == "health-forked" {
			m.red("forked", "%s", n.Detail)
		}
	}
	if _, code, err := ask(ctx, m.address, "/healthz"); err != nil || code != http.StatusOK {
		m.Health = "red"
		m.red("health", "%s", urgent(s.Notices))
	}
	if s.Backlog.Dead > 0 {
		m.red("dead", "the registry has refused %s for good", cli.Count(s.Backlog.Dead, "record", "records"))
	}
	if age := time.Duration(s.Backlog.OldestSeconds) * time.Second; s.Backlog.Pending > 0 && age > f.Behind {
		m.red("behind", "%s for the registry, the oldest for %v: %s", cli.Count(s.Backlog.Pending, "record waits", "records wait"), age, s.Backlog.LastError)
	}
	m.Version = s.Version
	if s.Version != "" { // older stations tell neither
		m.Signed = &s.Signed
	}
}

func urgent(notices []station.Notice) string {
	var texts []string
	for _, n := range notices {
		if n.Urgent {
			texts = append(texts, n.Text)
		}
	}
	if len(texts) == 0 {
		return "its health is red"
	}
	return strings.Join(texts, " ")
}

// judgeArchive looks at what one archive has.
func (f *fleet) judgeArchive(m *member, a archived, keys map[string]note.Verifier) {
	if a.err != nil {
		m.red("unread", "%v", a.err)
		return
	}
	if a.Stored.After(m.storedAt) {
		m.storedAt, m.Stored, m.Size = a.Stored, a.Stored.UTC().Format(time.RFC3339), a.Size
		if a.Known {
			n := a.Archived
			m.Archived = &n
		}
	}
	if a.Conflict != "" {
		m.red("forked", "two machines write under this name: %s", a.Conflict)
	}
	if a.Disorder != "" {
		m.Detail = append(m.Detail, "order: "+a.Disorder)
		m.Why = append(m.Why, "order")
		if m.Level == "green" {
			m.Level = "yellow"
		}
	}
	origin, _, _ := strings.Cut(string(a.Checkpoint), "\n")
	if v := keys[origin]; v != nil && len(a.Checkpoint) > 0 {
		if _, err := note.Open(a.Checkpoint, note.VerifierList(v)); err != nil {
			m.red("forged", "the checkpoint of size %d is not signed by %s", a.Size, v.Name())
		} else {
			m.Verified = true
		}
	}
}

// judgeAccepted compares the checkpoint that a registry has accepted from the
// station with its archive and with what the station says of itself.
func (f *fleet) judgeAccepted(ctx context.Context, m *member, a archived) {
	origin, archived, err := journal.CheckpointOf(a.Checkpoint)
	if a.err != nil || err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, f.Limit/2)
	defer cancel()
	text, err := a.from.AcceptedCheckpoint(ctx, origin)
	if err != nil {
		m.Detail = append(m.Detail, fmt.Sprintf("accepted: not read: %v", err))
		return
	}
	if len(text) == 0 {
		return
	}
	_, accepted, err := journal.CheckpointOf(text)
	switch {
	case err != nil:
		m.red("unread", "the accepted checkpoint: %v", err)
	case archived.Size > accepted.Size:
		m.red("forked", "the archive has a checkpoint over %d entries, and the registry has accepted one over %d", archived.Size, accepted.Size)
	case archived.Size == accepted.Size && archived.Root != accepted.Root:
		m.red("forked", "the archive and the registry have checkpoints of size %d with other roots", archived.Size)
	case m.asked && m.Signed != nil && *m.Signed < accepted.Size:
		m.red("forked", "it has signed %d entries, and the registry has accepted %d: it was set back, or another machine uses its name", *m.Signed, accepted.Size)
	}
}

// compare finds archives that have the same size with other roots.
func (f *fleet) compare(m *member) {
	roots := map[string]string{}
	for _, a := range m.archives {
		lines := strings.SplitN(string(a.Checkpoint), "\n", 4)
		if a.err != nil || len(lines) < 4 {
			continue
		}
		id := lines[0] + " " + lines[1]
		if other, ok := roots[id]; ok && other != lines[2] {
			m.red("forked", "two archives have checkpoints of size %s with other roots", lines[1])
		}
		roots[id] = lines[2]
	}
}

func (f *fleet) judgeSilence(m *member) {
	if slices.Contains(m.Why, "unread") && m.storedAt.IsZero() {
		return
	}
	limit := cmp.Or(f.Silent, silentArchive)
	more := m.asked && m.Signed != nil && *m.Signed > m.Size
	if more {
		limit = cmp.Or(f.Silent, silentStatus)
	}
	age := time.Since(m.storedAt).Round(time.Second)
	switch {
	case m.storedAt.IsZero():
		m.red("silent", "its archive has no checkpoint")
	case more && age > limit:
		m.red("silent", "it has signed %d entries, and the archive has %d of them and got nothing for %v", *m.Signed, m.Size, age)
	case age > limit && !m.asked: // that it answers, and has no more, is a quiet line
		m.red("silent", "the archive got nothing for %v", age)
	}
}

// verifyArchive computes the root of what is archived, and compares it with the
// checkpoints that are beside the segments.
func verifyArchive(ctx context.Context, m *member, a archived) {
	origin, _, _ := strings.Cut(string(a.Checkpoint), "\n")
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			if x >= int64(len(hashes)) {
				return nil, errors.New("a hash is not known yet")
			}
			out[i] = hashes[x]
		}
		return out, nil
	})
	n := uint64(0)
	for a.Known && n < a.Archived {
		segment, err := a.from.Segment(ctx, origin, n)
		if err != nil {
			word := "unread"
			if errors.Is(err, journal.ErrFork) {
				word = "forked"
			}
			m.red(word, "%v", err)
			return
		}
		before := n
		for line := range strings.Lines(string(segment)) {
			entry := strings.TrimSuffix(line, "\n")
			entry = entry[:max(0, len(entry)-len(" 01234567"))]
			stored, err := tlog.StoredHashes(int64(n), []byte(entry), reader)
			if err != nil {
				m.red("unread", "entry %d: %v", n, err)
				return
			}
			hashes = append(hashes, stored...)
			n++
		}
		if n == before {
			m.red("unread", "the segment from entry %d on is empty", n)
			return
		}
		text, err := a.from.CheckpointAt(ctx, m.Station, n)
		if err != nil {
			continue // it may never have got there; the next one is over these entries too
		}
		root, err := tlog.TreeHash(int64(n), reader)
		if lines := strings.SplitN(string(text), "\n", 4); err != nil || len(lines) < 4 || lines[2] != root.String() {
			m.red("forked", "the archived entries up to %d are not those that the checkpoint of this size has signed", n-1)
			return
		}
	}
	if n > 0 {
		m.Detail = append(m.Detail, fmt.Sprintf("%d archived entries are what was signed", n))
	}
}

func showFleet(out *cli.Output, members []*member) error {
	if !out.JSON {
		fmt.Fprintf(out.People, "%-7s %-24s %10s %-20s %-10s %9s %7s %5s %-6s %s\n", "", "station", "entries", "newest checkpoint", "signature", "archived", "waiting", "dead", "health", "version")
	}
	red := 0
	for _, m := range members {
		if m.Level == "red" {
			red++
		}
		if err := out.Print(m, m.text()); err != nil {
			return err
		}
	}
	fmt.Fprintf(out.People, "%s, %d red.\n", cli.Count(len(members), "station", "stations"), red)
	if red > 0 {
		return cli.ErrShown
	}
	return nil
}

func number[N int | uint64](n *N) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

func (m *member) text() string {
	size, signature := "-", "-"
	switch {
	case m.Stored == "":
	case m.Verified:
		size, signature = fmt.Sprint(m.Size), "verified"
	default:
		size, signature = fmt.Sprint(m.Size), "unverified"
	}
	text := fmt.Sprintf("%-7s %-24s %10s %-20s %-10s %9s %7s %5s %-6s %s\n", m.Level, oneLine(m.Station), size, cmp.Or(m.Stored, "-"), signature, number(m.Archived), number(m.Pending), number(m.Dead),
		cmp.Or(m.Health, "-"), cmp.Or(oneLine(m.Version), "-"))
	for _, d := range m.Detail {
		text += "        " + oneLine(d) + "\n"
	}
	return text
}
