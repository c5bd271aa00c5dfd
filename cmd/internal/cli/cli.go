// Package cli is what all commands have in common at the command line: flags,
// exit codes, signals, and two kinds of output: text for people and JSON for
// programs.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

// The exit codes of all commands.
const (
	ExitDone   = 0
	ExitFailed = 1 // failed, or refused
	ExitMisuse = 2
)

// ErrMisuse says that a command was called wrongly, where the parser could not
// see it.
var ErrMisuse = errors.New("misused")

// ErrShown says that a command failed and that its output already says why.
var ErrShown = errors.New("failed; the output says why")

// ErrStopped is the cause of a context that a signal ended.
var ErrStopped = errors.New("stopped by a signal")

// Output is where a command writes. Results go to Out, text for people to
// People: the same as Out, or the standard error when JSON is on.
type Output struct {
	Out    io.Writer
	People io.Writer
	Err    io.Writer
	JSON   bool
}

// Print writes one JSON object as a line if JSON is on; otherwise text.
func (o *Output) Print(object any, text string) error {
	if !o.JSON {
		_, err := io.WriteString(o.Out, text)
		return err
	}
	line, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("writing the result as JSON: %w", err)
	}
	_, err = o.Out.Write(append(line, '\n'))
	return err
}

// Count is a number with what it counts: "1 slot", "2 slots".
func Count[N int | int64 | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Size is a number of bytes as people say it.
func Size(bytes int64) string {
	const unit = 1000
	if bytes < unit {
		return Count(bytes, "byte", "bytes")
	}
	value, names := float64(bytes)/unit, []string{"kB", "MB", "GB", "TB"}
	for len(names) > 1 && value >= unit {
		value, names = value/unit, names[1:]
	}
	if value < 10 {
		return fmt.Sprintf("%.1f %s", value, names[0])
	}
	return fmt.Sprintf("%.0f %s", value, names[0])
}

// Common holds the flags that every command has; a grammar embeds it.
type Common struct {
	JSON    bool             `name:"json" help:"Write one JSON object per line on the standard output; text for people goes to the standard error."`
	Version kong.VersionFlag `name:"version" help:"Print the version and exit."`
	Man     manFlag          `name:"man" hidden:"" help:"Print the manual page and exit."`
	Parse   bool             `name:"parse-only" hidden:"" help:"Only see whether this is a good command line."`
}

func (c Common) common() Common { return c }

// Main runs the command of a process: args without the program's name, grammar
// a pointer to a struct for kong that embeds Common and whose chosen command
// has a method Run(context.Context, *Output) error. The context ends at the
// first SIGINT or SIGTERM; the second ends the process at once. It returns the
// exit code.
func Main(name, description string, grammar interface{ common() Common }, args []string) int {
	ctx, stop := signals(name)
	defer stop()
	return run(ctx, name, description, grammar, args, os.Stdout, os.Stderr)
}

func run(ctx context.Context, name, description string, grammar interface{ common() Common }, args []string, stdout, stderr io.Writer) int {
	type exited int
	code := -1
	manual := Manual{Section: 1}
	if m, ok := grammar.(interface{ Manual() Manual }); ok {
		manual = m.Manual()
	}
	parser, err := kong.New(grammar, kong.Bind(manual),
		kong.Name(name), kong.Description(description),
		kong.Vars{"version": name + " " + Version()},
		kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, Summary: false, WrapUpperBound: 100}),
		kong.Exit(func(c int) { panic(exited(c)) }))
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return ExitMisuse
	}
	var chosen *kong.Context
	func() {
		defer func() {
			switch r := recover().(type) {
			case nil:
			case exited: // --help or --version
				code, err = int(r), nil
			default:
				panic(r)
			}
		}()
		chosen, err = parser.Parse(longFlags(parser.Model, args))
	}()
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\nTry: %s --help\n", name, err, name)
		return ExitMisuse
	case chosen == nil:
		return code
	}

	if grammar.common().Parse {
		return parsed(chosen, stdout)
	}
	out := &Output{Out: stdout, People: stdout, Err: stderr, JSON: grammar.common().JSON}
	if out.JSON {
		out.People = stderr
	}
	chosen.BindTo(ctx, (*context.Context)(nil))
	err = chosen.Run(out)
	switch {
	case err == nil:
		return ExitDone
	case errors.Is(err, ErrMisuse):
		fmt.Fprintf(stderr, "%s: %v\nTry: %s --help\n", name, err, name)
		return ExitMisuse
	case !errors.Is(err, ErrShown):
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
	}
	return ExitFailed
}

// parsed writes how a command line was understood, for tests of documents: the
// command, then the flags that it knows, one a line.
func parsed(chosen *kong.Context, stdout io.Writer) int {
	fmt.Fprintln(stdout, chosen.Command())
	for _, flag := range chosen.Flags() {
		fmt.Fprintln(stdout, "--"+flag.Name)
	}
	return ExitDone
}

// longFlags lets -config stand for --config: many services are started so.
func longFlags(app *kong.Application, args []string) []string {
	known := map[string]bool{}
	var collect func(n *kong.Node)
	collect = func(n *kong.Node) {
		for _, flag := range n.Flags {
			known[flag.Name] = true
		}
		for _, child := range n.Children {
			collect(child)
		}
	}
	collect(app.Node)
	out := make([]string, 0, len(args))
	for i, arg := range args {
		if arg == "--" {
			return append(out, args[i:]...)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		if strings.HasPrefix(arg, "-") && len(name) > 1 && known[name] {
			arg = "-" + arg
		}
		out = append(out, arg)
	}
	return out
}

// sameEvent is within which a signal that comes again is the first one's echo:
// a terminal and a supervisor, or a process and its group, may both be told of
// one Ctrl-C. Nobody presses a key twice in so short a time.
const sameEvent = 100 * time.Millisecond

func signals(name string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	caught := make(chan os.Signal, 2)
	done := make(chan struct{})
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go attend(caught, done, cancel, func(second os.Signal) {
		fmt.Fprintf(os.Stderr, "%s: cut short by a second signal (%s)\n", name, second)
		os.Exit(ExitFailed)
	})
	return ctx, func() {
		signal.Stop(caught)
		close(done)
		cancel(nil)
	}
}

// attend cancels at the first signal and cuts short at the second, until done
// is closed.
func attend(caught <-chan os.Signal, done <-chan struct{}, cancel context.CancelCauseFunc, cut func(os.Signal)) {
	var first os.Signal
	var at time.Time
	for {
		select {
		case <-done:
			return
		case s := <-caught:
			switch {
			case first == nil:
				first, at = s, time.Now()
				cancel(fmt.Errorf("%w (%s)", ErrStopped, s))
			case s != first || time.Since(at) >= sameEvent:
				cut(s)
			}
		}
	}
}

// moduleVersion is the version of the module, as a tag or as the Go toolchain
// makes one of a commit.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// Version is what this program was built from, by the Go toolchain's own
// record.
func Version() string {
	text := moduleVersion()
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return text
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if revision := settings["vcs.revision"]; revision != "" {
		text += " " + revision[:min(12, len(revision))]
		if settings["vcs.modified"] == "true" {
			text += " with changes"
		}
	}
	return text + " " + info.GoVersion
}
