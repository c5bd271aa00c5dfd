package station

import (
	"cmp"
	"fmt"
	"strings"
)

// settings are those of a Config as they are used. They do not change.
type settings struct {
	policy Policy
	page   Page
	words  *catalogue // of the page's language
	hosts  map[string]bool
}

func newSettings(c *Config, languages map[string]*catalogue) (*settings, error) {
	words, ok := languages[cmp.Or(c.Page.Language, English)]
	if !ok {
		return nil, fmt.Errorf("there is no language %q, only %s", c.Page.Language, strings.Join(Languages(), ", "))
	}
	for _, contact := range []string{c.Page.ContactIT, c.Page.ContactQuality} {
		if err := CheckContact(contact); err != nil {
			return nil, fmt.Errorf("the contact %w", err)
		}
	}
	s := &settings{policy: c.Policy, page: c.Page, words: words, hosts: map[string]bool{}}
	for _, host := range c.Hosts {
		s.hosts[strings.ToLower(host)] = true
	}
	return s, nil
}
