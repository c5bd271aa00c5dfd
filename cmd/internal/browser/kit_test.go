// Package browser_test looks at the technician's page with a browser:
// .ci/page.sh fetches what it runs with.
package browser_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// limit is how long anything may take that a test waits for.
const limit = 30 * time.Second

// peer skips a test where what it needs is missing. In CI that is a failure.
func peer(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("there is no %s: run this by .ci/page.sh run", what)
	}
	t.Skipf("there is no %s: run this by .ci/page.sh run", what)
}

// script is the text of a script from npm, whose path the environment has.
func script(t *testing.T, variable, what string) string {
	t.Helper()
	name := os.Getenv(variable)
	if name == "" {
		peer(t, what)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// shared is the browser of all tests: starting one takes longer than most
// tests.
var shared struct {
	once sync.Once
	ctx  context.Context
	stop func()
	err  error
}

func TestMain(m *testing.M) {
	// Most of a test's time it waits for the browser. What the command line
	// says holds all the same.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	code := m.Run()
	if shared.stop != nil {
		shared.stop()
	}
	os.Exit(code)
}

func browser(t *testing.T) context.Context {
	t.Helper()
	path := os.Getenv("SECRETFREE_BROWSER")
	if path == "none" && os.Getenv("CI") != "true" {
		t.Skip("SECRETFREE_BROWSER=none: run this by .ci/page.sh run")
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path != "" {
			break
		}
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		peer(t, "Chromium")
	}
	shared.once.Do(func() { shared.ctx, shared.stop, shared.err = launch(path) })
	if shared.err != nil {
		t.Fatalf("starting %s: %v", path, shared.err)
	}
	return shared.ctx
}

func launch(path string) (context.Context, func(), error) {
	profile, err := os.MkdirTemp("", "secretfree-browser-")
	if err != nil {
		return nil, nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(profile))
	for _, flag := range []string{
		"no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync",
	} {
		options = append(options, chromedp.Flag(flag, true))
	}
	options = append(options, chromedp.Flag("force-color-profile", "srgb"), chromedp.Flag("autoplay-policy", "document-user-activation-required"))
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, end := chromedp.NewContext(allocator)
	stop := func() {
		end()
		endAllocator()
		os.RemoveAll(profile)
	}
	if err := chromedp.Do(ctx); err != nil {
		stop()
		return nil, nil, err
	}
	return ctx, stop, nil
}

// tab is a page of a browser with a profile of its own.
type tab struct {
	t     *testing.T
	ctx   context.Context
	setup sync.Once // of show.visit

	mu     sync.Mutex
	errors []string       // of scripts, of the policy and of the network
	allow  *regexp.Regexp // those that a test expects
}

// screen is what a page is looked at with.
type screen struct {
	width, height int64
	dark          bool
}

var (
	tablet = screen{1280, 800, false}
	phone  = screen{320, 640, false}
)

func open(t *testing.T, s screen) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser(t), chromedp.WithNewBrowserContext())
	b := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, e := range b.errors {
			t.Errorf("the browser complains: %s", e)
		}
	})
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatalf("opening a page: %v", err)
	}
	call(b, log.Enable, cdp.Empty{})
	b.before(holdTimers)
	b.look(s)
	return b
}

// hear takes events as they come.
func (b *tab) hear(event any) {
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		b.complain(text)
	case *runtime.EventConsoleAPICalled:
		b.complain(fmt.Sprintf("%s on the console", e.Type))
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			b.complain(e.Entry.Text + " " + e.Entry.URL)
		}
	}
}

func (b *tab) complain(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.allow == nil || !b.allow.MatchString(text) {
		b.errors = append(b.errors, text)
	}
}

// expect allows complaints.
func (b *tab) expect(pattern string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.allow = regexp.MustCompile(pattern)
}

// within bounds what the browser may take.
func (b *tab) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.ctx, limit)
}

func (b *tab) run(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := b.within()
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatalf("the browser: %v", err)
	}
}

// call gives the browser a command of its protocol.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	ctx, cancel := b.within()
	defer cancel()
	answer, err := chromedp.Call(ctx, command, params)
	if err != nil {
		b.t.Fatalf("the browser: %v", err)
	}
	return answer
}

// eval runs code in the page, waits for its promise, and returns what it is.
func eval[T any](b *tab, code string) T {
	b.t.Helper()
	ctx, cancel := b.within()
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](code, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%.300s: %v", code, err)
	}
	return value
}

