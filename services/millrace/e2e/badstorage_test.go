package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mountTmpfs mounts a file system of a given size, which takes root.
func mountTmpfs(t testing.TB, path, options string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o750); err != nil {
		t.Fatal(err)
	}
	require(t, syscall.Mount("tmpfs", path, "tmpfs", 0, options), "mounting a file system")
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", path, err)
		}
	})
}

// fill leaves no room in the file system of a folder until the file that it returns is removed.
func fill(t testing.TB, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "filling")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096} {
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
	return path
}

func TestStoragePathThatCannotBeUsedIsNamed(t *testing.T) {
	for _, tc := range []struct {
		name string
		// spoil makes the storage path unusable.
		spoil func(t *testing.T, path string)
		says  []string
	}{
		{"a file in its place", func(t *testing.T, path string) { writeFile(t, path, "") }, []string{"not a directory"}},
		{"read-only", func(t *testing.T, path string) {
			mountTmpfs(t, path, "size=1m")
			if err := syscall.Mount("", path, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
		}, []string{"read-only file system"}},
		{"full", func(t *testing.T, path string) {
			mountTmpfs(t, path, "size=1m")
			fill(t, path)
		}, []string{"no space left"}},
		{"nearly full", func(t *testing.T, path string) {
			mountTmpfs(t, path, "size=1m")
			if err := os.Truncate(fill(t, path), 1<<20-24<<10); err != nil {
				t.Fatal(err)
			}
		}, []string{"no space left"}},
		{"in use", func(t *testing.T, path string) { startMillrace(t, smallConfig, inDir(filepath.Dir(path))) }, []string{"in use by another process"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			tc.spoil(t, filepath.Join(dir, "data"))
			log, code := runToEnd(t, dir, smallConfig)
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			says(t, log, append(tc.says, filepath.Join(dir, "data"), "--storage.path")...)
		})
	}
}

func TestFullStorageRecoversWithoutLoss(t *testing.T) {
	r, e := newRig(t, 20, 200), newEndpoint(t)
	data := filepath.Join(r.dir, "data")
	mountTmpfs(t, data, "size=24m")
	config := r.config("", remoteWrite("main", e.URL))
	p := startMillrace(t, config, inDir(r.dir))
	r.arrived(e, 30*time.Second)

	for range 2 {
		filling := fill(t, data)
		said := strings.Count(p.Logs(), "The stream does not take messages; holding frames in memory")
		eventually(t, 60*time.Second, "the log and the page say that nothing is stored", func() error {
			log := p.Logs()
			if strings.Count(log, "The stream does not take messages; holding frames in memory") == said || !strings.Contains(log, "no space left") {
				return errors.New("the log does not")
			}
			if _, page := p.Get("/api/v1/status"); !strings.Contains(string(page), "waits for the stream") && !strings.Contains(string(page), "no space left") {
				return fmt.Errorf("status: %.500s", page)
			}
			if p.Metric("millrace_publisher_retries_total", nil) == 0 || p.Metric("millrace_scraper_pending_bytes", nil) == 0 {
				return errors.New("the metrics do not")
			}
			return nil
		})
		says(t, p.Logs(), "JetStream cannot store messages", "make room in the storage path")
		if err := os.Remove(filling); err != nil {
			t.Fatal(err)
		}
		r.arrived(e, 90*time.Second)
		eventually(t, 30*time.Second, "the log says that it goes on", func() error {
			if !strings.Contains(p.Logs(), "JetStream stores messages again") {
				return io.EOF
			}
			return nil
		})
	}

	r.end(p)
	r.settled(p, 60*time.Second, "main")
	if n := p.Metric("millrace_scraper_dropped_samples_total", nil); n != 0 {
		t.Errorf("%v samples dropped", n)
	}
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	e.inOrder(t)
	e.whole(t, r.gen.Log())
	delivered(t, r.dir, e)
}

func TestKillOnFullStorageLosesNothingTaken(t *testing.T) {
	r, e := newRig(t, 20, 200), newEndpoint(t)
	data := filepath.Join(r.dir, "data")
	mountTmpfs(t, data, "size=24m")
	config := r.config("", remoteWrite("main", e.URL))
	p := startMillrace(t, config, inDir(r.dir))
	r.arrived(e, 30*time.Second)
	full := time.Now()
	filling := fill(t, data)
	eventually(t, 60*time.Second, "the log says that nothing is stored", func() error {
		if !strings.Contains(p.Logs(), "JetStream cannot store messages") {
			return io.EOF
		}
		return nil
	})
	p.Kill9()
	// What was not acknowledged was in memory only.
	lost := window{full.Add(-2 * time.Second), time.Now()}
	if err := os.Remove(filling); err != nil {
		t.Fatal(err)
	}
	p = startMillrace(t, config, inDir(r.dir))
	r.arrived(e, 60*time.Second)
	r.end(p)
	r.settled(p, 60*time.Second, "main")
	p.Stop()
	e.inOrder(t)
	e.whole(t, r.gen.Log(), lost)
	delivered(t, r.dir, e)
}
