package cloud

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// The names are those that these expressions take.
func TestNamesOfObjects(t *testing.T) {
	segment := regexp.MustCompile(`^[0-9]{20}-[0-9]{20}\.jsonl$`)
	checkpoint := regexp.MustCompile(`^[0-9]{20}\.checkpoint$`)
	change := regexp.MustCompile(`^[A-Za-z0-9]{16,32}$`)
	seqs := []string{fmt.Sprintf("%020d", 7), fmt.Sprintf("%020d", 8), "18446744073709551615", "7", "", strings.Repeat("0", 21), "+" + fmt.Sprintf("%019d", 7), "x" + fmt.Sprintf("%019d", 7), fmt.Sprintf("%019d", 7) + "\n"}
	seen := 0
	for _, first := range seqs {
		for _, last := range seqs {
			for _, end := range []string{".jsonl", ".JSONL", "", ".jsonl\n"} {
				name := first + "-" + last + end
				got, ok := parseSegmentName(name)
				if want := segment.MatchString(name) && first <= last; ok != want || ok && got.name() != name {
					t.Errorf("%q: %v, %t, want %t", name, got, ok, want)
				}
				if ok {
					seen++
				}
			}
		}
		for _, end := range []string{".checkpoint", ".jsonl", "", ".checkpoint\n"} {
			if got, want := isCheckpointName(first+end), checkpoint.MatchString(first+end); got != want {
				t.Errorf("%q: %t, want %t", first+end, got, want)
			}
		}
	}
	if seen == 0 {
		t.Error("no name is one of a segment")
	}
	for _, id := range []string{NewChangeID(), strings.Repeat("a", 15), strings.Repeat("Z", 16), strings.Repeat("0", 32), strings.Repeat("9", 33), "", strings.Repeat("a", 16) + "-", strings.Repeat("é", 10)} {
		if got, want := isChangeID(id), change.MatchString(id); got != want {
			t.Errorf("%q: %t, want %t", id, got, want)
		}
	}
}
