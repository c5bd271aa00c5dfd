package stationd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"secretfree/spool"
	"secretfree/station/board"
)

// The control socket lies in the state directory, for stationctl: whoever may write there may act. It speaks HTTP:
//
//	GET  /dead                 the dead letters, a JSON list of spool.DeadLetter
//	GET  /dead/{seq}           spool.Evidence
//	POST /dead/{seq}/requeue   204
//
// An error is {"error"} with 404 if there is no such letter, otherwise 500.
const controlName = "control.sock"

func controlPath(stateDir string) string { return filepath.Join(stateDir, controlName) }

// listenControl makes the socket, which only its owner may use. The spool's lock is held, so a socket that is there is
// a dead one.
func listenControl(stateDir string) (net.Listener, error) {
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
	return mux
}

func answer(w http.ResponseWriter, v any, err error) {
	code := http.StatusOK
	switch {
	case errors.Is(err, spool.ErrNoDeadLetter):
		code = http.StatusNotFound
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

// Letters is access to a station's dead letters: through its control socket while stationd runs, else by opening its
// spool.
type Letters struct {
	client *http.Client
	spool  *spool.Spool
}

const (
	controlLimit  = 30 * time.Second
	maxControlDoc = 64 << 20
)

// OpenLetters opens the dead letters of the station whose state directory this is.
func OpenLetters(stateDir string) (*Letters, error) {
	path := controlPath(stateDir)
	probe, err := net.Dial("unix", path)
	if err == nil {
		probe.Close()
		return &Letters{client: &http.Client{Timeout: controlLimit, Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
		}}}, nil
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("asking stationd: %w", err)
	}
	identity, err := spool.OpenIdentity(stateDir)
	if err != nil {
		return nil, err
	}
	s, err := spool.Open(spool.Config{Dir: stateDir, Identity: identity, Sink: noSink{}})
	if err != nil {
		return nil, err
	}
	return &Letters{spool: s}, nil
}

// noSink is for a spool that delivers nothing.
type noSink struct{}

func (noSink) Put(context.Context, board.Sealed) error {
	return errors.New("this spool was opened to look at it")
}

// List returns all dead letters, the oldest first.
func (l *Letters) List(ctx context.Context) (letters []spool.DeadLetter, err error) {
	if l.spool != nil {
		return l.spool.DeadLetters()
	}
	return letters, l.call(ctx, http.MethodGet, "/dead", &letters)
}

// Export returns a dead letter with its evidence; spool.ErrNoDeadLetter if there is none.
func (l *Letters) Export(ctx context.Context, seq uint64) (evidence spool.Evidence, err error) {
	if l.spool != nil {
		return l.spool.Export(seq)
	}
	return evidence, l.call(ctx, http.MethodGet, fmt.Sprintf("/dead/%d", seq), &evidence)
}

// Requeue has a dead letter delivered once more: at once if stationd runs, otherwise when it starts.
func (l *Letters) Requeue(ctx context.Context, seq uint64) error {
	if l.spool != nil {
		return l.spool.Requeue(seq)
	}
	return l.call(ctx, http.MethodPost, fmt.Sprintf("/dead/%d/requeue", seq), nil)
}

// Close gives the spool back.
func (l *Letters) Close() error {
	if l.spool != nil {
		return l.spool.Close()
	}
	l.client.CloseIdleConnections()
	return nil
}

func (l *Letters) call(ctx context.Context, method, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://stationd"+path, nil)
	if err != nil {
		return err
	}
	got, err := l.client.Do(request)
	if err != nil {
		return fmt.Errorf("asking stationd: %w", err)
	}
	defer got.Body.Close()
	body, err := io.ReadAll(io.LimitReader(got.Body, maxControlDoc))
	if err != nil {
		return fmt.Errorf("asking stationd: %w", err)
	}
	switch got.StatusCode {
	case http.StatusNoContent:
		return nil
	case http.StatusOK:
		if err := json.Unmarshal(body, into); err != nil {
			return fmt.Errorf("asking stationd: %w", err)
		}
		return nil
	case http.StatusNotFound:
		return spool.ErrNoDeadLetter
	}
	var said controlError
	if json.Unmarshal(body, &said) != nil || said.Error == "" {
		said.Error = got.Status
	}
	return fmt.Errorf("stationd says: %s", said.Error)
}
