package discovery

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/pkg/await"
)

// httpSD is a server for HTTP service discovery.
type httpSD struct {
	t        *testing.T
	url      string
	requests atomic.Int64

	mu        sync.Mutex
	addresses []string
	failing   bool
}

func newHTTPSD(t *testing.T) *httpSD {
	t.Helper()
	sd := &httpSD{t: t}
	srv := httptest.NewServer(sd)
	t.Cleanup(srv.Close)
	sd.url = srv.URL
	return sd
}

func (sd *httpSD) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	defer sd.requests.Add(1)
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.failing {
		http.Error(w, "out of order", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	groups := []map[string]any{}
	if len(sd.addresses) > 0 {
		groups = append(groups, map[string]any{"targets": sd.addresses, "labels": map[string]string{"__meta_from": "http"}})
	}
	if err := json.NewEncoder(w).Encode(groups); err != nil {
		sd.t.Error(err)
	}
}

func (sd *httpSD) set(addresses ...string) {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	sd.addresses, sd.failing = addresses, false
}

func (sd *httpSD) fail() {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	sd.failing = true
	sd.requests.Store(0)
}

func (sd *httpSD) waitForRequests(n int64) {
	sd.t.Helper()
	await.True(sd.t, fmt.Sprintf("%d requests to HTTP discovery", n), func() bool { return sd.requests.Load() >= n })
}

func (sd *httpSD) job(name string) string {
	return fmt.Sprintf("- job_name: %s\n  http_sd_configs: [{url: %q, refresh_interval: 100ms}]\n", name, sd.url)
}

func TestHTTPDiscovery(t *testing.T) {
	checkLeaks(t)
	f := newBed(t)
	sd := newHTTPSD(t)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	f.start(sd.job("web"))
	sd.set("h1:1", "h2:1")
	f.wait(address, "web h1:1", "web h2:1")
	for _, got := range f.targets() {
		if got.Discovered.Get("__meta_from") != "http" || got.Discovered.Get("__meta_url") != sd.url {
			t.Errorf("discovered labels are %s", got.Discovered)
		}
	}
	sd.set("h2:1", "h3:1")
	f.wait(address, "web h2:1", "web h3:1")
	sd.fail()
	sd.waitForRequests(3)
	f.wait(address, "web h2:1", "web h3:1") // a failing server takes nothing away
	sd.set()
	f.wait(address)
}

func TestFileDiscovery(t *testing.T) {
	checkLeaks(t)
	f := newBed(t)
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one.json"), filepath.Join(dir, "two.yml")
	write(t, one, `[{"targets": ["h1:1", "h2:1"], "labels": {"zone": "a"}}, {"targets": ["h3:1"]}]`)
	// The refresh interval is an hour, so what is seen is seen by watching the files.
	f.start(fmt.Sprintf("- job_name: f\n  file_sd_configs: [{files: [%q, %q], refresh_interval: 1h}]\n", filepath.Join(dir, "*.json"), two))
	f.wait(address, "f h1:1", "f h2:1", "f h3:1")
	write(t, two, "- targets: ['h4:1']\n")
	f.wait(address, "f h1:1", "f h2:1", "f h3:1", "f h4:1")
	write(t, one, `[{"targets": ["h2:1"], "labels": {"zone": "a"}}]`)
	f.wait(address, "f h2:1", "f h4:1")
	write(t, one, `[{"targets": ["h2:1"], `) // half written: nothing changes
	write(t, two, "- targets: ['h5:1']\n")
	f.wait(address, "f h2:1", "f h5:1")
	if err := os.Remove(two); err != nil {
		t.Fatal(err)
	}
	f.wait(address, "f h2:1")
	if n := slices.Index(f.history(), "-h2:1"); n >= 0 {
		t.Errorf("the target that stayed was removed for a moment: %v", f.history())
	}
}

func TestRestartRemovesTargetsOfFilesThatAreGone(t *testing.T) {
	f := newBed(t)
	path := filepath.Join(t.TempDir(), "targets.json")
	job := fmt.Sprintf("- job_name: f\n  file_sd_configs: [{files: [%q]}]\n", path)
	write(t, path, `[{"targets": ["h1:1"]}]`)
	first := f.start(job)
	f.wait(address, "f h1:1")
	first.stop()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.start(job)
	f.wait(address)
}
