package uart

import (
	"context"
	"time"
)

// Send is send, for tests that type something before a dialect does.
func (l *Line) Send(ctx context.Context, s string) error { return l.send(ctx, s) }

// AwaitBytes is awaitBytes.
func (l *Line) AwaitBytes(ctx context.Context, wait time.Duration) (bool, error) {
	return l.awaitBytes(ctx, wait)
}

// ReadLine is readLine.
func (l *Line) ReadLine(ctx context.Context) (string, error) { return l.readLine(ctx) }
