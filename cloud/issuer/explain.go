package issuer

import (
	"fmt"
	"time"

	"secretfree/station/board"
)

// Verdict is what one rule said.
type Verdict struct {
	Rule    Refusal `json:"rule"`
	Verdict string  `json:"verdict"` // "passed", "refused", or "not reached" after a refusal
	Detail  string  `json:"detail,omitempty"`
}

// Explain is Decide told rule by rule, in its order. The error is that of Decide.
func Explain(request Request, enrolment *board.Enrolment, policy Policy, now time.Time) ([]Verdict, error) {
	_, t := decide(request, enrolment, policy, now)
	return t.verdicts(), t.err
}

// trail notes the rules that decide goes through. After the first one that does not hold, the others are
// named and not run.
type trail struct {
	rules  []Refusal
	failed int // index of the refusal in rules, if err is not nil
	err    error
}

func (t *trail) rule(name Refusal, holds func() error) {
	t.rules = append(t.rules, name)
	if t.err != nil {
		return
	}
	if err := holds(); err != nil {
		t.failed = len(t.rules) - 1
		t.err = fmt.Errorf("%w: %w", name, err)
	}
}

func (t *trail) require(name Refusal, holds bool, otherwise string) {
	t.rule(name, func() error { return unless(holds, otherwise) })
}

func (t *trail) verdicts() []Verdict {
	verdicts := make([]Verdict, len(t.rules))
	for i, name := range t.rules {
		v := Verdict{Rule: name, Verdict: "passed"}
		switch {
		case t.err != nil && i == t.failed:
			v.Verdict, v.Detail = "refused", t.err.Error()
		case t.err != nil && i > t.failed:
			v.Verdict = "not reached"
		}
		verdicts[i] = v
	}
	return verdicts
}
