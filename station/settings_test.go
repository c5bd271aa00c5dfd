package station

import (
	"strings"
	"testing"
)

// New settings are taken whole, or not at all, and open pages are told.
func TestAdopt(t *testing.T) {
	b := newBench(t, 1, nil)
	_, changed := b.snapshot(b.settings.Load().words)
	for want, c := range map[string]Settings{
		`no language "tlh"`:    {Hosts: []string{"new.example"}, Page: Page{Language: "tlh"}},
		"printable characters": {Hosts: []string{"new.example"}, Page: Page{ContactIT: "a\nb"}},
	} {
		if err := b.Adopt(c); err == nil || !strings.Contains(err.Error(), want) || b.ownHost("new.example") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	select {
	case <-changed:
		t.Error("what was refused was told")
	default:
	}
	if err := b.Adopt(Settings{Hosts: []string{"New.example"}, Page: Page{Language: "de"}, Policy: Policy{AllowUnproven: true}}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("open pages were not told")
	}
	now := b.Settings()
	if !b.ownHost("new.example") || !now.Policy.AllowUnproven || now.Page.Language != "de" || len(now.Hosts) != 1 || now.Hosts[0] != "new.example" {
		t.Errorf("%+v", now)
	}
}
