package stationd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cmd/internal/cli"
	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// The control socket lies in the state directory, for stationctl: whoever may
// write there may act. It speaks HTTP:
//
//	GET  /stats                Running
//	GET  /status, /metrics     what the page's address has, for who may not show a token there
//	GET  /dead                 the dead letters, a JSON list of spool.DeadLetter
//	GET  /dead/{seq}           spool.Evidence
//	POST /dead/{seq}/requeue   204
//	POST /slot/acknowledge?name=NAME ends the leak of a private key that a slot shows; 204
//	POST /checkpoint           signs the journal as it is; Waiting
//	POST /slot/reset?name=NAME resets the board in a slot with the sequence of its configuration; 204
//	POST /receipt              applies the receipt in the body, which must be signed by a key of the configuration; spool.Settled
//
// An error is {"error"} with 404 if there is no such letter, 422 if it is no
// receipt for this station, otherwise 500.
const controlName = "control.sock"

func controlPath(stateDir string) string { return filepath.Join(stateDir, controlName) }

// listenControl makes the socket, which only its owner may use. The spool's
// lock is held, so a socket that is there is a dead one.
func listenControl(stateDir string) (net.Listener, error) {
	if len(stateDir) > maxStateDir {
		return nil, fmt.Errorf("making the control socket: the path of the state directory has %d bytes; choose one of %d at the most", len(stateDir), maxStateDir)
	}
	path := controlPath(stateDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("making the control socket: %w", err), listener.Close())
	}
	return listener, nil
}

func (d *Daemon) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		running := Running{Version: cli.Version(), Stats: d.stats()}
		if err := d.station.Health(); err != nil {
			running.Red = strings.Split(err.Error(), "\n")
		}
		answer(w, running, nil)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Status(), nil) })
	mux.Handle("GET /metrics", d.metrics())
	mux.HandleFunc("GET /dead", func(w http.ResponseWriter, _ *http.Request) {
		letters, err := d.spool.DeadLetters()
		answer(w, letters, err)
	})
	mux.HandleFunc("GET /dead/{seq}", func(w http.ResponseWriter, r *http.Request) {
		seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 63)
		if err != nil {
			answer(w, nil, spool.ErrNoDeadLetter)
			return
		}
		evidence, err := d.spool.Export(seq)
		answer(w, evidence, err)
	})
	mux.HandleFunc("POST /dead/{seq}/requeue", func(w http.ResponseWriter, r *http.Request) {
		seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 63)
		if err != nil {
			answer(w, nil, spool.ErrNoDeadLetter)
			return
		}
		if err = d.spool.Requeue(seq); err == nil {
			d.log.Info().Uint64("seq", seq).Msg("a dead letter is delivered once more, by the control socket")
		}
		answer(w, nil, err)
	})
	mux.HandleFunc("POST /slot/acknowledge", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("name")
		err := d.station.Acknowledge(name)
		if err == nil {
			d.log.Info().Str("slot", name).Msg("a leak is acknowledged, by the control socket")
		}
		answer(w, nil, err)
	})
	mux.HandleFunc("POST /checkpoint", func(w http.ResponseWriter, _ *http.Request) {
		waiting, err := sign(d.spool)
		answer(w, waiting, err)
	})
	mux.HandleFunc("POST /slot/reset", d.resetSlot)
	mux.HandleFunc("POST /receipt", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxControlDoc))
		if err != nil {
			answer(w, nil, fmt.Errorf("reading the receipt: %w", err))
			return
		}
		settled, err := d.spool.ApplyReceipt(data, d.receipts)
		if err == nil {
			d.log.Info().Str("by", settled.By).Uint64("first", settled.First).Uint64("last", settled.Last).
				Int("confirmed", settled.Confirmed).Int("refused", settled.Refused).Msg("a receipt was applied, by the control socket")
		}
		answer(w, settled, err)
	})
	return mux
}

