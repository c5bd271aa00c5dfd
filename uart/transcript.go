package uart

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Transcript is a recorded dialogue. As text (".uart", ASCII):
//
//	transcript: 1
//	dialect: ti-at
//	expect: passed
//
//	0.000000 > "at+test\r"
//	0.001204 < "at+test\r\n\rOK\n\r"
//	0.250000 ! "line lost"
//
// The header has one "key: value" a line, "transcript: 1" first, the others in
// the order of headerKeys; unknown keys are errors. After an empty line comes
// one line per chunk: seconds since the start with six digits, a direction, the
// bytes in double quotes, in which \r \n \t \" \\ and \xNN stand for what is
// not printable ASCII. What parses encodes to the same bytes.
type Transcript struct {
	Header map[string]string // without "transcript"
	Chunks []Chunk
}

// Chunk is data that was sent, received or noted at one moment.
type Chunk struct {
	At        time.Duration // since the start, whole microseconds
	Direction Direction
	Bytes     []byte
}

// Direction says what kind of data a chunk holds.
type Direction byte

// The directions of a chunk.
const (
	Sent     Direction = '>' // to the board
	Received Direction = '<' // from the board
	Drawn    Direction = '?' // a nonce was drawn
	Noted    Direction = '!' // a remark, in words
)

// headerKeys, in their order. expect is "passed", or "failed" and a reason
// word; given is what the verdict rested on besides the dialogue, in the words
// of package station.
var headerKeys = []string{"dialect", "expect", "given", "device", "slot", "recorded", "note"}

// ErrTranscript reports that a text is not a transcript.
var ErrTranscript = errors.New("not a transcript")

const (
	// MaxTranscript caps the size of a transcript's text, in bytes.
	MaxTranscript = 2 << 20
	// maxRecording caps what a recording holds of a dialogue.
	maxRecording = maxDialogue
)

// Encode returns the text form. ParseTranscript of it returns the same value.
func (t *Transcript) Encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("transcript: 1\n")
	left := len(t.Header)
	for _, key := range headerKeys {
		value, ok := t.Header[key]
		if !ok {
			continue
		}
		left--
		if !plain(value) {
			return nil, fmt.Errorf("%w: the value of %q is empty or not plain ASCII", ErrTranscript, key)
		}
		fmt.Fprintf(&b, "%s: %s\n", key, value)
	}
	if left > 0 {
		return nil, fmt.Errorf("%w: an unknown key in the header; known are %s", ErrTranscript, strings.Join(headerKeys, ", "))
	}
	b.WriteByte('\n')
	last := time.Duration(0)
	for i, c := range t.Chunks {
		if c.At < last || c.At%time.Microsecond != 0 || !strings.ContainsRune("><?!", rune(c.Direction)) || len(c.Bytes) == 0 {
			return nil, fmt.Errorf("%w: line %d is empty, out of order in time, or has no known direction (> < ? !)", ErrTranscript, t.Line(i+1))
		}
		last = c.At
		fmt.Fprintf(&b, "%d.%06d %c \"", c.At/time.Second, c.At%time.Second/time.Microsecond, c.Direction)
		for _, x := range c.Bytes {
			switch {
			case x == '\r':
				b.WriteString(`\r`)
			case x == '\n':
				b.WriteString(`\n`)
			case x == '\t':
				b.WriteString(`\t`)
			case x == '"' || x == '\\':
				b.WriteByte('\\')
				b.WriteByte(x)
			case x < ' ' || x > '~':
				fmt.Fprintf(&b, `\x%02x`, x)
			default:
				b.WriteByte(x)
			}
		}
		b.WriteString("\"\n")
	}
	if b.Len() > MaxTranscript {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTranscript, MaxTranscript)
	}
	return b.Bytes(), nil
}

// plain reports whether a header can hold the value.
func plain(value string) bool {
	return value != "" && strings.TrimSpace(value) == value && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' })
}

