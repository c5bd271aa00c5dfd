package browser_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"secretfree/station"
)

const device = "0123456789abcdef00112233445566aa"

// slot is a slot of a status.
func slot(name, state, advice string, more map[string]any) map[string]any {
	s := map[string]any{
		"name": name, "state": state, "device": "", "reason": "", "advice": advice, "call": "", "confirmed": false,
		"since": "2026-03-02T10:00:00.000Z", "port": "/dev/serial/by-path/pci-0000:00:14.0-usb-0:1.4:1.0-port0",
	}
	for key, value := range more {
		s[key] = value
	}
	return s
}

// deliveries of boards that passed; the longest sentence first.
var deliveries = []station.Delivery{station.Rejected, station.Waiting, station.Confirmed}

// scene is a status with so many slots in a language: each state in turn, the
// failures with the longest of all advices first.
func scene(w map[string]string, slots int) map[string]any {
	longest, reason := "timeout", "timeout"
	for _, r := range station.Reasons() {
		for key := range w { // some reasons have a sentence for each cause, as garbled-firmware
			if own := key == string(r) || strings.HasPrefix(key, string(r)+"-"); own && len([]rune(w[key])) > len([]rune(w[longest])) {
				longest, reason = key, string(r)
			}
		}
	}
	var list []map[string]any
	for i := range slots {
		name := slotName(i)
		switch i % 5 {
		case 0:
			list = append(list, slot(name, "passed", w["passed"], map[string]any{"device": device, "delivery": deliveries[i/5%len(deliveries)]}))
		case 1:
			list = append(list, slot(name, "failed", w[longest], map[string]any{"device": device, "reason": reason}))
		case 2:
			list = append(list, slot(name, "reading", w["reading"], nil))
		case 3:
			list = append(list, slot(name, "empty", w["empty"], nil))
		case 4:
			list = append(list, slot(name, "absent", w["absent"], nil))
		}
	}
	return status(w, list)
}

func status(w map[string]string, slots []map[string]any) map[string]any {
	return map[string]any{
		"station": "line3-a", "slots": slots, "cloud": w["cloud-clear"], "notices": []any{}, "scan": nil, "lot": nil, "recent": []any{},
		"backlog": map[string]any{"pending": 0, "dead": 0, "oldest_seconds": 0, "last_error": ""},
	}
}

// crowded adds all that can be on a page.
func crowded(w map[string]string, s map[string]any) map[string]any {
	s["cloud"] = fmt.Sprintf(w["cloud-many"], 1234)
	s["lot"] = map[string]any{"name": "WO-2026-004711", "planned": 5000, "passed": 1234, "failed": 56, "repeated": 7, "since": "2026-03-02T06:00:00Z"}
	s["scan"] = map[string]any{"text": device, "kind": "label"}
	s["notices"] = []map[string]any{
		{"urgent": true, "word": "dead", "text": fmt.Sprintf(w["dead-many"], 3), "detail": "stationctl spool dead lists what the registry refused, and why", "call": "it"},
		{"urgent": false, "word": "backlog", "text": fmt.Sprintf(w["backlog-many"], 1234, "47 h"), "detail": "Put https://dynamodb.eu-central-1.amazonaws.com: dial tcp: lookup dynamodb.eu-central-1.amazonaws.com: no such host", "call": ""},
	}
	var recent []map[string]any
	for i := range 10 {
		state, reason := "passed", ""
		if i%3 == 1 {
			state, reason = "failed", "timeout"
		}
		recent = append(recent, map[string]any{
			"time": time.Date(2026, 3, 2, 10, i, 0, 0, time.UTC), "slot": slotName(i), "device": device, "state": state, "reason": reason, "delivery": deliveries[i%len(deliveries)],
		})
	}
	recent[4]["device"] = ""
	s["recent"] = recent
	return s
}

