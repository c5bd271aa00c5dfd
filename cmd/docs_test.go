package cmd_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The commands in documents. They stand in fenced blocks whose info string
// begins with sh. Such a block is run as it stands, in the order of its
// document, unless the info string says why not; then each command line is
// checked all the same: the command, its flags, the tests, files and units that
// it names are there.
//
//	sh               run by TestDocumentsRun
//	sh background    run, and goes on to the end of the document: a second terminal
//	sh needs=WHAT    only checked; WHAT is one of needs
//	sh test=P.TestX  run by that test
//	sh before=NAME   run, after the function NAME of testdata/docs: what happens to the machine between two blocks
//	text output      what the block before it prints, besides other lines; … stands for anything
//
// A block of any other language with the word file=NAME is written to that file
// first. No command stands anywhere else, but in the prose, in back quotes:
// there it is checked.

// needs is why a command in a document is not run here.
func needs() map[string]string {
	return map[string]string{
		"root":    "it changes the machine that it runs on",
		"aws":     "it wants an account of AWS",
		"board":   "it wants a board, a person or another machine",
		"network": "it fetches something",
		"time":    "it takes long; CI runs it, or a part of it",
	}
}

// document is a Markdown file.
type document struct {
	name   string // from the root of the tree, with slashes
	blocks []block
	prose  []spoken
}

type block struct {
	line  int // of its first line of text
	info  []string
	lines []string
}

// spoken is a piece of prose in back quotes.
type spoken struct {
	line int
	text string
}

func (b block) option(name string) (string, bool) {
	for _, word := range b.info[min(1, len(b.info)):] {
		if value, ok := strings.CutPrefix(word, name+"="); ok || word == name {
			return value, true
		}
	}
	return "", false
}

func (b block) commands() bool { return len(b.info) > 0 && b.info[0] == "sh" }

func documents(t *testing.T) (all []document) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != ".." && strings.HasPrefix(entry.Name(), ".") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel("..", path)
		all = append(all, parseDocument(filepath.ToSlash(name), string(text)))
		return err
	})
	if err != nil || len(all) < 6 {
		t.Fatalf("%d documents: %v", len(all), err)
	}
	return all
}

var inBackQuotes = regexp.MustCompile("`([^`]+)`")

// parseDocument finds fenced and indented blocks, and what stands in back
// quotes outside of them.
func parseDocument(name, text string) document {
	d := document{name: name}
	var open *block
	fenced, blank := false, true
	end := func() {
		if open != nil {
			d.blocks = append(d.blocks, *open)
		}
		open, fenced = nil, false
	}
	for i, line := range strings.Split(text, "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		indented, isIndented := strings.CutPrefix(line, "    ")
		if !isIndented {
			indented, isIndented = strings.CutPrefix(line, "\t")
		}
		switch {
		case fenced && line == "```":
			end()
		case fenced:
			open.lines = append(open.lines, line)
		case isFence:
			end()
			open, fenced = &block{line: i + 2, info: strings.Fields(fence)}, true
		case isIndented && (open != nil || blank):
			if open == nil {
				open = &block{line: i + 1}
			}
			open.lines = append(open.lines, indented)
		case open != nil && strings.TrimSpace(line) == "":
			open.lines = append(open.lines, "")
		default:
			end()
			for _, m := range inBackQuotes.FindAllStringSubmatch(line, -1) {
				d.prose = append(d.prose, spoken{i + 1, m[1]})
			}
		}
		blank = strings.TrimSpace(line) == ""
	}
	end()
	return d
}

// checker knows what commands there are.
type checker struct {
	parse     func(args ...string) (string, error) // of our commands: a usage, or what is wrong
	aws       func(args []string) error            // nil where there is no such command
	run, seen int
	why       map[string]int
}

func newChecker(t *testing.T) *checker {
	bin := builtCommands(t)
	c := &checker{why: map[string]int{}, parse: func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, args[0]), append([]string{"--parse-only"}, args[1:]...)...).CombinedOutput()
		if err != nil {
			first, _, _ := strings.Cut(string(out), "\n")
			return "", errors.New(first)
		}
		return string(out), nil
	}}
	path, err := exec.LookPath("aws")
	if err != nil {
		t.Log("there is no aws here: its flags in documents are not checked")
		return c
	}
	c.aws = func(args []string) error { // asks nobody, and knows the flags
		args = append(slices.Clone(args), "--generate-cli-skeleton", "input", "--region", "us-east-1")
		for i, arg := range args {
			args[i] = strings.Replace(arg, "file://", "", 1) // which need not be there
		}
		if out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	return c
}

