package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"secretfree/cmd/internal/stationconf"
)

// expiresSoon is how long before its end a certificate is told of.
const expiresSoon = 14 * 24 * time.Hour

// checkAccess reads the files of [access] as a station does that starts. What
// is in them goes into no finding.
func (e *exam) checkAccess(context.Context) []Result {
	a := e.station.Access
	if e.configErr != nil || a == (stationconf.Access{}) {
		return nil
	}
	files := slices.DeleteFunc([]struct{ key, name string }{
		{"tls_cert", a.Certificate}, {"tls_key", a.Key}, {"view_token_file", a.ViewToken}, {"technician_token_file", a.TechnicianToken},
	}, func(file struct{ key, name string }) bool { return file.name == "" })
	for _, file := range files {
		f, err := os.Open(file.name)
		if r, hidden := e.hidden("access."+file.key, file.name, err); hidden {
			return []Result{r}
		}
		if err == nil {
			f.Close()
		}
	}
	const start = "The station does not start with this; one that runs goes on with what it read before."
	if _, err := stationconf.LoadToServe(e.Path); err != nil {
		return []Result{fail("access", start+" Do what the line says.", "%v", err)}
	}
	var found []Result
	for _, file := range files {
		if at := e.keptFrom(file.name); at != "" {
			found = append(found, fail("access", fmt.Sprintf("%s Give it to the station's user: chown %s %s; each folder above it needs mode x for that user.", start, e.owner.name, file.name),
				"the station's user %s may not read access.%s, %s, by the owner and mode of %s", e.owner.name, file.key, file.name, at))
		}
	}
	// That it can be loaded was seen above.
	if pair, err := tls.LoadX509KeyPair(a.Certificate, a.Key); a.TLS() && err == nil {
		const renew = "Put a new certificate and its key into these files; a station that runs takes them by itself."
		switch end := pair.Leaf.NotAfter; {
		case end.Before(e.Now()):
			found = append(found, fail("access", renew, "the certificate %s has expired at %s: browsers refuse the page", a.Certificate, stamp(end)))
		case end.Sub(e.Now()) < expiresSoon:
			found = append(found, warn("access", renew, "the certificate %s expires at %s", a.Certificate, stamp(end)))
		}
	}
	if len(found) == 0 {
		found = append(found, good("access", "certificate and tokens of [access] can be used"))
	}
	return found
}

// hidden tells of a file that the station's user may be able to read, and this
// one not.
func (e *exam) hidden(key, name string, err error) (Result, bool) {
	if !errors.Is(err, fs.ErrPermission) || e.sees() {
		return Result{}, false
	}
	return warn("access", e.asOwner(), "%s, %s, may not be read by this user, so [access] was not looked at", key, name), true
}

// keptFrom is the file, or the folder above it, whose owner and mode keep the
// station's user from reading it; empty if none does, or if it is that user who
// examines, and has read it. Access lists are not seen.
func (e *exam) keptFrom(name string) string {
	if !e.owner.ok || e.owner.uid == 0 || e.UID == int(e.owner.uid) {
		return ""
	}
	for at, bit := name, uint32(0o4); ; at, bit = filepath.Dir(at), 0o1 {
		if info, err := os.Stat(at); err != nil || !e.owner.may(info, bit) {
			return at
		}
		if at == filepath.Dir(at) {
			return ""
		}
	}
}

// may goes by owner and mode; bit is 4 to read, 2 to write, 1 to search a
// folder.
func (o owner) may(info os.FileInfo, bit uint32) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || o.uid == 0 {
		return true
	}
	switch {
	case stat.Uid == o.uid:
		return stat.Mode&(bit<<6) != 0
	case slices.Contains(o.gids, stat.Gid):
		return stat.Mode&(bit<<3) != 0
	}
	return stat.Mode&bit != 0
}
