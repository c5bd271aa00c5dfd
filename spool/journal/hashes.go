package journal

import (
	"cmp"
	"context"
	"errors"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// split is the size of the left half of a tree (RFC 6962, 2.1): the largest
// power of two below n, which is at least 2.
func split(n uint64) uint64 { return 1 << (bits.Len64(n-1) - 1) }

// RangeRoot computes the root of the leaves from lo up to hi, from those of a
// run of them and the roots of the subtrees that have none of the run, which it
// takes from the front of beside.
func RangeRoot(lo, hi, first uint64, run []tlog.Hash, beside *[]tlog.Hash) (tlog.Hash, bool) {
	if hi <= first || first+uint64(len(run)) <= lo {
		if len(*beside) == 0 {
			return tlog.Hash{}, false
		}
		h := (*beside)[0]
		*beside = (*beside)[1:]
		return h, true
	}
	if hi-lo == 1 {
		return run[lo-first], true
	}
	middle := lo + split(hi-lo)
	left, ok := RangeRoot(lo, middle, first, run, beside)
	if !ok {
		return left, false
	}
	right, ok := RangeRoot(middle, hi, first, run, beside)
	return tlog.NodeHash(left, right), ok
}

// RangeProof lists what runRoot takes for the run from first up to next.
func (h *Hashes) RangeProof(lo, hi, first, next uint64) ([]tlog.Hash, error) {
	if hi <= first || next <= lo {
		root, err := h.subtree(lo, hi)
		return []tlog.Hash{root}, err
	}
	if hi-lo == 1 {
		return nil, nil
	}
	middle := lo + split(hi-lo)
	left, err := h.RangeProof(lo, middle, first, next)
	if err != nil {
		return nil, err
	}
	right, err := h.RangeProof(middle, hi, first, next)
	return append(left, right...), err
}

// subtree is the root of the leaves from lo up to hi, which are a subtree.
func (h *Hashes) subtree(lo, hi uint64) (tlog.Hash, error) {
	if n := hi - lo; n&(n-1) == 0 {
		level := bits.TrailingZeros64(n)
		stored, err := h.ReadHashes([]int64{tlog.StoredHashIndex(level, int64(lo>>level))})
		if err != nil {
			return tlog.Hash{}, err
		}
		return stored[0], nil
	}
	middle := lo + split(hi-lo)
	left, err := h.subtree(lo, middle)
	if err != nil {
		return left, err
	}
	right, err := h.subtree(middle, hi)
	return tlog.NodeHash(left, right), err
}

var errNoLeaf = errors.New("the hash of a leaf is not known")

// InclusionProof computes the proof of an entry from the hashes of all leaves,
// one after the other, in little memory.
func InclusionProof(ctx context.Context, dir string, size, index uint64) (tlog.RecordProof, error) {
	type part struct {
		lo, hi uint64
		tree   Tree
	}
	var parts []*part // the subtrees beside the entry, the smallest first, as in the proof
	var cut func(lo, hi uint64)
	cut = func(lo, hi uint64) {
		if hi-lo == 1 {
			return
		}
		middle := lo + split(hi-lo)
		if index < middle {
			cut(lo, middle)
			parts = append(parts, &part{lo: middle, hi: hi})
		} else {
			cut(middle, hi)
			parts = append(parts, &part{lo: lo, hi: middle})
		}
	}
	cut(0, size)
	order := slices.Clone(parts)
	slices.SortFunc(order, func(a, b *part) int { return cmp.Compare(a.lo, b.lo) })
	next := uint64(0)
	add := func(h tlog.Hash) error {
		if next%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if h == (tlog.Hash{}) {
			return errNoLeaf
		}
		if next != index {
			for len(order) > 0 && next >= order[0].hi {
				order = order[1:]
			}
			order[0].tree.Add(h)
		}
		next++
		return nil
	}
	segments, err := ListSegments(dir)
	if err != nil {
		return nil, err
	}
	beside, err := OpenLeafHashes(dir)
	if err != nil {
		return nil, err
	}
	for i, segment := range segments {
		if next >= size {
			break
		}
		if segment.First != next {
			return nil, errNoLeaf
		}
		if i+1 < len(segments) {
			for next < min(size, segments[i+1].First) {
				if err := add(beside.Hash(next)); err != nil {
					return nil, err
				}
			}
			continue
		}
		s := NewScan(dir)
		s.Next = segment.First
		s.Visit = func(_ Position, seq uint64, data []byte) error {
			if seq >= size {
				return nil
			}
			if seq != next {
				return errNoLeaf
			}
			return add(tlog.RecordHash(data))
		}
		if err := s.Run([]SegmentFile{segment}); err != nil {
			return nil, err
		}
	}
	if next != size {
		return nil, errNoLeaf
	}
	var out tlog.RecordProof
	for _, p := range parts {
		out = append(out, p.tree.Root())
	}
	return out, nil
}