func (b *tab) text(code string) string {
	b.t.Helper()
	return eval[string](b, "String("+code+")")
}

// look changes the size and the scheme.
func (b *tab) look(s screen) {
	b.t.Helper()
	scheme := "light"
	if s.dark {
		scheme = "dark"
	}
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: s.width, Height: s.height, DeviceScaleFactor: 1})
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
}

// before has every page of this tab run code before its own.
func (b *tab) before(code string) {
	b.t.Helper()
	call(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: code})
}

func (b *tab) visit(url string) {
	b.t.Helper()
	b.run(chromedp.Navigate(url))
}

// await waits until an expression of the page is true; the page may load itself
// anew meanwhile.
func (b *tab) await(what, condition string) {
	b.t.Helper()
	ctx, cancel := b.within()
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("!!("+condition+")"))
		if ok && err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			b.t.Fatalf("waiting for %s: %v; the page says:\n%s", what, err, b.text("document.body.innerText"))
		}
	}
}

// click presses what a selector finds.
func (b *tab) click(selector string) {
	b.t.Helper()
	b.run(chromedp.Click(chromedp.CSS(selector)))
}

// keys types a text as a scanner does. The time stamps of the keys are 2 ms
// apart and no timer of the page runs between two keys, so a slow machine does
// not split a scan.
func (b *tab) keys(text string) {
	b.t.Helper()
	if len(text) > 1 {
		b.eval("window.typing = true")
		defer b.eval("window.typing = false")
	}
	at := input.TimeSinceEpoch(float64(time.Now().UnixMicro()) / 1e6)
	for _, r := range text {
		b.run(chromedp.KeyEvent(string(r), func(k *input.DispatchKeyEventParams) { k.Timestamp = at }))
		at += 0.002
	}
}

// holdTimers keeps the timers of a page waiting while window.typing is set.
const holdTimers = `(function () {
	var set = window.setTimeout, clear = window.clearTimeout, cleared = {};
	window.setTimeout = function (call, delay) {
		var more = Array.prototype.slice.call(arguments, 2), id = set(function run() {
			if (cleared[id]) return;
			if (window.typing) set(run, 10); else call.apply(window, more);
		}, delay);
		return id;
	};
	window.clearTimeout = function (id) { cleared[id] = true; clear(id); };
})();`

// shot keeps a picture of the page, if somebody wants to look at it.
func (b *tab) shot(name string) {
	b.t.Helper()
	if folder := os.Getenv("SECRETFREE_SCREENSHOTS"); folder != "" {
		b.write(filepath.Join(folder, name+".png"), b.picture())
	}
}

func (b *tab) picture() []byte {
	b.t.Helper()
	ctx, cancel := b.within()
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatalf("taking a picture: %v", err)
	}
	return png
}

func (b *tab) write(name string, content []byte) {
	b.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, content, 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

// clean has axe look at the page.
func (b *tab) clean(axe, what string) {
	b.t.Helper()
	type violation struct {
		ID, Help string
		Nodes    []struct{ HTML, FailureSummary string }
	}
	if !eval[bool](b, "typeof axe !== 'undefined'") {
		eval[chromedp.Void](b, axe)
	}
	found := eval[[]violation](b, `axe.run(document, {resultTypes: ["violations"], preload: false}).then(function (r) { return r.violations; })`)
	for _, v := range found {
		for _, n := range v.Nodes {
			b.t.Errorf("%s: axe: %s: %s: %.400s (%s)", what, v.ID, v.Help, n.HTML, n.FailureSummary)
		}
	}
}

func focus(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Focus(chromedp.CSS(selector))
}

func fill(selector, text string) chromedp.Action[chromedp.Void] {
	return chromedp.SendKeys(chromedp.CSS(selector), text)
}

// eval runs code in the page.
func (b *tab) eval(code string) { eval[chromedp.Void](b, code) }

// see waits until the text of the page, as it is laid out, matches; it needs no
// script of the page.
func (b *tab) see(what string, pattern *regexp.Regexp) {
	b.t.Helper()
	ctx, cancel := b.within()
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		text, err := chromedp.Run(ctx, chromedp.Evaluate[string]("document.body.innerText"))
		if err == nil && pattern.MatchString(text) {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			b.t.Fatalf("waiting for %s (%s): %v; the page says:\n%s", what, pattern, err, text)
		}
	}
}
