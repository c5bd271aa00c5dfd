package uart

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// This file recognises what the CSR example prints, whatever its words are. Its
// functions are pure. The identity is strict: the 16 bytes of the serial number
// line, and their digits where the firmware repeats them. All other words are
// decoration.

// Subjects of questions. An unknown question has no subject.
const (
	csrValidity     = "validity"
	csrCA           = "CA"
	csrCountry      = "country"
	csrState        = "state"
	csrLocality     = "locality"
	csrSurname      = "surname"
	csrOrganization = "organization"
	csrUnit         = "organization unit"
	csrCommonName   = "common name"
	csrEmail        = "email"
	csrCertificate  = "certificate" // the request to paste one: the dialogue is over
)

// csrSubjects are the words that name a subject, the most specific subject
// first.
var csrSubjects = []struct {
	subject string
	words   *regexp.Regexp
}{
	{csrCertificate, regexp.MustCompile(`(?i)\bpaste\b|\bcertificate file`)},
	{csrCommonName, regexp.MustCompile(`(?i)common\W*name|\bCN\b`)},
	{csrEmail, regexp.MustCompile(`(?i)e\W?mail`)},
	{csrValidity, regexp.MustCompile(`(?i)\bvalid|\bdays?\b|\bexpir|\blifetime|\btage?\b|\bjours?\b|\bdías\b`)},
	{csrUnit, regexp.MustCompile(`(?i)units?\b|\bO\.?U\b|\bdepartment|\bdept\b|\bdivision|abteilung|\bdépartement|\bdepartamento`)},
	{csrCountry, regexp.MustCompile(`(?i)countr(?:y|ies)|\bland\b|\bpays\b|\bpaís`)},
	{csrState, regexp.MustCompile(`(?i)\bstate\b|provinc|bundesland|\bestado\b`)},
	{csrLocality, regexp.MustCompile(`(?i)localit|\bcity\b|\btown\b|\blocation\b|\bort\b|\bstadt\b|\bville\b|\bciudad\b`)},
	{csrSurname, regexp.MustCompile(`(?i)sur\W?name|\b(?:last|family)\W?name|\bnachname|\bapellido`)},
	{csrOrganization, regexp.MustCompile(`(?i)organi[sz]ation|\borg\b|\bcompany\b|\bfirma\b|\bsociété|\bempresa\b`)},
	{csrCA, regexp.MustCompile(`(?i)\bCA\b|\bcertificat(?:e|ion)\W+authority`)},
}

var (
	csrBrackets = regexp.MustCompile(`\([^()]*\)|\[[^\[\]]*\]|<[^<>]*>`)
	// csrTypical begins the questions of TI's builds.
	csrTypical = regexp.MustCompile(`(?i)^\W*(?:enter|is)\b`)
	csrShown   = regexp.MustCompile(`(?i)^\W*(?:default|using)\b`)
	// Events come anywhere, in the middle of a prompt as well, and end their
	// line.
	csrEvent     = guard(`(?i)\[[a-z_]{2,16} (?:event|error|warning|info)\][^\r\n]*[\r\n]+`, "[")
	csrOpenEvent = guard(`(?i)\[[a-z_]{2,16} (?:event|error|warning|info)\][^\r\n]*$`, "[")
	csrLate      = guard(`(?i)-(?:enter|is) |error: invalid |netutilcmd error|creating csr|certificate file name`,
		"-enter ", "-i", "error: invalid ", "netutilcmd error", "creating c", "certificate file name")
)

// csrSubject names what a question asks for. Words in brackets count only if
// there are no others: they are examples and defaults.
func csrSubject(question string) string {
	question = strings.ReplaceAll(question, "_", " ")
	plain := csrBrackets.ReplaceAllString(question, " ")
	for i, text := range []string{plain, question} {
		if i > 0 && text == plain {
			break
		}
		for _, s := range csrSubjects {
			if s.words.MatchString(text) {
				return s.subject
			}
		}
	}
	return ""
}

// certainty tells how long a reader waits before it takes a text for a
// question.
type certainty int

const (
	noQuestion certainty = iota
	perhaps              // nothing follows for csrPause
	probably             // nothing follows for csrQuiet
	surely               // no wait
)

