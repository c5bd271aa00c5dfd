package station

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Settings are what of a Config can be changed while the station runs; see
// there.
type Settings struct {
	Policy Policy
	Page   Page
	Hosts  []string
}

// settings are Settings as they are used; they do not change.
type settings struct {
	policy Policy
	page   Page
	words  *catalogue // of the page's language
	hosts  map[string]bool
}

func newSettings(c Settings, languages map[string]*catalogue) (*settings, error) {
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

// Adopt takes new settings, all or none. A board whose key is judged at that
// moment is judged by the old ones or by the new ones, never by a mixture. Open
// pages show them at once.
func (s *Station) Adopt(c Settings) error {
	next, err := newSettings(c, s.languages)
	if err != nil {
		return fmt.Errorf("changing the settings of the station: %w", err)
	}
	s.settings.Store(next)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// Settings are those that hold.
func (s *Station) Settings() *Settings {
	now := s.settings.Load()
	hosts := make([]string, 0, len(now.hosts))
	for host := range now.hosts {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	return &Settings{Policy: now.policy, Page: now.page, Hosts: hosts}
}
