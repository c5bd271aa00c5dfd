package station

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
	"secretfree/uart"
)

func spki384(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

// What a report may say under which policy. The fake journal checks every
// record that gets through.
func TestJudge(t *testing.T) {
	loose := Policy{AllowUnproven: true}
	for name, c := range map[string]struct {
		policy Policy
		change func(*uart.Report)
		reason Reason // none: it passes
		words  string
	}{
		"in order":                   {change: func(r *uart.Report) {}},
		"no proof":                   {change: func(r *uart.Report) { r.Proof = nil }, reason: ReasonNoProof, words: "the policy asks for one"},
		"no proof, allowed":          {policy: loose, change: func(r *uart.Report) { r.Proof = nil }},
		"a good proof, none needed":  {policy: loose, change: func(r *uart.Report) {}},
		"a wrong proof, none needed": {policy: loose, change: func(r *uart.Report) { r.Proof.Signatures[1][8] ^= 1 }, reason: ReasonNoProof, words: "signature 2 of 3"},
		"a wrong proof":              {change: func(r *uart.Report) { r.Proof.Signatures[2][8] ^= 1 }, reason: ReasonNoProof, words: "signature 3 of 3"},
		"the proof of another key":   {change: func(r *uart.Report) { r.SPKI = newBoard().SPKI() }, reason: ReasonNoProof, words: "not by this key"},
		"one signature":              {change: func(r *uart.Report) { r.Proof.Nonces, r.Proof.Signatures = r.Proof.Nonces[:1], r.Proof.Signatures[:1] }, reason: ReasonNoProof, words: "1 nonces"},
		"the same nonce twice": {change: func(r *uart.Report) {
			r.Proof.Nonces[1], r.Proof.Signatures[1] = r.Proof.Nonces[0], r.Proof.Signatures[0]
		}, reason: ReasonNoProof, words: "nonce twice"},
		"a proof by an unknown method":   {change: func(r *uart.Report) { r.Proof.Method = "promise" }, reason: ReasonNoProof, words: "promise"},
		"an empty memory, 00":            {change: func(r *uart.Report) { r.Device = [16]byte{} }, reason: ReasonGarbled, words: "not a device id"},
		"an empty memory, ff":            {change: func(r *uart.Report) { r.Device = [16]byte([]byte(strings.Repeat("\xff", 16))) }, reason: ReasonGarbled, words: "not a device id"},
		"no key":                         {change: func(r *uart.Report) { r.SPKI = nil }, reason: ReasonGarbled, words: "public key"},
		"a point off the curve":          {change: func(r *uart.Report) { r.SPKI[len(r.SPKI)-1] ^= 1 }, reason: ReasonGarbled, words: "public key"},
		"another curve":                  {change: func(r *uart.Report) { r.SPKI = spki384(t) }, reason: ReasonPolicy, words: "type P-384"},
		"another curve, loose":           {policy: loose, change: func(r *uart.Report) { r.SPKI, r.Proof = spki384(t), nil }, reason: ReasonPolicy, words: "type P-384"},
		"another curve, allowed":         {policy: Policy{AllowUnproven: true, Algorithms: []board.Algorithm{board.P384}}, change: func(r *uart.Report) { r.SPKI, r.Proof = spki384(t), nil }},
		"another curve, without proof":   {policy: Policy{Algorithms: []board.Algorithm{board.P384}}, change: func(r *uart.Report) { r.SPKI, r.Proof = spki384(t), nil }, reason: ReasonNoProof},
		"the usual curve, not allowed":   {policy: Policy{Algorithms: []board.Algorithm{board.P384, board.RSA}}, change: func(r *uart.Report) {}, reason: ReasonPolicy, words: "type P-256"},
		"a fact that no record can hold": {change: func(r *uart.Report) { r.Facts["chip"] = "0x31\x00" }, reason: ReasonGarbled, words: "chip"},
	} {
		bubble(t, name, func(t *testing.T) {
			good := newBoard()
			d := newScript(newReport(good))
			c.change(&d.report)
			b := newTestStation(t, 1, func(config *Config) { config.Policy, config.Slots[0].Dialect = c.policy, d }).run()
			d.come <- struct{}{}
			if c.reason == "" {
				if slot := b.await(0, Passed); slot.Device != good.ID() {
					t.Errorf("the slot shows %+v", slot)
				}
				if got := b.ledger.records[good.Device]; (got.Proof == nil) != (d.report.Proof == nil) {
					t.Errorf("the record holds the proof %+v", got.Proof)
				}
				return
			}
			slot := b.awaitFailed(0, c.reason)
			if known := d.report.Device == good.Device; known != (slot.Device == good.ID()) || !known && slot.Device != "" {
				t.Errorf("the slot shows the device %q", slot.Device)
			}
			if !strings.Contains(b.logged(), c.words) || b.ledger.appends() != 0 {
				t.Errorf("asked the journal %d times; the log does not say %q:\n%s", b.ledger.appends(), c.words, b.logged())
			}
		})
	}
}

// A journal that refuses is shown in its words, and asked again for the same
// board when it is inserted again.
func TestJournalRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		reason Reason
	}{
		"no room":         {syscall.ENOSPC, ReasonDiskFull},
		"no room for him": {syscall.EDQUOT, ReasonDiskFull},
		"a fault":         {syscall.EIO, ReasonDiskError},
		"read-only":       {syscall.EROFS, ReasonDiskError},
		"unnamed":         {errors.New("the moon is full"), ReasonDiskError},
		"no record":       {board.ErrRecord, ReasonGarbled},
		"device conflict": {&board.Conflict{Kind: board.ErrDeviceConflict}, ReasonDeviceConflict},
		"key conflict":    {&board.Conflict{Kind: board.ErrKeyConflict}, ReasonKeyConflict},
	} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 1, nil)
			b.ledger.set(fmt.Errorf("appending to the journal: %w", fmt.Errorf("writing: %w", c.err)), nil)
			b.run()
			good := newBoard()
			b.cables[0].plug(good)
			if slot := b.awaitFailed(0, c.reason); slot.Device != good.ID() {
				t.Errorf("the slot shows %+v, the board is %s", slot, good.ID())
			}
			if !strings.Contains(b.logged(), "appending to the journal") {
				t.Errorf("the log does not say why:\n%s", b.logged())
			}
			b.ledger.set(nil, nil)
			time.Sleep(time.Minute)
			if n := b.ledger.appends(); n != 1 {
				t.Errorf("asked %d times for a board that stayed", n)
			}
			b.cables[0].unplug()
			b.await(0, Empty)
			b.cables[0].plug(good)
			b.await(0, Passed)
		})
	}
}

