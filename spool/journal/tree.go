package journal

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree is the right edge of the Merkle tree (RFC 6962, 2.1): the roots of its
// full subtrees, the largest first.
type Tree struct {
	N        uint64
	Frontier []tlog.Hash
	// Incomplete is set when the hash of a leaf is not known, because its line
	// is damaged. There is no root any more.
	Incomplete bool
}

// Add takes the hash of the next leaf. The zero hash, which no leaf has, stands
// for one that is not known.
func (t *Tree) Add(h tlog.Hash) {
	if t.Incomplete || h == (tlog.Hash{}) {
		t.Incomplete = true
		t.N++
		return
	}
	for n := t.N; n&1 == 1; n >>= 1 {
		h = tlog.NodeHash(t.Frontier[len(t.Frontier)-1], h)
		t.Frontier = t.Frontier[:len(t.Frontier)-1]
	}
	t.Frontier = append(t.Frontier, h)
	t.N++
}

// Root is that of a tree which is not blind.
func (t *Tree) Root() tlog.Hash {
	if t.N == 0 {
		return sha256.Sum256(nil)
	}
	h := t.Frontier[len(t.Frontier)-1]
	for i := len(t.Frontier) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.Frontier[i], h)
	}
	return h
}

func (t *Tree) Clone() Tree { return Tree{t.N, slices.Clone(t.Frontier), t.Incomplete} }

// Leaves are the hashes of a sealed segment's entries, kept beside it: with
// them the root can be computed although a line cannot be read, and a line that
// is had back can be told from a wrong one.
type Leaves struct {
	Origin string
	First  uint64
	Hashes []tlog.Hash // the zero hash is one that was not known
}

func (l *Leaves) Next() uint64 { return l.First + uint64(len(l.Hashes)) }

// KnowsMore tells whether l knows every hash that other does, and some that it
// does not.
func (l *Leaves) KnowsMore(other Leaves) bool {
	if l.Origin != other.Origin || l.First != other.First || len(l.Hashes) < len(other.Hashes) {
		return false
	}
	more := len(l.Hashes) > len(other.Hashes)
	for i, h := range other.Hashes {
		if h == (tlog.Hash{}) {
			more = more || l.Hashes[i] != h
		} else if l.Hashes[i] != h {
			return false
		}
	}
	return more
}

// ErrLeaves says that something is not a file of leaf hashes.
var ErrLeaves = errors.New("not a file of leaf hashes")

const leavesHeader = "secretfree leaves 1"

func (l *Leaves) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%s\n%d %d\n", leavesHeader, l.Origin, l.First, l.Next())
	for _, h := range l.Hashes {
		if h == (tlog.Hash{}) {
			b.WriteString("-\n")
		} else {
			b.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
		}
	}
	fmt.Fprintf(&b, "%08x\n", crc32.Checksum(b.Bytes(), Castagnoli))
	return b.Bytes()
}

// ParseLeaves reads what encode writes: what parses encodes to the same bytes.
func ParseLeaves(data []byte) (Leaves, error) {
	var l Leaves
	lines := strings.Split(string(data), "\n")
	if len(lines) < 5 || lines[0] != leavesHeader {
		return l, fmt.Errorf("%w: no header", ErrLeaves)
	}
	l.Origin = lines[1]
	var next uint64
	if n, err := fmt.Sscanf(lines[2], "%d %d", &l.First, &next); n != 2 || err != nil {
		return l, fmt.Errorf("%w: no range", ErrLeaves)
	}
	for _, line := range lines[3 : len(lines)-2] {
		var h tlog.Hash
		if line != "-" {
			sum, err := base64.StdEncoding.Strict().DecodeString(line)
			if err != nil || len(sum) != len(h) || tlog.Hash(sum) == h {
				return l, fmt.Errorf("%w: a line is no hash", ErrLeaves)
			}
			copy(h[:], sum)
		}
		l.Hashes = append(l.Hashes, h)
	}
	if next != l.Next() || !bytes.Equal(l.Encode(), data) {
		return l, fmt.Errorf("%w: the checksum or the number of hashes does not match", ErrLeaves)
	}
	return l, nil
}

func ReadLeaves(dir string, first uint64) (Leaves, error) {
	data, err := os.ReadFile(LeavesPath(dir, first))
	if err != nil {
		return Leaves{}, err
	}
	l, err := ParseLeaves(data)
	if err == nil && l.First != first {
		err = fmt.Errorf("%w: it is of another segment", ErrLeaves)
	}
	if err != nil {
		return Leaves{}, fmt.Errorf("%s: %w", LeavesPath(dir, first), err)
	}
	return l, nil
}

var leavesName = regexp.MustCompile(`^([0-9]{20})\.leaves$`)

// LeafHashReader finds the hash of a leaf in the files beside the segments.
type LeafHashReader struct {
	dir    string
	firsts []uint64
	now    Leaves // the file that was read last
}

func OpenLeafHashes(dir string) (*LeafHashReader, error) {
	s := &LeafHashReader{dir: dir}
	names, err := os.ReadDir(Dir(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	for _, name := range names {
		if m := leavesName.FindStringSubmatch(name.Name()); m != nil {
			if first, err := strconv.ParseUint(m[1], 10, 64); err == nil {
				s.firsts = append(s.firsts, first)
			}
		}
	}
	slices.Sort(s.firsts)
	return s, nil
}

// Hash returns the zero hash if it is not known. A file that cannot be read
// knows nothing: it is written anew when its segment is read.
func (s *LeafHashReader) Hash(seq uint64) tlog.Hash {
	if seq < s.now.First || seq >= s.now.Next() {
		i, found := slices.BinarySearchFunc(s.firsts, seq, cmp.Compare)
		if !found {
			i--
		}
		if i < 0 {
			return tlog.Hash{}
		}
		l, err := ReadLeaves(s.dir, s.firsts[i])
		if err != nil {
			s.firsts = slices.Delete(s.firsts, i, i+1)
			return tlog.Hash{}
		}
		if s.now = l; seq >= l.Next() {
			return tlog.Hash{}
		}
	}
	return s.now.Hashes[seq-s.now.First]
}
