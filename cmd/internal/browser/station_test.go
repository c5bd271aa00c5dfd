package browser_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"

	"secretfree/fixtures"
)

// tile is an expression: what the page shows of a slot.
func tile(name string) string { return fmt.Sprintf("document.querySelector('[data-name=%q]')", name) }

// is waits until a slot shows a state, and its sentence begins so.
func (b *tab) is(name, state, advice string) {
	b.t.Helper()
	b.await(fmt.Sprintf("slot %s to be %s: %s", name, state, advice), fmt.Sprintf(
		"document.documentElement.classList.contains('sure') && %s.className === 'tile %s' && %[1]s.querySelector('.advice').textContent.indexOf(%[3]q) === 0", tile(name), state, advice))
}

// beeps has the page make its sounds into a list, window.beeps.
const beeps = `window.beeps = [];
(function () {
	function Param() { this.value = 0; }
	Param.prototype.setValueAtTime = Param.prototype.linearRampToValueAtTime = function () {};
	window.AudioContext = function () { this.state = "suspended"; this.currentTime = 0; this.destination = {}; };
	AudioContext.prototype.resume = function () { if (navigator.userActivation && !navigator.userActivation.hasBeenActive) return new Promise(function () {}); this.state = "running"; return Promise.resolve(); };
	AudioContext.prototype.createOscillator = function () {
		return {frequency: {value: 0}, connect: function () {}, start: function () { window.beeps.push(this.frequency.value); }, stop: function () {}};
	};
	AudioContext.prototype.createGain = function () { return {gain: new Param(), connect: function () {}}; };
})();`

// A technician's day: boards that pass, one that fails, one whose label is
// another's, and what the page says of each.
func TestBoards(t *testing.T) {
	t.Parallel()
	f := newFactory(t, "[page]\ncontact_quality = \"Ana, 4712\"\n")
	f.start()
	b := open(t, tablet)
	b.before(beeps)
	b.visit(f.url())
	b.is("A", "absent", "Plug in the cable")
	good := newBoard()
	unplug := f.plug(0, good)
	b.is("A", "passed", "Take the board out")
	b.await("the cloud to confirm", tile("A")+".querySelector('.mark').textContent === 'In the cloud'")
	id := fmt.Sprintf("%x", good.Device)
	if got := b.text(tile("A") + ".querySelector('.device').textContent"); got != id {
		t.Errorf("the tile shows the device %s, want %s", got, id)
	}
	unplug()
	b.is("A", "absent", "Plug in the cable")

	// Its id with another key.
	unplug = f.plug(1, &fixtures.Board{Device: good.Device, Key: fixtures.NewKey()})
	b.is("B", "failed", "Put the board aside and call quality")
	if got := b.text(tile("B") + ".textContent"); !strings.Contains(got, "FAIL") || !strings.Contains(got, "Ana, 4712") {
		t.Errorf("the tile of a conflict says %s", got)
	}
	b.shot("station-conflict")
	unplug()
	b.is("B", "absent", "Plug in the cable")

	// A scanner reads the label of another board, whatever has the focus.
	other := newBoard()
	b.run(focus("#help"))
	b.keys(fmt.Sprintf("%x\r", other.Device))
	b.await("the label to wait", fmt.Sprintf("document.getElementById('waiting').textContent.indexOf('%s') >= 0 && !document.getElementById('waiting').hidden", spaced(other.ID())))
	b.shot("station-label")
	unplug = f.plug(0, newBoard())
	b.is("A", "failed", words(t, "en")["label-mismatch"][:20])
	b.shot("station-label-mismatch")
	unplug()

	// And a work order.
	b.keys("WO-4711;500\r")
	b.await("the work order", "document.getElementById('lot').textContent.indexOf('WO-4711') >= 0")
	b.await("no label to wait", "document.getElementById('waiting').hidden")
	unplug = f.plug(1, newBoard())
	b.await("the board to pass, with which that label has nothing to do", "document.querySelectorAll('.tile.passed').length > 0")
	b.await("the counter", "/1 \\/ 500/.test(document.querySelector('.passed-of b').textContent)")
	unplug()

	if got := b.text("document.querySelectorAll('#recent li').length"); got < "3" {
		t.Errorf("%s last boards", got)
	}
	if got := b.text("document.querySelector('#recent a[href=\"/boards/" + id + "\"]')"); got == "null" {
		t.Error("the last boards have no link to the first one")
	}
	// Sound is off until somebody wants it.
	if got := b.text("window.beeps"); got != "" {
		t.Errorf("it beeped %s", got)
	}
}

