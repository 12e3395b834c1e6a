package screen

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/services/millrace/terminal"
)

// watched is a fleet that was looked at for some time: it takes more and more, and its endpoint has been away for a while.
func watched(doc func() *status.Document) *Top {
	top := &Top{Place: "http://localhost:9474", Every: 2 * time.Second}
	for i := range 90 {
		d := doc()
		for j := range d.Members {
			d.Members[j].Services = append(d.Members[j].Services, status.Service{Name: "scraper", Figures: map[string]float64{"samplesPerSecond": float64(100 * i)}})
		}
		for j := range d.Endpoints {
			d.Endpoints[j].SamplesPerSecond, d.Endpoints[j].LagSeconds = float64(80*i), float64((i%40)*(j+1))
		}
		if i > 50 && i < 60 {
			top.Failed(errors.New("connection refused"), now)
			continue
		}
		top.Answer(d)
	}
	return top
}

func text(lines []Line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	return b.String()
}

// TestTopFillsTheScreen compares screens with those that were looked at, and has no line be longer or shorter than the screen is wide, whatever its size.
func TestTopFillsTheScreen(t *testing.T) {
	for name, doc := range map[string]func() *status.Document{"small": small, "large": large} {
		top := watched(doc)
		for _, size := range []Size{{80, 24}, {200, 50}} {
			file := filepath.Join("testdata", fmt.Sprintf("top-%s-%dx%d.txt", name, size.Width, size.Height))
			got := text(top.Lines(size, now))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		}
		for _, size := range []Size{{20, 6}, {30, 10}, {40, 80}, {79, 23}, {119, 35}, {120, 36}, {500, 200}} {
			for section := range sections {
				top.show(section)
				lines := top.Lines(size, now)
				if len(lines) != size.Height {
					t.Errorf("%s in %v: %d lines", names[section], size, len(lines))
				}
				for _, l := range lines {
					if n := utf8.RuneCountInString(l.String()); n != size.Width {
						t.Errorf("%s in %v: %d characters in %q", names[section], size, n, l)
					}
				}
			}
		}
	}
}

func TestTopWithoutAnAnswer(t *testing.T) {
	top := &Top{Place: "http://localhost:9474", Every: 2 * time.Second}
	size := Size{80, 24}
	if got := text(top.Lines(size, now)); !strings.Contains(got, "\nasking\n") {
		t.Errorf("before the first answer:\n%s", got)
	}
	top.Failed(errors.New("asking Millrace at http://localhost:9474: connection refused"), now)
	top.Failed(errors.New("asking Millrace at http://localhost:9474: connection \x1b[2Jrefused; start it"), now.Add(time.Second))
	got := text(top.Lines(size, now.Add(5*time.Second)))
	for _, want := range []string{"! no answer yet, for 5 s, trying every 2 s: asking Millrace", "start it"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not shown:\n%s", want, got)
		}
	}
	top.Answer(small())
	top.Failed(errors.New("connection reset"), now.Add(time.Minute))
	got = text(top.Lines(size, now.Add(63*time.Second)))
	for _, want := range []string{"! no answer for 3 s, trying every 2 s: connection reset", "as of 15:00:00", "prod"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not shown:\n%s", want, got)
		}
	}
	if top.Answer(small()); strings.Contains(text(top.Lines(size, now)), "no answer") {
		t.Error("the failure stays after an answer")
	}
}

func TestTopFollowsKeys(t *testing.T) {
	top := watched(large)
	size := Size{80, 24}
	shows := func(key terminal.Key, want string) {
		t.Helper()
		if top.Press(key) {
			t.Errorf("%q quits", key)
		}
		if got := text(top.Lines(size, now)); !strings.Contains(got, want) {
			t.Errorf("after %q, %q is not shown:\n%s", key, want, got)
		}
	}
	top.Lines(size, now)
	shows(terminal.Tab, "\nENDPOINT ")
	shows('m', "\nMEMBER ")
	shows('o', "\nk8s-writer-007  silent")
	shows(terminal.End, "of 43\n")
	shows(terminal.Home, "\nMEMBER ")
	shows(terminal.Down, "↑↓ 2-")
	shows(terminal.BackTab, "\nENDPOINT ")
	shows('w', "\nSHARES ")
	shows('!', "\n! the stream FRAMES is not whole")
	shows('?', "this page; any key leaves it")
	shows('x', "\n! the stream FRAMES")
	shows('p', "PAUSED")
	if !top.Paused() {
		t.Error("it goes on asking")
	}
	for _, k := range []terminal.Key{'q', terminal.CtrlC} {
		if !top.Press(k) {
			t.Errorf("%q does not quit", k)
		}
	}
}

func TestSpark(t *testing.T) {
	for _, c := range []struct {
		values        []float64
		width, height int
		want          string
	}{
		{nil, 3, 1, "   "},
		{[]float64{0, 1, 4, 8}, 4, 1, "▁▁▄█"},
		{[]float64{1, 2, 4, 8}, 3, 1, "▂▄█"},
		{[]float64{8, 0.001}, 3, 1, " █▁"},
		{[]float64{0, 4, 6, 8}, 4, 2, "  ▄█\n▁███"},
		{[]float64{0, 0}, 2, 1, "▁▁"},
	} {
		if got := strings.Join(spark(c.values, highest(c.values, c.width), c.width, c.height), "\n"); got != c.want {
			t.Errorf("%v: %q, want %q", c.values, got, c.want)
		}
	}
}

func TestColoursAreLeftOut(t *testing.T) {
	l := Line{{"a", Good}, {"b", Bad}, {"c", Normal}}
	if got, want := l.Styled(true), "\x1b[32ma\x1b[0m\x1b[1;31mb\x1b[0mc"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := l.Styled(false), "a\x1b[1mb\x1b[0mc"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
