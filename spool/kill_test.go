package spool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"secretfree/station/board"
)

const killChild = "SECRETFREE_SPOOL_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killChild); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// child appends records from several goroutines, in small segments, and prints a line for each receipt, until it is killed.
func child(dir string) {
	var out sync.Mutex
	say := func(line ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Println(line...)
	}
	fail := func(err error) {
		say("error", err)
		os.Exit(1)
	}
	id, err := LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		fail(err)
	}
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink(), SegmentSize: 8 << 10, Notify: func(notice string) {
		if strings.Contains(notice, "damaged") || strings.Contains(notice, "rebuilt") {
			fail(errors.New(notice))
		}
	}})
	if err != nil {
		fail(err)
	}
	go s.Run(context.Background())
	for range 3 {
		go func() {
			for {
				var t testing.B
				r := newRecord(&t)
				receipt, err := s.Append(context.Background(), r)
				if err != nil {
					fail(err)
				}
				say(r.Device, receipt.Seq)
			}
		}()
	}
	select {}
}

// A station is killed in the middle of its work, again and again: every receipt that it gave is in the journal.
func TestKill(t *testing.T) {
	dir := tempDir(t)
	id, err := LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	receipts := map[board.DeviceID]board.Receipt{}
	kills := 30
	if testing.Short() {
		kills = 5
	}
	for range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killChild+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		until := 1 + rand.IntN(60)
		timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		for n := 0; lines.Scan(); n++ {
			var text string
			var receipt board.Receipt
			if _, err := fmt.Sscan(lines.Text(), &text, &receipt.Seq); err != nil || strings.HasPrefix(text, "error") {
				t.Fatalf("the child says %q", lines.Text())
			}
			device, err := board.ParseDeviceID(text)
			if err != nil {
				t.Fatal(err)
			}
			receipts[device] = receipt
			if n == until {
				cmd.Process.Kill()
			}
		}
		timer.Stop()
		cmd.Wait()
	}
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	checkInvariants(t, dir, id, receipts)
	t.Logf("%d kills, %d receipts", kills, len(receipts))
}
