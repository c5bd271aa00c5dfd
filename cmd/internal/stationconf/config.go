// Package stationconf reads, checks and writes the configuration of a station:
// the file that systemd/stationd.toml explains. Start with Config.
package stationconf

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"

	"secretfree/cmd/internal/config"
	"secretfree/cmd/internal/control"
	"secretfree/station"
	"secretfree/station/board"
	"secretfree/uart"
)

// Config is stationd's configuration file. systemd/stationd.toml explains each
// key.
type Config struct {
	Station     string          `toml:"station"`
	SKU         string          `toml:"sku"`
	StateDir    string          `toml:"state_dir"`
	Listen      string          `toml:"listen"`
	Hosts       []string        `toml:"hosts"`
	Access      Access          `toml:"access"`
	Slots       []Slot          `toml:"slot"`
	Registry    config.Registry `toml:"registry"`
	Policy      Policy          `toml:"policy"`
	Page        Page            `toml:"page"`
	Transcripts Transcripts     `toml:"transcripts"`
	Export      Export          `toml:"export"`
	Disk        Disk            `toml:"disk"`
	Log         config.Log      `toml:"log"`
}

// Slot is an element of [[slot]].
type Slot struct {
	Name    string `toml:"name"`
	Port    string `toml:"port"`
	Dialect string `toml:"dialect"`
	// The modem lines, as uart.ParseLevel, ParseSequence and ParsePresence read
	// them.
	DTR     string   `toml:"dtr"`
	RTS     string   `toml:"rts"`
	Reset   []string `toml:"reset"`
	Present string   `toml:"present"`
}

// Policy is the table [policy].
type Policy struct {
	AllowUnproven bool              `toml:"allow_unproven"`
	Algorithms    []board.Algorithm `toml:"algorithms"`
	Lot           string            `toml:"lot"`   // a file; empty: every board may pass
	Label         string            `toml:"label"` // LabelOptional or LabelRequired
}

// What Policy.Label can be. A label that was scanned and names another board
// fails a board either way.
const (
	LabelOptional = "optional"
	LabelRequired = "required"
)

// Page is the table [page].
type Page struct {
	Language       string `toml:"language"` // one of station.Languages
	Sound          bool   `toml:"sound"`
	ContactIT      string `toml:"contact_it"` // whom the page says to call; see station.Page
	ContactQuality string `toml:"contact_quality"`
}

func (p Page) check(f *config.File) error {
	if !slices.Contains(station.Languages(), p.Language) {
		return f.Errorf("page.language", fmt.Sprintf("Write one of: %s.", strings.Join(station.Languages(), ", ")), "page.language is %q", p.Language)
	}
	for _, contact := range []struct{ key, value string }{{"page.contact_it", p.ContactIT}, {"page.contact_quality", p.ContactQuality}} {
		if err := station.CheckContact(contact.value); err != nil {
			return f.Errorf(contact.key, `Write whom to call and how in a few words, such as "ext. 4711".`, "%s: %v", contact.key, err)
		}
	}
	return nil
}

// Transcripts is the table [transcripts]: how many files are kept of boards
// that failed and of boards that passed.
type Transcripts struct {
	Failed int `toml:"failed"`
	Passed int `toml:"passed"`
	MaxMiB int `toml:"max_mib"` // for all together
}

// Export is the table [export], for a station without a network.
type Export struct {
	TrustedReceipts []string `toml:"trusted_receipts"` // public keys of importers, in the note key format
}

// NoRegistry is the kind of registry of a station without a network: records
// leave it on a removable medium.
const NoRegistry = "none"

const (
	DefaultListen  = "127.0.0.1:8080"
	maxTranscripts = 100_000 // files of a kind
	maxShelf       = 100_000 // MiB
)

// Load reads and checks a configuration file, and fills in what may be left
// out.
func Load(name string) (Config, error) {
	c, _, err := load(name)
	return c, err
}

// LoadToServe is Load, and reads the files that [access] names, which only the
// user of stationd may be able to.
func LoadToServe(name string) (Config, error) {
	c, file, err := load(name)
	if err != nil {
		return Config{}, err
	}
	return c, c.Access.checkFiles(file)
}

func load(name string) (Config, *config.File, error) {
	c := defaults()
	file, err := config.Load(name, &c)
	if err != nil {
		return Config{}, nil, err
	}
	return c, file, c.check(file)
}

