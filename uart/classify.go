package uart

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// Heard classifies the output of a port on which no board was recognised.
type Heard string

// The classes of output.
const (
	HeardNothing    Heard = ""
	HeardText       Heard = "text"        // readable: other firmware
	HeardLogin      Heard = "login"       // a question for a user name or a password: a computer
	HeardBootLoader Heard = "boot-loader" // the boot loader in the ROM of a CC32xx: there is no firmware, or SOP2 is set
	HeardWrongSpeed Heard = "wrong-speed" // the long runs of equal bits that another rate leaves
	HeardNoise      Heard = "noise"       // neither text nor a pattern: disturbance, or another rate
)

// UnknownError reports a device that talks but is not a board of the dialects
// that were tried. It matches ErrWrongSpeed or ErrNoDialect. It never quotes
// the output of the device.
type UnknownError struct {
	Heard  Heard
	Tried  []string // names of dialects
	Silent bool     // it has said nothing more for silentAfter, whatever was sent
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("%v (tried: %s): %s", e.Unwrap(), strings.Join(e.Tried, ", "), map[Heard]string{
		HeardText:       "it prints text of other firmware",
		HeardLogin:      "it asks for a user name or a password, as a computer does",
		HeardBootLoader: "it answers 00 CC, as the boot loader in the ROM does; program the board, or open its SOP2 jumper and reset it",
		HeardWrongSpeed: "set the firmware to 115200 baud, 8 data bits, no parity, 1 stop bit",
		HeardNoise:      "it says bytes without a pattern: a disturbance, a loose contact, or another speed",
	}[e.Heard])
}

// Unwrap returns the sentinel.
func (e *UnknownError) Unwrap() error {
	if e.Heard == HeardWrongSpeed {
		return ErrWrongSpeed
	}
	return ErrNoDialect
}

var (
	// ErrNoDialect: what is connected talks, but speaks none of the dialects
	// that were tried.
	ErrNoDialect = errors.New("what is connected speaks none of the dialects that were tried")
	// ErrWrongSpeed: what is connected talks at another rate.
	ErrWrongSpeed = errors.New("what is connected talks at another speed")
)

const (
	heardMinBytes = 8  // bytes from which shares mean something
	heardJunk     = 25 // percent of bytes that no text has, from which it is none
	heardRuns     = 45 // percent of that with one change of level at most, from which it is of a slower sender; noise has 6
	heardPairs    = 90 // percent of bytes in pairs 00 CC
	heardMany     = 24 // bytes from which their variety means something
	heardKinds    = 75 // percent of the different values that noise would have, up to which it is none
)

// heardLogin is a question that a computer asks, at the end of its line.
var heardLogin = guard(`(?i)(?:^|[\r\n])[^\r\n]{0,80}\b(?:login|user ?name|password|passwort):[ \t]*(?:$|[\r\n]|[^\r\n]{0,64}$)`,
	"login:", "name:", "word:", "wort:")

// classify returns the class of an output, which may be cut anywhere.
func classify(heard []byte) Heard {
	if len(heard) == 0 {
		return HeardNothing
	}
	// What was cut may begin in the middle of a pair.
	pairs := max(bytes.Count(heard, []byte{0x00, 0xcc}), bytes.Count(heard, []byte{0xcc, 0x00}))
	if pairs > 0 && 200*pairs >= heardPairs*(len(heard)-1) {
		return HeardBootLoader
	}
	junk, runs := 0, 0
	kinds := map[byte]int{}
	for _, b := range heard {
		if isText(b) {
			continue
		}
		junk++
		kinds[b]++
		// The idle line before a byte is high, as is its stop bit: what counts
		// is within it.
		if bits.OnesCount8((b^b>>1)&0x7f) <= 1 {
			runs++
		}
	}
	switch {
	case 100*junk <= heardJunk*len(heard) && heardLogin.MatchString(string(heard)):
		return HeardLogin
	case 100*junk <= heardJunk*len(heard):
		return HeardText
	case junk < heardMinBytes:
		return HeardNoise
	case 100*runs >= heardRuns*junk:
		return HeardWrongSpeed
	}
	// Text has few different characters, and so has what another rate makes of
	// it.
	values := 0.0
	for b := range 256 {
		if !isText(byte(b)) {
			values++
		}
	}
	expected := values * (1 - math.Pow(1-1/values, float64(junk)))
	if junk >= heardMany && 100*float64(len(kinds)) <= heardKinds*expected {
		return HeardWrongSpeed
	}
	return HeardNoise
}

// final reports whether further output cannot change the class.
func (h Heard) final(heard []byte) bool {
	switch h {
	case HeardBootLoader:
		return len(heard) >= heardMinBytes
	case HeardWrongSpeed:
		return len(heard) >= 4*heardMinBytes
	}
	return false
}

// isText reports whether firmware prints the byte in text. Colours and the bell
// count as text.
func isText(b byte) bool {
	return b >= ' ' && b <= '~' || b == '\r' || b == '\n' || b == '\t' || b == '\b' || b == 0x07 || b == 0x1b
}
