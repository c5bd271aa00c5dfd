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
	Time     time.Time      // UTC
	Slot     string         // empty if it is not known
	State    State          // Passed or Failed
	Repeat   bool           // Passed: it was enrolled before
	Reason   Reason         // of Failed; empty if it is not known any more
	Device   board.DeviceID // zero if it is not known
	Other    board.DeviceID // of a conflict: the board that is known; zero if it is this one, or not known
	Delivery Delivery       // Passed: how far the cloud has the record

	Entry      uint64  // in the journal
	After      *uint64 // the entry of the verdict before this one in the same insertion
	Lot        string
	Transcript string // the name of what was said; empty if it is not kept
}

// Delivery is how far the cloud has a record.
type Delivery string

// How far the cloud has a record.
const (
	Confirmed Delivery = "confirmed"
	Waiting   Delivery = "waiting"
	Rejected  Delivery = "rejected" // for good: a case for quality
)

// Icon is the page's icon for it.
func (d Delivery) Icon() string {
	switch d {
	case Confirmed:
		return "confirmed"
	case Rejected:
		return "urgent"
	}
	return "waiting"
}

// Key is that of its sentence.
func (d Delivery) Key() string {
	switch d {
	case Confirmed, Rejected:
		return "cloud-" + string(d)
	}
	return "cloud-waiting"
}

// Counts are how many verdicts there are.
type Counts struct {
	Passed, Repeated uint64
	Failed           map[Reason]uint64
}

// BoardHistory is what a station has of one board.
type BoardHistory struct {
	Device      board.DeviceID
	Enrolled    time.Time         // when its record was journaled; zero if it has none: it was only refused
	Entry       uint64            // the place of the record in the journal
	Fingerprint board.Fingerprint // of the key in the record
	Record      *board.Record     // nil if there is none, or if it is not on this disk
	Delivery    Delivery          // how far the cloud has the record
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

// History looks back at what a station holds. It is asked by one request at a
// time, bounded by the context, and must let no slot wait.
type History interface {
	// Find gives the boards whose id, address or key has some text in it, the
	// newest 50 verdicts if it is empty, and whether there are more.
	// ErrUnfindable says that it cannot be looked for.
	Find(ctx context.Context, text string) (found []Verdict, more bool, err error)
	// Board gives what there is of a board, or ErrNoBoard.
	Board(ctx context.Context, device board.DeviceID) (BoardHistory, error)
	// Between gives the verdicts from a time up to another, in the order in
	// which they were journaled.
	Between(ctx context.Context, from, to time.Time) ([]Verdict, error)
	// Recent gives the newest verdicts, at most n, the newest first.
	Recent(ctx context.Context, n int) ([]Verdict, error)
	// Count counts all verdicts, CountLot those of a lot; of one without a
	// name, those since a time.
	Count(ctx context.Context) (Counts, error)
	CountLot(ctx context.Context, name string, since time.Time) (Counts, error)
}

// Evidence hands out files about boards, likewise.
type Evidence interface {
	// Proof proves that a board's record is in the signed journal. ErrNoBoard:
	// there is none; ErrUnsigned: it is not signed yet;
	Proof(ctx context.Context, device board.DeviceID) ([]byte, error)
	// Transcript gives a transcript by a name from BoardHistory, and by no
	// other, or ErrNoTranscript.
	Transcript(name string) ([]byte, error)
}

// Errors of History and Evidence.
var (
	ErrUnfindable   = errors.New("this cannot be looked for")
	ErrNoBoard      = errors.New("nothing is known of this board")
	ErrUnsigned     = errors.New("the record of this board is not signed yet")
	ErrNoTranscript = errors.New("there is no such transcript")
)

const maxSaid = 500 // characters of what others said

// clean makes of what a board or a registry said something that can be shown in
// a line: without what would turn or hide the text around it.
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
