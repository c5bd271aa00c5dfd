package uart_test

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"secretfree/fixtures"
	"secretfree/uart"
)

// reportHarness is the firmware around the C of README.md: the port is
// descriptor 3. For a signature it writes the message and a line end to
// descriptor 4, and reads a length and so many bytes from descriptor 5. Serial
// number and key come on the command line, in hex.
const reportHarness = `
#include <stdlib.h>
#include <unistd.h>

static char **arguments;

static int unhex(const char *s, uint8_t *out) {
    int n = 0;
    unsigned x;
    for (; sscanf(s, "%2x", &x) == 1; s += 2)
        out[n++] = (uint8_t)x;
    return n;
}

int secretfree_identity(uint8_t id[16], uint8_t key[91]) {
    return unhex(arguments[1], id) == 16 ? unhex(arguments[2], key) : 0;
}

int secretfree_sign(const char *message, int length, uint8_t signature[72]) {
    uint8_t n, got = 0;
    if (write(4, message, length) != length || write(4, "\n", 1) != 1 || read(5, &n, 1) != 1 || n > 72)
        return 0;
    while (got < n) {
        ssize_t some = read(5, signature + got, n - got);
        if (some <= 0)
            return 0;
        got += some;
    }
    return n;
}

void secretfree_put(char c) {
    if (write(3, &c, 1) != 1)
        exit(1);
}

int main(int argc, char **argv) {
    char c;
    if (argc != 3)
        return 2;
    arguments = argv;
    while (read(3, &c, 1) == 1)
        secretfree_char(c);
    return 0;
}
`

// The C in README.md is what it says: it compiles without a warning, and as a
// board on a port it is read.
func TestReportC(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile(`(?m)^ +(secretfree 1 ready [0-9a-f]{32}) ([0-9a-f]{8})$`).FindSubmatch(text)
	if example == nil || fmt.Sprintf("%08x", crc32.ChecksumIEEE(example[1])) != string(example[2]) {
		t.Errorf("the example of an answer in README.md: %q", example)
	}
	m := regexp.MustCompile("(?s)```c\n(.*?)```").FindAllSubmatch(text, -1)
	if len(m) != 1 {
		t.Fatalf("README.md has %d blocks of C, want 1", len(m))
	}
	// As many characters fit as the text asks for, and the end.
	fit := regexp.MustCompile(`At least ([0-9]+) characters must fit`).FindSubmatch(text)
	size := regexp.MustCompile(`static char line\[([0-9]+)\]`).FindSubmatch(m[0][1])
	if fit == nil || size == nil || mustNumber(t, fit[1])+1 != mustNumber(t, size[1]) {
		t.Errorf("the text asks for %q, the firmware has %q", fit, size)
	}
	compiler, err := exec.LookPath("cc")
	if err != nil {
		const message = "there is no C compiler (cc) to compile the firmware of README.md with"
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	folder := t.TempDir()
	source, program := filepath.Join(folder, "report.c"), filepath.Join(folder, "report")
	if err := os.WriteFile(source, append(m[0][1], reportHarness...), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(compiler, "-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-O1", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("compiling: %v\n%s", err, out)
	}
	for _, c := range []struct {
		hash, form string
		raw        bool
		cut        int
	}{{"sha256", "spki", false, 0}, {"sha1", "point", true, 26}, {"sha256", "xy", false, 27}} {
		t.Run(c.hash+" "+c.form, func(t *testing.T) {
			b := newReportBoard()
			b.Hash, b.RawSignatures = c.hash, c.raw
			line, stop := runC(t, program, b, c.cut)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			d := uart.ReportLine{}
			if err := d.Detect(ctx, line); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				report, err := d.Read(ctx, line)
				if err != nil {
					t.Fatal(err)
				}
				if report.Device != b.Device || string(report.SPKI) != string(b.SPKI()) ||
					report.Facts["key-form"] != c.form || report.Facts["hash"] != c.hash {
					t.Errorf("read %x, %v", report.Device, report.Facts)
				}
				proven(t, report)
			}
			if c.cut != 0 { // once is enough
				gone := make(chan error, 1)
				go func() { gone <- d.Gone(ctx, line) }()
				stop()
				if err := <-gone; err != nil {
					t.Error(err)
				}
				return
			}
			// What is not a command has no answer; what is not a nonce has the
			// answer "error".
			for typed, want := range map[string]string{
				"at+test\r": "", "secretfree 11;": "", "secretfree;": "", ";;\r\n;": "", "xsecretfree 1;": "",
				"secretfree 1 short\r":                               "secretfree 1 error ",
				"secretfree 1 0123456789abcdef-\n":                   "secretfree 1 error ",
				"secretfree 1 " + strings.Repeat("a", 65) + ";":      "secretfree 1 error ",
				"secretfree 1 " + strings.Repeat("a", 5000) + ";":    "secretfree 1 error ",
				"junk;secretfree 1 " + strings.Repeat("a", 64) + ";": "secretfree 1 " + b.ID() + " ",
				";secretfree 1;":                                     "secretfree 1 ready " + b.ID() + " ",
			} {
				if err := line.Send(ctx, typed); err != nil {
					t.Fatal(err)
				}
				got, err := "", error(nil)
				if want != "" {
					got, err = line.ReadLine(ctx)
				}
				if err == nil {
					var more string
					more, err = line.Discard(ctx, 100*time.Millisecond, time.Second)
					got += strings.Trim(more, "\r\n") // the end of the last answer may come late
				}
				if err != nil || !strings.HasPrefix(got, want) || (want == "") != (got == "") {
					t.Errorf("%.40q is answered with %q, want %q (%v)", typed, got, want, err)
				}
			}
		})
	}
}

// runC runs the program as a board on a port, with b's key.
func runC(t *testing.T, program string, b *fixtures.Board, cut int) (*uart.Line, func()) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close(); slave.Close() })
	if _, err := term.MakeRaw(int(slave.Fd())); err != nil {
		t.Fatal(err)
	}
	asked, ask, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answer, answered, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, b.ID(), fmt.Sprintf("%x", b.SPKI()[cut:]))
	cmd.ExtraFiles = []*os.File{master, ask, answer}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ask.Close()
	answer.Close()
	signed := make(chan struct{})
	go func() { // holds the key
		defer close(signed)
		buf := make([]byte, 512)
		var have []byte
		for {
			n, err := asked.Read(buf)
			have = append(have, buf[:n]...)
			if message, rest, ok := bytes.Cut(have, []byte("\n")); ok {
				signature, err := b.Signature(message)
				if err != nil {
					t.Error(err)
				}
				answered.Write(append([]byte{byte(len(signature))}, signature...))
				have = bytes.Clone(rest)
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			cmd.Process.Kill()
			cmd.Wait()
			<-signed
			asked.Close()
			answered.Close()
		}
	}
	t.Cleanup(stop)
	conn, err := uart.Open(t.Context(), slave.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return uart.NewLine(conn, uart.LineOptions{}), stop
}

func mustNumber(t *testing.T, text []byte) int {
	t.Helper()
	n, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
