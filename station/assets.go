package station

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"time"
)

//go:embed page.css page.js icon.svg
var assetFiles embed.FS

// assets are the files that a page needs besides itself. The address of each
// has the hash of its content in it: after an upgrade no browser runs with an
// old one, and none asks twice for one that it has.
type assets struct {
	addresses map[string]string // by name, as "page.css"
	files     map[string][]byte // by address
}

func loadAssets() (assets, error) {
	a := assets{map[string]string{}, map[string][]byte{}}
	names, err := fs.Glob(assetFiles, "*")
	if err != nil {
		return assets{}, err
	}
	for _, name := range names {
		content, err := assetFiles.ReadFile(name)
		if err != nil {
			return assets{}, err
		}
		hash := sha256.Sum256(content)
		address := fmt.Sprintf("/assets/%x/%s", hash[:8], name)
		a.addresses[name], a.files[address] = address, content
	}
	return a, nil
}

// address is where a file is; a name that there is not is a mistake in a
// template, which says so.
func (a assets) address(name string) (string, error) {
	address, ok := a.addresses[name]
	if !ok {
		return "", fmt.Errorf("there is no asset %q", name)
	}
	return address, nil
}

// ServeHTTP serves the files under their addresses, to be kept for ever, and
// nothing else.
func (a assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	content, ok := a.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	types := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	w.Header().Set("Content-Type", types[path.Ext(r.URL.Path)])
	w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}
