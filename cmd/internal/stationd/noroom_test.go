package stationd

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"secretfree/station"
)

// A station that needs a new index and has no room for it keeps its page, which
// says why; with room it opens by itself, on the same address, with all that has
// passed.
func TestNoRoomForTheIndex(t *testing.T) {
	f := newFactory(t)
	smallDisk(t, f.state, "4m")
	d := f.start()
	unplug := f.plug(f.ports[0], newBoard())
	d.awaitSlot(0, station.Passed)
	unplug()
	d.awaitSlot(0, station.Absent)
	entries := d.spool.Stats().Entries
	d.stop()
	indexes, err := filepath.Glob(filepath.Join(f.state, "index.bbolt*"))
	if err != nil || len(indexes) == 0 {
		t.Fatal(indexes, err)
	}
	for _, name := range indexes {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	ballast := filepath.Join(f.state, "ballast")
	fill(t, ballast)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := f.config()
	c.Listen = l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, c, zerolog.New(io.Discard)) }()
	ask := func(path string) (int, string) {
		answer, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + c.Listen + path)
		if err != nil {
			return 0, err.Error()
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			return 0, err.Error()
		}
		return answer.StatusCode, string(body)
	}
	await := func(path string, code int, text string) {
		t.Helper()
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			got, body := ask(path)
			if got == code && strings.Contains(body, text) {
				return
			}
			select {
			case err := <-ended:
				t.Fatalf("the station ended: %v", err)
			default:
			}
			if time.Now().After(until) {
				t.Fatalf("%s answers %d %q, want %d %q", path, got, body, code, text)
			}
		}
	}
	await("/healthz", http.StatusServiceUnavailable, "disk of this station is full")
	await("/", http.StatusServiceUnavailable, "Call IT. Do not insert boards.")
	await("/status", http.StatusServiceUnavailable, "no space left on device")
	time.Sleep(2 * openAgain) // it tries again, and stays
	await("/", http.StatusServiceUnavailable, f.state)

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	await("/status", http.StatusOK, `"slots"`)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	again := f.start()
	if got := again.spool.Stats().Entries; got < entries {
		t.Errorf("%d entries, there were %d", got, entries)
	}
	again.stop()
}

// A station that is told to stop while it waits for room stops, and gives its
// address back.
func TestNoRoomStops(t *testing.T) {
	f := newFactory(t)
	smallDisk(t, f.state, "1m")
	fill(t, filepath.Join(f.state, "ballast"))
	c := f.config()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Listen = l.Addr().String()
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := openWithRoom(ctx, c, zerolog.New(io.Discard)); !isFull(err) {
		t.Errorf("got %v", err)
	}
	l, err = net.Listen("tcp", c.Listen)
	if err != nil {
		t.Fatal(errors.Join(errors.New("the address is still taken"), err))
	}
	l.Close()
}
