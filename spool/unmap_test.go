package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// mapped finds where a file is mapped, and how much of that is in memory.
func mapped(t *testing.T, path string) (end uintptr, resident int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	at := false
	for line := range strings.Lines(string(text)) {
		var from, to uintptr
		var kib int64
		if _, err := fmt.Sscanf(line, "%x-%x ", &from, &to); err == nil {
			if at = strings.HasSuffix(strings.TrimSpace(line), path); at {
				end = max(end, to)
			}
		} else if _, err := fmt.Sscanf(line, "Rss: %d kB", &kib); err == nil && at {
			resident += kib << 10
		}
	}
	if end == 0 {
		t.Fatalf("%s is not mapped", path)
	}
	return end, resident
}

// The file of an index may be longer than what is mapped of it. What is in
// memory behind that is not the index's, and stays.
func TestUnmapLeavesOthersAlone(t *testing.T) {
	const page, size = 4 << 10, 64 << 20
	dir := tempDir(t)
	var others []byte
	var db *bolt.DB
	for try := 0; others == nil; try++ {
		if try == 50 {
			t.Fatal("no room was found behind an index")
		}
		// The kernel takes the highest gap that is large enough: that is the
		// one before the last page of what was just mapped, once those above
		// are taken.
		room, err := unix.Mmap(-1, 0, size+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		start := uintptr(unsafe.Pointer(&room[0]))
		if _, _, failed := unix.Syscall(unix.SYS_MUNMAP, start, size, 0); failed != 0 {
			t.Fatal(failed)
		}
		path := fmt.Sprintf("%s/index%d", dir, try)
		if db, err = bolt.Open(path, 0o600, &bolt.Options{InitialMmapSize: size}); err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		end, _ := mapped(t, path)
		at := unsafe.Add(nil, end)
		if end == start+size {
			others = room[size:]
		} else if _, err := unix.MmapPtr(-1, 0, at, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_FIXED_NOREPLACE); err == nil {
			others = unsafe.Slice((*byte)(at), page)
		} else if !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
	}
	for i := range others {
		others[i] = 0xa5
	}
	if err := os.Truncate(db.Path(), size+1<<20); err != nil {
		t.Fatal(err)
	}
	unmapPages(db)
	if !bytes.Equal(others, bytes.Repeat([]byte{0xa5}, page)) {
		t.Error("memory behind the index's mapping was thrown away")
	}
}
