// Package uart reads a board's identity over a serial port: it opens the port,
// speaks the dialect of the board's firmware, and records the dialogue.
//
// Start reading at Dialect, which describes the three steps of a reading, and
// at Line, through which a dialect talks to the board. PortConfig.Open opens a
// port, DialectByName chooses a dialect, ParseTranscript reads a recording. The
// values in a Report are decoded, not verified: the caller checks them.
//
// Fixed delays on the success path, all in Detect unless noted:
//
//   - autoLook, 500 ms (250 to 750 ms, because looks end at a shared clock
//     tick): dialect auto, for each dialect that is tried before the board's
//     own. The dialect that was found last is tried first.
//   - tiSilence, 200 ms: dialects ti-at and report, before the first command to
//     a board that is starting or was found in the middle of an exchange. After
//     this silence the board has finished its earlier output; a board loses
//     what is typed while it prints. A board that answers the first probe like
//     an idle board skips this delay. On a ti-at board that auto finds at its
//     start the delay occurs twice: before and after the carriage return that
//     ends the probe. On a report board that auto finds it occurs once, unless
//     the board answered the first ping of the first round and printed nothing
//     else. In Read of ti-csr it follows the first question if a line end has
//     come with or after the question: the board has answered itself with
//     stale input.
//   - tiRefusedNo and tiRefused, 100 and 300 ms: dialect ti-at, in Read, after
//     each optional command that the firmware refuses in other words than TI's.
//   - csrEcho, 20 ms: dialect ti-csr, after the first question. The firmware
//     takes text that was typed during its start as the answer and asks again;
//     an early answer would shift every later answer by one question.
//   - autoQuiet, 60 ms: dialect auto, after the echo of a probe without a line
//     end, before the line end is sent: an empty line ends the firmware of the
//     CSR example. A bare echo skips this delay.
//
// To add a dialect, write one file with a type that implements Dialect, its
// tests beside it, and add one line to dialects. If the type also has the
// methods of autoDialect, auto finds it. A proof whose signature covers other
// data than the existing methods needs a method of its own, here in Proof and
// in board.ProofMethod, which says how to check it.
package uart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Conn is a connection to a board: an open serial port, or one end of a
// net.Pipe. One goroutine reads and writes. Other goroutines may call
// SetReadDeadline and Close: both end a pending Read, and Close also ends a
// pending Write.
type Conn interface {
	// Read returns at least one byte or an error: os.ErrDeadlineExceeded after
	// the deadline. After any other error the connection is unusable.
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
	SetReadDeadline(t time.Time) error
	Close() error
}

// Dialect is the protocol of one kind of firmware. It keeps no state between
// boards, and one value may serve many ports at the same time; the dialect auto
// is the exception. All three methods return ErrUnplugged when the port is
// lost, ErrPrivateKey when the board prints private key material, and the
// context's cause when the context ends.
type Dialect interface {
	Name() string
	// Detect blocks until it recognises a board. It returns an *UnknownError
	// for a device that it does not recognise, at most 10 s after the first
	// byte; ErrNeedsReset for a board that must restart before it can be read;
	// and ErrRemoved for a board that was taken out while it started.
	Detect(ctx context.Context, l *Line) error
	// Read reads the board that Detect has just recognised. Its duration is
	// bounded. It tries a second time, from the start, where that can help.
	// Further errors: ErrTimeout, ErrGarbled, ErrNoProof.
	Read(ctx context.Context, l *Line) (Report, error)
	// Gone blocks until the board stops answering or another board has started.
	Gone(ctx context.Context, l *Line) error
}

// dialects returns all dialects, in the order in which auto tries them.
func dialects() []Dialect {
	return []Dialect{
		TIAT{},
		ReportLine{},
		TICSR{},
	}
}

// DialectByName returns a dialect for one slot. Do not share the value between
// slots: the dialect auto remembers the last board. It accepts the names in
// DialectNames, and "auto/<dialect>" as in a transcript. The error lists the
// known names.
func DialectByName(name string) (Dialect, error) {
	known := dialects()
	prefix, last, remembers := strings.Cut(name, "/")
	for _, d := range known {
		if d.Name() == name {
			return d, nil
		}
		remembers = remembers && d.Name() != last
	}
	if prefix == autoName && !remembers {
		return newAuto(last, known), nil
	}
	return nil, fmt.Errorf("unknown dialect %q: this version speaks %s", name, strings.Join(DialectNames(), ", "))
}

// DialectNames returns the names that DialectByName accepts.
func DialectNames() []string {
	names := []string{autoName}
	for _, d := range dialects() {
		names = append(names, d.Name())
	}
	return names
}

// Report holds the identity and the facts that a board reported.
type Report struct {
	Device [16]byte          // the UDID
	SPKI   []byte            // SubjectPublicKeyInfo, DER
	Facts  map[string]string // versions, addresses: for the record only
	Proof  *Proof            // nil if the dialect has none
}

// checkDevice refuses the serial number of an unprogrammed memory.
func checkDevice(udid [16]byte) error {
	for _, nothing := range []byte{0x00, 0xff} {
		if bytes.Count(udid[:], []byte{nothing}) == len(udid) {
			return fmt.Errorf("%w: the serial number is nothing but %02x", ErrFirmware, nothing)
		}
	}
	return nil
}

// Proof is the evidence that the board owns the key: signatures over nonces
// that the reader chose.
type Proof struct {
	// Method: "sign-msg": each signature covers one nonce. "csr": the one nonce
	// is the organizational unit of the request, the one signature a copy of
	// the request's own. "report": the one signature covers "secretfree 1 ",
	// the nonce, a space and the device id in hex.
	Method     string
	Hash       string // "sha1" or "sha256"
	Nonces     [][]byte
	Signatures [][]byte // ECDSA, DER
	Request    []byte   // of "csr": PKCS #10, DER
}

// Errors of a port.
var (
	ErrAbsent     = errors.New("there is no such port")
	ErrBusy       = errors.New("another program holds the port")
	ErrPermission = errors.New("no permission to open the port")
	ErrNotAPort   = errors.New("this is not a serial port")
	// ErrNoLines: the settings of the port need modem lines, and its driver has
	// none.
	ErrNoLines = errors.New("the port has no modem lines")
	// ErrDead, always with ErrAbsent: the device file exists, but no device
	// answers (EIO, ENODEV, ENXIO).
	ErrDead = errors.New("no device answers at the port")
	// ErrUnplugged: the port was lost while it was open, not closed by Close.
	ErrUnplugged = errors.New("the port was unplugged")
	// ErrRemoved: the board was taken out before it was recognised. The port is
	// still usable.
	ErrRemoved = errors.New("the board was taken out while it started")
	// ErrStuck: the port exists and accepts no bytes. It is unusable until it
	// is opened again.
	ErrStuck = errors.New("the port takes nothing that is sent to it")
)

// Errors of a board.
var (
	ErrTimeout = errors.New("the board did not answer in time")
	ErrGarbled = errors.New("the answer makes no sense")
	// ErrFirmware is an ErrGarbled that a second reading cannot resolve: the
	// firmware or the network processor needs a repair or an update.
	ErrFirmware = fmt.Errorf("%w, and will not before its firmware is updated", ErrGarbled)
	// ErrNeedsReset: the board can be read only after a restart.
	ErrNeedsReset = errors.New("the board printed its serial number before anyone listened; reset it")
	ErrNoProof    = errors.New("the board did not prove that it owns its key")
	// ErrPrivateKey: the board printed text that looks like a private key. The
	// text is not kept anywhere.
	ErrPrivateKey = errors.New("the board printed private key material")
)
