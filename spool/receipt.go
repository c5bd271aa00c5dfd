package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// ErrReceipt says that something is not a receipt, is not signed by whom this
// station trusts with receipts, or speaks of what this station's journal does
// not hold. Nothing was changed.
var ErrReceipt = errors.New("not a receipt for this journal")

const (
	receiptHeader  = "secretfree receipt 1"
	receiptVersion = "secretfree receipt "
	// maxReceipt caps a receipt, in bytes: each of a bundle's entries may be
	// refused at length.
	maxReceipt     = bundleEntries*(journal.MaxRejectionText+1024) + 64<<10
	receiptOf      = "confirmed"
	receiptRefused = "refused"
)

// receipt is what a registry answered for the records of one bundle, as whoever
// carried them there tells it.
type receipt struct {
	origin      string // of the journal
	first, next uint64 // of the bundle
	time        time.Time
	answers     []answer // by seq; what is missing was not answered
}

// answer is what the registry said of a record. The device and the key say
// which record is meant, in words that a person can read.
type answer struct {
	seq     uint64
	device  board.DeviceID
	key     board.Fingerprint
	refused *refused // nil: confirmed
}

// refused is a verdict that can never change.
type refused struct {
	Reason string         `json:"reason"` // device-conflict, key-conflict, invalid, untrusted
	Text   string         `json:"text"`   // for people
	Known  *journal.Known `json:"known,omitempty"`
}

// refusal makes a line of a verdict.
func refusal(verdict error) *refused {
	r := rejectionOf(verdict)
	return &refused{r.Reason, r.Text, r.Known}
}

// verdict is the error again that a refusal was made of.
func (a *answer) verdict(by string) error {
	kinds := map[string]error{journal.ReasonDeviceConflict: board.ErrDeviceConflict, journal.ReasonKeyConflict: board.ErrKeyConflict}
	kind, isConflict := kinds[a.refused.Reason]
	if !isConflict {
		return fmt.Errorf("%s: %s", by, a.refused.Text)
	}
	conflict := &board.Conflict{Kind: kind, Device: a.device, Key: a.key}
	if known := a.refused.Known; known != nil {
		conflict.KnownBy = known.By
		conflict.KnownDevice, _ = board.ParseDeviceID(known.Device) // left out if the registry did not tell
		conflict.KnownKey, _ = board.ParseFingerprint(known.Key)
	}
	return fmt.Errorf("%s: %w", by, conflict)
}

// text is what is signed.
func (r *receipt) text() (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%d %d\n%s\n", receiptHeader, r.origin, r.first, r.next, r.time.Format(journal.TimeLayout))
	for _, a := range r.answers {
		if a.refused == nil {
			fmt.Fprintf(&b, "%d %s %s %s\n", a.seq, a.device, a.key, receiptOf)
			continue
		}
		var line bytes.Buffer
		enc := json.NewEncoder(&line)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(a.refused); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%d %s %s %s %s", a.seq, a.device, a.key, receiptRefused, line.Bytes())
	}
	return b.String(), nil
}

// encode signs a receipt.
func (r *receipt) encode(s note.Signer) ([]byte, error) {
	text, err := r.text()
	if err == nil {
		var signed []byte
		if signed, err = note.Sign(&note.Note{Text: text}, s); err == nil {
			return signed, nil
		}
	}
	return nil, fmt.Errorf("signing a receipt: %w", err)
}

// openReceipt reads a receipt that one of the trusted keys signed, and names
// the first that did.
func openReceipt(data []byte, trusted note.Verifiers) (receipt, string, error) {
	if len(data) > maxReceipt {
		return receipt{}, "", fmt.Errorf("%w: more than %d bytes", ErrReceipt, maxReceipt)
	}
	n, err := note.Open(data, trusted)
	if unknown, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		return receipt{}, "", fmt.Errorf("%w: it is signed by %.200q, whose receipts are not trusted here", ErrReceipt, signers(unknown.Note))
	}
	if err != nil {
		return receipt{}, "", fmt.Errorf("%w: %v", ErrReceipt, err)
	}
	r, err := parseReceipt(n.Text)
	return r, n.Sigs[0].Name, err
}

