package uart

import (
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"regexp"
	"slices"
	"strings"
)

// Piece is a part of a board's output, with the meaning that a dialect gives
// it.
type Piece struct {
	At, Len int    // place and length, in bytes that the Line has received
	Meaning string // in a few words: "serial number", "event, skipped"
	// Want is what the dialect expected at At. It is empty if the piece is
	// good.
	Want string
	// Serial is the serial number that stands in the piece, as 32 hex digits;
	// empty if there is none.
	Serial string
	text   string
}

// Byte returns the position of byte i of the serial number in the piece.
func (p Piece) Byte(i int) int {
	if places := serialBytes(p.text); i >= 0 && i < len(places) {
		return p.At + places[i]
	}
	return p.At
}

// Explain makes dialects report the meaning of the board's output. A piece can
// be reported more than once, with several meanings. explain is called by the
// goroutine that reads; nil ends the reports.
func (l *Line) Explain(explain func(Piece)) { l.explain = explain }

// Received returns the number of bytes that have arrived since NewLine, without
// those after a private key.
func (l *Line) Received() int { return l.arrived }

// Consumed returns the number of received bytes that a dialect has used.
func (l *Line) Consumed() int { return l.arrived - len(l.in) }

// answerText is the value of an answer, and its place.
type answerText struct {
	at   int
	text string
}

func (l *Line) explainPiece(p Piece) {
	if l.explain != nil && p.Len > 0 {
		l.explain(p)
	}
}

// explainText reports the meaning of a text that stands at a place.
func (l *Line) explainText(at int, text, meaning string) {
	l.explainPiece(Piece{At: at, Len: len(text), Meaning: meaning, text: text})
}

// explainError reports a text that the dialect cannot accept, and what it
// expected at byte from of the text.
func (l *Line) explainError(at int, text string, from int, meaning, want string) {
	from = max(0, min(from, len(text)))
	l.explainText(at, text, meaning)
	l.explainPiece(Piece{At: at + from, Len: max(1, len(text)-from), Meaning: meaning, Want: want, text: text[from:]})
}

// explainDevice reports a serial number.
func (l *Line) explainDevice(value answerText, device [16]byte, meaning string) {
	want := ""
	if checkDevice(device) != nil {
		want = "the serial number of a board, not what an empty memory reads as"
	}
	l.explainPiece(Piece{At: value.at, Len: len(value.text), Meaning: meaning, Want: want, Serial: hex.EncodeToString(device[:]), text: value.text})
}

// explainOtherDevice reports that the serial number differs from the first one.
func (l *Line) explainOtherDevice(first, second [16]byte) {
	i := 0
	for i < len(first)-1 && first[i] == second[i] {
		i++
	}
	from := 0
	if places := serialBytes(l.answer.text); i < len(places) {
		from = places[i]
	}
	l.explainError(l.answer.at, l.answer.text, from, meaningSerial, fmt.Sprintf("the serial number that was read before, with %02x as its byte %d", first[i], i+1))
}

const meaningSerial = "serial number"

// eachLine calls each with the place and the text of each line that is not
// blank.
func eachLine(text string, each func(at int, line string)) {
	for at := 0; at < len(text); {
		end := at + strings.IndexAny(text[at:], "\r\n")
		if end < at {
			end = len(text)
		}
		if line := text[at:end]; strings.Trim(line, tiBlank) != "" {
			each(at, line)
		}
		at = end + 1
	}
}

// explainHeard reports the lines since the last Mark that a function has a
// meaning for.
func (l *Line) explainHeard(meaning func(line string) string) {
	if l.explain == nil || l.recorder.blank {
		return
	}
	heard := l.heard()
	base := l.arrived - len(heard)
	eachLine(heard, func(at int, line string) {
		m := meaning(line)
		if i := strings.LastIndex(line, ":"); m == meaningPrompt && i >= 0 { // an echo can follow
			line = line[:i+1]
		}
		if m != "" {
			l.explainText(base+at, line, m)
		}
	})
}

// explainFound reports the line by which a board was recognised: the first one
// with which the text is enough.
func (l *Line) explainFound(name string, enough func(text string) bool) {
	if l.explain == nil {
		return
	}
	text, base, found := string(l.in), l.Consumed(), false
	eachLine(text, func(at int, line string) {
		end := min(at+len(line)+1, len(text)) // with its line end
		if !found && enough(text[:end]) {
			found = true
			l.explainText(base+at, line, "auto recognises "+name)
		}
	})
}

