package doctor

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"unicode"

	"github.com/pelletier/go-toml/v2"

	"secretfree/cmd/internal/stationconf"
)

// scrubber takes out of a text what may be a secret. It knows none: it goes by
// what secrets look like and by the names that stand before them, and rather
// takes too much.
type scrubber struct {
	exact  []string        // values that must not appear, in any of their forms
	known  map[string]bool // ids and fingerprints of the journal, in hex, which are no secrets
	hidden bool            // these are replaced too
	salt   []byte
}

const removed = "(removed)"

func newScrubber(environment []string, hidden bool) *scrubber {
	s := &scrubber{known: map[string]bool{}, hidden: hidden, salt: make([]byte, 32)}
	rand.Read(s.salt)
	for _, e := range environment {
		if name, value, _ := strings.Cut(e, "="); secretName.MatchString(name) && len(value) >= 8 {
			s.exact = append(s.exact, forms(value)...)
		}
	}
	return s
}

// forms are a value and how it may be written; of base64 the part that does not
// depend on what is around it, at each of its three places.
func forms(value string) []string {
	out := []string{value, url.QueryEscape(value), hex.EncodeToString([]byte(value)), strings.ToUpper(hex.EncodeToString([]byte(value)))}
	for shift := range 3 {
		padded := append(make([]byte, shift), value...)
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			text := e.EncodeToString(padded[:len(padded)/3*3])
			if skip := (shift*8 + 5) / 6; len(text) > skip+8 {
				out = append(out, text[skip:])
			}
		}
	}
	return out
}

const secretWord = `(?:secret|token|passw(?:or)?d|passphrase|passwd|api[_-]?key|access[_-]?key|credential|authorization|cookie|private[_-]?key)`

