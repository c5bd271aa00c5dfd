package station

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"secretfree/uart"
)

// Status is the answer of GET /status and the data of every event of GET
// /events, as JSON. What is for people is in the language of the request.
type Status struct {
	Station string       `json:"station"`
	Slots   []SlotStatus `json:"slots"` // in the order of Config.Slots
	Backlog Backlog      `json:"backlog"`
	Notices []Notice     `json:"notices"` // for people, what is urgent first
	Cloud   string       `json:"cloud"`   // the backlog in a few words, for people
	Lot     *Lot         `json:"lot"`     // what is being made; a station always has one
	Recent  []Recent     `json:"recent"`  // the newest first, at most 10; since the start
	Scan    *Scanned     `json:"scan"`    // null if no label waits
	Version string       `json:"version"` // of the program
	Signed  uint64       `json:"signed"`  // entries of the journal under its newest signed checkpoint
}

// SlotStatus is one slot.
type SlotStatus struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	Device    string    `json:"device"`    // 32 hex digits, or empty if it is not known
	Reason    Reason    `json:"reason"`    // of Failed, else empty
	Advice    string    `json:"advice"`    // what to do now, for people
	Call      Call      `json:"call"`      // whom the advice says to call
	Confirmed bool      `json:"confirmed"` // Passed, and the cloud has confirmed
	Since     time.Time `json:"since"`     // UTC; when the state began
	Port      string    `json:"port"`
	// Heard: what the port said that is no board: text, login, boot-loader,
	// wrong-speed or noise; else empty.
	Heard uart.Heard `json:"heard"`
	// Searching: Reading, and something is connected of which it is not known
	// yet what it is.
	Searching bool `json:"searching"`
	// Acknowledge: the failure stays until somebody acknowledges it; see
	// Station.Acknowledge.
	Acknowledge bool     `json:"acknowledge"`
	Delivery    Delivery `json:"delivery"` // of Passed, else empty
}

// Recent is one of the last verdicts.
type Recent struct {
	Time      time.Time `json:"time"` // UTC
	Slot      string    `json:"slot"`
	Device    string    `json:"device"` // 32 hex digits, or empty if it is not known
	State     State     `json:"state"`  // Passed or Failed
	Reason    Reason    `json:"reason"` // of Failed, else empty
	Confirmed bool      `json:"confirmed"`
	Delivery  Delivery  `json:"delivery"` // of Passed, else empty
}

// Backlog tells how the delivery to the cloud is doing.
type Backlog struct {
	Pending       int    `json:"pending"`        // records that the cloud has not confirmed
	Dead          int    `json:"dead"`           // records that the cloud refused for good
	OldestSeconds int64  `json:"oldest_seconds"` // age of the oldest pending record
	LastError     string `json:"last_error"`     // of the last try; empty after a success
	Offline       bool   `json:"-"`              // records leave on a removable medium, and nobody tries
	Signed        uint64 `json:"-"`              // see Status
}

// Call is who must be called.
type Call string

// Who can be called.
const (
	CallNobody  Call = ""
	CallIT      Call = "it"
	CallQuality Call = "quality"
)

// Notice is a sentence across the page.
type Notice struct {
	Urgent bool   `json:"urgent"` // somebody must be called
	Word   string `json:"word"`   // stable, for programs; see Problem
	Text   string `json:"text"`   // for the technician
	Detail string `json:"detail"` // for IT, in English: what exactly, where, and the remedy; may be empty
	Call   Call   `json:"call"`   // whom the text says to call or to tell
}

// Problem is what people must know of besides the slots. Its word is a key of
// the catalogues: if a language has no such key, then <word>-one and
// <word>-many, and the first argument is the number that chooses between them.
type Problem struct {
	Word   string
	Args   []any  // of the sentence; a time.Duration is said in its language
	Detail string // one line of English for IT; what is red in the health must have one
	Urgent bool
	Call   Call
}

// Sentence is what people read of a problem; an error if the language or its
// sentence does not exist, or does not fit the arguments.
func (p Problem) Sentence(language string) (string, error) {
	languages, err := embedded()
	if err != nil {
		return "", err
	}
	c, ok := languages[language]
	if !ok {
		return "", fmt.Errorf("there are no words in the language %q", language)
	}
	text := c.problem(p)
	if text == "" || strings.Contains(text, "%!") {
		return "", fmt.Errorf("%s has no sentence for %q with %d arguments", language, p.Word, len(p.Args))
	}
	return text, nil
}

// problem is the sentence of a problem; empty if there is none.
func (c *catalogue) problem(p Problem) string {
	key := messageKey(p.Word)
	if _, ok := c.sentences[key]; ok {
		return c.Say(key, p.Args...)
	}
	if len(p.Args) > 0 {
		if n, ok := p.Args[0].(int); ok {
			return c.Count(n, key+"-one", key+"-many", p.Args[1:]...)
		}
	}
	return ""
}

// worthTelling is how long a record may wait without a banner.
const worthTelling = 15 * time.Second

// Status is a snapshot in the station's own language.
func (s *Station) Status() Status {
	status, _ := s.snapshot(s.settings.words)
	return status
}

