package stationd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"

	"secretfree/cmd/internal/config"
	"secretfree/station"
)

// reread has a running station take what the factory's configuration is now.
func (f *factory) reread(d *running) {
	d.reload(Reloads{Load: func() (Config, error) { return LoadToServe(filepath.Join(f.dir, "stationd.toml")) }})
}

// Every key is either taken by a reload or named as one that needs a restart;
// that this list is whole is what fails when a key is added.
func TestReloadKeys(t *testing.T) {
	live := []string{"hosts", "policy.allow_unproven", "policy.algorithms", "policy.lot", "policy.label", "page.language", "page.sound", "page.contact_it", "page.contact_quality",
		"transcripts.failed", "transcripts.passed", "transcripts.max_mib", "export.trusted_receipts", "disk.warn_percent", "disk.critical_percent",
		"log.level"}
	before := Config{}
	var keys []string
	var walk func(prefix string, v reflect.Value, changed *Config)
	walk = func(prefix string, v reflect.Value, changed *Config) {
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("toml"), ",")
			key, field := prefix+name, v.Field(i)
			switch field.Kind() {
			case reflect.Struct:
				walk(key+".", field, changed)
				continue
			case reflect.String:
				field.SetString("other")
			case reflect.Int:
				field.SetInt(7)
			case reflect.Bool:
				field.SetBool(true)
			case reflect.Slice:
				field.Set(reflect.MakeSlice(field.Type(), 1, 1))
			default:
				t.Fatalf("%s is of a kind that this test does not know", key)
			}
			keys = append(keys, key)
			if diff := differences(before, *changed); !slices.Equal(diff, []string{key}) {
				t.Errorf("of %s the differences are %v", key, diff)
			}
			next, later := before.mix(*changed)
			taken := differences(before, next)
			switch isLive := slices.Contains(live, key); {
			case isLive && (len(later) != 0 || !slices.Equal(taken, []string{key})):
				t.Errorf("%s: taken %v, later %v; want it taken", key, taken, later)
			case !isLive && (len(taken) != 0 || !slices.Equal(later, []string{key})):
				t.Errorf("%s: taken %v, later %v; want a restart, or add it to what is taken", key, taken, later)
			}
			field.SetZero()
		}
	}
	var changed Config
	walk("", reflect.ValueOf(&changed).Elem(), &changed)
	for _, key := range live {
		if !slices.Contains(keys, key) {
			t.Errorf("there is no %s", key)
		}
	}
	for _, key := range restartKeys() {
		if !slices.ContainsFunc(keys, func(k string) bool { return k == key || strings.HasPrefix(k, key+".") }) {
			t.Errorf("there is no %s", key)
		}
	}
}

