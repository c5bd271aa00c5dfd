package browser_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"secretfree/station"
)

// calm is a page with two slots in English, which shows an empty slot and one
// that passed.
func calm(t *testing.T, settings station.Page) (*show, *tab, map[string]string) {
	t.Helper()
	w := words(t, "en")
	s := newShow(t, 2, settings)
	s.play(two(w, "passed", "2026-03-02T10:00:00.000Z"))
	b := open(t, tablet)
	b.before(beeps)
	s.visit(b, "")
	return s, b, w
}

// two is a status in which slot B has the verdict since then.
func two(w map[string]string, verdict, since string) map[string]any {
	return status(w, []map[string]any{
		slot("A", "empty", w["empty"], nil), slot("B", verdict, w["passed"], map[string]any{"device": device, "since": since}),
	})
}

// A sound comes at a change that the page saw, and only if somebody wants it;
// PASS and FAIL differ.
func TestSound(t *testing.T) {
	s, b, w := calm(t, station.Page{})
	b.await("sound to be off", "document.querySelector('#sound').getAttribute('aria-pressed') === 'false'")
	s.play(two(w, "failed", "2026-03-02T10:00:01.000Z"))
	b.is("B", "failed", "")
	if got := b.text("beeps"); got != "" {
		t.Errorf("with the sound off: %s", got)
	}
	b.click("#sound")
	b.await("a sample", "beeps.join() === '880,1320'")
	b.eval("beeps.length = 0")
	s.play(two(w, "passed", "2026-03-02T10:00:02.000Z"))
	b.await("the sound of a pass", "beeps.join() === '880,1320'")
	s.play(two(w, "failed", "2026-03-02T10:00:03.000Z"))
	b.await("the sound of a failure", "beeps.join() === '880,1320,220,220,220'")
	// A second board that fails in the same slot is a second sound; the same
	// verdict again is none.
	s.play(two(w, "failed", "2026-03-02T10:00:04.000Z"))
	b.await("the sound of another failure", "beeps.length === 8")
	s.play(two(w, "failed", "2026-03-02T10:00:04.000Z"))
	// It is remembered, needs a touch after loading, and what was there before
	// makes none.
	s.visit(b, "")
	b.await("the button to ask", "document.querySelector('#sound span').textContent === 'Sound: touch here'")
	b.click("h1")
	b.await("sound", "document.querySelector('#sound span').textContent === 'Sound is on'")
	if got := b.text("beeps"); got != "" {
		t.Errorf("after loading: %s", got)
	}
	b.click("#sound")
	b.await("sound to be off", "document.querySelector('#sound span').textContent === 'Sound is off'")
}

// A page that was asleep shows nothing old: not when it wakes up, and not what
// waited in its line.
func TestSleep(t *testing.T) {
	s, b, w := calm(t, station.Page{Sound: true})
	b.click("h1")
	// The clock jumps, as over a night; there is no event meanwhile.
	b.eval(`window.covers = 0; new MutationObserver(function () { if (document.documentElement.classList.contains("unsure")) window.covers++; }).observe(document.documentElement, {attributes: true});
		var now = Date.now; Date.now = function () { return now() + (window.skew || 0); }; window.skew = 3600000; document.dispatchEvent(new Event("visibilitychange"));`)
	if got := b.text("document.documentElement.className"); !strings.Contains(got, "unsure") {
		t.Errorf("after an hour the page is %q", got)
	}
	b.await("the page to connect again", "document.documentElement.classList.contains('sure')")
	// An event that waited for an hour in the line is not believed.
	b.eval(`window.seen = []; new MutationObserver(function () { seen.push(document.querySelectorAll(".tile.failed").length); }).observe(document.querySelector(".tiles"), {attributes: true, subtree: true})`)
	s.once(event{two(w, "failed", "2026-03-02T11:00:00.000Z"), b.text("JSON.parse(document.getElementById('setup').textContent).build"), 3600})
	b.await("the cover, and what is true now", "window.covers >= 2 && document.documentElement.classList.contains('sure')")
	if got := b.text("Math.max.apply(null, [0].concat(seen))"); got != "0" {
		t.Error("an event of an hour ago was shown")
	}
	if got := b.text("beeps"); got != "" {
		t.Errorf("what nobody saw happen sounds like %s", got)
	}
}

