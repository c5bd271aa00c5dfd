package uart

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"secretfree/station/board/certreq"
)

// TICSR is the dialect of TI's "CSR - Certificate Signing Request" example. After a reset it prints its serial
// number, asks for the parts of a subject, and prints a request made with key 0. The organizational unit carries a
// fresh nonce, so the request's signature proves possession.
//
// The serial number is printed once for each reset: who comes later gets ErrNeedsReset. It is read a second time from
// the default for the common name, which the firmware makes of it: an Enter at that question has it printed. It is the
// digits run together without padding, from which no serial number follows, but another digit anywhere makes other
// text. A part of it is in the request, so it is signed. No certificate is pasted: the board is left at the question for a
// file name.
type TICSR struct{}

// Name implements Dialect.
func (TICSR) Name() string { return "ti-csr" }

const (
	// csrProbe is a letter and no line end: it makes a board that waits for an answer echo. An empty answer to
	// the first question would end the firmware for good; a letter before the number is only asked again.
	csrProbe = "x"
	csrLook  = tiPing
	csrEcho  = 20 * time.Millisecond // of what the UART held; a USB adapter may sit on it for 16 ms
	csrStart = 3 * time.Second       // silence within a start: the network processor starts as well
	csrTurn  = 5 * time.Second
	csrMake  = 15 * time.Second // a signature and a file
	csrLines = 64               // of a banner
	csrAsks  = 48               // questions in all: some are asked again
	csrAgain = 4                // times that one question is asked
	csrNonce = 21
	csrGone  = 2 * watchEcho // a board that was read and does not echo for so long is gone
)

const csrSerial = "Unique device ID = " // only a fresh start prints it

var (
	csrUDID  = regexp.MustCompile(`^Unique device ID = ((?:[0-9a-f]{2} ){16})$`)
	csrBuild = regexp.MustCompile(`Ver: ?([0-9]{1,3}(?:\.[0-9]{1,3}){1,3})[ \t]*$`)
	csrMAC   = regexp.MustCompile(`MAC address: ?((?:[0-9a-f]{2}:){5}[0-9a-f]{2})[ \t]*$`)
	csrChip  = regexp.MustCompile(`(CHIP|NWP): *([0-9a-fx.]{1,24})[ \t]*$`)
	// Events come anywhere, in the middle of a prompt as well, and end their line.
	csrEvent    = regexp.MustCompile(`\[[A-Z]{2,12} (?:EVENT|ERROR)\][^\r\n]*[\r\n]+`)
	csrQuestion = regexp.MustCompile(`-(?:Enter|Is) (?:subject )?([A-Za-z][A-Za-z ]{1,32})(?:\? ?)?(?:\([^()\r\n]{1,32}\))?:`)
	// The firmware gave up.
	csrAbort = regexp.MustCompile(`ERROR: strtok|Error \[-?[0-9]{1,6}\] at line `)
	// The spaces after it show that it was not cut.
	csrDefault = regexp.MustCompile(`Default subject common name: ([^\r\n]*?)  `)
	csrPEM     = regexp.MustCompile(`-----BEGIN ([A-Z0-9 ]{0,32}REQUEST)-----([^-]*)-----END ([A-Z0-9 ]{1,40})-----`)
	csrLate    = regexp.MustCompile(`-Enter |-Is certificate CA|ERROR: Invalid |NetUtilCmd error|Creating CSR|certificate file name`)
)

// csrAnswers are the answers to the questions, by what they ask for. An empty one takes the default, which the first
// question does not have; csrFresh stands for the nonce.
var csrAnswers = map[string]string{
	"validity period": "3650", "certificate CA": "0", "country": "US", "state": "none", "locality": "none", "surname": "none",
	"organization": "none", "organization unit": csrFresh, "common name": "", "email": "none",
}

const csrFresh = "?"

// errRestarted: the start of the board is at hand on the line.
var errRestarted = fmt.Errorf("%w: the board started anew in the middle", ErrGarbled)

