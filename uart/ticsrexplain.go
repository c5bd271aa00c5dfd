package uart

import (
	"encoding/hex"
	"regexp"
	"strings"
)

var (
	csrRefused = regexp.MustCompile(`(?i)error: invalid |netutilcmd error`)
	csrHeading = regexp.MustCompile(`(?i)creating csr`)
	csrDigits  = regexp.MustCompile(`(?i)[0-9a-f]{8,}`)
)

// explainStart reports the lines of a start, up to the serial number.
func (r *csrReading) explainStart(banner string, origin func(int) int, serial *serialLine, text string) {
	l, base := r.line, r.line.Consumed()
	if l.explain == nil {
		return
	}
	eachLine(banner, func(at int, line string) {
		meaning := ""
		switch m := csrChip.FindStringSubmatch(line); {
		case csrMAC.MatchString(line):
			meaning = "banner: fact mac"
		case csrBuild.MatchString(line):
			meaning = "banner: fact build"
		case m != nil && strings.EqualFold(m[1], "CHIP"):
			meaning = "banner: fact chip"
		case m != nil:
			meaning = "banner: fact nwp-version"
		case bannerFact.MatchString(line), bannerRule.MatchString(line):
			meaning = meaningBanner
		default:
			return
		}
		l.explainText(base+origin(at), line, meaning)
	})
	explainEvents(l, base, string(l.in))
	line := strings.TrimRight(text[serial.start:serial.end], "\r\n")
	if _, _, value := serialValue(line); value != "" {
		at := base + origin(serial.start)
		l.explainText(at, line, meaningSerial)
		l.explainDevice(answerText{at + len(line) - len(value), strings.TrimRight(value, " \t")}, serial.device, meaningSerial)
	}
}

func explainEvents(l *Line, base int, raw string) {
	for _, m := range csrEvent.FindAllStringIndex(raw, -1) {
		l.explainText(base+m[0], strings.TrimRight(raw[m[0]:m[1]], "\r\n"), meaningEvent)
	}
}

// wrongSerial reports the serial number line of a start that cannot be taken.
func (r *csrReading) wrongSerial(text string, origin func(int) int, lines []serialLine) {
	var good *serialLine
	for i, line := range lines {
		printed := strings.TrimRight(text[line.start:line.end], "\r\n")
		_, _, value := serialValue(printed)
		at := r.line.Consumed() + origin(line.end-1-len(value))
		switch {
		case !line.valid:
			from, want := serialStop(value)
			r.line.explainError(at, value, from, meaningSerial, want)
			return
		case good != nil && good.kind == line.kind && good.device != line.device:
			r.line.answer = answerText{at, value}
			r.line.explainOtherDevice(good.device, line.device)
			return
		case good == nil:
			good = &lines[i]
		}
	}
}

// explain reports what the board said up to a question or the request.
func (r *csrReading) explain(t csrTurn) {
	l := r.line
	if l.explain == nil {
		return
	}
	text, origin := withoutEvents(t.raw)
	explainEvents(l, t.at, t.raw)
	begin, end := requestPlace(text, t.request)
	last := len(strings.TrimRight(text, "\r\n \t"))
	eachLine(text, func(at int, line string) {
		meaning := ""
		form, other := "", false
		if r.enter {
			form, other = repeats(r.device, line)
		}
		switch asked := at < last && at+len(line) >= last; {
		case t.request != nil && at+len(line) > begin && at < end:
			meaning = "request (PEM)"
		case t.request != nil && at >= end && csrSubject(line) == csrCertificate, asked && t.subject == csrCertificate:
			meaning = "question for the certificate: not answered"
		case t.request == nil && asked && t.subject == "":
			meaning = "question of no known subject: answered with Enter"
		case t.request == nil && asked:
			meaning = "question: " + t.subject
		case form != "" && r.last == csrCommonName:
			meaning = "default: serial number, second reading"
		case form != "":
			meaning = "text with the serial number: second reading"
		case other:
			meaning = "text with digits of another serial number"
		case csrShown.MatchString(line):
			meaning = "default, skipped"
		case csrRefused.MatchString(line):
			meaning = "error: the answer is refused, the question comes again"
		case csrHeading.MatchString(line):
			meaning = "heading, skipped"
		default:
			return
		}
		from := t.at + origin(at)
		l.explainPiece(Piece{At: from, Len: t.at + origin(at+len(line)-1) + 1 - from, Meaning: meaning})
	})
}