// serialBytes returns the places of the bytes of a serial number: of two hex
// digits, or of one between other characters, without 0x.
func serialBytes(value string) (places []int) {
	for i := 0; i < len(value); {
		if i+1 < len(value) && value[i] == '0' && value[i+1]|0x20 == 'x' {
			i += 2
		}
		n := 0
		for i+n < len(value) && isHex(value[i+n]|0x20) {
			n++
		}
		for k := 0; k < n; k += 2 {
			places = append(places, i+k)
		}
		i += max(1, n)
	}
	return places
}

// udidStop returns the place at which a value stops being the serial number of
// a ti-at board, and what should stand there.
func udidStop(value string) (at int, want string) {
	next := func(ok func(c byte) bool) bool {
		if at < len(value) && ok(value[at]) {
			at++
			return true
		}
		return false
	}
	is := func(chars string) func(byte) bool {
		return func(c byte) bool { return strings.IndexByte(chars, c) >= 0 }
	}
	digit := func(c byte) bool { return isHex(c | 0x20) }
	for i := range 16 {
		for next(is(tiBlank)) {
		}
		if !next(is("0")) || !next(is("xX")) {
			return at, fmt.Sprintf(`"0x" and byte %d of 16`, i+1)
		}
		if !next(digit) {
			return at, fmt.Sprintf("a hex digit of byte %d of 16", i+1)
		}
		second := next(digit)
		for next(is(tiBlank)) {
		}
		switch {
		case i == 15 && at < len(value):
			return at, "the end of the line after 16 bytes"
		case i < 15 && !next(is(",")) && second:
			return at, fmt.Sprintf("a comma after byte %d of 16", i+1)
		case i < 15 && value[at-1] != ',':
			return at, fmt.Sprintf("a hex digit or a comma in byte %d of 16", i+1)
		}
	}
	return at, "another serial number"
}

// serialStop is udidStop for the serial number line of the CSR example, which
// may be printed in many forms.
func serialStop(value string) (at int, want string) {
	n := 0
	for i := 0; i < len(value); {
		c := value[i]
		switch {
		case i+1 < len(value) && c == '0' && value[i+1]|0x20 == 'x':
			i += 2
			continue
		case !isHex(c | 0x20):
			if !csrApart.MatchString(value[i:i+1]) && strings.Trim(value[i:], " \t\"'.,;)]}>") != "" {
				return i, fmt.Sprintf("a hex digit of byte %d of 16", n/2+1)
			}
			i++
			continue
		}
		end := i
		for end < len(value) && isHex(value[end]|0x20) {
			end++
		}
		prefixed := i > 1 && value[i-1]|0x20 == 'x'
		if (end-i)%2 != 0 && !(prefixed && end-i == 1) {
			return end, fmt.Sprintf("the second hex digit of byte %d of 16", (n+end-i)/2+1)
		}
		for ; i < end; i += 2 {
			if n += 2; n > 32 {
				return i, "the end of the line after 16 bytes"
			}
		}
		i = end
	}
	if n < 32 {
		return len(value), fmt.Sprintf("16 bytes in hex; there are %d", n/2)
	}
	return 0, "another serial number"
}

// tiCoded is how an answer in base64 begins.
var tiCoded = regexp.MustCompile(`^[ \t]*1[ \t]*,[ \t]*([0-9]{1,4})[ \t]*,[A-Za-z0-9+/ \t]*={0,2}[ \t]*`)

// codedStop returns the place at which a value stops being format 1, a length
// and base64, and what should stand there.
func codedStop(value string) (at int, want string) {
	m := tiCoded.FindStringSubmatchIndex(value)
	switch {
	case m == nil:
		return 0, "1, the number of characters, and base64"
	case m[1] < len(value):
		return m[1], "a character of base64"
	}
	return m[2], "the number of the characters that follow, and as many in base64"
}

// explainAnswer reports what a line is for dialect report.
func (ReportLine) explainAnswer(l *Line, line, text string, err error) {
	if l.explain == nil {
		return
	}
	meaning := answerMeaning(text, err)
	if meaning != meaningDamaged {
		l.explainText(l.lineAt, line, meaning)
		value := answerText{l.answer.at, text}
		for _, form := range []*regexp.Regexp{reportReady, reportFull} {
			if m := form.FindStringSubmatchIndex(text); err == nil && m != nil {
				var device [16]byte
				if _, err := hex.Decode(device[:], []byte(text[m[2]:m[3]])); err == nil {
					l.explainDevice(answerText{value.at + m[2], text[m[2]:m[3]]}, device, meaning)
				}
			}
		}
		return
	}
	at, want := sumStop(line)
	l.explainError(l.lineAt, line, at, meaning, want)
}

