package stationconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"secretfree/systemd"
)

// Choices are what a new configuration is made of. What is empty and may be
// left out stays the default.
type Choices struct {
	SKU, Station string
	Slots        []Slot // a slot without a dialect gets DefaultDialect
	Registry     string // "aws", "dir" or NoRegistry
	Bucket       string // of aws
	Region       string // of aws; empty: as the AWS SDK finds it
	Dir          string // of dir
	Listen       string
	StateDir     string
	Language     string // of the page
}

// DefaultDialect finds out how boards talk.
const DefaultDialect = "auto"

// Compose makes the text of a configuration from the choices: the sample, with
// its explanations. It does not check them.
func Compose(c Choices) (string, error) {
	text := systemd.StationConfig
	var failed error
	// set replaces the one line that sets a key; all of it, so that an example
	// never stays beside the value.
	set := func(key, line string) {
		place := regexp.MustCompile(`(?m)^(?:# )?` + key + ` *= .*$`)
		if n := len(place.FindAllStringIndex(text, -1)); n != 1 {
			failed = errors.Join(failed, fmt.Errorf("the sample sets %s %d times", key, n))
			return
		}
		text = place.ReplaceAllLiteralString(text, line)
	}
	set("station", "station = "+quote(c.Station))
	set("sku", "sku     = "+quote(c.SKU))
	if c.StateDir != "" {
		set("state_dir", "state_dir = "+quote(c.StateDir))
	}
	if c.Listen != "" {
		set("listen", "listen = "+quote(c.Listen))
	}
	if c.Language != "" {
		set("language", "language = "+quote(c.Language))
	}
	first, after, ok := strings.Cut(text, "\n[[slot]]\n")
	rest, registry, found := strings.Cut(after, "\n# Where records go.")
	explained, _, two := strings.Cut(rest, "\n[[slot]]\n")
	if !ok || !found || !two || len(c.Slots) == 0 {
		return "", errors.New("the sample has no two tables [[slot]] before [registry], or there is no slot to write")
	}
	for i, slot := range c.Slots {
		if slot.Dialect == "" {
			slot.Dialect = DefaultDialect
		}
		if i > 0 {
			first += fmt.Sprintf("\n[[slot]]\nname    = %s\nport    = %s\ndialect = %s\n", quote(slot.Name), quote(slot.Port), quote(slot.Dialect))
			continue
		}
		text = explained
		set("name", "name = "+quote(slot.Name))
		set("port", "port = "+quote(slot.Port))
		set("dialect", "dialect = "+quote(slot.Dialect))
		first += "\n[[slot]]\n" + text
	}
	text = first + "\n# Where records go." + registry
	set("kind", "kind   = "+quote(c.Registry))
	switch c.Registry {
	case "aws":
		set("bucket", "bucket = "+quote(c.Bucket))
		set("region", "region = "+quote(c.Region))
	case "dir":
		set("bucket", "dir    = "+quote(c.Dir))
		set("region", `# region = ""`)
	default:
		set("bucket", `# bucket = ""`)
		set("region", `# region = ""`)
	}
	return text, failed
}

// quote makes a basic string of TOML.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// ErrExists: Install does not write over a configuration.
var ErrExists = errors.New("there is a configuration already")

// Owned is whom a new file belongs to.
type Owned struct {
	UID, GID int // -1: whoever makes it
	Mode     os.FileMode
}

// Install puts a text in place as a whole and durably, with the folder that it
// is in. A file that is there is left alone, with ErrExists, unless force: then
// it is kept as name.old, in the place of an older one.
func Install(name, text string, force bool, owned Owned) (kept string, err error) {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the folder of the configuration: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+".*")
	if err != nil {
		return "", fmt.Errorf("writing the configuration: %w", err)
	}
	defer os.Remove(f.Name()) // not there any more if all is well
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Chmod(owned.Mode)
	}
	if err == nil && (owned.UID >= 0 || owned.GID >= 0) {
		err = f.Chown(owned.UID, owned.GID)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("writing the configuration: %w", err)
	}
	// A link fails where a rename would write over what somebody else made in
	// the meantime.
	if err = os.Link(f.Name(), name); errors.Is(err, fs.ErrExist) {
		if !force {
			return "", fmt.Errorf("%w: %s; --force keeps it as %s.old and writes a new one", ErrExists, name, name)
		}
		kept = name + ".old"
		if err := keepOld(name, kept); err != nil {
			return "", fmt.Errorf("keeping the old configuration: %w", err)
		}
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return "", fmt.Errorf("writing the configuration: %w", err)
	}
	return kept, syncDir(dir)
}

// keepOld gives a file a second name. There is a file under the first one at
// every moment.
func keepOld(name, kept string) error {
	if err := os.Remove(kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Link(name, kept)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
