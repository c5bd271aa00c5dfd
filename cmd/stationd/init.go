package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationconf"
	"secretfree/uart"
)

type initCommand struct {
	SKU      string   `name:"sku" placeholder:"NAME" help:"The product (SKU) of the boards."`
	Station  string   `name:"station" placeholder:"NAME" help:"The name of this station."`
	Port     []string `name:"port" sep:"none" placeholder:"NAME=PATH" help:"A slot and its serial port, such as A=/dev/serial/by-path/…. Repeat for each slot."`
	Registry string   `name:"registry" placeholder:"KIND" help:"The registry: aws, dir, or none (delivery by removable media)."`
	Bucket   string   `name:"bucket" placeholder:"NAME" help:"For aws: the S3 bucket for public keys."`
	Region   string   `name:"region" placeholder:"NAME" help:"For aws: the region; the default is that of the AWS SDK."`
	Dir      string   `name:"dir" placeholder:"FOLDER" help:"For dir: the folder, which is initialised if it is not a registry."`
	Dialect  string   `name:"dialect" default:"auto" placeholder:"NAME" help:"The dialect of the boards (${default}: detect it)."`
	Listen   string   `name:"listen" placeholder:"ADDRESS" help:"The address of the page; the default is 127.0.0.1:8080."`
	Language string   `name:"language" placeholder:"CODE" help:"The language of the page: en (the default), de, es, vi or zh. Each user can choose another one."`
	StateDir string   `name:"state-dir" placeholder:"FOLDER" help:"The state directory; the default is /var/lib/stationd, as in the unit."`
	Output   string   `name:"output" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The configuration to write (${default})."`
	Force    bool     `name:"force" help:"Replace an existing configuration, and keep it as FILE.old."`
}

func (initCommand) Help() string {
	return `On a terminal it asks for what no flag says: the product, the name of this station, its serial ports, and where records
go. Without one, flags must say it all. Nothing is written before all is answered and checked.

Examples:
  sudo stationd init
  sudo stationd init --sku widgiot --station line3-a --port A=/dev/serial/by-path/pci-0000:00:14.0-usb-0:1.1:1.0-port0 --registry none`
}

// defaultState is where the unit may write its state.
const defaultState = "/var/lib/stationd"

// stationUser is whom the unit runs stationd as.
const stationUser = "stationd"

// runner is who will run stationd, as far as can be told: its user if we are
// root and there is one, otherwise whoever we are.
func runner() (u uart.User, owned stationconf.Owned, err error) {
	owned = stationconf.Owned{UID: -1, GID: -1, Mode: 0o644}
	if os.Geteuid() == 0 {
		known, err := user.Lookup(stationUser)
		if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
			return u, owned, nil
		} else if err != nil {
			return u, owned, fmt.Errorf("looking for the user %s: %w", stationUser, err)
		}
		ids, err := known.GroupIds()
		if err != nil {
			return u, owned, fmt.Errorf("looking for the groups of the user %s: %w", stationUser, err)
		}
		for _, text := range append([]string{known.Uid}, ids...) {
			id, err := strconv.ParseUint(text, 10, 31)
			if err != nil {
				return u, owned, fmt.Errorf("looking for the user %s: %w", stationUser, err)
			}
			u.GIDs = append(u.GIDs, uint32(id))
		}
		u.UID, u.GIDs = u.GIDs[0], u.GIDs[1:]
		gid, err := strconv.Atoi(known.Gid)
		if err != nil {
			return u, owned, fmt.Errorf("looking for the user %s: %w", stationUser, err)
		}
		// Root writes it, and everybody may read it: stationctl status does,
		// and there is no secret in it.
		return u, stationconf.Owned{UID: 0, GID: gid, Mode: 0o644}, nil
	}
	groups, err := os.Getgroups()
	if err != nil {
		return u, owned, fmt.Errorf("looking for our groups: %w", err)
	}
	u.UID = uint32(os.Geteuid())
	for _, id := range append(groups, os.Getegid()) {
		u.GIDs = append(u.GIDs, uint32(id))
	}
	return u, owned, nil
}

