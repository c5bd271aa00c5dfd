package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// tool is a grammar with what the real ones have: a flag at the top, and
// commands with flags of their own.
type tool struct {
	Common
	Config string `name:"config" default:"/etc/tool.toml" help:"The configuration (${default})."`

	Show  show  `cmd:"" help:"Show a thing."`
	Fail  fail  `cmd:"" help:"Fail in some way."`
	Break broke `cmd:"" help:"Print what cannot be printed."`
}

type show struct {
	Name  string `arg:"" help:"The thing."`
	Since string `name:"since" help:"From when on."`
}

func (s *show) Run(ctx context.Context, out *Output, t *tool) error {
	fmt.Fprintf(out.People, "looking at %s\n", s.Name)
	return out.Print(map[string]any{"name": s.Name, "config": t.Config, "since": s.Since}, fmt.Sprintf("%s of %s since %s\n", s.Name, t.Config, s.Since))
}

type fail struct {
	How string `arg:"" help:"The way."`
}

var errPlain = errors.New("the disk is full")

func (f *fail) Run(ctx context.Context, out *Output) error {
	switch f.How {
	case "shown":
		if err := out.Print(map[string]bool{"ok": false}, "it is refused\n"); err != nil {
			return err
		}
		return fmt.Errorf("checking: %w", ErrShown)
	case "misuse":
		return fmt.Errorf("--since and --until are the wrong way round: %w", ErrMisuse)
	case "context":
		return context.Cause(ctx)
	}
	return fmt.Errorf("writing: %w", errPlain)
}

type broke struct{}

func (b *broke) Run(out *Output) error { return out.Print(func() {}, "fine as text\n") }

// call runs the tool, and returns its exit code and what it wrote.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrStopped)
	var out, err bytes.Buffer
	code = run(ctx, "tool", "Show things.", new(tool), args, &out, &err)
	return code, out.String(), err.String()
}

func TestRun(t *testing.T) {
	const try = "Try: tool --help\n"
	for name, c := range map[string]struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		"text":                   {"show a", ExitDone, "looking at a\na of /etc/tool.toml since \n", ""},
		"JSON":                   {"--json show a", ExitDone, `{"config":"/etc/tool.toml","name":"a","since":""}` + "\n", "looking at a\n"},
		"JSON, later":            {"show a --json", ExitDone, `{"config":"/etc/tool.toml","name":"a","since":""}` + "\n", "looking at a\n"},
		"JSON, one dash":         {"-json show a", ExitDone, `{"config":"/etc/tool.toml","name":"a","since":""}` + "\n", "looking at a\n"},
		"two dashes":             {"--config x.toml show a", ExitDone, "looking at a\na of x.toml since \n", ""},
		"one dash":               {"-config x.toml show a", ExitDone, "looking at a\na of x.toml since \n", ""},
		"two dashes, =":          {"--config=x.toml show a", ExitDone, "looking at a\na of x.toml since \n", ""},
		"one dash, =":            {"-config=x.toml show a", ExitDone, "looking at a\na of x.toml since \n", ""},
		"one dash, of a command": {"show -since today a", ExitDone, "looking at a\na of /etc/tool.toml since today\n", ""},
		"after --":               {"show -- -config", ExitDone, "looking at -config\n-config of /etc/tool.toml since \n", ""},
		"failure":                {"fail plain", ExitFailed, "", "tool: writing: the disk is full\n"},
		"failure, JSON":          {"--json fail plain", ExitFailed, "", "tool: writing: the disk is full\n"},
		"shown":                  {"fail shown", ExitFailed, "it is refused\n", ""},
		"shown, JSON":            {"--json fail shown", ExitFailed, `{"ok":false}` + "\n", ""},
		"misuse":                 {"fail misuse", ExitMisuse, "", "tool: --since and --until are the wrong way round: misused\n" + try},
		"stopped":                {"fail context", ExitFailed, "", "tool: stopped by a signal\n"},
		"no JSON of it":          {"--json break", ExitFailed, "", "tool: writing the result as JSON: json: unsupported type: func()\n"},
		"text of it":             {"break", ExitDone, "fine as text\n", ""},
		"unknown flag":           {"show a --nope", ExitMisuse, "", "tool: unknown flag --nope\n" + try},
		"unknown command":        {"shwo", ExitMisuse, "", "tool: unexpected argument shwo, did you mean \"show\"?\n" + try},
		"an argument too many":   {"show a b", ExitMisuse, "", "tool: unexpected argument b\n" + try},
		"an argument too few":    {"show", ExitMisuse, "", "tool: expected \"<name>\"\n" + try},
		"a flag without value":   {"show a --since", ExitMisuse, "", "tool: --since: expected string value but got \"EOL\" (<EOL>)\n" + try},
		"a value that is none":   {"--json=maybe show a", ExitMisuse, "", "tool: --json: bool value must be true, 1, yes, false, 0 or no but got \"maybe\"\n" + try},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := call(t, strings.Fields(c.args)...)
			if code != c.code || stdout != c.stdout || stderr != c.stderr {
				t.Errorf("exit %d, stdout %q, stderr %q\nwant %d, %q, %q", code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
		})
	}
}

