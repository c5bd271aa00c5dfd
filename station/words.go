package station

import (
	"fmt"
	"time"
)

// word is a stable key of a sentence for people; every Reason is one.
type word string

const (
	adviceAbsent     word = "absent"
	adviceEmpty      word = "empty"
	adviceReading    word = "reading"
	advicePassed     word = "passed"
	adviceRepeat     word = "repeat"
	adviceBusy       word = "port-busy"
	adviceHeld       word = "port-held"
	advicePermission word = "port-permission"
	adviceGroup      word = "port-group"
	adviceMode       word = "port-mode"
	adviceNotAPort   word = "port-invalid"
	adviceAmbiguous  word = "port-ambiguous"
	adviceStuck      word = "port-stuck"
	advicePortError  word = "port-error"
)

// sentences holds every sentence that a technician sees: first what to do, by reason or state, then the
// words of the page.
var sentences = map[word]string{
	adviceAbsent:     "No port. Plug in the cable of this slot. If it is plugged in, try another cable and call IT.",
	adviceEmpty:      "Insert a board.",
	adviceReading:    "Do not touch the board.",
	advicePassed:     "Done. Take the board out.",
	adviceRepeat:     "This board was enrolled before; nothing was added. Take it out.",
	adviceBusy:       "Call IT: another program holds this port. Close it, and make ModemManager leave the port alone.",
	adviceHeld:       "Call IT: this port is held by %s. Close it, and make ModemManager leave the port alone.",
	advicePermission: "Call IT: this station may not open the port. Its user must be in the group that owns the port (often dialout).",
	adviceGroup:      "Call IT: this station may not open the port. Its user must be in the group %s.",
	adviceMode:       "Call IT: this station may not open the port. The log of the station says what to change.",
	adviceNotAPort:   "Call IT: what is configured for this slot is not a serial port. Correct its port in the configuration.",
	adviceAmbiguous:  "Call IT: more than one probe fits this slot. Name its port by path in the configuration.",
	adviceStuck:      "This port takes nothing that is sent to it. Unplug the cable of this slot and plug it in again; if that does not help, call IT.",
	advicePortError:  "Call IT: the port cannot be opened. The log of the station says why.",

	word(ReasonDeviceConflict): "Put the board aside and call quality: its id is known with another key.",
	word(ReasonKeyConflict):    "Put the board aside and call quality: its key is known under another id.",
	word(ReasonNoProof):        "Put the board aside and call quality: it did not prove that it owns its key.",
	word(ReasonPolicy):         "Put the board aside and call quality: its type of key is not allowed for this product.",
	word(ReasonNotInLot):       "Put the board aside: it does not belong to this lot. Check the work order.",
	word(ReasonLotUnreadable):  "Stop the line and call IT: the list of this lot cannot be read. Insert the board again after the repair.",
	word(ReasonNeedsReset):     "Press the reset button of the board, or take it out and insert it again.",
	word(ReasonUnplugged):      "The board was unplugged before it was done. Plug it in again and wait for PASS.",
	word(ReasonTimeout):        "The board stopped answering. Take it out, check that it sits well and has power, and insert it again.",
	word(ReasonGarbled):        "The board's answers make no sense. Take it out and insert it again. If it fails twice, put it aside.",
	word(ReasonPrivateKeyLeak): "Stop. Put the board aside and call quality: it printed a private key. The key was not kept.",
	word(ReasonDiskFull):       "Stop the line and call IT: the disk of this station is full. Insert the board again when there is room.",
	word(ReasonDiskError):      "Stop the line and call IT: this station cannot write to its disk. Insert the board again after the repair.",

	"state-absent":  "NO PORT",
	"state-empty":   "INSERT BOARD",
	"state-reading": "READING",
	"state-passed":  "PASS",
	"state-failed":  "FAIL",

	"cloud-confirmed": "In the cloud",
	"cloud-waiting":   "Waiting for the cloud",
	"cloud-clear":     "Cloud: all delivered",
	"cloud-one":       "Cloud: 1 board waiting",
	"cloud-many":      "Cloud: %d boards waiting",

	"notice-backlog":    "The cloud does not confirm: %s. Go on working: every PASS is safe on this station.",
	"notice-carried":    "For the stick: %s. Go on working: every PASS is safe on this station.",
	"notice-last-error": "Last error: %s",
	"notice-dead-one":   "Call IT: the cloud refused 1 board for good.",
	"notice-dead-many":  "Call IT: the cloud refused %d boards for good.",
	"notice-health":     "Call IT: %s",
	"waiting-one":       "1 board has waited for %s",
	"waiting-many":      "%d boards wait, the oldest for %s",

	"lost-title":  "CONNECTION LOST",
	"lost-advice": "This page does not know what the slots show now. Do not trust a PASS that you saw before. It connects again by itself; if it does not, call IT.",
}

func say(key word, args ...any) string {
	if len(args) == 0 {
		return sentences[key]
	}
	return fmt.Sprintf(sentences[key], args...)
}

// count chooses between a sentence for one and a sentence for many.
func count(n int, one, many word) string {
	if n == 1 {
		return say(one)
	}
	return say(many, n)
}

// span is a length of time as people say it, coarsely.
func span(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}
