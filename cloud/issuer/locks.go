package issuer

import (
	"context"
	"fmt"
	"sync"

	"secretfree/station/board"
)

// deviceLocks lets one request of a device go on at a time. In another process
// another one may: the claims settle that. It only spares the CA what would be
// thrown away.
type deviceLocks struct {
	mu      sync.Mutex
	devices map[board.DeviceID]*deviceLock
}

type deviceLock struct {
	taken   chan struct{} // holds one element while somebody is at it
	waiting int
}

// take waits for the device's turn. The caller gives it back.
func (t *deviceLocks) take(ctx context.Context, device board.DeviceID) (back func(), err error) {
	t.mu.Lock()
	if t.devices == nil {
		t.devices = map[board.DeviceID]*deviceLock{}
	}
	of := t.devices[device]
	if of == nil {
		of = &deviceLock{taken: make(chan struct{}, 1)}
		t.devices[device] = of
	}
	of.waiting++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if of.waiting--; of.waiting == 0 {
			delete(t.devices, device)
		}
	}
	select {
	case of.taken <- struct{}{}:
		return func() { <-of.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("waiting for other requests of device %s: %w", device, context.Cause(ctx))
	}
}
