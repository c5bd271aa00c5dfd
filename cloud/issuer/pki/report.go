package pki

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Line is one step in the report of a ceremony, for an auditor.
type Line struct {
	Entry
	KeyFingerprint string            `json:"key_fingerprint,omitempty"` // SHA-256 of the SPKI of the key that was made
	States         map[string]string `json:"states,omitempty"`          // by the name of a file: "as made", "changed", "away"
}

// Report tells what was made in a folder, by whom and when, from its journal
// and its files alone: for the same folder it is the same.
func Report(dir string) ([]Line, error) {
	entries, err := ReadJournal(dir)
	if err != nil {
		return nil, err
	}
	lines := make([]Line, 0, len(entries))
	for _, e := range entries {
		l := Line{Entry: e}
		if e.Key != "" {
			der, err := base64.StdEncoding.DecodeString(e.Key)
			if err != nil {
				return nil, fmt.Errorf("the key of step %s: %w", e.Step, err)
			}
			l.KeyFingerprint = digest(der)
		}
		for _, f := range e.Files {
			state, err := f.state(dir)
			if err != nil {
				return nil, err
			}
			if l.States == nil {
				l.States = map[string]string{}
			}
			l.States[f.Name] = state
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// WriteText writes a line for people.
func (l Line) WriteText(w io.Writer) error {
	var text []byte
	say := func(name, format string, args ...any) {
		text = fmt.Appendf(text, "    %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	text = fmt.Appendf(text, "%d. %s\n", l.Seq, l.Step)
	say("when", "%s", l.Time.Format(time.RFC3339))
	say("who", "%s", l.Operator)
	if l.Found {
		say("note", "it was there from a run that was cut off, and was checked")
	}
	if l.KeyFingerprint != "" {
		say("public key", "SHA-256 %s", l.KeyFingerprint)
	}
	if c := l.Certificate; c != nil {
		say("subject", "%s", c.Subject)
		say("issuer", "%s", c.Issuer)
		say("serial", "%s", c.Serial)
		say("fingerprint", "%s", c.Fingerprint)
		say("key", "%s", c.Key)
		say("valid", "%s to %s", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
		if c.CA {
			say("path length", "%d", c.PathLength)
		}
	}
	if c := l.CRL; c != nil {
		say("list", "number %d, from %s, next by %s", c.Number, c.ThisUpdate.Format(time.RFC3339), c.NextUpdate.Format(time.RFC3339))
		for _, serial := range c.Serials {
			say("revoked", "%s", serial)
		}
	}
	if r := l.Revoked; r != nil {
		say("revoked", "serial %s of step %s, by the %s, for the reason %s", r.Serial, r.Of, r.By, r.Reason)
	}
	for _, f := range l.Files {
		say("file", "%s  %s (%s)", f.SHA256, f.Name, l.States[f.Name])
	}
	for _, name := range slices.Sorted(maps.Keys(l.AWS)) {
		say("AWS", "%s = %s", name, l.AWS[name])
	}
	_, err := w.Write(text)
	return err
}