// Running is what a station that runs says of itself.
type Running struct {
	Version string      `json:"version"`
	Stats   spool.Stats `json:"stats"`
	Red     []string    `json:"red"` // why its health is red, a line each; none if it is not
}

// ErrNotRunning says that no stationd runs on a state directory.
var ErrNotRunning = errors.New("stationd does not run")

// Waiting says what waits for the registry.
type Waiting struct {
	Oldest uint64 `json:"oldest"` // the entry of the oldest record that waits, if any does
	Waits  bool   `json:"waits"`
}

func sign(s *spool.Spool) (w Waiting, err error) {
	if err := s.Checkpoint(); err != nil {
		return w, err
	}
	w.Oldest, w.Waits, err = s.Oldest()
	return w, err
}

func answer(w http.ResponseWriter, v any, err error) {
	code := http.StatusOK
	switch {
	case errors.Is(err, spool.ErrNoDeadLetter):
		code = http.StatusNotFound
	case errors.Is(err, spool.ErrReceipt):
		code = http.StatusUnprocessableEntity
	case err != nil:
		code = http.StatusInternalServerError
	case v == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if err != nil {
		v = controlError{err.Error()}
	}
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(body, '\n')) // a client that went away is its own problem
}

type controlError struct {
	Error string `json:"error"`
}

// Control is what stationctl does to a station: through its control socket
// while stationd runs, else in its state directory. There it opens the spool
// only for what changes something, and only as the owner of the directory.
type Control struct {
	client   *http.Client // nil: stationd does not run; it has no time limit of its own
	stateDir string
	spool    *spool.Spool
	receipts note.Verifiers
}

const (
	controlLimit  = 30 * time.Second
	maxControlDoc = 64 << 20
)

// OpenControl opens the station whose state directory this is. The
// configuration's keys for receipts are those that count while stationd does
// not run.
func OpenControl(stateDir string, receipts note.Verifiers) (*Control, error) {
	path := controlPath(stateDir)
	probe, err := net.Conn(nil), error(os.ErrNotExist) // where the path is too long, no stationd can run
	if len(stateDir) <= maxStateDir {
		probe, err = net.Dial("unix", path)
	}
	if err == nil {
		probe.Close()
		return &Control{client: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
		}}}, nil
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("asking stationd: %w", err)
	}
	return &Control{stateDir: stateDir, receipts: receipts}, nil
}

// open opens the spool, to change something in it.
func (c *Control) open() (*spool.Spool, error) {
	if c.spool != nil {
		return c.spool, nil
	}
	if err := CheckOwner(c.stateDir, os.Geteuid()); err != nil {
		return nil, err
	}
	identity, err := journal.OpenIdentity(c.stateDir)
	if err != nil {
		return nil, err
	}
	c.spool, err = spool.Open(spool.Config{Dir: c.stateDir, Identity: identity, Sink: noSink{"this spool was opened to look at it"}})
	return c.spool, err
}

// noSink is for a spool that delivers nothing, and says why.
type noSink struct{ why string }

func (n noSink) Put(context.Context, board.Sealed) error { return errors.New(n.why) }

// Stats asks the station that runs; ErrNotRunning if none does.
func (c *Control) Stats(ctx context.Context) (running Running, err error) {
	if c.client == nil {
		return running, ErrNotRunning
	}
	return running, c.call(ctx, http.MethodGet, "/stats", nil, &running)
}

// Look asks the station that runs on a state directory for what its control
// socket has under a path; ErrNotRunning if none does.
func Look(ctx context.Context, stateDir, path string) ([]byte, error) {
	c, err := OpenControl(stateDir, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if c.client == nil {
		return nil, ErrNotRunning
	}
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://stationd"+path, nil)
	if err != nil {
		return nil, err
	}
	got, err := c.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking stationd: %w", err)
	}
	defer got.Body.Close()
	said, err := io.ReadAll(io.LimitReader(got.Body, maxControlDoc))
	if err == nil && got.StatusCode != http.StatusOK {
		err = fmt.Errorf("stationd says: %s", got.Status)
	}
	return said, err
}

