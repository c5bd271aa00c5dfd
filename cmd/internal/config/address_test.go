package config

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// The checks are what these expressions say, on texts of all lengths around
// their bounds.
func TestNames(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, test := range map[string]struct {
		expression string
		check      func(string) bool
	}{
		"label":  {`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`, isLabel},
		"region": {`^[a-z0-9]+(-[a-z0-9]+)*$`, isRegion},
		"table":  {`^[A-Za-z0-9_.-]{3,255}$`, isTable},
		"bucket": {`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`, isBucket},
	} {
		expression := regexp.MustCompile(test.expression)
		yes := 0
		for range 20_000 {
			text := randomText(random)
			want := expression.MatchString(text)
			if got := test.check(text); got != want {
				t.Fatalf("%s %q: %t, want %t", name, text, got, want)
			}
			if want {
				yes++
			}
		}
		if yes < 100 {
			t.Errorf("%s: only %d of the texts hold: this test looks at nothing", name, yes)
		}
	}
}

func randomText(random *rand.Rand) string {
	sets := []string{"a", "az09", "az09-", "az09-_.", "azAZ09-_.", "azAZ09-_. \n\x00é\xff/"}
	set := sets[random.IntN(len(sets))]
	lengths := []int{0, 1, 2, 3, 4, 8, 61, 62, 63, 64, 65, 254, 255, 256}
	var b strings.Builder
	for range lengths[random.IntN(len(lengths))] {
		b.WriteByte(set[random.IntN(len(set))])
	}
	return b.String()
}
