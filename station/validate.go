package station

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"secretfree/station/board"
	"secretfree/uart"
)

// failure is a verdict against a board.
type failure struct {
	reason Reason
	device board.DeviceID // zero if it is not known
	err    error
}

func (f *failure) Error() string { return fmt.Sprintf("%s: %v", f.reason, f.err) }
func (f *failure) Unwrap() error { return f.err }

// validate turns what a board said into a record, or says what is wrong with
// it. It believes nothing: the signatures are checked here again. label is the
// one that was scanned for the board, or nil: then one that refused this board
// before counts. It comes last, so that a board is only called another one when
// it has proved which it is.
func (s *Station) validate(report uart.Report, label *label, now time.Time) (board.Record, *failure) {
	policy := s.settings.policy
	device, err := board.NewDeviceID(report.Device)
	if err != nil {
		return board.Record{}, &failure{reason: ReasonGarbled, err: err}
	}
	refuse := func(reason Reason, err error) (board.Record, *failure) {
		return board.Record{}, &failure{reason: reason, device: device, err: err}
	}
	key, err := board.ParseKey(report.SPKI)
	if err != nil {
		return refuse(ReasonGarbled, err)
	}
	if allowed := policy.algorithms(); !slices.Contains(allowed, key.Algorithm()) {
		return refuse(ReasonPolicy, fmt.Errorf("a key of type %s; allowed are %v", key.Algorithm(), allowed))
	}
	if policy.Lot != nil {
		if err := policy.Lot(device, report.Facts); errors.Is(err, ErrNotInLot) {
			return refuse(ReasonNotInLot, err)
		} else if err != nil {
			return refuse(ReasonLotUnreadable, err)
		}
	}
	record := board.Record{
		SKU: s.sku, Station: s.name, Device: device, Key: key,
		ReadAt: board.Timestamp(now), Generation: 1, Facts: report.Facts,
	}
	switch {
	case report.Proof != nil:
		record.Proof = &board.Proof{
			Method: board.ProofMethod(report.Proof.Method), Hash: board.Hash(report.Proof.Hash),
			Nonces: report.Proof.Nonces, Signatures: report.Proof.Signatures, Request: report.Proof.Request,
		}
		if err := record.Proof.Verify(device, key); err != nil {
			return refuse(ReasonNoProof, err)
		}
	case !policy.AllowUnproven:
		return refuse(ReasonNoProof, errors.New("the dialect brought no proof of possession, and the policy asks for one"))
	}
	if err := record.Check(); err != nil {
		return refuse(ReasonGarbled, err)
	}
	if label == nil {
		label = s.refusedWith(device)
	}
	switch {
	case label != nil:
		if err := label.check(device, report.Facts); err != nil {
			return refuse(ReasonLabelMismatch, err)
		}
	case policy.NeedsLabel:
		return refuse(ReasonLabelMissing, errors.New("no label was scanned for this board, and the policy asks for one"))
	}
	return record, nil
}

// boardReason names what is wrong with a board. ok is false for all other
// errors of a dialect: the port is lost.
func boardReason(err error) (reason Reason, ok bool) {
	switch {
	case errors.Is(err, uart.ErrPrivateKey):
		return ReasonPrivateKeyLeak, true
	case errors.Is(err, uart.ErrUnplugged):
		return ReasonUnplugged, false
	case errors.Is(err, uart.ErrNoProof):
		return ReasonNoProof, true
	case errors.Is(err, uart.ErrNeedsReset):
		return ReasonNeedsReset, true
	case errors.Is(err, uart.ErrNoDialect):
		return ReasonNoDialect, true
	case errors.Is(err, uart.ErrWrongSpeed):
		return ReasonWrongSpeed, true
	case errors.Is(err, uart.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return ReasonTimeout, true
	case errors.Is(err, uart.ErrGarbled):
		return ReasonGarbled, true
	}
	return ReasonUnplugged, false
}

// boardFailure is the event of a board that failed for reason; err says more.
func boardFailure(reason Reason, err error) event {
	e := event{kind: boardFailed, reason: reason}
	unknown, ok := errors.AsType[*uart.UnknownError](err)
	if ok {
		e.heard = unknown.Heard
	}
	switch {
	case ok && unknown.Silent && (e.heard == uart.HeardText || e.heard == uart.HeardNoise):
		e.advice = adviceSilent // it may have been taken out
	case reason == ReasonGarbled && errors.Is(err, uart.ErrFirmware):
		e.advice = adviceFirmware
	case reason == ReasonNoDialect:
		e.advice = map[uart.Heard]messageKey{
			uart.HeardLogin: adviceLogin, uart.HeardBootLoader: adviceLoader, uart.HeardNoise: adviceNoise,
		}[e.heard]
	}
	return e
}

// journalReason names what an error of Journal.Append means for a board.
func journalReason(err error) Reason {
	switch {
	case errors.Is(err, board.ErrDeviceConflict):
		return ReasonDeviceConflict
	case errors.Is(err, board.ErrKeyConflict):
		return ReasonKeyConflict
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ReasonDiskFull
	case errors.Is(err, board.ErrRecord):
		return ReasonGarbled
	}
	return ReasonDiskError
}

// diskReason names what an error of Journal.Append means for the disk: a
// refusal that could not be journaled has two meanings.
func diskReason(err error) Reason {
	reason := journalReason(err)
	if errno, ok := errors.AsType[syscall.Errno](err); ok && reason != ReasonDiskFull {
		return journalReason(errno)
	}
	return reason
}

// portAdvice says what to do about an error of opening a port, and about whom
// or what; empty if the port is just not there.
func portAdvice(err error) (advice messageKey, detail string) {
	var refused *uart.OpenError
	errors.As(err, &refused)
	switch {
	case errors.Is(err, uart.ErrAbsent), errors.Is(err, uart.ErrUnplugged):
		return "", ""
	case errors.Is(err, uart.ErrBusy) && refused != nil && refused.Holder != "":
		return adviceHeld, refused.Holder
	case errors.Is(err, uart.ErrBusy):
		return adviceBusy, ""
	case errors.Is(err, uart.ErrPermission) && refused != nil && refused.Group != "":
		return adviceGroup, refused.Group
	case errors.Is(err, uart.ErrPermission) && refused != nil && refused.Change != "":
		return adviceMode, ""
	case errors.Is(err, uart.ErrPermission):
		return advicePermission, ""
	case errors.Is(err, uart.ErrNotAPort):
		return adviceNotAPort, ""
	case errors.Is(err, uart.ErrNoLines):
		return adviceNoLines, ""
	case errors.Is(err, uart.ErrAmbiguous):
		return adviceAmbiguous, ""
	}
	return advicePortError, ""
}