// csrPrompt reports whether text ends in a question, and names its subject.
// rest is what follows the question on its line: the echo of something that was
// typed before. Only the first question may have one (stale), or a question in
// TI's form.
func csrPrompt(text string, stale bool) (subject, rest string, c certainty) {
	if csrOpenEvent.MatchString(text) {
		return "", "", noQuestion
	}
	tail := text[strings.LastIndexAny(text, "\r\n")+1:]
	if i := promptSign(tail); i >= 0 && csrTypical.MatchString(tail[:i]) {
		if subject := csrSubject(tail[:i]); subject != "" {
			return subject, tail[i+1:], surely
		}
	}
	question := strings.TrimRight(tail, " \t")
	if stale {
		if i := strings.LastIndexAny(question, ":?>"); i >= 0 && len(question)-i <= 32 {
			question, rest = question[:i+1], tail[i+1:]
		}
	}
	switch {
	case asks(question):
		subject, c = csrSubject(question), probably
		if csrShown.MatchString(question) { // a default, cut
			c = perhaps
		}
	case hasLetter(question) && (len(question) <= csrWordLen || strings.ContainsAny(question, " -_")):
		if subject = csrSubject(question); subject != "" {
			c = perhaps
		}
	case question != "" && strings.Trim(question, csrSigns) == "": // the words are on the line before
		lines := strings.TrimRight(text[:len(text)-len(tail)], "\r\n \t")
		if words := lines[strings.LastIndexAny(lines, "\r\n")+1:]; hasLetter(words) {
			if subject, c = csrSubject(words), perhaps; subject != "" {
				c = probably
			}
		}
	default: // a question with a line end
		lines := strings.TrimRight(text, "\r\n \t")
		question = lines[strings.LastIndexAny(lines, "\r\n")+1:]
		if asks(question) {
			subject, c = csrSubject(question), perhaps
		}
	}
	if c == noQuestion {
		return "", "", noQuestion
	}
	return subject, rest, c
}

// csrWordLen is the length from which text without blanks is no question, but a
// row of base64.
const csrWordLen = 24

// csrSigns are the characters of a prompt without words.
const csrSigns = " \t:?>#$%"

// csrShell is a prompt for commands.
var csrShell = regexp.MustCompile(`^\W*\w*\W*[>#$%]\W*$`)

// csrFirst reports whether the CSR example has begun its dialogue in text: with
// a question that is no prompt for commands.
func csrFirst(text string) bool {
	subject, _, asked := csrPrompt(text, true)
	if csrLate.MatchString(text) || asked > noQuestion && subject != "" {
		return true
	}
	text = strings.TrimRight(text, "\r\n \t")
	return asked > noQuestion && !csrShell.MatchString(text[strings.LastIndexAny(text, "\r\n")+1:])
}

// promptSign returns the place of the first colon that is in no bracket, or -1.
func promptSign(tail string) int {
	depth := 0
	for i, c := range []byte(tail) {
		switch {
		case c == '(' || c == '[':
			depth++
		case (c == ')' || c == ']') && depth > 0:
			depth--
		case c == ':' && depth == 0:
			return i
		}
	}
	return -1
}

func asks(question string) bool {
	return hasLetter(question) && strings.ContainsAny(question[len(question)-1:], ":?>")
}

func hasLetter(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' })
}

// withoutEvents removes events, and returns a function that finds a place of
// the result in text.
func withoutEvents(text string) (clean string, origin func(int) int) {
	if strings.IndexByte(text, '[') < 0 {
		return text, func(i int) int { return i }
	}
	events := csrEvent.FindAllStringIndex(text, -1)
	var kept strings.Builder
	from := 0
	for _, e := range events {
		kept.WriteString(text[from:e[0]])
		from = e[1]
	}
	kept.WriteString(text[from:])
	return kept.String(), func(i int) int {
		for _, e := range events {
			if i < e[0] {
				break
			}
			i += e[1] - e[0]
		}
		return i
	}
}