// parse is Load of what is to be written to a file.
func parse(name string, text []byte) (Config, error) {
	c := defaults()
	file, err := config.Parse(name, text, &c)
	if err != nil {
		return Config{}, err
	}
	return c, c.check(file)
}

func defaults() Config {
	return Config{
		Listen:      DefaultListen,
		Transcripts: Transcripts{Failed: 500, Passed: 50, MaxMiB: 200},
		Policy:      Policy{Label: LabelOptional},
		Page:        Page{Language: station.English},
		Disk:        Disk{Warn: 80, Critical: 95},
		Log:         config.Log{Level: zerolog.LevelInfoValue, Format: "auto"},
	}
}

func (c Config) check(f *config.File) error {
	for _, name := range []struct{ key, value string }{{"station", c.Station}, {"sku", c.SKU}} {
		if err := board.CheckName(name.value); err != nil {
			return f.Errorf(name.key, "Write 1 to 63 of a-z, 0-9 and -, starting with a letter or a digit.", "%s is %q", name.key, name.value)
		}
	}
	if !filepath.IsAbs(c.StateDir) {
		return f.Errorf("state_dir", `Write the absolute path of a folder that only this station uses, such as "/var/lib/stationd".`, "state_dir is %q", c.StateDir)
	}
	if len(c.StateDir) > control.MaxStateDir {
		return f.Errorf("state_dir", fmt.Sprintf("Write a shorter path, of %d bytes at the most: the kernel allows no longer one for the control socket in it.", control.MaxStateDir), "state_dir has %d bytes", len(c.StateDir))
	}
	if err := config.CheckListen(f, "listen", c.Listen, DefaultListen); err != nil {
		return err
	}
	if err := config.CheckHosts(f, "hosts", c.Hosts); err != nil {
		return err
	}
	if err := c.Access.check(f, c.Listen); err != nil {
		return err
	}
	if err := c.checkSlots(f); err != nil {
		return err
	}
	for _, a := range c.Policy.Algorithms {
		if a != board.P256 && a != board.P384 && a != board.RSA {
			return f.Errorf("policy.algorithms", fmt.Sprintf("Write some of %q, %q, %q.", board.P256, board.P384, board.RSA), "policy.algorithms has %q", a)
		}
	}
	if len(c.Policy.Algorithms) > 0 && !slices.Contains(c.Policy.Algorithms, board.P256) {
		return f.Errorf("policy.algorithms", fmt.Sprintf("Add %q: no dialect of this version reads a board with another type of key, so all would be refused.", board.P256), "policy.algorithms is %q", c.Policy.Algorithms)
	}
	if c.Policy.Lot != "" && !filepath.IsAbs(c.Policy.Lot) {
		return f.Errorf("policy.lot", "Write the absolute path of the file.", "policy.lot is %q", c.Policy.Lot)
	}
	if c.Policy.Label != LabelOptional && c.Policy.Label != LabelRequired {
		return f.Errorf("policy.label", fmt.Sprintf("Write %q or %q.", LabelOptional, LabelRequired), "policy.label is %q", c.Policy.Label)
	}
	for _, limit := range []struct {
		key              string
		value, low, high int
	}{{"failed", c.Transcripts.Failed, 1, maxTranscripts}, {"passed", c.Transcripts.Passed, 0, maxTranscripts}, {"max_mib", c.Transcripts.MaxMiB, 1, maxShelf}} {
		if limit.value < limit.low || limit.value > limit.high {
			return f.Errorf("transcripts."+limit.key, fmt.Sprintf("Write a number from %d to %d.", limit.low, limit.high), "transcripts.%s is %d", limit.key, limit.value)
		}
	}
	if _, err := c.Receipts(); err != nil {
		return f.Errorf("export.trusted_receipts", "Write the lines of station.pub files that stationctl import has made, each of another importer.", "export.trusted_receipts: %v", err)
	}
	if err := c.Page.check(f); err != nil {
		return err
	}
	if err := c.Disk.check(f); err != nil {
		return err
	}
	if err := c.Log.Check(f); err != nil {
		return err
	}
	if c.Registry.Kind == NoRegistry {
		if c.Registry != (config.Registry{Kind: NoRegistry}) {
			return f.Errorf("registry", `Remove what else is in [registry], or write kind = "aws" or kind = "dir".`, "registry.kind is %q, and there is more", NoRegistry)
		}
		return nil
	}
	return c.Registry.Check(f)
}

