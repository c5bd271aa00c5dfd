package station

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Status is the answer of GET /status and the data of every event of GET /events, as JSON.
type Status struct {
	Station string       `json:"station"`
	Slots   []SlotStatus `json:"slots"` // in the order of Config.Slots
	Backlog Backlog      `json:"backlog"`
	Notices []Notice     `json:"notices"` // for people
	Cloud   string       `json:"cloud"`   // the backlog in a few words, for people
}

// SlotStatus is one slot.
type SlotStatus struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	Device    string    `json:"device"`    // 32 hex digits, or empty if it is not known
	Reason    Reason    `json:"reason"`    // of Failed, else empty
	Advice    string    `json:"advice"`    // what to do now, for people
	Confirmed bool      `json:"confirmed"` // Passed, and the cloud has confirmed
	Since     time.Time `json:"since"`     // UTC; when the state began
	Port      string    `json:"port"`
}

// Backlog tells how the delivery to the cloud is doing.
type Backlog struct {
	Pending       int    `json:"pending"`        // records that the cloud has not confirmed
	Dead          int    `json:"dead"`           // records that the cloud refused for good
	OldestSeconds int64  `json:"oldest_seconds"` // age of the oldest pending record
	LastError     string `json:"last_error"`     // of the last try; empty after a success
	Carried       bool   `json:"-"`              // records leave on a stick, and nobody tries
}

// Notice is a sentence across the page.
type Notice struct {
	Urgent bool   `json:"urgent"` // somebody must be called
	Text   string `json:"text"`
}

// worthTelling is how long a record may wait without a banner.
const worthTelling = 15 * time.Second

// Status is a snapshot.
func (s *Station) Status() Status {
	status, _ := s.snapshot()
	return status
}

// snapshot returns the status, and a channel that closes when a slot changes after it.
func (s *Station) snapshot() (Status, <-chan struct{}) {
	s.mu.Lock()
	states := append([]slotState(nil), s.states...)
	changed := s.changed
	s.mu.Unlock()

	// The calls to the outside are made without the lock.
	status := Status{Station: s.name, Slots: make([]SlotStatus, len(states)), Backlog: s.backlog()}
	for i, state := range states {
		slot := SlotStatus{
			Name: s.slots[i].Name, State: state.state, Reason: state.reason, Advice: state.sentence(),
			Since: state.since.UTC().Truncate(time.Millisecond), Port: s.slots[i].Port,
		}
		if state.device.Valid() {
			slot.Device = state.device.String()
		}
		slot.Confirmed = state.state == Passed && s.confirmed(state.device)
		status.Slots[i] = slot
	}
	status.Notices = notices(status.Backlog, s.Health())
	if s.notices != nil {
		status.Notices = append(status.Notices, s.notices()...)
		slices.SortStableFunc(status.Notices, func(a, b Notice) int { return cmp.Compare(rank(a), rank(b)) })
	}
	status.Cloud = say("cloud-clear")
	if n := status.Backlog.Pending; n > 0 {
		status.Cloud = count(n, "cloud-one", "cloud-many")
	}
	return status, changed
}

func rank(n Notice) int {
	if n.Urgent {
		return 0
	}
	return 1
}

func (s slotState) sentence() string {
	if s.detail != "" {
		return say(s.advice, s.detail)
	}
	return say(s.advice)
}

// notices says what people must know besides the slots, the worst first.
func notices(b Backlog, health error) []Notice {
	list := []Notice{}
	if b.Dead > 0 {
		list = append(list, Notice{Urgent: true, Text: count(b.Dead, "notice-dead-one", "notice-dead-many")})
	}
	if health != nil {
		for reason := range strings.SplitSeq(health.Error(), "\n") { // as errors.Join has them
			list = append(list, Notice{Urgent: true, Text: say("notice-health", reason)})
		}
	}
	oldest := time.Duration(b.OldestSeconds) * time.Second
	if b.Pending > 0 && (oldest >= worthTelling || b.LastError != "") {
		waiting := say("waiting-one", span(oldest))
		if b.Pending > 1 {
			waiting = say("waiting-many", b.Pending, span(oldest))
		}
		text := say("notice-backlog", waiting)
		if b.Carried {
			text = say("notice-carried", waiting)
		}
		if b.LastError != "" {
			text += " " + say("notice-last-error", b.LastError)
		}
		list = append(list, Notice{Text: text})
	}
	return list
}
