package uart

import (
	"regexp"
	"strings"
)

// guarded is a pattern that ignores case and matches only text that holds at
// least one of some words. It searches the words first. A port that prints a
// log is searched again whenever bytes arrive, and a pattern that ignores case
// is slow.
type guarded struct {
	*regexp.Regexp
	words []string
}

// guard returns the pattern. Words are in lower case. A word with k or s needs
// the variants with K (U+212A) and ſ (U+017F), to which these letters fold in a
// pattern.
func guard(pattern string, words ...string) guarded {
	return guarded{regexp.MustCompile(pattern), words}
}

// MatchString implements regexp.Regexp.
func (g guarded) MatchString(text string) bool {
	return holds(text, g.words) && g.Regexp.MatchString(text)
}

// FindStringIndex implements regexp.Regexp.
func (g guarded) FindStringIndex(text string) []int {
	if !holds(text, g.words) {
		return nil
	}
	return g.Regexp.FindStringIndex(text)
}

// places returns the positions where the pattern matches.
func (g guarded) places(text string) (at []int) {
	if !holds(text, g.words) {
		return nil
	}
	for _, m := range g.FindAllStringIndex(text, -1) {
		at = append(at, m[0])
	}
	return at
}

// holds reports whether text holds one of the words, in any case.
func holds(text string, words []string) bool {
	for _, word := range words {
		first := word[0]
		if holdsFrom(text, word, first) {
			return true
		}
		if 'a' <= first && first <= 'z' && holdsFrom(text, word, first-'a'+'A') {
			return true
		}
	}
	return false
}

// holdsFrom reports whether text holds word, in any case but with this first
// byte.
func holdsFrom(text, word string, first byte) bool {
	for {
		i := strings.IndexByte(text, first)
		if i < 0 || len(text)-i < len(word) {
			return false
		}
		if strings.EqualFold(text[i:i+len(word)], word) {
			return true
		}
		text = text[i+1:]
	}
}
