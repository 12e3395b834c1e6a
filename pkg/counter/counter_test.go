package counter

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestValueIsWhatWasCounted(t *testing.T) {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "test_total"})
	if v := Value(c); v != 0 {
		t.Errorf("a new counter is %v", v)
	}
	c.Add(2.5)
	if v := Value(c); v != 2.5 {
		t.Errorf("the counter is %v, want 2.5", v)
	}
}
