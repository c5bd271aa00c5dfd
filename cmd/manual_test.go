package cmd_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every flag and every command that --help shows is in the manual page, which groff takes without a word, and every example is a
// good command line.
func TestManualPages(t *testing.T) {
	bin, groff, c, examples := builtCommands(t), "", newChecker(t), 0
	if path, err := exec.LookPath("groff"); err == nil {
		groff = path
	} else if os.Getenv("CI") == "true" {
		t.Fatalf("CI has no groff: %v", err)
	}
	for _, name := range commands {
		page, err := exec.CommandContext(t.Context(), filepath.Join(bin, name), "--man").Output()
		if err != nil {
			t.Fatalf("%s --man: %v", name, err)
		}
		section := "1"
		if strings.HasSuffix(name, "d") {
			section = "8"
		}
		if !strings.HasPrefix(string(page), fmt.Sprintf(".TH %q %q ", strings.ToUpper(name), section)) {
			t.Errorf("%s: the page begins with %.40q", name, page)
		}
		if groff != "" {
			c := exec.CommandContext(t.Context(), groff, "-man", "-Tutf8", "-ww")
			c.Stdin = strings.NewReader(string(page))
			if out, err := c.CombinedOutput(); err != nil || strings.Contains(string(out), "warning") {
				t.Errorf("%s: groff: %v\n%s", name, err, out)
			}
		}
		plain := strings.NewReplacer(`\-`, "-", `\e`, `\`, `\(dq`, `"`, `\(aq`, "'", `\[u2026]`, "…").Replace(string(page))
		helps, flags := []string{name}, 0
		for i := 0; i < len(helps); i++ { // grows as commands are found
			out, err := exec.CommandContext(t.Context(), filepath.Join(bin, name), append(strings.Fields(helps[i])[1:], "--help")...).Output()
			if err != nil {
				t.Fatalf("%s --help: %v", helps[i], err)
			}
			for _, m := range regexp.MustCompile(`(?m)^  [ -][a-z ,]  (?:  )?(--[a-z-]+)`).FindAllStringSubmatch(string(out), -1) {
				flags++
				if !strings.Contains(plain, m[1]+`"`) && !strings.Contains(plain, m[1]+"=") {
					t.Errorf("%s(%s) has no %s", name, section, m[1])
				}
			}
			for _, m := range regexp.MustCompile(`(?m)^    ([a-z]+ .*)$`).FindAllStringSubmatch(regexp.MustCompile(`\\\n +`).ReplaceAllString(string(out), ""), -1) {
				commands, err := splitShell(m[1])
				if word, _, _ := strings.Cut(m[1], " "); !isCommand(word) {
					continue
				}
				for _, words := range commands {
					examples++
					if err := errors.Join(err, c.command(words.words, false)); err != nil {
						t.Errorf("an example of %s --help: %s: %v", helps[i], m[1], err)
					}
				}
			}
			_, list, _ := strings.Cut(string(out), "\nCommands:\n")
			for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+(?: [a-z]+)*)(?: |$)`).FindAllStringSubmatch(list, -1) {
				if !strings.Contains(plain, m[1]) {
					t.Errorf("%s(%s) has no %s", name, section, m[1])
				}
				if full := name + " " + m[1]; !slices.Contains(helps, full) {
					helps = append(helps, full)
				}
			}
		}
		if flags < 4 || (strings.HasSuffix(name, "ctl") && len(helps) < 10) {
			t.Errorf("%s: %d flags of %q: this test does not see them", name, flags, helps)
		}
	}
	if examples < 20 {
		t.Errorf("%d examples: this test does not see them", examples)
	}
}