// Whatever keeps the script from running or hearing: the cover comes by itself.
func TestCoverWithoutScript(t *testing.T) {
	t.Parallel()
	w := words(t, "en")
	s := newShow(t, 2, station.Page{})
	s.play(two(w, "passed", "2026-03-02T10:00:00.000Z"))
	b := open(t, tablet)
	b.before(`window.EventSource = undefined;`)
	b.expect("EventSource is not a constructor")
	b.visit(s.URL)
	if got := b.text("getComputedStyle(document.getElementById('lost')).visibility"); got != "hidden" {
		t.Fatalf("at first the cover is %s", got)
	}
	// Its time is a matter of the style: a test need not wait for it.
	b.eval(`document.getAnimations().forEach(function (a) { if (a.animationName === "cover") a.currentTime = 8002; })`)
	if got := b.text("getComputedStyle(document.getElementById('lost')).visibility"); got != "visible" {
		t.Errorf("after 8 s the cover is %s", got)
	}
}

// After an upgrade, or with other slots, the page loads itself anew.
func TestUpgrade(t *testing.T) {
	s, b, w := calm(t, station.Page{})
	b.eval("window.old = true")
	s.once(event{two(w, "passed", "2026-03-02T10:00:00.000Z"), "0123456789abcdef", 0})
	b.await("the page to be another one", "!window.old && document.documentElement.classList.contains('sure')")
	b.eval("window.old = true; sessionStorage.clear()")
	other := two(w, "passed", "2026-03-02T10:00:00.000Z")
	other["slots"] = other["slots"].([]map[string]any)[:1]
	s.once(event{other, b.text("JSON.parse(document.getElementById('setup').textContent).build"), 0})
	b.await("the page to be another one", "!window.old && document.documentElement.classList.contains('sure')")
}

// The language is chosen by a button, holds after loading, and reaches what the
// station says.
func TestLanguages(t *testing.T) {
	t.Parallel()
	f := newFactory(t, "[page]\nlanguage = \"es\"\n")
	f.start()
	b := open(t, tablet)
	b.visit(f.url())
	b.is("A", "absent", words(t, "es")["absent"])
	for _, language := range station.Languages() {
		w := words(t, language)
		b.click("#language")
		b.await("the panel", "!document.getElementById('languages').hidden && document.activeElement.closest('#languages') !== null")
		b.click(`#languages a[lang="` + language + `"]`)
		b.await(language, "document.documentElement.lang === "+fmt.Sprintf("%q", language))
		b.is("A", "absent", w["absent"])
		b.visit(f.url())
		b.is("A", "absent", w["absent"])
		if got := b.text("document.querySelector('.verdict span').textContent"); got != w["state-absent"] {
			t.Errorf("%s: the tile says %s", language, got)
		}
		b.shot("language-" + language)
	}
}