func signers(n *note.Note) string {
	var names []string
	for _, s := range n.UnverifiedSigs {
		names = append(names, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
	}
	return strings.Join(names, ", ")
}

// parseReceipt reads what text writes: what parses encodes to the same text.
func parseReceipt(text string) (receipt, error) {
	var r receipt
	lines := strings.Split(text, "\n")
	if isNewer([]byte(text), receiptHeader, receiptVersion) {
		return r, fmt.Errorf("a receipt of a newer format (%.40q): %w; install the newer version", lines[0], board.ErrNewer)
	}
	if len(lines) < 5 || lines[0] != receiptHeader {
		return r, fmt.Errorf("%w: it does not begin with %q", ErrReceipt, receiptHeader)
	}
	r.origin = lines[1]
	sku, station, _ := strings.Cut(r.origin, "/")
	if err := errors.Join(board.CheckName(sku), board.CheckName(station)); err != nil {
		return r, fmt.Errorf("%w: it is of no station (%.130q)", ErrReceipt, r.origin)
	}
	if n, err := fmt.Sscanf(lines[2], "%d %d", &r.first, &r.next); n != 2 || err != nil || r.next <= r.first {
		return r, fmt.Errorf("%w: it has no range", ErrReceipt)
	}
	at, err := time.Parse(journal.TimeLayout, lines[3])
	if err != nil {
		return r, fmt.Errorf("%w: it has no time", ErrReceipt)
	}
	r.time = at.UTC()
	from := r.first
	for _, line := range lines[4 : len(lines)-1] {
		a, err := parseAnswer(line)
		if err != nil {
			return r, err
		}
		if a.seq < from || a.seq >= r.next {
			return r, fmt.Errorf("%w: entry %d is out of place", ErrReceipt, a.seq)
		}
		from = a.seq + 1
		r.answers = append(r.answers, a)
	}
	if again, err := r.text(); err != nil || again != text {
		return r, fmt.Errorf("%w: not in its one encoding", ErrReceipt)
	}
	return r, nil
}

func parseAnswer(line string) (answer, error) {
	var a answer
	var device, key, word string
	if n, err := fmt.Sscanf(line, "%d %s %s %s", &a.seq, &device, &key, &word); n != 4 || err != nil {
		return a, fmt.Errorf("%w: a line is no answer", ErrReceipt)
	}
	var err, err2 error
	a.device, err = board.ParseDeviceID(device)
	a.key, err2 = board.ParseFingerprint(key)
	if err != nil || err2 != nil {
		return a, fmt.Errorf("%w: entry %d names no device or no key", ErrReceipt, a.seq)
	}
	switch word {
	case receiptOf:
		return a, nil
	case receiptRefused:
	default:
		return a, fmt.Errorf("%w: entry %d is %.40q, which is not %q or %q", ErrReceipt, a.seq, word, receiptOf, receiptRefused)
	}
	_, text, _ := strings.Cut(line, " "+receiptRefused+" ")
	a.refused = new(refused)
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(a.refused); err != nil {
		return a, fmt.Errorf("%w: entry %d: %v", ErrReceipt, a.seq, err)
	}
	switch a.refused.Reason {
	case journal.ReasonDeviceConflict, journal.ReasonKeyConflict, journal.ReasonInvalid, journal.ReasonUntrusted:
		return a, nil
	}
	return a, fmt.Errorf("%w: entry %d: unknown reason %.40q", ErrReceipt, a.seq, a.refused.Reason)
}

// Settled says what a receipt changed.
type Settled struct {
	By        string `json:"by"` // who signed it
	First     uint64 `json:"first"`
	Last      uint64 `json:"last"`
	Confirmed int    `json:"confirmed"` // left the queue
	Refused   int    `json:"refused"`   // are dead letters now
	Already   int    `json:"already"`   // were settled before, or are damaged
}

// ApplyReceipt settles what waits in the queue by a receipt that one of the
// trusted keys signed: what the registry confirmed is delivered, what it
// refused for good is a dead letter; a dead letter that it has confirmed since
// is delivered. All of it or, with ErrReceipt, nothing: a line that names
// another device or key than the journal's entry has spoils the whole. To apply
// it again changes nothing. It may be called while Run runs.
func (s *Spool) ApplyReceipt(data []byte, trusted note.Verifiers) (Settled, error) {
	r, by, err := openReceipt(data, trusted)
	if err != nil {
		return Settled{}, err
	}
	if r.origin != s.origin {
		return Settled{}, fmt.Errorf("%w: it is for %.130q, this is %s", ErrReceipt, r.origin, s.origin)
	}
	s.mu.Lock()
	defer s.unlock()
	if err := s.usable(); err != nil {
		return Settled{}, err
	}
	out := Settled{By: by, First: r.first, Last: r.next - 1}
	var items []*item
	var again []uint64 // dead letters that were confirmed
	for i := range r.answers {
		a := &r.answers[i]
		it, dead, err := s.match(a)
		if err != nil {
			return Settled{}, err
		}
		switch {
		case it == nil, dead && a.refused != nil:
			out.Already++
			continue
		case a.refused != nil:
			out.Refused++
			it.dead = a.verdict("by a receipt of " + by)
		default:
			out.Confirmed++
			if dead {
				again = append(again, a.seq)
			}
		}
		items = append(items, it)
	}
	if err := s.revive(again, items); err != nil {
		return Settled{}, err
	}
	if err := s.settleLocked(items); err != nil {
		return Settled{}, err
	}
	s.wakeUp() // what is left may have to be looked at anew
	return out, nil
}

// match finds the record that an answer is about: in the queue, or dead; nil if
// it was settled before. The caller holds mu.
func (s *Spool) match(a *answer) (it *item, dead bool, err error) {
	wrong := func(why string) error {
		return fmt.Errorf("%w: entry %d, device %s, key %s: %s; nothing of it was applied", ErrReceipt, a.seq, a.device, a.key, why)
	}
	it = &item{outcome: outcome{seq: a.seq, dev: a.device, key: a.key}, tried: true}
	var letter DeadLetter
	var known pointer
	waits, have := false, false
	err = s.view(func(tx *bolt.Tx) error {
		key := encodeSeq(a.seq)
		if data := tableOf(tx, bucketQueue).Get(key); data != nil {
			waits = true
			return it.at.decode(data)
		}
		if data := tableOf(tx, bucketDead).Get(key); data != nil {
			dead = true
			return json.Unmarshal(data, &letter)
		}
		if data := tableOf(tx, bucketDevices).Get(a.device[:]); data != nil {
			have = true
			return known.decode(data)
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("reading the index: %w", err)
	}
	if !waits && !dead {
		if journal.Covers(s.damage, a.seq) {
			return nil, false, nil
		}
		if !have || known.Key != a.key || known.Seq < a.seq {
			return nil, false, wrong("this journal has no such record")
		}
		return nil, false, nil
	}
	at := journal.Position{Segment: it.at.Segment, Offset: it.at.Offset}
	if dead {
		e, place, err := s.find(letter)
		if err != nil {
			return nil, dead, fmt.Errorf("reading entry %d back: %w", a.seq, err)
		}
		at, it.at = place, queued{place.Segment, place.Offset, e.Time.UnixMilli()}
	}
	sealed, err := s.readRecord(a.seq, at)
	if err != nil {
		s.suspect(at.Segment, err)
		return nil, dead, fmt.Errorf("reading entry %d back: %w", a.seq, err)
	}
	if sealed.Record().Device != a.device || sealed.Record().Fingerprint() != a.key {
		return nil, dead, wrong(fmt.Sprintf("this journal has device %s with key %s there", sealed.Record().Device, sealed.Record().Fingerprint()))
	}
	return it, dead, nil
}

// revive puts dead letters back into the queue, from where they are settled at
// once. The caller holds mu.
func (s *Spool) revive(seqs []uint64, items []*item) error {
	if len(seqs) == 0 {
		return nil
	}
	places := map[uint64]queued{}
	for _, it := range items {
		places[it.seq] = it.at
	}
	if err := s.update(func(tx *bolt.Tx) error {
		for _, seq := range seqs {
			q := places[seq]
			if err := errors.Join(tableOf(tx, bucketDead).Delete(encodeSeq(seq)), tableOf(tx, bucketQueue).Put(encodeSeq(seq), q.encode())); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		s.broken = fmt.Errorf("writing the index: %w", err)
		return s.broken
	}
	s.pending += len(seqs)
	s.dead -= len(seqs)
	return nil
}

// Oldest returns the entry of the oldest record that waits in the queue; false
// if none does.
func (s *Spool) Oldest() (seq uint64, waits bool, err error) {
	s.mu.Lock()
	defer s.unlock()
	if err := s.usable(); err != nil {
		return 0, false, err
	}
	err = s.view(func(tx *bolt.Tx) error {
		key, _ := tableOf(tx, bucketQueue).Cursor().First()
		if key == nil {
			return nil
		}
		waits = true
		seq, err = decodeSeq(key)
		return err
	})
	return seq, waits, err
}
