package receiver

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/bench/numbered"
)

// series is what is known of one series.
type series struct {
	// text is the label set as PromQL writes it.
	text string
	// target is nil if the series has no target label.
	target *target
	// report says that the series is about a scrape (up, scrape_…) and not of its body.
	report bool
	// numbered says that code is valid.
	numbered bool
	code     numbered.Code

	any    bool
	newest int64
	seen   numbers
	past   history
}

// checkLabels checks that labels are what the remote_write specification asks for.
func checkLabels(labels []label) error {
	named := false
	for i, l := range labels {
		switch {
		case l.name == "" || !utf8.ValidString(l.name):
			return fmt.Errorf("label name %q is empty or not UTF-8", l.name)
		case l.value == "" || !utf8.ValidString(l.value):
			return fmt.Errorf("value %q of label %q is empty or not UTF-8", l.value, l.name)
		case i > 0 && labels[i-1].name >= l.name:
			return fmt.Errorf("label %q follows %q: labels are not sorted, or repeated", l.name, labels[i-1].name)
		}
		named = named || l.name == "__name__"
	}
	if !named {
		return errors.New("series has no __name__ label")
	}
	return nil
}

// text writes labels as PromQL does.
func text(labels []label) string {
	var name string
	var b strings.Builder
	for _, l := range labels {
		if l.name == "__name__" {
			name = l.value
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.name + "=" + strconv.Quote(l.value))
	}
	return name + "{" + b.String() + "}"
}

func lookup(labels []label, name string) string {
	for _, l := range labels {
		if l.name == name {
			return l.value
		}
	}
	return ""
}

// isReport tells the series that an agent adds to a scrape.
func isReport(name string) bool { return name == "up" || strings.HasPrefix(name, "scrape_") }

// numbers is the set of scrape numbers that a series has had. It forgets those more than maxNumbers behind the newest.
type numbers struct {
	// words are bits from number base on, which is a multiple of 64.
	base  uint64
	words []uint64
	// min and max are 0 while the set is empty. min moves up when numbers are forgotten.
	min, max uint64
}

const maxNumbers = 1 << 16

// has reports whether n is in the set, or so old that it is forgotten.
func (s *numbers) has(n uint64) bool {
	if s.max == 0 || n > s.max || n < s.base {
		return s.max != 0 && n+maxNumbers/2 < s.max && n < s.base
	}
	return s.words[(n-s.base)/64]&(1<<(n%64)) != 0
}

// add adds n and returns by how much that changes the number of gaps between min and max.
func (s *numbers) add(n uint64) int {
	gaps := 0
	switch {
	case s.max == 0:
		s.base, s.min, s.max = n&^63, n, n
	case n > s.max:
		gaps = int(n - s.max - 1)
		s.max = n
	case n < s.min:
		gaps = int(s.min - n - 1)
		s.min = n
		if n < s.base {
			base := n &^ 63
			s.words = append(make([]uint64, (s.base-base)/64), s.words...)
			s.base = base
		}
	default:
		gaps = -1
	}
	if s.max-s.base > maxNumbers {
		s.forget()
	}
	if i := int((n - s.base) / 64); i >= len(s.words) {
		s.words = append(s.words, make([]uint64, i+1-len(s.words))...)
	}
	s.words[(n-s.base)/64] |= 1 << (n % 64)
	return gaps
}

// forget drops the older half.
func (s *numbers) forget() {
	base := (s.max - maxNumbers/2) &^ 63
	dropped := min(int((base-s.base)/64), len(s.words))
	s.words = append([]uint64(nil), s.words[dropped:]...)
	s.base = base
	s.min = max(s.min, base)
}

// missing counts the numbers between min and max that are not in the set, and returns the first of them.
func (s *numbers) missing() (count int, first uint64) {
	if s.max == 0 {
		return 0, 0
	}
	present := 0
	for _, word := range s.words {
		present += bits.OnesCount64(word)
	}
	count = int(s.max-s.min+1) - present
	if count > 0 {
		for first = s.min; s.has(first); first++ {
		}
	}
	return count, first
}

// history is the last values of a series, by timestamp.
type history struct {
	entries []sampleEntry
	// oldest is the index of the oldest entry once there are as many as shall be kept.
	oldest int
}

// find returns the value that was kept for a timestamp.
func (h *history) find(timestamp int64) (uint64, bool) {
	for i := range h.entries {
		if h.entries[i].timestamp == timestamp {
			return h.entries[i].bits, true
		}
	}
	return 0, false
}

func (h *history) push(e sampleEntry, keep int) {
	if len(h.entries) < keep {
		h.entries = append(h.entries, e)
		return
	}
	h.entries[h.oldest] = e
	h.oldest = (h.oldest + 1) % keep
}

// target is what is known of the scrapes of one target.
type target struct {
	name        string
	byTimestamp map[int64]*scrape
	byNumber    map[uint64]*scrape
	last        *scrape
}

// scrape is what arrived of one scrape.
type scrape struct {
	timestamp int64
	// number is 0 while unknown.
	number uint64
	// samples counts what arrived of the body, each once.
	samples int
}

// at returns the scrape with the given timestamp.
func (t *target) at(timestamp int64) *scrape {
	if t.last != nil && t.last.timestamp == timestamp {
		return t.last
	}
	s := t.byTimestamp[timestamp]
	if s == nil {
		s = &scrape{timestamp: timestamp}
		t.byTimestamp[timestamp] = s
	}
	t.last = s
	return s
}

// claim says that the scrape at a timestamp is number n. It reports false if that contradicts what arrived before.
func (t *target) claim(s *scrape, n uint64) bool {
	if s.number == n {
		return true
	}
	if s.number != 0 || t.byNumber[n] != nil {
		return false
	}
	s.number = n
	t.byNumber[n] = s
	return true
}
