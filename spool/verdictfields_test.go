package spool_test

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"secretfree/spool/journal"
)

// The fields of a verdict are those of FORMAT.md, in that order.
func TestVerdictFields(t *testing.T) {
	text, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n| field | content |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var documented []string
	for line := range strings.Lines(table) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, name := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cell, -1) {
			documented = append(documented, name[1])
		}
	}
	var written []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[journal.Verdict]()) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		written = append(written, name)
	}
	if !slices.Equal(written, documented) {
		t.Errorf("a verdict has the fields %q, and FORMAT.md describes %q", written, documented)
	}
}
