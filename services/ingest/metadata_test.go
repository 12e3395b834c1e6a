package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/millrace/millrace/services/ingest/door"
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

// What a sender says of its series is right again when it changes back, although it said so before.
func TestMetadataThatChangesBackIsNoticed(t *testing.T) {
	helps := []string{"One.", "Another.", "One."}
	t.Run("remote_write 2.0", func(t *testing.T) {
		r := newRig(t)
		for i, help := range helps {
			for _, name := range []string{"a", "b"} {
				x := r.at(name, i, 1)
				x.meta = metadata.Metadata{Type: model.MetricTypeGauge, Help: help, Unit: "seconds"}
				r.mustPush(x)
			}
		}
		r.mustHaveHelp(2, helps)
	})
	t.Run("OTLP", func(t *testing.T) {
		r := newRig(t)
		for i, help := range helps {
			body := describedHistogram(time.UnixMilli(r.base+int64(i)*1000), 3, help)
			if out, err := r.Take(t.Context(), &door.Push{Format: door.OTLP, Body: body, Limits: testLimits}); err != nil || out.Refused > 0 {
				t.Fatalf("%+v, %v", out, err)
			}
		}
		r.mustHaveHelp(5, helps)
	})
}

// mustHaveHelp fails where the stream's samples do not have the help of their second, with so many series in each.
func (r *rig) mustHaveHelp(series int, helps []string) {
	r.t.Helper()
	n := 0
	for _, x := range r.stored() {
		n++
		if i := (x.t - r.base) / 1000; x.meta.Help != helps[i] {
			r.t.Errorf("%s has the help %q in second %d, want %q", x.labels, x.meta.Help, i, helps[i])
		}
	}
	if n != series*len(helps) {
		r.t.Errorf("%d samples, want %d", n, series*len(helps))
	}
}

// Senders that differ about a series are no reason to make dictionaries anew each time.
func TestMetadataThatTakesTurnsChangesOnceInAWhile(t *testing.T) {
	s := &source{}
	x := &series{src: s}
	one, other := aboutOf("a", metadata.Metadata{Help: "One."}), aboutOf("a", metadata.Metadata{Help: "Another."})
	changes := 0
	for now := range int64(10 * retellEvery) {
		for _, a := range []about{one, other} {
			if before := x.about; a != before {
				s.retell(x, a, 1000+2*now)
				if x.about != before {
					changes++
				}
			}
		}
	}
	if changes < 20 || changes > 42 {
		t.Errorf("%d changes in %d s", changes, 20*retellEvery)
	}
}

// What came by itself is not undone by samples that say what they have said before.
func TestMetadataThatCameByItselfStays(t *testing.T) {
	r := newRig(t)
	helps := []string{"One.", "Another.", "Another."}
	for i := range helps {
		x := r.at("a", i, 1)
		x.meta = metadata.Metadata{Type: model.MetricTypeGauge, Help: "One."}
		r.mustPush(x)
		if i == 0 {
			r.Service.metadata.learn("", "a", metadata.Metadata{Type: model.MetricTypeGauge, Help: "Another."}, r.base/1000)
			r.Service.metadata.changed = time.Now().Add(-time.Minute)
		}
	}
	r.mustHaveHelp(1, helps)
}
