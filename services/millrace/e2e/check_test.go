package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestCheckOfARunningProcess runs the checks that containers run.
func TestCheckOfARunningProcess(t *testing.T) {
	ready := startMillrace(t, "")
	waiting := startMillrace(t, "", withoutWaiting(), withArgs("--nats.url=nats://"+serveNothing(t)))
	eventually(t, startTimeout, "the page is there", func() error {
		resp, err := http.Get(waiting.URL + "/-/healthy")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	for _, c := range []struct {
		what, url string
		code      int
		says      string
	}{
		{"ready", ready.URL, 0, "ready"},
		{"ready", ready.URL + "/", 0, "ready"},
		{"healthy", ready.URL, 0, "healthy"},
		{"ready", waiting.URL, 1, "waiting for NATS"},
		{"healthy", waiting.URL, 0, "healthy"},
		{"ready", other.URL, 1, "404"},
		{"healthy", "http://" + serveNothing(t), 1, "EOF"},
		{"healthy", "localhost", 1, "scheme"},
	} {
		stdout, stderr, code := runMillrace(t, "check", c.what, "--url="+c.url)
		if code != c.code || !strings.Contains(stdout+stderr, c.says) || (code == 0) != (stderr == "") || strings.Count(strings.TrimSpace(stdout+stderr), "\n") > 1 {
			t.Errorf("check %s of %s ends with %d, wants %d and %q:\n%s%s", c.what, c.url, code, c.code, c.says, stdout, stderr)
		}
	}
}

// TestCheckGivesUp shows that a check of a process that hangs ends by itself.
func TestCheckGivesUp(t *testing.T) {
	release := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer hangs.Close()
	defer close(release)
	start := time.Now()
	if _, stderr, code := runMillrace(t, "check", "healthy", "--url="+hangs.URL); code != 1 || !strings.Contains(stderr, "deadline") {
		t.Errorf("ends with %d after %s: %s", code, time.Since(start), stderr)
	}
}
