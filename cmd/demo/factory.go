package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"secretfree/cloud"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/claims"
	"secretfree/cmd/internal/issuerd"
	"secretfree/cmd/internal/issuerd/daemon"
	"secretfree/cmd/internal/issuerd/metrics"
	"secretfree/cmd/internal/stationconf"
	"secretfree/cmd/internal/stationd"
	"secretfree/fixtures"
	"secretfree/station/board"
)

const (
	sku         = "widgiot"
	stationName = "demo"
	// The pace of the simulated boards: near that of real ones.
	baud      = 115200
	boardBoot = 100 * time.Millisecond
	boardSign = 60 * time.Millisecond
)

// factory is a station and an issuer that run, with their folder.
type factory struct {
	dir     string
	lock    *os.File
	station *stationd.Daemon
	issuer  *daemon.Daemon
	roots   *x509.CertPool
	sockets []*socket

	stop  context.CancelCauseFunc
	ended sync.WaitGroup
	errs  chan error
}

func (f *factory) path(name string) string { return filepath.Join(f.dir, name) }

// openFactory starts everything in dir, which may hold what an earlier demo
// left.
func openFactory(ctx context.Context, dir, listen string) (_ *factory, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("finding the folder: %w", err)
	}
	running, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &factory{dir: dir, stop: stop, errs: make(chan error, 2)}
	if f.lock, err = takeFolder(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if err := f.makeFolders(); err != nil {
		return nil, err
	}
	for _, name := range []string{"A", "B"} {
		s, err := openSocket(name, f.path("port-"+strings.ToLower(name)))
		if err != nil {
			return nil, err
		}
		f.sockets = append(f.sockets, s)
	}
	if err := f.startStation(running, listen); err != nil {
		return nil, err
	}
	return f, f.startIssuer(running)
}

// takeFolder makes the folder and holds it until the file is closed: a second
// demo in it would take the first one's ports away.
func takeFolder(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the demo's folder: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the demo's folder: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another demo uses %s: stop it, or give this one another --dir", dir)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return lock, nil
}