// A journal that is slow keeps its slot at reading, and no other.
func TestJournalSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 2, nil)
		slow := make(chan struct{})
		b.ledger.set(nil, slow)
		b.run()
		first, second := newBoard(), newBoard()
		b.cables[0].plug(first)
		b.await(0, Reading)
		time.Sleep(time.Minute)
		if slot := b.Status().Slots[0]; slot.State != Reading || slot.Device != "" || b.ledger.appends() != 1 {
			t.Errorf("the slot shows %+v", slot)
		}
		b.ledger.set(nil, nil)
		b.cables[1].plug(second)
		b.await(1, Passed)
		b.cables[1].unplug()
		b.await(1, Empty)
		if slot := b.Status().Slots[0]; slot.State != Reading {
			t.Errorf("the slot shows %+v", slot)
		}
		close(slow)
		b.await(0, Passed)
	})
}

// A board that is taken away while the journal is slow has its receipt all the
// same, and its PASS is not taken for that of the next one.
func TestGoneBeforeReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, nil)
		slow := make(chan struct{})
		b.ledger.set(nil, slow)
		b.run()
		first, second := newBoard(), newBoard()
		b.cables[0].plug(first)
		b.await(0, Reading)
		time.Sleep(30 * time.Second)
		b.cables[0].unplug()
		b.cables[0].plug(second)
		time.Sleep(30 * time.Second)
		b.ledger.set(nil, nil)
		close(slow)
		b.awaitThat(0, "the second board", func(s SlotStatus) bool { return s.State == Passed && s.Device == second.ID() })
		if first, _ := b.ledger.given(); first != 2 {
			t.Errorf("%d receipts", first)
		}
	})
}

func TestBoardReason(t *testing.T) {
	for _, c := range []struct {
		err    error
		reason Reason
		ok     bool // the port is still there
	}{
		{uart.ErrPrivateKey, ReasonPrivateKeyLeak, true},
		{fmt.Errorf("%w, %w", uart.ErrUnplugged, uart.ErrPrivateKey), ReasonPrivateKeyLeak, true},
		{uart.ErrNoProof, ReasonNoProof, true},
		{uart.ErrTimeout, ReasonTimeout, true},
		{context.DeadlineExceeded, ReasonTimeout, true},
		{uart.ErrGarbled, ReasonGarbled, true},
		{uart.ErrUnplugged, ReasonUnplugged, false},
		{fmt.Errorf("%w, %w", uart.ErrUnplugged, uart.ErrTimeout), ReasonUnplugged, false},
		{errors.New("input/output error"), ReasonUnplugged, false},
	} {
		if reason, ok := boardReason(fmt.Errorf("reading: %w", c.err)); reason != c.reason || ok != c.ok {
			t.Errorf("%v: %s, %v", c.err, reason, ok)
		}
	}
}

// A board passes whatever the clock says: a wrong clock is no fault of the
// board.
func TestClockIsNoFaultOfABoard(t *testing.T) {
	b := newTestStation(t, 1, nil)
	for _, year := range []int{-1, 1, 1969, 1970, 2026, 2101, 9999, 10000} {
		now := time.Date(year, time.July, 1, 12, 0, 0, 0, time.UTC)
		record, refused := b.validate(newReport(newBoard()), nil, now)
		if refused != nil {
			t.Errorf("in %d: %v", year, refused)
		} else if err := record.Check(); err != nil {
			t.Errorf("in %d: %v", year, err)
		}
	}
}
