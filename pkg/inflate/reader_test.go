package inflate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
)

// pack returns what the library makes of b at a level.
func pack(t testing.TB, b []byte, level int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// recorded is a real scrape of a node_exporter.
func recorded(t testing.TB) []byte {
	t.Helper()
	packed, err := os.ReadFile(filepath.Join("testdata", "node_exporter.txt.gz"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func texts(t testing.TB) map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	few := make([]byte, 600_000)
	for i := range few {
		few[i] = "abc"[r.IntN(3)]
	}
	skewed := make([]byte, 600_000) // long codes
	for i := range skewed {
		skewed[i] = byte(min(r.ExpFloat64()*9, 255))
	}
	scrape := recorded(t)
	return map[string][]byte{
		"nothing": {}, "a byte": {7}, "a scrape": scrape, "scrapes": bytes.Repeat(scrape, 12), "zeros": make([]byte, 1_000_000), "noise": noise, "few letters": few,
		"skewed": skewed, "short periods": []byte(strings.Repeat("ab", 1000) + strings.Repeat("abc", 1000) + strings.Repeat("abcdefg", 1000)),
		"mixed": slicesOf(scrape, noise[:70_000], scrape, few[:70_000]),
	}
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestUnpacksWhatLibrariesPack(t *testing.T) {
	z := NewReader()
	for name, text := range texts(t) {
		for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, gzip.BestSpeed, gzip.DefaultCompression, gzip.BestCompression} {
			t.Run(fmt.Sprintf("%s, level %d", name, level), func(t *testing.T) {
				packed := pack(t, text, level)
				sources := map[string]io.Reader{"at once": bytes.NewReader(packed), "the end with the last bytes": iotest.DataErrReader(bytes.NewReader(packed))}
				if len(packed) < 100_000 {
					sources["byte by byte"] = iotest.OneByteReader(bytes.NewReader(packed))
				}
				for kind, src := range sources {
					z.Reset(src)
					got, err := io.ReadAll(z)
					if err != nil || !bytes.Equal(got, text) {
						t.Errorf("%s: %d bytes, %v; want %d", kind, len(got), err, len(text))
					}
				}
			})
		}
	}
}

func TestUnpacksSeveralMembersAndHeadersWithEverything(t *testing.T) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Name, w.Comment, w.Extra = "a name", "a comment", []byte("extra")
	_, _ = w.Write([]byte("first "))
	_ = w.Close()
	out.Write(pack(t, nil, 6))
	out.Write(pack(t, []byte("second"), 6))
	z := NewReader()
	z.Reset(&out)
	if got, err := io.ReadAll(z); err != nil || string(got) != "first second" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNamesWhatIsWrong(t *testing.T) {
	whole := pack(t, recorded(t), 6)
	changed := func(at int, b byte) []byte {
		c := bytes.Clone(whole)
		c[at] ^= b
		return c
	}
	for name, test := range map[string]struct {
		packed []byte
		want   error
	}{
		"empty":                {nil, io.ErrUnexpectedEOF},
		"ends in the header":   {whole[:5], io.ErrUnexpectedEOF},
		"ends in a block":      {whole[:len(whole)/2], io.ErrUnexpectedEOF},
		"ends in the trailer":  {whole[:len(whole)-3], io.ErrUnexpectedEOF},
		"no gzip":              {[]byte("# HELP up The target is up.\n"), ErrCorrupt},
		"wrong checksum":       {changed(len(whole)-6, 1), ErrCorrupt},
		"wrong size":           {changed(len(whole)-1, 1), ErrCorrupt},
		"something behind it":  {append(bytes.Clone(whole), "and so on, and so forth"...), ErrCorrupt},
		"a block of no type":   {[]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 7}, ErrCorrupt},
		"reaches into nothing": {[]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0}, ErrCorrupt},
	} {
		z := NewReader()
		z.Reset(bytes.NewReader(test.packed))
		if _, err := io.ReadAll(z); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	z := NewReader()
	broken := errors.New("broken")
	z.Reset(io.MultiReader(bytes.NewReader(whole[:1000]), iotest.ErrReader(broken)))
	if _, err := io.ReadAll(z); !errors.Is(err, broken) {
		t.Errorf("the source's error: %v", err)
	}
}

// FuzzReader compares with the library: the same bytes, and an error where it has one.
func FuzzReader(f *testing.F) {
	for _, text := range texts(f) {
		f.Add(pack(f, text[:min(len(text), 20_000)], 6), uint16(0), byte(0))
	}
	f.Fuzz(func(t *testing.T, packed []byte, at uint16, flip byte) {
		if len(packed) > 0 {
			packed = bytes.Clone(packed)
			packed[int(at)%len(packed)] ^= flip
		}
		z := NewReader()
		z.Reset(bytes.NewReader(packed))
		got, err := io.ReadAll(io.LimitReader(z, 16<<20))
		var want []byte
		r, wrong := gzip.NewReader(bytes.NewReader(packed))
		if wrong == nil {
			want, wrong = io.ReadAll(io.LimitReader(r, 16<<20))
		}
		if (err == nil) != (wrong == nil) {
			t.Fatalf("%v, the library: %v", err, wrong)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("other bytes than the library")
		}
	})
}

func BenchmarkScrape(b *testing.B) {
	text := recorded(b)
	packed := pack(b, text, gzip.DefaultCompression)
	src := bytes.NewReader(nil)
	own, theirs, std := NewReader(), new(kgzip.Reader), new(gzip.Reader)
	buf := make([]byte, len(text)+1)
	for _, bench := range []struct {
		name string
		open func() (io.Reader, error)
	}{
		{"inflate", func() (io.Reader, error) { own.Reset(src); return own, nil }},
		{"klauspost", func() (io.Reader, error) { return theirs, theirs.Reset(src) }},
		{"standard", func() (io.Reader, error) { return std, std.Reset(src) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				src.Reset(packed)
				r, err := bench.open()
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.ReadFull(r, buf); err != io.ErrUnexpectedEOF || n != len(text) {
					b.Fatal(n, err)
				}
			}
		})
	}
}
