package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/spool"
	"secretfree/spool/journal"
)

// BundleConfig says what goes into a bundle.
type BundleConfig struct {
	Config
	Results     []Result
	WithoutIDs  bool
	Transcripts bool
	Entries     int
	// Describe says of an entry what may leave the factory, as JSON, with the
	// ids and fingerprints in it.
	Describe func(journal.Entry) (line []byte, ids []string, err error)
	Environ  []string // of this process: what is secret there must not be in the bundle either
}

const (
	maxPart        = 4 << 20 // of a file in a bundle
	maxTranscripts = 16 << 20
	maxBundle      = 64 << 20
	bundleLines    = 2000 // of the log
	bundleLimit    = 15 * time.Second
)

// ErrExists says that the file of a bundle is there already.
var ErrExists = errors.New("the file is there already: choose another name, or remove it")

// bundle is a bundle that is being made.
type bundle struct {
	*exam
	want    BundleConfig
	scrub   *scrubber
	archive *tar.Writer
	size    int
	at      time.Time
	notes   []string // what is not in it, and why
}

// WriteBundle writes a tar.gz for support: mode 0600, whole or not at all. It
// holds no secrets as far as they can be told: private keys, files of tokens
// and credentials are never read, and all text goes through a scrubber. The
// error says why there is no bundle; what could not be had is said in the
// bundle.
func WriteBundle(ctx context.Context, name string, c BundleConfig) error {
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("writing the bundle %s: %w", name, ErrExists)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".bundle-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	defer os.Remove(f.Name())
	err = writeBundle(ctx, f, c)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	// A link, and no rename, so that what came there meanwhile is not written
	// over; where there are no links, a rename.
	if err := os.Link(f.Name(), name); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("writing the bundle %s: %w", name, ErrExists)
		}
		if err := os.Rename(f.Name(), name); err != nil {
			return fmt.Errorf("writing the bundle: %w", err)
		}
	}
	return nil
}

func writeBundle(ctx context.Context, w io.Writer, c BundleConfig) error {
	ctx, cancel := context.WithTimeout(ctx, bundleLimit)
	defer cancel()
	b := &bundle{exam: newExam(ctx, c.Config), want: c, scrub: newScrubber(c.Environ, c.WithoutIDs), at: c.Now()}
	zip := gzip.NewWriter(w)
	b.archive = tar.NewWriter(zip)
	entries := b.entries() // first: they say which ids are no secrets
	for _, part := range []struct {
		name string
		text []byte
	}{
		{"entries.jsonl", entries}, {"doctor.jsonl", lines(c.Results)}, {"config.toml", b.config()}, {"journal.json", b.journal()}, {"unit.json", b.unitState()},
		{"status.json", b.ask(ctx, "/status")}, {"metrics.txt", b.ask(ctx, "/metrics")}, {"log.txt", b.log(ctx)}, {"station.pub", b.file("station.pub")},
	} {
		if part.name != "config.toml" {
			part.text = b.scrub.clean(part.text)
		}
		if err := b.add(part.name, part.text); err != nil {
			return err
		}
	}
	// A checkpoint is public, and its root looks like a secret.
	if err := b.add("checkpoint", b.scrub.plain(b.file("journal/checkpoint"))); err != nil {
		return err
	}
	if c.Transcripts {
		if err := b.transcripts(); err != nil {
			return err
		}
	}
	about := fmt.Sprintf("Made by stationctl doctor --bundle, %s, at %s.\nPrivate keys, tokens and credentials are left out; what looked like one is replaced by %s.\n", cli.Version(), b.at.UTC().Format(time.RFC3339), removed)
	if c.WithoutIDs {
		about += "Device ids, MAC addresses and fingerprints are replaced by id-…, the same one for the same id in this bundle only.\n"
	}
	if err := b.add("about.txt", b.scrub.clean([]byte(about+strings.Join(b.notes, "\n")+"\n"))); err != nil {
		return err
	}
	return errors.Join(b.archive.Close(), zip.Close())
}

func (b *bundle) missing(what string, err error) []byte {
	b.notes = append(b.notes, fmt.Sprintf("%s: not here: %v", what, err))
	return nil
}

