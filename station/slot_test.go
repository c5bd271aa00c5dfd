package station

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"secretfree/station/board"
	"secretfree/uart"
)

var (
	deviceOne = board.DeviceID{1}
	deviceTwo = board.DeviceID{2}
)

// slotTable is the whole of next: a row for each state that a slot can be in, a
// column for each event, and in the cell the state that follows; a dot where
// nothing changes.
const slotTable = `
	               opened    lost         trouble closed heard     found   passed repeat failed   leaked gone         next      seen
	absent         empty     .            busy    .      .         .       .      .      .        .      .            .         .
	busy           empty     absent       .       .      .         .       .      .      .        .      .            .         .
	empty          .         absent       .       closed searching reading .      .      unproven leak   .            .         .
	searching      .         absent       .       .      .         reading .      .      unproven leak   empty        empty     .
	closed         .         absent       .       .      searching reading .      .      unproven leak   empty        empty     .
	reading        .         unplugged    .       .      .         .       passed repeat unproven leak   unplugged    unplugged .
	passed         .         absent       .       .      .         .       .      .      .        leak-1 empty        searching .
	repeat         .         absent       .       .      .         .       .      .      .        leak-1 empty        searching .
	unproven       .         absent       .       .      .         .       .      .      .        leak-2 empty        searching .
	unknown        .         absent       .       .      .         .       .      .      .        leak   empty        searching .
	leak           .         leak-lost    .       .      .         .       .      .      .        .      leak-gone    leak-gone seen
	leak-gone      .         leak-lost    .       .      .         .       .      .      .        .      .            .         empty
	leak-lost      leak-gone .            .       .      .         .       .      .      .        .      .            .         absent
	seen           .         absent       .       .      .         .       .      .      .        .      empty        searching .
	timeout        .         timeout-gone .       .      .         .       .      .      .        leak   timeout-gone searching .
	timeout-gone   empty     .            busy    closed searching reading .      .      unproven leak   .            searching .
	unplugged      empty     .            busy    closed searching reading .      .      unproven leak   .            searching .
`

var slotStates = map[string]slotState{
	"absent":       {state: Absent, advice: adviceAbsent},
	"busy":         {state: Absent, advice: adviceBusy},
	"empty":        {state: Empty, advice: adviceEmpty},
	"reading":      {state: Reading, advice: adviceReading},
	"passed":       {state: Passed, advice: advicePassed, device: deviceOne},
	"repeat":       {state: Passed, advice: adviceRepeat, device: deviceOne},
	"unproven":     {state: Failed, reason: ReasonNoProof, advice: "no-proof", device: deviceTwo},
	"searching":    {state: Reading, advice: adviceSearching, searching: true},
	"closed":       {state: Reading, advice: adviceClosed, searching: true},
	"unknown":      {state: Failed, reason: ReasonNoDialect, advice: adviceLogin, heard: uart.HeardLogin},
	"leak":         {state: Failed, reason: ReasonPrivateKeyLeak, advice: "private-key-leak", held: true},
	"leak-1":       {state: Failed, reason: ReasonPrivateKeyLeak, advice: "private-key-leak", device: deviceOne, held: true},
	"leak-2":       {state: Failed, reason: ReasonPrivateKeyLeak, advice: "private-key-leak", device: deviceTwo, held: true},
	"leak-gone":    {state: Failed, reason: ReasonPrivateKeyLeak, advice: "private-key-leak", held: true, gone: true},
	"leak-lost":    {state: Failed, reason: ReasonPrivateKeyLeak, advice: "private-key-leak", held: true, gone: true, lost: true},
	"seen":         {state: Failed, reason: ReasonPrivateKeyLeak, advice: "private-key-leak"},
	"timeout":      {state: Failed, reason: ReasonTimeout, advice: "timeout"},
	"timeout-gone": {state: Failed, reason: ReasonTimeout, advice: "timeout", gone: true},
	"unplugged":    {state: Failed, reason: ReasonUnplugged, advice: "unplugged", gone: true},
}

var slotEvents = map[string]event{
	"opened":  {kind: portOpened},
	"lost":    {kind: portLost},
	"trouble": {kind: portTrouble, advice: adviceBusy},
	"closed":  {kind: fixtureClosed},
	"heard":   {kind: boardHeard},
	"found":   {kind: boardFound},
	"passed":  {kind: boardPassed, device: deviceOne},
	"repeat":  {kind: boardPassed, device: deviceOne, repeat: true},
	"failed":  {kind: boardFailed, device: deviceTwo, reason: ReasonNoProof},
	"leaked":  {kind: boardFailed, reason: ReasonPrivateKeyLeak},
	"gone":    {kind: boardGone},
	"next":    {kind: boardGone, next: true},
	"seen":    {kind: leakSeen},
}

