package spool

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

func FuzzReceipt(f *testing.F) {
	r := someReceipt(f)
	text, err := r.text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	r.answers = nil
	if text, err = r.text(); err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	secret, public, err := note.GenerateKey(rand.Reader, "import/hq")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseReceipt(text)
		if err != nil {
			if errors.Is(err, ErrReceipt) == errors.Is(err, board.ErrNewer) {
				t.Errorf("refused, but with %v", err)
			}
			return
		}
		if again, err := r.text(); err != nil || again != text {
			t.Errorf("%q encodes to %q (%v)", text, again, err)
		}
		signed, err := r.encode(signer)
		if err != nil {
			return // a note cannot hold every text
		}
		if again, by, err := openReceipt(signed, note.VerifierList(verifier)); err != nil || by != "import/hq" || len(again.answers) != len(r.answers) {
			t.Errorf("%q opens as %+v by %s, %v", signed, again, by, err)
		}
	})
}

func someReceipt(t testing.TB) receipt {
	t.Helper()
	one, two := newRecord(t), newRecord(t)
	verdict := fmt.Errorf("at the registry: %w", &board.Conflict{Kind: board.ErrKeyConflict, Device: two.Device, Key: two.Fingerprint(), KnownDevice: one.Device, KnownKey: two.Fingerprint(), KnownBy: "widgiot/line4-b"})
	return receipt{origin: "widgiot/line3-a", first: 3, next: 9, time: time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC), answers: []answer{
		{seq: 3, device: one.Device, key: one.Fingerprint()},
		{seq: 5, device: two.Device, key: two.Fingerprint(), refused: refusal(verdict)},
		{seq: 6, device: one.Device, key: two.Fingerprint(), refused: refusal(fmt.Errorf("%w: <&> \"\x01\xff\u2028\"", board.ErrRecord))},
	}}
}

// What a registry said comes back as the same verdict.
func TestReceiptKeepsVerdicts(t *testing.T) {
	one, two := newRecord(t), newRecord(t)
	for name, verdict := range map[string]error{
		"device": &board.Conflict{Kind: board.ErrDeviceConflict, Device: one.Device, Key: one.Fingerprint(), KnownDevice: one.Device, KnownKey: two.Fingerprint(), KnownBy: "widgiot/line4-b"},
		"key":    &board.Conflict{Kind: board.ErrKeyConflict, Device: one.Device, Key: one.Fingerprint(), KnownDevice: two.Device, KnownKey: one.Fingerprint()},
		"little": &board.Conflict{Kind: board.ErrKeyConflict, Device: one.Device, Key: one.Fingerprint()},
	} {
		a := answer{seq: 1, device: one.Device, key: one.Fingerprint(), refused: refusal(verdict)}
		got, ok := errors.AsType[*board.Conflict](a.verdict("import/hq"))
		if !ok || *got != *verdict.(*board.Conflict) {
			t.Errorf("%s: %+v, want %+v", name, got, verdict)
		}
	}
	for reason, verdict := range map[string]error{journal.ReasonInvalid: board.ErrEnvelope, journal.ReasonUntrusted: board.ErrUntrusted} {
		r := refusal(fmt.Errorf("%w %s", verdict, strings.Repeat("é", journal.MaxRejectionText)))
		if r.Reason != reason || len(r.Text) > journal.MaxRejectionText || len(r.Text) < journal.MaxRejectionText-2 {
			t.Errorf("%s: %q, %d bytes", reason, r.Reason, len(r.Text))
		}
	}
}