// The words before a serial number, the surest first. A line of the first kind
// is the serial number or an error; what the others name may be another number.
var csrLabels = []*regexp.Regexp{
	regexp.MustCompile(`(?i)\bunique\W*(?:(?:device|chip|board)\W*)?id(?:entifi(?:er|cation))?\b|\bU\W?D\W?ID\b`),
	regexp.MustCompile(`(?i)\bdevice\W*id(?:entifi(?:er|cation))?\b`),
	regexp.MustCompile(`(?i)\bserial\W*(?:number|no|nr|num)\b|\buuid\b`),
	// csrVague: only a second reading shows that it is the serial number.
	regexp.MustCompile(`(?i)\b(?:hw|hardware|chip|board|mcu|cpu|soc|module|node|unit|product)\W*(?:u\W?id|id|ident\w*|serial)\b|\bu\W?id\b|` +
		`\bserial\b|\bserien\W*(?:nummer|nr)\b|\bn\pL{2,5}ro\W+d[ei]\W+s\pL{1,2}rie?\b|序列号`),
}

// csrLabelWords are words of which every label holds at least one.
var csrLabelWords = []string{"id", "ri", "序列号"}

// csrVague is the kind of label that may name another number.
const csrVague = 3

var (
	csrFiller = regexp.MustCompile(`(?i)^(?:[ \t]*\([^()]{0,24}\))?(?:[^0-9a-z]*\b(?:is|hex|number|value)\b)*[^0-9a-z]*`)
	csrHexish = regexp.MustCompile(`(?i)^(?:0x)?[0-9a-f]{2,}(?:[^0-9a-z]|$)|^(?:0x)?[0-9a-f][ \t:,.;-]+(?:0x)?[0-9a-f]{1,2}\b`)
	csrApart  = regexp.MustCompile(`[ \t:,.;-]+`)
)

// serialLine is a line that names a serial number.
type serialLine struct {
	kind       int // of label
	start, end int // in the text: of the label, and behind the line's end
	device     [16]byte
	valid      bool // exactly 16 bytes
}

// serialLines finds the whole lines that name a serial number.
func serialLines(text string) (found []serialLine) {
	for at := 0; at < len(text); {
		n := strings.IndexAny(text[at:], "\r\n")
		if n < 0 {
			return found
		}
		if kind, start, value := serialValue(text[at : at+n]); kind >= 0 {
			line := serialLine{kind: kind, start: at + start, end: at + n + 1}
			line.device, line.valid = parseSerial(value)
			found = append(found, line)
		}
		at += n + 1
	}
	return found
}

// serialValue splits a line that names a serial number, and begins it at least;
// kind is negative if it does not.
func serialValue(line string) (kind, start int, value string) {
	if len(line) < 6 || !strings.ContainsAny(line, "0123456789abcdefABCDEF") || strings.Trim(line, " \t=*-") == "" || !strings.ContainsAny(line, " \t:=,") || !holds(line, csrLabelWords) {
		return -1, 0, ""
	}
	for kind, label := range csrLabels {
		if m := label.FindStringIndex(line); m != nil {
			value := line[m[1]:]
			value = value[len(csrFiller.FindString(value)):]
			if csrHexish.MatchString(value) {
				return kind, m[0], value
			}
		}
	}
	return -1, 0, ""
}

// csrAtStart is the beginning of a serial number line of the surest kind.
var csrAtStart = guard(`(?i)(?:\bunique\W*(?:(?:device|chip|board)\W*)?id(?:entifi(?:er|cation))?\b|\bU\W?D\W?ID\b)`+
	`(?:[ \t]*(?:\([^()\r\n]{0,24}\)|is\b)?[ \t]*[:=]|[ \t]+(?:is[ \t]+)?(?:0x)?[0-9a-f]{2}\b)`, "id")

// startOf returns the place of what a board prints only at its start, or -1.
func startOf(text string) int {
	if m := csrAtStart.FindStringIndex(text); m != nil {
		return m[0]
	}
	return -1
}

// startsOf returns the places of what a board prints only at its start: the
// beginning of a serial number line of the surest kind, or a whole line of any
// kind.
func startsOf(text string) []int {
	found := csrAtStart.places(text)
	for _, line := range serialLines(text) {
		if line.valid {
			found = append(found, line.start)
		}
	}
	return found
}

