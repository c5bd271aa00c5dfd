package station

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"secretfree/station/auth"
	"secretfree/station/board"
)

//go:embed layout.html
var layoutHTML string

//go:embed boards.html
var boardsHTML string

//go:embed board.html
var boardHTML string

var (
	boardsPage = template.Must(template.Must(template.New("boards").Parse(layoutHTML)).Parse(boardsHTML))
	boardPage  = template.Must(template.Must(template.New("board").Parse(layoutHTML)).Parse(boardHTML))
)

const (
	queryLimit = 8 * time.Second // for a look back, the waiting included; the server's own limit is later
	maxQuery   = 200             // bytes of what is looked for

	largeAnswer = 256 << 10 // bytes
	maxLarge    = 4         // such answers that are written at once
)

// pageData is what every page that looks back shows.
type pageData struct {
	*catalogue
	Station, SKU string
	Here         string // which of the pages it is
	LogOut       bool
	Zone         *time.Location
	Problem      string
}

// pageData also remembers a language that was chosen.
func (s *Station) pageData(w http.ResponseWriter, r *http.Request, here string) pageData {
	words := s.wordsFor(r)
	s.remember(w, r, words)
	return pageData{catalogue: words, Station: s.name, SKU: s.sku, Here: here, LogOut: s.auth.Tokens != nil && roleOf(r) != auth.Nobody, Zone: s.zone}
}

// Lang is for the page's attribute.
func (v pageData) Lang() string { return v.language }

// When is a time as people here read it; the page says which zone that is.
func (v pageData) When(t time.Time) string { return t.In(v.Zone).Format("2006-01-02 15:04:05") }

// Parts are the day and the time of When; a line may end between them.
func (v pageData) Parts(t time.Time) []string { return strings.Fields(v.When(t)) }

// Minute is a time to the minute, for the ends of a period.
func (v pageData) Minute(t time.Time) string { return t.In(v.Zone).Format("2006-01-02 15:04") }

// Clock is the time of a day.
func (v pageData) Clock(t time.Time) string { return t.In(v.Zone).Format("15:04:05") }

// ZoneName is the zone at a time. Some have no name, and one is what the others
// are measured by.
func (v pageData) ZoneName(t time.Time) string {
	t = t.In(v.Zone)
	switch name := t.Format("MST"); {
	case name == "UTC":
		return name
	case strings.HasPrefix(name, "+") || strings.HasPrefix(name, "-"):
		return t.Format("UTC-07:00")
	}
	return t.Format("MST, UTC-07:00")
}

// Now is for the zone of a page that shows no other time.
func (v pageData) Now() time.Time { return time.Now() }

// Why is the short name of a reason.
func (v pageData) Why(r Reason) string {
	if r == "" {
		return v.Say("reason-unknown")
	}
	if !slices.Contains(Reasons(), r) {
		return clean(string(r)) // of a version that has others
	}
	return v.Say("reason-" + messageKey(r))
}

// Of is how far the cloud has a record.
func (v pageData) Of(d Delivery) string { return v.Say(messageKey(d.Key())) }

// Groups cuts an id for people.
func (v pageData) Groups(id fmt.Stringer) []string { return groups(id.String()) }

// Clean is for what others said, or named; it may be a word of their own type.
func (v pageData) Clean(said any) string { return clean(fmt.Sprint(said)) }

// answer is what a look back comes to, until it is written. It shares the
// header with the writer that it is for.
type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(code int)        { a.code = code }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// lookBack waits for its turn and bounds what it does: a look back never takes
// more than one processor, and however many pages are open, no slot waits. The
// answer is written when the next one's turn has come: a client that does not
// read keeps nobody from looking.
func (s *Station) lookBack(w http.ResponseWriter, r *http.Request, f func(ctx context.Context, w http.ResponseWriter) error) {
	ctx, cancel := context.WithTimeout(r.Context(), queryLimit)
	defer cancel()
	select {
	case s.looking <- struct{}{}:
	case <-ctx.Done():
		s.tooBusy(w, r)
		return
	}
	a := &answer{header: w.Header(), code: http.StatusOK}
	err := func() error {
		defer func() { <-s.looking }()
		return f(ctx, a)
	}()
	switch {
	case err == nil:
		s.writeResponse(w, r, a)
	case errors.Is(err, context.DeadlineExceeded):
		s.tooBusy(w, r)
	case r.Context().Err() != nil: // nobody waits for an answer
	case errors.Is(err, ErrNoBoard):
		s.problem(w, r, http.StatusNotFound, "look-no-board")
	case errors.Is(err, ErrNoTranscript):
		s.problem(w, r, http.StatusNotFound, "look-no-transcript")
	case errors.Is(err, ErrUnsigned):
		s.problem(w, r, http.StatusServiceUnavailable, "look-unsigned")
	default:
		s.log.Error().Err(err).Str("path", r.URL.Path).Msg("looking back")
		s.problem(w, r, http.StatusInternalServerError, "look-failed")
	}
}

