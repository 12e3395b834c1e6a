package e2e_test

import (
	"fmt"
	"strings"

	"github.com/chromedp/chromedp"
)

// throughForms uses the forms of the pages with the keyboard alone.
func (b *browser) throughForms() {
	b.replaysByKeyboard()
	b.seriesByKeyboard()
	b.rulesByKeyboard()
	b.intoABatch()
}

// press has the tab key go to an element, and another key pressed there; none where it is empty.
func (b *browser) press(selector, key string) {
	b.t.Helper()
	for range 200 {
		b.do(chromedp.KeyEvent("\t"))
		if js[bool](b, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			if key != "" {
				b.do(chromedp.KeyEvent(key))
			}
			return
		}
	}
	b.t.Fatalf("the keyboard does not reach %s", selector)
}

// typed has the tab key go to a field, and a text typed there.
func (b *browser) typed(selector, text string) {
	b.t.Helper()
	b.press(selector, "")
	b.do(chromedp.KeyEvent(text))
}

// replaysByKeyboard asks for a replay with a mistake in it, mends it, looks at what is to be expected, starts it and removes it.
func (b *browser) replaysByKeyboard() {
	b.t.Helper()
	b.open("/replays")
	b.press(`a[href="replays?new=1"]`, "\r")
	b.waitFor("the form", `document.querySelector("#from") !== null`)
	b.typed("#from", "yesterday")
	b.typed("#match", `{__name__!="none"}`)
	b.typed("#name", "by-hand")
	b.press("#dryrun", " ")
	b.press("button[value=hold]", "\r")
	b.waitFor("what is wrong, beside the field", `document.querySelector("#from[aria-invalid=true] ~ .wrong")?.textContent.includes("is no time")`)
	kept := js[[]any](b, `[document.querySelector("#from").value, document.querySelector("#match").value, document.querySelector("#name").value, document.querySelector("#dryrun").checked]`)
	if fmt.Sprint(kept) != `[yesterday {__name__!="none"} by-hand true]` {
		b.t.Errorf("what was filled in has become %v", kept)
	}
	for _, check := range []string{"names", "contrast", "fits"} {
		for _, complaint := range js[[]string](b, "face."+check+"()") {
			b.t.Errorf("replays, refused: %s", complaint)
		}
	}
	b.mu.Lock()
	b.faults = nil // the browser tells of the answer 400 itself
	b.mu.Unlock()
	js[bool](b, `(document.querySelector("#from").select(), document.querySelector("#from").focus(), true)`)
	b.do(chromedp.KeyEvent("-1h\r"))
	b.waitFor("what is to be expected", `document.querySelector("#confirm")?.textContent.includes("Count what would be sent?")`)
	b.shoot("replays-confirm")
	b.press("button[value=start]", "\r")
	b.waitFor("its end", `document.body.innerText.includes("100 %") && document.body.innerText.includes("found")`)
	b.shoot("replays-done")
	b.press(`button[aria-label="Remove by-hand"]`, "\r")
	b.waitFor("that it is gone", `document.body.innerText.includes("There are none")`)
	b.clean("replays")
}

// seriesByKeyboard counts series, and those of one metric.
func (b *browser) seriesByKeyboard() {
	b.t.Helper()
	b.open("/cardinality")
	b.press("#ask button", "\r")
	b.waitFor("what was counted", `document.querySelector("button[form=drill]") !== null`)
	b.shoot("cardinality-counted")
	for _, check := range []string{"names", "contrast", "fits"} {
		for _, complaint := range js[[]string](b, "face."+check+"()") {
			b.t.Errorf("cardinality, counted: %s", complaint)
		}
	}
	b.press(`button[form=drill][value=shown]`, "\r")
	b.waitFor("one metric", `document.querySelector(".of")?.textContent.includes("shown") && document.querySelector("#labels") !== null`)
	if text := b.text(); !strings.Contains(text, "team") {
		b.t.Errorf("the labels of the metric are not shown:\n%s", text)
	}
	b.clean("cardinality")
}

// rulesByKeyboard tries a rule on a hostile label.
func (b *browser) rulesByKeyboard() {
	b.t.Helper()
	b.open("/relabel")
	b.typed("#rules", "- {source_labels: [a], target_label: b}")
	js[string](b, `document.querySelector("#labels").value = ""`)
	b.typed("#labels", fmt.Sprintf("up{a=%q}", hostileValue))
	b.press("button[value=try]", "\r")
	b.waitFor("what came of it", `document.querySelector("#came") !== null`)
	if text := b.text(); !strings.Contains(text, fmt.Sprintf("b=%q", hostileValue)) {
		b.t.Errorf("the new label is not shown:\n%s", text)
	}
	b.shoot("relabel-tried")
	b.clean("relabel")
}

// intoABatch opens a rejected batch from the page of streams.
func (b *browser) intoABatch() {
	b.t.Helper()
	b.open("/streams")
	b.press(`a[href="rejected?endpoint=refusing"]`, "\r")
	b.waitFor("the batches", `document.querySelector('main tbody a[href*="message="]') !== null`)
	b.press(`main tbody a[href*="message="]`, "\r")
	b.waitFor("a batch", `document.querySelector("h1").textContent.includes("Rejected batch") && document.querySelector("#samples") !== null`)
	if text := b.text(); !strings.Contains(text, "out of order "+hostileValue) {
		b.t.Errorf("the endpoint's answer is not shown:\n%s", text)
	}
	b.shoot("rejected-batch")
	b.clean("rejected")
}