// parseSerial reads exactly 16 bytes: groups of an even number of hex digits,
// with or without something between them, in any case, each with 0x before it
// or not. A single digit is a byte only as 0x and the digit: elsewhere it may
// have lost the other one.
func parseSerial(value string) (device [16]byte, ok bool) {
	value = strings.Trim(value, " \t\"'.,;)]}>")
	groups := csrApart.Split(value, -1)
	digits := ""
	for _, group := range groups {
		bare, prefixed := strings.CutPrefix(strings.ToLower(group), "0x")
		if prefixed && len(bare) == 1 && len(groups) == len(device) {
			bare = "0" + bare
		}
		if len(bare) == 0 || len(bare)%2 != 0 || len(digits)+len(bare) > 2*len(device) {
			return device, false
		}
		digits += bare
	}
	if len(digits) != 2*len(device) {
		return device, false
	}
	_, err := hex.Decode(device[:], []byte(digits))
	return device, err == nil
}

// chooseSerial returns the line of the serial number among the lines of a
// start. whole says that no other line will come: only then a line of a less
// sure kind counts. No line yet is nil and no error.
func chooseSerial(lines []serialLine, whole bool) (*serialLine, error) {
	wrong := fmt.Errorf("reading the serial number: %w: not 16 bytes; reset the board", ErrGarbled)
	for kind := range csrLabels {
		var chosen *serialLine
		for i, line := range lines {
			switch {
			case line.kind != kind:
			case kind == 0 && !line.valid:
				return nil, wrong
			case chosen != nil && line.valid && line.device != chosen.device:
				return nil, fmt.Errorf("reading the serial number: %w: two different ones; reset the board", ErrGarbled)
			case chosen == nil && line.valid:
				chosen = &lines[i]
			}
		}
		if chosen != nil {
			return chosen, nil
		}
		if !whole {
			return nil, nil
		}
	}
	if len(lines) > 0 {
		return nil, wrong
	}
	return nil, nil
}

// joinedDigits is what the CSR example prints as the default for the common
// name.
func joinedDigits(device [16]byte) string {
	text := ""
	for _, b := range device {
		text += strconv.FormatUint(uint64(b), 16)
	}
	return text
}

// The forms in which digits repeat a serial number.
const (
	formPadded = "padded"    // all digits, as corrected firmware has them, or no digit is missing anyway
	formJoined = "joined"    // %x of each byte, run together
	formShort  = "cut-short" // as TI's code takes it for a name: up to the first byte of one digit
)

// digitRun is a run of hex digits in words. apart is false if nothing but
// separators is between the run before and this one.
type digitRun struct {
	digits string
	apart  bool
	glued  bool // to letters that are no hex digits
}

// digitRuns finds the runs of hex digits.
func digitRuns(words string) (runs []digitRun) {
	words = strings.ToLower(words)
	apart := true
	for i := 0; i < len(words); {
		if !isAlnum(words[i]) {
			apart = apart || !strings.ContainsRune(" \t\r\n:,.;-", rune(words[i]))
			i++
			continue
		}
		end := i
		for end < len(words) && isAlnum(words[end]) {
			end++
		}
		token := strings.TrimPrefix(words[i:end], "0x")
		i = end
		parts := strings.FieldsFunc(token, func(r rune) bool { return !isHex(byte(r)) })
		if whole := len(parts) == 1 && parts[0] == token; whole {
			runs = append(runs, digitRun{digits: token, apart: apart})
			apart = false
			continue
		}
		for _, part := range parts {
			runs = append(runs, digitRun{digits: part, apart: true, glued: true})
		}
		apart = true
	}
	return runs
}

func isAlnum(c byte) bool { return isHex(c) || c >= 'g' && c <= 'z' }
func isHex(c byte) bool   { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }

// Digits that can be a serial number: 16 bytes of one or two.
const minSerial, maxSerial = 16, 32

// repeats looks in words for the digits of a serial number. form is how they
// repeat it, empty if they do not. other says that digits are there which
// belong to another serial number.
func repeats(device [16]byte, words string) (form string, other bool) {
	runs := digitRuns(words)
	forms := map[string]string{joinedDigits(device): formJoined, hex.EncodeToString(device[:]): formPadded}
	for i := range runs {
		text := ""
		for j := i; j < len(runs) && (j == i || !runs[j].apart) && len(text) <= maxSerial; j++ {
			text += runs[j].digits
			if f := forms[text]; f != "" && form == "" {
				form = f
				// The parts of these digits are not those of another one.
				runs = append(append(append([]digitRun{}, runs[:i]...), digitRun{apart: true}), runs[j+1:]...)
				break
			}
		}
		if form != "" {
			break
		}
	}
	bytes := 0
	for _, run := range runs {
		if n := len(run.digits); n >= minSerial && n <= maxSerial && forms[run.digits] == "" && !lettersAround(run, forms) {
			return form, true
		}
		if run.apart || len(run.digits) == 0 || len(run.digits) > 2 {
			bytes = 0
		}
		if n := len(run.digits); n == 1 || n == 2 {
			if bytes++; bytes == len(device) {
				return form, true
			}
		}
	}
	return form, false
}

