package station

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// english is what most tests look at.
var english = func() *catalogue {
	all, err := embedded()
	if err != nil {
		panic(err) // TestCatalogues tells more
	}
	return all[English]
}()

var sentences = english.sentences

// spoken is what the code and the pages say: the keys, with the number of
// arguments where it is plain to see, else -1; and all texts that stand in the
// code, of which some are keys.
func spoken(t *testing.T) (used map[messageKey]int, texts map[messageKey]bool) {
	t.Helper()
	used, texts = map[messageKey]int{}, map[messageKey]bool{}
	text := func(e ast.Node) (messageKey, bool) {
		literal, ok := e.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return "", false // a variable; its values are found where they are written
		}
		text, err := strconv.Unquote(literal.Value)
		if err != nil {
			t.Fatal(err)
		}
		return messageKey(text), true
	}
	use := func(e ast.Expr, args int) {
		if key, ok := text(e); ok {
			used[key] = args
		}
	}
	daemon, err := filepath.Glob("../cmd/internal/stationd/*.go") // its problems
	if err != nil || len(daemon) == 0 {
		t.Fatal(daemon, err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, daemon...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if key, ok := text(n); ok {
				texts[key] = true
			}
			switch n := n.(type) {
			case *ast.CallExpr:
				f, ok := n.Fun.(*ast.SelectorExpr)
				switch {
				case !ok || n.Ellipsis.IsValid():
				case f.Sel.Name == "Say":
					use(n.Args[0], len(n.Args)-1)
				case f.Sel.Name == "Count" && len(n.Args) >= 3 && !strings.HasPrefix(name, ".."):
					use(n.Args[1], len(n.Args)-3)
					use(n.Args[2], len(n.Args)-2)
				}
			case *ast.CompositeLit:
				if list, ok := n.Type.(*ast.ArrayType); ok && named(list.Elt, "messageKey") {
					for _, e := range n.Elts {
						use(e, 0)
					}
				}
			case *ast.ValueSpec:
				if named(n.Type, "messageKey") {
					for _, e := range n.Values {
						use(e, 0)
					}
				}
			}
			return true
		})
	}
	pages, err := filepath.Glob("*.html")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	for _, name := range pages {
		page, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\.Say "([^"]*)"`).FindAllStringSubmatch(string(page), -1) {
			used[messageKey(m[1])] = -1
		}
		for _, m := range regexp.MustCompile(`\.Count \S+ "([^"]*)" "([^"]*)"`).FindAllStringSubmatch(string(page), -1) {
			used[messageKey(m[1])], used[messageKey(m[2])] = 0, 1
		}
	}
	for _, reason := range Reasons() {
		used[messageKey(reason)], used["reason-"+messageKey(reason)] = 0, 0
	}
	for _, state := range []State{Absent, Empty, Reading, Passed, Failed} {
		used["state-"+messageKey(state)] = 0
	}
	used[adviceHeld], used[adviceGroup] = 1, 1 // said with the detail of a slot
	return used, texts
}

func named(e ast.Expr, name string) bool {
	ident, ok := e.(*ast.Ident)
	return ok && ident.Name == name
}

// Every word that is used has a sentence with a place for each of its
// arguments, and no sentence lies unused.
func TestWords(t *testing.T) {
	used, texts := spoken(t)
	for key, args := range used {
		sentence, ok := sentences[key]
		if !ok {
			t.Errorf("the word %q has no sentence", key)
		}
		if n := len(verbPattern.FindAllString(strings.ReplaceAll(sentence, "%%", ""), -1)); args >= 0 && n != args {
			t.Errorf("the sentence of %q has %d places for %d arguments: %q", key, n, args, sentence)
		}
	}
	for key := range sentences {
		stem := messageKey(strings.TrimSuffix(strings.TrimSuffix(string(key), "-one"), "-many"))
		if _, ok := used[key]; !ok && !texts[key] && !texts[stem] {
			t.Errorf("nothing says %q", key)
		}
	}
	style, err := assetFiles.ReadFile("page.css")
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []State{Absent, Empty, Reading, Passed, Failed} {
		if !strings.Contains(pageHTML, `id="icon-`+string(state)+`"`) || !strings.Contains(string(style), "\n."+string(state)+" {") {
			t.Errorf("the state %s has no icon or no style", state)
		}
	}
}

// The words are a contract with the outside.
func TestReasons(t *testing.T) {
	const want = "device-conflict key-conflict no-proof policy not-in-lot lot-unreadable label-mismatch label-missing unplugged needs-reset timeout garbled no-dialect wrong-speed private-key-leak disk-full disk-error"
	var got []string
	for _, reason := range Reasons() {
		got = append(got, string(reason))
	}
	if strings.Join(got, " ") != want {
		t.Errorf("the reasons are %v, want %s", got, want)
	}
	readme, err := os.ReadFile("../systemd/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range got {
		if !strings.Contains(string(readme), "`"+reason+"`") {
			t.Errorf("IT's guide does not say what %s means", reason)
		}
	}
	// Every constant is listed.
	file, err := parser.ParseFile(token.NewFileSet(), "slot.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	constants := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && named(spec.Type, "Reason") {
			constants += len(spec.Names)
		}
		return true
	})
	if constants != len(got) {
		t.Errorf("%d constants, %d of them listed", constants, len(got))
	}
}

func TestSpan(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		d    time.Duration
		want string
	}{
		{0, "0 s"}, {time.Second - 1, "0 s"}, {time.Second, "1 s"}, {119*time.Second + 999*time.Millisecond, "119 s"},
		{2 * time.Minute, "2 min"}, {2*time.Hour - 1, "119 min"},
		{2 * time.Hour, "2 h"}, {48*time.Hour - 1, "47 h"},
		{48 * time.Hour, "2 days"}, {365*day + 23*time.Hour, "365 days"},
	} {
		if got := english.Span(c.d); got != c.want {
			t.Errorf("%v is %q, want %q", c.d, got, c.want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "Cloud: 0 boards waiting", 1: "Cloud: 1 board waiting", 2: "Cloud: 2 boards waiting"} {
		if got := english.Count(n, "cloud-one", "cloud-many"); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
