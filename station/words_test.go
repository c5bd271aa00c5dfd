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

// spoken are the words that the code and the page use, with the number of arguments for their sentences.
func spoken(t *testing.T) map[word]int {
	t.Helper()
	used := map[word]int{}
	use := func(e ast.Expr, args int) {
		literal, ok := e.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return // a variable; its values are found where they are written
		}
		text, err := strconv.Unquote(literal.Value)
		if err != nil {
			t.Fatal(err)
		}
		used[word(text)] = args
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				switch f, _ := n.Fun.(*ast.Ident); {
				case f == nil:
				case f.Name == "say":
					use(n.Args[0], len(n.Args)-1)
				case f.Name == "count":
					use(n.Args[1], 0)
					use(n.Args[2], 1)
				}
			case *ast.CompositeLit:
				if list, ok := n.Type.(*ast.ArrayType); ok && named(list.Elt, "word") {
					for _, e := range n.Elts {
						use(e, 0)
					}
				}
			case *ast.ValueSpec:
				if named(n.Type, "word") {
					for _, e := range n.Values {
						use(e, 0)
					}
				}
			}
			return true
		})
	}
	for _, m := range regexp.MustCompile(`\{\{-? *say "([^"]*)"`).FindAllStringSubmatch(pageHTML, -1) {
		used[word(m[1])] = 0
	}
	for _, reason := range Reasons() {
		used[word(reason)] = 0
	}
	return used
}

func named(e ast.Expr, name string) bool {
	ident, ok := e.(*ast.Ident)
	return ok && ident.Name == name
}

// Every word that is used has a sentence with a place for each of its arguments, and no sentence lies unused.
func TestWords(t *testing.T) {
	used := spoken(t)
	used[adviceHeld], used[adviceGroup] = 1, 1 // said with the detail of a slot
	for key, args := range used {
		sentence, ok := sentences[key]
		if !ok || strings.TrimSpace(sentence) != sentence || sentence == "" {
			t.Errorf("the word %q has the sentence %q", key, sentence)
		}
		if n := strings.Count(sentence, "%"); n != args {
			t.Errorf("the sentence of %q has %d places for %d arguments: %q", key, n, args, sentence)
		}
	}
	for key := range sentences {
		if _, ok := used[key]; !ok {
			t.Errorf("nothing says %q", key)
		}
	}
	for _, state := range []State{Absent, Empty, Reading, Passed, Failed} {
		if sentences["state-"+word(state)] == "" || !strings.Contains(pageHTML, `id="icon-`+string(state)+`"`) || !strings.Contains(pageHTML, "\n."+string(state)+" {") {
			t.Errorf("the state %s has no word, no icon or no style", state)
		}
	}
}

// The words are a contract with the outside.
func TestReasons(t *testing.T) {
	const want = "device-conflict key-conflict no-proof policy not-in-lot lot-unreadable unplugged needs-reset timeout garbled private-key-leak disk-full disk-error"
	var got []string
	for _, reason := range Reasons() {
		got = append(got, string(reason))
	}
	if strings.Join(got, " ") != want {
		t.Errorf("the reasons are %v, want %s", got, want)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range got {
		if !strings.Contains(string(readme), "`"+reason+"`") {
			t.Errorf("README does not say what %s means", reason)
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
		if got := span(c.d); got != c.want {
			t.Errorf("%v is %q, want %q", c.d, got, c.want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "Cloud: 0 boards waiting", 1: "Cloud: 1 board waiting", 2: "Cloud: 2 boards waiting"} {
		if got := count(n, "cloud-one", "cloud-many"); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
