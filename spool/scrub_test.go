package spool

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
)

// scrubKit is a station with sealed segments.
func scrubKit(t *testing.T) *kit {
	k, _ := archiveKit(t)
	k.room = func(string) (Disk, error) { return Disk{Size: 1 << 40, Free: 1 << 39}, nil } // it is looked at every 10 s, for days
	k.reopen()
	for range 30 {
		k.mustAppend()
	}
	return k
}

// What is in order is read through soon after the start and then once a day,
// and nobody is told.
func TestScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := scrubKit(t)
		stop := k.run()
		time.Sleep(time.Hour)
		k.mu.Lock()
		k.notices = nil
		k.mu.Unlock()
		first := k.spool.Stats().Scrubbed
		if since := time.Since(first); since > time.Hour-scrubFirst || since < 0 {
			t.Errorf("read through %v ago", since)
		}
		time.Sleep(scrubEvery)
		if again := k.spool.Stats().Scrubbed; !again.After(first) {
			t.Errorf("read through at %v, and at %v", first, again)
		}
		start := time.Now()
		stop()
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v to stop", took)
		}
		if len(k.notices) > 0 {
			t.Errorf("notices %q", k.notices)
		}
	})
}

// Damage to what nobody reads is found: a sealed segment is quarantined, an
// index is made anew, and the station goes on.
func TestScrubFindsDamage(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, k *kit)
		found  func(k *kit) bool
	}{
		"a sealed segment": {func(t *testing.T, k *kit) {
			k.damaged = true
			victim := journal.SegmentPath(k.dir, k.segments()[1].First)
			data, err := os.ReadFile(victim)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(victim, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(victim, flip(data, len(data)/2), 0o400); err != nil {
				t.Fatal(err)
			}
		}, func(k *kit) bool { return k.spool.Stats().Damaged == 1 }},
		"a sealed segment is shorter": {func(t *testing.T, k *kit) {
			k.damaged = true
			victim := journal.SegmentPath(k.dir, k.segments()[1].First)
			data, err := os.ReadFile(victim)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitAfter(string(data), "\n")
			if err := os.Chmod(victim, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(victim, []byte(strings.Join(lines[:len(lines)-2], "")), 0o400); err != nil {
				t.Fatal(err)
			}
		}, func(k *kit) bool { return k.spool.Stats().Damaged == 1 }},
		"a value of the index": {func(t *testing.T, k *kit) {
			if err := k.spool.update(func(tx *bolt.Tx) error {
				return tx.Bucket(bucketCounts).Put([]byte("key"), []byte("value"))
			}); err != nil {
				t.Fatal(err)
			}
		}, rebuiltIndex},
		"a verdict of another board": {func(t *testing.T, k *kit) {
			if err := k.spool.update(func(tx *bolt.Tx) error {
				entries := tableOf(tx, bucketEntries)
				var row entryRow
				key := encodeSeq(3)
				if err := row.decode(entries.Get(key)); err != nil {
					return err
				}
				row.device[0] ^= 1
				return entries.Put(key, row.encode())
			}); err != nil {
				t.Fatal(err)
			}
		}, rebuiltIndex},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := scrubKit(t)
				stop := k.run()
				time.Sleep(2 * time.Hour)
				k.mu.Lock()
				k.notices = nil
				k.mu.Unlock()
				c.damage(t, k)
				time.Sleep(scrubEvery + time.Hour)
				if !c.found(k) {
					t.Errorf("it is not found: %+v, notices %q", k.spool.Stats(), k.notices)
				}
				k.mustAppend()
				time.Sleep(2 * time.Hour)
				stop()
				if s := k.spool.Stats(); s.Broken != "" || s.Pending > 0 {
					t.Errorf("afterwards: %+v", s)
				}
			})
		})
	}
}

func rebuiltIndex(k *kit) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.notices, func(n string) bool { return strings.Contains(n, "index") })
}