// sumStop returns the place of the one byte of a line that makes its checksum
// wrong, if there is exactly one, else that of the first byte that the checksum
// covers.
func sumStop(line string) (at int, want string) {
	const otherByte = "another byte: with one here the checksum would hold"
	begin := len(line) - len(strings.TrimLeft(line, tiBlank))
	whole := strings.TrimRight(line[begin:], tiBlank)
	i := strings.LastIndexAny(whole, tiBlank)
	if i < 0 {
		return begin, "an answer with a checksum"
	}
	sum, digits := whole[i+1:], strings.TrimPrefix(lowerASCII(whole[i+1:]), "0x")
	covered := strings.TrimRight(whole[:i], tiBlank)
	for k := range digits {
		if !isHex(digits[k]) {
			return begin + i + 1 + len(sum) - len(digits) + k, "a hex digit of the checksum"
		}
	}
	right := fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(covered)))
	if len(digits) == len(right) {
		var differ []int
		for k := range digits {
			if digits[k] != right[k] {
				differ = append(differ, k)
			}
		}
		if len(differ) == 1 {
			return begin + i + 1 + len(sum) - len(digits) + differ[0], otherByte
		}
	}
	// A checksum of 32 bits finds a single wrong byte.
	text, found := []byte(covered), []int(nil)
	for k := range text {
		was := text[k]
		for c := byte(' '); c <= '~'; c++ {
			text[k] = c
			if c != was && strings.EqualFold(fmt.Sprintf("%08x", crc32.ChecksumIEEE(text)), fmt.Sprintf("%08s", digits)) {
				found = append(found, k)
			}
		}
		text[k] = was
	}
	if len(found) == 1 {
		return begin + found[0], otherByte
	}
	return begin, "an answer whose checksum holds"
}

// otherKeySignature returns which answer does not belong to the key of the
// others, or -1.
func otherKeySignature(answers []signed) int {
	for i := range answers {
		rest := slices.Delete(slices.Clone(answers), i, i+1)
		for _, hash := range hashes {
			var common map[string]bool
			for _, a := range rest {
				keys := candidateKeys(hash.sum(a.message), a.r, a.s)
				for key := range common {
					if !keys[key] {
						delete(common, key)
					}
				}
				if common == nil {
					common = keys
				}
			}
			if len(common) > 0 {
				return i
			}
		}
	}
	return -1
}

// explainBadSignature reports which of the answers is not signed with the key
// of the others.
func (l *Line) explainBadSignature(answers []signed, values []answerText) {
	if l.explain == nil || len(values) == 0 {
		return
	}
	if i := otherKeySignature(answers); i >= 0 {
		l.explainError(values[i].at, values[i].text, 0, "signature over the nonce", "a signature with the key of the other signatures")
		return
	}
	l.explainError(values[0].at, values[0].text, 0, "signature over the nonce", "signatures with one key")
}

// Lines of a banner that tell a version or an address.
var bannerFact = regexp.MustCompile(`(?i)^[^a-z0-9]*(?:CHIP|MAC(?: addr(?:ess)?)?|PHY|NWP|ROM|HOST)\b[ \t]*[:=]`)
var bannerRule = regexp.MustCompile(`^[ \t=*#_~-]{4,}$`)

const (
	meaningBanner = "banner, skipped"
	meaningPrompt = "prompt"
	meaningEvent  = "event, skipped"
)

// startMeaning names what a ti-at board says before it is asked.
func startMeaning(line string) string {
	switch {
	case tiBuild.MatchString(line + "\n"):
		return "banner: fact build"
	case tiStarts.MatchString(line):
		return "banner: start of the board"
	case strings.Contains(fold(line), fold(tiPrompt)):
		return meaningPrompt
	case bannerFact.MatchString(line), bannerRule.MatchString(line):
		return meaningBanner
	case tiEvent.MatchString(line):
		return meaningEvent
	case tiErrorAt.MatchString(line):
		return "error: a probe is refused"
	case strings.Contains(line, TIAT{}.probe()) && strings.Trim(line, tiBlank) != (TIAT{}).probe() || strings.Contains(line, reportWord):
		return "echo of a probe"
	}
	return ""
}

// lowerASCII changes A-Z to lower case and no other byte, so that a place in
// the result is the same place in s. strings.ToLower changes the length of some
// letters.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// explainEcho reports the echo of a command, and a prompt before it.
func (l *Line) explainEcho(at int, line, command string) {
	if i := strings.Index(lowerASCII(line), command[:min(3, len(command))]); i > 0 {
		l.explainText(at, line[:i], meaningPrompt)
		at, line = at+i, line[i:]
	}
	l.explainText(at, line, "echo of the command")
}