func TestNoCommand(t *testing.T) {
	code, stdout, stderr := call(t)
	if code != ExitMisuse || stdout != "" || !strings.HasPrefix(stderr, "tool: expected one of ") || !strings.HasSuffix(stderr, "\nTry: tool --help\n") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range []string{"--help", "-h", "-help", "show --help", "--json --help"} {
		code, stdout, stderr := call(t, strings.Fields(args)...)
		if code != ExitDone || stderr != "" || !strings.HasPrefix(stdout, "Usage: tool ") || !strings.Contains(stdout, "--json") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
	for _, args := range []string{"--version", "-version", "show --version"} {
		code, stdout, stderr := call(t, strings.Fields(args)...)
		if code != ExitDone || stderr != "" || stdout != "tool "+Version()+"\n" {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
	if v := Version(); !strings.HasSuffix(v, " "+runtime.Version()) || strings.HasPrefix(v, " ") {
		t.Errorf("the version is %q", v)
	}
}

// A command that stands alone, as stationd.
type alone struct {
	Common
	Check bool `name:"check" help:"Check only."`
}

func (a *alone) Run(ctx context.Context, out *Output) error {
	return out.Print(map[string]bool{"check": a.Check}, fmt.Sprintln("check", a.Check))
}

func TestAlone(t *testing.T) {
	for args, want := range map[string]string{"": "check false\n", "-check": "check true\n", "--check --json": `{"check":true}` + "\n"} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), "alone", "Stand.", new(alone), strings.Fields(args), &stdout, &stderr)
		if code != ExitDone || stdout.String() != want || stderr.Len() > 0 {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", args, code, &stdout, &stderr)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// A result that could not be written is not done.
func TestOutputFull(t *testing.T) {
	for _, args := range [][]string{{}, {"--json"}} {
		var stderr bytes.Buffer
		if code := run(t.Context(), "alone", "Stand.", new(alone), args, full{}, &stderr); code != ExitFailed || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%q: exit %d, stderr %q", args, code, &stderr)
		}
	}
}

func TestOutputPrint(t *testing.T) {
	for _, c := range []struct {
		json   bool
		object any
		want   string
	}{
		{false, struct{}{}, "as text"},
		{true, struct{}{}, "{}\n"},
		{true, map[string]string{"text": "two\nlines"}, `{"text":"two\nlines"}` + "\n"},
	} {
		var b bytes.Buffer
		if err := (&Output{Out: &b, JSON: c.json}).Print(c.object, "as text"); err != nil || b.String() != c.want {
			t.Errorf("got %q, %v, want %q", &b, err, c.want)
		}
		if c.json && !json.Valid(b.Bytes()) {
			t.Errorf("%q is not JSON", &b)
		}
	}
}

// The first signal ends the context with its name as the cause, and stop gives
// the signals back.
func TestSignals(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		ctx, stop := signals("tool")
		if err := syscall.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute):
			t.Fatal("the context goes on")
		}
		if err := context.Cause(ctx); !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), s.String()) {
			t.Errorf("the cause is %v, want %v with %s", err, ErrStopped, s)
		}
		stop()
	}
	ctx, stop := signals("tool")
	stop()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrStopped) {
		t.Errorf("stopped without a signal: %v", err)
	}
}

