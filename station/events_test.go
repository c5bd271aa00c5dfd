package station

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
)

// site serves a station's page on lines in memory, with the time of its bubble.
type site struct {
	t     *testing.T
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (b *testStation) site() *site {
	s := &site{t: b.t, conns: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: b.Handler()}
	go server.Serve(s) // ends with Close
	b.t.Cleanup(func() { server.Close() })
	return s
}

func (s *site) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *site) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

func (s *site) Addr() net.Addr { return &net.TCPAddr{} }

// dial is what a browser does first.
func (s *site) dial() net.Conn {
	ours, theirs := net.Pipe()
	select {
	case s.conns <- theirs:
	case <-s.done:
		s.t.Error("dialled a site that is closed")
	}
	return ours
}

// stream is a page that is open.
type stream struct {
	t    *testing.T
	conn net.Conn
	code int
	body *bufio.Reader
}

// events opens /events.
func (s *site) events(query ...string) *stream {
	s.t.Helper()
	return s.eventsFor("", query...)
}

// eventsFor opens it with a line of the header, which ends as such a line does.
func (s *site) eventsFor(header string, query ...string) *stream {
	s.t.Helper()
	conn := s.dial()
	s.t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "GET /events"+strings.Join(query, "")+" HTTP/1.1\r\nHost: localhost\r\n"+header+"\r\n"); err != nil {
		s.t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if answer.StatusCode == http.StatusOK && (answer.Header.Get("Content-Type") != "text/event-stream" || answer.Header.Get("Cache-Control") != "no-store") {
		s.t.Errorf("the headers of a stream are %v", answer.Header)
	}
	return &stream{t: s.t, conn: conn, code: answer.StatusCode, body: bufio.NewReader(answer.Body)}
}

// eventID is the build of the page, and ms.
var eventID = regexp.MustCompile(`^id: [0-9a-f]{16}\.[0-9]+\n$`)

// next returns the next event, and how long it took to come; io.EOF at an
// orderly end.
func (s *stream) next() (Status, time.Duration, error) {
	start := time.Now()
	s.conn.SetReadDeadline(start.Add(time.Minute))
	var lines []string
	for {
		line, err := s.body.ReadString('\n')
		if err != nil {
			return Status{}, time.Since(start), err
		}
		if line != "\n" {
			lines = append(lines, line)
			continue
		}
		var status Status
		if len(lines) != 3 || lines[0] != "retry: 1000\n" || !eventID.MatchString(lines[1]) || !strings.HasPrefix(lines[2], "data: ") {
			s.t.Fatalf("an event of another form: %q", lines)
		}
		if err := json.Unmarshal([]byte(lines[2][len("data: "):]), &status); err != nil {
			s.t.Fatalf("an event: %v in %q", err, lines[2])
		}
		return status, time.Since(start), nil
	}
}

func (s *stream) want(within time.Duration, what string, is func(Status) bool) {
	s.t.Helper()
	status, took, err := s.next()
	if err != nil || took > within || !is(status) {
		s.t.Fatalf("want %s within %v; got %+v after %v, %v", what, within, status, took, err)
	}
}

func slotIs(i int, state State) func(Status) bool {
	return func(s Status) bool { return s.Slots[i].State == state }
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var backlog Backlog
		confirmed := false
		b := newTestStation(t, 2, func(c *Config) {
			c.Backlog = func() Backlog { mu.Lock(); defer mu.Unlock(); return backlog }
			c.Delivery = func(board.DeviceID) Delivery { mu.Lock(); defer mu.Unlock(); return state(confirmed) }
		}).run()
		b.await(0, Empty)
		b.await(1, Empty)
		stream := b.site().events()
		stream.want(0, "the first event at once", slotIs(0, Empty))

		// A change of a slot comes at once.
		b.cables[1].plug(newBoard())
		started := time.Now()
		b.await(1, Reading)
		stream.want(time.Since(started), "a change", slotIs(1, Reading))
		for {
			status, took, err := stream.next()
			if err != nil || took > heartbeat {
				t.Fatalf("after %v: %v", took, err)
			}
			if status.Slots[1].State == Passed {
				if since := time.Since(status.Slots[1].Since); since >= time.Millisecond {
					t.Errorf("a PASS came after %v", since)
				}
				break
			}
		}
		// What is outside the slots is looked for each second.
		for _, change := range []struct {
			what string
			make func()
			is   func(Status) bool
		}{
			{"a backlog", func() { backlog = Backlog{Pending: 1} }, func(s Status) bool { return s.Backlog.Pending == 1 && !s.Slots[1].Confirmed }},
			{"a confirmation", func() { confirmed = true }, func(s Status) bool { return s.Slots[1].Confirmed }},
		} {
			mu.Lock()
			change.make()
			mu.Unlock()
			stream.want(tick, change.what, change.is)
		}
		// Then a heartbeat.
		last := time.Now()
		for range 20 {
			stream.want(heartbeat, "a heartbeat", slotIs(1, Passed))
			if took := time.Since(last); took < 2*tick {
				t.Errorf("a heartbeat after %v", took)
			}
			last = time.Now()
		}
		// It ends with Run, whole.
		b.stop()
		if _, took, err := stream.next(); err != io.EOF || took > 0 {
			t.Errorf("after the end of Run: %v after %v", err, took)
		}
		// And so does one that is opened then, after it has told how things
		// are.
		late := b.site().events()
		late.want(0, "the last state", slotIs(1, Passed))
		if _, took, err := late.next(); err != io.EOF || took > 0 {
			t.Errorf("opened after the end of Run: %v after %v", err, took)
		}
	})
}

