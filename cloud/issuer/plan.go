package issuer

import (
	"fmt"
	"time"

	"secretfree/station/board"
)

// earlyRenewal is how old a certificate must be before it renews itself ahead
// of the policy's window.
const earlyRenewal = 24 * time.Hour

// plan says what an approved request gets, given what the device has had (in
// the order of Claims.Issuances): the issuance to go on from, or, if that is
// nil, a new one in the epoch that is returned. The error wraps a Refusal.
//
// An epoch has one certificate, and a request that is repeated gets it again,
// whatever the clock does. The next epoch is opened by an operator
// (Enrolment.Epoch), or by a fresh request when the certificate is about to
// expire or has; a device that showed in TLS that it has the certificate may
// renew it earlier.
func (a Approved) plan(had []Issuance, policy Policy, now time.Time) (*Issuance, int, error) {
	if err := a.renewing(had); err != nil {
		return nil, 0, err
	}
	var latest *Issuance
	for i := range had {
		if c := had[i].Claim; c.Fingerprint == a.key.Fingerprint() && c.Generation == a.generation {
			latest = &had[i]
		}
	}
	first := max(a.epoch, 1)
	if a.challenge != "" {
		for i := range had {
			if had[i].Claim.Challenge == a.challenge && (&had[i] != latest || had[i].Claim.Epoch < first) {
				return nil, 0, fmt.Errorf("%w: it opened epoch %d", ChallengeReplayed, had[i].Claim.Epoch)
			}
		}
	}
	if latest == nil || latest.Claim.Epoch < first {
		return nil, first, nil
	}
	c := latest.Claim
	fresh := a.challenge != "" && a.challenge != c.Challenge || a.hasPeer(latest)
	switch {
	case latest.State == Revoking || latest.State == Revoked:
		return nil, 0, fmt.Errorf("%w: epoch %d, because of %s", CertificateRevoked, c.Epoch, latest.Reason)
	case now.Before(c.NotBefore) && fresh && (latest.State != Claimed || latest.CAState != ""):
		return nil, c.Epoch + 1, nil // the clock was ahead, and nobody takes that certificate yet
	case latest.State == Claimed && latest.CAState == "":
		return latest, c.Epoch, nil // it may be made anew
	case !now.Before(c.NotAfter):
		if fresh {
			return nil, c.Epoch + 1, nil
		}
		return nil, 0, fmt.Errorf("%w: on %s", CertificateExpired, c.NotAfter.Format(time.DateOnly))
	case latest.State != Live:
		return latest, c.Epoch, nil
	case fresh && !now.Before(c.NotAfter.Add(-policy.renew())):
		return nil, c.Epoch + 1, nil
	case a.hasPeer(latest) && !now.Before(latest.Activated.Add(earlyRenewal)):
		return nil, c.Epoch + 1, nil
	}
	return latest, c.Epoch, nil
}

// hasPeer reports whether the sender authenticated itself with the certificate
// of an issuance.
func (a Approved) hasPeer(i *Issuance) bool {
	return a.peer != nil && i.Certificate != nil && string(a.peer.Raw) == string(i.Certificate.Leaf)
}

// renewing says why a request to renew may not: nil is good. had is all that
// the device had.
func (a Approved) renewing(had []Issuance) error {
	if !a.renewal {
		return nil
	}
	for n := range had {
		if !a.hasPeer(&had[n]) {
			continue
		}
		if s := had[n].State; s == Revoking || s == Revoked {
			return fmt.Errorf("%w: that which it shows, of epoch %d", CertificateRevoked, had[n].Claim.Epoch)
		}
		return nil
	}
	if a.peer == nil {
		return fmt.Errorf("%w: it shows no certificate", NoPeer)
	}
	return fmt.Errorf("%w: the certificate that it shows is none that this device had here", NoPeer)
}

// nextEpoch is the first epoch that a device has had no part of: what an
// operator grants.
func nextEpoch(had []Issuance, enrolment board.Enrolment) int {
	next := max(enrolment.Epoch, 1)
	for _, i := range had {
		next = max(next, i.Claim.Epoch+1)
	}
	return next
}
