package station

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// messageKey is a stable key of a sentence for people; every Reason is one.
type messageKey string

// English is the language that every catalogue is measured by, and the one of
// logs and of what is for IT.
const English = "en"

// Languages are those that the page speaks: folders of words.
func Languages() []string { return []string{English, "de", "es", "vi", "zh"} }

const (
	adviceAbsent     messageKey = "absent"
	adviceEmpty      messageKey = "empty"
	adviceClosed     messageKey = "fixture-closed"
	adviceReading    messageKey = "reading"
	adviceSearching  messageKey = "searching"
	adviceFirmware   messageKey = "garbled-firmware"
	adviceLogin      messageKey = "no-dialect-login"
	adviceLoader     messageKey = "no-dialect-boot-loader"
	adviceNoise      messageKey = "no-dialect-noise"
	adviceSilent     messageKey = "no-dialect-silent"
	advicePassed     messageKey = "passed"
	adviceRepeat     messageKey = "repeat"
	adviceRejected   messageKey = "rejected" // the registry refused the record for good
	adviceBusy       messageKey = "port-busy"
	adviceHeld       messageKey = "port-held"
	advicePermission messageKey = "port-permission"
	adviceGroup      messageKey = "port-group"
	adviceMode       messageKey = "port-mode"
	adviceNotAPort   messageKey = "port-invalid"
	adviceNoLines    messageKey = "port-lines"
	adviceAmbiguous  messageKey = "port-ambiguous"
	adviceStuck      messageKey = "port-stuck"
	advicePortError  messageKey = "port-error"
)

// catalogue holds the sentences of one language: those of all JSON files in its
// folder, an object of key and sentence each. It never changes, so many may
// read it.
type catalogue struct {
	language  string
	sentences map[messageKey]string
}

//go:embed words/*/*.json
var wordFiles embed.FS

// embedded reads what is built in once for all stations.
var embedded = sync.OnceValues(func() (map[string]*catalogue, error) {
	files, err := fs.Sub(wordFiles, "words")
	if err != nil {
		return nil, err
	}
	return readCatalogues(files)
})

// readCatalogues reads the folders of all languages. Each must have the keys of
// English, and a sentence of each with the same verbs in the same order, as the
// code passes the same arguments to all.
func readCatalogues(files fs.FS) (map[string]*catalogue, error) {
	all := map[string]*catalogue{}
	for _, language := range Languages() {
		c, err := readCatalogue(files, language)
		if err != nil {
			return nil, err
		}
		all[language] = c
	}
	var wrong []error
	for _, language := range Languages() {
		if err := all[language].check(all[English]); err != nil {
			wrong = append(wrong, err)
		}
	}
	return all, errors.Join(wrong...)
}

func readCatalogue(files fs.FS, language string) (*catalogue, error) {
	c := &catalogue{language: language, sentences: map[messageKey]string{}}
	names, err := fs.Glob(files, language+"/*.json")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("there are no words in the language %s", language)
	}
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		if err := c.add(text); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join("words", name), err)
		}
	}
	return c, nil
}

// add reads an object of keys and sentences. encoding/json would take the last
// of two equal keys, and say nothing.
func (c *catalogue) add(text []byte) error {
	in := json.NewDecoder(bytes.NewReader(text))
	if first, err := in.Token(); err != nil || first != json.Delim('{') {
		return errors.New("want one JSON object")
	}
	for in.More() {
		key, err := in.Token()
		if err != nil {
			return err
		}
		k := messageKey(key.(string)) // of an object, a key is a string
		value, err := in.Token()
		if err != nil {
			return fmt.Errorf("%q: %w", k, err)
		}
		sentence, ok := value.(string)
		if !ok {
			return fmt.Errorf("%q: want a sentence", k)
		}
		if _, ok := c.sentences[k]; ok {
			return fmt.Errorf("%q is there twice", k)
		}
		c.sentences[k] = sentence
	}
	if _, err := in.Token(); err != nil {
		return err
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return errors.New("want one JSON object")
	}
	return nil
}

var verbPattern = regexp.MustCompile(`%[^a-zA-Z%]*[a-zA-Z%]?`)

// check compares a catalogue with the English one.
func (c *catalogue) check(english *catalogue) error {
	var wrong []error
	add := func(key messageKey, format string, args ...any) {
		wrong = append(wrong, fmt.Errorf("words, %s: %q %s", c.language, key, fmt.Sprintf(format, args...)))
	}
	for _, key := range slices.Sorted(maps.Keys(english.sentences)) {
		sentence, ok := c.sentences[key]
		want, got := verbPattern.FindAllString(english.sentences[key], -1), verbPattern.FindAllString(sentence, -1)
		switch {
		case !ok:
			add(key, "is missing")
		case sentence == "" || strings.TrimSpace(sentence) != sentence:
			add(key, "is empty, or has white space around it: %q", sentence)
		case !slices.Equal(got, want):
			add(key, "has the verbs %q, and %q in English", got, want)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.sentences)) {
		if _, ok := english.sentences[key]; !ok {
			add(key, "is not in English")
		}
	}
	return errors.Join(wrong...)
}

// Say gives a sentence with its arguments filled in; a template calls it too. A
// length of time is said as Span says it.
func (c *catalogue) Say(key messageKey, args ...any) string {
	if len(args) == 0 {
		return c.sentences[key]
	}
	args = slices.Clone(args)
	for i, arg := range args {
		if d, ok := arg.(time.Duration); ok {
			args[i] = c.Span(d)
		}
	}
	return fmt.Sprintf(c.sentences[key], args...)
}

// Count chooses between a sentence for one, which names no number, and a
// sentence for many, whose first argument is n.
func (c *catalogue) Count(n int, one, many messageKey, args ...any) string {
	if n == 1 {
		return c.Say(one, args...)
	}
	return c.Say(many, append([]any{n}, args...)...)
}

// Span is a length of time as people say it, coarsely.
func (c *catalogue) Span(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return c.Say("span-seconds", int(d/time.Second))
	case d < 2*time.Hour:
		return c.Say("span-minutes", int(d/time.Minute))
	case d < 48*time.Hour:
		return c.Say("span-hours", int(d/time.Hour))
	}
	return c.Say("span-days", int(d/(24*time.Hour)))
}

// wordsFor are those of a request: of its query's lang, else of its cookie
// lang, else the station's.
func (s *Station) wordsFor(r *http.Request) *catalogue {
	if c, ok := s.languages[r.URL.Query().Get("lang")]; ok {
		return c
	}
	if cookie, err := r.Cookie("lang"); err == nil {
		if c, ok := s.languages[cookie.Value]; ok {
			return c
		}
	}
	return s.settings.words
}