// samCommand checks that the template has the parameters.
func samCommand(words []string) error {
	i := slices.Index(words, "--template-file")
	if i < 0 || i+1 == len(words) {
		return errors.New("it names no template")
	}
	template, err := os.ReadFile(filepath.Join("..", words[i+1]))
	if err != nil {
		return err
	}
	_, parameters, _ := strings.Cut(string(template), "\nParameters:\n")
	parameters, _, _ = strings.Cut(parameters, "\nConditions:\n")
	overrides := words[slices.Index(words, "--parameter-overrides")+1:]
	for _, word := range overrides {
		if name, _, ok := strings.Cut(word, "="); ok && !strings.Contains("\n"+parameters, "\n  "+name+":\n") {
			return fmt.Errorf("the template has no parameter %s", name)
		}
	}
	return nil
}

// Every command in every document is run, or is at least one that there is.
func TestDocumentsCommands(t *testing.T) {
	c := newChecker(t)
	for _, d := range documents(t) {
		for _, problem := range c.document(d) {
			t.Error(problem)
		}
	}
	t.Logf("%d command lines are run, %d in blocks are only checked %v, %d in prose are checked", c.run, total(c.why), c.why, c.seen)
	if c.run < 20 || c.seen < 10 {
		t.Error("too few: this test looks at the wrong things")
	}
}

func total(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func (c *checker) document(d document) (problems []string) {
	complain := func(line int, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("%s:%d: %s", d.name, line, fmt.Sprintf(format, args...)))
	}
	for _, b := range d.blocks {
		if !b.commands() {
			for i, line := range b.lines {
				if word, _, _ := strings.Cut(strings.TrimPrefix(line, "$ "), " "); isCommand(word) && len(strings.Fields(line)) > 1 {
					complain(b.line+i, "a command stands in a block that is not marked sh: %s", line)
				}
			}
			continue
		}
		need, only := b.option("needs")
		test, elsewhere := b.option("test")
		_, background := b.option("background")
		if only && needs()[need] == "" {
			complain(b.line, "it needs %q, which is none of the reasons not to run a command", need)
		}
		if folder, name, ok := strings.Cut(test, "."); elsewhere && (!ok || !testExists(folder, name)) {
			complain(b.line, "there is no test %s that runs it", test)
		}
		_, before := b.option("before")
		if want := 1 + count(only, elsewhere, background, before); len(b.info) != want {
			complain(b.line, "the info string %q is not understood", strings.Join(b.info, " "))
		}
		commands, err := splitShell(strings.Join(b.lines, "\n"))
		if err != nil {
			complain(b.line, "%v", err)
		}
		for _, words := range commands {
			if only {
				c.why[need]++
			} else {
				c.run++
			}
			if err := c.command(words.words, false); err != nil {
				complain(b.line+words.line, "%s: %v", strings.Join(words.words, " "), err)
			}
		}
	}
	for _, s := range d.prose {
		if m := regexp.MustCompile(`^([a-z0-9/-]+)\.((?:Test|Fuzz|Benchmark)[A-Za-z0-9]+)$`).FindStringSubmatch(s.text); m != nil && !testExists(m[1], m[2]) {
			complain(s.line, "there is no test %s", s.text)
		}
		first, _, more := strings.Cut(s.text, " ")
		if !more || (!ours(first) && first != "go" && !strings.HasPrefix(first, ".ci/")) {
			continue
		}
		commands, err := splitShell(s.text)
		if err != nil {
			complain(s.line, "%v", err)
		}
		for _, words := range commands {
			c.seen++
			if err := c.command(words.words, true); err != nil {
				complain(s.line, "%s: %v", s.text, err)
			}
		}
	}
	return problems
}

func count(all ...bool) (n int) {
	for _, is := range all {
		if is {
			n++
		}
	}
	return n
}

func ours(name string) bool { return slices.Contains(commands, name) }

