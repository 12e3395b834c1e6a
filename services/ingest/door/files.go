package door

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// checkEvery is how often files are looked at for a change.
const checkEvery = time.Second

// watched is a value that is made from files, and made again when one of them changes. What cannot be read or used
// later, such as a file that is just being replaced, leaves the value as it was.
type watched[T any] struct {
	paths  []string
	load   func() (T, error)
	failed func(error) // called for each load that failed, at most once a second

	value   atomic.Pointer[T]
	checked atomic.Int64 // unix nanoseconds
	mu      sync.Mutex
	seen    []os.FileInfo
}

// watch loads the value for the first time. Empty paths are ignored.
func watch[T any](paths []string, failed func(error), load func() (T, error)) (*watched[T], error) {
	w := &watched[T]{load: load, failed: failed}
	for _, p := range paths {
		if p != "" {
			w.paths = append(w.paths, p)
		}
	}
	w.checked.Store(time.Now().UnixNano())
	if err := w.renew(); err != nil {
		return nil, err
	}
	return w, nil
}

// get returns the value, looking at the files if that was not done in the last second.
func (w *watched[T]) get() T {
	if len(w.paths) > 0 {
		last, now := w.checked.Load(), time.Now().UnixNano()
		if now-last >= int64(checkEvery) && w.checked.CompareAndSwap(last, now) {
			if err := w.renew(); err != nil {
				w.failed(err)
			}
		}
	}
	return *w.value.Load()
}

func (w *watched[T]) renew() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	// Looked at before they are read: a change in between is found the next time.
	found := make([]os.FileInfo, len(w.paths))
	for i, p := range w.paths {
		var err error
		if found[i], err = os.Stat(p); err != nil {
			return err
		}
	}
	if w.seen != nil && unchanged(w.seen, found) {
		return nil
	}
	value, err := w.load()
	if err != nil {
		return err
	}
	w.value.Store(&value)
	w.seen = found
	return nil
}

func unchanged(was, is []os.FileInfo) bool {
	for i := range is {
		if !was[i].ModTime().Equal(is[i].ModTime()) || was[i].Size() != is[i].Size() || !os.SameFile(was[i], is[i]) {
			return false
		}
	}
	return true
}

// readSecret returns what a file holds, without the white space around it.
func readSecret(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(content))
	if secret == "" {
		return "", fmt.Errorf("%s: %w", path, errors.New("the file is empty; write the secret to it"))
	}
	return secret, nil
}