// add puts a file in, if there is something in it.
func (b *bundle) add(name string, text []byte) error {
	if len(text) == 0 {
		return nil
	}
	if b.size += len(text); b.size > maxBundle {
		return fmt.Errorf("it grows beyond %d bytes; ask for fewer entries (--entries), or leave out --transcripts", maxBundle)
	}
	if err := b.archive.WriteHeader(&tar.Header{Name: "station/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: b.at}); err != nil {
		return err
	}
	_, err := b.archive.Write(text)
	return err
}

func lines(results []Result) []byte {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	for _, r := range results {
		_ = e.Encode(r) // texts and numbers
	}
	return out.Bytes()
}

func (b *bundle) config() []byte {
	f, err := os.Open(b.Path)
	if err != nil {
		return b.missing("config.toml", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPart))
	if err != nil {
		return b.missing("config.toml", err)
	}
	return b.scrub.settings(data)
}

// file reads a public file of the state directory.
func (b *bundle) file(name string) []byte {
	f, err := os.Open(filepath.Join(b.stateDir, name))
	if b.stateDir == "" || err != nil {
		return b.missing(name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPart))
	if err != nil {
		return b.missing(name, err)
	}
	return data
}

func (b *bundle) journal() []byte {
	var out struct {
		Running *control.DaemonStatus `json:"running,omitempty"`
		Stopped *spool.Stats          `json:"stopped,omitempty"`
		Glance  any                   `json:"glance,omitempty"`
	}
	if b.stateDir == "" {
		return nil
	}
	out.Running = b.running
	if stats, err := spool.StoppedStats(b.stateDir); b.running == nil && err == nil {
		out.Stopped = &stats
	}
	v, err := b.verifier()
	if err == nil {
		var g journal.Info
		if g, err = journal.Inspect(b.stateDir, v); err == nil {
			g.Sample = nil
			out.Glance = g
		}
	}
	if err != nil {
		b.missing("the newest segment of the journal", err)
	}
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return b.missing("journal.json", err)
	}
	return append(text, '\n')
}

func (b *bundle) unitState() []byte {
	if b.unit == nil {
		return nil
	}
	text, err := json.MarshalIndent(b.unit, "", "  ")
	if err != nil {
		return b.missing("unit.json", err)
	}
	return append(text, '\n')
}

// ask asks the station on its control socket, which needs no token; else on its
// page, which may want one, and does not get it.
func (b *bundle) ask(ctx context.Context, path string) []byte {
	body, err := control.Get(ctx, b.stateDir, path)
	if err == nil {
		return body
	}
	if b.configErr != nil {
		return b.missing(path, err)
	}
	if b.wouldStart() {
		return b.missing(path, errors.New("the station is stopped, and would be started by being asked"))
	}
	body, status, err := b.Get(ctx, b.station.Listen, path)
	if err == nil && status != 200 {
		err = fmt.Errorf("it answers %d", status)
	}
	if err != nil {
		return b.missing(path, err)
	}
	return body
}

func (b *bundle) log(ctx context.Context) []byte {
	if b.unit == nil {
		return b.missing("log.txt", errors.New("systemd does not run this machine"))
	}
	out, err := b.Command(ctx, "journalctl", "--unit="+unitName, "--no-pager", "--output=short-iso", fmt.Sprintf("--lines=%d", bundleLines))
	if err != nil {
		return b.missing("log.txt", err)
	}
	if len(out) > maxPart { // the newest
		out = out[len(out)-maxPart:]
		_, out, _ = bytes.Cut(out, []byte("\n"))
	}
	return out
}

func (b *bundle) entries() []byte {
	if b.want.Describe == nil || b.want.Entries <= 0 || b.stateDir == "" {
		return nil
	}
	v, err := b.verifier()
	if err != nil {
		return b.missing("entries.jsonl", err)
	}
	g, err := journal.Inspect(b.stateDir, v)
	from := uint64(0)
	if most := uint64(b.want.Entries); err == nil && g.Entries > most {
		from = g.Entries - most
	}
	var out bytes.Buffer
	for e, err := range journal.WalkFrom(b.stateDir, from) {
		if err != nil {
			b.missing("an entry of the journal", err)
			continue
		}
		line, ids, err := b.want.Describe(e)
		if err != nil {
			b.missing("an entry of the journal", err)
			continue
		}
		for _, id := range ids {
			b.scrub.known[id] = true
		}
		out.Write(append(line, '\n'))
		if out.Len() > maxPart {
			b.missing("entries.jsonl", errors.New("the rest would be too large"))
			break
		}
	}
	return out.Bytes()
}

// transcripts are the newest; they hold no private keys, by promise, and are
// scrubbed all the same.
func (b *bundle) transcripts() error {
	names, err := filepath.Glob(filepath.Join(b.stateDir, "transcripts", "*.uart"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	slices.Reverse(names)
	total := 0
	for _, name := range names {
		text := b.file("transcripts/" + filepath.Base(name))
		if total += len(text); total > maxTranscripts {
			b.missing("older transcripts", fmt.Errorf("%d bytes at the most are taken", maxTranscripts))
			return nil
		}
		text = b.scrub.plain(text)
		if err := b.add("transcripts/"+filepath.Base(name), text); err != nil {
			return err
		}
	}
	return nil
}