func (f *factory) makeFolders() error {
	if err := os.Rename(f.path(registryAway), f.path("registry")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("bringing the registry back: %w", err)
	}
	if err := cloud.InitDir(f.path("registry")); err != nil {
		return err
	}
	if err := claims.InitDir(f.path("claims")); err != nil {
		return err
	}
	if _, err := os.Stat(f.path("ca")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	passphrase := rand.Text()
	if err := os.WriteFile(f.path("ca.pass"), []byte(passphrase+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the CA's passphrase: %w", err)
	}
	return ca.InitLocal(ca.LocalInit{Dir: f.path("ca"), Name: "Demo", Passphrase: []byte(passphrase)})
}

func (f *factory) startStation(ctx context.Context, listen string) error {
	text := fmt.Sprintf("station = %q\nsku = %q\nstate_dir = %q\nlisten = %q\n", stationName, sku, f.path("state"), listen)
	for _, s := range f.sockets {
		text += fmt.Sprintf("\n[[slot]]\nname = %q\nport = %q\ndialect = \"ti-at\"\n", s.name, s.path)
	}
	text += fmt.Sprintf("\n[registry]\nkind = \"dir\"\ndir = %q\n", f.path("registry"))
	if err := os.WriteFile(f.path("stationd.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the station's configuration: %w", err)
	}
	c, err := stationconf.Load(f.path("stationd.toml"))
	if err != nil {
		return err
	}
	log, err := os.OpenFile(f.path("stationd.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the station's log: %w", err)
	}
	logger, err := stationconf.NewLog(log, c)
	if err != nil {
		return errors.Join(err, log.Close())
	}
	if f.station, err = stationd.Open(ctx, c, logger); err != nil {
		return errors.Join(err, log.Close())
	}
	f.ended.Go(func() {
		f.errs <- errors.Join(f.station.Run(ctx), log.Close())
	})
	return nil
}

func (f *factory) startIssuer(ctx context.Context) error {
	key, err := os.ReadFile(f.path("state/station.pub"))
	if err != nil {
		return fmt.Errorf("reading the station's public key: %w", err)
	}
	text := fmt.Sprintf("sku = %q\nlisten = \"127.0.0.1:0\"\nendpoint = \"mqtt.example.invalid\"\n", sku)
	text += fmt.Sprintf("\n[registry]\nkind = \"dir\"\ndir = %q\n", f.path("registry"))
	text += fmt.Sprintf("\n[ca]\nkind = \"local\"\ndir = %q\npassphrase_file = %q\n", f.path("ca"), f.path("ca.pass"))
	text += fmt.Sprintf("\n[issuance]\ndir = %q\n", f.path("claims"))
	text += fmt.Sprintf("\n[[trusted_station]]\nname = %q\nkey = %q\n", board.Origin(sku, stationName), strings.TrimSpace(string(key)))
	if err := os.WriteFile(f.path("issuerd.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the issuer's configuration: %w", err)
	}
	c, err := issuerd.Load(f.path("issuerd.toml"))
	if err != nil {
		return err
	}
	log, err := os.OpenFile(f.path("issuerd.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the issuer's log: %w", err)
	}
	logger, err := issuerd.NewLog(log, c)
	if err != nil {
		return errors.Join(err, log.Close())
	}
	if f.issuer, err = daemon.Open(ctx, c, logger, func(d *daemon.Daemon) http.Handler { return metrics.Handler(d) }); err != nil {
		return errors.Join(err, log.Close())
	}
	f.ended.Go(func() {
		f.errs <- errors.Join(f.issuer.Run(ctx), log.Close())
	})
	text2, err := os.ReadFile(f.path("ca/root.pem"))
	if err != nil {
		return fmt.Errorf("reading the root: %w", err)
	}
	block, _ := pem.Decode(text2)
	if block == nil {
		return errors.New("reading the root: it is not PEM")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("reading the root: %w", err)
	}
	f.roots = x509.NewCertPool()
	f.roots.AddCert(root)
	return nil
}

// close stops the daemons in order and pulls the boards.
func (f *factory) close() error {
	f.stop(errors.New("the demo ends"))
	f.ended.Wait()
	var err error
	for range len(f.errs) {
		err = errors.Join(err, <-f.errs)
	}
	for _, s := range f.sockets {
		err = errors.Join(err, s.close())
	}
	return errors.Join(err, f.lock.Close())
}

// socket is a place for a board, on a port that stays when boards come and go,
// unless it is torn out.
type socket struct {
	name, path string
	port       *fixtures.Port // nil: torn out
	board      *fixtures.Board
	cancel     context.CancelFunc
	served     chan struct{}
}

func openSocket(name, path string) (*socket, error) {
	s := &socket{name: name, path: path}
	return s, s.serve()
}

// serve runs what is in the socket: a board or nothing.
func (s *socket) serve() error {
	if s.port == nil {
		port, err := fixtures.OpenPort(s.path)
		if err != nil {
			return err
		}
		s.port = port
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	port, board := s.port, s.board
	go func() {
		defer close(served)
		if board == nil {
			port.Empty(ctx)
			return
		}
		port.Serve(ctx, board) // the station tells what became of it
	}()
	s.cancel, s.served = cancel, served
	return nil
}

func (s *socket) halt() {
	if s.cancel != nil {
		s.cancel()
		<-s.served
		s.cancel = nil
	}
}

// plug puts a board in, unplug takes it out.
func (s *socket) plug(b *fixtures.Board) error {
	s.halt()
	s.board = b
	return s.serve()
}

func (s *socket) unplug() error { return s.plug(nil) }

// tear takes the board out with its cable: the port vanishes.
func (s *socket) tear() error {
	s.halt()
	s.board = nil
	if s.port == nil {
		return nil
	}
	err := s.port.Close()
	s.port = nil
	return err
}

func (s *socket) close() error { return s.tear() }

func newBoard() *fixtures.Board {
	return &fixtures.Board{Device: fixtures.NewDevice(), Key: fixtures.NewKey(), Baud: baud, Boot: boardBoot, Sign: boardSign}
}

// again is the same board plugged in another time: a simulated board starts
// once.
func again(b *fixtures.Board) *fixtures.Board {
	next := newBoard()
	next.Device, next.Key = b.Device, b.Key
	return next
}
