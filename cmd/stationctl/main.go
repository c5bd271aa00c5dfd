// Stationctl looks into a station: what its journal holds, what its slots show,
// and whether both are as they should be.
package main

import (
	"fmt"
	"os"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationconf"
)

type grammar struct {
	cli.Common
	Status    status           `cmd:"" help:"Show the slots and the backlog of a running station."`
	Doctor    doctorCmd        `cmd:"" help:"Check a station and print a remedy for each problem; or write a bundle for support."`
	Fleet     fleet            `cmd:"" help:"Show many stations: which are offline, lagging or duplicated."`
	Spool     spools           `cmd:"" help:"The journal of a station."`
	Proof     proof            `cmd:"" help:"Write a proof of a board's record that anyone can verify offline."`
	Verify    verify           `cmd:"" help:"Verify proofs with only the station's public key."`
	Reconcile reconcileCommand `cmd:"" help:"Compare the journal with the registry, and enrol missing records."`
	Export    export           `cmd:"" help:"Write undelivered records to removable media, and apply the receipts there."`
	Import    importer         `cmd:"" help:"Deliver the records on removable media to the registry, and write receipts."`
	Replay    replay           `cmd:"" help:"Replay recorded boards through the daemon's code, and compare the verdicts."`
	Record    record           `cmd:"" help:"Record the dialogue with a board, using the daemon's code; enrol nothing."`
	Simulate  simulate         `cmd:"" help:"Make a port with a simulated or recorded board."`
	Slot      struct {
		Acknowledge slotAcknowledge `cmd:"" help:"Acknowledge the private-key-leak of a slot, after the board was put aside and quality was called."`
		Reset       slotReset       `cmd:"" help:"Reset the board in a slot of the running station, and read it again."`
	} `cmd:"" help:"The slots of a station."`
	Registry struct {
		Init registryInit `cmd:"" help:"Initialise a folder as a registry."`
	} `cmd:"" help:"The registry in a folder."`
}

func (grammar) Manual() cli.Manual {
	return cli.Manual{Section: 1, See: []string{"stationd(8)", "issuerctl(1)"}}
}

func (grammar) Help() string {
	return `Examples:
  stationctl status
      The slots and the backlog of the station on this machine: exit 0, or 1 if its health is red.
  stationctl slot acknowledge A
      The board that printed a private key in slot A is put aside: the slot reads boards again.
  stationctl doctor
      Machine, ports, disk, clock, registry and journal: what is wrong, and what to do.
  stationctl fleet --config /etc/secretfree/stationd.toml
      All stations of the registry, by their archive.
  stationctl spool list --kind failed
      The boards that failed, oldest first.
  stationctl spool show 4d1f8e27b3c05a9e61f2d47788aabbcc
      Everything that the journal holds of one board.
  stationctl spool verify --key station.pub --state-dir /mnt/copy-of-a-station
      Verify a journal with only the station's public key.
  stationctl replay fixtures/transcripts
      Replay recorded boards: exit 0 if each has the verdict that it expects. --junit FILE for build servers.
  stationctl record --port /dev/serial/by-id/usb-Texas_Instruments_XDS110-if00 --dir boards
      Record one board, for a bug report or as a test.
  stationctl simulate --port /tmp/port-a
      A simulated board on a port of its own. In another terminal, a station with port = "/tmp/port-a" reads it.
  stationctl slot reset A
      Reset the board in slot A over the modem lines of its port, and read it again.
  stationctl spool dead
      The records that the registry refused for good, with the reason. See also spool export, spool requeue.
  stationctl spool repair --from /mnt/backup/stationd
      What could be restored of a damaged journal; --apply restores it.
  stationctl proof 4d1f8e27b3c05a9e61f2d47788aabbcc --out board.proof
  stationctl verify --key station.pub board.proof
      Prove, to anyone and offline, which station read which key and when.
  stationctl reconcile
      Journal, table, public keys and guards, counted by station and day and compared; --repair adds what is missing.
  stationctl export /media/secretfree
  stationctl import /media/secretfree --config import.toml --key line3-a.pub --identity /var/lib/import --name hq
  stationctl export /media/secretfree
      A station without a network: there, delivered on another machine, and the receipts back.
  stationctl registry init /srv/registry
      Make a folder a registry, for stations with registry.kind = "dir".`
}

// place says where a station's files are.
type place struct {
	Config   string `name:"config" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The station's configuration, which names its state directory (${default})."`
	StateDir string `name:"state-dir" placeholder:"DIR" help:"The state directory or a copy of it, instead of a configuration."`
}

func (p place) dir() (string, error) {
	dir, _, err := p.station()
	return dir, err
}

// station is the state directory, and whose receipts the configuration trusts:
// nobody's if none is read.
func (p place) station() (string, note.Verifiers, error) {
	if p.StateDir != "" {
		return p.StateDir, note.VerifierList(), nil
	}
	c, err := stationconf.Load(p.Config)
	if err != nil {
		return "", nil, err
	}
	receipts, err := c.Receipts()
	return c.StateDir, receipts, err
}

type registryInit struct {
	Dir string `arg:"" help:"The folder: new, empty, or already a registry."`
}

func (r *registryInit) Run(out *cli.Output) error {
	if err := cloud.InitDir(r.Dir); err != nil {
		return err
	}
	return out.Print(struct {
		Dir string `json:"dir"`
	}{r.Dir}, fmt.Sprintf("%s is a registry.\n", r.Dir))
}

func main() {
	os.Exit(cli.Main("stationctl", "Look into a station and look after it.", new(grammar), os.Args[1:]))
}
