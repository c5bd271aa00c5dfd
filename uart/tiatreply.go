package uart

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The lines of the AT example. Case and blanks carry no meaning: TI's guide and
// TI's code differ in both, and so does the firmware of product teams. The
// bytes of the serial number and the text of a signature are strict.
var (
	// Where a reply begins. The echo of a command has = where a reply has the
	// colon.
	tiGet        = regexp.MustCompile(`(?i)\+[ \t]*get[ \t]*:`)
	tiNetCfgGet  = regexp.MustCompile(`(?i)\+[ \t]*netcfgget[ \t]*:`)
	tiNetUtilGet = regexp.MustCompile(`(?i)\+[ \t]*netutilget[ \t]*:`)
	tiNetUtilCmd = regexp.MustCompile(`(?i)\+[ \t]*netutilcmd[ \t]*:`)

	tiEvent = regexp.MustCompile(`(?i)\+event`)
	tiFatal = regexp.MustCompile(`(?i)\+eventfatalerror`)
	// The title of the banner, in the words of any version.
	tiStarts = guard(`(?i)\bAT[ _-]?Commands? (?:Example Ver|[^\r\n]{0,24}\bver(?:sion)?[:.= \t]*v?[0-9])`, "command")

	// The documented errors. A prompt, whole or cut, can stand before one on
	// the same line.
	tiError = regexp.MustCompile(`(?i)ERROR[ \t]*:[ \t]*((?:command not exist|number of parameters|parse parameters|process command|allocate)` +
		`[ \t]*,[ \t]*-?[0-9]{1,6}|length smaller than payload)[ \t]*$`)
	tiErrorAt = regexp.MustCompile(`(?i)ERROR[ \t]*:`)
	// The first word of an error in other words.
	tiNo = regexp.MustCompile(`(?i)^[^a-z0-9]*(?:cm[es] )?(?:error|err|fail|failed|failure|unknown|unrecogni[sz]ed|unsupported|undefined|` +
		`invalid|illegal|bad|wrong|missing|not|no|nack|nak|denied|refused|rejected|command|cmd)\b`)

	tiByte   = regexp.MustCompile(`^0[xX][0-9A-Fa-f]{1,2}$`)
	tiHex    = regexp.MustCompile(`^0[xX][0-9A-Fa-f]{1,8}$`)
	tiDotted = regexp.MustCompile(`^[0-9]{1,5}(?:\.[0-9]{1,5}){0,5}$`)
	tiMACSep = regexp.MustCompile(`[:,. \t-]+`)
	tiBase64 = regexp.MustCompile(`^1,([0-9]{1,4}),([A-Za-z0-9+/]+={0,2})$`)
)

const (
	tiBlank = " \t"
	tiRaw   = 120 // characters of a fact in no known form
	tiQuote = 60  // characters of a refusal in an error
)

var tiBlanks = strings.NewReplacer(" ", "", "\t", "")

// fold removes what carries no meaning.
func fold(s string) string { return strings.ToLower(tiBlanks.Replace(s)) }

// cutAt returns what stands before and after the first match of a pattern.
func cutAt(line string, pattern *regexp.Regexp) (before, after string, found bool) {
	at := pattern.FindStringIndex(line)
	if at == nil {
		return line, "", false
	}
	return line[:at[0]], line[at[1]:], true
}

// endsAnswer reports whether a line is OK. On builds with a prompt before every
// command, OK can come in the middle of the prompt.
func endsAnswer(line, prompt string) bool {
	line = strings.TrimRight(line, tiBlank+".!")
	if len(line) < 2 || !strings.EqualFold(line[len(line)-2:], "OK") {
		return false
	}
	before := fold(line[:len(line)-2])
	return strings.Contains(fold(tiPrompt), before) || strings.Contains(fold(prompt), before) ||
		!strings.ContainsFunc(before, func(r rune) bool { return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > '~' })
}

