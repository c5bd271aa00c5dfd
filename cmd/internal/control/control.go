// Package control is the protocol by which stationctl acts on a station: over
// the control socket while stationd runs, else in the state directory.
package control

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
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// SocketName is the name of the control socket in the state directory. Whoever
// may write there may use it. It speaks HTTP:
//
//	GET  /stats                DaemonStatus
//	GET  /status, /metrics     what the page's address has, for who may not show a token there
//	GET  /entries?device=ID    the numbers of all entries about a device, a JSON list
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
const SocketName = "control.sock"

// MaxStateDir keeps the path of the control socket within the 107 bytes that an
// address of a socket holds.
const MaxStateDir = 107 - len("/"+SocketName)

// SocketPath returns the path of the control socket.
func SocketPath(stateDir string) string { return filepath.Join(stateDir, SocketName) }

// DaemonStatus is what a station that runs says of itself.
type DaemonStatus struct {
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

func Sign(s *spool.Spool) (w Waiting, err error) {
	if err := s.Checkpoint(); err != nil {
		return w, err
	}
	w.Oldest, w.Waits, err = s.Oldest()
	return w, err
}

type Failure struct {
	Error string `json:"error"`
}

// Client is what stationctl does to a station: through its control socket
// while stationd runs, else in its state directory. There it opens the spool
// only for what changes something, and only as the owner of the directory.
type Client struct {
	client   *http.Client // nil: stationd does not run; it has no time limit of its own
	stateDir string
	spool    *spool.Spool
	receipts note.Verifiers
}

const (
	Limit   = 30 * time.Second
	MaxBody = 64 << 20
)

// Open opens the station whose state directory this is. The
// configuration's keys for receipts are those that count while stationd does
// not run.
func Open(stateDir string, receipts note.Verifiers) (*Client, error) {
	path := SocketPath(stateDir)
	probe, err := net.Conn(nil), error(os.ErrNotExist) // where the path is too long, no stationd can run
	if len(stateDir) <= MaxStateDir {
		probe, err = net.Dial("unix", path)
	}
	if err == nil {
		probe.Close()
		return &Client{client: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
		}}}, nil
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("asking stationd: %w", err)
	}
	return &Client{stateDir: stateDir, receipts: receipts}, nil
}

// Online reports whether stationd runs on the state directory.
func (c *Client) Online() bool { return c.client != nil }

// open opens the spool, to change something in it.
func (c *Client) open() (*spool.Spool, error) {
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
	c.spool, err = spool.Open(spool.Config{Dir: c.stateDir, Identity: identity, Sink: NoSink{"this spool was opened to look at it"}})
	return c.spool, err
}

// NoSink is for a spool that delivers nothing, and says why.
type NoSink struct{ Why string }

func (n NoSink) Put(context.Context, board.Sealed) error { return errors.New(n.Why) }

// Stats asks the station that runs; ErrNotRunning if none does.
func (c *Client) Stats(ctx context.Context) (running DaemonStatus, err error) {
	if c.client == nil {
		return running, ErrNotRunning
	}
	return running, c.call(ctx, http.MethodGet, "/stats", nil, &running)
}

// Get asks the station that runs on a state directory for what its control
// socket has under a path; ErrNotRunning if none does.
func Get(ctx context.Context, stateDir, path string) ([]byte, error) {
	c, err := Open(stateDir, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if c.client == nil {
		return nil, ErrNotRunning
	}
	ctx, cancel := context.WithTimeout(ctx, Limit)
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
	said, err := io.ReadAll(io.LimitReader(got.Body, MaxBody))
	if err == nil && got.StatusCode != http.StatusOK {
		err = fmt.Errorf("stationd says: %s", got.Status)
	}
	return said, err
}

// Entries returns the numbers of all entries about a device, in order; see
// spool.Spool.Entries and spool.ListEntries.
func (c *Client) Entries(ctx context.Context, device board.DeviceID) (seqs []uint64, err error) {
	if c.client == nil {
		return spool.ListEntries(c.stateDir, device)
	}
	return seqs, c.call(ctx, http.MethodGet, "/entries?"+url.Values{"device": {device.String()}}.Encode(), nil, &seqs)
}

// List returns all dead letters, the oldest first.
func (c *Client) List(ctx context.Context) (letters []spool.DeadLetter, err error) {
	if c.client == nil {
		return spool.ListDead(c.stateDir)
	}
	return letters, c.call(ctx, http.MethodGet, "/dead", nil, &letters)
}

// Export returns a dead letter with its evidence; spool.ErrNoDeadLetter if
// there is none.
func (c *Client) Export(ctx context.Context, seq uint64) (evidence spool.Evidence, err error) {
	if c.client == nil {
		return spool.ShowDead(c.stateDir, seq)
	}
	return evidence, c.call(ctx, http.MethodGet, fmt.Sprintf("/dead/%d", seq), nil, &evidence)
}

// Requeue has a dead letter delivered once more: at once if stationd runs,
// otherwise when it starts.
func (c *Client) Requeue(ctx context.Context, seq uint64) error {
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
func (c *Client) Acknowledge(ctx context.Context, slot string) error {
	if c.client == nil {
		return ErrNotRunning
	}
	return c.call(ctx, http.MethodPost, "/slot/acknowledge?name="+url.QueryEscape(slot), nil, nil)
}

// Sign has the journal signed as it is, and tells what waits for the registry.
func (c *Client) Sign(ctx context.Context) (waiting Waiting, err error) {
	if c.client == nil {
		s, err := c.open()
		if err != nil {
			return waiting, err
		}
		return Sign(s)
	}
	return waiting, c.call(ctx, http.MethodPost, "/checkpoint", nil, &waiting)
}

// ApplyReceipt is Spool.ApplyReceipt with the keys that the station's
// configuration names.
func (c *Client) ApplyReceipt(ctx context.Context, data []byte) (settled spool.Settled, err error) {
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
func (c *Client) Close() error {
	if c.spool != nil {
		return c.spool.Close()
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, path string, body []byte, into any) error {
	ctx, cancel := context.WithTimeout(ctx, Limit)
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
	said, err := io.ReadAll(io.LimitReader(got.Body, MaxBody))
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
	var failure Failure
	if json.Unmarshal(said, &failure) != nil || failure.Error == "" {
		failure.Error = got.Status
	}
	if got.StatusCode == http.StatusUnprocessableEntity {
		return fmt.Errorf("stationd says: %w%s", spool.ErrReceipt, strings.TrimPrefix(failure.Error, spool.ErrReceipt.Error()))
	}
	return fmt.Errorf("stationd says: %s", failure.Error)
}

// ResetSlot has the station that runs reset the board in a slot; ErrNotRunning
// if none does.
func (c *Client) ResetSlot(ctx context.Context, slot string) error {
	if c.client == nil {
		return ErrNotRunning
	}
	return c.call(ctx, http.MethodPost, "/slot/reset?"+url.Values{"name": {slot}}.Encode(), nil, nil)
}
