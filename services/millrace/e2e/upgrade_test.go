package e2e_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// previousVersion is the commit of the version that the fleet is upgraded from, and rolled back to. Move it on with each release.
const previousVersion = "6909b554cc05ac7e732f8ea9a42fb25f63d0d101"

// errNoHistory says that the version cannot be had here, as where git has a shallow clone only.
var errNoHistory = errors.New("git does not have it: fetch the whole history (git fetch --unshallow)")

// previousBinary builds the previous version. Its source lies beside Go's build cache, always at the same place, so that what is compiled once is found there again.
var previousBinary = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "millrace-test", previousVersion)
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		if err := checkOut(previousVersion, dir); err != nil {
			return "", fmt.Errorf("the source of version %s: %w", previousVersion, err)
		}
	}
	path, err := filepath.Abs(filepath.Join(binDir, "millrace-"+previousVersion))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", path, "./services/millrace")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building version %s: %w\n%s", previousVersion, err, out)
	}
	return path, nil
})

// checkOut writes the files of a commit to a folder, which is there as a whole or not at all.
func checkOut(commit, dir string) error {
	archive, err := exec.Command("git", "-C", "../../..", "archive", commit).Output()
	if err != nil {
		return fmt.Errorf("%w: %w", errNoHistory, err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	whole, err := os.MkdirTemp(filepath.Dir(dir), "part-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(whole)
	files := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return os.Rename(whole, dir)
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("the archive has a file %q", h.Name)
		}
		content, err := io.ReadAll(files)
		if err != nil {
			return err
		}
		path := filepath.Join(whole, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
}

// AgainAs starts the process once more after its end, with another binary: same arguments, same addresses, same folder.
func (p *proc) AgainAs(binary string) {
	p.t.Helper()
	<-p.done
	p.cmd.Path = binary
	p.Again()
}

// TestARollingUpgradeIsNotNoticed replaces one process after the other of a fleet of the previous version by this one under load, and one of each service by the previous one again. All
// the while the two versions work together.
func TestARollingUpgradeIsNotNoticed(t *testing.T) {
	previous, err := previousBinary()
	if errors.Is(err, errNoHistory) {
		require(t, err, "the previous version")
	}
	if err != nil {
		t.Fatal(err)
	}
	now := build(t, millraceBinary)
	c := newCrew(t, 1, 40, 50)
	services := []string{"discovery", "writer", "relabel", "scraper"}
	all := map[string]float64{"scraper": 256, "relabel": 4, "writer": 4}
	running := map[string][]*proc{}
	for _, s := range services {
		for range 2 {
			p := startProc(t, "millrace", previous, c.config, runArgs, []option{withArgs("--services=" + s), onAddress(lastingAddress(t))})
			running[s] = append(running[s], p)
		}
		if s == "writer" { // an endpoint gets what is scraped after its writer has come, and the test expects all
			c.spread(s, all[s], running[s]...)
		}
	}
	c.spread("scraper", all["scraper"], running["scraper"]...)
	c.arrived(c.end, 2*startTimeout)

	replace := func(s string, p *proc, binary string) {
		t.Helper()
		if code := p.Stop(); code != 0 {
			t.Errorf("%s: exit code %d", s, code)
		}
		p.AgainAs(binary)
		if all[s] > 0 {
			c.spread(s, all[s], running[s]...)
		}
		pause(t, beat)
	}
	for i := range 2 {
		for _, s := range services { // so that after the first half all services are of two versions
			replace(s, running[s][i], now)
		}
		c.arrived(c.end, startTimeout)
	}
	for _, s := range services {
		replace(s, running[s][0], previous)
	}
	c.arrived(c.end, startTimeout)

	c.unbroken()
	if code := running["scraper"][0].Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	c.spread("scraper", all["scraper"], running["scraper"][1])
	c.rig.end(running["scraper"][1])
	eventually(t, 2*startTimeout, "everything sent", func() error {
		for _, p := range running["writer"] {
			if lag := p.Metric("millrace_writer_lag_messages", map[string]string{"endpoint": "main"}); lag != 0 {
				return fmt.Errorf("%v messages", lag)
			}
		}
		return nil
	})
	pause(t, 3*time.Second) // staleness markers follow the end
	for _, p := range running["writer"] {
		for _, name := range []string{"lost", "rejected"} {
			if n := p.Metric("millrace_writer_"+name+"_samples_total", nil); n != 0 {
				t.Errorf("%v samples are %s", n, name)
			}
		}
	}
	c.end.inOrder(t)
	c.end.whole(t, c.gen.Log())
}
