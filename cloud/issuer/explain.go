package issuer

import (
	"fmt"
	"time"

	"secretfree/station/board"
)

// Verdict is what one rule said.
type Verdict struct {
	Rule    Refusal `json:"rule"`
	Verdict string  `json:"verdict"` // "passed", "refused", "not reached" after a refusal, "not asked" without a request
	Detail  string  `json:"detail,omitempty"`
}

// explainDevice tells the decision rule by rule without a request: what is
// known of the device, and whether a request of its own would get a certificate
// as far as that goes. Rules about the request are "not asked".
func explainDevice(device board.DeviceID, enrolment *board.Enrolment, policy Policy, now time.Time) ([]Verdict, error) {
	_, t := decide(Request{}, enrolment, policy, now, ruleTrace{about: &device})
	return t.verdicts(), t.err
}

// ruleTrace notes the rules that decide goes through. After the first one that
// does not hold, the others are named and not run.
type ruleTrace struct {
	rules  []Refusal
	failed int // index of the refusal in rules, if err is not nil
	err    error
	about  *board.DeviceID // set if there is no request
	asked  map[Refusal]bool
}

// ask is rule for what only a request can tell.
func (t *ruleTrace) ask(name Refusal, holds func() error) {
	if t.about == nil {
		t.rule(name, holds)
		return
	}
	if t.asked == nil {
		t.asked = map[Refusal]bool{}
	}
	t.asked[name] = true
	t.rules = append(t.rules, name)
}

func (t *ruleTrace) rule(name Refusal, holds func() error) {
	t.rules = append(t.rules, name)
	if t.err != nil {
		return
	}
	if err := holds(); err != nil {
		t.failed = len(t.rules) - 1
		t.err = fmt.Errorf("%w: %w", name, err)
	}
}

func (t *ruleTrace) require(name Refusal, holds bool, otherwise string) {
	t.rule(name, func() error { return unless(holds, otherwise) })
}

func (t *ruleTrace) verdicts() []Verdict {
	verdicts := make([]Verdict, len(t.rules))
	for i, name := range t.rules {
		v := Verdict{Rule: name, Verdict: "passed"}
		switch {
		case t.asked[name]:
			v.Verdict = "not asked"
		case t.err != nil && i == t.failed:
			v.Verdict, v.Detail = "refused", t.err.Error()
		case t.err != nil && i > t.failed:
			v.Verdict = "not reached"
		}
		verdicts[i] = v
	}
	return verdicts
}
