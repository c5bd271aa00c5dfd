package stationconf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/config"
	"secretfree/uart"
)

// Check reports the first choice that a configuration with it would be refused
// for, by the rules of Load. What is still missing is not looked at.
func (c Choices) Check() error {
	// In the place of what is missing stands something good, so that an error
	// is of a choice.
	if c.SKU == "" {
		c.SKU = "sku"
	}
	if c.Station == "" {
		c.Station = "station"
	}
	if len(c.Slots) == 0 {
		c.Slots = []Slot{{Name: "A", Port: "/dev/serial/by-path/none"}}
	}
	switch {
	case c.Registry == "", c.Registry == "aws" && c.Bucket == "", c.Registry == "dir" && c.Dir == "":
		c.Registry = NoRegistry
	case c.Registry != "aws" && c.Registry != "dir" && c.Registry != NoRegistry:
		return &config.Error{Problem: fmt.Sprintf("there is no registry of kind %q", c.Registry), Remedy: fmt.Sprintf("Write aws, dir or %s.", NoRegistry)}
	}
	text, err := Compose(c)
	if err != nil {
		return err
	}
	_, err = parse("", []byte(text))
	return err
}

// CheckFolder reports why a folder cannot be, or become, a registry.
func CheckFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if info, err := os.Stat(filepath.Dir(dir)); err != nil || !info.IsDir() {
			return fmt.Errorf("there is no folder %s to make it in: make that first", filepath.Dir(dir))
		}
		return nil
	case err != nil:
		return fmt.Errorf("looking at the folder: %w", err)
	case len(entries) == 0 || isRegistry(dir):
		return nil
	}
	return fmt.Errorf("%s holds other things (%s): choose an empty folder, or one that is not there yet", dir, entries[0].Name())
}

func isRegistry(dir string) bool {
	opened, err := cloud.OpenDir(cloud.DirConfig{Path: dir})
	if err != nil {
		return false
	}
	_, err = opened.LegacyItems(context.Background())
	return err == nil
}

// MakeFolder makes a folder a registry that a user and a group own, as stationd
// must be able to write there; -1 is whoever makes it. One that is a registry
// stays as it is.
func MakeFolder(dir string, uid, gid int) error {
	if isRegistry(dir) {
		return nil
	}
	if err := cloud.InitDir(dir); err != nil {
		return err
	}
	if uid < 0 {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, uid, gid)
		}
		if err != nil {
			return fmt.Errorf("giving the registry to the user of the station: %w", err)
		}
		return nil
	})
}

// Questions asks people for what Choices lack.
type Questions struct {
	In  io.Reader // a line for each answer
	Out io.Writer
	// Ports gives the serial ports, and why the station's user cannot use one;
	// nil if nothing is known against it.
	Ports func() ([]uart.Listed, error)
	Use   func(path string) error
}

// ErrNoAnswer: the input ended before all was answered.
var ErrNoAnswer = errors.New("the answers ended too early; nothing was written")

const maxAnswer = 16 << 10 // bytes

