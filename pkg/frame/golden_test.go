package frame

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden returns the committed bytes of a name, or with -update writes what the build makes now.
func golden(t *testing.T, name string, now []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unchanged(t *testing.T, name string, now []byte) []byte {
	t.Helper()
	want := golden(t, name, now)
	if !bytes.Equal(now, want) {
		t.Fatalf("%s: the encoding has changed: %x, want %x. A changed format needs a new version.", name, now, want)
	}
	return want
}

func TestGoldenFrame(t *testing.T) {
	diff(t, "frame", decodeNew(t, unchanged(t, "frame.bin", encode(richFrame()))), richFrame())
}

func TestGoldenBatch(t *testing.T) {
	frames := []*Frame{richFrame(), {Source: 1, Epoch: 1, Seq: 1, Time: 5, Sections: []Section{{Series: 2, Values: []float64{1, 2}}}}}
	now := sealed(12345, frames...)
	for _, msg := range [][]byte{golden(t, "batch.bin", now), now} {
		diff(t, "frames", readAll(t, msg), frames)
		h, err := ReadHeader(msg)
		if err != nil {
			t.Fatal(err)
		}
		diff(t, "header", h, Header{Frames: 2, Samples: 19, First: 12345, MinTime: 5, MaxTime: testTime})
	}
}

func TestGoldenDictionary(t *testing.T) {
	block, err := appendBlock(nil, richSeries())
	if err != nil {
		t.Fatal(err)
	}
	unchanged(t, "block.bin", block)
	d, now, err := NewDictionary("job", richSeries())
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range [][]byte{golden(t, "dictionary.bin", now), now} {
		got, err := ReadDictionary(msg, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		diff(t, "dictionary", got, &Dictionary{ID: d.ID, Job: "job", Series: richSeries()})
	}
}

func TestGoldenRelabelled(t *testing.T) {
	series := richSeries()
	series[2] = Series{}
	now, err := EncodeRelabelled(DictID{1, 2, 3}, "rules", series)
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range [][]byte{golden(t, "relabelled.bin", now), now} {
		r, err := ReadRelabelled(msg)
		if err != nil {
			t.Fatal(err)
		}
		if r.Dict != (DictID{1, 2, 3}) || r.Rules != "rules" || r.Kept != 4 {
			t.Errorf("envelope of %v, rules %q, %d kept", r.Dict, r.Rules, r.Kept)
		}
		got, err := r.Series()
		if err != nil {
			t.Fatal(err)
		}
		diff(t, "series", got, series)
	}
}
