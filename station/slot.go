package station

import (
	"time"

	"secretfree/station/board"
	"secretfree/uart"
)

// State is what a slot shows.
type State string

// The states of a slot.
const (
	Absent  State = "absent"  // its port is not there, or cannot be opened
	Empty   State = "empty"   // waits for a board
	Reading State = "reading" // reads a board, or writes down what it read
	Passed  State = "passed"  // the journal gave a receipt for this board
	Failed  State = "failed"  // this board was not enrolled; the reason says why
)

// Reason is a stable word for why a board failed.
type Reason string

// The reasons of Failed.
const (
	ReasonDeviceConflict Reason = "device-conflict"  // this id is known with another key
	ReasonKeyConflict    Reason = "key-conflict"     // this key is known under another id
	ReasonNoProof        Reason = "no-proof"         // the board did not prove that it owns its key
	ReasonPolicy         Reason = "policy"           // this type of key is not allowed for the SKU
	ReasonNotInLot       Reason = "not-in-lot"       // the board is not on the list of what is made at present
	ReasonLotUnreadable  Reason = "lot-unreadable"   // there should be such a list, and it cannot be read
	ReasonLabelMismatch  Reason = "label-mismatch"   // the label that was scanned names another board
	ReasonLabelMissing   Reason = "label-missing"    // the policy asks for a label, and none was scanned
	ReasonUnplugged      Reason = "unplugged"        // the port was lost in the middle
	ReasonNeedsReset     Reason = "needs-reset"      // the board said its id before anyone listened
	ReasonTimeout        Reason = "timeout"          // the board stopped answering
	ReasonGarbled        Reason = "garbled"          // what the board said makes no sense
	ReasonNoDialect      Reason = "no-dialect"       // what is connected speaks no dialect that was tried
	ReasonWrongSpeed     Reason = "wrong-speed"      // what is connected talks at another rate
	ReasonPrivateKeyLeak Reason = "private-key-leak" // the board printed private key material
	ReasonDiskFull       Reason = "disk-full"        // the journal has no room
	ReasonDiskError      Reason = "disk-error"       // the journal could not be written for another cause
)

// slotState is one slot at one moment. It is a value: next makes the following
// one.
type slotState struct {
	state  State
	device board.DeviceID // of the board that is shown; zero if it is not known
	reason Reason         // of Failed
	advice messageKey
	detail string // that the sentence of the advice has a place for
	// gone: Failed, but the board is not there any more. The failure stays in
	// sight until another board or the port appears, since nobody may have
	// looked when it happened.
	gone bool
	// heard is what a port said that is no board, of Failed.
	heard uart.Heard
	// searching: Reading, but no board was recognised so far: something talks,
	// or the presence line says that the fixture is closed.
	searching bool
	// held: Failed with a leak that nobody has acknowledged. Until then no
	// other board is read here, and whatever happens to the board and the port,
	// this is shown. lost: the port is not there meanwhile.
	held, lost bool
	since      time.Time // when state became what it is, or a new verdict took the place of an old one
}

type eventKind string

const (
	portOpened  eventKind = "port opened"
	portLost    eventKind = "port lost"    // or never there
	portTrouble eventKind = "port trouble" // it is there and cannot be opened; advice says what to do
	// fixtureClosed: the presence line says that a board may be there; it was
	// not heard so far.
	fixtureClosed eventKind = "fixture closed"
	boardHeard    eventKind = "board heard" // something is connected, and says something
	boardFound    eventKind = "board found"
	boardPassed   eventKind = "board passed" // made from a board.Receipt, and from nothing else
	boardFailed   eventKind = "board failed"
	boardGone     eventKind = "board gone"
	leakSeen      eventKind = "leak acknowledged"
)

type event struct {
	kind   eventKind
	at     time.Time
	device board.DeviceID // of boardPassed, and of boardFailed if known
	reason Reason         // of boardFailed
	advice messageKey     // of portTrouble; of boardFailed if the reason alone does not say what helps
	detail string         // of portTrouble
	repeat bool           // of boardPassed: it was enrolled before
	heard  uart.Heard     // of boardFailed, if it is no board
	next   bool           // of boardGone: something else talks already
	// journaled: the journal has the verdict. unjournaled: it cannot take it.
	// old: it is none to be counted.
	journaled, unjournaled, old bool
	verdictAt                   time.Time // of the entry; zero if there is none
}