var (
	secretName = regexp.MustCompile(`(?i)` + secretWord)
	// A name and its value: in JSON, in JSON within JSON, in a setting, in a
	// header.
	secretPair = regexp.MustCompile(`(?i)(` + secretWord + `[\w.-]*\\*["']?\s*[:=]\s*)(?:\\+".*?\\+"|"(?:[^"\\]|\\.)*"|'[^']*'|(?:(?:bearer|basic|digest|aws4-hmac-sha256)\s+)?[^\s,;}"'\\]+)`)
	scheme     = regexp.MustCompile(`(?i)\b(bearer|basic|aws4-hmac-sha256)\s+[A-Za-z0-9._~+/=,-]{6,}`)
	armoured   = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----.*?(-----END [A-Z0-9 ]*-----|\z)`)
	noteKey    = regexp.MustCompile(`PRIVATE\+KEY\+[^\s"']*`)
	accessID   = regexp.MustCompile(`\b(AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}`)
	userInfo   = regexp.MustCompile(`(://)[^/\s"'@]+@`)
	longHex    = regexp.MustCompile(`\b[0-9a-fA-F]{32,}\b`)
	macAddress = regexp.MustCompile(`\b(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\b`)
	longText   = regexp.MustCompile(`[A-Za-z0-9+/]{40,}={0,2}|[A-Za-z0-9_-]{40,}={0,2}`)
	publicKey  = regexp.MustCompile(`[a-z0-9][a-z0-9./-]*\+[0-9a-f]{8}\+A[A-Za-z0-9+/]{43}=?`) // of a note
	lasting    = regexp.MustCompile(`^(usb|pci|platform)-`)                                    // a port
)

// plain is clean of a text that is full of what looks like a secret and is
// none: it goes by what is one for sure.
func (s *scrubber) plain(text []byte) []byte {
	for _, value := range s.exact {
		text = bytes.ReplaceAll(text, []byte(value), []byte(removed))
	}
	text = armoured.ReplaceAll(text, []byte(removed))
	return noteKey.ReplaceAll(text, []byte(removed))
}

// clean returns the text without what may be a secret.
func (s *scrubber) clean(text []byte) []byte {
	text = s.plain(text)
	text = accessID.ReplaceAll(text, []byte(removed))
	text = userInfo.ReplaceAll(text, []byte("${1}"+removed+"@"))
	text = secretPair.ReplaceAll(text, []byte(`${1}"`+removed+`"`))
	text = scheme.ReplaceAll(text, []byte("${1} "+removed))
	text = longHex.ReplaceAllFunc(text, s.hex)
	if s.hidden { // a MAC address names a device as well as its id does
		text = macAddress.ReplaceAllFunc(text, func(word []byte) []byte { return s.hex(bytes.ReplaceAll(word, []byte("-"), []byte(":"))) })
	}
	// Public keys of stations look like secrets, and are none.
	var out []byte
	for {
		at := publicKey.FindIndex(text)
		if at == nil {
			return append(out, longText.ReplaceAllFunc(text, long)...)
		}
		out = append(out, longText.ReplaceAllFunc(text[:at[0]], long)...)
		out = append(out, text[at[0]:at[1]]...)
		text = text[at[1]:]
	}
}

// long removes what has letters of both cases and digits, as random text does.
func long(word []byte) []byte {
	upper, lower, digit := false, false, false
	for _, c := range string(word) {
		upper, lower, digit = upper || unicode.IsUpper(c), lower || unicode.IsLower(c), digit || unicode.IsDigit(c)
	}
	if upper && lower && digit && !lasting.Match(word) {
		return []byte(removed)
	}
	return word
}

// hex keeps what the journal knows. Anything else of that form may be a key or
// a token, so it gets another name, the same in the whole bundle.
func (s *scrubber) hex(word []byte) []byte {
	if !s.hidden && s.known[string(word)] {
		return word
	}
	h := hmac.New(sha256.New, s.salt)
	h.Write(bytes.ToLower(word))
	return []byte("id-" + hex.EncodeToString(h.Sum(nil)[:6]))
}

// settings returns a configuration with nothing but its known settings: no
// comments, and no value of a key that is none.
func (s *scrubber) settings(data []byte) []byte {
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		return s.names(data)
	}
	out, err := toml.Marshal(strip(all, reflect.TypeFor[stationconf.Config]()))
	if err != nil {
		return s.names(data)
	}
	return s.clean(out)
}

// strip keeps values of the keys that a type has.
func strip(value any, t reflect.Type) any {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := value.(type) {
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return removed
		}
		fields := map[string]reflect.Type{}
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("toml"), ",")
			fields[name] = t.Field(i).Type
		}
		out := map[string]any{}
		for key, inner := range v {
			if field, ok := fields[key]; ok && key != "" {
				out[key] = strip(inner, field)
			} else {
				out[unknownKey] = removed // the name itself may be a slip of the pen
			}
		}
		return out
	case []any:
		if t.Kind() != reflect.Slice {
			return removed
		}
		out := make([]any, len(v))
		for i, inner := range v {
			out[i] = strip(inner, t.Elem())
		}
		return out
	}
	return value
}

const unknownKey = "unknown-key"

var (
	tableLine = regexp.MustCompile(`^\s*\[{1,2}[a-z_]+\]{1,2}`)
	keyLine   = regexp.MustCompile(`^\s*([a-z_]+)\s*=`)
)

// names is for a file that is no TOML: the names of tables and keys, by line,
// so that an error that names a line can be followed.
func (s *scrubber) names(data []byte) []byte {
	var out strings.Builder
	out.WriteString("# This file is no TOML; only names are here.\n")
	for line := range strings.Lines(string(data)) {
		switch {
		case tableLine.MatchString(line):
			out.WriteString(strings.TrimSpace(tableLine.FindString(line)) + "\n")
		case keyLine.MatchString(line):
			out.WriteString(keyLine.FindStringSubmatch(line)[1] + " = " + removed + "\n")
		default:
			out.WriteString("\n")
		}
	}
	return s.clean([]byte(out.String()))
}
