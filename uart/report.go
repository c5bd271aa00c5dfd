package uart

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// ReportLine is the dialect "report", which this project defines for firmware
// that a product team writes itself. The reader sends one command with a fresh
// nonce; the board answers with one line that holds the serial number, the key
// and a signature over nonce and serial number. README.md is the specification.
type ReportLine struct{}

// Name implements Dialect.
func (ReportLine) Name() string { return "report" }

const (
	reportWord   = "secretfree"
	reportPing   = ";secretfree 1;"       // the first ; ends whatever was typed before
	reportAnswer = 2 * time.Second        // to a ping
	reportLook   = 600 * time.Millisecond // more than an answer without a signature may take
	reportNonce  = 21
	reportLines  = 256 // of a log that goes on, in one answer
)

var (
	// What begins like an answer must be one, to its end. Case and the number
	// of blanks carry no meaning; the checksum is over the line as it came.
	reportLine  = regexp.MustCompile(`(?i)^secretfree[ \t]+([0-9]{1,4})[ \t]+(.*)$`)
	reportReady = regexp.MustCompile(`(?i)^ready[ \t]+([0-9a-f]{32})$`)
	reportFull  = regexp.MustCompile(`(?i)^([0-9a-f]{32})[ \t]+([0-9a-f]{128,182})[ \t]+([0-9a-f]{16,144})$`)
	reportHere  = guard(`(?i)(?:^|[\r\n])[ \t]*secretfree[ \t]+[0-9]{1,4}[ \t]+[0-9a-z]`, "ecretfree")
	reportSum   = regexp.MustCompile(`^(?:0[xX])?([0-9A-Fa-f]{1,8})$`)
)

// errRefused: the firmware answered "error".
var errRefused = fmt.Errorf("%w: its firmware answers error: it cannot sign with its key", ErrNoProof)

// Detect implements Dialect. Pings are answered without a signature.
func (d ReportLine) Detect(ctx context.Context, l *Line) error {
	looks := 0
	return search(ctx, l, []string{d.Name()}, func(ctx context.Context) error {
		if looks++; looks%wakeEvery == 0 { // what knows no ; answers only to a line end
			if err := l.sendWakeLine(ctx, reportPing+"\r"); err != nil {
				return err
			}
		}
		_, err := d.ping(ctx, l, roundToTick(reportLook))
		if err == nil && (looks > 1 || len(bytes.Trim(l.in, "\r\n")) > 0) {
			// Pings that came while it started are still being answered, and it
			// may not listen meanwhile.
			_, err = l.Discard(ctx, tiSilence, reportAnswer)
		}
		return err // without more on its way it was waiting
	})
}

// errNothing: not a byte came.
var errNothing = fmt.Errorf("%w: nothing came", ErrTimeout)

// ping asks for the serial number of the connected board. It waits for limit in
// every case, so that it can be repeated at once.
func (d ReportLine) ping(ctx context.Context, l *Line, limit time.Duration) (device [16]byte, err error) {
	if err := l.send(ctx, reportPing); err != nil {
		return device, err
	}
	heard, err := l.awaitBytes(ctx, limit)
	if err != nil {
		return device, err
	}
	if !heard {
		return device, errNothing
	}
	text, err := d.answer(ctx, l, limit)
	if err != nil {
		return device, err
	}
	m := reportReady.FindStringSubmatch(text)
	if m == nil {
		return device, fmt.Errorf("%w: not of the specified form", ErrGarbled)
	}
	_, err = hex.Decode(device[:], []byte(m[1]))
	return device, err
}

// answer waits for a line that is an answer, and returns the text between
// version and checksum. It skips other lines, such as the echo or a log.
func (ReportLine) answer(ctx context.Context, l *Line, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	for range reportLines {
		line, err := l.readLine(ctx)
		if err != nil {
			return "", err
		}
		text, err := openAnswer(line)
		l.answer = answerText{l.lineAt + max(0, strings.Index(line, text)), text}
		ReportLine{}.explainAnswer(l, line, text, err)
		if !errors.Is(err, errNotMine) {
			return text, err
		}
	}
	return "", fmt.Errorf("%w: %d lines and no answer", ErrGarbled, reportLines)
}

var errNotMine = errors.New("not an answer")

const meaningDamaged = "damaged answer"

func answerMeaning(text string, err error) string {
	switch {
	case errors.Is(err, errNotMine):
		return "not an answer, skipped"
	case errors.Is(err, errRefused):
		return "answer: the board refuses the command"
	case err != nil:
		return meaningDamaged
	case reportReady.MatchString(text):
		return "answer: serial number"
	case reportFull.MatchString(text):
		return "answer: serial number, key and signature"
	}
	return "answer of another form"
}