// A scanner types anywhere; shortcuts are single keys; a field takes what is
// typed into it.
func TestScannerAndKeys(t *testing.T) {
	s, b, w := calm(t, station.Page{})
	scanned := func(what string, want ...string) {
		t.Helper()
		b.await("the answer", "!document.getElementById('toast').hidden && document.getElementById('toast').textContent === 'Read: "+want[len(want)-1]+"'")
		if got := s.scanned(); strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%s: %q was sent, want %q", what, got, want)
		}
		b.eval("document.getElementById('toast').textContent = ''")
	}
	pressed := "document.querySelector('#sound').getAttribute('aria-pressed')"
	// All shortcuts are in it, and a blank, and a button has the focus.
	b.run(focus("#sound"))
	b.keys("sfl?s WO-1\r")
	scanned("with a button in focus", "sfl?s WO-1")
	b.await("nothing else to happen", pressed+" === 'false' && document.getElementById('languages').hidden && document.getElementById('helping').hidden && !document.fullscreenElement")
	// In the field.
	b.keys("/")
	b.await("the field to have the focus", "document.activeElement.id === 'scan-text'")
	b.keys("sfl\r")
	scanned("in the field", "sfl?s WO-1", "sfl")
	if got := b.text("document.getElementById('scan-text').value + document.querySelector('#sound').getAttribute('aria-pressed')"); got != "false" {
		t.Errorf("the field and the sound are %q", got)
	}
	b.keys("\x1b") // leaves the field
	b.await("the field to have lost the focus", "document.activeElement.id !== 'scan-text'")
	// Each key alone.
	b.keys("s")
	b.await("the sound", pressed+" === 'true'")
	b.keys("l")
	b.await("the languages", "!document.getElementById('languages').hidden")
	b.keys("\x1b")
	b.await("no panel", "document.getElementById('languages').hidden")
	b.keys("?")
	b.await("the help", "!document.getElementById('helping').hidden")
	b.shot("help")
	b.keys("\x1b")
	b.await("no panel", "document.getElementById('helping').hidden")
	b.keys("f")
	b.await("the full screen", "document.fullscreenElement !== null && document.querySelector('#screen span').textContent === 'Leave full screen'")
	b.click("#screen")
	b.await("no full screen", "document.fullscreenElement === null")
	// A refusal is said.
	s.refuse(422)
	b.expect("422")
	b.keys("???\r")
	b.await("the refusal", "!document.getElementById('toast').hidden && document.querySelector('#toast.bad') !== null")
	b.shot("scan-refused")
	s.refuse(0)
	// A label that waits is shown, and Esc drops it.
	waiting := two(w, "passed", "2026-03-02T10:00:00.000Z")
	waiting["scan"] = map[string]any{"text": device, "kind": "device", "slot": "B"}
	s.play(waiting)
	b.await("the label", "!document.getElementById('waiting').hidden && document.getElementById('waiting').textContent.indexOf('"+spaced(device)+"') > 0")
	const posts = `performance.getEntriesByType("resource").filter(function (e) { return e.name.indexOf("/scan?") > 0; }).length`
	before, sent := len(s.scanned()), eval[int](b, posts)
	b.keys("\x1b")
	dropped := func(by string) {
		t.Helper()
		b.await("what "+by+" sends", fmt.Sprintf("%s > %d", posts, sent))
		sent++
		if got := s.scanned(); len(got) != before+1 || got[before] != "" {
			t.Errorf("%s sends %q", by, got[before:])
		}
		before = len(s.scanned())
	}
	dropped("Esc")
	b.click("#waiting button")
	dropped("the button")
	s.play(two(w, "passed", "2026-03-02T10:00:00.000Z"))
	b.await("the label to be gone", "document.getElementById('waiting').hidden")
}

func spaced(id string) string {
	return regexp.MustCompile("....").ReplaceAllString(id[:len(id)-4], "$0 ") + id[len(id)-4:]
}