// The heartbeat keeps its time even if a look took longer once than the next
// time.
func TestEventsHeartbeatUneven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		b := newTestStation(t, 1, func(c *Config) {
			c.Backlog = func() Backlog {
				if slow.Swap(false) {
					time.Sleep(10 * time.Millisecond)
				}
				return Backlog{}
			}
		}).run()
		b.await(0, Empty)
		slow.Store(true)
		stream := b.site().events()
		stream.want(tick, "the first event", slotIs(0, Empty))
		for range 20 {
			stream.want(heartbeat, "a heartbeat", slotIs(0, Empty))
		}
	})
}

func TestEventsTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, nil).run()
		b.await(0, Empty)
		site := b.site()
		var open []*stream
		for range maxStreams {
			s := site.events()
			s.want(0, "the first event", slotIs(0, Empty))
			open = append(open, s)
		}
		refused := site.events()
		body, err := io.ReadAll(refused.body)
		if refused.code != http.StatusServiceUnavailable || err != nil || !strings.Contains(string(body), "too many pages are open") {
			t.Errorf("one too many: %d %s %v", refused.code, body, err)
		}
		// One that goes away makes room, and the others notice nothing.
		open[7].conn.Close()
		synctest.Wait()
		site.events().want(0, "the first event", slotIs(0, Empty))
		open[8].want(heartbeat, "a heartbeat", slotIs(0, Empty))
	})
}

// A client that does not read is dropped, and its place is free; other clients
// get their events in time.
func TestEventsSlowClient(t *testing.T) {
	for name, reads := range map[string]int{"reads nothing": 0, "reads one event": 1} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 1, nil).run()
			b.await(0, Empty)
			site := b.site()
			slow := site.dial()
			defer slow.Close()
			if _, err := io.WriteString(slow, "GET /events"+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if reads > 0 {
				answer, err := http.ReadResponse(bufio.NewReader(slow), nil)
				if err != nil {
					t.Fatal(err)
				}
				(&stream{t: t, conn: slow, body: bufio.NewReader(answer.Body)}).want(0, "the first event", slotIs(0, Empty))
			}
			quick := site.events()
			quick.want(0, "the first event", slotIs(0, Empty))
			dropped := time.Now().Add(writeLimit + time.Duration(reads)*heartbeat)
			for time.Now().Before(dropped) {
				synctest.Wait()
				if n := len(b.streams); n != 2 {
					t.Fatalf("%d streams %v before the time", n, time.Until(dropped))
				}
				quick.want(heartbeat, "a heartbeat", slotIs(0, Empty))
			}
			synctest.Wait()
			if n := len(b.streams); n != 1 {
				t.Errorf("%d streams, the slow one should be dropped", n)
			}
			slow.SetReadDeadline(time.Now().Add(time.Minute))
			if n, err := io.Copy(io.Discard, slow); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the line of the slow client: %d bytes, %v", n, err)
			}
		})
	}
}

// A client that goes away is let go at once.
func TestEventsClientGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, nil)
		h := b.Handler()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			ask(h, http.MethodGet, "/events", func(r *http.Request) { *r = *r.WithContext(ctx) })
		}()
		time.Sleep(time.Minute)
		if n := len(b.streams); n != 1 {
			t.Errorf("%d streams", n)
		}
		start := time.Now()
		cancel()
		<-done
		if took := time.Since(start); took > 0 || len(b.streams) != 0 {
			t.Errorf("it took %v, and %d streams are left", took, len(b.streams))
		}
	})
}