// snapshot returns the status, and a channel that closes when a slot changes
// after it.
func (s *Station) snapshot(words *catalogue) (Status, <-chan struct{}) {
	s.mu.Lock()
	states := append([]slotState(nil), s.states...)
	changed := s.changed
	lot, recent := s.lot.on(time.Now()), s.recent
	label, at := s.labels.newest()
	s.mu.Unlock()

	// The calls to the outside are made without the lock.
	if listed := s.settings.policy.Listed; lot.Planned == 0 && listed != nil {
		lot.Planned = listed()
	}
	status := Status{Station: s.name, Slots: make([]SlotStatus, len(states)), Backlog: s.backlog(), Notices: []Notice{}, Lot: &lot, Recent: []Recent{}, Version: s.version}
	status.Signed = status.Backlog.Signed
	for _, v := range recent {
		r := Recent{Time: v.Time, Slot: v.Slot, State: v.State, Reason: v.Reason}
		if v.State == Passed {
			r.Delivery = s.delivery(v.Device)
			r.Confirmed = r.Delivery == Confirmed
		}
		if v.Device.Valid() {
			r.Device = v.Device.String()
		}
		status.Recent = append(status.Recent, r)
	}
	if label != nil {
		status.Scan = &Scanned{Text: label.text, Kind: label.kind}
		if at >= 0 {
			status.Scan.Slot = s.slots[at].Name
		}
	}
	for i, state := range states {
		slot := SlotStatus{
			Name: s.slots[i].Name, State: state.state, Reason: state.reason, Call: state.advice.call(),
			Since: state.since.UTC().Truncate(time.Millisecond), Port: s.slots[i].Port,
			Heard: state.heard, Searching: state.searching, Acknowledge: state.held,
		}
		sentence := state.sentence(words)
		if state.state == Passed {
			slot.Delivery = s.delivery(state.device)
			slot.Confirmed = slot.Delivery == Confirmed
			if slot.Delivery == Rejected {
				sentence, slot.Call = words.Say(adviceRejected), adviceRejected.call()
			}
		}
		slot.Advice = s.withContact(words, sentence, slot.Call)
		if state.device.Valid() {
			slot.Device = state.device.String()
		}
		status.Slots[i] = slot
	}
	for _, p := range s.problems(status.Backlog) {
		text := words.problem(p)
		if text == "" { // a bug; what is for IT is better than nothing
			text = p.Detail
		}
		status.Notices = append(status.Notices, Notice{
			Urgent: p.Urgent, Word: p.Word, Text: s.withContact(words, text, p.Call), Detail: p.Detail, Call: p.Call,
		})
	}
	switch b := status.Backlog; {
	case b.Dead > 0:
		status.Cloud = words.Count(b.Dead, "cloud-rejected-one", "cloud-rejected-many")
	case b.Pending > 0:
		status.Cloud = words.Count(b.Pending, "cloud-one", "cloud-many")
	default:
		status.Cloud = words.Say("cloud-clear")
	}
	return status, changed
}

// problems are all that people must know of now, the worst first.
func (s *Station) problems(b Backlog) []Problem {
	var list []Problem
	if b.Dead > 0 {
		list = append(list, Problem{Word: "dead", Args: []any{b.Dead}, Urgent: true, Call: CallQuality, Detail: "stationctl spool dead lists what the registry refused, and why"})
	}
	list = append(list, s.red()...)
	oldest := time.Duration(b.OldestSeconds) * time.Second
	if b.Pending > 0 && (oldest >= worthTelling || b.LastError != "") {
		p := Problem{Word: "backlog", Args: []any{b.Pending, oldest}, Detail: b.LastError}
		if b.Offline {
			p.Word = "carried"
		}
		list = append(list, p)
	}
	if s.notices != nil {
		list = append(list, s.notices()...)
	}
	slices.SortStableFunc(list, func(a, b Problem) int { return cmp.Compare(rank(a), rank(b)) })
	return list
}

func rank(p Problem) int {
	if p.Urgent {
		return 0
	}
	return 1
}

func (s slotState) sentence(words *catalogue) string {
	if s.detail != "" {
		return words.Say(s.advice, s.detail)
	}
	return words.Say(s.advice)
}

// withContact adds who it is that a sentence says to call, if the station was
// told.
func (s *Station) withContact(words *catalogue, text string, call Call) string {
	page := s.settings.page
	switch {
	case call == CallIT && page.ContactIT != "":
		return words.Say("contact-after", text, words.Say("contact-it", page.ContactIT))
	case call == CallQuality && page.ContactQuality != "":
		return words.Say("contact-after", text, words.Say("contact-quality", page.ContactQuality))
	}
	return text
}

// call is whom the sentence of an advice says to call.
func (w messageKey) call() Call {
	switch w {
	case messageKey(ReasonDeviceConflict), messageKey(ReasonKeyConflict), messageKey(ReasonNoProof), messageKey(ReasonPolicy), messageKey(ReasonPrivateKeyLeak), messageKey(ReasonLabelMismatch):
		return CallQuality
	case adviceFirmware, adviceLogin, adviceLoader, messageKey(ReasonNoDialect), messageKey(ReasonWrongSpeed), adviceRejected, messageKey(Rejected.Key()):
		return CallQuality
	case messageKey(ReasonLotUnreadable), messageKey(ReasonDiskFull), messageKey(ReasonDiskError), adviceAbsent, adviceBusy, adviceHeld, advicePermission,
		adviceGroup, adviceMode, adviceNotAPort, adviceNoLines, adviceAmbiguous, adviceStuck, advicePortError:
		return CallIT
	}
	return CallNobody
}
