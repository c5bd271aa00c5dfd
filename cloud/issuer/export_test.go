package issuer

import (
	"slices"
	"strings"
	"time"

	"secretfree/station/board"
)

// What tests of the package's outside look at.
const (
	ChallengePrefix = challengePrefix
	MaxAttributes   = maxAttributes
	MaxChallenge    = maxChallenge
	MaxValidity     = maxValidity
)

var (
	NewClaim            = newClaim
	ErrChallengeExpired = errExpired
)

func (a Approved) Validity() (from, to time.Time) { return a.notBefore, a.notAfter }

func (a Approved) Plan(had []Issuance, policy Policy, now time.Time) (*Issuance, int, error) {
	return a.plan(had, policy, now)
}

func (r Request) Detached() (challenge string, signature []byte, ok bool) {
	if r.detached == nil {
		return "", nil, false
	}
	return r.detached.challenge, r.detached.signature, true
}

func (c *Challenges) Check(text string, now time.Time) error { return c.check(text, now) }

// Again encodes the content of a challenge anew; empty if the text has none.
func (c *Challenges) Again(text string) string {
	raw, err := challengeText.DecodeString(strings.TrimPrefix(text, challengePrefix))
	if err != nil || len(raw) != challengeBody+challengeMAC {
		return ""
	}
	body := raw[:challengeBody]
	return challengePrefix + challengeText.EncodeToString(append(slices.Clone(body), c.mac(body)...))
}

// Explain is Decide told rule by rule, in its order. The error is that of
// Decide.
func Explain(request Request, enrolment *board.Enrolment, policy Policy, now time.Time) ([]Verdict, error) {
	_, t := decide(request, enrolment, policy, now, ruleTrace{})
	return t.verdicts(), t.err
}