// Detect implements Dialect. A board that starts is waited for; one that is past its start is
// ErrNeedsReset.
func (d TICSR) Detect(ctx context.Context, l *Line) error {
	l.device = nil
	for babble := 0; ; {
		l.Mark()
		heard, err := l.Heard(ctx, aboutOne(csrLook))
		if err == nil && !heard {
			if err = l.Send(ctx, csrProbe); err == nil {
				heard, err = l.Heard(ctx, tiEcho)
			}
		}
		if err != nil {
			return err
		}
		if !heard {
			babble = 0
			continue
		}
		if err := d.settle(ctx, l, false); !errors.Is(err, ErrGarbled) {
			return err
		}
		if babble++; babble >= tiBabble {
			return fmt.Errorf("%w: it says something, but neither a serial number nor a question of the CSR example", ErrGarbled)
		}
	}
}

// settle waits until the serial number has come, and leaves it on the line. ErrNeedsReset: there is a board,
// but it will not come; ErrGarbled: what there is makes no sense.
func (TICSR) settle(ctx context.Context, l *Line, _ bool) error {
	end := time.Now().Add(4 * csrStart)
	for {
		text := string(l.in)
		if _, after, ok := strings.Cut(text, csrSerial); ok && strings.ContainsAny(after, "\r\n") {
			return nil
		}
		echo := strings.Contains(text, csrProbe) && strings.Trim(text, csrProbe+"\r\n") == ""
		silence := csrStart
		if echo || csrLate.MatchString(text) {
			silence = tiEcho
		}
		more := false
		if len(text) <= maxText && time.Now().Before(end) {
			var err error
			if more, err = l.more(ctx, silence); err != nil {
				return err
			}
		}
		if more {
			continue
		}
		l.keep(0)
		if echo || csrLate.MatchString(text) {
			return ErrNeedsReset
		}
		return fmt.Errorf("%w: no serial number came", ErrGarbled)
	}
}

// Read implements Dialect. Only a board that starts anew can be read a second time.
func (d TICSR) Read(ctx context.Context, l *Line) (Report, error) {
	report, err := d.read(ctx, l)
	if errors.Is(err, errRestarted) {
		if err := d.settle(ctx, l, false); err != nil {
			return Report{}, err
		}
		return d.read(ctx, l)
	}
	return report, err
}

func (d TICSR) read(ctx context.Context, l *Line) (Report, error) {
	facts := map[string]string{"dialect": d.Name(), "serial-readings": "2"}
	device, err := d.serial(ctx, l, facts)
	if err != nil {
		return Report{}, err
	}
	nonce := l.Nonce(csrNonce)
	limit := csrTurn
	asked, again := map[string]int{}, false
	for range csrAsks {
		text, question, request, err := d.turn(ctx, l, limit)
		if err != nil {
			return Report{}, err
		}
		for _, m := range csrDefault.FindAllStringSubmatch(text, -1) {
			if again = true; m[1] != joinedDigits(device) && m[1] != hex.EncodeToString(device[:]) && !weakened {
				return Report{}, errOtherSerial
			}
		}
		if request != nil {
			if !again {
				return Report{}, fmt.Errorf("reading the serial number again: %w: it was not in the default for the common name", ErrGarbled)
			}
			report, err := d.check(device, nonce, request, facts)
			if err == nil {
				l.device = &report.Device
			}
			return report, err
		}
		if len(asked) == 0 {
			// Something typed before it was asked may have been taken for an answer, and the question comes again. The echo shows
			// it at once.
			more, err := l.Gather(ctx, csrEcho, tiFlush)
			if err == nil && strings.ContainsAny(text[strings.LastIndexByte(text, ':')+1:]+more, "\r\n") {
				more, err = l.Gather(ctx, tiSilence, tiFlush)
			}
			if err != nil {
				return Report{}, err
			}
			if csrQuestion.MatchString(more) {
				continue
			}
		}
		answer, known := csrAnswers[question]
		if !known {
			return Report{}, fmt.Errorf("%w: a question that the CSR example does not have", ErrGarbled)
		}
		if asked[question]++; asked[question] > csrAgain {
			return Report{}, fmt.Errorf("%w: it refuses every answer to the question for the %s", ErrGarbled, question)
		}
		if answer == csrFresh {
			answer = nonce
		}
		if err := l.Send(ctx, answer+"\r"); err != nil {
			return Report{}, err
		}
		if limit = csrTurn; question == "email" {
			limit = csrMake
		}
	}
	return Report{}, fmt.Errorf("%w: %d questions and no request", ErrGarbled, csrAsks)
}

