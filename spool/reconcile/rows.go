package reconcile

import (
	"bufio"
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// row is one thing that the journal or the registry holds of a device.
type row struct {
	device  board.DeviceID
	kind    rowKind
	key     board.Fingerprint
	seq     uint64 // of a journal's row
	at      journal.Position
	station uint32 // of an item: a number for its name
	day     int32  // since 1970, UTC
	flags   byte
	digest  [16]byte // of the envelope
}

type rowKind byte

const (
	rowJournal rowKind = iota
	rowItem
	rowObject
	rowGuard
)

const (
	rowNoEnvelope = 1 << iota // of an item
	rowUnreadable             // of an item
)

// rowSize is that of an encoded row. Its bytes sort by device, then by kind,
// then by key, then by seq.
const rowSize = 16 + 1 + 32 + 8 + 8 + 8 + 4 + 4 + 1 + 16

type rowBytes [rowSize]byte

func (r *row) encode() (out rowBytes) {
	b := append(out[:0], r.device[:]...)
	b = append(append(b, byte(r.kind)), r.key[:]...)
	b = binary.BigEndian.AppendUint64(b, r.seq)
	b = binary.BigEndian.AppendUint64(b, r.at.Segment)
	b = binary.BigEndian.AppendUint64(b, uint64(r.at.Offset))
	b = binary.BigEndian.AppendUint32(b, r.station)
	b = binary.BigEndian.AppendUint32(b, uint32(r.day))
	b = append(b, r.flags)
	copy(out[len(b):], r.digest[:])
	return out
}

func (b *rowBytes) decode() (r row) {
	copy(r.device[:], b[:])
	r.kind = rowKind(b[16])
	copy(r.key[:], b[17:])
	r.seq = binary.BigEndian.Uint64(b[49:])
	r.at = journal.Position{Segment: binary.BigEndian.Uint64(b[57:]), Offset: int64(binary.BigEndian.Uint64(b[65:]))}
	r.station = binary.BigEndian.Uint32(b[73:])
	r.day = int32(binary.BigEndian.Uint32(b[77:]))
	r.flags = b[81]
	copy(r.digest[:], b[82:])
	return r
}

// rowsInMemory is how many rows are sorted at once; the rest is in files.
const rowsInMemory = 1 << 16

// sorter puts any number of rows in order, in little memory: sorted runs of
// them in a file without a name.
type sorter struct {
	file   *os.File // nil as long as all fits in memory
	limit  int
	buffer []rowBytes
	ends   []int64 // of the runs in the file
}

func (s *sorter) add(r row) error {
	s.buffer = append(s.buffer, r.encode())
	if len(s.buffer) < s.limit {
		return nil
	}
	return s.spill()
}

func (s *sorter) sort() {
	slices.SortFunc(s.buffer, func(a, b rowBytes) int { return bytes.Compare(a[:], b[:]) })
}

func (s *sorter) spill() error {
	s.sort()
	if s.file == nil {
		f, err := os.CreateTemp("", "reconcile-")
		if err != nil {
			return fmt.Errorf("making a temporary file: %w", err)
		}
		s.file = f
		if err := os.Remove(f.Name()); err != nil { // it is gone when the process is
			return fmt.Errorf("making a temporary file: %w", err)
		}
	}
	w := bufio.NewWriterSize(s.file, 256<<10)
	for i := range s.buffer {
		w.Write(s.buffer[i][:]) // Flush has its error
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing a temporary file (TMPDIR says where): %w", err)
	}
	end := int64(len(s.buffer)) * rowSize
	if len(s.ends) > 0 {
		end += s.ends[len(s.ends)-1]
	}
	s.ends = append(s.ends, end)
	s.buffer = s.buffer[:0]
	return nil
}

func (s *sorter) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// all yields the rows in order. Nothing may be added any more. An error ends
// it.
func (s *sorter) all() iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		s.sort()
		merge := make(runHeap, 0, len(s.ends)+1)
		from := int64(0)
		for _, end := range s.ends {
			r := bufio.NewReaderSize(io.NewSectionReader(s.file, from, end-from), 32<<10)
			merge = append(merge, &sortedRun{next: func(to *rowBytes) error {
				_, err := io.ReadFull(r, to[:])
				return err
			}})
			from = end
		}
		rest := s.buffer
		merge = append(merge, &sortedRun{next: func(to *rowBytes) error {
			if len(rest) == 0 {
				return io.EOF
			}
			*to, rest = rest[0], rest[1:]
			return nil
		}})
		var failed error
		merge = slices.DeleteFunc(merge, func(r *sortedRun) bool {
			err := r.next(&r.head)
			if err != nil && err != io.EOF {
				failed = errors.Join(failed, err)
			}
			return err != nil
		})
		heap.Init(&merge)
		for len(merge) > 0 && failed == nil {
			first := merge[0]
			if !yield(first.head.decode(), nil) {
				return
			}
			switch err := first.next(&first.head); err {
			case nil:
				heap.Fix(&merge, 0)
			case io.EOF:
				heap.Pop(&merge)
			default:
				failed = err
			}
		}
		if failed != nil {
			yield(row{}, fmt.Errorf("reading a temporary file: %w", failed))
		}
	}
}

type sortedRun struct {
	head rowBytes
	next func(to *rowBytes) error
}

type runHeap []*sortedRun

func (h runHeap) Len() int           { return len(h) }
func (h runHeap) Less(i, j int) bool { return bytes.Compare(h[i].head[:], h[j].head[:]) < 0 }
func (h runHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)        { *h = append(*h, x.(*sortedRun)) }
func (h *runHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
