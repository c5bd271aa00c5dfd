package stationd

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"secretfree/station"
)

// A restart takes what has changed in the configuration, in each part of a
// station.
func TestRestartTakesTheConfiguration(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	for _, port := range f.ports {
		unplug := f.plug(port, newBoard())
		d.await("a pass", func(s station.Status) bool {
			return s.Slots[0].State == station.Passed || s.Slots[1].State == station.Passed
		})
		unplug()
		d.await("none", func(s station.Status) bool {
			return s.Slots[0].State != station.Passed && s.Slots[1].State != station.Passed
		})
	}
	get := func(host string) int {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+d.Addr()+"/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = host
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer.StatusCode
	}
	if code := get("line3-a.factory.example"); code != http.StatusMisdirectedRequest {
		t.Fatalf("before, a name: %d", code)
	}
	kept := func() int {
		files, err := filepath.Glob(filepath.Join(f.state, "transcripts", "*.uart"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if kept() != 2 {
		t.Fatalf("%d transcripts before", kept())
	}

	_, key, err := note.GenerateKey(rand.Reader, "importer")
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(f.dir, "lot.txt")
	if err := os.WriteFile(list, []byte("00000000000000000000000000000001\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.extra = fmt.Sprintf("[policy]\nlot = %q\n[page]\nlanguage = \"de\"\ncontact_it = \"Ana 4711\"\n[transcripts]\npassed = 1\n[export]\ntrusted_receipts = [%q]\n", list, key)
	f.top = "hosts = [\"line3-a.factory.example\"]\n"
	d.stop()
	d = f.start()
	if code := get("line3-a.factory.example"); code != http.StatusOK {
		t.Errorf("after, a name: %d", code)
	}
	if n := kept(); n != 1 {
		t.Errorf("%d transcripts after", n)
	}
	if _, err := d.receipts.Verifier("importer", verifierHash(t, key)); err != nil {
		t.Errorf("the key of an importer: %v", err)
	}
	f.plug(f.ports[0], newBoard())
	if slot := d.awaitSlot(0, station.Failed); slot.Reason != station.ReasonNotInLot || !strings.ContainsAny(slot.Advice, "äöüß") {
		t.Errorf("a board outside of the lot: %+v", slot)
	}
	d.stop()
}

func verifierHash(t *testing.T, key string) uint32 {
	t.Helper()
	v, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	return v.KeyHash()
}