// List returns all dead letters, the oldest first.
func (c *Control) List(ctx context.Context) (letters []spool.DeadLetter, err error) {
	if c.client == nil {
		return spool.ListDead(c.stateDir)
	}
	return letters, c.call(ctx, http.MethodGet, "/dead", nil, &letters)
}

// Export returns a dead letter with its evidence; spool.ErrNoDeadLetter if
// there is none.
func (c *Control) Export(ctx context.Context, seq uint64) (evidence spool.Evidence, err error) {
	if c.client == nil {
		return spool.ShowDead(c.stateDir, seq)
	}
	return evidence, c.call(ctx, http.MethodGet, fmt.Sprintf("/dead/%d", seq), nil, &evidence)
}

// Requeue has a dead letter delivered once more: at once if stationd runs,
// otherwise when it starts.
func (c *Control) Requeue(ctx context.Context, seq uint64) error {
	if c.client == nil {
		s, err := c.open()
		if err != nil {
			return err
		}
		return s.Requeue(seq)
	}
	return c.call(ctx, http.MethodPost, fmt.Sprintf("/dead/%d/requeue", seq), nil, nil)
}

// Acknowledge has a station that runs end the leak of a private key that a slot
// shows; ErrNotRunning if none does.
func (c *Control) Acknowledge(ctx context.Context, slot string) error {
	if c.client == nil {
		return ErrNotRunning
	}
	return c.call(ctx, http.MethodPost, "/slot/acknowledge?name="+url.QueryEscape(slot), nil, nil)
}

// Sign has the journal signed as it is, and tells what waits for the registry.
func (c *Control) Sign(ctx context.Context) (waiting Waiting, err error) {
	if c.client == nil {
		s, err := c.open()
		if err != nil {
			return waiting, err
		}
		return sign(s)
	}
	return waiting, c.call(ctx, http.MethodPost, "/checkpoint", nil, &waiting)
}

// ApplyReceipt is Spool.ApplyReceipt with the keys that the station's
// configuration names.
func (c *Control) ApplyReceipt(ctx context.Context, data []byte) (settled spool.Settled, err error) {
	if c.client == nil {
		s, err := c.open()
		if err != nil {
			return settled, err
		}
		return s.ApplyReceipt(data, c.receipts)
	}
	return settled, c.call(ctx, http.MethodPost, "/receipt", data, &settled)
}

// Close gives the spool back.
func (c *Control) Close() error {
	if c.spool != nil {
		return c.spool.Close()
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	return nil
}

func (c *Control) call(ctx context.Context, method, path string, body []byte, into any) error {
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://stationd"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	got, err := c.client.Do(request)
	if err != nil {
		return fmt.Errorf("asking stationd: %w", err)
	}
	defer got.Body.Close()
	said, err := io.ReadAll(io.LimitReader(got.Body, maxControlDoc))
	if err != nil {
		return fmt.Errorf("asking stationd: %w", err)
	}
	switch got.StatusCode {
	case http.StatusNoContent:
		return nil
	case http.StatusOK:
		if err := json.Unmarshal(said, into); err != nil {
			return fmt.Errorf("asking stationd: %w", err)
		}
		return nil
	case http.StatusNotFound:
		return spool.ErrNoDeadLetter
	}
	var failure controlError
	if json.Unmarshal(said, &failure) != nil || failure.Error == "" {
		failure.Error = got.Status
	}
	if got.StatusCode == http.StatusUnprocessableEntity {
		return fmt.Errorf("stationd says: %w%s", spool.ErrReceipt, strings.TrimPrefix(failure.Error, spool.ErrReceipt.Error()))
	}
	return fmt.Errorf("stationd says: %s", failure.Error)
}
