package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/vmihailenco/msgpack/v5"
)

// uvarints appends numbers to b.
func uvarints(b []byte, numbers ...uint64) []byte {
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// sectionBytes starts a frame with one section of the given flags and series.
func sectionBytes(flags byte, series uint64) []byte {
	b := make([]byte, 8, 64)
	b = uvarints(b, 1, 1, 0, 1)
	b = append(b, make([]byte, 16)...)
	b = append(b, flags)
	return uvarints(b, series)
}

const absurd = 1 << 62

func TestHostileFramesAreRefused(t *testing.T) {
	pad := make([]byte, 100)
	all := func(flags byte) []byte { return uvarints(append(sectionBytes(flagAll|flags, 1), 0), 0) } // one value, 0
	hist := func(flags byte, schema uint64) []byte {
		return uvarints(append(uvarints(all(flagHistograms), 1, 0, 0, 0), flags, 0), schema)
	}
	exemplarBytes := func(hasTs byte) []byte {
		return append(append(uvarints(all(flagExemplars), 1, 0), pad[:8]...), hasTs, 0)
	}
	cases := map[string][]byte{
		"nothing":                          {},
		"unending number":                  append(pad[:8:8], bytes.Repeat([]byte{0xff}, 11)...),
		"absurd number of sections":        append(uvarints(pad[:8:8], 1, 1, 0, absurd), pad...),
		"one section too many":             append(uvarints(pad[:8:8], 1, 1, 0, 6), pad...),
		"unknown flags":                    append(sectionBytes(0x40, 1), pad...),
		"too many series":                  append(sectionBytes(flagAll, MaxSeries+1), make([]byte, MaxSeries+2)...),
		"absurd number of series":          append(sectionBytes(flagAll, absurd), pad...),
		"more present than series":         append(uvarints(sectionBytes(flagSparse, 2), 3, 0, 0, 0), pad...),
		"absurd number of present series":  append(uvarints(sectionBytes(flagSparse, 2), absurd), pad...),
		"present beyond the last series":   append(uvarints(sectionBytes(flagSparse, 2), 1, 2), pad...),
		"present series overflow":          append(uvarints(sectionBytes(flagSparse, 9), 2, 1, 1<<64-1), pad...),
		"bitmap of fewer":                  append(uvarints(sectionBytes(0, 8), 2, 0x01), pad...),
		"bitmap of more":                   append(append(uvarints(sectionBytes(0, 8), 1), 0xff), pad...),
		"bitmap beyond the last series":    append(uvarints(sectionBytes(0, 7), 1, 0x80, 1), pad...),
		"column longer than the frame":     uvarints(append(sectionBytes(flagAll, 1), 1), absurd),
		"timestamps missing":               all(flagTimes),
		"start timestamps missing":         all(flagStarts),
		"absurd number of histograms":      append(uvarints(all(flagHistograms), absurd), pad...),
		"histogram beyond the last series": append(uvarints(all(flagHistograms), 1, 1), pad...),
		"unknown histogram flags":          append(hist(4, 0), pad...),
		"histogram schema beyond 32 bits":  append(hist(0, 1<<40), pad...),
		"absurd number of custom values":   append(uvarints(append(hist(histCustom, 0), pad[:16]...), absurd), pad...),
		"absurd number of spans":           append(uvarints(append(hist(0, 0), pad[:16]...), 1, 1, absurd), pad...),
		"span offset beyond 32 bits":       append(uvarints(append(hist(0, 0), pad[:16]...), 1, 1, 1, 1<<40, 1), pad...),
		"span length beyond 32 bits":       append(uvarints(append(hist(0, 0), pad[:16]...), 1, 1, 1, 0, 1<<40), pad...),
		"absurd number of buckets":         append(uvarints(append(hist(0, 0), pad[:16]...), 1, 1, 0, 0, absurd), pad...),
		"absurd number of float buckets":   append(uvarints(append(hist(histFloat, 0), pad[:32]...), 0, 0, absurd), pad...),
		"absurd number of exemplars":       append(uvarints(all(flagExemplars), absurd), pad...),
		"exemplar beyond the last series":  append(uvarints(all(flagExemplars), 1, 7), pad...),
		"unknown exemplar flags":           append(exemplarBytes(2), 0),
		"absurd number of exemplar labels": append(uvarints(exemplarBytes(1), absurd), pad...),
		"exemplar label beyond the frame":  append(uvarints(exemplarBytes(1), 1, 300), pad...),
		"bytes left over":                  append(encode(richFrame()), 0),
	}
	for name, b := range cases {
		t.Run(name, func(t *testing.T) {
			f := decodeNew(t, encode(richFrame()))
			var err error
			size := allocated(func() { err = f.decode(b) })
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v, want %v", err, ErrCorrupt)
			}
			if size > 64<<10 {
				t.Errorf("%d bytes allocated for %d bytes", size, len(b))
			}
			if len(f.Sections) != 0 {
				t.Errorf("%d sections are left", len(f.Sections))
			}
		})
	}
}