func TestReceiptRefusals(t *testing.T) {
	r := someReceipt(t)
	good, err := r.text()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseReceipt(good); err != nil {
		t.Fatal(err)
	}
	line := strings.SplitAfter(good, "\n")[4]
	for name, c := range map[string]struct {
		from, to string
		want     error
	}{
		"a newer format":      {"receipt 1", "receipt 2", board.ErrNewer},
		"another text":        {"secretfree receipt 1", "widgiot/line3-a", ErrReceipt},
		"a NUL in its origin": {"line3-a", "line3\x00a", ErrReceipt},
		"no range":            {"\n3 9\n", "\n3\n", ErrReceipt},
		"an empty range":      {"\n3 9\n", "\n3 3\n", ErrReceipt},
		"a leading zero":      {"\n3 9\n", "\n03 9\n", ErrReceipt},
		"before its range":    {"\n3 9\n", "\n4 9\n", ErrReceipt},
		"behind its range":    {"\n3 9\n", "\n3 6\n", ErrReceipt},
		"no time":             {"2026-01-02T", "2026-01-02 ", ErrReceipt},
		"an entry twice":      {line, line + line, ErrReceipt},
		"another word":        {" confirmed", " believed", ErrReceipt},
		"no word":             {" confirmed", "", ErrReceipt},
		"more words":          {" confirmed", " confirmed x", ErrReceipt},
		"no device":           {r.answers[0].device.String(), strings.Repeat("0", 32), ErrReceipt},
		"no key":              {r.answers[0].key.String(), "x", ErrReceipt},
		"an unknown reason":   {`"reason":"key-conflict"`, `"reason":"dislike"`, ErrReceipt},
		"an unknown field":    {`"reason":"key-conflict"`, `"because":"key-conflict"`, ErrReceipt},
		"white space":         {`"reason":"key-conflict"`, `"reason": "key-conflict"`, ErrReceipt},
		"without its end":     {good, good[:len(good)-1], ErrReceipt},
		"a line end too many": {good, good + "\n", ErrReceipt},
	} {
		text := strings.Replace(good, c.from, c.to, 1)
		if text == good {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := parseReceipt(text); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func (k *kit) mustApply(im *importer) (sum Settled) {
	k.t.Helper()
	k.carried = true
	receipts, err := Receipts(im.Media, "widgiot/line3-a")
	if err != nil {
		k.t.Fatal(err)
	}
	for _, r := range receipts {
		s, err := k.spool.ApplyReceipt(r.Data, note.VerifierList(im.Identity.Verifier))
		if err != nil {
			k.t.Fatalf("%s: %v", r.Path, err)
		}
		sum.Confirmed += s.Confirmed
		sum.Refused += s.Refused
		sum.Already += s.Already
	}
	return sum
}

// A receipt that is not to be believed changes nothing.
func TestApplyReceiptRefusals(t *testing.T) {
	k := newKit(t)
	k.carried = true
	one, two := k.mustAppend(), k.mustAppend()
	if _, err := k.append(one); err != nil { // a repeat, entry 3
		t.Fatal(err)
	}
	stick := tempDir(t)
	im := newImporter(t, stick, newMemorySink(), k.id.Verifier)
	stranger := newImporter(t, stick, newMemorySink(), k.id.Verifier)
	trusted := note.VerifierList(im.Identity.Verifier)
	good := receipt{origin: "widgiot/line3-a", first: 0, next: 4, time: now(), answers: []answer{
		{seq: 1, device: one.Device, key: one.Fingerprint()}, {seq: 2, device: two.Device, key: two.Fingerprint()},
	}}
	for name, c := range map[string]struct {
		edit   func(r *receipt)
		signer note.Signer
		says   string
	}{
		"a stranger's":            {nil, stranger.Identity.Signer, "import/hq+"},
		"the station's own":       {nil, k.id.Signer, "widgiot/line3-a+"},
		"for another station":     {func(r *receipt) { r.origin = "widgiot/line3-b" }, nil, "it is for"},
		"with another key":        {func(r *receipt) { r.answers[1].key = one.Fingerprint() }, nil, "this journal has device"},
		"with another device":     {func(r *receipt) { r.answers[1].device = one.Device }, nil, "this journal has device"},
		"of another entry":        {func(r *receipt) { r.answers[1].seq = 3 }, nil, "no such record"},
		"of an entry to come":     {func(r *receipt) { r.next, r.answers[1].seq = 9, 8 }, nil, "no such record"},
		"of the segment's start":  {func(r *receipt) { r.answers[0].seq, r.answers[0].key = 0, two.Fingerprint() }, nil, "no such record"},
		"of a device unheard of":  {func(r *receipt) { r.answers = []answer{{seq: 0, device: board.DeviceID{1}, key: one.Fingerprint()}} }, nil, "no such record"},
		"refusing what is not so": {func(r *receipt) { r.answers[1].key, r.answers[1].refused = one.Fingerprint(), refusal(board.ErrRecord) }, nil, "this journal has device"},
	} {
		r := good
		r.answers = slices.Clone(good.answers)
		if c.edit != nil {
			c.edit(&r)
		}
		if c.signer == nil {
			c.signer = im.Identity.Signer
		}
		data, err := r.encode(c.signer)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := k.spool.ApplyReceipt(data, trusted); !errors.Is(err, ErrReceipt) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v, want %v: %s", name, s, err, ErrReceipt, c.says)
		}
	}
	data, err := good.encode(im.Identity.Signer)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data    []byte
		trusted note.Verifiers
	}{
		"nobody trusted":   {data, note.VerifierList()},
		"nothing":          {nil, trusted},
		"too long":         {bytes.Repeat([]byte("x"), maxReceipt+1), trusted},
		"changed":          {bytes.Replace(data, []byte("2 "+two.Device.String()), []byte("2 "+one.Device.String()), 1), trusted},
		"a bad signature":  {bytes.Replace(data, []byte("\n— import/hq "), []byte("\n— import/hq A"), 1), trusted},
		"a journal's line": {[]byte(`{"seq":1}`), trusted},
	} {
		if _, err := k.spool.ApplyReceipt(c.data, c.trusted); !errors.Is(err, ErrReceipt) {
			t.Errorf("%s: %v, want %v", name, err, ErrReceipt)
		}
	}
	checkpointed, err := note.Sign(&note.Note{Text: "widgiot/line3-a\n2\nAA==\n"}, im.Identity.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.spool.ApplyReceipt(checkpointed, trusted); !errors.Is(err, ErrReceipt) {
		t.Errorf("another text: %v, want %v", err, ErrReceipt)
	}
	if s := k.spool.Stats(); s.Pending != 2 || s.Dead != 0 || s.Delivered != 0 {
		t.Errorf("something was changed: %+v", s)
	}
	if s, err := k.spool.ApplyReceipt(data, trusted); err != nil || s.Confirmed != 2 || s.By != "import/hq" {
		t.Errorf("the good one: %+v, %v", s, err)
	}
	k.spool.Close()
	if _, err := k.spool.ApplyReceipt(data, trusted); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed spool: %v, want %v", err, ErrClosed)
	}
	if _, _, err := k.spool.Oldest(); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed spool: %v, want %v", err, ErrClosed)
	}
}

