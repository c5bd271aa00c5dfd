package cmd_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	systemPath  = regexp.MustCompile(`(^|[\s"'=:>(])(/(?:etc|var|srv|media|mnt|tmp|dev/serial)\b)`)
	documentArg = regexp.MustCompile(`(^|[\s=])(DEVICE|SEQ|ID)($|[\s])`)
)

// rewrite puts what a document says where a test can have it: folders of the
// system, addresses of the samples.
func rewrite(text, root, listen, issuer string) string {
	text = systemPath.ReplaceAllString(text, "${1}"+root+"${2}")
	return strings.NewReplacer("127.0.0.1:8080", listen, "127.0.0.1:8081", issuer).Replace(text)
}

// script is a document's blocks as one text for bash; what block n prints comes
// after a line "@@ n".
func (d document) script(root, listen, issuer string) (text string, runs int) {
	var b strings.Builder
	for i, block := range d.blocks {
		body := rewrite(strings.Join(block.lines, "\n"), root, listen, issuer)
		if name, ok := block.option("file"); ok {
			fmt.Fprintf(&b, "where=%s:%d\ncat >%q <<'END OF THE FILE'\n%s\nEND OF THE FILE\n", d.name, block.line, rewrite(name, root, listen, issuer), body)
		}
		_, needs := block.option("needs")
		_, elsewhere := block.option("test")
		if !block.commands() || needs || elsewhere {
			continue
		}
		runs++
		body = documentArg.ReplaceAllString(body, `${1}"$$${2}"${3}`)
		fmt.Fprintf(&b, "where=%s:%d\necho '@@ %d'\n", d.name, block.line, i)
		if before, ok := block.option("before"); ok {
			b.WriteString(before + "\n")
		}
		if _, background := block.option("background"); background {
			fmt.Fprintf(&b, "{ %s\n} >background-%d 2>&1 &\nawait background-%d '\"message\":\"ready\"\\|  board '\n", body, i, i)
			if strings.Contains(body, "simulate") {
				b.WriteString("passed\n")
			}
		} else {
			b.WriteString(body + "\n")
		}
	}
	return b.String(), runs
}

// misses is the first line of a block of output that the block before it did
// not print; … stands for anything.
func misses(block []string, printed string) string {
	at := 0
	lines := strings.Split(printed, "\n")
next:
	for _, want := range block {
		if strings.TrimSpace(want) == "" {
			continue
		}
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".*") + "$")
		for ; at < len(lines); at++ {
			if pattern.MatchString(strings.TrimRight(lines[at], " ")) {
				continue next
			}
		}
		return want
	}
	return ""
}

// run runs the commands of a document; setup is a text for bash that goes
// before them.
func (d document) run(t *testing.T, bin, setup string) (problem string) {
	t.Helper()
	root, work := t.TempDir(), t.TempDir()
	listen, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	rooms, err := filepath.Glob(filepath.Join(tree, "[a-z]*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, room := range rooms { // so that what a document says of the tree holds, and what it writes does not stay
		if err := os.Symlink(room, filepath.Join(work, filepath.Base(room))); err != nil {
			t.Fatal(err)
		}
	}
	prelude, err := os.ReadFile("testdata/docs/prelude.sh")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := d.script(root, listen, issuer)
	c := exec.CommandContext(t.Context(), "bash")
	c.Stdin = strings.NewReader(string(prelude) + rewrite(setup, root, listen, issuer) + text)
	c.Dir = work
	c.Env = append(os.Environ(), "ROOT="+root, "BIN="+bin, "LISTEN="+listen, "ISSUER="+issuer, "TREE="+tree)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err = c.Run()
	if c.Process != nil { // what it left running: nothing that is wanted
		if err := syscall.Kill(-c.Process.Pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			t.Error(err)
		}
	}
	if err != nil {
		logs := ""
		for _, pattern := range []string{filepath.Join(work, "background-*"), filepath.Join(root, "*.log")} {
			files, _ := filepath.Glob(pattern)
			for _, file := range files {
				data, _ := os.ReadFile(file)
				logs += file + ":\n" + string(data)
			}
		}
		return fmt.Sprintf("%s: %v\n%s%s%s", d.name, err, stderr.String(), stdout.String(), logs)
	}
	before := -1
	for i, block := range d.blocks {
		if block.commands() {
			before = i
		}
		if _, output := block.option("output"); !output {
			continue
		}
		_, printed, ok := strings.Cut(stdout.String(), fmt.Sprintf("@@ %d\n", before))
		printed, _, _ = strings.Cut(printed, "@@ ")
		if missed := misses(block.lines, rewriteBack(printed, root, listen, issuer)); !ok || missed != "" {
			return fmt.Sprintf("%s:%d: what is printed has no line %q:\n%s", d.name, block.line, missed, printed)
		}
	}
	return ""
}

func rewriteBack(text, root, listen, issuer string) string {
	return strings.NewReplacer(root, "", listen, "127.0.0.1:8080", issuer, "127.0.0.1:8081").Replace(text)
}

// Those commands of the documents that need nothing but this machine are run,
// each document's in its order, in a place of its own. What a document takes
// for granted is in testdata/docs, under its name.
func TestDocumentsRun(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "openssl"} {
		peer(t, tool)
	}
	bin, ran := builtCommands(t), 0
	for _, d := range documents(t) {
		text, runs := d.script("", "", "")
		if runs == 0 && text == "" {
			continue
		}
		ran += runs
		setup, err := os.ReadFile(filepath.Join("testdata/docs", strings.ReplaceAll(d.name, "/", "_")+".sh"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			if problem := d.run(t, bin, string(setup)); problem != "" {
				t.Error(problem)
			}
		})
	}
	if ran < 8 {
		t.Errorf("%d blocks are run: this test looks at the wrong things", ran)
	}
}

// A document whose commands fail, or print something else than it says, is
// found out.
func TestDocumentsRunSpoiled(t *testing.T) {
	peer(t, "bash")
	bin := builtCommands(t)
	for text, want := range map[string]string{
		"```sh\nstationctl registry init /srv/registry\n```\n```text output\n/srv/registry is a registry.\n```\n```sh\nstationctl verify --key no.pub no.proof | cat\n```": "x.md:8: exit 1: command",
		"```sh\nstationctl registry init /srv/registry\n```\n```text output\n/srv/… is a folder.\n```":                                                                     `no line "/srv/… is a folder."`,
		"```sh\nstationctl spool show DEVICE\n```":                                                       "DEVICE: unbound variable",
		"```toml file=/etc/secretfree/stationd.toml\nstation = \"x\"\n```\n```sh\nstationd --check\n```": "etc/secretfree/stationd.toml",
	} {
		d := parseDocument("x.md", text)
		if problem := d.run(t, bin, ""); !strings.Contains(problem, want) {
			t.Errorf("%q: %q, want %q", text, problem, want)
		}
	}
	if problem := parseDocument("x.md", "```sh\nstationctl registry init /srv/registry | cat\n```\n```text output\n/srv/… is a registry.\n```").run(t, bin, ""); problem != "" {
		t.Error(problem)
	}
}