// On a tablet and on a phone, wherever the page is scrolled to: a label that
// waits is in sight above everything, with its button, and so is the answer to
// a scan; both are large, and the tiles of a tablet have room beside the label.
func TestScansAreInSight(t *testing.T) {
	for _, language := range station.Languages() {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			w := words(t, language)
			b := open(t, tablet)
			b.before(beeps)
			for _, slots := range []int{4, 16} {
				s := newShow(t, slots, station.Page{Language: language})
				calm := scene(w, slots)
				s.play(calm)
				s.visit(b, "")
				for _, at := range []screen{{1024, 768, false}, {360, 640, true}} {
					b.look(at)
					for _, seat := range []string{"", slotName(1)} {
						labelled := scene(w, slots)
						labelled["scan"] = map[string]any{"text": device, "kind": "device", "slot": seat}
						s.play(labelled)
						want := fmt.Sprintf(w["page-scan-waits"], spaced(device))
						if seat != "" {
							want = fmt.Sprintf(w["page-scan-waits-slot"], seat, spaced(device))
						}
						b.await("the label", fmt.Sprintf("!document.getElementById('waiting').hidden && document.querySelector('#waiting p').textContent === %q", want))
						for _, to := range []string{"0", "document.documentElement.scrollHeight / 2", "document.documentElement.scrollHeight"} {
							b.eval("scrollTo(0, " + to + ")")
							if wrong := eval[[]string](b, fmt.Sprintf(sight, "#waiting")); len(wrong) > 0 {
								t.Errorf("%d slots, %d px wide, scrolled to %s: %s", slots, at.width, to, strings.Join(wrong, "; "))
							}
						}
					}
					if wrong := eval[[]string](b, cut); len(wrong) > 0 {
						t.Errorf("%d slots, %d px wide: %s", slots, at.width, strings.Join(wrong, "\n\t"))
					}
					b.keys(strings.ToUpper(device) + "\r")
					b.await("the answer", fmt.Sprintf("!document.getElementById('toast').hidden && document.querySelector('#toast').textContent === %q",
						fmt.Sprintf(w["page-scan-read"], strings.ToUpper(spaced(device)))))
					if wrong := eval[[]string](b, fmt.Sprintf(sight, "#toast")); len(wrong) > 0 {
						t.Errorf("%d slots, %d px wide: %s", slots, at.width, strings.Join(wrong, "; "))
					}
					b.shot(fmt.Sprintf("label-%s-%02d-%d", language, slots, at.width))
					s.refuse(422)
					b.expect("422")
					b.keys("???\r")
					b.await("the refusal", "!document.getElementById('toast').hidden && document.querySelector('#toast.bad') !== null")
					s.refuse(0)
					if wrong := eval[[]string](b, fmt.Sprintf(sight, "#toast")); len(wrong) > 0 {
						t.Errorf("%d slots, %d px wide: %s", slots, at.width, strings.Join(wrong, "; "))
					}
					b.eval("scrollTo(0, 0)")
					s.play(calm)
					b.await("no label", "document.getElementById('waiting').hidden")
				}
				b.visit("about:blank")
				s.end()
			}
		})
	}
}

// sight finds what hides a part of an element from people: its place, its size,
// or another element.
const sight = `(function () {
  var wrong = [], node = document.querySelector(%q), text = node.querySelector("p") || node;
  [node].concat(Array.prototype.slice.call(node.children)).forEach(function (n) {
    var r = n.getBoundingClientRect();
    if (r.width === 0 || r.top < -1 || r.left < -1 || r.bottom > innerHeight + 1 || r.right > innerWidth + 1) wrong.push(n.tagName + " is at " + [r.left, r.top, r.right, r.bottom].map(Math.round));
    var over = document.elementFromPoint((r.left + r.right) / 2, (r.top + r.bottom) / 2);
    if (getComputedStyle(node).pointerEvents !== "none" && !node.contains(over)) wrong.push(n.tagName + " is under " + (over && over.className));
  });
  if (parseFloat(getComputedStyle(text).fontSize) < 20) wrong.push("its letters are of " + getComputedStyle(text).fontSize);
  if (node.getBoundingClientRect().height > innerHeight / 3) wrong.push("it takes " + node.getBoundingClientRect().height + " px");
  return wrong;
})()`

// Everything that can be used is reached with the keyboard, and shows it.
func TestKeyboard(t *testing.T) {
	s, b, w := calm(t, station.Page{})
	s.play(crowded(w, scene(w, 2)))
	b.await("the messages", "document.querySelectorAll('.notice').length === 2")
	b.eval("document.activeElement.blur()")
	reached := map[string]bool{}
	for range 40 {
		b.keys("\t")
		got := b.text(`(function () { var n = document.activeElement, s = getComputedStyle(n); return (n.id || n.getAttribute("href") || n.textContent.trim()) + "|" + (s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2); })()`)
		name, outlined, _ := strings.Cut(got, "|")
		reached[name] = true
		if outlined != "true" && name != "" && !strings.Contains(name, "\n") {
			t.Errorf("%s has the focus, and does not show it", name)
		}
	}
	for _, name := range []string{"sound", "screen", "language", "help", "For IT", "scan-text", "Send", "Drop this label", "/boards/" + device, "/boards", "/report"} {
		if !reached[name] {
			t.Errorf("%s is not reached; %v are", name, reached)
		}
	}
}

