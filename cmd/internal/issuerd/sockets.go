package issuerd

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/coreos/go-systemd/v22/activation"
)

// The names of sockets that systemd may hand over (FileDescriptorName=), each in the place of the address of that name.
const (
	socketListen  = "listen"
	socketMetrics = "metrics"
)

// sockets are those that systemd opened, by name. None is usual: then the daemon opens its addresses itself.
func sockets() (map[string]net.Listener, error) {
	given, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("taking sockets from systemd: %w", err)
	}
	return pick(given)
}

func pick(given map[string][]net.Listener) (map[string]net.Listener, error) {
	taken := map[string]net.Listener{}
	var wrong error
	for _, name := range slices.Sorted(maps.Keys(given)) {
		switch {
		case name != socketListen && name != socketMetrics:
			wrong = fmt.Errorf("systemd hands over a socket named %q: write FileDescriptorName=%s or =%s into its unit", name, socketListen, socketMetrics)
		case len(given[name]) != 1:
			wrong = fmt.Errorf("systemd hands over %d sockets named %q, want one", len(given[name]), name)
		default:
			taken[name] = given[name][0]
		}
	}
	if wrong == nil {
		return taken, nil
	}
	for _, all := range given {
		for _, l := range all {
			wrong = errors.Join(wrong, l.Close())
		}
	}
	return nil, wrong
}
