package station

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"secretfree/station/board"
)

// ScanKind is what the text of a scanner is.
type ScanKind string

// The kinds of scans.
const (
	ScanDevice ScanKind = "device" // a label with a device id
	ScanMAC    ScanKind = "mac"    // a label with a MAC address
	scanOrder  ScanKind = "order"  // a work order
	scanClear  ScanKind = "clear"  // nothing
)

// label is what stands on a board, as it was scanned.
type label struct {
	kind  ScanKind
	text  string // 32 hex digits, or a MAC address with colons; in lower case
	order uint64 // of the scans
	loose bool   // it was scanned for the next board in any slot
	again bool   // a board failed that may be tried again
}

// scan is the text of a scanner, understood.
type scan struct {
	kind    ScanKind
	label   label  // of ScanDevice and ScanMAC
	lot     string // of scanOrder
	planned int
}

const maxScan = 128 // bytes

var (
	// errScan says that a text is nothing that a scanner should read.
	errScan = errors.New("neither a label nor a work order")
	// errPartial is an errScan: a label that was not read as it is printed.
	errPartial = fmt.Errorf("%w: it looks like a label that was not read whole", errScan)
)

const (
	separators = " -:."
	hexDigits  = "0123456789abcdef"
)

var (
	// inFront of a label stands what some printers put there.
	inFront = regexp.MustCompile(`^(?:0x|(?:id|mac)[ :=#.-]*)`)
	pairs   = regexp.MustCompile(`^[0-9a-f]{2}(?:[ :.-][0-9a-f]{2}){5}$`)
)

// parseScan takes 32 hex digits for a device id and 12 for a MAC address, in
// any case and with blanks, hyphens, colons and points between them; else NAME
// or NAME;PLANNED for a work order. Twelve decimal digits are a MAC address
// only in pairs, since work orders have numbers of twelve digits. What looks
// like a part of a label is refused. A work order that looks like a label is
// written NAME; with nothing behind it.
func parseScan(text string) (scan, error) {
	if len(text) > maxScan || !utf8.ValidString(text) {
		return scan{}, fmt.Errorf("%w: it is longer than %d bytes, or no text", errScan, maxScan)
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return scan{kind: scanClear}, nil
	}
	lower := strings.ToLower(text)
	if digits, ok := onlyHex(lower); ok {
		switch decimal := strings.Trim(digits, "0123456789") == ""; {
		case len(digits) == 32:
			if _, err := board.ParseDeviceID(digits); err != nil {
				return scan{}, fmt.Errorf("%w: %w", errScan, err)
			}
			return scan{kind: ScanDevice, label: label{kind: ScanDevice, text: digits}}, nil
		case len(digits) == 12 && (!decimal || pairs.MatchString(lower)):
			return scan{kind: ScanMAC, label: label{kind: ScanMAC, text: withColons(digits)}}, nil
		}
	}
	if n := partial(lower); n > 0 {
		return scan{}, fmt.Errorf("%w (%d digits; a label has 32 or 12, and nothing in front of them)", errPartial, n)
	}
	name, number, found := strings.Cut(text, ";")
	s := scan{kind: scanOrder, lot: strings.TrimSpace(name)}
	if number = strings.TrimSpace(number); found && number != "" {
		n, err := strconv.ParseUint(number, 10, 31)
		if err != nil {
			return scan{}, fmt.Errorf("%w: %q is no number of boards", errScan, number)
		}
		s.planned = int(n)
	}
	if s.lot == "" {
		return scan{}, fmt.Errorf("%w: a work order without a name", errScan)
	}
	if err := (Lot{Name: s.lot, Planned: s.planned}).Check(); err != nil {
		return scan{}, fmt.Errorf("%w: %w", errScan, err)
	}
	return s, nil
}

// onlyHex gives the digits of a text of nothing but hex digits and separators.
func onlyHex(lower string) (digits string, ok bool) {
	digits = strings.Map(func(r rune) rune {
		if strings.ContainsRune(separators, r) {
			return -1
		}
		return r
	}, lower)
	return digits, digits != "" && strings.Trim(digits, hexDigits) == ""
}

// partial is the number of hex digits of what looks like a label that was not
// read as it is printed, else 0: 16 or more with a letter among them, about 32
// of any kind, or a label with something in front of it.
func partial(lower string) int {
	front := inFront.FindString(lower)
	digits, ok := onlyHex(lower[len(front):])
	n := len(digits)
	letter := strings.ContainsAny(digits, "abcdef")
	if ok && (n >= 16 && letter || n >= 28 && n <= 36 || n == 12 && front != "") {
		return n
	}
	return 0
}

func withColons(digits string) string {
	var pairs []string
	for pair := range slices.Chunk([]byte(digits), 2) {
		pairs = append(pairs, string(pair))
	}
	return strings.Join(pairs, ":")
}

// labelError is what a board is refused with that is not the one of its label.
type labelError struct {
	label label
	said  string // by the board; empty: nothing
}

func (e *labelError) Error() string {
	if e.said == "" {
		return fmt.Sprintf("the label names the %s %s, and the board said none", e.label.kind, e.label.text)
	}
	return fmt.Sprintf("the label names the %s %s, and the board is %s", e.label.kind, e.label.text, e.said)
}