// outsiders are commands of others that documents use.
func outsiders() []string {
	return []string{"apt", "aws", "cat", "cd", "chmod", "chown", "cmp", "cp", "curl", "diff", "dpkg", "grep", "head", "install", "journalctl", "less", "ls", "lsusb", "man", "mkdir", "mv", "openssl",
		"promtool", "rm", "rsync", "sam", "sed", "sha256sum", "sleep", "stat", "sudo", "systemctl", "systemd-analyze", "systemd-sysusers", "tar", "test", "timedatectl", "udevadm", "unzip", "wc", "printf"}
}

func isCommand(word string) bool {
	return ours(word) || word == "go" || strings.HasPrefix(word, ".ci/") || slices.Contains(outsiders(), word)
}

// command checks one simple command. In prose it may be told in part, without
// what it needs besides.
func (c *checker) command(words []string, prose bool) error {
	for len(words) > 0 && regexp.MustCompile(`^[A-Z_]+=`).MatchString(words[0]) {
		words = words[1:]
	}
	if len(words) == 0 {
		return nil
	}
	switch name := words[0]; {
	case ours(name):
		return c.ourCommand(words, prose)
	case name == "go":
		return c.goCommand(words[1:], prose)
	case strings.HasPrefix(name, ".ci/"):
		return c.ciCommand(words, prose)
	case name == "sudo":
		rest := words[1:]
		for len(rest) > 1 && strings.HasPrefix(rest[0], "-") {
			rest = rest[2:]
		}
		return c.command(rest, prose)
	case name == "systemctl" || name == "journalctl":
		return unitsExist(words[1:])
	case name == "sam":
		return samCommand(words)
	case name == "aws" && c.aws != nil:
		return c.aws(words[1:])
	case slices.Contains(outsiders(), name):
		return nil
	}
	return errors.New("this command is known to no test")
}

var placeholder = regexp.MustCompile(`^(SEQ|N)$`)

func (c *checker) ourCommand(words []string, prose bool) error {
	args := []string{words[0]}
	for _, word := range words[1:] {
		name, value, isFlag := strings.Cut(word, "=")
		switch {
		case placeholder.MatchString(word):
			word = "1"
		case isFlag && strings.HasPrefix(name, "--") && placeholder.MatchString(value):
			word = name + "=1"
		}
		args = append(args, word)
	}
	_, err := c.parse(args...)
	if prose && err != nil && regexp.MustCompile(`: (expected |missing |--?[a-z-]+: .*EOL)`).MatchString(err.Error()) {
		return nil
	}
	return err
}

func (c *checker) goCommand(words []string, prose bool) error {
	if len(words) == 0 {
		return errors.New("go alone does nothing")
	}
	switch words[0] {
	case "build", "run", "test", "vet", "install":
	case "mod", "version":
		return nil
	default:
		return fmt.Errorf("go %s is known to no test", words[0])
	}
	var folders, wanted, args []string
	for i := 1; i < len(words); i++ {
		switch word := words[i]; {
		case word == "-args":
			args, i = words[i+1:], len(words)
		case strings.HasPrefix(word, "./"):
			folders = append(folders, strings.TrimSuffix(strings.TrimPrefix(word, "./"), "/..."))
			if words[0] == "run" {
				args, i = words[i+1:], len(words)
			}
		case (word == "-run" || word == "-bench" || word == "-fuzz") && i+1 < len(words):
			i++
			wanted = append(wanted, strings.Split(strings.Trim(words[i], "^$."), "|")...)
		case !strings.HasPrefix(word, "-") && i > 1 && strings.HasPrefix(words[i-1], "-"): // a value
		case !strings.HasPrefix(word, "-"):
			return fmt.Errorf("%s is no folder of this module", word)
		}
	}
	if len(folders) == 0 && !prose {
		return errors.New("it names no package")
	}
	for _, folder := range folders {
		if sources, err := filepath.Glob(filepath.Join("..", folder, "*.go")); err != nil || (len(sources) == 0 && folder != "..." && folder != "") {
			if _, err := os.Stat(filepath.Join("..", folder)); err != nil {
				return fmt.Errorf("there is no package in %s", folder)
			}
		}
	}
	for _, name := range wanted {
		if name != "" && !slices.ContainsFunc(folders, func(folder string) bool { return testExists(folder, name) }) {
			return fmt.Errorf("no test of these packages is called %s", name)
		}
	}
	if words[0] == "run" {
		if name := strings.TrimPrefix(folders[0], "cmd/"); ours(name) {
			return c.ourCommand(append([]string{name}, args...), prose)
		}
	}
	for _, arg := range args {
		if name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "="); strings.HasPrefix(arg, "-") && !slices.ContainsFunc(folders, func(folder string) bool { return hasFlag(folder, name) }) {
			return fmt.Errorf("these packages know no flag %s", arg)
		}
	}
	return nil
}