// openAnswer returns the text between version and checksum of an answer.
func openAnswer(line string) (string, error) {
	line = strings.Trim(line, tiBlank)
	m := reportLine.FindStringSubmatch(line)
	if m == nil {
		return "", errNotMine
	}
	if m[1] != "1" {
		return "", fmt.Errorf("%w: its firmware speaks version %s of the dialect report, this program 1", ErrFirmware, m[1])
	}
	// An answer has text before its checksum. Without any the line is the echo
	// of a command.
	i := strings.LastIndexAny(m[2], tiBlank)
	if sum := reportSum.FindStringSubmatch(m[2][i+1:]); i < 0 && sum == nil {
		return "", errNotMine
	} else if i < 0 || sum == nil || !sumHolds(sum[1], line[:len(line)-len(m[2])+i]) {
		return "", fmt.Errorf("%w: an answer whose checksum is wrong", ErrGarbled)
	}
	text := strings.TrimRight(m[2][:i], tiBlank)
	if strings.EqualFold(text, "error") {
		return "", errRefused
	}
	return text, nil
}

// sumHolds reports whether a checksum is that of a text, or of the text without
// the blanks at its end.
func sumHolds(digits, text string) bool {
	sum, err := strconv.ParseUint(digits, 16, 32)
	return err == nil && (uint32(sum) == crc32.ChecksumIEEE([]byte(text)) || uint32(sum) == crc32.ChecksumIEEE([]byte(strings.TrimRight(text, tiBlank))))
}

// For auto.

func (ReportLine) probe() string { return reportPing }

func (ReportLine) starts(string) []int { return nil }

func (ReportLine) answers(text string) bool { return reportHere.MatchString(text) }

func (ReportLine) recognises(text string) bool { return reportHere.MatchString(text) }

func (d ReportLine) waitGone(ctx context.Context, l *Line, w presenceWatch) error {
	return d.watch(ctx, l, w)
}

func (d ReportLine) settle(ctx context.Context, l *Line, first bool) error {
	if first && d.onePing(l) {
		text, err := d.answer(ctx, l, reportLook)
		switch {
		case err == nil && reportReady.MatchString(text) && len(bytes.Trim(l.in, "\r\n")) == 0:
			_, err := d.ping(ctx, l, reportAnswer) // it was waiting, as in Detect; only the silence is spared it
			return err
		case err != nil && !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrGarbled) && !errors.Is(err, errRefused), ctx.Err() != nil:
			return err
		}
	}
	if _, err := l.Discard(ctx, tiSilence, reportAnswer); err != nil {
		return err
	}
	_, err := d.ping(ctx, l, reportAnswer)
	return err
}

// onePing reports whether exactly one ping was sent since the last Mark.
func (ReportLine) onePing(l *Line) bool {
	pings := 0
	for _, c := range l.recorder.chunks {
		if c.Direction == Sent {
			pings += bytes.Count(c.Bytes, []byte(reportPing))
		}
	}
	return pings == 1
}

// Read implements Dialect.
func (d ReportLine) Read(ctx context.Context, l *Line) (Report, error) {
	report, err := d.read(ctx, l)
	if err == nil || !(errors.Is(err, ErrTimeout) || errors.Is(err, ErrGarbled) || errors.Is(err, errRefused)) || ctx.Err() != nil {
		return report, err
	}
	// Once more; nothing of the first try is kept. A nonce that was cut on its
	// way is refused as well.
	if _, err := l.Discard(ctx, tiSilence, tiFlush); err != nil {
		return Report{}, err
	}
	report, again := d.read(ctx, l)
	if !errors.Is(again, errRefused) || !errors.Is(err, ErrTimeout) || ctx.Err() != nil {
		return report, again
	}
	// The first request may have lost its end. Then the second one only ended
	// it, and was itself lost while the board answered that. A ; alone ends
	// whatever is left.
	if err := l.send(ctx, ";"); err != nil {
		return Report{}, err
	}
	if _, err := l.Discard(ctx, tiSilence, tiFlush); err != nil {
		return Report{}, err
	}
	return d.read(ctx, l)
}