// Receipts are applied while the station delivers by itself.
func TestApplyReceiptWhileRunning(t *testing.T) {
	k := newKit(t)
	for range 30 {
		k.mustAppend()
	}
	stick := tempDir(t)
	k.export(stick, 0)
	im := newImporter(t, stick, newMemorySink(), k.id.Verifier)
	im.mustRun()
	stop := k.run()
	sum := k.mustApply(im)
	stop()
	if s := k.spool.Stats(); s.Pending != 0 || s.Dead != 0 || s.Delivered != 30 || sum.Confirmed+sum.Already != 30 {
		t.Errorf("%+v, %+v", s, sum)
	}
}

// Damage under a receipt: the entry is not settled by it, and is delivered when
// it was repaired.
func TestApplyReceiptOverDamage(t *testing.T) {
	k, _ := smallKit(t, 14)
	k.damaged = true
	stick := tempDir(t)
	k.export(stick, 0)
	im := newImporter(t, stick, newMemorySink(), k.id.Verifier)
	im.mustRun()
	k.spool.Close()
	before, err := os.ReadFile(journal.SegmentPath(k.dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	spoilSegment(t, k.dir, 0, func(b []byte) []byte { b[len(b)/2]++; return b })
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	if sum := k.mustApply(im); sum.Confirmed != 13 || sum.Already != 1 {
		t.Errorf("%+v", sum)
	}
	k.spool.Close()
	spoilSegment(t, k.dir, 0, func([]byte) []byte { return before })
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	if sum := k.mustApply(im); sum.Confirmed != 14 {
		t.Errorf("repaired: %+v", sum)
	}
}