// Line returns the line of the text form that holds chunk n, counted from 1.
func (t *Transcript) Line(n int) int {
	const around = 2 // the first line, and the empty one
	return around + len(t.Header) + n
}

// ParseTranscript reads the output of Encode. Its errors wrap ErrTranscript and
// name the line. It refuses lines that end in CR LF: a tool has converted the
// file, so its bytes are no longer those of the recording.
func ParseTranscript(text []byte) (*Transcript, error) {
	if len(text) > MaxTranscript {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTranscript, MaxTranscript)
	}
	if i := bytes.Index(text, []byte("\r\n")); i >= 0 {
		return nil, fmt.Errorf("%w: line %d ends in CR LF, and the lines of a transcript end in LF alone: an editor or Git has converted it; convert it back (dos2unix)",
			ErrTranscript, 1+bytes.Count(text[:i], []byte("\n")))
	}
	t := &Transcript{Header: map[string]string{}}
	lines := strings.Split(string(text), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return nil, fmt.Errorf("%w: the file is cut: line %d ends after byte %d without a line end; copy the file again", ErrTranscript, len(lines), len(last))
	}
	if lines[0] != "transcript: 1" {
		return nil, fmt.Errorf("%w: line 1 is not \"transcript: 1\"", ErrTranscript)
	}
	n := 1
	for ; n < len(lines) && lines[n] != ""; n++ {
		key, value, ok := strings.Cut(lines[n], ": ")
		if !ok || !slices.Contains(headerKeys, key) {
			return nil, fmt.Errorf("%w: line %d: %.40q is not one of the keys %s", ErrTranscript, n+1, key, strings.Join(headerKeys, ", "))
		}
		if _, twice := t.Header[key]; twice {
			return nil, fmt.Errorf("%w: line %d: %q for the second time", ErrTranscript, n+1, key)
		}
		if !plain(value) {
			return nil, fmt.Errorf("%w: line %d: the value of %q is empty or not plain ASCII", ErrTranscript, n+1, key)
		}
		t.Header[key] = value
	}
	for n++; n < len(lines)-1; n++ {
		c, err := parseChunk(lines[n])
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %v", ErrTranscript, n+1, err)
		}
		t.Chunks = append(t.Chunks, c)
	}
	again, err := t.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, text) {
		at := 1
		for i, line := range strings.Split(string(again), "\n") {
			if i >= len(lines) || lines[i] != line {
				at = i + 1
				break
			}
		}
		return nil, fmt.Errorf("%w: line %d is not in the one form that this program writes (order of keys, digits, escapes, line ends)", ErrTranscript, at)
	}
	return t, nil
}

func parseChunk(line string) (Chunk, error) {
	var c Chunk
	stamp, rest, ok := strings.Cut(line, " ")
	seconds, micros, dot := strings.Cut(stamp, ".")
	s, err1 := strconv.ParseUint(seconds, 10, 24)
	us, err2 := strconv.ParseUint(micros, 10, 20)
	if !ok || !dot || err1 != nil || err2 != nil || len(micros) != 6 {
		return c, errors.New("want a time in seconds with six digits")
	}
	c.At = time.Duration(s)*time.Second + time.Duration(us)*time.Microsecond
	if len(rest) < 4 || rest[1] != ' ' || rest[2] != '"' || rest[len(rest)-1] != '"' {
		return c, errors.New("want a direction and bytes in double quotes")
	}
	c.Direction = Direction(rest[0])
	text := rest[3 : len(rest)-1]
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			c.Bytes = append(c.Bytes, text[i])
			continue
		}
		if i++; i >= len(text) {
			return c, errors.New("an escape without its end")
		}
		switch text[i] {
		case 'r':
			c.Bytes = append(c.Bytes, '\r')
		case 'n':
			c.Bytes = append(c.Bytes, '\n')
		case 't':
			c.Bytes = append(c.Bytes, '\t')
		case '"', '\\':
			c.Bytes = append(c.Bytes, text[i])
		case 'x':
			if i+2 >= len(text) {
				return c, errors.New("an escape without its end")
			}
			x, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
			if err != nil {
				return c, errors.New(`\x wants two hex digits`)
			}
			c.Bytes = append(c.Bytes, byte(x))
			i += 2
		default:
			return c, fmt.Errorf("unknown escape %q", text[i-1:i+1])
		}
	}
	return c, nil
}