// requestPlace is where a request begins and ends in text, marker lines and
// all.
func requestPlace(text string, request *pemRequest) (begin, end int) {
	if request == nil {
		return len(text), len(text)
	}
	body := strings.Index(text, request.base64)
	if body < 0 {
		return 0, len(text)
	}
	end = body + len(request.base64)
	if m := csrEnd.FindStringIndex(text[end:]); m != nil {
		end += m[1]
	}
	return strings.LastIndexAny(strings.TrimRight(text[:body], "\r\n"), "\r\n") + 1, end
}

// wrongRequest reports a request that was not accepted.
func (r *csrReading) wrongRequest(t csrTurn) {
	if r.line.explain == nil || t.request == nil {
		return
	}
	text, origin := withoutEvents(t.raw)
	at := max(0, strings.Index(text, t.request.base64))
	body := strings.TrimLeft(t.request.base64, "\r\n")
	at += len(t.request.base64) - len(body)
	body = strings.TrimRight(body, "\r\n")
	for i := range len(body) {
		if c := body[i] | 0x20; !(c >= 'a' && c <= 'z') && !strings.ContainsRune("0123456789+/= \t\r\n", rune(body[i])) {
			r.line.explainError(t.at+origin(at+i), body[i:i+1], 0, "request (PEM)", "a character of base64")
			return
		}
	}
	r.line.explainError(t.at+origin(at), body, 0, "request (PEM)", "a request of this board, over the nonce of this reading")
}

// wrongDefault reports the digits of another serial number after Enter at the
// common name.
func (r *csrReading) wrongDefault(t csrTurn) {
	if r.line.explain == nil {
		return
	}
	text, origin := withoutEvents(t.raw)
	done := false
	eachLine(text, func(at int, line string) {
		if _, other := repeats(r.device, line); !other || done {
			return
		}
		done = true
		from, want := 0, "the digits of the serial number, or none"
		if m := csrDigits.FindStringIndex(line); m != nil {
			digits, same := strings.ToLower(line[m[0]:m[1]]), 0
			for _, right := range []string{hex.EncodeToString(r.device[:]), joinedDigits(r.device)} {
				n := 0
				for n < len(right) && n < len(digits) && right[n] == digits[n] {
					n++
				}
				same = max(same, n)
			}
			from, want = m[0]+same, "the digits of the serial number that was read at the start"
		}
		r.line.explainError(t.at+origin(at), line, from, "default: serial number", want)
	})
}

// wrongEnd reports the words with which the firmware has given up.
func (r *csrReading) wrongEnd(text string, origin func(int) int) {
	for _, words := range []struct {
		pattern guarded
		meaning string
	}{{csrDead, "the network processor stopped"}, {csrAbort, "the firmware gave up"}} {
		if m := words.pattern.FindStringIndex(text); m != nil {
			begin := strings.LastIndexAny(text[:m[0]], "\r\n") + 1
			r.line.explainError(r.line.Consumed()+origin(begin), text[begin:m[1]], 0, words.meaning, "a question or the request")
			return
		}
	}
}

// lateMeaning names what a board says that has printed its serial number
// already, or will not print it.
func lateMeaning(line string) string {
	subject, _, asked := csrPrompt(line, true)
	switch {
	case csrEvent.MatchString(line + "\n"):
		return meaningEvent
	case gaveUp(line) != nil:
		return "the firmware gave up"
	case strings.Trim(line, csrProbe+tiBlank) == "":
		return "echo"
	case asked >= probably && subject != "":
		return "question: " + subject + ": the serial number was printed before"
	case csrLate.MatchString(line):
		return "text of a dialogue: the serial number was printed before"
	}
	return ""
}

// wrongMarker reports a request that does not begin, or does not end.
func (r *csrReading) wrongMarker(text string, origin func(int) int) {
	if r.line.explain == nil || r.asked[csrUnit] == 0 {
		return
	}
	begun, done := false, false
	eachLine(text, func(at int, line string) {
		want := "the BEGIN line of a request"
		switch {
		case done || !strings.Contains(line, "--"):
			return
		case csrBegin.MatchString(line) && csrKind.MatchString(line):
			begun = true
			return
		case begun:
			want = "the END line of the request"
		}
		done = true
		r.line.explainError(r.line.Consumed()+origin(at), line, 0, "other text", want)
	})
}