// The forms that grow most when they are decoded must stay within a small multiple of their size.
func TestDecodedFramesStayInProportion(t *testing.T) {
	const n = 1 << 20
	emptySections := append(make([]byte, 8), uvarints(nil, 1, 1, 0, n/uint64(minSectionBytes))...)
	for range n / minSectionBytes {
		emptySections = append(append(emptySections, make([]byte, 16)...), flagAll, 0, 0)
	}
	stale := append(make([]byte, 8), uvarints(nil, 1, 1, 0, n/MaxSeries)...)
	for range n / MaxSeries {
		stale = append(stale, sectionBytes(flagAll, MaxSeries)[12:]...)
		stale = append(append(stale, bytes.Repeat([]byte{ctrlStale}, MaxSeries)...), 0)
	}
	hists := uvarints(sectionBytes(flagAll|flagHistograms, 1), 0, 0, n/minHistogramBytes)
	for range n / minHistogramBytes {
		hists = append(hists, make([]byte, minHistogramBytes)...)
	}
	exemplars := uvarints(sectionBytes(flagAll|flagExemplars, 1), 0, 0, n/minExemplarBytes)
	for range n / minExemplarBytes {
		exemplars = append(exemplars, make([]byte, minExemplarBytes)...)
	}
	emptyLabels := append(uvarints(sectionBytes(flagAll|flagExemplars, 1), 0, 0, 1, 0), make([]byte, 10)...)
	emptyLabels = append(uvarints(emptyLabels, n/2), make([]byte, n)...)
	deltas := append(uvarints(sectionBytes(flagAll|flagHistograms, 1), 0, 0, 1), make([]byte, 26)...)
	deltas[len(deltas)-1] = 0
	deltas = append(uvarints(deltas, n), make([]byte, n+1)...)
	cases := []struct {
		name    string
		b       []byte
		refused bool
	}{
		{"empty sections", emptySections, false},
		{"stale markers", stale, false},
		{"empty histograms", hists, false},
		{"bucket deltas", deltas, false},
		{"empty exemplars", exemplars, false},
		{"empty labels", emptyLabels, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var f Frame
			var err error
			size := allocated(func() { err = f.decode(c.b) })
			if (err != nil) != c.refused {
				t.Fatalf("error %v, want one: %v", err, c.refused)
			}
			// Lists grow by doubling, so what is allocated in all is more than what is kept.
			if size > 24*uint64(len(c.b)) {
				t.Errorf("%d bytes allocated for %d bytes", size, len(c.b))
			}
		})
	}
}

// A cut message is refused wherever the cut is.
func TestCutMessagesAreRefused(t *testing.T) {
	raw := encode(richFrame())
	d, dict, err := NewDictionary("job", richSeries())
	if err != nil {
		t.Fatal(err)
	}
	relabelled, err := EncodeRelabelled(d.ID, "r", richSeries())
	if err != nil {
		t.Fatal(err)
	}
	block, err := appendBlock(nil, richSeries())
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name string
		msg  []byte
		read func(b []byte) error
	}{
		{"frame", raw, func(b []byte) error { return new(Frame).decode(b) }},
		{"batch", sealed(1, richFrame(), richFrame()), func(b []byte) error { _, err := OpenBatch(b, nil); return err }},
		{"dictionary", dict, func(b []byte) error { _, err := ReadDictionary(b, d.ID); return err }},
		{"relabelled dictionary", relabelled, readRelabelledSeries},
		{"series block", block, func(b []byte) error { _, err := readBlock(b); return err }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.read(c.msg); err != nil {
				t.Fatalf("the whole: %v", err)
			}
			for n := range len(c.msg) {
				if err := c.read(c.msg[:n:n]); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("cut to %d of %d bytes: error %v, want %v", n, len(c.msg), err, ErrCorrupt)
				}
			}
			for i := range c.msg {
				for bit := range 8 {
					bad := bytes.Clone(c.msg)
					bad[i] ^= 1 << bit
					if err := c.read(bad); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
						t.Fatalf("byte %d changed: error %v", i, err)
					}
				}
			}
		})
	}
}