// Transcript returns the recording since the last Mark. If the board leaked a
// private key, the recording holds only the number of bytes, not the bytes.
func (l *Line) Transcript() *Transcript {
	return &Transcript{Header: map[string]string{}, Chunks: slices.Clone(l.recorder.chunks)}
}

// recorder is a recording in the making.
type recorder struct {
	start  time.Time
	size   int
	chunks []Chunk
	blank  bool          // redacted: nothing more is kept
	look   int           // the first chunk of the present look
	lookAt time.Duration // its beginning
	lookIn []byte        // what had arrived before it and was not consumed
}

func newRecorder() *recorder { return &recorder{start: time.Now()} }

// merge is the longest pause between two reads that become one chunk.
const merge = 2 * time.Millisecond

func (t *recorder) add(d Direction, b []byte) {
	if t.blank || len(b) == 0 {
		return
	}
	at := time.Since(t.start).Truncate(time.Microsecond)
	if t.size += len(b); t.size > maxRecording {
		t.note("the recording is full")
		t.blank = true
		return
	}
	if n := len(t.chunks) - 1; n >= t.look && d == Received && t.chunks[n].Direction == Received &&
		at-t.chunks[n].At < merge && len(t.chunks[n].Bytes) < 1024 {
		t.chunks[n].Bytes = append(t.chunks[n].Bytes, b...)
		return
	}
	t.chunks = append(t.chunks, Chunk{At: at, Direction: d, Bytes: bytes.Clone(b)})
}

// begin marks the beginning of a look; in is input left from earlier looks.
func (t *recorder) begin(in []byte) {
	t.look, t.lookAt, t.lookIn = len(t.chunks), time.Since(t.start).Truncate(time.Microsecond), bytes.Clone(in)
	if t.look == 1 && t.lookAt == t.chunks[0].At && bytes.Equal(t.chunks[0].Bytes, in) { // of Mark
		t.look = 0
	}
}

// cut drops everything before the current look, and returns the number of
// received bytes that remain.
func (t *recorder) cut() (n int) {
	if t.look > 0 && !t.blank {
		kept := slices.Clone(t.chunks[t.look:])
		for i := range kept {
			kept[i].At -= t.lookAt
		}
		if len(t.lookIn) > 0 {
			kept = append([]Chunk{{Direction: Received, Bytes: t.lookIn}}, kept...)
		}
		t.chunks, t.start, t.size = kept, t.start.Add(t.lookAt), 0
		for _, c := range kept {
			t.size += len(c.Bytes)
		}
	}
	t.look, t.lookAt, t.lookIn = 0, 0, nil
	for _, c := range t.chunks {
		if c.Direction == Received {
			n += len(c.Bytes)
		}
	}
	return n
}

func (t *recorder) note(what string) {
	if !t.blank {
		t.chunks = append(t.chunks, Chunk{At: time.Since(t.start).Truncate(time.Microsecond), Direction: Noted, Bytes: []byte(what)})
	}
}

// redact deletes the dialogue, including the bytes before the leak: a key may
// begin before it is recognised. The shortest dialogue with the same verdict
// remains.
func (t *recorder) redact() {
	var kept []Chunk
	left := 0
	for i, c := range t.chunks {
		if i == 0 && c.Direction == Sent {
			kept = append(kept, c)
		}
		left += len(c.Bytes)
	}
	t.chunks = append(kept, Chunk{At: time.Since(t.start).Truncate(time.Microsecond), Direction: Received, Bytes: []byte(leakWords + "\r\n")})
	t.note(fmt.Sprintf("the rest is left out: %d bytes, and all that followed", left))
	t.blank = true
}
