package stationd

import (
	"secretfree/cmd/internal/stationconf"
	"secretfree/station"
)

// policyOf is the station's.
func policyOf(c stationconf.Config) station.Policy {
	p := station.Policy{AllowUnproven: c.Policy.AllowUnproven, Algorithms: c.Policy.Algorithms, NeedsLabel: c.Policy.Label == stationconf.LabelRequired}
	if c.Policy.Lot != "" {
		list := &lot{path: c.Policy.Lot}
		p.Lot, p.Listed = list.check, list.listed
	}
	return p
}

// pageOf are the settings of the station's page.
func pageOf(c stationconf.Config) station.Page {
	return station.Page{Language: c.Page.Language, Sound: c.Page.Sound, ContactIT: c.Page.ContactIT, ContactQuality: c.Page.ContactQuality}
}
