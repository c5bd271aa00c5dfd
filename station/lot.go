package station

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Lot counts what is being made. One with a name is a work order, and counts
// until another is begun; without one, the count is of one day, by the clock of
// the station. What is counted are verdicts: a board that failed once and
// passed then is in both counts.
type Lot struct {
	Name     string    `json:"name"`     // 1 to 64 printable characters; empty: nobody named one
	Planned  int       `json:"planned"`  // boards; 0: not known
	Passed   int       `json:"passed"`   // boards that passed for the first time
	Repeated int       `json:"repeated"` // passes of boards that were enrolled before
	Failed   int       `json:"failed"`   // verdicts against a board
	Since    time.Time `json:"since"`    // UTC
}

const (
	maxLotName = 64         // characters
	maxPlanned = 10_000_000 // boards
	maxEarlier = 8          // lots that are remembered besides the present one
	// lotPause is the shortest time between two calls of Config.KeepLot.
	lotPause = time.Second
)

// Check says what is wrong with a lot, if anything is.
func (l Lot) Check() error {
	switch {
	case strings.TrimSpace(l.Name) != l.Name || utf8.RuneCountInString(l.Name) > maxLotName || !utf8.ValidString(l.Name) ||
		strings.ContainsFunc(l.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("the name of a lot is %.80q, want up to %d printable characters", l.Name, maxLotName)
	case l.Planned < 0 || l.Planned > maxPlanned:
		return fmt.Errorf("a lot of %d boards, want 0 to %d", l.Planned, maxPlanned)
	case l.Passed < 0 || l.Repeated < 0 || l.Failed < 0:
		return errors.New("a lot with a count below 0")
	}
	return nil
}

// on is the lot at a moment: the count of a day ends with it.
func (l Lot) on(now time.Time) Lot {
	y1, m1, d1 := l.Since.Local().Date()
	y2, m2, d2 := now.Local().Date()
	if l.Name == "" && (y1 != y2 || m1 != m2 || d1 != d2) {
		return Lot{Since: now.UTC().Truncate(time.Millisecond)}
	}
	return l
}

// begin is since when verdicts count for a lot without a name: the beginning of
// its day.
func (l Lot) begin() time.Time {
	y, m, d := l.Since.Local().Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.Local)
}

// inFrontOf puts a lot in front of those that were made earlier, in a new list.
// One without a name is not remembered: its count is that of a day.
func (l Lot) inFrontOf(earlier []Lot) []Lot {
	if l.Name == "" {
		return earlier
	}
	list := []Lot{l}
	for _, other := range earlier {
		if other.Name != l.Name && len(list) < maxEarlier {
			list = append(list, other)
		}
	}
	return list
}

// BeginLot begins another lot. If it has the name of the present one, or of one
// of the last eight before it, that goes on: only what is planned is changed,
// if it is known. An empty name ends a lot. The error says what is wrong with
// the arguments.
func (s *Station) BeginLot(name string, planned int) error {
	now := time.Now()
	next := Lot{Name: name, Planned: planned, Since: now.UTC().Truncate(time.Millisecond)}
	if err := next.Check(); err != nil {
		return err
	}
	counted, err := s.counted(next)
	if err != nil {
		s.log.Error().Err(err).Msg("the count of the lot is not known")
	}
	s.mu.Lock()
	before := s.lot.on(now)
	for _, lot := range append([]Lot{before}, s.earlier...) {
		if lot.Name == name {
			next = lot
			if planned > 0 {
				next.Planned = planned
			}
			break
		}
	}
	if before.Name != name {
		if s.history != nil {
			next.Passed, next.Repeated, next.Failed = counted.Passed, counted.Repeated, counted.Failed
		}
		again := func(l Lot) bool { return l.Name == name }
		s.earlier = before.inFrontOf(slices.DeleteFunc(slices.Clone(s.earlier), again))
	}
	s.lot = next
	s.lotTurned()
	s.notifyChange()
	s.mu.Unlock()
	s.log.Info().Str("lot", next.Name).Int("planned", next.Planned).Int("passed", next.Passed).Msg("the lot that is made")
	return nil
}

// lotTurned has the lot kept. The caller holds mu.
func (s *Station) lotTurned() {
	select {
	case s.lotChanged <- struct{}{}:
	default: // it will be kept anyway
	}
}

// keepLots hands the lot to Config.KeepLot when it has changed, again while
// that fails, until ctx ends, and then once more if what was kept last is not
// the lot.
func (s *Station) keepLots(ctx context.Context) {
	var told string
	var again <-chan time.Time // nil if what is kept is the lot
	keep := func() {
		s.mu.Lock()
		lot, earlier := s.lot, s.earlier
		s.mu.Unlock()
		text := ""
		if err := s.keepLot(lot, earlier); err != nil {
			text = err.Error()
		}
		if text != "" && text != told {
			s.log.Warn().Str("error", text).Msg("the work order is not kept; a restart will forget its name")
		}
		told, again = text, nil
		if text != "" {
			again = time.After(lotPause)
		}
	}
	for {
		select {
		case <-s.lotChanged:
			keep()
			sleep(ctx, lotPause)
		case <-again:
			keep()
		case <-ctx.Done():
			select {
			case <-s.lotChanged:
				keep()
			default:
				if again != nil {
					keep()
				}
			}
			return
		}
	}
}

const maxRecent = 10

// tally counts a verdict that slot i shows now. The caller holds mu.
func (s *Station) tally(i int, shown slotState, e event) {
	switch {
	case e.old:
		return
	case e.unjournaled:
		s.stats.Failed[shown.reason]++
		return
	}
	s.lot = s.lot.on(shown.since)
	switch {
	case shown.state == Failed:
		s.stats.Failed[shown.reason]++
		s.lot.Failed++
	case e.repeat:
		s.stats.Passed++
		s.stats.Repeated++
		s.lot.Repeated++
	default:
		s.stats.Passed++
		s.lot.Passed++
	}
	if s.history != nil {
		return // journaled has read them
	}
	v := Verdict{Time: shown.since.UTC().Truncate(time.Millisecond), Slot: s.slots[i].Name, State: shown.state, Repeat: e.repeat, Reason: shown.reason, Device: shown.device}
	// A new list: snapshots hold the old one.
	s.recent = append([]Verdict{v}, s.recent[:min(len(s.recent), maxRecent-1)]...)
}