func readRelabelledSeries(b []byte) error {
	r, err := ReadRelabelled(b)
	if err == nil {
		_, err = r.Series()
	}
	return err
}

func TestUnknownVersionsAreRefused(t *testing.T) {
	d, dict, err := NewDictionary("job", richSeries())
	if err != nil {
		t.Fatal(err)
	}
	relabelled, err := EncodeRelabelled(d.ID, "r", richSeries())
	if err != nil {
		t.Fatal(err)
	}
	batch := sealed(1, richFrame())
	codec := bytes.Clone(batch)
	codec[1] = 9
	for _, msg := range [][]byte{batch, dict, relabelled} {
		msg[0] = 2
	}
	_, batchErr := OpenBatch(batch, nil)
	_, headerErr := ReadHeader(batch)
	_, codecErr := OpenBatch(codec, nil)
	_, dictErr := ReadDictionary(dict, d.ID)
	_, relabelledErr := ReadRelabelled(relabelled)
	for what, err := range map[string]error{
		"batch": batchErr, "header": headerErr, "codec": codecErr, "dictionary": dictErr, "relabelled dictionary": relabelledErr,
	} {
		if !errors.Is(err, ErrVersion) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v, want %v", what, err, ErrVersion)
		}
	}
}

// batchBytes makes a batch whose header announces what it likes.
func batchBytes(frames, samples, size uint64, packed []byte) []byte {
	b := uvarints([]byte{batchVersion, codecZstd}, frames, samples, 0, 0, 0, size)
	return append(b, packed...)
}

// streamed packs n zero bytes without a note of their length.
func streamed(t *testing.T, n int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for ; n > 0; n -= len(zeros) {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestHostileBatchesAreRefused(t *testing.T) {
	raw := uvarints(nil, uint64(len(encode(&Frame{}))))
	raw = append(raw, encode(&Frame{})...)
	size := uint64(len(raw))
	packed := compress(nil, raw)
	bomb := compress(nil, make([]byte, 256<<20))
	stream := streamed(t, 256<<20)
	cases := map[string]struct {
		msg   []byte
		alloc uint64 // most bytes that it may cost
	}{
		"bomb":                           {batchBytes(1, 1, size, bomb), 4 << 20},
		"bomb that says so":              {batchBytes(1, 1, 256<<20, bomb), 4 << 20},
		"bomb without a length":          {batchBytes(1, 1, size, stream), 4 << 20},
		"many bombs":                     {batchBytes(1, 1, MaxBatchBytes, bytes.Repeat(compress(nil, make([]byte, MaxBatchBytes)), 50)), 8 * MaxBatchBytes},
		"larger than announced":          {batchBytes(1, 1, size-1, packed), 4 << 20},
		"smaller than announced":         {batchBytes(1, 1, size+1, packed), 4 << 20},
		"absurd size":                    {batchBytes(1, 1, absurd, packed), 4 << 20},
		"absurd number of frames":        {batchBytes(absurd, 1, size, packed), 4 << 20},
		"more frames than bytes":         {batchBytes(size+1, 1, size, packed), 4 << 20},
		"absurd number of samples":       {batchBytes(1, absurd, size, packed), 4 << 20},
		"a frame fewer than announced":   {batchBytes(2, 1, size, packed), 4 << 20},
		"a frame more than announced":    {batchBytes(0, 1, size, packed), 4 << 20},
		"frame longer than the batch":    {batchBytes(1, 1, 3, compress(nil, []byte{100, 0, 0})), 4 << 20},
		"absurdly long frame":            {batchBytes(1, 1, 9, compress(nil, uvarints(nil, absurd))), 4 << 20},
		"bytes behind the packed ones":   {batchBytes(1, 1, size, append(bytes.Clone(packed), 1, 2, 3, 4, 5)), 4 << 20},
		"not packed":                     {batchBytes(1, 1, size, raw), 4 << 20},
		"empty frame":                    {batchBytes(1, 1, 1, compress(nil, []byte{0})), 4 << 20},
		"nothing packed but a size":      {batchBytes(1, 1, 1, nil), 4 << 20},
		"nothing packed but some frames": {batchBytes(0, 0, 1, nil), 4 << 20},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var err error
			size := allocated(func() {
				var b Batch
				if b, err = OpenBatch(c.msg, nil); err != nil {
					return
				}
				for ok := true; ok && err == nil; {
					ok, err = b.Next(new(Frame))
				}
				if ok, again := b.Next(new(Frame)); ok || again != nil {
					t.Errorf("after the end: %v, %v", ok, again)
				}
			})
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v, want %v", err, ErrCorrupt)
			}
			if size > c.alloc {
				t.Errorf("%d bytes allocated for %d bytes", size, len(c.msg))
			}
		})
	}
}

