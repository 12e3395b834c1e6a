package fleet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/stream"
)

// TestFreeSharesAreTold has shares of the member's own service, and of one that nobody runs any more.
func TestFreeSharesAreTold(t *testing.T) {
	w := newWorld(t, 5*time.Second)
	a := w.join("a")
	w.settled("a")
	leases, err := a.conn.JS.KeyValue(t.Context(), a.conn.Bucket(stream.Leases))
	if err != nil {
		t.Fatal(err)
	}
	for share, owner := range []string{"a", "gone"} {
		if _, err := leases.Put(t.Context(), leaseKey("writer", share), encode(leaseVersion, &Lease{Owner: owner})); err != nil {
			t.Fatal(err)
		}
	}
	told := func(scraper, writer int) {
		t.Helper()
		want := fmt.Sprintf(`# HELP millrace_fleet_free_shares Shares that nobody alive owns.
# TYPE millrace_fleet_free_shares gauge
millrace_fleet_free_shares{service="scraper"} %d
millrace_fleet_free_shares{service="writer"} %d
`, scraper, writer)
		var err error
		await.True(t, "the free shares", func() bool {
			err = testutil.GatherAndCompare(a.reg, strings.NewReader(want), "millrace_fleet_free_shares")
			return err == nil
		})
	}
	told(0, 1)
	if err := leases.Delete(t.Context(), leaseKey("writer", 0)); err != nil {
		t.Fatal(err)
	}
	told(0, 2)
	if _, err := leases.Put(t.Context(), leaseKey("writer", 1), encode(leaseVersion, &Lease{Owner: "a"})); err != nil {
		t.Fatal(err)
	}
	told(0, 1)
	a.Fleet.mu.Lock()
	c := a.Fleet.claims[service]
	c.shares++ // of which there is no lease yet
	a.Fleet.mu.Unlock()
	told(1, 1)
}
