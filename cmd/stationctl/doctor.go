package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"unicode"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/doctor"
	"secretfree/cmd/internal/stationconf"
	"secretfree/spool/journal"
)

type doctorCmd struct {
	Config      string `name:"config" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The station's configuration (${default})."`
	Deep        bool   `name:"deep" help:"Also check the whole journal, which takes long for a large one."`
	Quiet       bool   `name:"quiet" help:"Show only problems."`
	Bundle      string `name:"bundle" placeholder:"FILE.tar.gz" help:"Also write the information for support to this file, without secrets. The file must not exist."`
	WithoutIDs  bool   `name:"without-ids" help:"In the bundle, replace device ids, MAC addresses and fingerprints by pseudonyms."`
	Transcripts bool   `name:"transcripts" help:"In the bundle, include the transcripts of the newest boards."`
	Entries     int    `name:"entries" default:"1000" placeholder:"N" help:"In the bundle, the number of the newest journal entries (${default})."`
}

func (doctorCmd) Help() string {
	return `Looks at the machine, the ports, the disk, the clock, the registry and the journal of a station, while it runs or not,
and says of each what is wrong and what to do. It changes nothing, bar what it writes
to the registry under the name probe, to see that a second write is refused, and removes again. It opens no port,
which resets some boards.

Run it as root or as the user of the station: others cannot see all, and it says what. As root, the credentials for
AWS are root's own.

Levels:
  ok     in order
  warn   the line goes on; somebody should act
  fail   something does not work, or will lose records

Examples:
  stationctl doctor
      Exit 0 if nothing fails, 1 if something does. It takes less than 15 seconds.
  sudo -u stationd stationctl doctor --quiet
      Only what is not in order, as the station itself sees it.
  stationctl doctor --deep
      The whole journal too: checksums, signatures, proofs.
  stationctl doctor --json
      {"check":"disk.sync","level":"warn","text":"…","remedy":"…","took_ms":412}, one a line.
  stationctl doctor --bundle station.tar.gz
      For support: what it found, state, metrics, configuration, the newest lines of the log and entries of the journal.
      Keys, tokens, credentials and comments are left out. --without-ids also replaces device ids and MAC addresses.`
}

func (d *doctorCmd) Run(ctx context.Context, out *cli.Output) error {
	if d.Bundle == "" && (d.WithoutIDs || d.Transcripts) {
		return fmt.Errorf("--without-ids and --transcripts are for --bundle: %w", cli.ErrMisuse)
	}
	if d.WithoutIDs && d.Transcripts {
		return fmt.Errorf("transcripts hold device ids in many forms, so that --transcripts does not go with --without-ids: %w", cli.ErrMisuse)
	}
	c := doctor.Config{Path: d.Config, Deep: d.Deep, Machine: doctor.ThisMachine(), Get: d.get}
	results := doctor.Examine(ctx, c)
	counts := map[doctor.Level]int{}
	for _, r := range results {
		counts[r.Level]++
		if d.Quiet && r.Level == doctor.OK && !out.JSON {
			continue
		}
		if err := out.Print(r, resultText(r)); err != nil {
			return err
		}
	}
	fmt.Fprintf(out.People, "%s, %s, %d in order.\n", cli.Count(counts[doctor.Fail], "thing fails", "things fail"), cli.Count(counts[doctor.Warn], "warning", "warnings"), counts[doctor.OK])
	if d.Bundle != "" {
		if err := doctor.WriteBundle(ctx, d.Bundle, doctor.BundleConfig{Config: c, Results: results, WithoutIDs: d.WithoutIDs, Transcripts: d.Transcripts,
			Entries: d.Entries, Describe: describe, Environ: os.Environ()}); err != nil {
			return err
		}
		fmt.Fprintf(out.People, "%s is for support. Look into it before you send it: tar -xzOf %s | less\n", d.Bundle, d.Bundle)
	}
	if doctor.Failed(results) {
		return cli.ErrShown
	}
	return nil
}

// get asks the page without a token: those are not read for a bundle.
func (d *doctorCmd) get(ctx context.Context, listen, path string) ([]byte, int, error) {
	c, err := stationconf.Load(d.Config)
	if err != nil {
		return nil, 0, err
	}
	t := target{scheme: "http", address: reachable(listen), client: new(http.Client)}
	if c.Access.TLS() {
		verify, err := only(c.Access.Certificate)
		if err != nil {
			return nil, 0, err
		}
		t.scheme, t.client = "https", &http.Client{Transport: &http.Transport{TLSClientConfig: verify}}
	}
	return t.get(ctx, path)
}

// describe is an entry as spool list has it: no key, no proof.
func describe(e journal.Entry) ([]byte, []string, error) {
	l, err := list(e)
	if err != nil {
		return nil, nil, err
	}
	line, err := json.Marshal(l)
	var ids []string
	if l.Device.Valid() {
		ids = append(ids, l.Device.String())
	}
	return line, append(ids, l.Fingerprint.String()), err
}

// resultText is one line for what was found, and one for what to do.
func resultText(r doctor.Result) string {
	text := fmt.Sprintf("%-4s  %-20s  %s\n", r.Level, r.Check, oneLine(r.Text))
	if r.Remedy != "" {
		text += fmt.Sprintf("%28s-> %s\n", "", oneLine(r.Remedy))
	}
	return text
}

// oneLine is what others said, such as the name of a process or a notice of
// another station, without what a terminal would obey.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ReplaceAll(text, "\n", "; "))
}