// serial reads the banner up to the serial number.
func (TICSR) serial(ctx context.Context, l *Line, facts map[string]string) (device [16]byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, csrTurn, ErrTimeout)
	defer cancel()
	for range csrLines {
		line, err := l.ReadLine(ctx)
		if err != nil {
			return device, fmt.Errorf("reading the serial number: %w", err)
		}
		if strings.Contains(line, csrSerial) {
			m := csrUDID.FindStringSubmatch(line)
			if m == nil {
				return device, fmt.Errorf("reading the serial number: %w: not 16 bytes; reset the board", ErrGarbled)
			}
			if _, err := hex.Decode(device[:], []byte(strings.ReplaceAll(m[1], " ", ""))); err != nil {
				return device, fmt.Errorf("reading the serial number: %w: not hex", ErrGarbled)
			}
			return device, checkDevice(device)
		}
		if m := csrBuild.FindStringSubmatch(line); m != nil {
			facts["build"] = m[1]
		}
		if m := csrMAC.FindStringSubmatch(line); m != nil {
			facts["mac"] = m[1]
		}
		if m := csrChip.FindStringSubmatch(line); m != nil {
			facts[map[string]string{"CHIP": "chip", "NWP": "nwp-version"}[m[1]]] = m[2]
		}
	}
	return device, fmt.Errorf("reading the serial number: %w: %d lines without it", ErrGarbled, csrLines)
}

var errOtherSerial = fmt.Errorf("%w: the serial number was another one in the default for the common name", ErrGarbled)

// joinedDigits is what the CSR example prints as the default for the common name.
func joinedDigits(device [16]byte) string {
	text := ""
	for _, b := range device {
		text += strconv.FormatUint(uint64(b), 16)
	}
	return text
}

// nameForm names the form in which a common name holds the serial number: "padded", all digits, as corrected firmware may
// have it, or no digit is missing anyway; "joined", as it is printed; "cut-short", as TI's code makes it, up to the first
// byte of one digit. Empty is none of these.
func nameForm(device [16]byte, name string) string {
	short := hex.EncodeToString(device[:])
	for i, b := range device {
		if b < 0x10 {
			short = short[:2*i] + short[2*i+1:2*i+2]
			break
		}
	}
	switch name {
	case hex.EncodeToString(device[:]):
		return "padded"
	case joinedDigits(device):
		return "joined"
	case short:
		return "cut-short"
	}
	return ""
}

// pemRequest is a request as it came, and the words of its marker lines.
type pemRequest struct{ label, base64 string }

// der decodes the request. Its PEM has CRs where no decoder takes them.
func (p *pemRequest) der() ([]byte, error) {
	text := strings.Map(func(r rune) rune {
		if (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '+' && r != '/' && r != '=' {
			return -1
		}
		return r
	}, p.base64)
	der, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: not base64", ErrGarbled)
	}
	return der, nil
}

// turn waits for what needs the reader next: a question, named as in csrAnswers, or the request. clean is all that came up
// to there, without events.
func (TICSR) turn(ctx context.Context, l *Line, limit time.Duration) (clean, question string, request *pemRequest, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	var refused error
	_, readErr := l.ReadPrompt(ctx, func(text string) int {
		if i := strings.Index(text, csrSerial); i >= 0 {
			refused = errRestarted
			return i
		}
		clean = csrEvent.ReplaceAllString(text, "")
		if csrAbort.MatchString(clean) {
			refused = errAborted
			return len(text)
		}
		if m := csrPEM.FindStringSubmatch(clean); m != nil {
			if m[1] != m[3] {
				refused = fmt.Errorf("%w: the request begins and ends with different words", ErrGarbled)
			}
			request = &pemRequest{label: m[1], base64: m[2]}
			return len(text)
		}
		// What follows a question is the echo of something stale.
		if m := csrQuestion.FindAllStringSubmatch(clean, -1); m != nil {
			question = strings.TrimSpace(m[len(m)-1][1])
			return len(text)
		}
		return -1
	})
	switch {
	case readErr != nil:
		return "", "", nil, fmt.Errorf("waiting for its next question: %w", readErr)
	case errors.Is(refused, errAborted) && limit == csrMake:
		return "", "", nil, fmt.Errorf("%w: it cannot make a request with key 0. Update the service pack of its network processor; "+
			"if that does not help, use firmware of the dialect report", ErrNoProof)
	case refused != nil:
		return "", "", nil, refused
	}
	return clean, question, request, nil
}

