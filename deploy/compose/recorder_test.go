package compose

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// recorder is a test that says again at the end of its output why it has failed: of a long output, a part may be all that somebody sees.
type recorder struct {
	*testing.T

	mu       sync.Mutex
	failures []string
}

func (r *recorder) note(failure string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, failure)
}

func (r *recorder) Error(args ...any) {
	r.Helper()
	r.note(fmt.Sprint(args...))
	r.T.Error(args...)
}

func (r *recorder) Errorf(format string, args ...any) {
	r.Helper()
	r.note(fmt.Sprintf(format, args...))
	r.T.Errorf(format, args...)
}

func (r *recorder) Fatal(args ...any) {
	r.Helper()
	r.note(fmt.Sprint(args...))
	r.T.Fatal(args...)
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Helper()
	r.note(fmt.Sprintf(format, args...))
	r.T.Fatalf(format, args...)
}

// repeat logs the failures once more.
func (r *recorder) repeat() {
	r.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failures) > 0 {
		r.Logf("what has failed:\n%s", strings.Join(r.failures, "\n"))
	}
}

// Of each container, so many of its last lines are shown, and so much of each.
const (
	shownLines  = 4
	shownLength = 400
)

// ends returns of the logs of all containers the last lines that tell of something unusual.
func ends(logs string) string {
	byContainer := map[string][]string{}
	var containers []string
	for line := range strings.Lines(logs) {
		container, text, ok := strings.Cut(strings.TrimSpace(line), "|")
		if !ok || !unusual(text) {
			continue
		}
		if byContainer[container] == nil {
			containers = append(containers, container)
		}
		byContainer[container] = append(byContainer[container], line[:min(len(line), shownLength)])
	}
	var b strings.Builder
	for _, c := range containers {
		list := byContainer[c]
		for _, line := range list[max(0, len(list)-shownLines):] {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	return b.String()
}

// unusual reports whether a line of the logs says more than that all is well: a warning or an error, or what no logger has written, such as a panic. The receiver's
// figures are told by the test itself.
func unusual(text string) bool {
	for _, usual := range []string{"level=INFO", "level=DEBUG", "[INF]", "[DBG]", "samples/s"} {
		if strings.Contains(text, usual) {
			return false
		}
	}
	return strings.TrimSpace(text) != ""
}
