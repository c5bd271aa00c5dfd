package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"secretfree/station"
	"secretfree/station/board"
	"secretfree/uart"
)

// bench is a station with one slot and a journal in memory: it reads boards
// with the daemon's own code and keeps nothing.
type bench struct {
	dialect uart.Dialect
	open    func(ctx context.Context) (uart.Conn, error)
	nonce   func(n int) string // for a replay
	scene   *station.Precondition
}

// errEnough ends a bench that has seen all that was asked for.
var errEnough = errors.New("enough")

// run hands over the recording of each board, with its verdict in the header,
// until the callback returns an error or ctx ends. An error of the callback is
// returned, but errEnough is not.
func (b bench) run(ctx context.Context, each func(*uart.Transcript) error) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s, err := station.New(station.Config{
		SKU: "bench", Station: "bench",
		Slots:    []station.SlotConfig{{Name: "bench", Open: b.open, Dialect: b.dialect, Nonce: b.nonce}},
		Journal:  b.scene,
		Policy:   b.scene.Policy,
		Label:    b.scene.Label,
		Backlog:  func() station.Backlog { return station.Backlog{} },
		Delivery: func(board.DeviceID) station.Delivery { return station.Waiting },
		Transcript: func(_ string, t *uart.Transcript) error {
			if ctx.Err() != nil {
				return nil
			}
			delete(t.Header, "slot")
			if err := each(t); err != nil {
				end(err)
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	if err := s.Run(ctx); err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errEnough) {
		return cause
	}
	return nil
}

// patience is how long a replay may take after the end of the recording: longer
// than any dialect waits for one answer.
const patience = 20 * time.Second

// words are what a verdict is for people: "passed", or "failed" and the reason.
func words(t *uart.Transcript) string {
	if device := t.Header["device"]; device != "" {
		return fmt.Sprintf("%s %s", t.Header["expect"], device)
	}
	return t.Header["expect"]
}
