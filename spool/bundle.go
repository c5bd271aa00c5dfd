package spool

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// ErrBundle says that something is not a bundle, or does not hold what it says.
var ErrBundle = errors.New("not a valid bundle")

const (
	bundleEntries = 1000    // that one bundle holds at the most
	bundleSize    = 8 << 20 // of their JSON, in bytes
	// maxBundle caps the file: its entries, 126 hashes, a checkpoint with many
	// witnesses.
	maxBundle = bundleSize + journal.MaxEntryLine + 126*45 + 64<<10 + 512

	bundleHeader  = "secretfree bundle 1"
	bundleVersion = "secretfree bundle "
)

// bundle is a run of a journal's entries with what proves, to whoever has the
// station's public key, that they are in the journal that it signed: the roots
// of the subtrees beside the run, and a checkpoint.
type bundle struct {
	origin     string
	first      uint64
	entries    [][]byte    // each an entry's JSON
	beside     []tlog.Hash // as runRoot takes them
	checkpoint []byte      // a signed note, as it was signed
}

func (b *bundle) next() uint64 { return b.first + uint64(len(b.entries)) }

func (b *bundle) encode() []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s\n%s\n%d %d\n", bundleHeader, b.origin, b.first, b.next())
	for _, h := range b.beside {
		out.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	out.WriteByte('\n')
	for _, data := range b.entries {
		out.Write(data)
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
	out.Write(b.checkpoint)
	return out.Bytes()
}

// parseBundle reads what encode writes: what parses encodes to the same bytes.
// It checks nothing but the form.
func parseBundle(data []byte) (bundle, error) {
	var b bundle
	if len(data) > maxBundle {
		return b, fmt.Errorf("%w: more than %d bytes", ErrBundle, maxBundle)
	}
	head, rest, ok := bytes.Cut(data, []byte("\n\n"))
	body, checkpoint, ok2 := bytes.Cut(rest, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if isNewer(data, bundleHeader, bundleVersion) {
		return b, fmt.Errorf("a bundle of a newer format (%.40q): %w; install the newer version", lines[0], board.ErrNewer)
	}
	if !ok || !ok2 || len(lines) < 3 || lines[0] != bundleHeader {
		return b, fmt.Errorf("%w: it does not begin with %q, or is cut short", ErrBundle, bundleHeader)
	}
	b.origin, b.checkpoint, b.entries = lines[1], checkpoint, bytes.Split(body, []byte("\n"))
	var next uint64
	if n, err := fmt.Sscanf(lines[2], "%d %d", &b.first, &next); n != 2 || err != nil || b.first >= 1<<62 {
		return b, fmt.Errorf("%w: it has no range", ErrBundle)
	}
	for _, line := range lines[3:] {
		sum, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(sum) != tlog.HashSize {
			return b, fmt.Errorf("%w: a line is no hash", ErrBundle)
		}
		b.beside = append(b.beside, tlog.Hash(sum))
	}
	if b.next() != next || !bytes.Equal(b.encode(), data) {
		return b, fmt.Errorf("%w: it does not hold the entries that it says, or is not in its one encoding", ErrBundle)
	}
	return b, nil
}

// isNewer tells whether a text begins as one of another version does. One that
// is cut short does not.
func isNewer(data []byte, header, version string) bool {
	line, _, whole := bytes.Cut(data[:min(len(data), 64)], []byte("\n"))
	number, ok := strings.CutPrefix(string(line), version)
	n, err := strconv.ParseUint(number, 10, 32)
	return whole && ok && err == nil && version+strconv.FormatUint(n, 10) == string(line) && string(line) != header
}

// check makes sure that the entries are in the journal which the station
// signed. It returns the checkpoint and the hashes of their leaves.
func (b *bundle) check(v note.Verifier) (journal.Checkpoint, []tlog.Hash, error) {
	signed, err := journal.ParseCheckpoint(b.checkpoint, v)
	if err != nil {
		return signed, nil, err
	}
	if b.origin != v.Name() || b.next() > signed.Size {
		return signed, nil, fmt.Errorf("%w: it says that it is of %.130q, entries %d to %d; signed are %d entries of %s", ErrBundle, b.origin, b.first, b.next()-1, signed.Size, v.Name())
	}
	leaves := make([]tlog.Hash, len(b.entries))
	for i, data := range b.entries {
		if seq, err := journal.SeqOf(data); err != nil || seq != b.first+uint64(i) {
			return signed, nil, fmt.Errorf("%w: entry %d is not in its place", ErrBundle, b.first+uint64(i))
		}
		leaves[i] = tlog.RecordHash(data)
	}
	beside := b.beside
	root, ok := journal.RangeRoot(0, signed.Size, b.first, leaves, &beside)
	if !ok || len(beside) > 0 || root != signed.Root {
		return signed, nil, fmt.Errorf("%w: its entries are not in the journal that was signed", ErrBundle)
	}
	return signed, leaves, nil
}
