package uart

import (
	"bytes"
	"context"
	"time"
)

// vigil is how to see that a board goes.
type vigil struct {
	probes []string // in turn; the first makes the board echo, at least
	starts []string // texts that only a fresh start prints
	// patient: the firmware may fall silent for good with the board in its place. Only one that echoed before and does not
	// any more is gone, and one that speaks after a silence is another one.
	patient bool
}

const (
	watchEcho  = tiEcho
	watchLook  = tiPing
	watchSlow  = 5 * time.Second // between looks at a board that has been there for long
	watchQuick = 300             // looks before that: what is typed may fill the firmware's line
	// watchGone is the silence after which a board is gone, with a look in each watchEcho of it. A board that is busy for a moment, or
	// whose echo a glitch ate, is still there; who swaps boards faster than that is betrayed by the start of the next one.
	watchGone  = 2400 * time.Millisecond
	watchStart = 2 * csrStart // a start, after a leak
	watchTail  = 64           // what is kept of a look: the beginning of a start
)

// watch blocks until the board on l is gone or another one has started. What that one has printed stays on the
// line, for its Detect; otherwise nothing stays.
func watch(ctx context.Context, l *Line, v vigil) error {
	echoed, silence := false, time.Duration(0)
	for look := 0; ; look++ {
		if started, err := v.started(l); started || err != nil { // quick hands: before anyone looked
			return err
		}
		l.keep(watchTail)
		l.Mark()
		probe := v.probes[0]
		if !echoed { // a board of another kind may listen to another one
			probe = v.probes[look%len(v.probes)]
		}
		if err := l.Send(ctx, probe); err != nil {
			return err
		}
		heard, err := l.more(ctx, watchEcho)
		if err != nil {
			return err
		}
		if !heard {
			if silence += watchEcho; silence >= watchGone {
				if echoed || !v.patient {
					l.Forget()
					return nil
				}
				spoke, err := l.more(ctx, watchLook)
				if err != nil {
					return err
				}
				if spoke {
					return v.follow(ctx, l)
				}
			}
			continue
		}
		if v.patient && !echoed && silence >= watchGone {
			return v.follow(ctx, l)
		}
		echoed, silence = true, 0
		pause := watchLook - watchEcho
		if look >= watchQuick {
			pause = watchSlow
		}
		if _, err := l.Gather(ctx, pause, tiFlush+pause); err != nil {
			return err
		}
	}
}

// started tells whether a board has started: what it printed from there on is on the line, after a leak as well.
func (v vigil) started(l *Line) (bool, error) {
	for _, start := range v.starts {
		if bytes.Contains(l.in, []byte(start)) {
			return true, nil
		}
		if i := bytes.Index(l.unseen, []byte(start)); i >= 0 {
			return true, l.pardon(i)
		}
	}
	return false, nil
}

// follow ends a watch when something speaks after a silence. After a leak its start is waited for: what comes before that
// may be more of the key.
func (v vigil) follow(ctx context.Context, l *Line) error {
	for end := time.Now().Add(watchStart); l.tainted; {
		if started, err := v.started(l); started || err != nil {
			return err
		}
		more, err := l.more(ctx, min(csrStart, time.Until(end)))
		if err != nil {
			return err
		}
		if !more {
			l.Forget()
		}
	}
	return nil
}