func (c Config) checkSlots(f *config.File) error {
	if len(c.Slots) == 0 {
		return f.Errorf("slot", `Add a table [[slot]] with name = "A", port = "/dev/serial/by-path/…" and dialect = "ti-at".`, "there is no slot")
	}
	names, ports := map[string]int{}, map[string]int{}
	for i, slot := range c.Slots {
		key := func(name string) string { return fmt.Sprintf("slot[%d].%s", i, name) }
		switch {
		case slot.Name == "" || len(slot.Name) > 32 || strings.TrimSpace(slot.Name) != slot.Name ||
			strings.ContainsFunc(slot.Name, func(r rune) bool { return r < ' ' || r > '~' }):
			return f.Errorf(key("name"), "Write 1 to 32 plain characters, as they stand on the fixture.", "the name of slot %d is %q", i+1, slot.Name)
		case names[slot.Name] > 0:
			return f.Errorf(key("name"), "Give each slot its own name.", "slots %d and %d are both named %q", names[slot.Name], i+1, slot.Name)
		case uart.CheckAddress(slot.Port) != nil:
			return f.Errorf(key("port"), "Write the absolute path of the serial port (those under /dev/serial/by-path stay the same when ports come and go), or auto:<vid>:<pid> for the one USB probe of that kind.",
				"the port of slot %q is %q", slot.Name, slot.Port)
		case ports[filepath.Clean(slot.Port)] > 0:
			return f.Errorf(key("port"), "Give each slot its own port.", "slots %d and %d both use %s", ports[filepath.Clean(slot.Port)], i+1, slot.Port)
		}
		if _, err := uart.DialectByName(slot.Dialect); err != nil {
			return f.Errorf(key("dialect"), fmt.Sprintf("Write one of: %s.", strings.Join(uart.DialectNames(), ", ")), "the dialect of slot %q is %q", slot.Name, slot.Dialect)
		}
		if err := slot.checkModem(f, key("")); err != nil {
			return err
		}
		names[slot.Name], ports[filepath.Clean(slot.Port)] = i+1, i+1
	}
	return nil
}

// AllowedHosts are the names of the page: those that were listed, and the one
// that it listens on.
func (c Config) AllowedHosts() []string {
	host, _, _ := net.SplitHostPort(c.Listen)
	if host == "" {
		return c.Hosts
	}
	return append(slices.Clone(c.Hosts), host)
}

// Receipts are the keys of those whose receipts settle records.
func (c Config) Receipts() (note.Verifiers, error) {
	var verifiers []note.Verifier
	for i, key := range c.Export.TrustedReceipts {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return nil, fmt.Errorf("key %d is no public key", i+1)
		}
		if slices.ContainsFunc(verifiers, func(v note.Verifier) bool { return v.Name() == verifier.Name() && v.KeyHash() == verifier.KeyHash() }) {
			return nil, fmt.Errorf("key %d is there twice", i+1)
		}
		verifiers = append(verifiers, verifier)
	}
	return note.VerifierList(verifiers...), nil
}

// NewLog makes a logger; every line has the station.
func NewLog(w io.Writer, c Config) (zerolog.Logger, error) { return c.Log.New(w, "station", c.Station) }

// OpenLog makes the daemon's own logger, which is NewLog's with more; see
// config.DaemonLog.
func OpenLog(w io.Writer, c Config) (zerolog.Logger, error) {
	return c.Log.New(w, "station", c.Station)
}

// Disk is the table [disk]: how full the disk may be, in percent, before the
// page says so.
type Disk struct {
	Warn     int `toml:"warn_percent"`
	Critical int `toml:"critical_percent"`
}

func (d Disk) check(f *config.File) error {
	if d.Warn < 1 || d.Warn > 99 {
		return f.Errorf("disk.warn_percent", "Write a number from 1 to 99.", "disk.warn_percent is %d", d.Warn)
	}
	if d.Critical <= d.Warn || d.Critical > 99 {
		return f.Errorf("disk.critical_percent", "Write a number from 2 to 99 that is greater than warn_percent.", "disk.critical_percent is %d, disk.warn_percent %d", d.Critical, d.Warn)
	}
	return nil
}