// lettersAround reports whether a run may be the serial number itself, with the
// end of a word before it that is hex digits too. It is no reading, and no
// other serial number.
func lettersAround(run digitRun, forms map[string]string) bool {
	if !run.glued {
		return false
	}
	for text := range forms {
		if before, ok := strings.CutSuffix(run.digits, text); ok && strings.Trim(before, "abcdef") == "" {
			return true
		}
	}
	return false
}

// nameForm names the form in which a common name of a request repeats the
// serial number, as repeats does, or formShort. A name of TI's short form that
// is not this one's belongs to another serial number.
func nameForm(device [16]byte, name string) (form string, other bool) {
	name = strings.ToLower(name)
	if form, other = repeats(device, name); form == "" && name == shortName(device) {
		return formShort, false
	}
	digits := strings.Trim(name, "0123456789abcdef") == ""
	return form, other || form == "" && digits && (len(name) >= minSerial || isShortName(name))
}

// shortName is the common name that TI's code makes.
func shortName(device [16]byte) string {
	name := ""
	for _, b := range device {
		if name += strconv.FormatUint(uint64(b), 16); b < 0x10 {
			break
		}
	}
	return name
}

// isShortName reports whether a name is one that TI's code cuts short: pairs of
// digits that do not begin with 0, and one digit.
func isShortName(name string) bool {
	if len(name)%2 == 0 || len(name) >= maxSerial {
		return false
	}
	for i := range len(name) {
		if !isHex(name[i]) || i%2 == 0 && i < len(name)-1 && name[i] == '0' {
			return false
		}
	}
	return true
}

// Marker lines of a request. The words in them are decoration, and how many
// dashes there are.
var (
	csrBegin = regexp.MustCompile(`(?i)-{2,}[ \t]*BEGIN\b([^-\r\n]{0,48})-{2,}`)
	csrEnd   = regexp.MustCompile(`(?i)-{2,}[ \t]*END\b[^-\r\n]{0,48}(?:-{2,}|[\r\n])`)
	csrKind  = regexp.MustCompile(`(?i)REQ|CSR|PKCS`)
)

// findPEM returns the first block that says that it is a request.
func findPEM(text string) *pemRequest {
	for strings.Contains(text, "--") {
		m := csrBegin.FindStringSubmatchIndex(text)
		if m == nil {
			return nil
		}
		label := strings.TrimSpace(text[m[2]:m[3]])
		text = text[m[1]:]
		end := csrEnd.FindStringIndex(text)
		if end == nil {
			return nil
		}
		if csrKind.MatchString(label) {
			return &pemRequest{label: label, base64: text[:end[0]]}
		}
		text = text[end[1]:]
	}
	return nil
}

// What firmware prints when it has given up, and when its network processor
// has.
var (
	csrAbort = guard(`(?i)\bstrtok\b|\berror\b[^\r\n]{0,64}\bat line\b|\bin function\b|\b(?:no|not) token\b`,
		"trto", "at line", "in function", "no to", "not to")
	csrDead  = guard(`(?i)\bfatal\W+error|\babort(?:ed|ing)?\W+(?:nwp|event)|\bnwp\b[^\r\n]{0,32}\babort|\babort\W?(?:type|data)\b|\bdevice_abort\b`, "fatal", "abort")
	csrNoKey = regexp.MustCompile(`-122[89][0-9]\b`) // SimpleLink codes of keys
)

// gaveUp returns the error of a firmware that needs a reset, or nil.
func gaveUp(text string) error {
	switch {
	case csrDead.MatchString(text):
		return errDead
	case csrAbort.MatchString(text):
		return errAborted
	}
	return nil
}
