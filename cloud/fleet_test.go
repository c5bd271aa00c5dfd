package cloud

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func checkpointText(station string, size uint64, root byte) []byte {
	return fmt.Appendf(nil, "widgiot/%s\n%d\n%s\n\n— sig\n", station, size, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{root}, 32)))
}

type fleetArchive interface {
	Stations(context.Context) ([]string, error)
	JournalOf(context.Context, string) (ArchivedJournal, error)
	CheckpointAt(context.Context, string, uint64) ([]byte, error)
}

func TestFleetArchive(t *testing.T) {
	onEveryBackend(t, func(t *testing.T, b backend) {
		r := b.open(t, "")
		a := r.(fleetArchive)
		if got, err := a.Stations(t.Context()); err != nil || len(got) != 0 {
			t.Errorf("nothing: %v, %v", got, err)
		}
		put := func(station string, size uint64) {
			t.Helper()
			must(t, r.PutCheckpoint(t.Context(), "widgiot/"+station, size, checkpointText(station, size, 1)))
		}
		put("line1", 5)
		put("line1", 9)
		must(t, r.PutSegment(t.Context(), "widgiot/line1", 0, 6, []byte("x")))
		put("line1", 12)
		put("line2", 3)
		if got, err := a.Stations(t.Context()); err != nil || !slices.Equal(got, []string{"line1", "line2"}) {
			t.Errorf("%v, %v", got, err)
		}
		j, err := a.JournalOf(t.Context(), "line1")
		if err != nil || j.Size != 12 || j.Archived != 7 || !j.Known || j.Conflict != "" || j.Disorder != "" || time.Since(j.Stored).Abs() > time.Minute || string(j.Checkpoint) != string(checkpointText("line1", 12, 1)) {
			t.Errorf("%+v, %v", j, err)
		}
		if j, err := a.JournalOf(t.Context(), "nobody"); err != nil || j.Size != 0 {
			t.Errorf("%+v, %v", j, err)
		}
		if text, err := a.CheckpointAt(t.Context(), "line1", 9); err != nil || string(text) != string(checkpointText("line1", 9, 1)) {
			t.Errorf("%s, %v", text, err)
		}
		if _, err := a.CheckpointAt(t.Context(), "line1", 8); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		// Two machines have sealed the same entries.
		b.setObject(t, "journal/line1/"+Segment{5, 9}.name(), "y")
		if j, err := a.JournalOf(t.Context(), "line1"); err != nil || !strings.Contains(j.Conflict, "share entries") {
			t.Errorf("%+v, %v", j, err)
		}
		b.setObject(t, "journal/line2/00000000000000000004.checkpoint", string(checkpointText("line2", 7, 1)))
		if _, err := a.JournalOf(t.Context(), "line2"); !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}

// memory is an archive with small pages that counts the requests.
type memory struct {
	archive
	names []string
	size  int
	asked int
}

func (m *memory) folders(context.Context, int) ([]string, error) { return nil, nil }
func (m *memory) load(_ context.Context, name string, _ int64) ([]byte, error) {
	var size uint64
	_, err := fmt.Sscanf(name, "journal/line1/%d.checkpoint", &size)
	return checkpointText("line1", size, 1), err
}
func (m *memory) page(_ context.Context, _, after string) (objects []object, more bool, err error) {
	m.asked++
	i, found := slices.BinarySearch(m.names, after)
	if found {
		i++
	}
	for ; i < len(m.names); i++ {
		if len(objects) == m.size {
			return objects, true, nil
		}
		objects = append(objects, object{name: m.names[i]})
	}
	return objects, false, nil
}

// The newest checkpoint of a journal of any length is found, with few requests.
func TestTailIsFound(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for run := range 300 {
		m := &memory{size: 1 + random.IntN(50)}
		size := uint64(0)
		for range random.IntN(3000) {
			step := 1 + random.Uint64N(20)
			if run%10 == 0 {
				step = 1 << random.IntN(30)
			}
			if random.IntN(100) == 0 {
				m.names = append(m.names, Segment{size, size + step - 1}.name())
			}
			size += step
			m.names = append(m.names, fmt.Sprintf("%020d.checkpoint", size))
		}
		slices.Sort(m.names)
		j, err := journalOf(t.Context(), m, "line1")
		if err != nil || j.Size != size {
			t.Fatalf("run %d: %+v, %v, want %d", run, j, err, size)
		}
		if m.asked > 60+tailPages {
			t.Errorf("run %d: %d requests for %d names in pages of %d", run, m.asked, len(m.names), m.size)
		}
	}
	j, err := journalOf(t.Context(), &memory{size: 1000, names: []string{Segment{0, 3}.name(), Segment{0, 4}.name()}}, "line1")
	if err != nil || j.Conflict == "" {
		t.Errorf("%+v, %v", j, err)
	}
}

func TestDisorder(t *testing.T) {
	at := func(size uint64, minute int) object {
		return object{fmt.Sprintf("%020d.checkpoint", size), time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)}
	}
	if text := disorder([]object{at(1, 0), at(2, 5), at(3, 4)}); text != "" {
		t.Error(text)
	}
	if text := disorder([]object{at(1, 0), at(2, 50), at(3, 4)}); !strings.Contains(text, "was stored at") {
		t.Errorf("%q", text)
	}
	if text := disorder([]object{{name: Segment{0, 1}.name()}, at(1, 0), at(2, 50), at(3, 4)}); text != "" {
		t.Errorf("a segment that was stored late: %s", text)
	}
}
