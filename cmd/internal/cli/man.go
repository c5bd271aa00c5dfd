package cli

import (
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Manual is what a manual page says that --help does not.
type Manual struct {
	// Section is 1 for what people call, 8 for a daemon.
	Section int
	// See names other pages, such as "stationctl(1)".
	See []string
}

// manFlag prints the manual page of the whole command, by the grammar that
// --help shows, and exits: packages are made with it.
type manFlag bool

// BeforeReset is called by kong before it looks whether anything is missing, so
// that the flag stands alone.
func (manFlag) BeforeReset(app *kong.Kong, manual Manual) error {
	if err := writeManual(app.Stdout, app.Model, manual, moduleVersion(), commitDate()); err != nil {
		return fmt.Errorf("writing the manual page: %w", err)
	}
	app.Exit(ExitDone)
	return nil
}

// commitDate is the day of the commit that this program was built from, so that
// one commit gives one page; empty if it is not known.
func commitDate() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if day, _, ok := strings.Cut(s.Value, "T"); ok && s.Key == "vcs.time" {
			return day
		}
	}
	return ""
}

// page writes roff with the macros of man(7).
type page struct {
	b    strings.Builder
	last string // the macro that was written last, if no text came after it
}

func writeManual(w io.Writer, app *kong.Application, manual Manual, version, date string) error {
	p := new(page)
	p.macro("TH", strings.ToUpper(app.Name), fmt.Sprint(manual.Section), date, "secretfree "+version, "secretfree")
	p.macro("SH", "NAME")
	p.text(app.Name + " - " + strings.ToLower(app.Help[:1]) + strings.TrimSuffix(app.Help[1:], "."))
	commands := leaves(app.Node)
	p.macro("SH", "SYNOPSIS")
	for i, command := range commands {
		if i > 0 {
			p.macro("br")
		}
		p.text(synopsis(command))
	}
	rest, examples := cutExamples(app.Detail)
	p.macro("SH", "DESCRIPTION")
	p.text(app.Help)
	p.detail(rest)
	p.macro("SH", "OPTIONS")
	p.flags(app.Node)
	if len(app.Children) > 0 {
		p.macro("SH", "COMMANDS")
		for _, command := range commands {
			if command != app.Node {
				p.command(app.Node, command)
			}
		}
	}
	if files := filesOf(app.Node, nil); len(files) > 0 {
		p.macro("SH", "FILES")
		for _, file := range files {
			p.macro("TP")
			p.macro("I", file.Default)
			p.text(file.Help)
		}
	}
	p.macro("SH", "EXIT STATUS")
	for _, code := range []struct {
		is    int
		means string
	}{{ExitDone, "Done."}, {ExitFailed, "Failed, or refused; the output says why."}, {ExitMisuse, "Called wrongly."}} {
		p.macro("TP")
		p.macro("B", fmt.Sprint(code.is))
		p.text(code.means)
	}
	if examples != "" {
		p.macro("SH", "EXAMPLES")
		p.verbatim(examples)
	}
	if len(manual.See) > 0 {
		p.macro("SH", "SEE ALSO")
		p.text(strings.Join(manual.See, ", "))
	}
	_, err := io.WriteString(w, p.b.String())
	return err
}

// leaves are the nodes that can be called: the top if it has no commands or one
// by default, and each command without commands.
func leaves(app *kong.Node) []*kong.Node {
	if len(app.Children) == 0 {
		return []*kong.Node{app}
	}
	found := app.Leaves(true)
	if app.DefaultCmd == nil {
		return found
	}
	return slices.Insert(slices.DeleteFunc(found, func(n *kong.Node) bool { return n == app.DefaultCmd && n.Hidden }), 0, app)
}

// path is how a command is called, without the program's name and its
// arguments.
func path(n *kong.Node) string {
	if n.Parent == nil || n.Type == kong.ApplicationNode {
		return ""
	}
	return strings.TrimSpace(path(n.Parent) + " " + n.Name)
}

