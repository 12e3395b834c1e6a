package frame

import (
	"bytes"
	"errors"
	"testing"
)

func refusedProperly(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
		t.Fatalf("error %v is neither %v nor %v", err, ErrCorrupt, ErrVersion)
	}
}

// seedFrames returns encodings of frames of all kinds.
func seedFrames(f *testing.F) [][]byte {
	many := &Frame{}
	for i := range 70 {
		many.Sections = append(many.Sections, Section{Dict: DictID{byte(i)}, Series: 1, Values: []float64{float64(i)}})
	}
	return [][]byte{encode(&Frame{}), encode(richFrame()), encode(many), encode(scrapes(f)[0].frame(testTime, 1))}
}

func FuzzFrame(f *testing.F) {
	for _, b := range seedFrames(f) {
		f.Add(b)
	}
	reused := new(Frame)
	f.Fuzz(func(t *testing.T, b []byte) {
		var first Frame
		if err := first.decode(b); err != nil {
			refusedProperly(t, err)
			if err := reused.decode(b); err == nil || len(reused.Sections) > 0 {
				t.Fatalf("reused frame: error %v, %d sections", err, len(reused.Sections))
			}
			return
		}
		again := encode(&first)
		diff(t, "frame encoded again", decodeNew(t, again), &first)
		if third := encode(&first); !bytes.Equal(third, again) {
			t.Fatal("the same frame has two encodings")
		}
		if err := reused.decode(b); err != nil {
			t.Fatalf("decoding into a used frame: %v", err)
		}
		diff(t, "reused frame", reused, &first)
	})
}

func FuzzOpenBatch(f *testing.F) {
	var w BatchWriter
	f.Add(w.Seal(0))
	for _, b := range seedFrames(f) {
		w.Add(b, testTime, 1)
		f.Add(w.Seal(5))
	}
	for _, b := range seedFrames(f) {
		w.Add(b, testTime, 1)
	}
	f.Add(w.Seal(1 << 60))
	var buf []byte
	f.Fuzz(func(t *testing.T, msg []byte) {
		h, err := ReadHeader(msg)
		if err != nil {
			refusedProperly(t, err)
		}
		b, openErr := OpenBatch(msg, buf)
		if openErr != nil {
			refusedProperly(t, openErr)
			return
		}
		if err != nil || b.Header != h {
			t.Fatalf("opened with header %+v, which ReadHeader gives as %+v, %v", b.Header, h, err)
		}
		var fr Frame
		for calls := 0; ; calls++ {
			if calls > len(b.buf)+1 {
				t.Fatal("Next does not come to an end")
			}
			ok, err := b.Next(&fr)
			if err != nil {
				refusedProperly(t, err)
			} else if !ok {
				break
			}
		}
		buf = b.Buffer()
	})
}

func FuzzBlock(f *testing.F) {
	for _, series := range [][]Series{nil, richSeries(), scrapes(f)[0].series} {
		block, err := appendBlock(nil, series)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(block)
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		series, err := readBlock(block)
		if err != nil {
			refusedProperly(t, err)
			return
		}
		again, err := appendBlock(nil, series)
		if err != nil {
			t.Fatalf("encoding what was decoded: %v", err)
		}
		got, err := readBlock(again)
		if err != nil {
			t.Fatalf("decoding what was encoded: %v", err)
		}
		diff(t, "series list", got, series)
	})
}

func FuzzReadDictionary(f *testing.F) {
	for _, series := range [][]Series{nil, richSeries(), scrapes(f)[0].series} {
		d, msg, err := NewDictionary("job", series)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg, d.ID[:])
	}
	f.Fuzz(func(t *testing.T, msg, name []byte) {
		var id DictID
		copy(id[:], name)
		d, err := ReadDictionary(msg, id)
		if err != nil {
			refusedProperly(t, err)
			return
		}
		again, msg2, err := NewDictionary(d.Job, d.Series)
		if err != nil {
			t.Fatalf("encoding what was decoded: %v", err)
		}
		got, err := ReadDictionary(msg2, again.ID)
		if err != nil {
			t.Fatalf("decoding what was encoded: %v", err)
		}
		diff(t, "series", got.Series, d.Series)
	})
}

func FuzzReadRelabelled(f *testing.F) {
	dropped := append(richSeries(), Series{})
	for _, series := range [][]Series{nil, dropped, scrapes(f)[0].series} {
		msg, err := EncodeRelabelled(DictID{1}, "rules", series)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		r, err := ReadRelabelled(msg)
		if err != nil {
			refusedProperly(t, err)
			return
		}
		series, err := r.Series()
		if err != nil {
			refusedProperly(t, err)
			return
		}
		again, err := EncodeRelabelled(r.Dict, r.Rules, series)
		if err != nil {
			t.Fatalf("encoding what was decoded: %v", err)
		}
		r2, err := ReadRelabelled(again)
		if err != nil {
			t.Fatalf("decoding what was encoded: %v", err)
		}
		got, err := r2.Series()
		if err != nil {
			t.Fatalf("unpacking what was encoded: %v", err)
		}
		diff(t, "series", got, series)
	})
}