// stubborn goes on after the first signal.
type stubborn struct{ Common }

func (*stubborn) Run(ctx context.Context, out *Output) error {
	fmt.Fprintln(out.Out, "ready")
	<-ctx.Done()
	fmt.Fprintln(out.Out, "stopping")
	select {}
}

const asTool = "CLI_TEST_AS_TOOL"

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" {
		os.Exit(Main("stubborn", "Go on.", new(stubborn), nil))
	}
	os.Exit(m.Run())
}

// The same signal within a tenth of a second is one event; another one, or the
// same one later, is a second.
func TestWhatIsASecondSignal(t *testing.T) {
	type sent struct {
		after  time.Duration
		signal os.Signal
	}
	for name, c := range map[string]struct {
		sent []sent
		cut  time.Duration // after the start; 0: not at all
	}{
		"one":               {[]sent{{0, syscall.SIGTERM}}, 0},
		"an echo":           {[]sent{{0, syscall.SIGTERM}, {99 * time.Millisecond, syscall.SIGTERM}}, 0},
		"the same, later":   {[]sent{{0, syscall.SIGTERM}, {100 * time.Millisecond, syscall.SIGTERM}}, 100 * time.Millisecond},
		"another, at once":  {[]sent{{0, syscall.SIGTERM}, {time.Millisecond, os.Interrupt}}, time.Millisecond},
		"an echo and later": {[]sent{{0, os.Interrupt}, {50 * time.Millisecond, os.Interrupt}, {50 * time.Millisecond, os.Interrupt}}, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				caught, done := make(chan os.Signal), make(chan struct{})
				start := time.Now()
				var cut time.Duration
				go attend(caught, done, cancel, func(os.Signal) { cut = time.Since(start) })
				for _, s := range c.sent {
					time.Sleep(s.after)
					caught <- s.signal
				}
				synctest.Wait()
				if !errors.Is(context.Cause(ctx), ErrStopped) || cut != c.cut {
					t.Errorf("the cause is %v; it was cut short after %v, want %v", context.Cause(ctx), cut, c.cut)
				}
				close(done)
			})
		})
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0 entries", 1: "1 entry", 2: "2 entries"} {
		if got := Count(n, "entry", "entries"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// The second signal ends the process at once, with the exit code of a failure.
func TestSecondSignal(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, self)
	c.Env = append(os.Environ(), asTool+"=1")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	heard := ""
	for _, step := range []struct {
		after  string
		signal os.Signal
	}{{"ready\n", syscall.SIGTERM}, {"stopping\n", os.Interrupt}} {
		for buf := make([]byte, 64); !strings.HasSuffix(heard, step.after); {
			n, err := stdout.Read(buf)
			if heard += string(buf[:n]); err != nil {
				t.Fatalf("waiting for %q: %v after %q; stderr %q", step.after, err, heard, &stderr)
			}
		}
		if err := c.Process.Signal(step.signal); err != nil {
			t.Fatal(err)
		}
	}
	err = c.Wait()
	if c.ProcessState.ExitCode() != ExitFailed || stderr.String() != "stubborn: cut short by a second signal (interrupt)\n" {
		t.Errorf("%v, stderr %q", err, &stderr)
	}
}

func TestSize(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1.0 kB", 16 << 20: "17 MB", 2_500_000_000: "2.5 GB", 5_000_000_000_000_000: "5000 TB"} {
		if got := Size(bytes); got != want {
			t.Errorf("%d: %q, want %q", bytes, got, want)
		}
	}
}
