package main

import (
	"strings"
	"testing"

	"secretfree/cmd/internal/config"
	"secretfree/cmd/internal/stationconf"
)

// Whoever chose other folders than the unit's learns what the unit lacks,
// before it is started.
func TestUnitMayNotWrite(t *testing.T) {
	for name, c := range map[string]struct {
		state, kind, dir string
		want             []string
	}{
		"as the unit has it":         {defaultState, "dir", stationconf.DefaultFolder, nil},
		"within":                     {defaultState + "/a", "dir", stationconf.DefaultFolder + "/a", nil},
		"no folder":                  {defaultState, "aws", "", nil},
		"another state":              {"/data/state", "none", "", []string{"install -d -m 700 -o stationd /data/state\n", "may not write to /data/state yet", "ReadWritePaths=/data/state\n"}},
		"another that begins so":     {defaultState + "2", "none", "", []string{"ReadWritePaths=" + defaultState + "2\n"}},
		"another registry":           {defaultState, "dir", "/mnt/registry", []string{"may not write to /mnt/registry yet", "ReadWritePaths=/mnt/registry\n"}},
		"another state and registry": {"/data/state", "dir", "/mnt/registry", []string{"install -d -m 700 -o stationd /data/state\n", "ReadWritePaths=/data/state /mnt/registry\n"}},
	} {
		got := unwritable(stationconf.Config{StateDir: c.state, Registry: config.Registry{Kind: c.kind, Dir: c.dir}})
		if (got == "") != (len(c.want) == 0) {
			t.Errorf("%s: %q", name, got)
		}
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q lacks %q", name, got, want)
			}
		}
	}
}