// next is the whole behaviour of a slot. An event that makes no sense in a
// state changes nothing.
func (s slotState) next(e event) slotState {
	absent := slotState{state: Absent, advice: adviceAbsent, since: e.at}
	empty := slotState{state: Empty, advice: adviceEmpty, since: e.at}
	failed := slotState{state: Failed, device: e.device, reason: e.reason, advice: messageKey(e.reason), heard: e.heard, since: e.at}
	if e.advice != "" {
		failed.advice = e.advice
	}
	failed.held = e.reason == ReasonPrivateKeyLeak
	searching := slotState{state: Reading, advice: adviceSearching, searching: true, since: e.at}
	unplugged := slotState{state: Failed, reason: ReasonUnplugged, advice: messageKey(ReasonUnplugged), gone: true, since: e.at}

	if s.held {
		switch e.kind {
		case portOpened:
			s.lost = false
		case portLost:
			s.gone, s.lost = true, true
		case boardGone:
			s.gone = true
		case leakSeen:
			switch s.held = false; {
			case s.lost:
				return absent
			case s.gone:
				return empty
			}
		}
		return s
	}
	switch e.kind {
	case portOpened:
		if s.state == Absent || s.gone {
			return empty
		}
	case portLost:
		switch {
		case s.state == Reading && !s.searching:
			return unplugged
		case s.lingers():
			s.gone = true
		case s.state == Absent:
			s.advice, s.detail = adviceAbsent, ""
		default:
			return absent
		}
	case portTrouble:
		if s.state == Absent || s.gone {
			if s.state != Absent {
				s = absent
			}
			s.advice, s.detail = e.advice, e.detail
		}
	case fixtureClosed:
		if s.state == Empty || s.gone {
			searching.advice = adviceClosed
			return searching
		}
	case boardHeard:
		switch {
		case s.state == Empty, s.gone:
			return searching
		case s.searching:
			s.advice = adviceSearching
		}
	case boardFound:
		if s.state == Empty || s.searching || s.gone {
			return slotState{state: Reading, advice: adviceReading, since: e.at}
		}
	case boardPassed:
		if s.state == Reading && !s.searching {
			advice := advicePassed
			if e.repeat {
				advice = adviceRepeat
			}
			return slotState{state: Passed, device: e.device, advice: advice, since: e.at}
		}
	case boardFailed:
		switch {
		case s.state == Empty, s.state == Reading, s.gone:
			return failed
		case s.state == Passed || s.state == Failed:
			// After the verdict only a leak can make it worse.
			if e.reason == ReasonPrivateKeyLeak && s.reason != e.reason {
				failed.device = s.device
				return failed
			}
		}
	case boardGone:
		switch {
		case s.state == Reading && !s.searching:
			return unplugged
		case e.next && s.state != Absent && s.state != Empty && !s.searching:
			return searching
		case s.lingers():
			s.gone = true
		case s.state == Empty:
			s.advice = adviceEmpty
		case s.searching, s.state == Passed, s.state == Failed:
			return empty
		}
	}
	return s
}

// heldLeak is the state of a slot after a restart, with a leak from before it.
func heldLeak(v Verdict) slotState {
	return slotState{
		state: Failed, reason: ReasonPrivateKeyLeak, advice: messageKey(ReasonPrivateKeyLeak), device: v.Device,
		held: true, gone: true, lost: true, since: v.Time,
	}
}

// lingers: the failures that taking the board away causes, or may have caused.
func (s slotState) lingers() bool {
	return s.state == Failed && (s.reason == ReasonUnplugged || s.reason == ReasonTimeout)
}

// Reasons lists all there are.
func Reasons() []Reason {
	return []Reason{ReasonDeviceConflict, ReasonKeyConflict, ReasonNoProof, ReasonPolicy, ReasonNotInLot, ReasonLotUnreadable,
		ReasonLabelMismatch, ReasonLabelMissing, ReasonUnplugged, ReasonNeedsReset, ReasonTimeout, ReasonGarbled,
		ReasonNoDialect, ReasonWrongSpeed, ReasonPrivateKeyLeak, ReasonDiskFull, ReasonDiskError}
}
