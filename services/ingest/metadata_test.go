package ingest

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"
)

// Two senders of one family with different help are no reason to make dictionaries anew each time.
func TestMetadataStaysWhileItsSenderIsThere(t *testing.T) {
	f := newFamilies()
	one, other := metadata.Metadata{Type: model.MetricTypeGauge, Help: "One."}, metadata.Metadata{Type: model.MetricTypeGauge, Help: "Another."}
	now := int64(1000)
	f.learn("", "a", one, now)
	for range 30 {
		now += 60
		f.learn("", "a", other, now)
		f.learn("", "a", one, now)
	}
	if _, m := f.of("", "a"); m != one || f.gen != 1 {
		t.Errorf("%+v after %d changes", m, f.gen)
	}
	f.learn("", "a", other, now+keepFamily-1)
	if _, m := f.of("", "a"); m != one {
		t.Errorf("%+v before its time is over", m)
	}
	f.learn("", "a", other, now+keepFamily)
	if _, m := f.of("", "a"); m != other || f.gen != 2 {
		t.Errorf("%+v after %d changes, when the first is not pushed any more", m, f.gen)
	}
}

func TestMetadataIsBoundedAndForgotten(t *testing.T) {
	f := newFamilies()
	help := strings.Repeat("x", maxHelp)
	for i := range 3000 {
		f.learn("", fmt.Sprint("m", i), metadata.Metadata{Help: help}, int64(i))
	}
	n := len(f.byName)
	if n < 1000 || n == 3000 || f.bytes > maxFamilyBytes {
		t.Errorf("%d families of %d bytes", n, f.bytes)
	}
	f.forget(1000)
	if left := len(f.byName); left != n-1000 {
		t.Errorf("%d of %d families are left", left, n)
	}
	f.forget(1 << 40)
	if len(f.byName) != 0 || f.bytes != 0 {
		t.Errorf("%d families of %d bytes are left", len(f.byName), f.bytes)
	}
}

// The part of a help that is kept does not keep the rest in memory.
func TestClippedHelpIsACopy(t *testing.T) {
	help := strings.Repeat("x", 2*maxHelp)
	if m := clipped(metadata.Metadata{Help: help}); len(m.Help) != maxHelp || unsafe.StringData(m.Help) == unsafe.StringData(help) {
		t.Errorf("%d bytes, which may be those of the whole", len(m.Help))
	}
}