// The daemon ends and comes back at the same address: meanwhile the whole page
// is covered, and a PASS that was there is not to be seen. What happened
// meanwhile makes no sound.
func TestRestart(t *testing.T) {
	t.Parallel()
	f := newFactory(t, "[page]\nsound = true\n")
	f.start()
	b := open(t, tablet)
	b.before(beeps)
	b.expect(`ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET`)
	b.visit(f.url())
	b.await("the button to ask for a touch", "document.querySelector('#sound span').textContent === 'Sound: touch here'")
	b.click("h1")
	b.await("sound", "document.querySelector('#sound span').textContent === 'Sound is on'")
	unplug := f.plug(0, newBoard())
	b.is("A", "passed", "Take the board out")
	if got := b.text("window.beeps"); got != "880,1320" {
		t.Errorf("PASS sounds like %s", got)
	}
	f.stop()
	b.await("the cover", "getComputedStyle(document.getElementById('lost')).visibility === 'visible'")
	for what, want := range map[string]string{
		"getComputedStyle(" + tile("A") + ").visibility": "hidden", "getComputedStyle(document.getElementById('lost')).position": "fixed",
		"JSON.stringify([document.getElementById('lost').offsetWidth, document.getElementById('lost').offsetHeight])": "[1280,800]",
		"document.elementFromPoint(200, 300).closest('#lost') !== null":                                               "true",
	} {
		if got := b.text(what); got != want {
			t.Errorf("the cover: %s is %s, want %s", what, got, want)
		}
	}
	b.shot("station-lost")
	// What is scanned now is not lost in silence.
	b.keys("0123456789abcdef\r")
	b.await("the cover to say so", "getComputedStyle(document.getElementById('lost-scan')).display !== 'none'")
	unplug()
	b.eval("window.beeps = []; window.sameDocument = true")
	unplug = f.plug(1, newBoard())
	f.start()
	b.await("the page to be there again", "document.documentElement.classList.contains('sure')")
	b.await("the page to say so", "document.getElementById('toast').textContent === 'Connected again.' && !document.getElementById('toast').hidden")
	b.shot("station-again")
	b.await("the verdict", "document.querySelector('.tile.passed') !== null")
	if got := b.text("window.sameDocument"); got != "true" {
		t.Error("the page was loaded anew, though it is the same build")
	}
	unplug()
}

// Without a script, the page is rendered by the station and loads itself every
// two seconds; a label can be typed all the same.
func TestWithoutScript(t *testing.T) {
	t.Parallel()
	f := newFactory(t, "")
	f.start()
	b := open(t, tablet)
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.visit(f.url() + "?lang=de")
	see := func(what, pattern string) {
		t.Helper()
		b.see(what, regexp.MustCompile(pattern))
	}
	see("no port", `KEIN PORT`)
	unplug := f.plug(0, newBoard())
	see("the pass", `(?s)\bA\b.*GUT.*In der Cloud`)
	b.shot("noscript-pass")
	unplug()
	see("the board to be gone", `(?s)A\s+KEIN PORT`)
	b.visit(f.url() + "?type=1")
	b.run(fill("#scan-text", "WO-4712;20"))
	b.click("#scan button")
	see("the work order", `WO-4712`)
	b.visit(f.url())
	other := newBoard()
	b.visit(f.url() + "?type=1")
	b.run(fill("#scan-text", fmt.Sprintf("%x", other.Device)))
	b.shot("noscript-typing")
	b.click("#scan button")
	see("the label to wait", spaced(other.ID()))
	f.plug(1, newBoard())
	see("the failure", `FEHLER`)
	b.shot("noscript-fail")
}

// Who may only look sees everything and changes nothing: there is no form, and
// what a scanner types goes nowhere.
func TestViewOnly(t *testing.T) {
	t.Parallel()
	f := newFactory(t, "")
	for name, token := range map[string]string{"view": "view-0123456789abcdef0123456789", "technician": "tech-0123456789abcdef0123456789"} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.extra = fmt.Sprintf("[access]\nview_token_file = %q\ntechnician_token_file = %q\n", filepath.Join(f.dir, "view"), filepath.Join(f.dir, "technician"))
	f.start()
	b := open(t, tablet)
	enter := func(token string) {
		t.Helper()
		b.await("the login", "document.getElementById('token') !== null")
		b.run(fill("#token", token))
		b.click("main button")
		b.is("A", "absent", "Plug in the cable")
	}
	b.visit(f.url())
	enter("view-0123456789abcdef0123456789")
	unplug := f.plug(0, newBoard())
	b.is("A", "passed", "Take the board out")
	if got := b.text("document.querySelectorAll('form[action^=\"/scan\"], #scan-text').length"); got != "0" {
		t.Errorf("%s forms for who may only look", got)
	}
	b.keys("WO-4713;20\r")
	b.keys("?")
	b.await("the help", "!document.getElementById('helping').hidden")
	if got := b.text("document.getElementById('helping').textContent"); strings.Contains(got, "Scan") {
		t.Errorf("the help tells of a scanner: %s", got)
	}
	if axe := os.Getenv("SECRETFREE_AXE"); axe != "" {
		b.clean(script(t, "SECRETFREE_AXE", "axe-core"), "view only")
	}
	b.keys("\x1b")
	b.shot("view-only")
	unplug()
	b.click("footer button") // logs out
	enter("tech-0123456789abcdef0123456789")
	if got := b.text("document.getElementById('lot').textContent"); strings.Contains(got, "WO-4713") {
		t.Error("who may only look has begun a work order")
	}
	b.keys("WO-4714;20\r")
	b.await("the work order", "document.getElementById('lot').textContent.indexOf('WO-4714') >= 0")
}
