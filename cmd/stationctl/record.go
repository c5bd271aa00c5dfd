package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"secretfree/cmd/internal/cli"
	"secretfree/station"
	"secretfree/uart"
)

type record struct {
	Port    string `name:"port" required:"" placeholder:"PORT" help:"The serial port: a path, or auto:<vid>:<pid>."`
	Dialect string `name:"dialect" default:"auto" help:"The dialect of the boards (${default})."`
	Dir     string `name:"dir" default:"." placeholder:"DIR" help:"The folder for the transcripts."`
	Boards  int    `name:"boards" default:"1" help:"Number of boards to record; 0 records until Ctrl-C (${default})."`
}

// recorded is a transcript that was written.
type recorded struct {
	File    string `json:"file"`
	Verdict string `json:"verdict"`
	Device  string `json:"device,omitempty"`
}

func (r *record) Run(ctx context.Context, out *cli.Output) error {
	if err := uart.CheckAddress(r.Port); err != nil {
		return fmt.Errorf("%w: %v", cli.ErrMisuse, err)
	}
	dialect, err := uart.DialectByName(r.Dialect)
	if err != nil {
		return fmt.Errorf("%w: %v", cli.ErrMisuse, err)
	}
	if r.Boards < 0 {
		return fmt.Errorf("%w: --boards is %d, want 0 or more", cli.ErrMisuse, r.Boards)
	}
	if err := tryDir(r.Dir); err != nil {
		return err
	}
	// A port that is not there may come; one that is there and cannot be opened
	// is told at once.
	switch conn, err := uart.Open(ctx, r.Port); {
	case err == nil:
		if err := conn.Close(); err != nil {
			return err
		}
	case errors.Is(err, uart.ErrAbsent):
		fmt.Fprintf(out.Err, "Waiting for %s.\n", r.Port)
	default:
		return err
	}
	scene, err := station.NewPrecondition("")
	if err != nil {
		return err
	}
	fmt.Fprintln(out.Err, "Insert a board. Nothing is enrolled; what it says is written down.")
	n := 0
	err = bench{
		dialect: dialect, scene: scene,
		open: func(ctx context.Context) (uart.Conn, error) { return uart.Wait(ctx, r.Port) },
	}.run(ctx, func(t *uart.Transcript) error {
		text, err := t.Encode()
		if err != nil {
			return err
		}
		n++
		file, err := writeNew(r.Dir, text)
		if err != nil {
			return err
		}
		if err := out.Print(recorded{file, t.Header["expect"], t.Header["device"]}, fmt.Sprintf("%s  %s\n", file, words(t))); err != nil {
			return err
		}
		if n == r.Boards {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, cli.ErrStopped) && r.Boards == 0 {
		return nil
	}
	return err
}

// tryDir says before anyone takes the trouble whether transcripts can be
// written.
func tryDir(dir string) error {
	f, err := os.CreateTemp(dir, ".try-*")
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: there is no folder %s for the transcripts: make it first, or name another one with --dir", cli.ErrMisuse, dir)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: %s is no folder: transcripts need one, name it with --dir", cli.ErrMisuse, dir)
	case err != nil:
		return fmt.Errorf("trying to write to the folder for the transcripts: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// writeNew writes a transcript under the next free name: board-1.uart,
// board-2.uart, …
func writeNew(dir string, text []byte) (string, error) {
	for n := 1; ; n++ {
		name := filepath.Join(dir, fmt.Sprintf("board-%d.uart", n))
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("writing a transcript: %w", err)
		}
		_, err = f.Write(text)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", fmt.Errorf("writing a transcript: %w", err)
		}
		return name, nil
	}
}
