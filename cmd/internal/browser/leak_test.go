package browser_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"

	"secretfree/fixtures"
	"secretfree/station"
)

// leakyBoard prints a private key in place of its version.
func leakyBoard() *fixtures.Board {
	b := newBoard()
	b.Print = map[string]string{"version": "-----BEGIN EC PRIVATE KEY-----\r\nMHcCAQEEIODH\r\n-----END EC PRIVATE KEY-----"}
	return b
}

// tap touches the middle of an element.
func (b *tab) tap(selector string) {
	b.t.Helper()
	type point struct{ X, Y float64 }
	at := eval[point](b, fmt.Sprintf(`(function () {
		var n = document.querySelector(%q);
		n.scrollIntoView({block: "center"});
		var r = n.getBoundingClientRect();
		return {X: r.left + r.width / 2, Y: r.top + r.height / 2};
	})()`, selector))
	call(b, input.DispatchTouchEvent, input.DispatchTouchEventParams{Type: "touchStart", TouchPoints: []*input.TouchPoint{{X: at.X, Y: at.Y}}})
	call(b, input.DispatchTouchEvent, input.DispatchTouchEventParams{Type: "touchEnd", TouchPoints: []*input.TouchPoint{}})
}

// clickReloading clicks in a page that loads itself anew, which may take the
// element away at any moment.
func (b *tab) clickReloading(selector string) {
	b.t.Helper()
	ctx, cancel := b.within()
	defer cancel()
	for {
		err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(selector)))
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			b.t.Fatalf("clicking %s: %v", selector, err)
		}
	}
}

// A leak stays on the page after its board and its port are gone, until
// somebody touches the button of its tile, presses A, or sends the form without
// a script.
func TestAcknowledge(t *testing.T) {
	t.Parallel()
	f := newFactory(t, "")
	f.start()
	const button = `[data-name="A"] .acknowledge button`
	const shown = `document.querySelectorAll('.acknowledge:not([hidden]) button').length`
	sentence := words(t, "en")["private-key-leak"]
	b := open(t, tablet)
	b.visit(f.url())
	b.is("A", "absent", "Plug in the cable")
	if got := b.text(shown); got != "0" {
		t.Errorf("%s buttons without a leak", got)
	}
	for what, acknowledge := range map[string]func(){
		"a click": func() { b.click(button) },
		"a touch": func() {
			call(b, emulation.SetTouchEmulationEnabled, emulation.SetTouchEmulationEnabledParams{Enabled: true})
			b.tap(button)
		},
		"the key A":         func() { b.keys("a") },
		"the key A, Shift":  func() { b.keys("A") },
		"Enter on a button": func() { b.run(focus(button)); b.keys("\r") },
	} {
		unplug := f.plug(0, leakyBoard())
		b.is("A", "failed", sentence)
		unplug()
		b.await("one button", shown+" === 1")
		b.eval("window.sameDocument = true")
		acknowledge()
		b.is("A", "absent", "Plug in the cable")
		b.await(what+" to end the leak", shown+" === 0")
		if got := b.text("window.sameDocument"); got != "true" {
			t.Errorf("%s loaded the page anew", what)
		}
	}
	b.keys("a") // with nothing to acknowledge
	unplug := f.plug(0, leakyBoard())
	b.is("A", "failed", sentence)
	unplug()

	plain := open(t, tablet)
	call(plain, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	plain.visit(f.url() + "?lang=de")
	plain.see("the leak", regexp.MustCompile(regexp.QuoteMeta(words(t, "de")["private-key-leak"][:30])))
	plain.shot("noscript-leak")
	plain.clickReloading(button)
	plain.see("the leak to have ended", regexp.MustCompile(`(?s)A\s+KEIN PORT`))
}

// strangers is a status with so many slots: what is looked for, what is no
// board, and a leak that waits, with all that a tile can have.
func strangers(w map[string]string, slots int) map[string]any {
	shown := []struct {
		state, reason, advice string
		more                  map[string]any
	}{
		{"failed", "private-key-leak", "private-key-leak", map[string]any{"acknowledge": true, "device": device, "call": "quality"}},
		{"reading", "", "searching", map[string]any{"searching": true}},
		{"failed", "no-dialect", "no-dialect-login", map[string]any{"heard": "login", "call": "quality"}},
		{"failed", "wrong-speed", "wrong-speed", map[string]any{"heard": "wrong-speed", "call": "quality"}},
		{"reading", "", "fixture-closed", map[string]any{"searching": true}},
		{"failed", "no-dialect", "no-dialect-noise", map[string]any{"heard": "noise"}},
		{"failed", "garbled", "garbled-firmware", map[string]any{"call": "quality"}},
		{"passed", "", "passed", map[string]any{"device": device, "confirmed": true}},
		{"failed", "no-dialect", "no-dialect-boot-loader", map[string]any{"heard": "boot-loader", "call": "quality"}},
		{"empty", "", "empty", nil},
		{"absent", "", "port-lines", nil},
		{"reading", "", "reading", nil},
		{"failed", "no-dialect", "no-dialect", map[string]any{"heard": "text", "call": "quality"}},
		{"failed", "no-dialect", "no-dialect-silent", map[string]any{"heard": "text"}},
		{"passed", "", "repeat", map[string]any{"device": device}},
		{"empty", "", "empty", nil},
	}
	var list []map[string]any
	for i := range slots {
		c := shown[i%len(shown)]
		list = append(list, slot(slotName(i), c.state, w[c.advice], c.more))
		list[i]["reason"] = c.reason
	}
	return status(w, list)
}

// Nothing of a tile is cut that shows what is no board, or a leak with its
// button; all can be touched, and axe finds nothing. Where the tiles of a line
// fit on the screen, they fit with them too.
func TestStrangersAreShown(t *testing.T) {
	t.Parallel()
	axe := script(t, "SECRETFREE_AXE", "axe-core")
	for _, language := range station.Languages() {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			b := open(t, tablet)
			w := words(t, language)
			for _, slots := range []int{1, 4, 8, 16} {
				show := newShow(t, slots, station.Page{Language: language, ContactQuality: "Luis, 4712"})
				show.play(strangers(w, slots))
				show.visit(b, "")
				for _, s := range []screen{{1920, 1080, false}, {1920, 1080, true}, {1024, 768, false}, {1024, 768, true}, {390, 844, false}, {390, 844, true}} {
					b.look(s)
					if wrong := eval[[]string](b, cut); len(wrong) > 0 && !s.dark {
						t.Errorf("%d slots, %d by %d: %s", slots, s.width, s.height, strings.Join(wrong, "\n\t"))
					}
					if bottom := eval[float64](b, `document.querySelector(".tiles").getBoundingClientRect().bottom`); s.width > 1000 && bottom > float64(s.height) {
						t.Errorf("%d slots on %d by %d: the tiles end at %.0f px", slots, s.width, s.height, bottom)
					}
					if slots == 16 && (language == "en" || language == "de") {
						b.clean(axe, fmt.Sprintf("%d slots, %v", slots, s))
					}
					b.shot(fmt.Sprintf("strangers-%s-%02d-%dx%d-%t", language, slots, s.width, s.height, s.dark))
				}
				b.visit("about:blank")
				show.end()
			}
		})
	}
}