// sources are the Go files of a folder.
func sources(folder string) (text string) {
	files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(folder), "*.go"))
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			b.Write(data)
		}
	}
	return b.String()
}

// testExists says whether a folder has a test, a benchmark or a fuzzer whose
// name has this in it.
func testExists(folder, name string) bool {
	return regexp.MustCompile(`\nfunc (Test|Benchmark|Fuzz)?[A-Za-z0-9]*` + regexp.QuoteMeta(name) + `[A-Za-z0-9]*\([a-z]+ \*testing\.`).MatchString(sources(folder))
}

func hasFlag(folder, name string) bool {
	return regexp.MustCompile(`flag\.[A-Z][a-z0-9]+\("` + regexp.QuoteMeta(name) + `"`).MatchString(sources(folder))
}

// ciCommand checks .ci/run STEP…, and .ci/X run COMMAND.
func (c *checker) ciCommand(words []string, prose bool) error {
	path := filepath.Join("..", words[0])
	info, err := os.Stat(path)
	if err != nil || info.Mode()&0o111 == 0 {
		return errors.New("there is no such program")
	}
	if words[0] != ".ci/run" {
		if len(words) > 2 && words[1] == "run" {
			return c.command(words[2:], prose)
		}
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, step := range words[1:] {
		if !strings.Contains(string(text), "\nstep_"+step+"() {") {
			return fmt.Errorf("it has no step %s", step)
		}
	}
	return nil
}

var unitVerbs = []string{"enable", "disable", "start", "stop", "restart", "reload", "status", "is-active", "edit", "cat", "daemon-reload", "list-timers", "mask"}

// unitsExist looks for the units of ours that systemctl or journalctl are to
// act on.
func unitsExist(words []string) error {
	for i, word := range words {
		if strings.HasPrefix(word, "-") || slices.Contains(unitVerbs, word) || (i > 0 && slices.Contains([]string{"-n", "-o", "-p", "--since"}, words[i-1])) {
			continue
		}
		name := word
		if filepath.Ext(name) == "" {
			name += ".service"
		}
		if _, err := os.Stat(filepath.Join("../systemd", name)); err != nil {
			return fmt.Errorf("there is no unit %s in systemd", name)
		}
	}
	return nil
}

// A document that tells of what there is not is found out, and so is a command
// where none belongs.
func TestDocumentsSpoiled(t *testing.T) {
	c := newChecker(t)
	for text, want := range map[string]string{
		"```sh\nstationctl status --nope\n```":                                "unknown flag --nope",
		"```sh\ntrue=1 && stationctl stauts\n```":                             "unexpected argument",
		"```sh needs=root\nsudo -u stationd stationctl spool purne\n```":      "unexpected argument purne",
		"```sh needs=luck\nstationctl status\n```":                            "none of the reasons",
		"```sh test=cmd.TestThatThereIsNot\nstationctl status\n```":           "no test cmd.TestThatThereIsNot",
		"```sh somehow\nstationctl status\n```":                               "not understood",
		"```\nstationctl status\n```":                                         "not marked sh",
		"Text\n\n    stationctl status":                                       "not marked sh",
		"Text with `stationctl spool purne` in it.":                           "unexpected argument purne",
		"Text with `spool.TestThatThereIsNot` in it.":                         "no test spool.TestThatThereIsNot",
		"```sh needs=time\ngo test ./spool -run TestThatThereIsNot\n```":      "no test of these packages",
		"```sh needs=time\ngo test ./spool -run TestKill -args -kils 3\n```":  "no flag -kils",
		"```sh needs=time\ngo test ./sloop\n```":                              "no package in sloop",
		"```sh needs=time\n.ci/run rice\n```":                                 "no step rice",
		"```sh needs=time\n.ci/ran\n```":                                      "no such program",
		"```sh needs=time\n.ci/peers.sh run go test ./sloop\n```":             "no package in sloop",
		"```sh needs=root\nsystemctl restart stationed\n```":                  "no unit stationed.service",
		"```sh\nfrobnicate\n```":                                              "known to no test",
		"```sh\nstationctl status 'a\n```":                                    "quote",
		"```sh\nstationctl spool list | stationctl spool lits >file # x\n```": "unexpected argument",
		"```sh needs=aws\nsam deploy --template-file cloud/deploy/template.yaml --parameter-overrides Sku=x Skew=y\n```": "no parameter Skew",
		"```sh needs=time\ngo run ./cloud/deploy/build -stations s -cb ca\n```":                                          "no flag -cb",
	} {
		problems := c.document(parseDocument("x.md", text))
		if len(problems) == 0 || !strings.Contains(strings.Join(problems, "\n"), want) {
			t.Errorf("%q: %q, want %q", text, problems, want)
		}
	}
	for _, text := range []string{
		"```sh\n# only words\nstationctl status --address 127.0.0.1:1 && stationctl spool show --state-dir=x SEQ | cat >y\n```", "```toml\nstation = \"x\"\n```", "`stationctl spool repair`",
		"```sh needs=time\nFUZZ=10x .ci/run fuzz race\n```", "`stationctl spool repair --from DIR`", "```sh needs=root\nsystemctl enable --now stationd\njournalctl -u stationd -n 20\n```",
		"```sh\ncat >x <<END\nstationctl nonsense\nEND\n```",
	} {
		if problems := c.document(parseDocument("x.md", text)); len(problems) > 0 {
			t.Errorf("%q: %q", text, problems)
		}
	}
}

var (
	link    = regexp.MustCompile(`(?:\]\(|src=")([^)"\s]+)[)"]`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// anchor is what GitHub makes of a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

// broken are the links of a document that lead nowhere. Those to other machines
// are not followed.
func broken(dir, text string) (out []string) {
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		target, part, hasPart := strings.Cut(m[1], "#")
		if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			continue
		}
		there := text
		if target != "" {
			path := filepath.Join(dir, target)
			info, err := os.Stat(path)
			if err != nil {
				out = append(out, m[1])
				continue
			}
			if hasPart && !info.IsDir() {
				data, err := os.ReadFile(path)
				if err != nil {
					out = append(out, m[1])
				}
				there = string(data)
			}
		}
		if hasPart && !slices.ContainsFunc(heading.FindAllStringSubmatch(there, -1), func(h []string) bool { return anchor(h[1]) == part }) {
			out = append(out, m[1])
		}
	}
	return out
}

// Every link of a document to another leads somewhere, down to the heading, and
// every document can be reached from README.md.
func TestDocumentsLinks(t *testing.T) {
	reached := map[string]bool{}
	var follow func(name string)
	follow = func(name string) {
		if reached[name] {
			return
		}
		reached[name] = true
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range broken(filepath.Join("..", filepath.Dir(name)), string(text)) {
			t.Errorf("%s: the link to %s leads nowhere", name, to)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if target, _, _ := strings.Cut(m[1], "#"); filepath.Ext(target) == ".md" && !strings.Contains(target, "://") {
				follow(filepath.ToSlash(filepath.Join(filepath.Dir(name), target)))
			}
		}
	}
	follow("README.md")
	for _, d := range documents(t) {
		if !reached[d.name] {
			t.Errorf("no way leads from README.md to %s", d.name)
		}
	}
	for text, want := range map[string]int{"[x](docs_test.go)": 0, "[x](nothing.go)": 1, "# A `b` c\n[x](#a-b-c)": 0, "# A\n[x](#b)": 1, "[x](https://example.com/)": 0, "[x](README.md#tests)": 0, "[x](README.md#tets)": 1,
		`<img src="nothing.png">`: 1, `<img src="docs_test.go">`: 0} {
		if out := broken(".", text); len(out) != want {
			t.Errorf("%q: %q", text, out)
		}
	}
}
