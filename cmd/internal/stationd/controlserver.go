package stationd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/spool"
	"secretfree/station/board"
)

// listenControl makes the socket, which only its owner may use. The spool's
// lock is held, so a socket that is there is a dead one.
func listenControl(stateDir string) (net.Listener, error) {
	if len(stateDir) > control.MaxStateDir {
		return nil, fmt.Errorf("making the control socket: the path of the state directory has %d bytes; choose one of %d at the most", len(stateDir), control.MaxStateDir)
	}
	path := control.SocketPath(stateDir)
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
		running := control.DaemonStatus{Version: cli.Version(), Stats: d.stats()}
		if err := d.station.Health(); err != nil {
			running.Red = strings.Split(err.Error(), "\n")
		}
		answer(w, running, nil)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Status(), nil) })
	mux.Handle("GET /metrics", d.metrics())
	mux.HandleFunc("GET /entries", func(w http.ResponseWriter, r *http.Request) {
		device, err := board.ParseDeviceID(r.URL.Query().Get("device"))
		seqs := []uint64{}
		if err == nil {
			var found []uint64
			found, err = d.spool.Entries(device)
			seqs = append(seqs, found...)
		}
		answer(w, seqs, err)
	})
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
		waiting, err := control.Sign(d.spool)
		answer(w, waiting, err)
	})
	mux.HandleFunc("POST /slot/reset", d.resetSlot)
	mux.HandleFunc("POST /receipt", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, control.MaxBody))
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
		v = control.Failure{Error: err.Error()}
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

// resetSlot is the control socket's side of Control.ResetSlot.
func (d *Daemon) resetSlot(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	err := d.station.ResetSlot(r.Context(), name)
	if err == nil {
		d.log.Info().Str("slot", name).Msg("the board was reset, by the control socket")
	}
	answer(w, nil, err)
}
