package server

import (
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	var none *Limiter
	if !none.Allow("x", time.Now()) {
		t.Error("no limit, and refused")
	}
	l, now := NewLimiter(time.Second, 3), time.Now()
	for i := range 5 {
		if got := l.Allow("x", now); got != (i < 3) {
			t.Errorf("request %d: %v", i, got)
		}
	}
	if !l.Allow("y", now) {
		t.Error("another name pays for the first")
	}
	if now = now.Add(time.Second); !l.Allow("x", now) || l.Allow("x", now) {
		t.Error("one more a second")
	}
	// Any number of names does not grow for ever, and a name that is at its
	// limit is not forgotten for those that are not.
	for i := range 2 * maxLimited {
		l.Allow(string(rune('a'+i%26))+time.Duration(i).String(), now)
		now = now.Add(time.Millisecond)
	}
	if len(l.names) > maxLimited {
		t.Errorf("%d names are remembered", len(l.names))
	}
}