func (d ReportLine) read(ctx context.Context, l *Line) (Report, error) {
	l.readNone()
	nonce := l.drawNonce(reportNonce)
	if err := l.send(ctx, ";"+reportWord+" 1 "+nonce+";"); err != nil {
		return Report{}, err
	}
	text, err := d.answer(ctx, l, tiSign)
	for err == nil && reportReady.MatchString(text) { // of a ping, late
		text, err = d.answer(ctx, l, tiSign)
	}
	if err != nil {
		return Report{}, fmt.Errorf("asking for the report: %w", err)
	}
	report, err := parseReport(text, nonce)
	if err != nil {
		l.explainError(l.answer.at, text, 0, "report", "a serial number, its key, and a signature with it over the nonce")
		return Report{}, err
	}
	// Boards get swapped: the same answer once more.
	again, err := d.ping(ctx, l, reportAnswer)
	if err != nil {
		return Report{}, fmt.Errorf("asking for the serial number again: %w", err)
	}
	if again != report.Device {
		l.explainOtherDevice(report.Device, again)
		return Report{}, fmt.Errorf("%w: the serial number was another one at the end of the reading", ErrGarbled)
	}
	l.device = &report.Device
	return report, nil
}

// parseReport parses an answer and verifies its signature, which covers the
// nonce and the serial number.
func parseReport(text, nonce string) (Report, error) {
	m := reportFull.FindStringSubmatch(text)
	if m == nil {
		return Report{}, fmt.Errorf("%w: not of the specified form", ErrGarbled)
	}
	var parts [3][]byte
	for i := range parts {
		b, err := hex.DecodeString(m[i+1])
		if err != nil {
			return Report{}, fmt.Errorf("%w: a report with half a byte", ErrGarbled)
		}
		parts[i] = b
	}
	if err := checkDevice([16]byte(parts[0])); err != nil {
		return Report{}, err
	}
	spki, form, err := parsePoint(parts[1])
	if err != nil {
		return Report{}, fmt.Errorf("%w: %v", ErrGarbled, err)
	}
	r, s, encoding, err := parseSignature(parts[2])
	if err != nil {
		return Report{}, fmt.Errorf("%w: a signature that is %v", ErrGarbled, err)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	if err != nil {
		return Report{}, fmt.Errorf("%w: a signature out of range", ErrGarbled)
	}
	public, err := x509.ParsePKIXPublicKey(spki)
	key, ok := public.(*ecdsa.PublicKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return Report{}, fmt.Errorf("%w: not a P-256 key", ErrGarbled)
	}
	message := fmt.Appendf(nil, "secretfree 1 %s %x", nonce, parts[0])
	for _, hash := range hashes {
		if ecdsa.VerifyASN1(key, hash.sum(message), der) {
			return Report{
				Device: [16]byte(parts[0]), SPKI: spki,
				Facts: map[string]string{"dialect": "report", "version": "1", "hash": hash.name, "signature": encoding, "key-form": form},
				Proof: &Proof{Method: "report", Hash: hash.name, Nonces: [][]byte{[]byte(nonce)}, Signatures: [][]byte{der}},
			}, nil
		}
	}
	return Report{}, fmt.Errorf("%w: the signature in the report does not hold", ErrNoProof)
}

// Gone implements Dialect. A board with another serial number is another board.
func (d ReportLine) Gone(ctx context.Context, l *Line) error { return d.watch(ctx, l, presenceWatch{}) }

// watch is watch for firmware that need not echo. Each look asks for the serial
// number: it must be the one that was read, or, of a board that could not be
// read, the first that is told. A board that was read and that says something
// else watchAsks times in a row is another one as well.
func (d ReportLine) watch(ctx context.Context, l *Line, w presenceWatch) error {
	if l.unknown {
		w.probes = append(w.probes, reportPing)
		if w.isBoard == nil {
			w.isBoard = reportHere.MatchString
		}
		return watch(ctx, l, w)
	}
	first, unanswered := l.device, 0
	for silence := time.Duration(0); silence < watchGone && unanswered < watchAsks; {
		if started, err := w.started(l); started || err != nil {
			return err
		}
		l.keepLast(0)
		l.Mark()
		if err := l.send(ctx, reportPing); err != nil {
			return err
		}
		heard, err := l.awaitBytes(ctx, tiPing)
		if err != nil {
			return err
		}
		if !heard {
			silence += tiPing
			continue
		}
		silence = 0
		if l.device != nil && !l.leaked { // after a leak no answer would be seen
			unanswered++
		}
		said, err := l.gather(ctx, tiPing, tiFlush+tiPing)
		if err != nil {
			return err
		}
		if started, err := w.started(l); started || err != nil {
			return err
		}
		for line := range strings.FieldsFuncSeq(said, func(r rune) bool { return r == '\r' || r == '\n' }) {
			text, err := openAnswer(line)
			m := reportReady.FindStringSubmatch(text)
			if err != nil || m == nil {
				continue
			}
			var device [16]byte
			if _, err := hex.Decode(device[:], []byte(m[1])); err != nil {
				continue
			}
			if first != nil && device != *first {
				l.Forget()
				return nil
			}
			first, unanswered = &device, 0
		}
	}
	l.Forget()
	return nil
}