// cut finds text that is wider than its place, words that are broken or lie
// over each other, and what is too small for a finger.
const cut = `(function () {
  var wrong = [], page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) wrong.push("the page is " + page.scrollWidth + " px wide on " + page.clientWidth);
  function visible(n) { var r = n.getBoundingClientRect(); return r.width > 0 && r.height > 0 && getComputedStyle(n).visibility === "visible" && !n.closest(".unseen") && getComputedStyle(n).clip === "auto" && (!n.closest("details:not([open])") || n.closest("summary")); }
  Array.prototype.forEach.call(document.querySelectorAll("h1, h2, h3, p, span, b, label, button, a, summary, dd, li"), function (n) {
    if (!visible(n)) return;
    if (n.scrollWidth > n.clientWidth + 1 && getComputedStyle(n).display !== "inline") wrong.push(n.tagName + "." + n.className + " is cut: " + n.textContent);
    var box = n.parentNode.closest(".tile, .card, .notice, .lot, button, .panel > div");
    if (box) {
      var r = n.getBoundingClientRect(), b = box.getBoundingClientRect();
      if (r.left < b.left - 1 || r.right > b.right + 1 || r.top < b.top - 1 || r.bottom > b.bottom + 1) wrong.push(n.tagName + "." + n.className + " sticks out of " + box.className + ": " + n.textContent);
    }
  });
  // Text has to stay within its own box, too.
  Array.prototype.forEach.call(document.querySelectorAll("button, summary, a, label, h1, h2, h3, .verdict span"), function (n) {
    if (!visible(n) || getComputedStyle(n).display === "inline" || n.querySelector(".unseen") || n.firstElementChild && getComputedStyle(n.lastElementChild).clip !== "auto") return;
    var range = document.createRange();
    range.selectNodeContents(n);
    var r = range.getBoundingClientRect(), b = n.getBoundingClientRect();
    if (r.left < b.left - 1 || r.right > b.right + 1) wrong.push(n.tagName + "." + n.className + " is wider than its box: " + n.textContent);
  });
  Array.prototype.forEach.call(document.querySelectorAll(".verdict"), function (n) {
    var range = document.createRange();
    range.selectNodeContents(n.querySelector("span"));
    var r = range.getBoundingClientRect(), b = n.querySelector("svg").getBoundingClientRect();
    if (r.left < b.right - 1 && b.left < r.right - 1 && r.top < b.bottom - 8 && b.top < r.bottom - 8) wrong.push("the shape lies on " + n.textContent);
  });
  // A word is broken if it has more than one line box. Paths, ids and what others say may be.
  Array.prototype.forEach.call(document.querySelectorAll("h1, h2, .verdict span, .advice, .mark span, .text, button span, label, summary, .recent .what, .links a"), function (n) {
    if (!visible(n)) return;
    var walk = document.createTreeWalker(n, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      var text = walk.currentNode, words = /[^\s\/\-\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+/g, m;
      while ((m = words.exec(text.data))) {
        var range = document.createRange();
        range.setStart(text, m.index);
        range.setEnd(text, m.index + m[0].length);
        if (range.getClientRects().length > 1 && m[0].length < 30) wrong.push("broken: " + m[0] + " in " + n.className);
      }
    }
  });
  Array.prototype.forEach.call(document.querySelectorAll("a, button, summary, input"), function (n) {
    if (!visible(n)) return;
    var r = n.getBoundingClientRect();
    if (r.width < 43.5 || r.height < 43.5) wrong.push(n.tagName + " " + n.textContent.trim() + " is " + r.width + " by " + r.height + " px: too small for a finger");
  });
  return wrong;
})()`

// Whatever the language, the number of slots and the screen: nothing is cut, no
// word is broken, all can be touched.
func TestNothingIsCut(t *testing.T) {
	t.Parallel()
	all := []screen{phone, {600, 960, true}, {768, 1024, false}, tablet, {1280, 720, true}, {1920, 1080, false}, {2560, 1440, true}}
	for _, language := range station.Languages() {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			b := open(t, tablet)
			w := words(t, language)
			// One screen of each layout, and all of them for the language whose
			// words are the longest.
			counts, screens := []int{1, 4, 8, 16, 17}, []screen{phone, {768, 1024, false}, tablet, {1920, 1080, false}}
			if language == "de" {
				counts, screens = []int{1, 2, 3, 4, 5, 8, 9, 12, 16, 17, 64}, all
			}
			for _, slots := range counts {
				show := newShow(t, slots, station.Page{Language: language})
				show.play(crowded(w, scene(w, slots)))
				show.visit(b, "")
				for _, s := range screens {
					b.look(s)
					if wrong := eval[[]string](b, cut); len(wrong) > 0 {
						t.Errorf("%d slots, %d by %d: %s", slots, s.width, s.height, strings.Join(wrong, "\n\t"))
					}
					if language == "de" && slots != 5 && slots != 9 && slots != 17 || s == tablet && slots == 4 {
						b.shot(fmt.Sprintf("crowded-%s-%02d-%dx%d", language, slots, s.width, s.height))
					}
				}
				b.visit("about:blank")
				show.end()
			}
		})
	}
}

