// Package uart reads a board's identity over its serial port. It wraps the
// serial library, speaks the dialects that boards speak, and records what
// passed. What it returns is decoded, not believed: the caller checks it.
//
// With a good board no time is waited out but this; all in Detect, before the
// board is read, but csrEcho and where Read is named:
//
//   - autoLook, 500 ms, or 250 to 750 ms since looks are made together: dialect auto, for each dialect that is tried before the board's own. The
//     one that was met last is tried first.
//   - tiSilence, 200 ms: dialects ti-at and report, before the first command to a board that is just starting, or was met in the middle of
//     something. A board that was cut off in the middle of a command, or is still answering earlier probes, has said all by then; what is
//     typed while it prints is lost. One that answers the first probe with just what a waiting board says is spared it. On a
//     board of ti-at that auto finds at its start it is waited for twice: before the carriage return that ends the probe, and after it; one of
//     report that auto finds is waited for once, unless it answered the first ping of the first round and said nothing else. In Read of ti-csr it
//     is waited for after the first question, if a line end has come with or after that: something stale was answered.
//   - tiRefusedNo and tiRefused, 100 and 300 ms: dialect ti-at, in Read, after each optional command that the firmware refuses in
//     words that are not TI's.
//   - csrEcho, 20 ms: dialect ti-csr, after the first question. What was typed while the board started is its answer, and
//     the question comes again; to answer too early would put every later answer one question off.
//   - autoQuiet, 60 ms: dialect auto, after the echo of a probe that has no line end, before one is sent: an Enter alone
//     ends the firmware of the CSR example. An echo with nothing before it is spared it.
//
// To add a dialect: write one file with a type that implements Dialect, its
// tests beside it, and add one line to dialects. If it has the methods of
// autoDialect as well, auto finds it. A proof whose signature covers something else
// than those there are needs a method of its own, here in Proof and in
// board.ProofMethod, which says how to check it.
package uart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Conn is a way to a board: an open serial port, or an end of a net.Pipe. One
// goroutine reads and writes; SetReadDeadline and Close may be called from
// another one and end a pending Read, and Close a pending Write too.
type Conn interface {
	// Read returns at least one byte or an error: os.ErrDeadlineExceeded after
	// the deadline, otherwise the connection is of no more use.
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
	SetReadDeadline(t time.Time) error
	Close() error
}

// Dialect is one way to talk to a board. It keeps nothing of a board when it is
// gone, and one value may serve many ports at once; but see auto. All three
// methods return ErrUnplugged when the port is lost, ErrPrivateKey when the
// board prints private key material, and the context's cause when it ends.
type Dialect interface {
	Name() string
	// Detect blocks until a board shows itself. Something that talks and is not
	// recognised is an *UnknownError, 10 s after its first byte at the latest;
	// one that must start anew before it can be read is ErrNeedsReset, and one
	// that was taken out while it started ErrRemoved.
	Detect(ctx context.Context, l *Line) error
	// Read has the dialogue with a board that was just detected. It bounds its
	// own time, and tries a second time, from the start, where that can help.
	// Besides the above: ErrTimeout, ErrGarbled, ErrNoProof.
	Read(ctx context.Context, l *Line) (Report, error)
	// Gone blocks until the board does not answer any more or another one has
	// started.
	Gone(ctx context.Context, l *Line) error
}

// dialects are the ways to talk to a board that there are, in the order in
// which auto tries them.
func dialects() []Dialect {
	return []Dialect{
		TIAT{},
		ReportLine{},
		TICSR{},
	}
}

// DialectByName returns a dialect for one slot: the value for auto has a
// memory. Besides the names in DialectNames it takes what auto.Name returns.
// The error lists the names there are.
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

// DialectNames lists what DialectByName knows.
func DialectNames() []string {
	names := []string{autoName}
	for _, d := range dialects() {
		names = append(names, d.Name())
	}
	return names
}

// Report is what a board said, in the words of the board module.
type Report struct {
	Device [16]byte          // the UDID
	SPKI   []byte            // SubjectPublicKeyInfo, DER
	Facts  map[string]string // versions, addresses: for the record only
	Proof  *Proof            // nil if the dialect had none
}

// checkDevice refuses what an unprogrammed memory reads as.
func checkDevice(udid [16]byte) error {
	for _, nothing := range []byte{0x00, 0xff} {
		if bytes.Count(udid[:], []byte{nothing}) == len(udid) {
			return fmt.Errorf("%w: the serial number is nothing but %02x", ErrFirmware, nothing)
		}
	}
	return nil
}

// Proof is the evidence that the board owns the key: it signed nonces that this
// side chose.
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

// What can be wrong with a port.
var (
	ErrAbsent     = errors.New("there is no such port")
	ErrBusy       = errors.New("another program holds the port")
	ErrPermission = errors.New("no permission to open the port")
	ErrNotAPort   = errors.New("this is not a serial port")
	// ErrNoLines: the settings of the port need modem lines, and its driver has
	// none.
	ErrNoLines = errors.New("the port has no modem lines")
	// ErrDead, always with ErrAbsent: the port has a name, and no device
	// answers behind it (EIO, ENODEV, ENXIO).
	ErrDead = errors.New("no device answers at the port")
	// ErrUnplugged: the port was lost while it was open, and not by our Close.
	ErrUnplugged = errors.New("the port was unplugged")
	// ErrRemoved: what was connected was taken out before it was recognised.
	// The port is still of use.
	ErrRemoved = errors.New("the board was taken out while it started")
	// ErrStuck: the port is there and takes no bytes. It is of no more use
	// before it is opened again.
	ErrStuck = errors.New("the port takes nothing that is sent to it")
)

// What can be wrong with a board.
var (
	ErrTimeout = errors.New("the board did not answer in time")
	ErrGarbled = errors.New("the answer makes no sense")
	// ErrFirmware is an ErrGarbled that a second reading does not mend: its
	// firmware or its network processor needs a repair or an update.
	ErrFirmware = fmt.Errorf("%w, and will not before its firmware is updated", ErrGarbled)
	// ErrNeedsReset: it cannot be read before it starts anew.
	ErrNeedsReset = errors.New("the board printed its serial number before anyone listened; reset it")
	ErrNoProof    = errors.New("the board did not prove that it owns its key")
	// ErrPrivateKey: the board printed what looks like a private key. None of
	// it is kept.
	ErrPrivateKey = errors.New("the board printed private key material")
)
