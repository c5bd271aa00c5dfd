package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"secretfree/station/board"
)

// Revoke revokes every certificate that a device has or may be about to get, of
// epochs before one (0: all), and returns what it has had, as it is then. What
// breaks off is finished by calling it again, or by Sweep. A device that is
// still Active in the registry gets no other certificate until an operator
// raises its epoch.
func (i *Issuer) Revoke(ctx context.Context, device board.DeviceID, before int, reason Reason) ([]Issuance, error) {
	had, err := i.config.Claims.Issuances(ctx, device)
	if err != nil {
		return nil, fmt.Errorf("reading what was issued: %w", err)
	}
	var failed []error
	for n := range had {
		if had[n].State == Revoked || before > 0 && had[n].Claim.Epoch >= before {
			continue
		}
		stored, err := i.revoke(ctx, had[n], reason)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		had[n] = stored
	}
	return had, errors.Join(failed...)
}

// revoke first writes down that a certificate must not be answered any more,
// then tells the registrar and the CA, then that this was done.
func (i *Issuer) revoke(ctx context.Context, issuance Issuance, reason Reason) (Issuance, error) {
	for range conflictTries {
		switch issuance.State {
		case Revoked:
			return issuance, nil
		case Revoking:
			if err := i.tellRevoked(ctx, issuance); err != nil {
				return Issuance{}, fmt.Errorf("revoking epoch %d of %s: %w", issuance.Claim.Epoch, issuance.Claim.Device, err)
			}
			issuance.State = Revoked
		default:
			issuance.State, issuance.Revoked, issuance.Reason = Revoking, i.config.Now().UTC().Truncate(time.Second), reason
		}
		stored, _, err := i.replace(ctx, issuance)
		if err != nil {
			return Issuance{}, fmt.Errorf("revoking epoch %d of %s: %w", issuance.Claim.Epoch, issuance.Claim.Device, err)
		}
		issuance = stored
	}
	return Issuance{}, ErrBusy
}

func (i *Issuer) tellRevoked(ctx context.Context, issuance Issuance) error {
	if i.config.Registrar != nil && issuance.Certificate != nil {
		if err := i.config.Registrar.Deactivate(ctx, issuance.Claim.Device, *issuance.Certificate); err != nil {
			return fmt.Errorf("deactivating the certificate: %w", err)
		}
	}
	ca := i.cas[issuance.Claim.CA]
	if ca == nil {
		return fmt.Errorf("%w: %q; name it in [[retired_ca]]", ErrUnknownCA, issuance.Claim.CA)
	}
	if err := ca.Revoke(ctx, issuance, issuance.Reason); err != nil {
		return fmt.Errorf("telling the CA: %w", err)
	}
	return nil
}

// NextEpoch is the epoch to grant a device that shall have another certificate.
func (i *Issuer) NextEpoch(ctx context.Context, device board.DeviceID) (int, error) {
	enrolment, err := i.config.Registry.Lookup(ctx, device)
	if err != nil {
		return 0, fmt.Errorf("looking up device %s: %w", device, err)
	}
	had, err := i.config.Claims.Issuances(ctx, device)
	if err != nil {
		return 0, fmt.Errorf("reading what was issued: %w", err)
	}
	return nextEpoch(had, enrolment), nil
}

// SweepOptions say what Sweep does.
type SweepOptions struct {
	Apply bool // without it, Sweep only tells
	// Stuck is how long an issuance may take before it counts as broken off. 0
	// means 10 minutes.
	Stuck time.Duration
	// Overlap replaces that of the policy. 0 means the policy's.
	Overlap time.Duration
	// Unknown revokes what devices have that the registry does not know. A
	// registry forgets no device, so it may be the wrong one, or an empty one:
	// nobody but a person should say so.
	Unknown bool
}

// confirmRevoked is how long after a revocation Sweep sees to it once more: a
// request that was being registered meanwhile may have come last, and its
// issuer may have died.
const confirmRevoked = 24 * time.Hour

// Finding is something that is not as it should stay.
type Finding struct {
	Issuance Issuance
	Action   SweepAction
	Why      string
	Err      error // of the action; nil if it was done, or not asked for
	Unknown  bool  // the registry does not know the device
}

// SweepAction is what Sweep does about a finding.
type SweepAction string

// The actions.
const (
	Register SweepAction = "register" // the certificate is signed: go on to where it is active
	Withdraw SweepAction = "revoke"   // it must not be active
	Finish   SweepAction = "finish"   // go on with a revocation
	Confirm  SweepAction = "confirm"  // see to it once more that it is not active
	Wait     SweepAction = "wait"     // nothing is done: somebody else has to act
)

// Sweep finds what broke off or has to end, and settles it: afterwards no
// certificate is active that should not be. It reads every claim, and looks up
// every device that has one in the registry. It calls tell for each finding,
// and goes on after one that could not be settled and after a device that could
// not be read; the error says so.
func (i *Issuer) Sweep(ctx context.Context, o SweepOptions, tell func(Finding)) error {
	if o.Stuck == 0 {
		o.Stuck = 10 * time.Minute
	}
	if o.Overlap == 0 {
		o.Overlap = i.config.Policy.overlap()
	}
	seen := map[board.DeviceID]bool{}
	failed := 0
	var unread []error
	for issuance, err := range i.config.Claims.All(ctx) {
		if errors.Is(err, ErrBadClaim) {
			unread = append(unread, err)
			continue
		}
		if err != nil {
			return err
		}
		device := issuance.Claim.Device
		if seen[device] {
			continue
		}
		seen[device] = true
		n, err := i.sweepDevice(ctx, device, o, tell)
		failed += n
		if err != nil {
			unread = append(unread, err)
		}
		if len(unread) > maxUnread {
			break // it is not single items that are bad
		}
	}
	if failed > 0 {
		unread = append(unread, fmt.Errorf("%d findings could not be settled; sweep again", failed))
	}
	return errors.Join(unread...)
}

