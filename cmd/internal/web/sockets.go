package web

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
)

// Sockets are those that systemd opened, by name (FileDescriptorName=), each in
// the place of the address of that name. None is usual: then a daemon opens its
// addresses itself. names are all that the daemon takes; a socket of another
// name, or a second one of a name, is an error, and then all are closed. It
// takes them out of the environment, so a second call finds none.
func Sockets(names ...string) (map[string]net.Listener, error) {
	given, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("taking sockets from systemd: %w", err)
	}
	return pick(given, names)
}

func pick(given map[string][]net.Listener, names []string) (map[string]net.Listener, error) {
	taken := map[string]net.Listener{}
	var wrong error
	for _, name := range slices.Sorted(maps.Keys(given)) {
		switch {
		case !slices.Contains(names, name):
			wrong = fmt.Errorf("systemd hands over a socket named %q: write FileDescriptorName=%s into its unit", name, strings.Join(names, " or ="))
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
