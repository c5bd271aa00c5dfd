package spool

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// Every run of every tree proves itself, and nothing else.
func TestRunRoot(t *testing.T) {
	h := &journal.Hashes{}
	var leaves []tlog.Hash
	for n := uint64(1); n <= 34; n++ {
		leaf := tlog.RecordHash(fmt.Append(nil, n))
		leaves = append(leaves, leaf)
		if err := h.Add(leaf); err != nil {
			t.Fatal(err)
		}
		want, err := tlog.TreeHash(int64(n), h)
		if err != nil {
			t.Fatal(err)
		}
		for first := range n {
			for next := first + 1; next <= n; next++ {
				beside, err := h.RangeProof(0, n, first, next)
				if err != nil {
					t.Fatal(err)
				}
				root := func(run []tlog.Hash, beside []tlog.Hash) (tlog.Hash, bool) {
					got, ok := journal.RangeRoot(0, n, first, run, &beside)
					return got, ok && len(beside) == 0
				}
				if got, ok := root(leaves[first:next], beside); !ok || got != want {
					t.Fatalf("entries %d to %d of %d: root %v, %v, want %v", first, next-1, n, got, ok, want)
				}
				if got, ok := root(leaves[first:next], append(slices.Clone(beside), leaf)); ok {
					t.Fatalf("entries %d to %d of %d: a hash more gives %v", first, next-1, n, got)
				}
				if len(beside) > 0 {
					if got, ok := root(leaves[first:next], beside[1:]); ok && got == want {
						t.Fatalf("entries %d to %d of %d: a hash less does not matter", first, next-1, n)
					}
				}
				for i := first; i < next; i++ {
					bad := slices.Clone(leaves[first:next])
					bad[i-first][0]++
					if got, ok := root(bad, beside); ok && got == want {
						t.Fatalf("entries %d to %d of %d: entry %d does not matter", first, next-1, n, i)
					}
				}
				if next-first > 1 {
					bad := slices.Clone(leaves[first:next])
					bad[0], bad[1] = bad[1], bad[0]
					if got, ok := root(bad, beside); ok && got == want {
						t.Fatalf("entries %d to %d of %d: the order does not matter", first, next-1, n)
					}
				}
			}
		}
	}
}

func FuzzBundle(f *testing.F) {
	b := bundle{origin: "widgiot/line3-a", first: 7, entries: [][]byte{[]byte(`{"seq":7}`)}, checkpoint: []byte("a/b\n9\nAA==\n\n— a/b AA==\n")}
	f.Add(b.encode())
	b.entries, b.beside = append(b.entries, []byte(`{"seq":8}`)), []tlog.Hash{{1}, {2}}
	f.Add(b.encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := parseBundle(data)
		if err != nil {
			if errors.Is(err, ErrBundle) == errors.Is(err, board.ErrNewer) {
				t.Errorf("refused, but with %v", err)
			}
			return
		}
		if !bytes.Equal(b.encode(), data) {
			t.Errorf("%q encodes to %q", data, b.encode())
		}
	})
}

// A bundle in which anything is another is none.
func TestBundleRefusals(t *testing.T) {
	k := newKit(t)
	for range 5 {
		k.mustAppend()
	}
	stick := tempDir(t)
	k.export(stick, 2)
	b := k.bundle(stick, run{2, 6})
	stranger, err := journal.LoadIdentity(tempDir(t), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	forged, err := journal.Checkpoint{Size: 6, Root: k.spool.tree.Root()}.Encode(stranger.Signer)
	if err != nil {
		t.Fatal(err)
	}
	small, err := journal.Checkpoint{Size: 4, Root: k.spool.tree.Root()}.Encode(k.id.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.check(k.id.Verifier); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		edit func(b *bundle)
		want error
	}{
		"another origin":             {func(b *bundle) { b.origin = "widgiot/line3-b" }, ErrBundle},
		"another place":              {func(b *bundle) { b.first++ }, ErrBundle},
		"an entry less":              {func(b *bundle) { b.entries = b.entries[:3] }, ErrBundle},
		"an entry twice":             {func(b *bundle) { b.entries[1] = b.entries[0] }, ErrBundle},
		"a changed entry":            {func(b *bundle) { b.entries[1] = bytes.Replace(b.entries[1], []byte("record"), []byte("Record"), 1) }, ErrBundle},
		"a hash less":                {func(b *bundle) { b.beside = nil }, ErrBundle},
		"a hash more":                {func(b *bundle) { b.beside = append(b.beside, tlog.Hash{}) }, ErrBundle},
		"another hash":               {func(b *bundle) { b.beside[0][0]++ }, ErrBundle},
		"another key's checkpoint":   {func(b *bundle) { b.checkpoint = forged }, journal.ErrTampered},
		"a checkpoint before it":     {func(b *bundle) { b.checkpoint = small }, ErrBundle},
		"something as a checkpoint":  {func(b *bundle) { b.checkpoint = []byte("x") }, journal.ErrTampered},
		"a checkpoint of many bytes": {func(b *bundle) { b.checkpoint = bytes.Repeat([]byte("x"), 1<<20) }, journal.ErrTampered},
	} {
		bad := b
		bad.entries, bad.beside = slices.Clone(b.entries), slices.Clone(b.beside)
		c.edit(&bad)
		if _, _, err := bad.check(k.id.Verifier); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	good := string(b.encode())
	for name, c := range map[string]struct {
		from, to string
		want     error
	}{
		"a newer format":     {"bundle 1", "bundle 2", board.ErrNewer},
		"another file":       {"secretfree bundle 1", "secretfree journal 1", ErrBundle},
		"no range":           {"\n2 6\n", "\n2\n", ErrBundle},
		"a leading zero":     {"\n2 6\n", "\n02 6\n", ErrBundle},
		"too wide a range":   {"\n2 6\n", "\n2 7\n", ErrBundle},
		"too high a range":   {"\n2 6\n", "\n9223372036854775808 9223372036854775812\n", ErrBundle},
		"a line of no hash":  {"\n2 6\n", "\n2 6\nAA==\n", ErrBundle},
		"without its end":    {good[len(good)/2:], "", ErrBundle},
		"without checkpoint": {"\n\n" + string(b.checkpoint), "\n", ErrBundle},
		"too much":           {"\n2 6\n", strings.Repeat("\n", maxBundle), ErrBundle},
	} {
		text := strings.Replace(good, c.from, c.to, 1)
		if text == good {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := parseBundle([]byte(text)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