// echoes reports whether a line is the echo of a command, or a piece of it that
// an event or the prompt has cut. whole says that all of the command has been
// echoed.
func echoes(line, command, prompt string) (echo, whole bool) {
	line, command = fold(line), fold(command)
	if strings.HasSuffix(line, command) {
		return true, true
	}
	for _, p := range []string{prompt, tiPrompt} {
		line = strings.TrimPrefix(line, fold(p))
	}
	return strings.Contains(command, line), false
}

// isPrompt reports whether a line is a prompt or a piece of one.
func isPrompt(line, prompt string) bool {
	return strings.Contains(fold(tiPrompt), fold(line)) || strings.Contains(fold(prompt), fold(line))
}

// parseUDID reads the value of a serial number: 16 bytes in hex, the whole
// line.
func parseUDID(value string) (udid [16]byte, ok bool) {
	fields := strings.Split(value, ",")
	if len(fields) != len(udid) {
		return udid, false
	}
	for i, field := range fields {
		if field = strings.Trim(field, tiBlank); !tiByte.MatchString(field) {
			return udid, false
		}
		b, err := strconv.ParseUint(field[2:], 16, 8)
		if err != nil {
			return udid, false
		}
		udid[i] = byte(b)
	}
	return udid, true
}

// parseVersion reads the value of the versions. The first fields are
// documented; what some builds add or leave out is in "version-raw".
func parseVersion(value string, facts map[string]string) {
	names := []string{"chip", "mac-version", "phy-version", "nwp-version", "rom-version"}
	fields := strings.Split(value, ",")
	whole := len(fields) == len(names)
	for i, field := range fields {
		field = strings.Trim(field, tiBlank)
		if i >= len(names) {
			break
		}
		number := tiHex.MatchString(field)
		if !number && (i == 0 || !tiDotted.MatchString(field)) {
			whole = false
			if i == 0 {
				break // no telling what the others are
			}
			continue
		}
		facts[names[i]] = strings.ToLower(field)
	}
	if !whole {
		keepRaw(facts, "version-raw", value)
	}
}

// parseMAC reads a MAC address: six bytes, padded or not, with any separator or
// none.
func parseMAC(value string, facts map[string]string) {
	var mac []byte
	for _, field := range tiMACSep.Split(strings.Trim(value, tiBlank), -1) {
		digits := strings.TrimPrefix(strings.ToLower(field), "0x")
		if len(digits) == 1 {
			digits = "0" + digits
		}
		b, err := hex.DecodeString(digits)
		if err != nil {
			mac = nil
			break
		}
		mac = append(mac, b...)
	}
	if len(mac) != 6 {
		keepRaw(facts, "mac-raw", value)
		return
	}
	facts["mac"] = strings.ReplaceAll(fmt.Sprintf("% x", mac), " ", ":")
}

// keepRaw records a fact as it was printed.
func keepRaw(facts map[string]string, name, value string) {
	if value = printable(value, tiRaw); value != "" {
		facts[name] = value
	}
}

// printable returns text as printable ASCII, cut to so many characters.
func printable(text string, length int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.Trim(text, tiBlank))
	return strings.TrimRight(text[:min(len(text), length)], tiBlank)
}

// parseBase64 reads format 1, a length and base64. The number is the length of
// the text, not of what it stands for.
func parseBase64(value string) ([]byte, error) {
	m := tiBase64.FindStringSubmatch(tiBlanks.Replace(value))
	if m == nil {
		return nil, fmt.Errorf("%w: not of the documented form", ErrGarbled)
	}
	if n, err := strconv.Atoi(m[1]); err != nil || n != len(m[2]) {
		return nil, fmt.Errorf("%w: %s characters announced, %d came", ErrGarbled, m[1], len(m[2]))
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(m[2])
	if err != nil {
		return nil, fmt.Errorf("%w: not base64", ErrGarbled)
	}
	return raw, nil
}
