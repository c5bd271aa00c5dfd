package cloud

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"secretfree/station/board"
)

// maxEvents is how many changes the item of a device remembers. Then no more is
// taken, because none is ever dropped; the item stays below half of what
// DynamoDB takes. The last two are kept for a revocation and a scrapping.
const maxEvents = 256

// Of a change, in bytes.
const (
	maxWho = 128
	maxWhy = 256
)

const (
	maxEpoch   = 1 << 30
	dynamoItem = 400 << 10
	maxEvent   = 32 + len(enrolledAtLayout) + maxWho + maxWhy + 3*16 + 16 + 128 // with names, and what DynamoDB adds
)

const _ = uint(dynamoItem/2 - maxItem - maxEvents*maxEvent) // it fits

// Action is what an operator does to a device.
type Action string

// The actions. What each needs and leads to is the table of transitions.
const (
	Hold     Action = "hold"
	Release  Action = "release"
	Scrap    Action = "scrap"  // for ever
	Revoke   Action = "revoke" // its certificates count no more
	Transfer Action = "transfer"
)

type transition struct {
	from   []board.State
	to     board.State
	raises func(from board.State) bool // the epoch, so that former certificates do not count
}

func (a Action) transition() (transition, bool) {
	never := func(board.State) bool { return false }
	switch a {
	case Hold:
		return transition{[]board.State{board.Active}, board.Held, never}, true
	case Release:
		return transition{[]board.State{board.Held, board.Revoked}, board.Active, func(from board.State) bool { return from == board.Revoked }}, true
	case Scrap:
		return transition{[]board.State{board.Active, board.Held, board.Revoked}, board.Scrapped, never}, true
	case Revoke:
		return transition{[]board.State{board.Active, board.Held}, board.Revoked, never}, true
	case Transfer:
		return transition{[]board.State{board.Active}, board.Active, func(board.State) bool { return true }}, true
	}
	return transition{}, false
}

// room is how many events there may be before it.
func (a Action) room() int {
	switch a {
	case Scrap:
		return maxEvents
	case Revoke:
		return maxEvents - 1
	}
	return maxEvents - 2
}

// Raises tells whether the action needs a new epoch for a device in that state.
func (a Action) Raises(from board.State) bool {
	t, ok := a.transition()
	return ok && t.raises(from)
}

// Change is one change of a device's state.
type Change struct {
	// ID names the change: the same change again, with the same ID, is done
	// once. 16 to 32 letters and digits; empty: a new one.
	ID     string
	Action Action
	Who    string    // 1 to 128 bytes, printable
	Why    string    // 1 to 256 bytes, printable
	At     time.Time // UTC, whole milliseconds
	// Epoch, if not 0, is what the epoch of the enrolment is raised to; a
	// transfer, and the release of what was revoked, need one.
	Epoch int
}

// Event is a change that was made, as the item of the device remembers it.
type Event struct {
	ID       string
	At       time.Time // UTC, whole milliseconds
	Who, Why string
	Action   Action
	From, To board.State
	Epoch    int // of the enrolment, from then on
}

// Why a change was not made. ErrChange is about the change alone; the others
// come in a *Refused. Each can be told from a failure, and each left everything
// as it was.
var (
	ErrChange     = errors.New("not a valid change of a device's state")
	ErrTransition = errors.New("this cannot be done to a device in this state")
	errEpoch      = errors.New("the epoch has to rise")
	ErrMeanwhile  = errors.New("another change came first")
	errFull       = errors.New("the history of the device is full: it can only be revoked, and scrapped")
)

// Refused says why a change was not made, and what is there.
type Refused struct {
	Kind   error // ErrTransition, errEpoch, ErrMeanwhile or errFull
	Action Action
	Now    board.Enrolment
	Last   *Event // the latest change; nil if there was none
}

