package spool

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

const killChild = "SECRETFREE_SPOOL_CHILD"

var killsFlag = flag.Int("kills", 30, "how often TestKill kills a station")

// folderSink is a registry that outlives the station: a file for each device,
// with its key, made at once or not at all. Some answers are lost.
type folderSink string

func (dir folderSink) Put(_ context.Context, s board.Sealed) error {
	if rand.IntN(20) == 0 {
		return errors.New("the registry is away")
	}
	key := s.Record().Fingerprint().String()
	path := filepath.Join(string(dir), s.Record().Device.String())
	temporary, err := os.CreateTemp(string(dir), ".new-")
	if err != nil {
		return err
	}
	_, err = temporary.WriteString(key)
	if err = errors.Join(err, temporary.Close()); err == nil {
		err = os.Link(temporary.Name(), path)
	}
	if errors.Is(err, fs.ErrExist) {
		var have []byte
		if have, err = os.ReadFile(path); err == nil && string(have) != key {
			err = board.ErrDeviceConflict
		}
	}
	err = errors.Join(err, os.Remove(temporary.Name()))
	if err == nil && rand.IntN(20) == 0 {
		return errors.New("the answer was lost")
	}
	return err
}

// have reads what is there.
func (dir folderSink) have(t *testing.T) map[string]string {
	t.Helper()
	names, err := os.ReadDir(string(dir))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range names {
		if strings.HasPrefix(name.Name(), ".new-") { // of a station that was killed
			continue
		}
		key, err := os.ReadFile(filepath.Join(string(dir), name.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[name.Name()] = string(key)
	}
	return out
}

func killRegistry(dir string) folderSink { return folderSink(filepath.Join(dir, "registry")) }

func TestMain(m *testing.M) {
	if dir := os.Getenv(killChild); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// child appends records from several goroutines, in small segments, and prints
// a line for each receipt, until it is killed.
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
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		fail(err)
	}
	s, err := Open(Config{Dir: dir, Identity: id, Sink: killRegistry(dir), SegmentSize: 8 << 10, Notify: func(notice string) {
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
				receipt, err := s.Append(context.Background(), reading(r))
				if err != nil {
					fail(err)
				}
				say(r.Device, receipt.Seq)
			}
		}()
	}
	select {}
}

// A station is killed in the middle of its work, again and again, while it
// delivers: every receipt that it gave is in the journal, and then in the
// registry, once. More often:
//
//	go test ./spool -run TestKill -timeout 0 -v -args -kills 1000
func TestKill(t *testing.T) {
	dir := tempDir(t)
	sink := killRegistry(dir)
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(string(sink), 0o700); err != nil {
		t.Fatal(err)
	}
	receipts := map[board.DeviceID]board.Receipt{}
	kills := *killsFlag
	if testing.Short() {
		kills = 5
	}
	for range kills {
		killOnce(t, dir, receipts)
	}
	early := len(sink.have(t))
	s, err := Open(Config{Dir: dir, Identity: id, Sink: sink, SegmentSize: 8 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for s.Stats().Pending > 0 {
		s.mu.Lock()
		clear(s.retries) // nobody waits here
		s.mu.Unlock()
		s.pass(t.Context())
	}
	if stats := s.Stats(); stats.Dead > 0 || stats.Damaged > 0 {
		t.Errorf("%+v", stats)
	}
	s.Close()
	checkInvariants(t, dir, id, receipts)
	have, records := sink.have(t), 0
	for e, err := range journal.Walk(dir) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record() == nil {
			continue
		}
		records++
		sealed, err := board.OpenEnvelope(e.Record(), id.Verifier)
		if err != nil {
			t.Fatal(err)
		}
		if key := have[sealed.Record().Device.String()]; key != sealed.Record().Fingerprint().String() {
			t.Errorf("entry %d: the registry has %q for device %s", e.Seq, key, sealed.Record().Device)
		}
	}
	if len(have) != records || early == 0 {
		t.Errorf("%d devices in the registry, %d records in the journal; %d were delivered before the last kill", len(have), records, early)
	}
	t.Logf("%d kills, %d receipts, %d records, %d of them delivered before the last kill", kills, len(receipts), records, early)
}

// killOnce starts a station, notes its receipts, and kills it after some of
// them or, at times, after a moment, which may be before it is ready.
func killOnce(t *testing.T, dir string, receipts map[board.DeviceID]board.Receipt) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killChild+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	until, limit := 1+rand.IntN(60), time.Minute
	if rand.IntN(4) == 0 {
		limit = rand.N(40 * time.Millisecond)
	}
	timer := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer timer.Stop()
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		var text string
		var receipt board.Receipt
		if _, err := fmt.Sscan(lines.Text(), &text, &receipt.Seq); err != nil || strings.HasPrefix(text, "error") {
			cmd.Process.Kill()
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
}
