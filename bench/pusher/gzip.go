package pusher

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"google.golang.org/grpc/encoding"
)

func init() { encoding.RegisterCompressor(new(gzipper)) }

// gzipper compresses by gzip at the fastest level, which is several times faster than the one that comes with gRPC. The zero
// value is ready to use; it is safe for concurrent use.
type gzipper struct{ writers sync.Pool }

// Name is the name of the encoding for gRPC and HTTP.
func (*gzipper) Name() string { return "gzip" }

// Compress returns a writer that compresses to w until it is closed.
func (g *gzipper) Compress(w io.Writer) (io.WriteCloser, error) {
	z, _ := g.writers.Get().(*gzip.Writer)
	if z == nil {
		var err error
		if z, err = gzip.NewWriterLevel(w, gzip.BestSpeed); err != nil {
			return nil, fmt.Errorf("making a gzip encoder: %w", err)
		}
	}
	z.Reset(w)
	return &pooledWriter{z, &g.writers}, nil
}

// Decompress returns a reader of what r has compressed.
func (*gzipper) Decompress(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }

// encode compresses data.
func (g *gzipper) encode(data []byte) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(len(data) / 4)
	w, err := g.Compress(&out)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("compressing a push: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compressing a push: %w", err)
	}
	return out.Bytes(), nil
}

// pooledWriter goes back to its pool when it is closed.
type pooledWriter struct {
	*gzip.Writer
	pool *sync.Pool
}

func (w *pooledWriter) Close() error {
	err := w.Writer.Close()
	w.pool.Put(w.Writer)
	return err
}
