package uart_test

import (
	"encoding/hex"
	"strings"
	"time"

	"secretfree/fixtures"
)

// recording is a dialogue that the repository keeps, with the board that made
// it.
type recording struct {
	name, dialect, expect, note string
	typed                       string // at the board while it starts, by somebody else
	fault                       func(b *fixtures.Board)
}

func hexID(id [16]byte) string { return hex.EncodeToString(id[:]) }

func recordings() []recording {
	type board = fixtures.Board
	print := func(command, text string) func(*board) {
		return func(b *board) { b.Print = map[string]string{command: text} }
	}
	serial := func(n int) string { return "+get:" + strings.TrimSuffix(strings.Repeat("0x1f,", n), ",") }
	forms := func(f fixtures.Forms) func(*board) { return func(b *board) { b.Forms = f } }
	optional := []string{"version", "mac_addr", "public_key"}
	one, two := fixtures.NewDevice(), fixtures.NewDevice()
	var ones [16]byte
	for i := range ones {
		ones[i] = 0xff
	}
	const (
		passed, garbled, noProof, timeout = "passed", "failed garbled", "failed no-proof", "failed timeout"
		leak, unplugged, reset            = "failed private-key-leak", "failed unplugged", "failed needs-reset"
		at, csr, report                   = "ti-at", "ti-csr", "report"
	)
	return []recording{
		{"ti-at-good", at, passed, "build 1.1.2 from its start; hex without padding, LF CR, echo, one prompt", "", func(b *board) {}},
		{"ti-at-met-late", at, passed, "attached after the banner, which is printed once", "", func(b *board) { b.Quiet, b.Boot = true, 0 }},
		{"ti-at-event-in-echo", at, passed, "an event cuts every echo", "", func(b *board) { b.Event, b.EventAt = event, 8 }},
		{"ti-at-event-before-reply", at, passed, "an event before every reply", "", func(b *board) { b.Event, b.EventIn = event, fixtures.InAnswer }},
		{"ti-at-event-quotes-a-reply", at, passed, "a network's name looks like a reply", "", func(b *board) {
			b.Event, b.EventAt = "+eventwlan:connect,+get:0x1,0x2,0xa:0x0:0x1:0x2:0x3:0x4", 5
		}},
		{"ti-at-111", at, passed, "build 1.1.1: a prompt before every command", "", func(b *board) { b.Build = fixtures.Build111 }},
		{"ti-at-111-met-late", at, passed, "build 1.1.1 after its banner", "", func(b *board) { b.Build, b.Quiet, b.Boot = fixtures.Build111, true, 0 }},
		{"ti-at-111-reply-in-prompt", at, passed, "build 1.1.1: sign_msg answers inside the prompt", "", func(b *board) {
			b.Build, b.PromptCut = fixtures.Build111, 13
		}},
		{"ti-at-111-refusal-in-prompt", at, noProof, "build 1.1.1: sign_msg is refused inside the prompt", "", func(b *board) {
			b.Build, b.PromptCut, b.RefuseKey0 = fixtures.Build111, 13, -12290
		}},
		{"ti-at-111-event-in-prompt", at, passed, "build 1.1.1: an event cuts every prompt", "", func(b *board) {
			b.Build, b.Event, b.EventIn, b.EventAt = fixtures.Build111, event, fixtures.InPrompt, 7
		}},
		{"ti-at-text-mode", at, passed, "line ends of LF CR CR", "", func(b *board) { b.Build = fixtures.BuildTextMode }},
		{"ti-at-text-mode-echo-in-event", at, passed, "the echo lands inside an event", "", func(b *board) {
			b.Build, b.Event, b.EventAt = fixtures.BuildTextMode, event, 4
		}},
		{"ti-at-late-ok", at, passed, "the last byte of every OK comes later", "", func(b *board) { b.LateEnd = 6 * time.Millisecond }},
		{"ti-at-raw-signatures", at, passed, "signatures of 64 raw bytes", "", func(b *board) { b.RawSignatures = true }},
		{"ti-at-sha256", at, passed, "a firmware that signs with SHA-256", "", func(b *board) { b.Hash = "sha256" }},
		{"ti-at-no-key-0", at, noProof, "sign_msg refuses key 0", "", func(b *board) { b.RefuseKey0 = -12290 }},
		{"ti-at-no-secure-parts", at, noProof, "a CC3220R has no keys", "", func(b *board) { b.RefuseKey0 = -12294 }},
		{"ti-at-key-1", at, passed, "public_key tells key 1, which is not the identity", "", func(b *board) { b.Key1 = fixtures.NewKey() }},
		{"ti-at-signs-with-key-1", at, noProof, "key 0 was asked for, key 1 signed: perhaps a temporary one", "", func(b *board) {
			b.Key1, b.SignWithKey1 = fixtures.NewKey(), true
		}},
		{"ti-at-binary-key", at, passed, "key 1 in binary, with 00, LF, CR and a comma in it; only a fact", "", print("public_key", "+netutilget:0,65,\x04\x00\n\r,\x81\n\rOK\n\r")},
		{"ti-at-key-length", at, passed, "the length of the key instead of the length of its text; only a fact", "", print("public_key", "+netutilget:1,65,"+strings.Repeat("A", 87)+"=\n\rOK\n\r")},
		{"ti-at-wrong-signatures", at, noProof, "signatures over something else", "", func(b *board) { b.WrongSignatures = true }},
		{"ti-at-reset-in-reply", at, passed, "the banner comes inside the serial number; read again", "", func(b *board) { b.ResetIn, b.ResetAt = "udid", 23 }},
		{"ti-at-reset-in-signature", at, passed, "the banner comes inside a signature; read again", "", func(b *board) { b.ResetIn, b.ResetAt = "sign_msg", 40 }},
		{"ti-at-swapped-once", at, passed, "another board between serial number and key; the second is read whole", "", func(b *board) { b.Serials = [][16]byte{one, b.Device} }},
		{"ti-at-swapped-twice", at, garbled, "boards swapped in both tries", "", func(b *board) { b.Serials = [][16]byte{one, two, one, two} }},
		{"ti-at-garbled", at, garbled, "typing landed inside the reply", "", print("udid", "+get:0x4d,0x1f,0x0,0xa,0x8re,0x27s\n\rOK\n\r")},
		{"ti-at-serial-of-15", at, garbled, "a byte is missing", "", print("udid", serial(15)+"\n\rOK\n\r")},
		{"ti-at-serial-joined", at, garbled, "digits without separators cannot be told apart", "", print("udid", "+get:4d1f0a5e\n\rOK\n\r")},
		{"ti-at-serial-of-ff", at, garbled, "an unprogrammed memory", "", func(b *board) { b.Serials = [][16]byte{ones} }},
		{"ti-at-serial-cut", at, timeout, "0x1 of 0x1f: only the missing OK shows it", "", print("udid", serial(15)+",0x1")},
		{"ti-at-guide-case", at, passed, "+Get: as the guide has it", "", func(b *board) { b.Forms.Names = fixtures.NamesTitle }},
		{"ti-at-upper-case", at, passed, "serial number and facts in upper-case hex, 0X", "", forms(fixtures.Forms{Hex: fixtures.HexUpper, Names: fixtures.NamesUpper})},
		{"ti-at-padded", at, passed, "serial number and MAC address in padded hex", "", forms(fixtures.Forms{Hex: fixtures.HexUpperPadded})},
		{"ti-at-spaces", at, passed, "blanks after +get: and around every comma, also of a signature", "", forms(fixtures.Forms{Spaces: true})},
		{"ti-at-version-forms", at, passed, "six fields, upper-case hex, a hex ROM field, blanks after commas", "", forms(fixtures.Forms{
			Version: "0X3100001A, 3.1.0.5, 3.1.0.19, 4.4.1.3, 0X2222, 3.0.1.71"})},
		{"ti-at-version-of-four", at, passed, "four fields", "", forms(fixtures.Forms{Version: "0x31000019,3.1.0.5,3.1.0.19,4.4.1.3"})},
		{"ti-at-version-in-words", at, passed, "a version in no known form", "", forms(fixtures.Forms{Version: "release 7 (\xe9t\xe9)"})},
		{"ti-at-mac-padded", at, passed, "a padded MAC address in upper case", "", forms(fixtures.Forms{MAC: "08:00:28:5B:55:E0"})},
		{"ti-at-mac-dashes", at, passed, "a MAC address with dashes", "", forms(fixtures.Forms{MAC: "08-00-28-5b-55-e0"})},
		{"ti-at-mac-joined", at, passed, "a MAC address without separators", "", forms(fixtures.Forms{MAC: "0800285B55E0"})},
		{"ti-at-refused-bare", at, passed, "facts and key 1 are refused with ERROR alone", "", forms(fixtures.Forms{Refuse: optional, Refusal: "ERROR"})},
		{"ti-at-refused-lower", at, passed, "facts and key 1 are refused in lower case, without a code", "", forms(fixtures.Forms{Refuse: optional, Refusal: "error: no such thing"})},
		{"ti-at-refused-in-words", at, passed, "facts, key 1 and at+test are refused in other words", "", forms(fixtures.Forms{
			Refuse: append([]string{"at+test"}, optional...), Refusal: "Befehl unbekannt"})},
		{"ti-at-111-refused-in-words", at, passed, "build 1.1.1: facts and key 1 are refused in other words, and the prompt is another one", "", func(b *board) {
			b.Build, b.Forms = fixtures.Build111, fixtures.Forms{Refuse: optional, Refusal: "+FAIL", Prompt: "AT> "}
		}},
		{"ti-at-sign-refused-bare", at, noProof, "sign_msg is refused with ERROR alone", "", forms(fixtures.Forms{Refuse: []string{"sign_msg"}, Refusal: "ERROR"})},
		{"ti-at-sign-refused-in-words", at, noProof, "sign_msg is refused in other words", "", forms(fixtures.Forms{Refuse: []string{"sign_msg"}, Refusal: "geht nicht"})},
		{"ti-at-serial-refused-in-words", at, garbled, "the serial number is refused in other words", "", forms(fixtures.Forms{Refuse: []string{"udid"}, Refusal: "geht nicht"})},
		{"ti-at-ok-trailing-space", at, passed, "OK with a blank and a tab after it", "", forms(fixtures.Forms{OK: "OK \t"})},
		{"ti-at-ok-lower", at, passed, "ok in lower case", "", forms(fixtures.Forms{OK: "ok"})},
		{"ti-at-cr-lf", at, passed, "lines end in CR LF", "", forms(fixtures.Forms{LineEnd: "\r\n"})},
		{"ti-at-serial-space-in-number", at, garbled, "a blank inside a number", "", print("udid", serial(15)+",0x1 f\n\rOK\n\r")},
		{"ti-at-muted", at, timeout, "no answer to the serial number", "", func(b *board) { b.Mute = "udid" }},
		{"ti-at-network-processor-dead", at, garbled, "a fatal event: it needs a reset", "", print("udid", "+eventfatalerror:device_abort,5,4660\n\r")},
		{"ti-at-modemmanager", at, passed, "a modem manager has typed AT, which is an error", "ATE1 E0\rAT\r", func(b *board) {}},
		{"ti-at-type-ahead", at, passed, "what was typed ahead is lost past 16 bytes, and spliced", "at+test\rat+get=iot,udid\rat+test\r", func(b *board) {}},
		{"ti-at-half-a-command", at, passed, "somebody left half a command", "at+get=io", func(b *board) { b.Quiet, b.Boot = true, 0 }},
		{"ti-at-private-key", at, leak, "it prints a private key", "", func(b *board) { b.Leak = "version" }},
		{"ti-at-private-key-wrapped", at, leak, "the words are cut by line ends", "", print("version", "-----BEGIN EC PRIVATE\n\rKEY-----\n\rAAAA\n\r")},
		{"ti-at-unplugged", at, unplugged, "unplugged before it was done", "", func(b *board) { b.CutAfter = 1150 }},

		{"ti-csr-good", csr, passed, "banner, padded serial number, questions without line ends, PEM with CRs", "", func(b *board) {}},
		{"ti-csr-sha256", csr, passed, "a request signed with SHA-256", "", func(b *board) { b.Hash = "sha256" }},
		{"ti-csr-new-label", csr, passed, "NEW CERTIFICATE REQUEST", "", func(b *board) { b.Label = "NEW CERTIFICATE REQUEST" }},
		{"ti-csr-event-in-prompt", csr, passed, "an event cuts every question", "", func(b *board) { b.Event, b.EventIn, b.EventAt = csrEvent, fixtures.InPrompt, 19 }},
		{"ti-csr-event-in-echo", csr, passed, "an event cuts the echo of every answer", "", func(b *board) { b.Event, b.EventAt = csrEvent, 2 }},
		{"ti-csr-event-in-pem", csr, passed, "an event cuts the default for the common name and every row of the PEM", "", func(b *board) { b.Event, b.EventIn, b.EventAt = csrEvent, fixtures.InAnswer, 30 }},
		{"ti-csr-typed-while-starting", csr, passed, "an AT probe is the first answer, and asked again", "at+test\r", func(b *board) {}},
		{"ti-csr-met-late", csr, reset, "nobody heard the serial number", "", func(b *board) { b.Quiet, b.Boot = true, 0 }},
		{"ti-csr-event-in-default", csr, passed, "an event cuts the default for the common name at its end", "", func(b *board) { b.Event, b.EventIn, b.EventAt = csrEvent, fixtures.InAnswer, 62 }},
		{"ti-csr-enter-aborts", csr, garbled, "somebody pressed Enter at the first question", "\r", func(b *board) {}},
		{"ti-csr-reset", csr, passed, "started anew at a question; read again", "", func(b *board) { b.ResetIn, b.ResetAt = "surname", 8 }},
		{"ti-csr-content-altered", csr, noProof, "the signature is over something else", "", func(b *board) { b.WrongSignatures = true }},
		{"ti-csr-old-request", csr, noProof, "the request of an earlier reading", "", func(b *board) { b.Unit = "N0nce0fAnotherReading" }},
		{"ti-csr-name-cut-short", csr, passed, "the common name ends after the first byte of one digit, as TI's code makes it", "", func(b *board) { b.Device[1] = 0x0b }},
		{"ti-csr-name-joined", csr, passed, "the common name is all digits, not padded", "", func(b *board) { b.DefaultName = fixtures.NameJoined }},
		{"ti-csr-name-padded", csr, passed, "the common name that corrected firmware makes", "", func(b *board) { b.DefaultName = fixtures.NamePadded }},
		{"ti-csr-name-whole", csr, passed, "a serial number without a byte of one digit", "", func(b *board) { copy(b.Device[:], "0123456789abcdef") }},
		{"ti-csr-name-of-another", csr, garbled, "a request that names another board", "", func(b *board) { b.CommonName = strings.Repeat("0a", 16) }},
		{"ti-csr-other-serial", csr, garbled, "the default for the common name tells another serial number", "", func(b *board) { b.Serials = [][16]byte{one, two} }},
		{"ti-csr-no-key-0", csr, noProof, "no request can be made", "", func(b *board) { b.RefuseKey0 = -12290 }},
		{"ti-csr-muted", csr, timeout, "no question follows", "", func(b *board) { b.Mute = "state" }},
		{"ti-csr-private-key", csr, leak, "it prints a private key instead of the request", "", func(b *board) { b.Leak = "request" }},
		{"ti-csr-stock-defaults", csr, passed, "TI's stock words, a serial number with bytes of one digit", "", func(b *board) { b.Device[1] = 0x0b }},
		{"ti-csr-reworded", csr, passed, "other words for the defaults", "", func(b *board) { b.Build = fixtures.BuildReworded }},
		{"ti-csr-capitals", csr, passed, "capitals in the questions, the serial number and its second reading", "", worded(csrCapitals)},
		{"ti-csr-asks-as-openssl", csr, passed, "questions as openssl req asks them, line ends of LF", "", worded(csrOpenSSL)},
		{"ti-csr-shows-no-defaults", csr, passed, "the common name in the request is the second reading", "", func(b *board) {
			worded(csrShowsNothing)(b)
			b.DefaultName = fixtures.NamePadded
		}},
		{"ti-csr-few-questions", csr, passed, "two questions; the serial number is read once", "", worded(csrFew)},
		{"ti-csr-more-questions", csr, passed, "questions that no other build has, in another order", "", worded(csrMore)},
		{"ti-csr-line-ends", csr, passed, "line ends of CR CR LF", "", worded(csrLineEnds)},
		{"ti-csr-serial-0x", csr, passed, "a serial number with 0x and commas, other words before it", "", worded(csrColons)},
		{"ti-csr-markers", csr, passed, "four dashes and other rows in the PEM", "", worded(csrMarkers)},
		{"ti-csr-constant-name", csr, passed, "a common name that is no serial number", "", worded(csrConstant)},
		{"ti-csr-event-in-capitals", csr, passed, "an event cuts every question in capitals", "", func(b *board) {
			worded(csrCapitals)(b)
			b.Event, b.EventIn, b.EventAt = csrEvent, fixtures.InPrompt, 12
		}},
		{"ti-csr-default-of-another", csr, garbled, "the digits of another serial number, in other words", "", worded(csrOfAnother)},
		{"ti-csr-no-unit", csr, noProof, "no question for the organization unit, so nothing in the request is fresh", "", worded(csrNoUnit)},
		{"ti-csr-enter-aborts-spoken", csr, garbled, "somebody pressed Enter at the first question; it gives up in other words", "\r", worded(csrSpoken)},
		{"ti-csr-network-processor-dead", csr, garbled, "the network processor stops at a question: it needs a reset", "", print("surname", csrNWPDead)},
		{"ti-csr-paste-without-request", csr, garbled, "it asks for the certificate, and printed no request", "", print("request", "\r\nPaste the certificate:")},
		{"ti-csr-serial-of-15", csr, garbled, "a serial number of 15 bytes", "", func(b *board) {
			worded(`{"serial": "Unique device ID = 4d 1f 00 0a 8e 27 b3 c0 5a 9e 61 f2 d4 77 88 \r\n\n"}`)(b)
		}},
		{"ti-csr-serial-joined", csr, garbled, "a serial number without padding, run together", "", worded(`{"serial": "Unique device ID = {joined}\r\n\n"}`)},
		{"ti-csr-unplugged", csr, unplugged, "unplugged before it was done", "", func(b *board) { b.CutAfter = 1000 }},

		{"report-good", report, passed, "one line, without echo", "", func(b *board) {}},
		{"report-sha256-raw", report, passed, "SHA-256 and 64 raw bytes", "", func(b *board) { b.Hash, b.RawSignatures = "sha256", true }},
		{"report-log-around", report, passed, "a log goes on", "", func(b *board) { b.Event = "[123] wlan: secretfree 1 is no answer" }},
		{"report-reset", report, passed, "started anew inside its line; asked again", "", func(b *board) { b.ResetIn, b.ResetAt = "sign", 90 }},
		{"report-checksum", report, garbled, "a checksum that is wrong", "", print("sign", "\r\nsecretfree 1 00 11 22 01234567\r\n")},
		{"report-refused", report, noProof, "its firmware cannot sign", "", func(b *board) { b.RefuseKey0 = -12290 }},
		{"report-wrong-signature", report, noProof, "a signature over something else", "", func(b *board) { b.WrongSignatures = true }},
		{"report-version-2", report, garbled, "a version that this program does not know", "", print("sign", sumUp("secretfree 2 00"))},
		{"report-muted", report, timeout, "no answer", "", func(b *board) { b.Mute = "sign" }},
		{"report-private-key", report, leak, "it prints a private key", "", func(b *board) { b.Leak = "sign" }},

		{"auto-ti-at", "auto", passed, "finds AT commands", "", func(b *board) {}},
		{"auto-ti-at-met-late", "auto/ti-csr", passed, "finds AT commands after their banner", "", func(b *board) { b.Dialect, b.Quiet, b.Boot = at, true, 0 }},
		{"auto-ti-csr", "auto", passed, "finds the CSR example", "", func(b *board) { b.Dialect = csr }},
		{"auto-ti-csr-after-ti-at", "auto/ti-at", passed, "an AT probe without Enter is typed while it starts", "", func(b *board) { b.Dialect = csr }},
		{"auto-ti-csr-met-late", "auto", reset, "an AT probe is the answer to its first question, and harms nothing", "", func(b *board) {
			b.Dialect, b.Quiet, b.Boot = csr, true, 0
		}},
		{"auto-report", "auto", passed, "finds the dialect report", "", func(b *board) { b.Dialect = report }},
		{"auto-report-after-ti-csr", "auto/ti-csr", passed, "finds the dialect report", "", func(b *board) { b.Dialect, b.Quiet, b.Boot = report, true, 0 }},
		{"auto-private-key", "auto", leak, "it prints a private key at once", "", func(b *board) { b.Dialect, b.Leak = csr, "validity" }},
	}
}