// Ask fills in what is missing in the choices. A bad answer is told why and
// asked for again. It ends early with ErrNoAnswer, or with the cause of ctx; a
// reader of In that is then still waiting ends with the process.
func (q Questions) Ask(ctx context.Context, c *Choices) error {
	a := &asking{Questions: q, ctx: ctx, answers: make(chan string), ended: make(chan struct{})}
	go func() {
		defer close(a.ended)
		lines := bufio.NewScanner(q.In)
		lines.Buffer(nil, maxAnswer)
		for lines.Scan() {
			select {
			case a.answers <- strings.TrimSpace(lines.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	for _, ask := range []func(*Choices) error{a.sku, a.station, a.slots, a.registry} {
		if err := ask(c); err != nil {
			return err
		}
	}
	return nil
}

type asking struct {
	Questions
	ctx     context.Context
	answers chan string
	ended   chan struct{} // closed when no answer comes any more
}

func (a *asking) say(format string, args ...any) { fmt.Fprintf(a.Out, format, args...) }

// answer asks until take likes what it gets.
func (a *asking) answer(take func(text string) error) error {
	for {
		a.say("> ")
		select {
		case <-a.ctx.Done():
			return fmt.Errorf("%w; nothing was written", context.Cause(a.ctx))
		case <-a.ended:
			a.say("\n")
			return ErrNoAnswer
		case text := <-a.answers:
			err := take(text)
			if err == nil {
				return nil
			}
			a.say("  %s\n", Explain(err))
		}
	}
}

// Explain is an error without the file and the line, which there is not yet.
func Explain(err error) string {
	if wrong, ok := errors.AsType[*config.Error](err); ok {
		return wrong.Problem + ". " + wrong.Remedy
	}
	return err.Error()
}

// set tries a changed copy of the choices, and keeps it if it is good.
func set(c *Choices, change func(*Choices)) error {
	tried := *c
	change(&tried)
	if err := tried.Check(); err != nil {
		return err
	}
	*c = tried
	return nil
}

var errEmpty = errors.New("an answer is needed here")

func (a *asking) sku(c *Choices) error {
	if c.SKU != "" {
		return nil
	}
	a.say("\n1 of 4. The product (SKU) whose boards are read here: 1 to 63 of a-z, 0-9 and -, as widgiot\n")
	return a.answer(func(text string) error {
		if text == "" {
			return errEmpty
		}
		return set(c, func(c *Choices) { c.SKU = text })
	})
}

func (a *asking) station(c *Choices) error {
	if c.Station != "" {
		return nil
	}
	a.say("\n2 of 4. The name of this station, as line3-a. It cannot be changed later, and no other station may have it.\n")
	return a.answer(func(text string) error {
		if text == "" {
			return errEmpty
		}
		return set(c, func(c *Choices) { c.Station = text })
	})
}

func (a *asking) slots(c *Choices) error {
	if len(c.Slots) > 0 {
		return nil
	}
	a.say("\n3 of 4. The places where boards are plugged in (slots), and their serial ports.\n")
	ports, err := a.listPorts()
	if err != nil {
		return err
	}
	a.say("Which are slots? Their numbers in the order of the fixture, as 1 2 or 1-4; the first becomes slot A. A path does as well.\nEnter alone lists them again.\n")
	return a.answer(func(text string) error {
		if text == "" {
			if ports, err = a.listPorts(); err != nil {
				return err
			}
			return errors.New("which are slots?")
		}
		chosen, err := choosePorts(text, ports)
		if err != nil {
			return err
		}
		var slots []Slot
		for i, port := range chosen {
			slots = append(slots, Slot{Name: SlotName(i), Port: port})
		}
		if err := set(c, func(c *Choices) { c.Slots = slots }); err != nil {
			return err
		}
		for _, slot := range slots {
			a.say("  slot %s is %s\n", slot.Name, slot.Port)
		}
		return nil
	})
}

func (a *asking) listPorts() ([]uart.Listed, error) {
	ports, err := a.Ports()
	if err != nil {
		return nil, err
	}
	if len(ports) == 0 {
		a.say("  No serial port is there. Plug the adapters in.\n")
	}
	for i, port := range ports {
		a.say("%4d  %s\n", i+1, port.Path)
		a.say("      %s\n", DescribePort(port, a.Use(port.Path)))
	}
	return ports, nil
}

// DescribePort is what people want to know of a port besides its path; against
// is why it cannot be used.
func DescribePort(p uart.Listed, against error) string {
	parts := []string{filepath.Base(p.Device)}
	switch {
	case p.Adapter != "":
		parts = append(parts, p.Adapter)
	case p.Vendor != "":
		parts = append(parts, "USB "+p.Vendor+":"+p.Product)
	}
	switch {
	case p.Silent():
		parts = append(parts, "the silent port of an XDS110: boards speak on the other one")
	case p.Ports > 1:
		parts = append(parts, fmt.Sprintf("port %d of %d", p.Port, p.Ports))
	}
	if against != nil {
		parts = append(parts, against.Error())
	}
	return strings.Join(parts, ", ")
}

// SlotName names the slots A to Z, then AA and so on.
func SlotName(i int) string {
	name := ""
	for i++; i > 0; i = (i - 1) / 26 {
		name = string(rune('A'+(i-1)%26)) + name
	}
	return name
}

var rangePattern = regexp.MustCompile(`^([0-9]{1,3})(?:-([0-9]{1,3}))?$`)

// choosePorts turns an answer into paths.
func choosePorts(text string, ports []uart.Listed) ([]string, error) {
	var chosen []string
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
		if uart.CheckAddress(word) == nil {
			chosen = append(chosen, word)
			continue
		}
		m := rangePattern.FindStringSubmatch(word)
		if m == nil {
			return nil, fmt.Errorf("%.60q is neither a number of the list nor a path", word)
		}
		first, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, err
		}
		last := first
		if m[2] != "" {
			if last, err = strconv.Atoi(m[2]); err != nil {
				return nil, err
			}
		}
		if first < 1 || last < first || last > len(ports) {
			return nil, fmt.Errorf("%s is not in the list, which has %s", word, cli.Count(len(ports), "port", "ports"))
		}
		for i := first; i <= last; i++ {
			chosen = append(chosen, ports[i-1].Path)
		}
	}
	if len(chosen) == 0 {
		return nil, errEmpty
	}
	return chosen, nil
}

// DefaultFolder is where the unit may write a registry.
const DefaultFolder = "/srv/registry"

func (a *asking) registry(c *Choices) error {
	if c.Registry == "" {
		a.say("\n4 of 4. Where do records go?\n  aws   a DynamoDB table and an S3 bucket\n  dir   a folder\n  %s  nowhere by themselves: a removable medium takes them away (stationctl export)\n", NoRegistry)
		if err := a.answer(func(text string) error {
			if text == "" {
				return errEmpty
			}
			return set(c, func(c *Choices) { c.Registry = text })
		}); err != nil {
			return err
		}
	}
	switch {
	case c.Registry == "aws" && c.Bucket == "":
		a.say("  The S3 bucket for public keys\n")
		if err := a.answer(func(text string) error {
			if text == "" {
				return errEmpty
			}
			return set(c, func(c *Choices) { c.Bucket = text })
		}); err != nil || c.Region != "" {
			return err
		}
		a.say("  The region, as us-east-1. Enter: as AWS_REGION or the profile of the credentials has it\n")
		return a.answer(func(text string) error { return set(c, func(c *Choices) { c.Region = text }) })
	case c.Registry == "dir" && c.Dir == "":
		a.say("  The folder. Enter: %s\n", DefaultFolder)
		return a.answer(func(text string) error {
			if text == "" {
				text = DefaultFolder
			}
			tried := *c
			tried.Dir = text
			if err := tried.Check(); err != nil {
				return err
			}
			if err := CheckFolder(text); err != nil {
				return err
			}
			c.Dir = text
			return nil
		})
	}
	return nil
}