func TestSlotTable(t *testing.T) {
	then, now := time.Unix(1000, 0), time.Unix(2000, 0)
	rows := strings.Split(strings.TrimSpace(slotTable), "\n")
	columns := strings.Fields(rows[0])
	seen := map[eventKind]bool{}
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		if len(cells) != len(columns)+1 {
			t.Fatalf("the row %q has %d cells, want %d", row, len(cells), len(columns)+1)
		}
		for i, column := range columns {
			from, ok := slotStates[cells[0]]
			e, known := slotEvents[column]
			if !ok || !known {
				t.Fatalf("the table names %s and %s", cells[0], column)
			}
			seen[e.kind] = true
			from.since, e.at = then, now
			want := from
			if cell := cells[i+1]; cell != "." {
				if want, ok = slotStates[cell]; !ok {
					t.Fatalf("the table names %s", cell)
				}
				want.since = then
				if want.state != from.state || want.searching != from.searching || want.reason != from.reason {
					want.since = now
				}
			}
			if got := from.next(e); got != want {
				t.Errorf("%s, %s:\ngot  %+v\nwant %+v", cells[0], column, got, want)
			}
		}
	}
	for _, kind := range eventKinds {
		if !seen[kind] {
			t.Errorf("no column for the event %q", kind)
		}
	}
	// What the table cannot say: the same verdict against the next board is a
	// new one.
	again := slotStates["timeout-gone"]
	again.since = then
	if got := again.next(event{kind: boardFailed, reason: ReasonTimeout, at: now}); got.gone || got.since != now {
		t.Errorf("a second board that times out: %+v", got)
	}
}

var eventKinds = []eventKind{portOpened, portLost, portTrouble, fixtureClosed, boardHeard, boardFound, boardPassed, boardFailed, boardGone, leakSeen}

// Whatever happens in whatever order, what a slot shows can be trusted.
func TestSlotInvariants(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	devices := []board.DeviceID{{}, deviceOne, deviceTwo}
	troubles := []messageKey{adviceBusy, advicePermission, adviceNotAPort, advicePortError}
	for range 200 {
		s := slotState{state: Absent, advice: adviceAbsent, since: time.Unix(0, 0)}
		var history []string
		for step := range 60 {
			e := event{kind: eventKinds[random.IntN(len(eventKinds))], at: time.Unix(int64(step+1), 0)}
			switch e.kind {
			case boardGone:
				e.next = random.IntN(3) == 0
			case portTrouble:
				e.advice = troubles[random.IntN(len(troubles))]
			case boardPassed:
				e.device, e.repeat = devices[1+random.IntN(2)], random.IntN(2) == 0
			case boardFailed:
				e.device, e.reason = devices[random.IntN(3)], Reasons()[random.IntN(len(Reasons()))]
			}
			before := s
			s = s.next(e)
			history = append(history, fmt.Sprintf("%s %s -> %s %s", e.kind, e.reason, s.state, s.reason))
			if broken := brokenPromise(before, e, s); broken != "" {
				t.Fatalf("%s\nbefore %+v\nafter  %+v\nseed %d, after\n%s", broken, before, s, seed, strings.Join(history, "\n"))
			}
		}
	}
}

// brokenPromise names what is wrong with a step, if anything is.
func brokenPromise(before slotState, e event, after slotState) string {
	same := after
	same.since = before.since
	turned := after.state != before.state || after.searching != before.searching || e.kind == boardFailed && same != before // a new verdict
	removal := before.state == Failed && (before.reason == ReasonUnplugged || before.reason == ReasonTimeout) && !e.next
	switch {
	case after.state == Passed && before.state != Passed && (before.state != Reading || e.kind != boardPassed || after.device != e.device):
		return "it passed without a receipt, or in the name of another board"
	case before.state == Passed && after.state == Passed && after != before:
		return "it passed once, and shows something else now"
	case before.held && e.kind != leakSeen && (!after.held || after.state != Failed || after.reason != ReasonPrivateKeyLeak || after.device != before.device):
		return "a leak went that nobody has acknowledged"
	case after.held != (after.reason == ReasonPrivateKeyLeak) && e.kind != leakSeen && before.held:
		return "a leak waits for nobody"
	case before.held:
		return ""
	case after.state == Reading && before.state != Reading && e.kind != boardFound && e.kind != boardHeard && e.kind != fixtureClosed && !e.next:
		return "it reads a board that nobody found"
	case removal && (e.kind == portLost || e.kind == boardGone) && (after.state != Failed || after.reason != before.reason || !after.gone):
		return "the failure went with the board that caused it"
	case before.gone && after.state != Failed && e.kind != portOpened && e.kind != portTrouble && e.kind != boardFound && e.kind != boardHeard && e.kind != fixtureClosed && !e.next:
		return "the failure did not stay until another board or the port appeared"
	case before.state == Reading && !before.searching && (e.kind == portLost || e.kind == boardGone) && after.reason != ReasonUnplugged:
		return "a board was taken away while it was read, and nothing shows it"
	case after.gone && after.state != Failed:
		return "a board that did not fail is shown though it is gone"
	case (after.since != before.since) != turned:
		return "since and the state did not change together"
	case turned && after.since != e.at:
		return "since is not the time of the event"
	case (after.reason != "") != (after.state == Failed):
		return "a reason without a failure, or a failure without a reason"
	case after.reason != "" && !slices.Contains(Reasons(), after.reason):
		return "a reason that Reasons does not list"
	case after.device.Valid() && after.state != Passed && after.state != Failed:
		return "a device where no board is shown"
	case sentences[after.advice] == "":
		return "no sentence says what to do"
	case before.reason == ReasonPrivateKeyLeak && e.kind == boardFailed && after != before && !before.gone:
		return "a leak was covered up by another failure"
	}
	return ""
}

// An event that is not known changes nothing.
func TestSlotUnknownEvent(t *testing.T) {
	for name, s := range slotStates {
		if got := s.next(event{kind: "board winked", at: time.Unix(1, 0), reason: ReasonGarbled, device: deviceTwo}); got != s {
			t.Errorf("%s became %+v", name, got)
		}
	}
}
