package cli

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

func (tool) Manual() Manual { return Manual{Section: 8, See: []string{"other(1)"}} }

func (tool) Help() string {
	return `Before the examples.

Examples:
  tool show --since "x" '.y' \
      .Shows a thing…

After them:
  a table  of its own`
}

func TestManual(t *testing.T) {
	code, page, stderr := call(t, "--man")
	if code != ExitDone || stderr != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if _, again, _ := call(t, "show", "--man"); again != page {
		t.Error("it is another one the second time, or of a command")
	}
	want := regexp.MustCompile(`(?s)^\.TH "TOOL" "8" "[0-9\\-]*" "secretfree [^"]+" "secretfree"\n` +
		`\.SH "NAME"\ntool \\- show things\n` +
		`\.SH "SYNOPSIS"\ntool show \[flags\] <name>\n\.br\ntool fail .*` +
		`\.SH "DESCRIPTION"\nShow things\.\n\.PP\nBefore the examples\.\n\.PP\nAfter them:\n\.PP\n\.nf\n  a table  of its own\n\.fi\n` +
		`\.SH "OPTIONS"\n.*\.TP\n\.B "\\-\\-json"\n.*\.TP\n\.B "\\-\\-config=\\\(dq/etc/tool\.toml\\\(dq"\nThe configuration \(/etc/tool\.toml\)\.\n` +
		`\.SH "COMMANDS"\n\.SS "show \[flags\] <name>"\nShow a thing\.\n\.TP\n\.I "<name>"\nThe thing\.\n\.TP\n\.B "\\-\\-since=STRING"\nFrom when on\.\n` +
		`.*\.SH "FILES"\n\.TP\n\.I "/etc/tool\.toml"\n.*\.SH "EXIT STATUS"\n.*` +
		`\.SH "EXAMPLES"\n\.nf\n  tool show \\-\\-since "x" \\\(aq\.y\\\(aq \\e\n      \.Shows a thing\\\[u2026\]\n\.fi\n\.SH "SEE ALSO"\nother\(1\)\n$`)
	if !want.MatchString(page) {
		t.Errorf("the page is\n%s", page)
	}
	if strings.Contains(page, "parse") || strings.Contains(page, "\\-\\-man") {
		t.Error("it tells of hidden flags")
	}
}

// What reads manual pages takes the page without a warning.
func TestManualIsAccepted(t *testing.T) {
	_, page, _ := call(t, "--man")
	for _, reader := range [][]string{{"groff", "-man", "-Tutf8", "-ww"}, {"mandoc", "-T", "lint", "-W", "error"}} {
		path, err := exec.LookPath(reader[0])
		switch {
		case err == nil:
		case os.Getenv("CI") == "true" && reader[0] == "groff":
			t.Fatalf("CI has no groff: %v", err)
		default:
			t.Logf("there is no %s here", reader[0])
			continue
		}
		c := exec.CommandContext(t.Context(), path, reader[1:]...)
		c.Stdin = strings.NewReader(page)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		if out, err := c.Output(); err != nil || stderr.Len() > 0 {
			t.Errorf("%s: %v\n%s%s", reader[0], err, out, stderr.String())
		}
	}
}

// A test of documents sees what is a good command line without running it.
func TestParseOnly(t *testing.T) {
	code, stdout, stderr := call(t, "--parse-only", "show", "--since", "x", "y")
	if code != ExitDone || stderr != "" || !strings.HasPrefix(stdout, "show <name>\n") || !strings.Contains(stdout, "\n--since\n") || strings.Contains(stdout, "looking") {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	if code, _, _ := call(t, "--parse-only", "show", "--nope", "y"); code != ExitMisuse {
		t.Errorf("exit %d", code)
	}
}
