package e2e_test

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// faceScript has the functions with which pages are looked at.
//
//go:embed testdata/face.js
var faceScript string

// browser is a Chromium that looks at the pages of one process.
type browser struct {
	t      *testing.T
	ctx    context.Context
	origin string

	mu     sync.Mutex
	faults []string // what went wrong, or out, in the page
}

// chromium returns the path of Chromium. Without it the test is skipped, except in CI.
func chromium(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("the pages are looked at with Chromium: %v; .ci/run installs it", err)
		}
		fmt.Fprintln(os.Stderr, "WARNING: the pages are not looked at, since there is no chromium; install Debian's package chromium")
		t.Skip("no chromium")
	}
	return path
}

// startBrowser runs Chromium until the test ends. It looks at the pages of the process at origin, on this machine, and takes them for those of another one: browsers trust
// what comes from localhost, and tell it more.
func startBrowser(t *testing.T, path, origin string) *browser {
	t.Helper()
	const name = "fleet.example"
	origin = strings.Replace(origin, "127.0.0.1", name, 1)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.DisableGPU, chromedp.Flag("host-resolver-rules", "MAP "+name+" 127.0.0.1"))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(ctx)
	t.Cleanup(end)
	b := &browser{t: t, ctx: ctx, origin: origin}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatalf("starting %s: %v", path, err)
	}
	return b
}

// hear notes what a page may not do.
func (b *browser) hear(event any) {
	fault := ""
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
			fault = fmt.Sprintf("the page says on the console: %v", e.Args)
		}
	case *runtime.EventExceptionThrown:
		fault = fmt.Sprintf("the page's script fails: %s", e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			fault = fmt.Sprintf("the browser says: %s (%s)", e.Entry.Text, e.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		if u := e.Request.URL; !strings.HasPrefix(u, b.origin+"/") && !strings.HasPrefix(u, "about:") {
			fault = "the page asks for " + u
		}
	case *page.EventJavascriptDialogOpening:
		fault = "a label's value has run: " + e.Message
	}
	if fault != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.faults = append(b.faults, fault)
	}
}

// clean fails the test where a page did what it may not do.
func (b *browser) clean(what string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		b.t.Errorf("%s: %s", what, f)
	}
	b.faults = nil
}

// do runs steps, each of which has some time.
func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, startTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatalf("the browser: %v", err)
	}
}

// open shows a path of the process.
func (b *browser) open(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.origin + path))
}

// js evaluates an expression in the page; face is the object of the script with the checks.
func js[T any](b *browser, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, startTimeout)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T]("(() => { const face = "+strings.TrimSpace(faceScript)+"; return "+expression+"; })()"))
	if err != nil {
		b.t.Fatalf("evaluating %s: %v", expression, err)
	}
	return v
}

// view is how the page is looked at.
type view struct {
	name, theme   string
	width, height int64
}

var views = []view{
	{"light", "light", 1280, 900}, {"dark", "dark", 1280, 900}, {"phone-light", "light", 390, 844}, {"phone-dark", "dark", 390, 844},
}

// as sets the size of the window and the theme.
func (b *browser) as(v view) {
	b.t.Helper()
	theme := chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: v.theme}, {Name: "prefers-reduced-motion", Value: "reduce"},
		}})
		return err
	})
	b.do(chromedp.EmulateViewport(v.width, v.height), theme)
}

// scripts switches the page's scripts on or off.
func (b *browser) scripts(on bool) {
	b.t.Helper()
	b.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on})
		return err
	}))
}

// shoot takes a picture of the whole page. It is kept where MILLRACE_TEST_SCREENSHOTS names a folder.
func (b *browser) shoot(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, startTimeout)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatalf("taking a picture of %s: %v", name, err)
	}
	dir := os.Getenv("MILLRACE_TEST_SCREENSHOTS")
	if dir == "" {
		dir = b.t.TempDir()
	}
	file := filepath.Join(dir, url.PathEscape(name)+".png")
	if err := os.WriteFile(file, png, 0o644); err != nil {
		b.t.Fatal(err)
	}
	if len(png) < 10_000 {
		b.t.Errorf("the picture %s is empty", file)
	}
}

// waitFor waits until an expression is true in the page. One that fails, as while another page comes, is not.
func (b *browser) waitFor(what, expression string) {
	b.t.Helper()
	eventually(b.t, startTimeout, what, func() error {
		if !js[bool](b, "(() => { try { return Boolean("+expression+"); } catch { return false; } })()") {
			return fmt.Errorf("the page shows %.300q", js[string](b, `document.querySelector("main")?.innerText || ""`))
		}
		return nil
	})
}

// text is all that a reader sees.
func (b *browser) text() string {
	b.t.Helper()
	return js[string](b, "document.body.innerText")
}

// tab presses the tab key until the whole page was gone through, n times at most, and returns the names of what had the focus.
func (b *browser) tab(n int) []string {
	b.t.Helper()
	type focus struct {
		Name string `json:"name"`
		Seen bool   `json:"seen"`
	}
	var names []string
	for range n {
		b.do(chromedp.KeyEvent("\t"))
		f := js[focus](b, "face.focused()")
		if f.Name == "" {
			break // round the end
		}
		if !f.Seen {
			b.t.Errorf("%q has the focus, which cannot be seen", f.Name)
		}
		names = append(names, f.Name)
	}
	return names
}

// refreshed waits until the page has loaded itself again.
func (b *browser) refreshed() {
	b.t.Helper()
	const stamp = `document.querySelector("footer time").dateTime`
	before := js[string](b, stamp)
	eventually(b.t, startTimeout, "the page to load itself again", func() error {
		if now := js[string](b, stamp); now == before {
			return fmt.Errorf("it is still that of %s", now)
		}
		return nil
	})
}
