package spool

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var simFaults = flag.Int("simfaults", 0, "how many seeds TestSimulationFinds gives each deliberate fault; 0 only looks whether the faults still fit the code")

// simFault is a deliberate fault of the code.
type simFault struct{ name, file, code, instead string }

// deliberateFaults are what TestSimulation must find: each takes out something
// that a promise rests on.
func deliberateFaults() []simFault {
	return []simFault{
		{"the root of an accepted checkpoint is not compared", "accepted.go", "case root != c.Root:", "case false && root != c.Root:"},
		{"an accepted journal may be longer", "accepted.go", "case entries < c.Size:\n\t\treturn c, fmt", "case entries < c.Size:\n\t\treturn c, nil\n\tcase false:\n\t\treturn c, fmt"},
		{"what is not accepted is archived", "archive.go", "if err := s.moveAccepted(ctx); err != nil {\n\t\treturn false, err\n\t}", "s.moveAccepted(ctx)"},
		{"a fork is not kept", "accepted.go", "s.archive.notAccepted = text\n", "s.archive.notAccepted = \"\"\n"},
		{"a failed delivery counts as confirmed", "deliver.go", "if it.tried && (it.err == nil || it.dead != nil) {\n\t\t\tsettled", "if it.tried {\n\t\t\tsettled"},
		{"checksums of the index are not checked", "table.go", "if n < 0 || binary", "if n < 0 || false && binary"},
		{"an index that cannot be used is used", "index.go", "s.db, s.unusable, s.broken = nil, err, err", "_ = err"},
		{"a device gets a second key", "append.go", "case haveDevice && known.Key != q.key:", "case false && haveDevice && known.Key != q.key:"},
		{"a key gets a second device", "append.go", "case haveKey && owner != device:", "case false && haveKey && owner != device:"},
		{"a board again is a record again", "append.go", "case haveDevice && !journal.Covers(s.damage, known.Seq):", "case false && haveDevice && !journal.Covers(s.damage, known.Seq):"},
		{"a record is not queued", "index.go", "if err := tableOf(tx, bucketQueue).Put(encodeSeq(r.Seq), q.encode()); err != nil {", "if r.Seq%16 == 5 {\n\t} else if err := tableOf(tx, bucketQueue).Put(encodeSeq(r.Seq), q.encode()); err != nil {"},
		{"an index that is made anew queues nothing", "rebuild.go", "put(db, bucketQueue, 1, order, func", "put(db, bucketQueue, 1, order[:0], func"},
		{"nothing is read that nobody needs", "deliver.go", "beside.Go(func() { s.runScrub(ctx) })", ""},
		{"a torn tail stays", "open.go", "if err := f.Truncate(o.end.Offset); err != nil {", "if err := error(nil); err != nil {"},
	}
}

// Each deliberate fault breaks a promise within so many histories. How many:
//
//	go test ./spool -run TestSimulationFinds -timeout 0 -v -args -simfaults 200
func TestSimulationFinds(t *testing.T) {
	for _, f := range deliberateFaults() {
		t.Run(f.name, func(t *testing.T) {
			path, err := filepath.Abs(f.file)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(text), f.code); n != 1 {
				t.Fatalf("%s has %q %d times, want once: say here what takes its place", f.file, f.code, n)
			}
			if *simFaults == 0 {
				return
			}
			dir := t.TempDir()
			faulty := writeFile(t, filepath.Join(dir, f.file), []byte(strings.Replace(string(text), f.code, f.instead, 1)))
			overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: faulty}})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-overlay", writeFile(t, filepath.Join(dir, "overlay.json"), overlay), "-count", "1", "-timeout", "30m",
				"-run", "^TestSimulation$", ".", "-simseeds", strconv.Itoa(*simFaults), "-simseed", "1", "-simtries", "0")
			cmd.Env = append(os.Environ(), "GOFLAGS=")
			out, err := cmd.CombinedOutput()
			found := regexp.MustCompile(`-simseed (\d+): (.*)`).FindStringSubmatch(string(out))
			switch {
			case found != nil:
				t.Logf("found in %s histories, %v: %.200s", found[1], time.Since(start).Round(time.Second), found[2])
			case err == nil:
				t.Errorf("it is not found in %d histories", *simFaults)
			default:
				t.Logf("found, by the end of the process: %.200s", out)
			}
		})
	}
}