// check compares a label with the board that it waited for.
func (l label) check(device board.DeviceID, facts map[string]string) error {
	said := device.String()
	if l.kind == ScanMAC {
		said = strings.Map(func(r rune) rune { // as it stands on a label
			if r == '-' {
				r = ':'
			}
			return unicode.ToLower(r)
		}, facts["mac"])
	}
	if said != l.text {
		return &labelError{l, said}
	}
	return nil
}

// labels are those that wait for their boards. A label that was scanned for a
// slot is for the next board in it, any other for the next board anywhere. It
// is used up by the verdict over that board, unless the board may be tried
// again: then it waits once more, where it waited before, or in the slot of its
// board if another label waits there by now. A label that named another board
// is used up too: it says something of the board that it was held against, and
// nothing of the next one. That board alone stays refused, in every slot, until
// it comes with its own label.
type labels struct {
	scans   uint64
	loose   *label
	bound   []*label // by slot
	taken   []*label // by slot: of the board that is being read
	refused []refusal
}

// refusal is a board that is not the one of a label.
type refusal struct {
	device board.DeviceID
	label  *label
}

const maxRefused = 256 // boards; of more, the oldest are forgotten

// wait has a label wait; slot is -1 for any. It takes the place of what waited
// there. One for any slot also ends every retry: a new scan is a new beginning.
func (w *labels) wait(l label, slot int) {
	w.scans++
	l.order, l.loose = w.scans, slot < 0
	if slot >= 0 {
		w.bound[slot] = &l
		return
	}
	w.loose = &l
	for i, old := range w.bound {
		if old != nil && old.again {
			w.bound[i] = nil
		}
	}
}

// clear forgets the labels that wait; slot is -1 for all, and for the boards
// that were refused. A board that is being read keeps its own.
func (w *labels) clear(slot int) {
	if slot >= 0 {
		w.bound[slot] = nil
		return
	}
	w.loose, w.refused = nil, nil
	clear(w.bound)
}

// take gives the board in a slot its label, if one waits.
func (w *labels) take(slot int) {
	switch {
	case w.bound[slot] != nil:
		w.taken[slot], w.bound[slot] = w.bound[slot], nil
	case w.loose != nil:
		w.taken[slot], w.loose = w.loose, nil
	}
}

// settle ends what take began; again says that the board may be tried again.
func (w *labels) settle(slot int, again bool) {
	l := w.taken[slot]
	w.taken[slot] = nil
	if l == nil || !again {
		return
	}
	back := *l
	back.again = true
	switch {
	case l.loose && w.loose == nil:
		w.loose = &back
	case w.bound[slot] == nil:
		w.bound[slot] = &back
	}
}

// refuse remembers that the board in a slot is not the one of its label. settle
// follows.
func (w *labels) refuse(slot int, device board.DeviceID) {
	l := w.taken[slot]
	if l == nil || !device.Valid() {
		return // it was refused before, and that holds
	}
	w.accept(device)
	w.refused = append(w.refused, refusal{device, l})
	w.refused = w.refused[max(0, len(w.refused)-maxRefused):]
}

// accept ends what refuse began.
func (w *labels) accept(device board.DeviceID) {
	w.refused = slices.DeleteFunc(w.refused, func(r refusal) bool { return r.device == device })
}

// against is the label that a board was refused with, or nil.
func (w *labels) against(device board.DeviceID) *label {
	for _, r := range w.refused {
		if r.device == device {
			return r.label
		}
	}
	return nil
}

// newest is the label that was scanned last of those that are not used up, and
// its slot, or -1.
func (w *labels) newest() (l *label, slot int) {
	l, slot = w.loose, -1
	for i := range w.bound {
		for _, other := range []*label{w.bound[i], w.taken[i]} {
			if other != nil && (l == nil || other.order > l.order) {
				l, slot = other, i
			}
		}
	}
	return l, slot
}

// triedAgain: the failures after which the same board may come again, with the
// same label.
func triedAgain(reason Reason) bool {
	switch reason {
	case ReasonUnplugged, ReasonNeedsReset, ReasonTimeout, ReasonGarbled, ReasonNoDialect, ReasonWrongSpeed, ReasonLotUnreadable, ReasonDiskFull, ReasonDiskError:
		return true
	}
	return false
}

// Scanned is the label that waits for its board, or whose board is being read.
type Scanned struct {
	Text string   `json:"text"`
	Kind ScanKind `json:"kind"`
	Slot string   `json:"slot"` // whose board it is; empty: the next one anywhere
}

// spaced is its text as it stands on the page, an id in groups of four.
func (s Scanned) spaced() string {
	if s.Kind == ScanDevice {
		return strings.Join(groups(s.Text), " ")
	}
	return s.Text
}

// Scan takes in the text of a scanner; slot is the name of the slot that a
// label was scanned for, or empty. The error says what is wrong with the
// arguments.
func (s *Station) Scan(text, slot string) error {
	i := slices.IndexFunc(s.slots, func(c SlotConfig) bool { return c.Name == slot })
	if i < 0 && slot != "" {
		return fmt.Errorf("there is no slot %.40q", slot)
	}
	read, err := parseScan(text)
	if err != nil {
		return err
	}
	if read.kind == scanOrder {
		return s.BeginLot(read.lot, read.planned)
	}
	s.mu.Lock()
	if read.kind == scanClear {
		s.labels.clear(i)
	} else {
		s.labels.wait(read.label, i)
	}
	s.notifyChange()
	s.mu.Unlock()
	s.log.Info().Str("kind", string(read.kind)).Str("label", read.label.text).Str("slot", slot).Msg("scanned")
	return nil
}