func (r *Refused) Error() string {
	text := fmt.Sprintf("device %s: %s: %v: it is %s in epoch %d", r.Now.Device, r.Action, r.Kind, r.Now.State, r.Now.Epoch)
	if r.Last != nil {
		text += fmt.Sprintf(", since %s by %s: %s", r.Last.At.Format(time.RFC3339), r.Last.Who, r.Last.Why)
	}
	return text
}

func (r *Refused) Unwrap() error { return r.Kind }

func isChangeID(id string) bool {
	other := func(r rune) bool { return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') }
	return len(id) >= 16 && len(id) <= 32 && !strings.ContainsFunc(id, other)
}

// NewChangeID makes an ID for a Change.
func NewChangeID() string { return rand.Text() }

func (c *Change) check() error {
	if c.ID == "" {
		c.ID = NewChangeID()
	}
	if _, ok := c.Action.transition(); !ok {
		return fmt.Errorf("%w: the action %.40q is unknown", ErrChange, c.Action)
	}
	if err := checkEvent(c.ID, c.Who, c.Why, c.At, c.Epoch); err != nil {
		return fmt.Errorf("%w: %v", ErrChange, err)
	}
	return nil
}

func checkEvent(id, who, why string, at time.Time, epoch int) error {
	switch {
	case !isChangeID(id):
		return fmt.Errorf("the id %.80q is not of 16 to 32 letters and digits", id)
	case at.Location() != time.UTC || at.Nanosecond()%int(time.Millisecond) != 0 || at.Year() < 1970 || at.Year() > 9999:
		return fmt.Errorf("the time %v is not in UTC and whole milliseconds", at)
	case epoch < 0 || epoch > maxEpoch:
		return fmt.Errorf("the epoch is %d, want 0 to %d", epoch, maxEpoch)
	}
	if err := checkWords("who", who, maxWho); err != nil {
		return err
	}
	return checkWords("why", why, maxWhy)
}

func checkWords(what, text string, limit int) error {
	switch {
	case strings.TrimSpace(text) == "":
		return fmt.Errorf("%s is empty", what)
	case len(text) > limit:
		return fmt.Errorf("%s has %d bytes, want %d at most", what, len(text), limit)
	case !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%s is not printable: %q", what, text)
	}
	return nil
}

// on says what the change makes of a stored item: an event to be added, or one
// that is there already.
func (c Change) on(device board.DeviceID, stored *item) (e board.Enrolment, event Event, made bool, err error) {
	if stored == nil {
		return e, event, false, fmt.Errorf("device %s: %w", device, board.ErrNotEnrolled)
	}
	if e, err = stored.enrolment(device); err != nil {
		return e, event, false, err
	}
	if len(e.Envelope) == 0 {
		return e, event, false, fmt.Errorf("device %s: %w: it has no state to be changed, and gets no certificate", device, ErrUnsigned)
	}
	events, err := stored.events(e)
	if err != nil {
		return e, event, false, damaged(device, "state-history: %v", err)
	}
	for _, known := range events {
		if known.ID == c.ID {
			if known.Action != c.Action || known.Who != c.Who || known.Why != c.Why {
				return e, event, false, fmt.Errorf("device %s: %w: its id %s is that of another: %s by %s: %s", device, ErrChange, c.ID, known.Action, known.Who, known.Why)
			}
			return e, known, true, nil
		}
	}
	t, _ := c.Action.transition()
	switch {
	case !slices.Contains(t.from, e.State):
		err = ErrTransition
	case c.Epoch != 0 && c.Epoch < e.Epoch, t.raises(e.State) && c.Epoch <= e.Epoch:
		err = errEpoch
	case len(events) >= c.Action.room():
		err = errFull
	}
	if err != nil {
		return e, event, false, c.refused(err, e, events)
	}
	return e, Event{ID: c.ID, At: c.At, Who: c.Who, Why: c.Why, Action: c.Action, From: e.State, To: t.to, Epoch: max(e.Epoch, c.Epoch)}, false, nil
}

func (c Change) refused(kind error, now board.Enrolment, events []Event) error {
	r := &Refused{Kind: kind, Action: c.Action, Now: now}
	if len(events) > 0 {
		r.Last = &events[len(events)-1]
	}
	return r
}

// ChangeState changes the state of a device and remembers by whom and why in
// one conditional write, durably, and returns what is enrolled then. Of two
// changes at once one is made and the other refused. Errors are a *Refused,
// ErrChange, ErrDamaged, ErrUnsigned or board.ErrNotEnrolled; after any other
// one it is not known whether the change was made: the same Change with the
// same ID again finds out. It needs dynamodb:GetItem and dynamodb:UpdateItem,
// which a station must not have.
func (a *AWS) ChangeState(ctx context.Context, device board.DeviceID, c Change) (board.Enrolment, error) {
	if err := c.check(); err != nil {
		return board.Enrolment{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	stored, err := a.getItem(ctx, device)
	if err != nil {
		return board.Enrolment{}, err
	}
	e, event, made, err := c.on(device, stored)
	if err != nil {
		return board.Enrolment{}, err
	}
	if made {
		return e, nil
	}
	err = a.addEvent(ctx, stored, event)
	if err == nil {
		e.State, e.Epoch = event.To, event.Epoch
		return e, nil
	}
	failure := a.fault("changing the state of device "+device.String()+" in table "+a.config.Table, err)
	_, refused := errors.AsType[*types.ConditionalCheckFailedException](err)
	if code := status(err); !refused && code >= http.StatusBadRequest && code < http.StatusInternalServerError {
		return board.Enrolment{}, failure
	}
	// Perhaps it was done, and only the answer is lost; a condition may have
	// failed on our own write.
	if stored, err = a.getItem(ctx, device); err != nil {
		return board.Enrolment{}, failure
	}
	now, _, made, err := c.on(device, stored)
	switch {
	case made && err == nil:
		return now, nil
	case !refused:
		return board.Enrolment{}, failure
	case now.State == "": // there is no item that can be read
		return board.Enrolment{}, err
	}
	events, err := stored.events(now)
	if err != nil {
		return board.Enrolment{}, damaged(device, "state-history: %v", err)
	}
	return board.Enrolment{}, c.refused(ErrMeanwhile, now, events)
}

// addEvent holds only if the item is still in the state that was read.
func (a *AWS) addEvent(ctx context.Context, was *item, event Event) error {
	text := func(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
	update := "SET #state = :to, #history = list_append(if_not_exists(#history, :none), :event)"
	condition := "#state = :from AND #fingerprint = :fingerprint"
	names := map[string]string{"#state": "state", "#fingerprint": "key-fingerprint", "#history": "state-history", "#epoch": "epoch"}
	values := map[string]types.AttributeValue{
		":from": text(string(event.From)), ":to": text(string(event.To)), ":fingerprint": text(was.fingerprint),
		":none": &types.AttributeValueMemberL{}, ":event": eventsToDynamo(encodeEvents([]Event{event})),
	}
	// Events are only ever added, so their number is a version.
	if was.history == "" {
		condition += " AND attribute_not_exists(#history)"
	} else {
		condition += " AND size(#history) = :events"
		events, err := parseEvents([]byte(was.history))
		if err != nil {
			return err
		}
		values[":events"] = &types.AttributeValueMemberN{Value: strconv.Itoa(len(events))}
	}
	if was.epoch == "" {
		condition += " AND attribute_not_exists(#epoch)"
	} else {
		condition += " AND #epoch = :was"
		values[":was"] = &types.AttributeValueMemberN{Value: was.epoch}
	}
	if event.Epoch > 0 {
		update += ", #epoch = :epoch"
		values[":epoch"] = &types.AttributeValueMemberN{Value: strconv.Itoa(event.Epoch)}
	}
	_, err := a.dynamo.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: aws.String(a.config.Table), Key: map[string]types.AttributeValue{"device-id": text(was.device)},
		UpdateExpression: &update, ConditionExpression: &condition, ExpressionAttributeNames: names, ExpressionAttributeValues: values,
	})
	return err
}

// History gives the changes of a device's state, the latest last, read
// consistently. The errors are those of Lookup.
func (a *AWS) History(ctx context.Context, device board.DeviceID) ([]Event, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	stored, err := a.getItem(ctx, device)
	if err != nil {
		return nil, err
	}
	return historyOf(device, stored)
}

func historyOf(device board.DeviceID, stored *item) ([]Event, error) {
	if stored == nil {
		return nil, fmt.Errorf("device %s: %w", device, board.ErrNotEnrolled)
	}
	e, err := stored.enrolment(device)
	if err != nil {
		return nil, err
	}
	return stored.events(e)
}

// ChangeState changes the state of a device and remembers by whom and why, in
// one replacement of its file, synced, and returns what is enrolled then.
// Errors are a *Refused, ErrChange, ErrDamaged, ErrUnsigned or
// board.ErrNotEnrolled; after any other one it is not known whether the change
// was made: the same Change with the same ID again finds out.
func (d *Dir) ChangeState(ctx context.Context, device board.DeviceID, c Change) (e board.Enrolment, err error) {
	if err := c.check(); err != nil {
		return e, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	err = d.locked(ctx, func(w *writeTxn) error {
		e, err = w.changeState(device, c)
		return err
	})
	if err != nil {
		e = board.Enrolment{}
	}
	if _, ok := errors.AsType[*Refused](err); ok {
		return e, err
	}
	return e, d.explain("changing the state of device "+device.String(), err)
}

func (w *writeTxn) changeState(device board.DeviceID, c Change) (e board.Enrolment, err error) {
	if err := w.finish(); err != nil {
		return e, err
	}
	stored, err := readItem(w.root, itemName(device), device)
	if err != nil {
		return e, err
	}
	e, event, made, err := c.on(device, stored)
	if err != nil {
		return e, err
	}
	if made { // its maker may have crashed before the sync
		return e, syncFolder(w.root, "items")
	}
	events, err := stored.events(e)
	if err != nil {
		return e, damaged(device, "state-history: %v", err)
	}
	stored.state, stored.history = string(event.To), encodeEvents(append(events, event))
	if event.Epoch > 0 {
		stored.epoch = strconv.Itoa(event.Epoch)
	}
	e.State, e.Epoch = event.To, event.Epoch
	return e, w.replace(itemName(device), stored.json())
}

// History gives the changes of a device's state, the latest last. The errors
// are those of Lookup.
func (d *Dir) History(_ context.Context, device board.DeviceID) (events []Event, err error) {
	err = func() error {
		root, err := d.open()
		if err != nil {
			return err
		}
		defer root.Close()
		stored, err := readItem(root, itemName(device), device)
		if err != nil {
			return err
		}
		events, err = historyOf(device, stored)
		return err
	}()
	return events, d.explain("reading the history of device "+device.String(), err)
}

// The encodings of events.

type eventJSON struct {
	ID     string `json:"id"`
	At     string `json:"at"`
	Who    string `json:"who"`
	Why    string `json:"why"`
	Action string `json:"action"`
	From   string `json:"from"`
	To     string `json:"to"`
	Epoch  int    `json:"epoch"`
}

func (e Event) wire() eventJSON {
	return eventJSON{e.ID, e.At.Format(enrolledAtLayout), e.Who, e.Why, string(e.Action), string(e.From), string(e.To), e.Epoch}
}

// event reads strictly.
func (w eventJSON) event() (e Event, err error) {
	at, err := time.Parse(enrolledAtLayout, w.At)
	if err != nil {
		return e, err
	}
	e = Event{w.ID, at.UTC(), w.Who, w.Why, Action(w.Action), board.State(w.From), board.State(w.To), w.Epoch}
	t, ok := e.Action.transition()
	if !ok || !slices.Contains(t.from, e.From) || e.To != t.to {
		return e, fmt.Errorf("%.40q does not lead from %.40q to %.40q", w.Action, w.From, w.To)
	}
	return e, checkEvent(e.ID, e.Who, e.Why, e.At, e.Epoch)
}

// encodeEvents writes the one encoding of events: JSON without white space.
func encodeEvents(events []Event) string {
	var wire []eventJSON
	for _, e := range events {
		wire = append(wire, e.wire())
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(wire) // texts and numbers always encode, and a Builder always takes them
	return strings.TrimSuffix(b.String(), "\n")
}

type eventField struct {
	name  string
	value *string
}

// texts are the fields that are texts, by their names.
func (w *eventJSON) texts() []eventField {
	return []eventField{{"id", &w.ID}, {"at", &w.At}, {"who", &w.Who}, {"why", &w.Why}, {"action", &w.Action}, {"from", &w.From}, {"to", &w.To}}
}

// parseEvents reads a history: one event or more, each of which goes on from
// the one before.
func parseEvents(data []byte) ([]Event, error) {
	var wire []eventJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&wire); err != nil {
		return nil, err
	}
	return joinEvents(wire)
}

func joinEvents(wire []eventJSON) ([]Event, error) {
	if len(wire) == 0 || len(wire) > maxEvents {
		return nil, fmt.Errorf("%d changes, want 1 to %d", len(wire), maxEvents)
	}
	var events []Event
	for n, w := range wire {
		e, err := w.event()
		if err != nil {
			return nil, fmt.Errorf("change %d: %w", n, err)
		}
		floor := 0
		if n > 0 {
			if before := events[n-1]; before.To != e.From {
				return nil, fmt.Errorf("change %d begins at %s, the one before it ended at %s", n, e.From, before.To)
			}
			floor = events[n-1].Epoch
		}
		if e.Epoch < floor || e.Action.Raises(e.From) && e.Epoch <= floor {
			return nil, fmt.Errorf("change %d: the epoch %d comes after %d", n, e.Epoch, floor)
		}
		events = append(events, e)
	}
	return events, nil
}

// eventsToDynamo takes the one encoding.
func eventsToDynamo(history string) types.AttributeValue {
	var wire []eventJSON
	_ = json.Unmarshal([]byte(history), &wire) // encodeEvents wrote it
	list := &types.AttributeValueMemberL{}
	for _, w := range wire {
		event := map[string]types.AttributeValue{"epoch": &types.AttributeValueMemberN{Value: strconv.Itoa(w.Epoch)}}
		for _, field := range w.texts() {
			event[field.name] = &types.AttributeValueMemberS{Value: *field.value}
		}
		list.Value = append(list.Value, &types.AttributeValueMemberM{Value: event})
	}
	return list
}

func eventsFromDynamo(list *types.AttributeValueMemberL) (string, error) {
	var wire []eventJSON
	for n, v := range list.Value {
		var w eventJSON
		m, _ := v.(*types.AttributeValueMemberM)
		if m == nil || len(m.Value) != len(w.texts())+1 {
			return "", fmt.Errorf("change %d is not of its form", n)
		}
		for _, field := range w.texts() {
			s, _ := m.Value[field.name].(*types.AttributeValueMemberS)
			if s == nil {
				return "", fmt.Errorf("change %d is not of its form", n)
			}
			*field.value = s.Value
		}
		number, _ := m.Value["epoch"].(*types.AttributeValueMemberN)
		if number == nil {
			return "", fmt.Errorf("change %d is not of its form", n)
		}
		var err error
		if w.Epoch, err = strconv.Atoi(number.Value); err != nil {
			return "", fmt.Errorf("change %d: %w", n, err)
		}
		wire = append(wire, w)
	}
	events, err := joinEvents(wire)
	if err != nil {
		return "", err
	}
	return encodeEvents(events), nil
}

// onePerLine lays a history out for people. It takes the one encoding.
func onePerLine(history string) string {
	var events []json.RawMessage
	_ = json.Unmarshal([]byte(history), &events) // encodeEvents wrote it
	var b strings.Builder
	separator := "["
	for _, e := range events {
		b.WriteString(separator + "\n    " + string(e))
		separator = ","
	}
	b.WriteString("\n  ]")
	return b.String()
}