// On the screens of a line, up to 16 slots fill the screen and nobody has to
// scroll to see them; a phone may.
func TestTilesFillTheScreen(t *testing.T) {
	t.Parallel()
	for _, language := range []string{"en", "de"} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			b := open(t, tablet)
			w := words(t, language)
			for _, slots := range []int{1, 2, 4, 8, 16} {
				show := newShow(t, slots, station.Page{Language: language})
				var list []map[string]any
				for i := range slots {
					list = append(list, slot(slotName(i), "empty", w["empty"], nil))
				}
				list[0] = slot("A", "passed", w["passed"], map[string]any{"device": device, "confirmed": true})
				show.play(status(w, list))
				show.visit(b, "")
				for _, s := range []screen{tablet, {800, 1280, false}, {1024, 768, false}, {1920, 1080, true}, {2560, 1440, false}} {
					b.look(s)
					type edges struct{ Bottom, Share, Word float64 }
					got := eval[edges](b, `(function () {
						var tiles = document.querySelector(".tiles").getBoundingClientRect(), word = document.querySelector(".passed .verdict span");
						return {bottom: tiles.bottom, share: tiles.width * tiles.height / innerWidth / innerHeight, word: parseFloat(getComputedStyle(word).fontSize)};
					})()`)
					if got.Bottom > float64(s.height) || got.Share < 0.5 {
						t.Errorf("%d slots on %d by %d: the tiles end at %.0f px and take %.0f %% of the screen", slots, s.width, s.height, got.Bottom, 100*got.Share)
					}
					// From three metres, letters of 25 mm are easy to read; a
					// tablet has about 6 px in a millimetre.
					if least := map[int]float64{1: 120, 2: 72, 4: 60, 8: 38, 16: 32}[slots]; got.Word < least-0.5 {
						t.Errorf("%d slots on %d by %d: PASS is %.0f px high, want %.0f", slots, s.width, s.height, got.Word, least)
					}
					b.shot(fmt.Sprintf("calm-%s-%02d-%dx%d", language, slots, s.width, s.height))
				}
				b.visit("about:blank")
				show.end()
			}
		})
	}
}

// Up to 16 slots fit where a line has them, with a failure in nearly every row;
// so do four under two messages. Where one is out of sight all the same, a bar
// names it in the language of the page, and leads to it.
func TestFailuresAreInSight(t *testing.T) {
	t.Parallel()
	const bar = `document.getElementById("failing")`
	// The slots whose FAIL is not wholly on the screen.
	const hidden = `Array.prototype.filter.call(document.querySelectorAll(".failed .verdict span"), function (n) {
		var r = n.getBoundingClientRect();
		return r.top < 0 || r.bottom > innerHeight;
	}).map(function (n) { return n.closest(".tile").getAttribute("data-name"); }).join()`
	const named = `Array.prototype.map.call(document.querySelectorAll("#failing a"), function (n) { return n.textContent; }).join()`
	b := open(t, tablet)
	for _, language := range station.Languages() {
		w := words(t, language)
		counts := []int{16}
		if language == "de" { // its words are the longest
			counts = []int{4, 9, 12, 16}
		}
		for _, slots := range counts {
			show := newShow(t, slots, station.Page{Language: language})
			played := scene(w, slots)
			if slots == 4 {
				played = crowded(w, played)
			}
			show.play(played)
			show.visit(b, "")
			for _, s := range []screen{{1024, 768, false}, tablet, {1920, 1080, false}} {
				b.look(s)
				if bottom := eval[float64](b, `document.querySelector(".tiles").getBoundingClientRect().bottom`); bottom > float64(s.height) {
					t.Errorf("%s, %d slots on %d by %d: the tiles end at %.0f px", language, slots, s.width, s.height, bottom)
				}
				b.await("no bar", bar+`.hidden && `+hidden+` === ""`)
			}
			if slots == 16 {
				b.look(phone)
				b.await("the failures that are out of sight", named+` === `+hidden+` && `+named+`.indexOf("G,L") >= 0`)
				if got := b.text(bar + `.querySelector("span").textContent`); got != w["state-failed"] {
					t.Errorf("%s: the bar says %q", language, got)
				}
				if wrong := eval[[]string](b, cut); len(wrong) > 0 {
					t.Errorf("%s: %s", language, strings.Join(wrong, "\n\t"))
				}
				b.shot("failing-" + language)
				b.click(`#failing a[href="#slot-6"]`)
				b.await("the slot to be there, and named no more", hidden+`.indexOf("G") < 0 && `+named+`.indexOf("G") < 0`)
			}
			b.visit("about:blank")
			show.end()
		}
	}
}
