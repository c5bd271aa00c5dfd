package station

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretfree/station/board"
	"secretfree/uart"
)

func sceneRecord(t *testing.T, report uart.Report) board.Record {
	t.Helper()
	key, err := board.ParseKey(report.SPKI)
	if err != nil {
		t.Fatal(err)
	}
	return board.Record{SKU: "widgiot", Station: "line3-a", Device: board.DeviceID(report.Device), Key: key,
		ReadAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Generation: 1}
}

// What a failure rested on makes a scene in which the same board fails for the
// same reason.
func TestGivenIsWhatAVerdictRestedOn(t *testing.T) {
	one, two := newBoard(), newBoard()
	r := sceneRecord(t, uart.Report{Device: one.Device, SPKI: one.SPKI()})
	otherKey := sceneRecord(t, uart.Report{Device: one.Device, SPKI: two.SPKI()})
	otherID := sceneRecord(t, uart.Report{Device: two.Device, SPKI: one.SPKI()})
	conflict := func(kind error, known board.Record) error {
		return &board.Conflict{Kind: kind, KnownDevice: known.Device, KnownKey: known.Fingerprint()}
	}
	for name, c := range map[string]struct {
		reason Reason
		cause  error
		read   board.Record
	}{
		"device-conflict": {ReasonDeviceConflict, conflict(board.ErrDeviceConflict, otherKey), r},
		"key-conflict":    {ReasonKeyConflict, conflict(board.ErrKeyConflict, otherID), r},
		"disk-full":       {ReasonDiskFull, syscall.ENOSPC, r},
		"disk-error":      {ReasonDiskError, syscall.EIO, r},
	} {
		scene, err := NewPrecondition(preconditionOf(c.reason, c.cause))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, err = scene.Append(context.Background(), Outcome{Record: &c.read})
		if err == nil || journalReason(err) != c.reason {
			t.Errorf("%s: the scene says %v", name, err)
		}
	}
	for reason, want := range map[Reason]error{ReasonNotInLot: ErrNotInLot, ReasonLotUnreadable: syscall.ENOENT} {
		scene, err := NewPrecondition(preconditionOf(reason, nil))
		if err != nil || scene.Policy.Lot == nil || !errors.Is(scene.Policy.Lot(r.Device, nil), want) {
			t.Errorf("%s: %+v, %v", reason, scene, err)
		}
	}
	if scene, err := NewPrecondition(preconditionOf(ReasonPolicy, nil)); err != nil || len(scene.Policy.Algorithms) == 0 || scene.Policy.Algorithms[0] == board.P256 {
		t.Errorf("policy: %+v, %v", scene, err)
	}
	other, err := parseScan(two.ID())
	if err != nil {
		t.Fatal(err)
	}
	scene, err := NewPrecondition(preconditionOf(ReasonLabelMismatch, other.label.check(r.Device, nil)))
	if err != nil || scene.Label != two.ID() {
		t.Errorf("label-mismatch: %+v, %v", scene, err)
	}
	if scene, err = NewPrecondition(preconditionOf(ReasonLabelMissing, nil)); err != nil || !scene.Policy.NeedsLabel {
		t.Errorf("label-missing: %+v, %v", scene, err)
	}
	for _, reason := range Reasons() {
		switch reason {
		case ReasonNoProof, ReasonUnplugged, ReasonTimeout, ReasonGarbled, ReasonPrivateKeyLeak, ReasonNeedsReset, ReasonNoDialect, ReasonWrongSpeed:
			if preconditionOf(reason, nil) != "" {
				t.Errorf("%s rests on the dialogue alone", reason)
			}
		default:
			if preconditionOf(reason, nil) == "" {
				t.Errorf("%s: a transcript does not say what it rested on", reason)
			}
		}
	}
}

func TestSceneKnowsWhatItSaw(t *testing.T) {
	one := newBoard()
	r := sceneRecord(t, uart.Report{Device: one.Device, SPKI: one.SPKI()})
	scene, err := NewPrecondition("")
	if err != nil {
		t.Fatal(err)
	}
	if receipt, err := scene.Append(context.Background(), Outcome{Record: &r}); err != nil || receipt.Repeat {
		t.Errorf("a new board: %+v, %v", receipt, err)
	}
	if receipt, err := scene.Append(context.Background(), Outcome{Record: &r}); err != nil || !receipt.Repeat {
		t.Errorf("the same again: %+v, %v", receipt, err)
	}
	if scene, err = NewPrecondition(GivenRepeat); err != nil {
		t.Fatal(err)
	}
	if receipt, err := scene.Append(context.Background(), Outcome{Record: &r}); err != nil || !receipt.Repeat {
		t.Errorf("given as a repeat: %+v, %v", receipt, err)
	}
	if _, err := scene.Append(context.Background(), Outcome{Record: &board.Record{}}); !errors.Is(err, board.ErrRecord) {
		t.Errorf("no record: %v", err)
	}
}

func TestSceneRefusals(t *testing.T) {
	for given, says := range map[string]string{
		"nonsense":                        "want known DEVICE FINGERPRINT",
		"known":                           "want known DEVICE FINGERPRINT",
		"label":                           "want known DEVICE FINGERPRINT, label LABEL",
		"label WO-1":                      `"WO-1" is no label`,
		"known 4d 00":                     "not a device id",
		"known " + newBoard().ID() + " 0": "not a fingerprint",
		givenUnknown:                      "want known",
	} {
		if _, err := NewPrecondition(given); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", given, err, says)
		}
	}
}
