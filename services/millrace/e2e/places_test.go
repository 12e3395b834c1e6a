package e2e_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPlacesOfSeriesThatAreGoneAreFree has users leave and others come.
func TestPlacesOfSeriesThatAreGoneAreFree(t *testing.T) {
	const limit = 100
	r := newRig(t, 2, 10)
	main, all := newEndpoint(t), newRecorder(t, "")
	w := newWild(t, limit, limit)
	p := startMillrace(t, limitedConfig(r, fmt.Sprintf("  cardinality: {free_after: 10s, metric: {max_series: %d}}\n", limit), main, all, w))
	users := func(n int) {
		t.Helper()
		eventually(t, 90*time.Second+20*wildPace, fmt.Sprintf("series of %d users", n), func() error {
			if got := len(all.got(careless)); got != n {
				return fmt.Errorf("series of %d users", got)
			}
			return nil
		})
	}
	// Places are taken by what each of the three targets has of its own (5 series), by the 10 of each of the two others, and by as many users as the limit allows.
	const places = 3*5 + 2*10 + limit
	active := func() {
		t.Helper()
		eventually(t, 60*time.Second, fmt.Sprintf("%d active series", places), func() error {
			if n := p.Metric("millrace_relabel_active_series", nil); n != places {
				return fmt.Errorf("%v active series", n)
			}
			return nil
		})
	}
	users(limit)
	active()
	began := time.Now()
	w.first.Store(1000)
	users(2 * limit)
	active()
	t.Logf("the places of %d series were free after %s", limit, time.Since(began).Round(time.Second))
	if took := time.Since(began); took < 5*time.Second {
		t.Errorf("places were free after %s, no sooner than 7.5 s are allowed", took)
	}
	r.arrived(main, 30*time.Second)
}

// TestADroppedLabelLeavesOneValue shows what becomes of series that would be equal without a label.
func TestADroppedLabelLeavesOneValue(t *testing.T) {
	const limit = 2000
	r := newRig(t, 2, 10)
	main, checked := newEndpoint(t), newEndpoint(t)
	all := newRecorder(t, checked.URL)
	many, one := newWild(t, 500, 2*limit), newWild(t, 1, 1)
	one.first.Store(7)
	p := startMillrace(t, limitedConfig(r, fmt.Sprintf("  cardinality: {metric: {max_series: %d, action: drop_label, labels: [user_id]}}\n", limit), main, all, many))
	grows(t, all, limit, 8, many)
	eventually(t, 60*time.Second, "as many series as the limit allows", func() error {
		if n := len(all.got(careless)); n != limit-limit/100 {
			return fmt.Errorf("%d series", n)
		}
		return nil
	})
	// A target that comes now has one user, and is told from others without it.
	p.SetConfig(limitedConfig(r, fmt.Sprintf("  cardinality: {metric: {max_series: %d, action: drop_label, labels: [user_id]}}\n", limit), main, all, many, one))
	p.Signal(syscall.SIGHUP)
	without := func() (list []string) {
		for _, text := range all.got(careless) {
			if !strings.Contains(text, "user_id") {
				list = append(list, text)
			}
		}
		return list
	}
	eventually(t, 60*time.Second, "one series without the label", func() error {
		if list := without(); len(list) != 1 || !strings.Contains(list[0], one.address) {
			return fmt.Errorf("%q", list)
		}
		return nil
	})
	r.arrived(main, 30*time.Second)
	checked.inOrder(t)
}
