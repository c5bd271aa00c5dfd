package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/spool"
)

type export struct {
	place
	Stick    string  `arg:"" help:"An existing folder on the removable medium."`
	Receipts bool    `name:"receipts" help:"Only apply the receipts on the medium; write nothing to it."`
	From     *uint64 `name:"from" placeholder:"SEQ" help:"Begin at this entry of the journal instead of the oldest undelivered one; 0 is the whole journal."`
}

func (export) Help() string {
	return `A removable medium carries the journal of a station without a network to a machine that reaches the registry. What is
written there can be checked with the station's public key alone. The medium may be pulled at any moment, and to
export again goes on where it ended.

Examples:
  stationctl export /media/secretfree
      Applies the receipts that came back, then writes what still waits for the registry.
  stationctl export --receipts /media/secretfree
      Only applies the receipts: they must be signed by a key that the configuration names,
      [export] trusted_receipts = ["import/hq+…"].
  stationctl export --from 120000 /media/second
      Goes on with a second medium when the first is full.`
}

// applied is what became of a receipt.
type applied struct {
	Receipt string `json:"receipt"`
	OK      bool   `json:"ok"`
	Problem string `json:"problem,omitempty"`
	spool.Settled
}

// exported is what is on the medium now.
type exported struct {
	Station  string `json:"station"`
	Written  int    `json:"written"`
	Entries  uint64 `json:"entries"`
	Records  uint64 `json:"records"`
	Verified int    `json:"verified"`
	Damaged  int    `json:"damaged"`
	Unread   uint64 `json:"unread"`
	Unsigned uint64 `json:"unsigned"`
}

func (e *export) Run(ctx context.Context, out *cli.Output) (err error) {
	dir, err := e.dir()
	if err != nil {
		return err
	}
	client, err := e.control()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	verifier, err := readKey(filepath.Join(dir, "station.pub"))
	if err != nil {
		return err
	}
	bad, err := e.apply(ctx, client, verifier.Name(), out)
	if err != nil {
		return err
	}
	if !e.Receipts {
		waiting, err := client.Sign(ctx)
		if err != nil {
			return err
		}
		switch {
		case e.From != nil:
			waiting.Oldest = *e.From
		case !waiting.Waits:
			fmt.Fprintln(out.People, "Nothing waits for the registry, so nothing is exported.")
			return failedIf(bad)
		}
		done, err := spool.Export(dir, verifier, e.Stick, waiting.Oldest)
		if err != nil {
			return fmt.Errorf("exporting from entry %d on: %w", waiting.Oldest, err)
		}
		text := fmt.Sprintf("%d bundles with %d entries, of them %d records, were written to %s; %d that were there are good. Take it to: stationctl import\n",
			done.Written, done.Entries, done.Records, e.Stick, done.Verified)
		if done.Damaged > 0 {
			text += fmt.Sprintf("%d files on the medium were not whole; they are kept with the ending .damaged, and what they held was written anew.\n", done.Damaged)
		}
		if done.Unread > 0 {
			text += fmt.Sprintf("%d entries of the journal are damaged and are not on the medium: stationctl spool repair.\n", done.Unread)
		}
		if done.Unsigned > 0 {
			text += fmt.Sprintf("%d entries came too late to be signed: export again.\n", done.Unsigned)
		}
		if err := out.Print(exported{verifier.Name(), done.Written, done.Entries, done.Records, done.Verified, done.Damaged, done.Unread, done.Unsigned}, text); err != nil {
			return err
		}
		if done.Unread > 0 {
			bad++
		}
	}
	return failedIf(bad)
}

func failedIf(bad int) error {
	if bad > 0 {
		return cli.ErrShown
	}
	return nil
}

// apply applies the receipts on the medium. One that is not believed is told,
// and does not keep the others back.
func (e *export) apply(ctx context.Context, client *control.Client, origin string, out *cli.Output) (bad int, err error) {
	receipts, err := spool.Receipts(e.Stick, origin)
	if err != nil {
		return 0, err
	}
	for _, receipt := range receipts {
		settled, err := client.ApplyReceipt(ctx, receipt.Data)
		result := applied{Receipt: receipt.Path, OK: err == nil, Settled: settled}
		text := fmt.Sprintf("%s: %d records were confirmed and %d refused, as %s says; %d were settled before.\n", receipt.Path, settled.Confirmed, settled.Refused, settled.By, settled.Already)
		if err != nil {
			bad++
			result.Problem = err.Error()
			text = fmt.Sprintf("%s: is not applied: %v\n", receipt.Path, err)
		}
		if err := out.Print(result, text); err != nil {
			return bad, err
		}
	}
	if e.Receipts && len(receipts) == 0 {
		fmt.Fprintf(out.People, "There are no receipts for %s on %s.\n", origin, e.Stick)
	}
	return bad, nil
}
