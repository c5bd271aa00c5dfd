// Package cmd_test holds what is true of all commands and rooms together.
package cmd_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "secretfree/"

// Names of what a room must not reach, as prefixes of import paths.
const (
	aws     = "github.com/aws/"
	bbolt   = "go.etcd.io/bbolt"
	serial  = "go.bug.st/serial"
	zerolog = "github.com/rs/zerolog"
	metrics = "github.com/prometheus/"
	kong    = "github.com/alecthomas/kong"
	toml    = "github.com/pelletier/go-toml"
	netHTTP = "net/http"
	tests   = "testing"
	systemd = "github.com/coreos/go-systemd"
	dsse    = "github.com/secure-systems-lab/go-securesystemslib/dsse"
)

type rule struct {
	room string
	// ours are the rooms that it may import.
	ours []string
	// never are what it must not reach, by whatever way, and why.
	never map[string]string
}

// rules is the table of rooms. Everything outside cmd is also kept from the
// command line, from configuration files and from metrics: only cmd knows them.
func rules() []rule {
	const (
		reader   = "a reader of boards must build without storage and cloud"
		logs     = "only cmd and station take a logger; a room returns errors"
		storage  = "what is on disk is the spool's own business"
		cloudy   = "a station must work, and be tested, without a cloud"
		ports    = "only uart knows serial ports"
		decides  = "the decision must be tested, and run, without AWS"
		internet = "what is written on disk does not depend on a network"
	)
	return []rule{
		// One parser of signing requests for the reader, the proof and the
		// issuer. A leaf, so that uart stays as light as it is.
		{"station/board/certreq", nil, map[string]string{aws: cloudy, bbolt: storage, serial: ports, zerolog: logs, netHTTP: internet}},
		{"station/board", []string{"station/board/certreq"}, map[string]string{aws: cloudy, bbolt: storage, serial: ports, zerolog: logs, netHTTP: internet}},
		{"uart", []string{"station/board/certreq"}, map[string]string{bbolt: reader, aws: reader, zerolog: logs}},
		{"spool/durable", nil, map[string]string{serial: ports, aws: cloudy, bbolt: "it writes plain files", netHTTP: internet, zerolog: logs}},
		{"spool/journal", []string{"spool/durable", "station/board"}, map[string]string{serial: ports, aws: cloudy, bbolt: "the index is the spool's: what is signed needs none", netHTTP: internet, zerolog: logs}},
		{"spool", []string{"spool/durable", "spool/journal", "station/board"}, map[string]string{serial: ports, aws: cloudy, netHTTP: internet, zerolog: logs}},
		{"spool/reconcile", []string{"spool/journal", "station/board"}, map[string]string{serial: ports, aws: cloudy, bbolt: "it reads the journal, not the index", netHTTP: internet, zerolog: logs}},
		{"station/auth", nil, map[string]string{serial: ports, bbolt: storage, aws: cloudy, zerolog: "it returns errors"}},
		{"station", []string{"station/auth", "station/board", "uart"}, map[string]string{bbolt: storage, aws: cloudy}},
		{"cloud", []string{"spool/journal", "station/board"}, map[string]string{serial: ports, bbolt: storage, zerolog: logs}},
		{"cloud/awsconfig", nil, map[string]string{serial: ports, bbolt: storage, zerolog: logs}},
		{"cloud/issuer", []string{"station/board", "station/board/certreq"}, map[string]string{serial: ports, bbolt: storage, zerolog: logs, aws: decides, netHTTP: "HTTP is the server's"}},
		{"cloud/issuer/keyfile", nil, map[string]string{aws: "it reads files", bbolt: storage, zerolog: logs}},
		{"cloud/issuer/ca", []string{"cloud/awsconfig", "cloud/issuer", "cloud/issuer/keyfile", "station/board"}, map[string]string{serial: ports, bbolt: storage, zerolog: logs}},
		{"cloud/issuer/ca/catest", []string{"cloud/issuer/ca"}, map[string]string{bbolt: storage, zerolog: logs}},
		{"cloud/issuer/claims", []string{"cloud/awsconfig", "cloud/issuer", "cloud/issuer/keyfile", "station/board"}, map[string]string{serial: ports, bbolt: storage, zerolog: logs}},
		{"cloud/issuer/server", []string{"cloud/issuer"}, map[string]string{serial: ports, bbolt: storage, zerolog: logs, aws: "a server knows neither a CA nor a store"}},
		{"cloud/issuer/issuertest", []string{"cloud/issuer", "station/board"}, map[string]string{serial: ports, bbolt: storage, zerolog: logs, aws: decides}},
		{"cloud/issuer/pki", []string{"cloud/issuer/keyfile", "station/board", "station/board/certreq"}, map[string]string{serial: ports, bbolt: storage, zerolog: logs}},
		{"cloud/deploy", nil, map[string]string{serial: ports, bbolt: storage, aws: "it holds a template and its tests"}},
		{"cloud/deploy/build", nil, map[string]string{serial: ports, bbolt: storage, aws: "it packs what others wrote"}},
		{"systemd", nil, map[string]string{netHTTP: "it holds texts"}},
		{"fixtures", []string{"uart", "station/board"}, map[string]string{aws: cloudy, bbolt: storage, tests: "the demo links it", zerolog: logs}},
	}
}

// onlyCmd is what no room but cmd reaches.
func onlyCmd() map[string]string {
	return map[string]string{metrics: "rooms offer snapshots", kong: "rooms know no command line", toml: "rooms take checked values"}
}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Standard   bool
}

