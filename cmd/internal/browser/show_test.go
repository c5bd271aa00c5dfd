package browser_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"secretfree/station"
	"secretfree/station/board"
	"secretfree/uart"
)

type event struct {
	status map[string]any
	build  string
	behind int64 // s: how old it is when it comes
}

// show is the page of a real station, that is told by the test what to show.
type show struct {
	t *testing.T
	*httptest.Server

	mu      sync.Mutex
	status  map[string]any
	changed chan struct{}
	scans   []string // what was posted to /scan
	answer  int      // to it; 0 is 200
	next    *event   // one, before the others
	ended   chan struct{}
	closing sync.Once
}

type nothing struct{}

func (nothing) Append(context.Context, station.Outcome) (board.Receipt, error) {
	panic("no board is read")
}

// newShow makes a page with so many slots.
func newShow(t *testing.T, slots int, settings station.Page) *show {
	t.Helper()
	c := station.Config{
		SKU: "widgiot", Station: "line3-a", Journal: nothing{}, Page: settings,
		Backlog: func() station.Backlog { return station.Backlog{} }, Delivery: func(board.DeviceID) station.Delivery { return station.Waiting },
	}
	for i := range slots {
		c.Slots = append(c.Slots, station.SlotConfig{Name: slotName(i), Port: fmt.Sprintf("/dev/serial/by-path/pci-0000:00:14.0-usb-0:%d.%d:1.0-port0", i/4+1, i%4+1), Dialect: uart.TIAT{},
			Open: func(ctx context.Context) (uart.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }})
	}
	s, err := station.New(c)
	if err != nil {
		t.Fatal(err)
	}
	real := s.Handler()
	w := &show{t: t, changed: make(chan struct{}), ended: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle("/", real)
	mux.HandleFunc("GET /events", w.events)
	mux.HandleFunc("POST /scan", w.scan)
	w.Server = httptest.NewServer(mux)
	t.Cleanup(w.end)
	return w
}

// end ends the events, and the server. It may be called twice.
func (w *show) end() {
	w.closing.Do(func() {
		close(w.ended)
		w.Server.CloseClientConnections()
		w.Server.Close()
	})
}

func slotName(i int) string {
	if i < 26 {
		return string(rune('A' + i))
	}
	return fmt.Sprintf("%c%d", rune('A'+i/10-2), i%10)
}

// play sets what the page shows.
func (w *show) play(status map[string]any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = status
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *show) events(out http.ResponseWriter, r *http.Request) {
	out.Header().Set("Content-Type", "text/event-stream")
	began := time.Now()
	for {
		w.mu.Lock()
		e, changed := event{status: w.status, build: build(r)}, w.changed
		if w.next != nil {
			e, w.next = *w.next, nil
		}
		w.mu.Unlock()
		if e.status != nil {
			data, err := json.Marshal(e.status)
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(out, "retry: 200\nid: %s.%d\ndata: %s\n\n", e.build, time.Since(began).Milliseconds()-1000*e.behind, data)
			out.(http.Flusher).Flush()
		}
		select {
		case <-changed:
		case <-time.After(2 * time.Second):
		case <-w.ended:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// build is the build of the page that asks: what a real station says by itself.
func build(r *http.Request) string {
	c, err := r.Cookie("build")
	if err != nil {
		return ""
	}
	return c.Value
}

func (w *show) scan(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.scans = append(w.scans, r.FormValue("text"))
	out.Header().Set("Content-Type", "application/json")
	if w.answer != 0 {
		out.WriteHeader(w.answer)
		fmt.Fprintln(out, `{"word":"scan-refused","text":"This is neither a label nor a work order."}`)
		return
	}
	out.WriteHeader(http.StatusNoContent)
}

// refuse sets the code of the answers to scans; 0: they are taken.
func (w *show) refuse(code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = code
}

// once sends one event that is not of now.
func (w *show) once(e event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next = &e
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *show) scanned() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.scans...)
}

// visit opens the page in a language and waits until it shows what is played.
func (w *show) visit(b *tab, query string) {
	b.t.Helper()
	b.setup.Do(func() {
		b.before(`document.addEventListener("DOMContentLoaded", function () {
			var setup = document.getElementById("setup");
			if (setup) document.cookie = "build=" + JSON.parse(setup.textContent).build;
		});`)
	})
	b.visit(w.URL + "/" + query)
	b.await("the page to hear from the station", `document.documentElement.classList.contains("sure")`)
}

// words are a language's sentences.
func words(t *testing.T, language string) map[string]string {
	t.Helper()
	all := map[string]string{}
	files, err := filepath.Glob("../../../station/words/" + language + "/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no words: ", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &all); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