// maxUnread devices that cannot be read do not end a sweep.
const maxUnread = 16

func (i *Issuer) sweepDevice(ctx context.Context, device board.DeviceID, o SweepOptions, tell func(Finding)) (failed int, err error) {
	enrolment, err := i.enrolment(ctx, device)
	if err != nil {
		return 0, err
	}
	had, err := i.config.Claims.Issuances(ctx, device)
	if err != nil {
		return 0, fmt.Errorf("reading what was issued: %w", err)
	}
	now := i.config.Now()
	for n, issuance := range had {
		finding, found := look(issuance, had[n+1:], enrolment, o, now)
		if !found {
			continue
		}
		if o.Apply {
			finding.Err = i.settle(ctx, finding, now)
		}
		if finding.Err != nil {
			failed++
		}
		tell(finding)
	}
	return failed, nil
}

// look judges one issuance of a device; later are those after it.
func look(issuance Issuance, later []Issuance, enrolment *board.Enrolment, o SweepOptions, now time.Time) (Finding, bool) {
	f := Finding{Issuance: issuance}
	found := func(action SweepAction, reason Reason, why string) (Finding, bool) {
		f.Action, f.Why, f.Issuance.Reason = action, why, reason
		return f, true
	}
	switch issuance.State {
	case Revoked:
		if issuance.Certificate != nil && now.Sub(issuance.Revoked) < confirmRevoked {
			return found(Confirm, issuance.Reason, "it was revoked a short time ago")
		}
		return f, false
	case Revoking:
		return found(Finish, issuance.Reason, "its revocation broke off")
	}
	switch {
	case enrolment == nil:
		f.Unknown = true
		if o.Unknown {
			return found(Withdraw, Unspecified, "the registry does not know the device")
		}
		return found(Wait, Unspecified, "the registry does not know the device: is it the right registry? Nothing is revoked for that unless it is asked for")
	case enrolment.State == board.Revoked:
		return found(Withdraw, KeyCompromise, "the device was revoked")
	case enrolment.State == board.Scrapped:
		return found(Withdraw, CessationOfOperation, "the device was scrapped")
	case issuance.Claim.Epoch < enrolment.Epoch:
		return found(Withdraw, AffiliationChanged, fmt.Sprintf("the device is in epoch %d", enrolment.Epoch))
	}
	if by, ok := supersededBy(later, o.Overlap, now); ok {
		return found(Withdraw, Superseded, fmt.Sprintf("epoch %d took its place", by))
	}
	if issuance.State == Live || now.Sub(issuance.Claim.Created) < o.Stuck {
		return f, false
	}
	switch {
	case issuance.State == Claimed:
		return found(Wait, Unspecified, "it broke off before it was signed; the device goes on from there")
	case enrolment.State == board.Active && now.Before(issuance.Claim.NotAfter):
		return found(Register, Unspecified, "it broke off before it was active")
	}
	return f, false // held, or expired, and not active
}

// supersededBy finds the epoch, among those later than a certificate's, that
// has been active for longer than the overlap.
func supersededBy(later []Issuance, overlap time.Duration, now time.Time) (epoch int, ok bool) {
	for _, l := range later {
		if l.State == Live && !now.Before(l.Activated.Add(overlap)) {
			return l.Claim.Epoch, true
		}
	}
	return 0, false
}

// supersedeTimeout is how long an answer may wait for the revocation of former
// certificates.
const supersedeTimeout = 5 * time.Second

// revokeSuperseded revokes what a device had and renewed longer than the
// overlap ago. A failure is left to Sweep: the device's answer does not depend
// on it.
func (i *Issuer) revokeSuperseded(ctx context.Context, had []Issuance, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, supersedeTimeout)
	defer cancel()
	for n, former := range had {
		if former.State == Revoked || former.State == Revoking {
			continue // Sweep finishes a revocation that broke off
		}
		if _, ok := supersededBy(had[n+1:], i.config.Policy.overlap(), now); ok {
			if _, err := i.revoke(ctx, former, Superseded); err != nil {
				return
			}
		}
	}
}

func (i *Issuer) settle(ctx context.Context, f Finding, now time.Time) error {
	switch f.Action {
	case Register:
		claim := f.Issuance.Claim
		enrolment, err := i.enrolment(ctx, claim.Device)
		if err != nil {
			return err
		}
		if enrolment == nil || enrolment.State != board.Active || enrolment.Key.Fingerprint() != claim.Fingerprint || enrolment.Generation != claim.Generation {
			return errors.New("the registry no longer has the device active with this key")
		}
		if i.cas[claim.CA] == nil {
			return fmt.Errorf("%w: %q", ErrUnknownCA, claim.CA)
		}
		if err := i.checked(*f.Issuance.Certificate, claim, now); err != nil {
			return err
		}
		_, _, err = i.activate(ctx, f.Issuance, now)
		return err
	case Withdraw, Finish:
		_, err := i.revoke(ctx, f.Issuance, f.Issuance.Reason)
		return err
	case Confirm:
		return i.tellRevoked(ctx, f.Issuance)
	}
	return nil
}