func TestReload(t *testing.T) {
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
	f.config()
	f.reread(d)
	if code := get("line3-a.factory.example"); code != http.StatusOK {
		t.Errorf("after, a name: %d", code)
	}
	if n := kept(); n != 1 {
		t.Errorf("%d transcripts after", n)
	}
	if _, err := d.verifiers().Verifier("importer", verifierHash(t, key)); err != nil {
		t.Errorf("the key of an importer: %v", err)
	}
	f.plug(f.ports[0], newBoard())
	if slot := d.awaitSlot(0, station.Failed); slot.Reason != station.ReasonNotInLot || !strings.ContainsAny(slot.Advice, "äöüß") {
		t.Errorf("a board outside of the lot: %+v", slot)
	}
	log := d.log.String()
	for _, want := range []string{`"changed":["hosts","policy.lot","page.language","page.contact_it","transcripts.passed","export.trusted_receipts"]`,
		"the configuration was read again: hosts, policy.lot, page.language"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
	}
	if strings.Contains(log, "needs a restart") {
		t.Errorf("the log names something:\n%s", log)
	}

	// The same once more.
	f.reread(d)
	if log := d.log.String(); !strings.Contains(log, "nothing that holds has changed") {
		t.Errorf("the log is:\n%s", log)
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

// What needs a restart is named, once for all of it, each time until there is
// one; the rest of the file holds.
func TestReloadNeedsRestart(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	f.ports = append(f.ports, filepath.Join(f.dir, "port-c"))
	f.registry = ""
	f.extra = "[page]\nlanguage = \"es\"\n[log]\nlevel = \"warn\"\nformat = \"text\"\n"
	f.config()
	var level string
	again := Reloads{Load: func() (Config, error) { return LoadToServe(filepath.Join(f.dir, "stationd.toml")) }, Log: func(l config.Log) { level = l.Level }}
	for n := range 2 {
		d.reload(again)
		if log := d.log.String(); strings.Count(log, "needs a restart: slot, registry.kind, registry.dir, log.format") != n+1 {
			t.Errorf("the log is:\n%s", log)
		}
	}
	if len(d.Status().Slots) != 2 || level != "warn" || d.station.Stats().Passed != 0 || !strings.Contains(d.log.String(), `"changed":["page.language","log.level"]`) {
		t.Errorf("%+v, level %q:\n%s", d.Status(), level, d.log)
	}
	d.stop()
}

// A file that is not good changes nothing, and is named with its line and the
// remedy.
func TestReloadRefused(t *testing.T) {
	f := newFactory(t)
	f.extra = "[page]\nlanguage = \"de\"\n"
	d := f.start()
	name := filepath.Join(f.dir, "stationd.toml")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	metric := func(value string) {
		t.Helper()
		_, body := d.get("/metrics")
		if !strings.Contains(body, "stationd_config_last_reload_successful "+value+"\n") || !strings.Contains(body, "stationd_config_last_reload_success_timestamp_seconds 1.") {
			t.Errorf("the metrics want %s:\n%s", value, body)
		}
	}
	metric("1")
	for text, want := range map[string]string{
		strings.Replace(string(good), `"de"`, `"tlh"`, 1):       `: page.language is \"tlh\". Write one of`,
		string(good) + "[policy]\nlots = \"\"\n":                `: unknown key \"policy.lots\". Correct or remove it`,
		string(good) + "[access]\ntls_cert = \"/no/such\"\n":    `: there is a certificate and no key. Write access.tls_key`,
		"hosts = [\"ok.example\"]\nstate_dir = 7\n":             `:2: state_dir takes a text`,
		"hosts = [\"ok.example\"]\n" + string(good)[:60] + "\n": `: `,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		before := d.station.Settings()
		f.reread(d)
		if log := d.log.String(); !strings.Contains(log, want) || !strings.Contains(log, "the configuration was not taken; the one before holds") {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
		if diff := cmp.Diff(before, d.station.Settings()); diff != "" {
			t.Errorf("%s: %s", want, diff)
		}
		metric("0")
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	f.reread(d)
	metric("0")
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	f.reread(d)
	metric("1")
	d.stop()
}

// systemd is told when a reload begins and when it has ended, also when it was
// refused.
func TestReloadNotifies(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !strings.Contains(d.log.String(), `"message":"ready"`) { // which the daemon tells before it says so
		<-ticker.C
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(f.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(f.dir, "notify"))
	read := func() string {
		t.Helper()
		buffer := make([]byte, 4096)
		if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n, err := socket.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
	for _, c := range []struct {
		err  error
		want string
	}{{nil, "was good"}, {errors.New("no\nfile"), "failed: no file"}} {
		d.reload(Reloads{Load: func() (Config, error) { return d.config, c.err }})
		if text := read(); !strings.HasPrefix(text, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("first %q", text)
		}
		if text := read(); !strings.HasPrefix(text, "READY=1\nSTATUS=") || !strings.Contains(text, c.want) {
			t.Errorf("then %q", text)
		}
	}
}

// Boards are read, the page is looked at and the metrics are taken while the
// configuration changes all the time.
func TestReloadUnderLoad(t *testing.T) {
	f := newFactory(t)
	name := filepath.Join(f.dir, "stationd.toml")
	f.config()
	var variants [][]byte
	for _, extra := range []string{"[page]\nlanguage = \"de\"\n[transcripts]\npassed = 1\n", "[page]\nlanguage = \"zh\"\n[disk]\nwarn_percent = 1\ncritical_percent = 2\n", "[broken\n"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		variants = append(variants, append(text, extra...))
	}
	ctx, stop := context.WithCancel(t.Context())
	asked := make(chan os.Signal, 1)
	log := new(lockedBuffer)
	d, err := Open(t.Context(), f.config(), zerolog.New(log))
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Daemon: d, t: t, log: log}
	var all sync.WaitGroup
	all.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	loads := 0
	all.Go(func() {
		d.reloads(ctx, Reloads{Asked: asked, Load: func() (Config, error) {
			loads++
			if err := os.WriteFile(name, variants[loads%len(variants)], 0o600); err != nil {
				return Config{}, err
			}
			return LoadToServe(name)
		}})
	})
	busy := func(do func()) {
		all.Go(func() {
			for ctx.Err() == nil {
				do()
			}
		})
	}
	busy(func() {
		select {
		case asked <- syscall.SIGHUP:
		case <-ctx.Done():
		}
	})
	for _, path := range []string{"/", "/status", "/metrics"} {
		busy(func() {
			answer, err := http.Get("http://" + d.Addr() + path)
			if err == nil {
				answer.Body.Close()
			}
		})
	}
	for range 5 {
		unplug := f.plug(f.ports[0], newBoard())
		r.awaitSlot(0, station.Passed)
		unplug()
		r.await("the next board", func(s station.Status) bool { return s.Slots[0].State != station.Passed })
	}
	stop()
	all.Wait()
	if d.station.Stats().Passed != 5 || loads < 3 {
		t.Errorf("%+v, %d reloads", d.station.Stats(), loads)
	}
	f.verify()
}