func (i *initCommand) Run(ctx context.Context, out *cli.Output) error {
	choices, err := i.choices()
	if err != nil {
		return err
	}
	if err := i.writable(); err != nil {
		return err
	}
	who, owned, err := runner()
	if err != nil {
		return err
	}
	use := func(path string) error {
		if err := uart.MayOpen(path, who); err != nil {
			return err
		}
		if by := uart.Holder(path); by != "" {
			return fmt.Errorf("%w: %s", uart.ErrBusy, by)
		}
		return nil
	}
	if missing := lacks(choices); len(missing) > 0 {
		if !term.IsTerminal(int(os.Stdin.Fd())) {
			return fmt.Errorf("%w: there is no terminal to ask at, so %s must say the rest", cli.ErrMisuse, strings.Join(missing, ", "))
		}
		fmt.Fprintf(out.People, "Four questions, and %s is written. Ctrl-C ends it, and nothing is written.\n", i.Output)
		if err := (stationconf.Questions{In: os.Stdin, Out: out.People, Ports: uart.List, Use: use}).Ask(ctx, &choices); err != nil {
			return err
		}
		for n := range choices.Slots {
			choices.Slots[n].Dialect = i.Dialect
		}
		fmt.Fprintln(out.People)
	}
	for _, slot := range choices.Slots {
		if err := use(slot.Port); filepath.IsAbs(slot.Port) && err != nil {
			fmt.Fprintf(out.Err, "stationd: slot %s cannot be used as things are: %v\n", slot.Name, err)
		}
	}
	return i.write(choices, owned, int(who.UID), out)
}

// choices are what the flags say. What they say wrongly is misuse.
func (i *initCommand) choices() (stationconf.Choices, error) {
	c := stationconf.Choices{SKU: i.SKU, Station: i.Station, Registry: i.Registry, Bucket: i.Bucket, Region: i.Region, Dir: i.Dir, Listen: i.Listen, StateDir: i.StateDir, Language: i.Language}
	for _, text := range i.Port {
		name, path, ok := strings.Cut(text, "=")
		if !ok {
			return c, fmt.Errorf("%w: --port %s names no slot; write it as A=%s", cli.ErrMisuse, text, text)
		}
		c.Slots = append(c.Slots, stationconf.Slot{Name: name, Port: path, Dialect: i.Dialect})
	}
	misplaced := func(flag, kind string) (stationconf.Choices, error) {
		return c, fmt.Errorf("%w: --%s goes with --registry %s", cli.ErrMisuse, flag, kind)
	}
	switch {
	case c.Bucket != "" && c.Registry != "aws":
		return misplaced("bucket", "aws")
	case c.Region != "" && c.Registry != "aws":
		return misplaced("region", "aws")
	case c.Dir != "" && c.Registry != "dir":
		return misplaced("dir", "dir")
	}
	tried := c
	if len(tried.Slots) == 0 { // the dialect is for the slots that will be asked for
		tried.Slots = []stationconf.Slot{{Name: "A", Port: "/dev/serial/by-path/none", Dialect: i.Dialect}}
	}
	if err := tried.Check(); err != nil {
		return c, fmt.Errorf("%w: %s", cli.ErrMisuse, stationconf.Explain(err))
	}
	if c.Dir != "" {
		if err := stationconf.CheckFolder(c.Dir); err != nil {
			return c, fmt.Errorf("%w: --dir: %w", cli.ErrMisuse, err)
		}
	}
	return c, nil
}

// lacks names the flags that say what is missing.
func lacks(c stationconf.Choices) (flags []string) {
	for _, need := range []struct {
		flag    string
		missing bool
	}{
		{"--sku", c.SKU == ""}, {"--station", c.Station == ""}, {"--port", len(c.Slots) == 0}, {"--registry", c.Registry == ""},
		{"--bucket", c.Registry == "aws" && c.Bucket == ""}, {"--dir", c.Registry == "dir" && c.Dir == ""},
	} {
		if need.missing {
			flags = append(flags, need.flag)
		}
	}
	return flags
}