func TestHostileEnvelopesAreRefused(t *testing.T) {
	block, err := appendBlock(nil, richSeries())
	if err != nil {
		t.Fatal(err)
	}
	id := blockID(block)
	dict := func(env dictEnvelope) []byte { return mustSeal(t, dictVersion, &env) }
	relabelled := func(change func(*relabelledEnvelope)) []byte {
		env := relabelledEnvelope{Dict: id[:], Rules: "r", Content: id[:], Kept: len(richSeries()), Size: len(block), Block: compress(nil, block)}
		change(&env)
		return mustSeal(t, relabelledVersion, &env)
	}
	packed := compress(nil, block)
	unnamed, err := appendBlock(nil, []Series{{}})
	if err != nil {
		t.Fatal(err)
	}
	lie := func(code byte, name string) []byte { // a field of 4 GiB
		return append([]byte{1, 0x81, 0xa0 | byte(len(name))}, append([]byte(name), code, 0xff, 0xff, 0xff, 0xff, 1, 2)...)
	}
	nested := append([]byte{1, 0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 8<<20)...)
	cases := map[string]struct {
		msg []byte
		id  DictID
	}{
		"nothing":                  {nil, id},
		"version only":             {[]byte{1}, id},
		"not a map":                {[]byte{1, 0x93, 1, 2, 3}, id},
		"map of four billion":      {[]byte{1, 0xdf, 0xff, 0xff, 0xff, 0xff, 0xa1, 'n', 1}, id},
		"array of four billion":    {[]byte{1, 0xdd, 0xff, 0xff, 0xff, 0xff}, id},
		"block of 4 GiB":           {lie(0xc6, "block"), id},
		"text of 4 GiB":            {lie(0xdb, "job"), id},
		"rules of 4 GiB":           {lie(0xdb, "rules"), id},
		"unknown field, nested":    {nested, id},
		"number for a text":        {[]byte{1, 0x81, 0xa3, 'j', 'o', 'b', 7}, id},
		"bytes left over":          {append(dict(dictEnvelope{Series: 5, Size: len(block), Block: packed}), 0), id},
		"size below":               {dict(dictEnvelope{Series: 5, Size: len(block) - 1, Block: packed}), id},
		"size negative":            {dict(dictEnvelope{Series: 5, Size: -1, Block: packed}), id},
		"size above the limit":     {dict(dictEnvelope{Series: 5, Size: maxBlockBytes + 1, Block: compress(nil, make([]byte, maxBlockBytes+1))}), id},
		"bomb":                     {dict(dictEnvelope{Series: 5, Size: 100, Block: compress(nil, make([]byte, 256<<20))}), id},
		"another number of series": {dict(dictEnvelope{Series: 4, Size: len(block), Block: packed}), id},
		"another block":            {dict(dictEnvelope{Series: 5, Size: len(unnamed), Block: compress(nil, unnamed)}), id},
		"series without labels":    {dict(dictEnvelope{Series: 1, Size: len(unnamed), Block: compress(nil, unnamed)}), blockID(unnamed)},
		"short name":               {relabelled(func(e *relabelledEnvelope) { e.Dict = e.Dict[:15] }), id},
		"long content":             {relabelled(func(e *relabelledEnvelope) { e.Content = append(slices.Clone(e.Content), 0) }), id},
		"no content":               {relabelled(func(e *relabelledEnvelope) { e.Content = nil }), id},
		"other content":            {relabelled(func(e *relabelledEnvelope) { e.Content = make([]byte, 16) }), id},
		"other number kept":        {relabelled(func(e *relabelledEnvelope) { e.Kept-- }), id},
		"negative number kept":     {relabelled(func(e *relabelledEnvelope) { e.Kept = -1 }), id},
		"absurd number kept":       {relabelled(func(e *relabelledEnvelope) { e.Kept = absurd }), id},
		"absurd relabelled size":   {relabelled(func(e *relabelledEnvelope) { e.Size = absurd }), id},
		"negative relabelled size": {relabelled(func(e *relabelledEnvelope) { e.Size = -5 }), id},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var dictErr, relErr error
			size := allocated(func() {
				_, dictErr = ReadDictionary(c.msg, c.id)
				relErr = readRelabelledSeries(c.msg)
			})
			if !errors.Is(dictErr, ErrCorrupt) || !errors.Is(relErr, ErrCorrupt) {
				t.Errorf("errors %v and %v, want %v", dictErr, relErr, ErrCorrupt)
			}
			if size > 8<<20 {
				t.Errorf("%d bytes allocated for %d bytes", size, len(c.msg))
			}
		})
	}
}

