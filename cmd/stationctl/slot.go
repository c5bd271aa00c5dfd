package main

import (
	"context"
	"errors"
	"fmt"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
)

type slotReset struct {
	place
	Slot string `arg:"" help:"The name of the slot, as the page shows it."`
}

func (slotReset) Help() string {
	return `The running station moves the modem lines of the slot's port as reset in the configuration says, and reads the board
anew. A board that is being read is not reset: it gets its verdict first.

Examples:
  sudo -u stationd stationctl slot reset A
      Exit 0 when the sequence has ended; 1 if the slot has no reset, no open port, or a board that is being read.`
}

func (s *slotReset) Run(ctx context.Context, out *cli.Output) (err error) {
	client, err := s.control()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if err := client.ResetSlot(ctx, s.Slot); errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("resetting slot %s: %w: systemctl start stationd", s.Slot, err)
	} else if err != nil {
		return err
	}
	return out.Print(struct {
		Slot string `json:"slot"`
	}{s.Slot}, fmt.Sprintf("The board in slot %s was reset.\n", s.Slot))
}

type slotAcknowledge struct {
	place
	Slot string `arg:"" help:"The name of the slot, as the page shows it."`
}

func (s *slotAcknowledge) Run(ctx context.Context, out *cli.Output) (err error) {
	client, err := s.control()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if err := client.Acknowledge(ctx, s.Slot); errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("acknowledging the leak in slot %s: %w: systemctl start stationd", s.Slot, err)
	} else if err != nil {
		return err
	}
	return out.Print(struct {
		Slot string `json:"slot"`
	}{s.Slot}, fmt.Sprintf("Slot %s has no leak that waits: it reads the next board.\n", s.Slot))
}