// writeResponse writes an answer. Of large ones, as a day of a busy line for a
// spreadsheet, only a few are in memory at once.
func (s *Station) writeResponse(w http.ResponseWriter, r *http.Request, a *answer) {
	if a.body.Len() > largeAnswer {
		select {
		case s.giving <- struct{}{}:
			defer func() { <-s.giving }()
		default:
			for name := range a.header {
				if strings.HasPrefix(name, "Content-") || name == "Warning" {
					a.header.Del(name)
				}
			}
			s.tooBusy(w, r)
			return
		}
	}
	w.WriteHeader(a.code)
	w.Write(a.body.Bytes())
}

func (s *Station) tooBusy(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Retry-After", "10")
	s.problem(w, r, http.StatusServiceUnavailable, "look-busy")
}

// problem shows the list of boards with a sentence and no board.
func (s *Station) problem(w http.ResponseWriter, r *http.Request, code int, why messageKey) {
	v := s.pageData(w, r, "boards")
	v.Problem = v.Say(why)
	s.render(w, code, boardsPage, boardsView{pageData: v, Alone: true})
}

// historyRoutes are those of the pages that look back.
func (s *Station) historyRoutes() []route {
	var routes []route
	if s.history != nil {
		routes = append(routes,
			route{"GET /boards", auth.Viewer, s.serveBoards}, route{"GET /boards/{device}", auth.Viewer, s.serveBoard},
			route{"GET /report", auth.Viewer, s.serveReport}, route{"GET /report.csv", auth.Viewer, s.serveReportCSV})
	}
	if s.evidence != nil {
		routes = append(routes, route{"GET /boards/{device}/proof", auth.Viewer, s.serveProof}, route{"GET /transcripts/{name}", auth.Viewer, s.serveTranscript})
	}
	return routes
}

type boardsView struct {
	pageData
	Query  string
	Boards []Verdict
	More   bool
	Alone  bool // there is a problem and nothing else to show
}

func (s *Station) serveBoards(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query().Get("q")
	if len(query) > maxQuery {
		query = ""
	}
	s.lookBack(w, r, func(ctx context.Context, w http.ResponseWriter) error {
		found, more, err := s.history.Find(ctx, query)
		v := boardsView{pageData: s.pageData(w, r, "boards"), Query: clean(query), Boards: found, More: more}
		code := http.StatusOK
		switch {
		case errors.Is(err, ErrUnfindable):
			code, v.Problem = http.StatusBadRequest, v.Say("boards-unfindable")
		case err != nil:
			return err
		case query != "" && len(found) == 1:
			http.Redirect(w, r, "/boards/"+found[0].Device.String(), http.StatusSeeOther)
			return nil
		}
		s.render(w, code, boardsPage, v)
		return nil
	})
}

type fact struct{ Name, Value string }

type boardView struct {
	pageData
	BoardHistory
	Facts    []fact
	Evidence bool
}

func (s *Station) serveBoard(w http.ResponseWriter, r *http.Request) {
	device, err := board.ParseDeviceID(r.PathValue("device"))
	if err != nil {
		s.problem(w, r, http.StatusNotFound, "look-no-board")
		return
	}
	s.lookBack(w, r, func(ctx context.Context, w http.ResponseWriter) error {
		h, err := s.history.Board(ctx, device)
		if err != nil {
			return err
		}
		v := boardView{pageData: s.pageData(w, r, "board"), BoardHistory: h, Evidence: s.evidence != nil}
		if h.Record != nil {
			for _, name := range slices.Sorted(maps.Keys(h.Record.Facts)) {
				v.Facts = append(v.Facts, fact{clean(name), clean(h.Record.Facts[name])})
			}
		}
		s.render(w, http.StatusOK, boardPage, v)
		return nil
	})
}

func (s *Station) serveProof(w http.ResponseWriter, r *http.Request) {
	device, err := board.ParseDeviceID(r.PathValue("device"))
	if err != nil {
		s.problem(w, r, http.StatusNotFound, "look-no-board")
		return
	}
	s.lookBack(w, r, func(ctx context.Context, w http.ResponseWriter) error {
		proof, err := s.evidence.Proof(ctx, device)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", device.String()+".tlog-proof"))
		w.Write(proof)
		return nil
	})
}

func (s *Station) serveTranscript(w http.ResponseWriter, r *http.Request) {
	s.lookBack(w, r, func(_ context.Context, w http.ResponseWriter) error {
		text, err := s.evidence.Transcript(r.PathValue("name"))
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
		w.Write(text)
		return nil
	})
}
