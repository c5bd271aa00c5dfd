package uart

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A guard changes no match: every pattern finds in recorded and spoiled text
// what it finds without its words.
func TestGuardChangesNoMatch(t *testing.T) {
	guards := map[string]guarded{
		"tiSpeaks": tiSpeaks, "tiStarts": tiStarts, "tiModule": tiModule, "reportHere": reportHere, "heardLogin": heardLogin, "csrEvent": csrEvent,
		"csrOpenEvent": csrOpenEvent, "csrLate": csrLate, "csrAbort": csrAbort, "csrDead": csrDead, "csrAtStart": csrAtStart,
	}
	found, labels := map[string]int{}, make([]int, len(csrLabels))
	check := func(text string) {
		t.Helper()
		for name, g := range guards {
			matches := g.Regexp.MatchString(text)
			if matches {
				found[name]++
			}
			if g.MatchString(text) != matches || (g.FindStringIndex(text) != nil) != matches || (g.places(text) != nil) != matches {
				t.Errorf("%s: the guard changes whether %q matches: %t without it", name, text, matches)
			}
		}
		for kind, label := range csrLabels {
			if !label.MatchString(text) {
				continue
			}
			labels[kind]++
			if !holds(text, csrLabelWords) {
				t.Errorf("label %d matches %q, which holds none of %q", kind, text, csrLabelWords)
			}
		}
	}
	for _, text := range []string{
		"enter at command:", "\rO\u212a\r", "\n ok\r", "error : Parse parameterſ , -1", "+EventX:", "AT-COMMANDſ version 1", "at command example ver", "CHIP : 0x31000019",
		"ſecretfree 1 x", "\nSecretfree 1 x", "login: ", "uſername:", "User Name: ", "PAſſWORD: ", "Passwort:", "[wlan_x EVENT] y\r", "[wlan_x event]",
		"-enter ", "-iſ ", "-Is ", "Error: Invalid ", "NetUtilCmd error", "creating cſr", "certificate file name", "ſtrto\u212a", "STRTOK", "error 3 AT LINE 4", "In Function", "no to\u212aen", "Not Token",
		"Fatal - Error", "aborting nwp", "nwp abort", "ABORT_type", "device_abort", "UNIQUE device ID: ", "U D-ID is 0x12", "udid 12", "Device ID", "ſerial no", "Serial num", "UUID",
		"hw ident", "product ſerial", "MCU SERIAL", "u-id", "Seriennummer", "ſerien-nr", "numéro de série", "número di seri", "序列号",
	} {
		check(text)
	}
	for name := range guards {
		if found[name] == 0 {
			t.Errorf("no text matches %s", name)
		}
	}
	for kind, n := range labels {
		if n == 0 {
			t.Errorf("no text has a label of kind %d", kind)
		}
	}
	paths, err := filepath.Glob("../fixtures/transcripts/*.uart")
	if err != nil || len(paths) < 40 {
		t.Fatalf("%d transcripts, %v", len(paths), err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		transcript, err := ParseTranscript(text)
		if err != nil {
			t.Fatal(err)
		}
		heard := ""
		for _, c := range transcript.Chunks {
			if c.Direction == Received && len(heard) < 512 {
				heard += string(c.Bytes)
			}
		}
		for _, line := range strings.SplitAfter(heard, "\n") {
			check(line)
			if len(line) > 0 && len(line) < 256 {
				spoiled := []byte(line)
				spoiled[r.IntN(len(spoiled))] ^= 1 << r.IntN(8)
				check(string(spoiled))
			}
		}
	}
}
