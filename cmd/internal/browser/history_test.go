package browser_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"secretfree/station"
	"secretfree/station/auth"
	"secretfree/station/board"
	"secretfree/uart"
)

// past is what the pages show that look back: a board that says long things of
// itself, and a shift.
type past struct{}

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func boardID(n byte) board.DeviceID { return board.DeviceID{0x4d, 0x1f, 0x8e, 15: n} }

func (past) verdicts() []station.Verdict {
	list := []station.Verdict{{Time: noon, Slot: "A", State: station.Passed, Device: boardID(1), Delivery: station.Confirmed}, {Time: noon, Slot: "A", State: station.Passed, Repeat: true, Device: boardID(1)}}
	for i, reason := range station.Reasons() {
		list = append(list, station.Verdict{Time: noon.Add(time.Duration(i) * time.Hour / 4), Slot: "A slot with a rather long name 01", State: station.Failed, Reason: reason, Device: boardID(byte(i))})
	}
	return list
}

func (p past) Find(_ context.Context, text string) ([]station.Verdict, bool, error) {
	switch text {
	case "nothing":
		return nil, false, nil
	case "nonsense":
		return nil, false, station.ErrUnfindable
	}
	return p.verdicts(), true, nil
}

func (p past) Board(_ context.Context, d board.DeviceID) (station.BoardHistory, error) {
	if d != boardID(1) {
		return station.BoardHistory{}, station.ErrNoBoard
	}
	return station.BoardHistory{Device: d, Enrolled: noon, Delivery: station.Rejected, Refused: "device-conflict: the registry knows 4d1f8e0000000000000000000000000000000000000000000000", Slot: "A", Verdicts: p.verdicts(), Older: 3,
		Transcripts: []station.TranscriptName{{Name: "20261129T120000.000000000Z-A-passed.uart", Time: noon, Slot: "A", Passed: true}}}, nil
}

func (p past) Between(context.Context, time.Time, time.Time) ([]station.Verdict, error) {
	return p.verdicts(), nil
}

func (p past) Recent(context.Context, int) ([]station.Verdict, error) { return p.verdicts()[:2], nil }

func (past) Count(context.Context) (station.Counts, error) { return station.Counts{}, nil }

func (past) CountLot(context.Context, string, time.Time) (station.Counts, error) {
	return station.Counts{}, nil
}

func (past) Proof(context.Context, board.DeviceID) ([]byte, error) { return nil, station.ErrUnsigned }
func (past) Transcript(string) ([]byte, error)                     { return nil, station.ErrNoTranscript }

// newPast serves them, to who shows a token.
func newPast(t *testing.T) *httptest.Server {
	t.Helper()
	s, err := station.New(station.Config{
		SKU: "widgiot", Station: "line3-a", Journal: nothing{}, History: past{}, Evidence: past{},
		Backlog: func() station.Backlog { return station.Backlog{} }, Delivery: func(board.DeviceID) station.Delivery { return station.Waiting },
		Access: auth.Access{Tokens: func() auth.Tokens {
			return auth.Tokens{View: "view-token-0123456789", Technician: "tech-token-0123456789"}
		}, Secret: make([]byte, 32)},
		Slots: []station.SlotConfig{{Name: "A", Port: "/dev/null", Dialect: uart.TIAT{}, Open: func(ctx context.Context) (uart.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

// Somebody logs in by the form, in a language, and out again; what comes back
// is where they wanted to go.
func TestLogIn(t *testing.T) {
	t.Parallel()
	axe := script(t, "SECRETFREE_AXE", "axe-core")
	server := newPast(t)
	b := open(t, phone)
	b.expect("401")
	b.visit(server.URL + "/report?lang=de&day=2026-11-29")
	b.clean(axe, "the form")
	b.run(fill("#token", "guess-token-012345678"), chromedp.Click(chromedp.CSS("button")))
	b.await("the refusal", `document.querySelector(".problem") !== null && document.documentElement.lang === "de"`)
	b.clean(axe, "the refusal")
	b.run(fill("#token", "view-token-0123456789"), chromedp.Click(chromedp.CSS("button")))
	b.await("the report", `location.pathname === "/report" && document.documentElement.lang === "de"`)
	if cookies := b.text("document.cookie"); cookies != "" {
		t.Errorf("a script can read %q", cookies)
	}
	b.run(chromedp.Click(chromedp.CSS("form.out button")))
	b.await("the form again", `location.pathname === "/login"`)
	b.visit(server.URL + "/boards")
	b.await("the form instead of the boards", `location.pathname === "/login"`)
}

// The pages that look back suit everybody, in every language, in light and
// dark, on a phone and on a tablet.
func TestLookingBackSuitsAll(t *testing.T) {
	t.Parallel()
	axe := script(t, "SECRETFREE_AXE", "axe-core")
	server := newPast(t)
	b := open(t, tablet)
	b.expect("40[014]")
	b.visit(server.URL + "/login")
	b.run(fill("#token", "tech-token-0123456789"), chromedp.Click(chromedp.CSS("button")))
	b.await("the page", `location.pathname === "/"`)
	look := func(s screen, language string, paths ...string) {
		t.Helper()
		b.look(s)
		for i, path := range paths {
			b.visit(server.URL + path + "lang=" + language)
			what := fmt.Sprintf("%s in %s at %d, dark %v", path, language, s.width, s.dark)
			if wide := eval[float64](b, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); wide > 0 {
				t.Errorf("%s is %v pixels too wide", what, wide)
			}
			b.clean(axe, what)
			if i < 3 {
				b.shot(fmt.Sprintf("back-%d-%s-%d-%v", i, language, s.width, s.dark))
			}
		}
	}
	full := []string{"/boards/" + boardID(1).String() + "?", "/report?day=2026-11-29&", "/boards?"}
	problems := []string{"/boards?q=nothing&", "/boards?q=nonsense&", "/boards/" + boardID(9).String() + "?", "/report?day=nonsense&"}
	look(tablet, station.English, append(full, problems...)...)
	for _, language := range station.Languages() {
		look(screen{320, 640, language == station.English}, language, full...)
	}
}
