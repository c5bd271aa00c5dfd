package server

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limiter lets each name do something at a rate. It may be used at once. It
// forgets names that have not been seen for so long that they may do all again,
// and, when there are too many, anybody's: it bounds costs, and decides
// nothing.
type Limiter struct {
	every time.Duration
	burst int

	mu    sync.Mutex
	names map[string]*rate.Limiter
}

// maxLimited names are remembered at once.
const maxLimited = 100_000

// NewLimiter allows burst at once, and then one more each time that every has
// passed.
func NewLimiter(every time.Duration, burst int) *Limiter {
	return &Limiter{every: every, burst: burst, names: map[string]*rate.Limiter{}}
}

// Allow reports whether a name may go on now, and counts it. A nil Limiter
// allows everything.
func (l *Limiter) Allow(name string, now time.Time) bool {
	if l == nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.names[name]
	if of == nil {
		if len(l.names) >= maxLimited {
			l.forget(now)
		}
		of = rate.NewLimiter(rate.Every(l.every), l.burst)
		l.names[name] = of
	}
	return of.AllowN(now, 1)
}

func (l *Limiter) forget(now time.Time) {
	for name, of := range l.names {
		if of.TokensAt(now) >= float64(l.burst) {
			delete(l.names, name)
		}
	}
	for name := range l.names { // some more, so that not every request goes through them all
		if len(l.names) < maxLimited*9/10 {
			return
		}
		delete(l.names, name)
	}
}

// ErrTooMany says that a device or a source asked too often; later it may
// again.
type ErrTooMany struct{ Who string }

func (e ErrTooMany) Error() string { return fmt.Sprintf("too many requests of %s", e.Who) }
