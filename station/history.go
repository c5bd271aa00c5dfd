package station

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode"

	"secretfree/station/board"
)

// Verdict is what came of one board in one slot at one time.
type Verdict struct {
	Time      time.Time      // UTC
	Slot      string         // empty if it is not known
	State     State          // Passed or Failed
	Repeat    bool           // Passed: it was enrolled before
	Reason    Reason         // of Failed; empty if it is not known any more
	Device    board.DeviceID // zero if it is not known
	Other     board.DeviceID // of a conflict: the board that is known; zero if it is this one, or not known
	Confirmed bool           // Passed: the cloud has confirmed

	// Transcript is the name of what was said, of a failure whose board is not known; empty if it is not kept. Only Between fills it in.
	Transcript string
}

// BoardHistory is what a station has of one board.
type BoardHistory struct {
	Device      board.DeviceID
	Enrolled    time.Time         // when its record was journaled; zero if it has none: it was only refused
	Entry       uint64            // the place of the record in the journal
	Fingerprint board.Fingerprint // of the key in the record
	Record      *board.Record     // nil if there is none, or if it is not on this disk
	Confirmed   bool              // the cloud has confirmed
	Refused     string            // why the cloud refused it for good; empty if it did not
	Slot        string            // where it was enrolled; empty if it is not known
	Verdicts    []Verdict         // that came after, the newest first, also on boards that were taken for this one
	Older       int               // how many more there are
	Transcripts []TranscriptName  // that are kept of it, the newest first
}

// TranscriptName is a transcript that is kept.
type TranscriptName struct {
	Name   string // what Evidence.Transcript takes: ASCII letters, digits, and . _ -
	Time   time.Time
	Slot   string
	Passed bool
	Reason Reason // of a failure
}

// History looks back at what a station holds. It is asked by one request at a time, bounded by the context, and must let no slot wait.
type History interface {
	// Find gives the boards whose id, address or key has some text in it, the newest 50 verdicts if it is empty, and whether there are
	// more. ErrUnfindable says that it cannot be looked for.
	Find(ctx context.Context, text string) (found []Verdict, more bool, err error)
	// Board gives what there is of a board, or ErrNoBoard.
	Board(ctx context.Context, device board.DeviceID) (BoardHistory, error)
	// Between gives the verdicts from a time up to another, in order. incomplete: some failures that no journal holds may be missing.
	Between(ctx context.Context, from, to time.Time) (verdicts []Verdict, incomplete bool, err error)
}

// Evidence hands out files about boards, likewise.
type Evidence interface {
	// Proof proves that a board's record is in the signed journal. ErrNoBoard: there is none; ErrUnsigned: it is not signed yet;
	Proof(ctx context.Context, device board.DeviceID) ([]byte, error)
	// Transcript gives a transcript by a name from BoardHistory, and by no other, or ErrNoTranscript.
	Transcript(name string) ([]byte, error)
}

// Errors of History and Evidence.
var (
	ErrUnfindable   = errors.New("this cannot be looked for")
	ErrNoBoard      = errors.New("nothing is known of this board")
	ErrUnsigned     = errors.New("the record of this board is not signed yet")
	ErrNoTranscript = errors.New("there is no such transcript")
)

// tell hands a verdict over that has just been shown.
func (s *Station) tell(i int) {
	if s.verdicts == nil {
		return
	}
	s.mu.Lock()
	state := s.states[i]
	s.mu.Unlock()
	if state.state != Passed && state.state != Failed {
		return
	}
	v := Verdict{Time: state.since.UTC(), Slot: s.slots[i].Name, State: state.state, Repeat: state.advice == adviceRepeat, Reason: state.reason, Device: state.device}
	var err error
	s.toDisk(i, func() { err = s.verdicts(v) })
	if err != nil {
		s.log.Warn().Str("slot", v.Slot).Err(err).Msg("the verdict is missing in the report of the shift")
	}
}

const maxSaid = 500 // characters of what others said

// clean makes of what a board or a registry said something that can be shown in a line: without what would turn or hide the text around it.
func clean(said string) string {
	n := 0
	return strings.Map(func(r rune) rune {
		if n++; n > maxSaid {
			return -1
		}
		if unicode.IsPrint(r) && !unicode.In(r, unicode.Bidi_Control, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return r
		}
		return '\uFFFD'
	}, said)
}
