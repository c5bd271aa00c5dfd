package station

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// What the page needs is under an address that changes with its content, may be
// kept for ever, and old or guessed addresses give nothing.
func TestAssets(t *testing.T) {
	h := shown(t, nil, slotState{state: Empty, advice: adviceEmpty}).Handler()
	page := ask(h, http.MethodGet, "/").Body.String()
	for name, kind := range map[string]string{"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"} {
		address := regexp.MustCompile(`"(/assets/[0-9a-f]{16}/` + regexp.QuoteMeta(name) + `)"`).FindStringSubmatch(page)
		if address == nil {
			t.Errorf("the page has no %s", name)
			continue
		}
		got := ask(h, http.MethodGet, address[1])
		hash := sha256.Sum256(got.Body.Bytes())
		if got.Code != 200 || got.Body.Len() == 0 || !strings.Contains(address[1], fmt.Sprintf("%x", hash[:8])) {
			t.Errorf("%s: %d, and the hash of what came is %x", address[1], got.Code, hash[:8])
		}
		if got.Header().Get("Content-Type") != kind || !strings.Contains(got.Header().Get("Cache-Control"), "immutable") || got.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", address[1], got.Header())
		}
		if old := ask(h, http.MethodGet, "/assets/0000000000000000/"+name); old.Code != 404 || strings.Contains(old.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("an old %s: %d %v", name, old.Code, old.Header())
		}
	}
	for _, path := range []string{"/assets/", "/assets/page.js", "/page.js"} {
		if w := ask(h, http.MethodGet, path); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	if files, err := loadAssets(); err != nil {
		t.Error(err)
	} else if _, err := files.address("none.js"); err == nil {
		t.Error("an asset that there is not has an address")
	}
}

// The build that a page compares changes with whatever it is made of, and with
// nothing else.
func TestBuild(t *testing.T) {
	build := func(change func(*Config)) string {
		p, err := shown(t, change, slotState{state: Empty, advice: adviceEmpty}).newPages()
		if err != nil {
			t.Fatal(err)
		}
		return p.build()
	}
	same := build(nil)
	if other := build(nil); other != same {
		t.Errorf("two builds of one program: %s and %s", same, other)
	}
	for name, change := range map[string]func(*Config){
		"language": func(c *Config) { c.Page.Language = "de" }, "sound": func(c *Config) { c.Page.Sound = true }, "contact": func(c *Config) { c.Page.ContactIT = "Ana" },
	} {
		if build(change) == same {
			t.Errorf("another %s is the same build", name)
		}
	}
}

// A language that is chosen is remembered, by a cookie that no other site can
// have sent; one that there is not is not.
func TestChosenLanguage(t *testing.T) {
	h := shown(t, nil, slotState{state: Empty, advice: adviceEmpty}).Handler()
	for query, want := range map[string]string{"": "", "?lang=": "", "?lang=xx": "", "?lang=de": "lang=de; Path=/; Max-Age=31536000; HttpOnly; SameSite=Strict"} {
		w := ask(h, http.MethodGet, "/"+query)
		if got := w.Header().Get("Set-Cookie"); got != want {
			t.Errorf("%q sets %q, want %q", query, got, want)
		}
		if lang := `<html lang="de">`; strings.Contains(w.Body.String(), lang) != (want != "") {
			t.Errorf("%q: %.200s", query, w.Body)
		}
	}
	w := ask(h, http.MethodGet, "/", func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "lang", Value: "zh"}) })
	if !strings.Contains(w.Body.String(), `<html lang="zh">`) || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("with the cookie: %v %.200s", w.Header(), w.Body)
	}
}

// The cover that comes by itself and the script agree on when a page is old.
func TestCoverInTime(t *testing.T) {
	style, err := assetFiles.ReadFile("page.css")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("animation: cover 1ms linear %ds forwards;", int(staleAfter.Seconds())); !strings.Contains(string(style), want) {
		t.Errorf("page.css lacks %q", want)
	}
}