// packages are all of ours, and all that they reach, by import path.
type packages map[string]listed

func list(t *testing.T) packages {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Imports,Deps,Standard", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := packages{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p listed
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
	return all
}

func reaches(p listed, prefix string) bool {
	return slices.ContainsFunc(p.Deps, func(dep string) bool {
		return dep == prefix || strings.HasPrefix(dep, strings.TrimSuffix(prefix, "/")+"/")
	})
}

func TestRooms(t *testing.T) {
	all := list(t)
	t.Run("the table", func(t *testing.T) { all.followTheTable(t) })
	t.Run("the shared noun", func(t *testing.T) { all.boardStandsAlone(t) })
	t.Run("a function starts fast", func(t *testing.T) { all.functionIsLight(t) })
	t.Run("an issuer has no station in it", func(t *testing.T) { all.issuersAreIssuers(t) })
	t.Run("a command has no daemon in it", func(t *testing.T) { all.stationctlIsNoDaemon(t) })
	t.Run("the rules can fail", func(t *testing.T) { all.rulesCanFail(t) })
}

func (all packages) followTheTable(t *testing.T) {
	ruled := map[string]bool{}
	for _, r := range rules() {
		ruled[module+r.room] = true
		p, ok := all[module+r.room]
		if !ok {
			t.Errorf("there is no room %s", r.room)
			continue
		}
		for _, imported := range p.Imports {
			if ours, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(r.ours, ours) {
				t.Errorf("%s imports %s: of ours it may import %v", r.room, ours, r.ours)
			}
		}
		for _, never := range []map[string]string{r.never, onlyCmd()} {
			for prefix, why := range never {
				if reaches(p, prefix) {
					t.Errorf("%s reaches %s: %s", r.room, prefix, why)
				}
			}
		}
	}
	for path := range all {
		if strings.HasPrefix(path, module) && !ruled[path] && path != module+"cmd" && !strings.HasPrefix(path, module+"cmd/") {
			t.Errorf("%s is in no room: give it a row in the table", path)
		}
	}
}

// The shared noun is what everything stands on: it may stand on the standard
// library and the envelope library alone.
func (all packages) boardStandsAlone(t *testing.T) {
	allowed := append([]string{dsse, module + "station/board/certreq"}, all[dsse].Deps...)
	deps := all[module+"station/board"].Deps
	if !slices.Contains(deps, dsse) {
		t.Fatalf("station/board reaches %v: this test looks at nothing", deps)
	}
	for _, path := range deps {
		if !all[path].Standard && !slices.Contains(allowed, path) {
			t.Errorf("station/board reaches %s", path)
		}
	}
}

// What a function of AWS Lambda links it loads at every start.
func (all packages) functionIsLight(t *testing.T) {
	p, ok := all[module+"cmd/issuer-lambda"]
	for _, prefix := range []string{metrics, "google.golang.org/protobuf", kong} {
		if !ok || reaches(p, prefix) {
			t.Errorf("cmd/issuer-lambda reaches %s, or is not there", prefix)
		}
	}
}

// An issuer is on the internet: what it links can be attacked from there, and a
// function loads it at every start. The formats of the journal come with the
// registry, which reads checkpoints; the spool that writes them does not.
func (all packages) issuersAreIssuers(t *testing.T) {
	formats := []string{module + "spool/journal", module + "spool/durable"}
	for program, never := range map[string][]string{
		"cmd/issuerd":       {bbolt, module + "spool", module + "station", module + "uart", serial},
		"cmd/issuer-lambda": {bbolt, module + "spool", module + "station", module + "uart", serial, systemd},
		"cmd/issuerctl":     {bbolt, module + "spool", module + "station", module + "uart", serial, systemd},
	} {
		p, ok := all[module+program]
		for _, prefix := range never {
			if !ok || slices.ContainsFunc(p.Deps, func(dep string) bool {
				return !slices.Contains(formats, dep) && dep != module+"station/board" && !strings.HasPrefix(dep, module+"station/board/") && (dep == prefix || strings.HasPrefix(dep, strings.TrimSuffix(prefix, "/")+"/"))
			}) {
				t.Errorf("%s reaches %s, or is not there", program, prefix)
			}
		}
	}
}

// stationctl is run for a moment, by hand or by a timer: it needs no daemon.
func (all packages) stationctlIsNoDaemon(t *testing.T) {
	p, ok := all[module+"cmd/stationctl"]
	for _, prefix := range []string{metrics, "google.golang.org/protobuf", systemd, module + "cmd/internal/stationd"} {
		if !ok || reaches(p, prefix) {
			t.Errorf("cmd/stationctl reaches %s, or is not there", prefix)
		}
	}
}

// A rule that matches nothing proves nothing: each forbidden thing is reached
// by the room that owns it.
func (all packages) rulesCanFail(t *testing.T) {
	for room, prefix := range map[string]string{"spool": bbolt, "uart": serial, "cloud": aws, "station": zerolog, "cmd/internal/metric": metrics, "cmd/issuerd": "google.golang.org/protobuf",
		"cmd/stationctl": kong, "cmd/internal/config": toml, "cloud/issuer/server": netHTTP, "cmd/stationd": systemd, "cmd/demo": module + "cmd/internal/stationd"} {
		if p, ok := all[module+room]; !ok || !reaches(p, prefix) {
			t.Errorf("%s does not reach %s: the name in the rules is wrong", room, prefix)
		}
	}
}