var errAborted = fmt.Errorf("%w: the CSR example gave up; reset the board", ErrGarbled)

// check believes nothing: the request must be for this board, over this nonce, by the key that it holds.
func (TICSR) check(device [16]byte, nonce string, p *pemRequest, facts map[string]string) (Report, error) {
	der, err := p.der()
	if err != nil {
		return Report{}, fmt.Errorf("reading the request: %w", err)
	}
	request, err := certreq.Parse(der)
	if err != nil {
		return Report{}, fmt.Errorf("reading the request: %w: not a certificate signing request", ErrGarbled)
	}
	hash := map[x509.SignatureAlgorithm]string{x509.ECDSAWithSHA1: "sha1", x509.ECDSAWithSHA256: "sha256"}[request.SignatureAlgorithm]
	key, ok := request.Key.(*ecdsa.PublicKey)
	if hash == "" || !ok || key.Curve != elliptic.P256() {
		return Report{}, fmt.Errorf("%w: the request is not signed with ECDSA on P-256 and SHA-1 or SHA-256", ErrNoProof)
	}
	if err := request.CheckSignature(); err != nil {
		return Report{}, fmt.Errorf("%w: the request's signature does not hold", ErrNoProof)
	}
	if unit, _ := request.SubjectText("2.5.4.11"); unit != nonce {
		return Report{}, fmt.Errorf("%w: the request's organizational unit is not the nonce of this reading", ErrNoProof)
	}
	if name, n := request.SubjectText("2.5.4.3"); n == 1 {
		facts["common-name"] = nameForm(device, name)
	}
	if facts["common-name"] == "" && !weakened {
		return Report{}, fmt.Errorf("%w: the request's common name is not made of the serial number", ErrGarbled)
	}
	facts["hash"], facts["signature"], facts["key-form"] = hash, "der", "spki"
	facts["csr-label"] = p.label
	return Report{
		Device: device, SPKI: request.SPKI, Facts: facts,
		Proof: &Proof{
			Method: "csr", Hash: hash, Nonces: [][]byte{[]byte(nonce)}, Signatures: [][]byte{request.Signature}, Request: der,
		},
	}, nil
}

// Gone implements Dialect. The board does not end its dialogue by itself, so a letter without a line end shows whether it
// still echoes; one that has fallen silent is waited for until another one starts or the port is lost.
//
// This firmware tells its serial number at its start and never again, so a board that was read cannot be asked who it is. That
// another one is in its place is known from its start, or from an echo that is missing for csrGone; a board without a pause in its
// power that is put there between two looks, up to watchSlow apart, is not seen. Such a board has told its serial number
// elsewhere: it needs a reset before it can be read, and its start is seen.
func (d TICSR) Gone(ctx context.Context, l *Line) error {
	return d.leave(ctx, l, vigil{probes: []string{csrProbe}, starts: []string{csrSerial}})
}

// For auto.

func (TICSR) probe() string    { return "" }
func (TICSR) starts() []string { return []string{csrSerial} }

func (TICSR) recognises(text string) bool {
	return strings.Contains(text, csrSerial) || csrLate.MatchString(text) || csrEvent.MatchString(text)
}

func (TICSR) leave(ctx context.Context, l *Line, v vigil) error {
	v.patient = true
	if l.device != nil {
		v.gone = csrGone
	}
	return watch(ctx, l, v)
}