// What people listen to the page with is told the verdicts, and nothing that
// only ticks.
func TestAnnouncements(t *testing.T) {
	t.Parallel()
	s, b, w := calm(t, station.Page{})
	b.eval(`window.told = []; new MutationObserver(function () { told.push(document.getElementById("announce").textContent); }).observe(document.getElementById("announce"), {childList: true, characterData: true, subtree: true})`)
	first := two(w, "passed", "2026-03-02T10:00:00.000Z")
	for i := range 5 { // the age in a message ticks
		first["notices"] = []map[string]any{{"urgent": false, "word": "backlog", "text": fmt.Sprintf("waited for %d s", i), "detail": "", "call": ""}}
		s.play(first)
		b.await("the message", fmt.Sprintf("document.querySelector('.notice .text').textContent === 'waited for %d s'", i))
	}
	b.await("the message to be told", "told.length === 1")
	second := two(w, "failed", "2026-03-02T10:00:01.000Z")
	s.play(second)
	b.await("the verdict to be told", "told.length === 2")
	if got := b.text("told.join('|')"); got != "waited for 0 s|Slot B: FAIL. "+w["passed"] {
		t.Errorf("it told %q", got)
	}
}

// axe finds nothing wrong: in every state and language, light and dark, with
// and without script, covered, and with each panel.
func TestAccessible(t *testing.T) {
	t.Parallel()
	axe := script(t, "SECRETFREE_AXE", "axe-core")
	for _, language := range station.Languages() {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			w := words(t, language)
			s := newShow(t, 5, station.Page{Language: language, ContactIT: "Ana, 4711", ContactQuality: "Luis, 4712"})
			s.play(crowded(w, scene(w, 5)))
			b := open(t, tablet)
			s.visit(b, "")
			for _, dark := range []bool{false, true} {
				if dark && language != "en" {
					break // what is dark has the same colours in all of them
				}
				look := screen{1280, 800, dark}
				b.look(look)
				b.clean(axe, fmt.Sprintf("%s, dark %t", language, dark))
				for _, panel := range []string{"language", "help"} {
					b.click("#" + panel)
					b.clean(axe, fmt.Sprintf("%s, dark %t, %s", language, dark, panel))
					b.shot(fmt.Sprintf("panel-%s-%s-%t", panel, language, dark))
					b.keys("\x1b")
				}
			}
			b.eval("document.querySelector('.notice details').open = true")
			b.clean(axe, language+", a detail")
			b.eval("document.documentElement.className = 'js unsure'")
			b.clean(axe, language+", covered")
			b.visit(s.URL + "/?type=1")
			b.clean(axe, language+", typing")
			b.shot("typing-" + language)
		})
	}
}

// The script parses as ECMAScript 2017, and neither it nor the style uses what
// a browser of 2020 does not know.
func TestConservative(t *testing.T) {
	t.Parallel()
	acorn := script(t, "SECRETFREE_ACORN", "acorn")
	code, err := os.ReadFile("../../../station/page.js")
	if err != nil {
		t.Fatal(err)
	}
	style, err := os.ReadFile("../../../station/page.css")
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, tablet)
	b.eval(acorn)
	parse := func(code string) string {
		return b.text(fmt.Sprintf("(function () { try { acorn.parse(%q, {ecmaVersion: 2017}); return 'good'; } catch (e) { return e.message; } })()", code))
	}
	if got := parse(strings.ToValidUTF8(string(code), "")); got != "good" {
		t.Errorf("page.js: %s", got)
	}
	if got := parse("a?.b"); got == "good" {
		t.Error("the parser takes what is newer: this test looks at nothing")
	}
	newer := regexp.MustCompile(`replaceChildren|replaceAll|\.at\(|structuredClone|hasOwn\(|AbortSignal\.|allSettled|\.any\(|ResizeObserver|\.inert|showModal|matchAll|fromEntries|\.flat\(|\.flatMap|toggleAttribute|randomUUID`)
	if m := newer.FindAllString(string(code), -1); m != nil {
		t.Errorf("page.js uses %q", m)
	}
	newStyle := regexp.MustCompile(`:has\(|:is\(|:where\(|@container|@layer|container-|\binset\b|aspect-ratio|\d(dvh|svh|lvh|cqi|cqw)\b|color-mix|accent-color|:modal|:popover|subgrid|:user-|@property|overflow: clip|translate:|scale:`)
	if m := newStyle.FindAllString(string(regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAll(style, nil)), -1); m != nil {
		t.Errorf("page.css uses %q", m)
	}
}