// writable refuses early, before people have answered questions, what would be
// refused in the end.
func (i *initCommand) writable() error {
	if _, err := os.Lstat(i.Output); err == nil && !i.Force {
		return fmt.Errorf("%w: %s; --force keeps it as %s.old and writes a new one", stationconf.ErrExists, i.Output, i.Output)
	}
	dir := filepath.Dir(i.Output)
	for {
		err := unix.Access(dir, unix.W_OK)
		if errors.Is(err, unix.ENOENT) && filepath.Dir(dir) != dir { // it will be made
			dir = filepath.Dir(dir)
			continue
		}
		if info, statErr := os.Stat(dir); err == nil && statErr == nil && !info.IsDir() {
			err = unix.ENOTDIR
		}
		if err != nil {
			return fmt.Errorf("nothing can be written in %s (%w); run it with sudo, or name another file with --output", dir, err)
		}
		return nil
	}
}

// unwritable says which folders the unit may not write to as it is, and what to
// do.
func unwritable(c stationconf.Config) string {
	var all []string
	text := ""
	if c.StateDir != defaultState && !strings.HasPrefix(c.StateDir, defaultState+"/") {
		all = append(all, c.StateDir)
		text = fmt.Sprintf("The unit needs the folder %s to be there. Run: install -d -m 700 -o %s %s\n", c.StateDir, stationUser, c.StateDir)
	}
	if c.Registry.Kind == "dir" && !strings.HasPrefix(c.Registry.Dir+"/", stationconf.DefaultFolder+"/") {
		all = append(all, c.Registry.Dir)
	}
	if len(all) == 0 {
		return ""
	}
	return text + fmt.Sprintf("The unit may not write to %s yet. Run: systemctl edit stationd, and write there: [Service] and, in the next line, ReadWritePaths=%s\n",
		strings.Join(all, " and "), strings.Join(all, " "))
}

func (i *initCommand) write(choices stationconf.Choices, owned stationconf.Owned, uid int, out *cli.Output) error {
	text, err := stationconf.Compose(choices)
	if err != nil {
		return err
	}
	if choices.Registry == "dir" {
		owner, group := -1, -1
		if owned.GID >= 0 {
			owner, group = uid, owned.GID
		}
		if err := stationconf.MakeFolder(choices.Dir, owner, group); err != nil {
			return err
		}
	}
	kept, err := stationconf.Install(i.Output, text, i.Force, owned)
	if err != nil {
		return err
	}
	c, err := stationconf.Load(i.Output)
	if err != nil {
		return fmt.Errorf("checking what was written: %w", err)
	}
	var next strings.Builder
	fmt.Fprintf(&next, "%s is written and good: station %s of SKU %s, %s, registry of kind %s.\n", i.Output, c.Station, c.SKU, cli.Count(len(c.Slots), "slot", "slots"), c.Registry.Kind)
	if kept != "" {
		fmt.Fprintf(&next, "The old one is %s.\n", kept)
	}
	next.WriteString(unwritable(c))
	start := "systemctl enable --now stationd"
	if i.Output != defaultConfig {
		start = "stationd --config " + i.Output
	}
	fmt.Fprintf(&next, "Next:\n  %s\nThe page is then at http://%s/\n", start, c.Listen)
	return out.Print(struct {
		OK       bool   `json:"ok"`
		File     string `json:"file"`
		Kept     string `json:"kept,omitempty"`
		Station  string `json:"station"`
		SKU      string `json:"sku"`
		Slots    int    `json:"slots"`
		Registry string `json:"registry"`
		Page     string `json:"page"`
	}{true, i.Output, kept, c.Station, c.SKU, len(c.Slots), c.Registry.Kind, "http://" + c.Listen + "/"}, next.String())
}
