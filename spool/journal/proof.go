package journal

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/station/board"
)

// Errors of proofs.
var (
	// ErrNoRecord: the journal has no record of that device.
	ErrNoRecord = errors.New("the journal has no record of this device")
	// ErrUnsigned: there is a record, but no checkpoint over it yet, or none
	// whose root can be computed.
	ErrUnsigned = errors.New("no checkpoint covers this record yet")
	// ErrProof says that something is no proof, or does not prove what it says.
	ErrProof = errors.New("not a valid proof")
)

// MaxProof caps a proof, in bytes: an entry in base64, 63 hashes, a checkpoint
// with many witnesses.
const MaxProof = 2*MaxEntryLine + 63*45 + 64<<10

const proofHeader = "c2sp.org/tlog-proof@v1"

// Proof is a C2SP tlog-proof. Its extra data is the entry's JSON: what it
// proves is in it.
type Proof struct {
	Entry      []byte
	Index      uint64
	Hashes     tlog.RecordProof
	Checkpoint []byte // a signed note, as it was signed
}

func (p *Proof) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofHeader, base64.StdEncoding.EncodeToString(p.Entry), p.Index)
	for _, h := range p.Hashes {
		b.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// ParseProof reads what encode writes: what parses encodes to the same bytes.
// It checks nothing but the form.
func ParseProof(data []byte) (Proof, error) {
	var p Proof
	if len(data) > MaxProof {
		return p, fmt.Errorf("%w: %d bytes, at most %d are read", ErrProof, len(data), MaxProof)
	}
	head, checkpoint, ok := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !ok || len(lines) < 3 || lines[0] != proofHeader {
		return p, fmt.Errorf("%w: it does not begin with %q", ErrProof, proofHeader)
	}
	extra, ok := strings.CutPrefix(lines[1], "extra ")
	entry, err := base64.StdEncoding.Strict().DecodeString(extra)
	if !ok || err != nil {
		return p, fmt.Errorf("%w: the entry is not in it", ErrProof)
	}
	index, ok := strings.CutPrefix(lines[2], "index ")
	n, err := strconv.ParseUint(index, 10, 63)
	if !ok || err != nil {
		return p, fmt.Errorf("%w: it has no index", ErrProof)
	}
	p.Entry, p.Index, p.Checkpoint = entry, n, checkpoint
	for _, line := range lines[3:] {
		sum, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(sum) != tlog.HashSize || len(p.Hashes) == 63 {
			return p, fmt.Errorf("%w: a line is no hash", ErrProof)
		}
		p.Hashes = append(p.Hashes, tlog.Hash(sum))
	}
	if !bytes.Equal(p.Encode(), data) {
		return p, fmt.Errorf("%w: not in its one encoding", ErrProof)
	}
	return p, nil
}

// Proven is what a proof proves: the station signed this record, and a journal
// that holds it.
type Proven struct {
	Entry  Entry
	Sealed board.Sealed
	Size   uint64 // of the journal that was signed, in entries
}

// VerifyProof checks a proof that Prove made, with nothing but the station's
// public key: that the entry is in the journal under the checkpoint, that the
// station signed the checkpoint and the record, and that the board had proved
// to have the key, if the record says so (Record.Proof is nil if it does not).
// Otherwise the error is ErrProof, ErrTampered for a checkpoint of somebody
// else, or that of the record.
func VerifyProof(data []byte, v note.Verifier) (Proven, error) {
	p, err := ParseProof(data)
	if err != nil {
		return Proven{}, err
	}
	signed, err := ParseCheckpoint(p.Checkpoint, v)
	if err != nil {
		return Proven{}, err
	}
	e, err := ParseEntry(p.Entry)
	if err != nil {
		return Proven{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	if e.Seq != p.Index || e.Record() == nil {
		return Proven{}, fmt.Errorf("%w: the entry is not the record that it says it is", ErrProof)
	}
	if p.Index >= signed.Size || tlog.CheckRecord(p.Hashes, int64(signed.Size), signed.Root, int64(p.Index), tlog.RecordHash(p.Entry)) != nil {
		return Proven{}, fmt.Errorf("%w: the entry is not in the journal that was signed", ErrProof)
	}
	sealed, err := board.OpenEnvelope(e.Record(), v)
	if err != nil {
		return Proven{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	if possession := sealed.Record().Proof; possession != nil {
		if err := possession.Verify(sealed.Record().Device, sealed.Record().Key); err != nil {
			return Proven{}, fmt.Errorf("%w: %w", ErrProof, err)
		}
	}
	return Proven{e, sealed, signed.Size}, nil
}

// Prove returns a proof that the newest record of a device is in the journal
// under dir: a C2SP tlog-proof with the entry in it, which VerifyProof checks
// with nothing but the station's public key. It takes no lock, and reads the
// whole journal. It returns ErrNoRecord, or ErrUnsigned up to a minute after
// the record was appended, or as long as the journal is damaged in a way that
// keeps checkpoints from being signed.
func Prove(dir string, device board.DeviceID) ([]byte, error) {
	return ProveContext(context.Background(), dir, device)
}

// ProveEntry is ProveContext for the record in an entry of the journal under
// dir, from the files of leaf hashes: it does not read the journal. An error
// that is not ErrNoRecord or ErrUnsigned says that ProveContext must.
func ProveEntry(ctx context.Context, dir string, e Entry) ([]byte, error) {
	if e.Record() == nil {
		return nil, fmt.Errorf("entry %d: %w", e.Seq, ErrNoRecord)
	}
	text, signed, err := NewestCheckpoint(dir)
	if err != nil {
		return nil, err
	}
	if e.Seq >= signed.Size {
		return nil, fmt.Errorf("device %s: %w", e.Verdict.Device, ErrUnsigned)
	}
	p := Proof{Checkpoint: text, Index: e.Seq}
	if p.Entry, err = e.Encode(); err != nil {
		return nil, err
	}
	if p.Hashes, err = InclusionProof(ctx, dir, signed.Size, e.Seq); err != nil {
		return nil, err
	}
	if err := tlog.CheckRecord(p.Hashes, int64(signed.Size), signed.Root, int64(e.Seq), tlog.RecordHash(p.Entry)); err != nil {
		return nil, fmt.Errorf("proving a record: %w", err)
	}
	return p.Encode(), nil
}

// NewestCheckpoint reads the one over the journal under dir. Without one it is
// ErrUnsigned.
func NewestCheckpoint(dir string) (text []byte, signed Checkpoint, err error) {
	text, err = os.ReadFile(CheckpointPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, signed, fmt.Errorf("%w: there is no checkpoint", ErrUnsigned)
	}
	if err != nil {
		return nil, signed, fmt.Errorf("reading the checkpoint: %w", err)
	}
	if _, signed, err = CheckpointOf(text); err != nil {
		return nil, signed, fmt.Errorf("%s: %w", CheckpointPath(dir), err)
	}
	return text, signed, nil
}

func ProveContext(ctx context.Context, dir string, device board.DeviceID) ([]byte, error) {
	text, signed, err := NewestCheckpoint(dir)
	if err != nil {
		return nil, err
	}
	p := Proof{Checkpoint: text}
	late := false
	h, err := ReadHashes(dir, signed.Size, func(at Position, seq uint64, data []byte) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r, err := Summarize(at, seq, data, nil)
		if err != nil {
			return AsDamage(err)
		}
		if !r.IsRecord() || r.Device != device {
			return nil
		}
		if seq >= signed.Size {
			late = true
			return nil
		}
		p.Entry, p.Index = bytes.Clone(data), seq
		return nil
	})
	if err != nil {
		return nil, err
	}
	switch {
	case p.Entry == nil && late:
		return nil, fmt.Errorf("device %s: %w", device, ErrUnsigned)
	case p.Entry == nil:
		return nil, fmt.Errorf("device %s: %w", device, ErrNoRecord)
	case h.Incomplete:
		return nil, fmt.Errorf("device %s: %w: %s", device, ErrUnsigned, Unprovable)
	}
	if root, err := tlog.TreeHash(int64(signed.Size), h); err != nil || root != signed.Root {
		return nil, fmt.Errorf("%w: its first %d entries have another root than was signed", ErrTampered, signed.Size)
	}
	if p.Hashes, err = tlog.ProveRecord(int64(signed.Size), int64(p.Index), h); err != nil {
		return nil, fmt.Errorf("proving a record: %w", err)
	}
	return p.Encode(), nil
}

// Hashes are those of a whole tree, as tlog stores them.
type Hashes struct {
	stored     []tlog.Hash
	leaves     uint64
	Incomplete bool // the hash of a damaged entry is not known: this has no more
}

func (h *Hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(h.stored)) {
			return nil, fmt.Errorf("%w: it has %d entries", ErrUnsigned, h.leaves)
		}
		out[i] = h.stored[index]
	}
	return out, nil
}

func (h *Hashes) Add(leaf tlog.Hash) error {
	if leaf == (tlog.Hash{}) {
		h.Incomplete = true
	}
	if h.Incomplete {
		return nil
	}
	more, err := tlog.StoredHashesForRecordHash(int64(h.leaves), leaf, h)
	if err != nil {
		return err
	}
	h.stored = append(h.stored, more...)
	h.leaves++
	return nil
}

// ReadHashes reads a journal and computes the hashes of the tree over its first
// entries. All entries are visited.
func ReadHashes(dir string, size uint64, visit func(at Position, seq uint64, data []byte) error) (*Hashes, error) {
	segments, err := ListSegments(dir)
	if err != nil {
		return nil, err
	}
	beside, err := OpenLeafHashes(dir)
	if err != nil {
		return nil, err
	}
	h := &Hashes{}
	s := NewScan(dir)
	s.Visit = func(at Position, seq uint64, data []byte) error {
		if err := visit(at, seq, data); err != nil || seq >= size {
			return err
		}
		return h.Add(tlog.RecordHash(data))
	}
	s.Damaged = func(d Damage) error {
		for seq := d.First; seq < min(d.Next, size); seq++ {
			if err := h.Add(beside.Hash(seq)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := s.Run(segments); err != nil {
		return nil, err
	}
	if s.Next < size {
		return nil, fmt.Errorf("%w: it has %d entries, the checkpoint says %d", ErrTampered, s.Next, size)
	}
	return h, nil
}

// Errors of comparing a journal with a checkpoint that was found elsewhere, as
// in a registry.
var (
	// ErrFork: the station's key signed another journal than this one. Two
	// machines sign as one station, or this journal was put back from a backup
	// and went on from there.
	ErrFork = errors.New("the station's key has signed another journal")
	// ErrBehind: the checkpoint is over more entries than this journal has.
	// Either it is a fork, or this journal lost its end.
	ErrBehind = errors.New("a checkpoint is over more than this journal holds")
)

// Consistent tells whether the journal under dir is the one, or the
// continuation of the one, that a checkpoint was signed over: nil if it is,
// ErrFork or ErrBehind if not, ErrTampered if the station did not sign the
// checkpoint, ErrUnsigned if damage hides it. It takes no lock, and reads the
// whole journal.
func Consistent(dir string, v note.Verifier, checkpoint []byte) error {
	signed, err := ParseCheckpoint(checkpoint, v)
	if err != nil {
		return err
	}
	h, err := ReadHashes(dir, signed.Size, func(Position, uint64, []byte) error { return nil })
	if errors.Is(err, ErrTampered) {
		return fmt.Errorf("%w: %v; if another machine runs as %s, stop one of them", ErrBehind, err, v.Name())
	}
	if err != nil {
		return err
	}
	if h.Incomplete {
		return fmt.Errorf("%w: %s", ErrUnsigned, Unprovable)
	}
	root, err := tlog.TreeHash(int64(signed.Size), h)
	if err != nil {
		return fmt.Errorf("comparing with a checkpoint: %w", err)
	}
	if root != signed.Root {
		return fmt.Errorf("%w: it differs within the first %d entries; if another machine runs as %s, stop one of them", ErrFork, signed.Size, v.Name())
	}
	return nil
}
