package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/config"
	"secretfree/spool"
	"secretfree/station/board"
)

type importer struct {
	Stick    string   `arg:"" help:"The folder on the removable medium that stationctl export has written."`
	Config   string   `name:"config" required:"" placeholder:"FILE" help:"A configuration with sku and [registry], as in stationd.toml."`
	Keys     []string `name:"key" required:"" placeholder:"FILE" help:"The public key of a station, its station.pub, from a trusted source. May be repeated."`
	Identity string   `name:"identity" required:"" placeholder:"DIR" help:"The folder of this importer's own key, which signs the receipts. It is created at first use."`
	Name     string   `name:"name" required:"" placeholder:"NAME" help:"The name of this importer, 1 to 63 of a-z, 0-9 and -. It cannot be changed later."`
	Again    bool     `name:"again" help:"Also deliver records that have a receipt of this importer, for example after the registry was restored."`
}

func (importer) Help() string {
	return `Delivers bundles on a removable medium under the same conditions as a station delivers its records: one device, one key.
Nothing on the medium is believed that a named key does not prove. Beside each bundle a signed receipt is written; the
station settles its records by it if its configuration names this importer's public key, DIR/station.pub.

Examples:
  stationctl import /media/secretfree --config import.toml --key line3-a.pub --key line3-b.pub \
      --identity /var/lib/import --name hq
      Exit 0 if each bundle was taken and has a receipt, also if the registry refused records for good: that
      is a verdict, which goes back to the station. To import again goes on where it ended.

import.toml:
  sku = "widgiot"
  [registry]
  kind   = "aws"
  bucket = "widgiot-pubkeys"`
}

// importConfig is the configuration of an import.
type importConfig struct {
	SKU      string          `toml:"sku"`
	Registry config.Registry `toml:"registry"`
}

func loadImport(name string) (importConfig, error) {
	var c importConfig
	file, err := config.Load(name, &c)
	if err != nil {
		return c, err
	}
	if err := board.CheckName(c.SKU); err != nil {
		return c, file.Errorf("sku", "Write the SKU of the stations.", "sku is %q", c.SKU)
	}
	return c, c.Registry.Check(file)
}

// imported is what became of a bundle.
type imported struct {
	Bundle    string          `json:"bundle"`
	OK        bool            `json:"ok"`
	Station   string          `json:"station"`
	First     uint64          `json:"first"`
	Last      uint64          `json:"last"`
	Records   int             `json:"records"`
	Confirmed int             `json:"confirmed"`
	Refused   []importRefused `json:"refused,omitempty"`
	NoProof   int             `json:"no_proof"`
	Left      int             `json:"left"`
	Problem   string          `json:"problem,omitempty"`
}

type importRefused struct {
	Seq    uint64         `json:"seq"`
	Device board.DeviceID `json:"device"`
	Reason string         `json:"reason"`
}

func (i *importer) Run(ctx context.Context, out *cli.Output) error {
	if err := board.CheckName(i.Name); err != nil {
		return fmt.Errorf("%w: --name: %v", cli.ErrMisuse, err)
	}
	c, err := loadImport(i.Config)
	if err != nil {
		return err
	}
	stations, err := i.stations()
	if err != nil {
		return err
	}
	aws, dir, err := c.Registry.Open(ctx, c.SKU)
	if err != nil {
		return fmt.Errorf("opening the registry: %w", err)
	}
	var registry spool.Sink = aws
	if dir != nil {
		registry = dir
	}
	identity, err := spool.ImporterIdentity(i.Identity, i.Name)
	if err != nil {
		return err
	}
	bad, bundles, refused := 0, 0, 0
	var failed error // to write the output
	err = spool.ImportMedia(ctx, spool.ImportConfig{Media: i.Stick, SKU: c.SKU, Stations: stations, Sink: registry, Identity: identity, Again: i.Again}, func(one spool.Imported) {
		bundles++
		refused += one.Refused
		if one.Err != nil {
			bad++
		}
		failed = errors.Join(failed, show(out, one))
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	switch {
	case bundles == 0:
		fmt.Fprintf(out.People, "There are no bundles of %s on %s.\n", c.SKU, i.Stick)
	case bad == 0:
		fmt.Fprintf(out.People, "All is delivered. Take the medium back to: stationctl export\nThe station believes these receipts if it has in its configuration:\n  [export]\n  trusted_receipts = [%q]\n", identity.Key)
	}
	if refused > 0 {
		fmt.Fprintf(out.People, "Refused by the registry for good: %s. At the station they are dead letters when the medium is back.\n", cli.Count(refused, "record", "records"))
	}
	return failedIf(bad)
}

func (i *importer) stations() ([]note.Verifier, error) {
	var stations []note.Verifier
	for _, path := range i.Keys {
		verifier, err := readKey(path)
		if err != nil {
			return nil, err
		}
		stations = append(stations, verifier)
	}
	return stations, nil
}

func show(out *cli.Output, one spool.Imported) error {
	result := imported{Bundle: one.Path, OK: one.Err == nil, Station: one.Origin, First: one.First, Last: one.Last,
		Records: one.Records, Confirmed: one.Confirmed, NoProof: one.NoProof, Left: one.Left}
	text := fmt.Sprintf("%s/%s: %s, %d confirmed, %d refused", one.Origin, filepath.Base(one.Path), cli.Count(one.Records, "record", "records"), one.Confirmed, one.Refused)
	if one.NoProof > 0 {
		text += fmt.Sprintf(", %d without a proof of possession", one.NoProof)
	}
	text += "\n"
	for _, r := range one.Refusals {
		result.Refused = append(result.Refused, importRefused(r))
		text += fmt.Sprintf("%8d  %s  refused: %s\n", r.Seq, r.Device, r.Reason)
	}
	if one.Err != nil {
		result.Problem = one.Err.Error()
		text += fmt.Sprintf("  not taken, or not all of it: %v\n", one.Err)
	}
	return out.Print(result, text)
}
