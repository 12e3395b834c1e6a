package frame

import (
	"errors"
	"testing"
)

// sealed makes a batch of the frames.
func sealed(first uint64, frames ...*Frame) []byte {
	var w BatchWriter
	for _, f := range frames {
		w.Add(encode(f), f.Time, f.Samples())
	}
	return w.Seal(first)
}

// readAll decodes a batch's frames, each into a Frame of its own.
func readAll(t testing.TB, msg []byte) (frames []*Frame) {
	t.Helper()
	b, err := OpenBatch(msg, nil)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	for {
		f := new(Frame)
		ok, err := b.Next(f)
		if err != nil {
			t.Fatalf("frame %d: %v", len(frames), err)
		}
		if !ok {
			return frames
		}
		frames = append(frames, f)
	}
}

func TestBatchRoundTrip(t *testing.T) {
	late := richFrame()
	late.Time += 1000
	early := &Frame{Time: -5, Sections: []Section{{Series: 1, Values: []float64{1}}}}
	cases := map[string][]*Frame{
		"no frames":      nil,
		"one":            {richFrame()},
		"several":        {late, early, richFrame(), {Time: 7}},
		"recorded twice": {scrapes(t)[0].frame(testTime, 1), scrapes(t)[1].frame(testTime, 2)},
	}
	for name, frames := range cases {
		t.Run(name, func(t *testing.T) {
			msg := sealed(1<<63+1, frames...)
			diff(t, "frames", readAll(t, msg), frames)
			want := Header{First: 1<<63 + 1, Frames: len(frames)}
			for i, f := range frames {
				want.Samples += f.Samples()
				if i == 0 {
					want.MinTime, want.MaxTime = f.Time, f.Time
				}
				want.MinTime, want.MaxTime = min(want.MinTime, f.Time), max(want.MaxTime, f.Time)
			}
			h, err := ReadHeader(msg)
			if err != nil {
				t.Fatal(err)
			}
			diff(t, "header", h, want)
		})
	}
}

func TestHeaderIsReadWithoutTheFrames(t *testing.T) {
	msg := sealed(77, richFrame())
	_, packed, _, err := readHeader(msg)
	if err != nil {
		t.Fatal(err)
	}
	head := msg[:len(msg)-len(packed)]
	if h, err := ReadHeader(head); err != nil || h.First != 77 || h.Samples != richFrame().Samples() {
		t.Errorf("ReadHeader of %d bytes of %d: %+v, %v", len(head), len(msg), h, err)
	}
}

func TestBatchWriterStartsAnewAfterSeal(t *testing.T) {
	var w BatchWriter
	w.Add(encode(richFrame()), 5, 17)
	if h := w.Header(); h != (Header{Frames: 1, Samples: 17, MinTime: 5, MaxTime: 5}) || w.Size() == 0 {
		t.Errorf("header %+v, size %d before Seal", h, w.Size())
	}
	first := w.Seal(1)
	if h := w.Header(); h != (Header{}) || w.Size() != 0 {
		t.Errorf("header %+v, size %d after Seal", h, w.Size())
	}
	diff(t, "first batch", readAll(t, first), []*Frame{richFrame()})
	w.Add(encode(&Frame{Time: 9}), 9, 0)
	diff(t, "second batch", readAll(t, w.Seal(2)), []*Frame{{Time: 9}})
}

func TestBatchBufferIsReused(t *testing.T) {
	msg := sealed(0, scrapes(t)[0].frame(testTime, 1))
	b, err := OpenBatch(msg, nil)
	if err != nil {
		t.Fatal(err)
	}
	var f Frame
	if _, err := b.Next(&f); err != nil {
		t.Fatal(err)
	}
	buf := b.Buffer()
	size := allocated(func() { b, err = OpenBatch(msg, buf) })
	if err != nil {
		t.Fatal(err)
	}
	// The decoder's pool may be empty after a garbage collection, so the buffer is compared, not the allocations.
	if &b.buf[0] != &buf[:1][0] {
		t.Errorf("opened in other memory, %d bytes allocated", size)
	}
}

func TestFramesOutliveTheBatchMemory(t *testing.T) {
	b, err := OpenBatch(sealed(0, richFrame()), nil)
	if err != nil {
		t.Fatal(err)
	}
	var f Frame
	if _, err := b.Next(&f); err != nil {
		t.Fatal(err)
	}
	clear(b.buf)
	diff(t, "frame", &f, richFrame())
}

func TestBatchGoesOnBehindAFaultyFrame(t *testing.T) {
	var w BatchWriter
	good := &Frame{Time: 3}
	w.Add([]byte("not a frame"), 1, 0)
	w.Add(encode(good), 3, 0)
	b, err := OpenBatch(w.Seal(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	var f Frame
	if ok, err := b.Next(&f); ok || !errors.Is(err, ErrCorrupt) {
		t.Fatalf("first frame: %v, %v", ok, err)
	}
	if ok, err := b.Next(&f); !ok || err != nil {
		t.Fatalf("second frame: %v, %v", ok, err)
	}
	diff(t, "second frame", &f, good)
	if ok, err := b.Next(&f); ok || err != nil {
		t.Fatalf("end: %v, %v", ok, err)
	}
}