func mustSeal(t *testing.T, version byte, env any) []byte {
	t.Helper()
	b, err := msgpack.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{version}, b...)
}

// blockBytes makes a series block of the strings and the numbers behind them.
func blockBytes(symbols []string, numbers ...uint64) []byte {
	b := uvarints(nil, uint64(len(symbols)))
	for _, s := range symbols {
		b = appendString(b, s)
	}
	return uvarints(b, numbers...)
}

func TestHostileBlocksAreRefused(t *testing.T) {
	big := string(make([]byte, MaxLabelSetBytes-10))
	heavy := []uint64{0, 1000}
	for range 1000 {
		heavy = append(heavy, 0, 1, 0, 1)
	}
	// Names that ascend: "", then all strings of two bytes.
	names, wide := []string{""}, []uint64{0, 1, 0, 65537}
	for i := range 65536 {
		names = append(names, string([]byte{byte(i >> 8), byte(i)}))
	}
	for i := range 65537 {
		wide = append(wide, uint64(i), 0)
	}
	cases := map[string][]byte{
		"nothing":                    {},
		"absurd number of strings":   append(uvarints(nil, absurd), make([]byte, 100)...),
		"empty strings only":         append(uvarints(nil, 1<<20-1), make([]byte, 1<<20)...),
		"string beyond the block":    uvarints(nil, 1, 200, 0, 0, 0),
		"string that is not there":   blockBytes([]string{"a"}, 0, 1, 0, 1, 0, 1),
		"metadata that is not there": blockBytes([]string{"a"}, 0, 1, 1, 0),
		"too many families":          append(uvarints([]byte{1, 1, 'a'}, MaxSeries+1), make([]byte, 5*MaxSeries)...),
		"absurd number of families":  append(blockBytes([]string{"a"}, absurd), 0, 0, 0),
		"family's string missing":    blockBytes([]string{"a"}, 1, 0, 0, 0, 1, 0),
		"too many series":            append(blockBytes([]string{"a"}, 0, MaxSeries+1), make([]byte, 3*MaxSeries)...),
		"absurd number of series":    append(blockBytes([]string{"a"}, 0, absurd), 0, 0, 0),
		"absurd number of labels":    append(blockBytes([]string{"a"}, 0, 1, 0, absurd), 0, 0, 0),
		"labels not sorted":          blockBytes([]string{"b", "a"}, 0, 1, 0, 2, 0, 0, 1, 1),
		"a name twice":               blockBytes([]string{"b", "a"}, 0, 1, 0, 2, 1, 0, 1, 1),
		"a name twice as two":        blockBytes([]string{"a", "a"}, 0, 1, 0, 2, 0, 0, 1, 1),
		"an empty name many times":   append(blockBytes([]string{"", ""}, 0, 1, 0, 1<<19), make([]byte, 1<<20)...),
		"a huge label set":           blockBytes([]string{"a", big, "b"}, 0, 1, 0, 2, 0, 1, 2, 1),
		"huge label sets":            blockBytes([]string{"a", big}, heavy...),
		"very many labels":           blockBytes(names, wide...),
		"bytes left over":            blockBytes([]string{"a"}, 0, 1, 0, 1, 0, 0, 9),
	}
	// What repeats strings is bounded by the limits on label sets instead of the block's size.
	limits := map[string]uint64{"huge label sets": 2 * maxLabelBytes, "very many labels": 128 * MaxLabelSetBytes}
	for name, b := range cases {
		t.Run(name, func(t *testing.T) {
			var err error
			size := allocated(func() { _, err = readBlock(b) })
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v, want %v", err, ErrCorrupt)
			}
			if size > max(1<<20, 24*uint64(len(b)), limits[name]) {
				t.Errorf("%d bytes allocated for %d bytes", size, len(b))
			}
		})
	}
	if series, err := readBlock(blockBytes([]string{"a", "b"}, 0, 1, 0, 2, 0, 1, 1, 0)); err != nil || len(series) != 1 ||
		!labels.Equal(series[0].Labels, labels.FromStrings("a", "b", "b", "a")) {
		t.Errorf("%v, %v: the sound block is refused", fmt.Sprint(series), err)
	}
}