func synopsis(n *kong.Node) string {
	words := []string{topOf(n).Name}
	if p := path(n); p != "" {
		words = append(words, p)
	}
	for _, flag := range n.Flags {
		if flag.Required && !flag.Hidden {
			words = append(words, flag.Summary())
		}
	}
	words = append(words, "[flags]")
	for _, argument := range n.Positional {
		words = append(words, argument.Summary())
	}
	return strings.Join(words, " ")
}

func topOf(n *kong.Node) *kong.Node {
	for n.Parent != nil {
		n = n.Parent
	}
	return n
}

func (p *page) command(app, n *kong.Node) {
	p.macro("SS", strings.TrimPrefix(synopsis(n), app.Name+" "))
	p.text(n.Help)
	p.detail(n.Detail)
	for _, argument := range n.Positional {
		p.macro("TP")
		p.macro("I", argument.Summary())
		p.text(argument.Help)
	}
	for at := n; at != nil && at != app; at = at.Parent {
		p.flags(at)
	}
}

func (p *page) flags(n *kong.Node) {
	for _, flag := range n.Flags {
		if flag.Hidden {
			continue
		}
		name := "--" + flag.Name
		if flag.Short != 0 {
			name = fmt.Sprintf("-%c, %s", flag.Short, name)
		}
		if !flag.IsBool() && !flag.IsCounter() {
			name += "=" + flag.FormatPlaceHolder()
		}
		p.macro("TP")
		p.macro("B", name)
		p.text(flag.Help)
	}
}

// filesOf are the flags whose default is a file of the system, each file once.
func filesOf(n *kong.Node, found []*kong.Flag) []*kong.Flag {
	for _, flag := range n.Flags {
		if strings.HasPrefix(flag.Default, "/") && !flag.Hidden &&
			!slices.ContainsFunc(found, func(f *kong.Flag) bool { return f.Default == flag.Default }) {
			found = append(found, flag)
		}
	}
	for _, child := range n.Children {
		found = filesOf(child, found)
	}
	return found
}

// cutExamples takes the paragraph of examples out of a text for --help.
func cutExamples(detail string) (rest, examples string) {
	var kept []string
	for paragraph := range strings.SplitSeq(detail, "\n\n") {
		if after, ok := strings.CutPrefix(paragraph, "Examples:\n"); ok {
			examples = after
			continue
		}
		kept = append(kept, paragraph)
	}
	return strings.Join(kept, "\n\n"), examples
}

// detail is the longer text of --help: paragraphs, and tables and examples that
// stand as they are.
func (p *page) detail(text string) {
	for paragraph := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if paragraph == "" {
			continue
		}
		p.paragraph()
		head, indented, _ := strings.Cut(paragraph, "\n  ")
		p.text(strings.ReplaceAll(head, "\n", " "))
		if indented != "" {
			p.verbatim("  " + indented)
		}
	}
}

func (p *page) verbatim(text string) {
	p.paragraph()
	p.macro("nf")
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		p.text(line)
	}
	p.macro("fi")
}

// paragraph begins one, unless a heading just did.
func (p *page) paragraph() {
	if p.last != "SH" && p.last != "SS" {
		p.macro("PP")
	}
}

func (p *page) macro(name string, arguments ...string) {
	p.last = name
	p.b.WriteString("." + name)
	for _, argument := range arguments {
		p.b.WriteString(` "` + strings.ReplaceAll(escape(argument), `"`, `\(dq`) + `"`)
	}
	p.b.WriteByte('\n')
}

func (p *page) text(line string) {
	p.last = ""
	line = escape(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	p.b.WriteString(line + "\n")
}

// escape keeps what people copy as it is, a bare hyphen, quote, caret, tilde or
// back quote may be printed as another character, and keeps the page in ASCII.
func escape(text string) string {
	var b strings.Builder
	for _, r := range strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text) {
		if r < 0x80 {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	return b.String()
}
