package web

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

func loopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestSocketsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		given map[string]int
		want  string
	}{
		"nameless":   {map[string]int{"issuerd.socket": 1}, `a socket named "issuerd.socket": write FileDescriptorName=listen or =metrics`},
		"two of one": {map[string]int{"listen": 2}, `2 sockets named "listen", want one`},
	} {
		given := map[string][]net.Listener{}
		for of, n := range c.given {
			for range n {
				given[of] = append(given[of], loopback(t))
			}
		}
		if _, err := pick(given, []string{"listen", "metrics"}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		for of, all := range given {
			for _, l := range all {
				if _, err := l.Accept(); err == nil || !strings.Contains(fmt.Sprint(err), "closed") {
					t.Errorf("%s: %s is still open", name, of)
				}
			}
		}
	}
	if taken, err := pick(nil, []string{"listen"}); err != nil || len(taken) != 0 {
		t.Errorf("none: %v, %v", taken, err)
	}
}
