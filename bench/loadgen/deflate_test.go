package loadgen

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestDeflatedLinesAreReadBack compresses lines of all lengths against others at all distances that occur.
func TestDeflatedLinesAreReadBack(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	line := func(length int) string {
		var b strings.Builder
		for b.Len() < length {
			fmt.Fprintf(&b, "label_%d=\"value-%d\xc3\xa9\",", random.IntN(4), random.IntN(30))
		}
		return b.String()[:length]
	}
	for range 20 {
		var plain []byte
		var d deflater
		d.begin(nil)
		before, beforeAt := "", 0
		for length := range 300 {
			filler := strings.Repeat("x", random.IntN(1+length*10))
			plain = append(plain, filler...)
			d.literals([]byte(filler))
			next := line(length)
			if random.IntN(2) == 0 {
				next = before + next
				next = next[:min(len(next), 700)]
			}
			d.line(tokenize([]byte(next), []byte(before)), len(plain)-beforeAt)
			before, beforeAt = next, len(plain)
			plain = append(plain, next...)
		}
		in, err := gzip.NewReader(bytes.NewReader(d.end(plain)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, plain) {
			t.Fatal("read back something else")
		}
	}
}
