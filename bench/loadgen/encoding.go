package loadgen

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// negotiate chooses the encoding of an answer: the first of zstd and gzip that the request lists without a zero quality, in
// the request's own order, or "" for identity. Only one of them is allowed unless only is "".
func negotiate(request http.Header, only string) string {
	for part := range strings.SplitSeq(request.Get("Accept-Encoding"), ",") {
		name, parameters, _ := strings.Cut(part, ";")
		if q := strings.ReplaceAll(parameters, " ", ""); q == "q=0" || strings.HasPrefix(q, "q=0.0") {
			continue
		}
		switch name = strings.TrimSpace(name); name {
		case "zstd", "gzip":
			if only == "" || only == name {
				return name
			}
		}
	}
	return ""
}

// encoders compresses bodies at the fastest level. The zero value is ready to use; it is safe for concurrent use.
type encoders struct {
	gzip, zstd sync.Pool
}

// append appends data to dst in the given encoding, "gzip" or "zstd".
func (e *encoders) append(dst []byte, encoding string, data []byte) ([]byte, error) {
	if encoding == "zstd" {
		w, _ := e.zstd.Get().(*zstd.Encoder)
		if w == nil {
			var err error
			if w, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1)); err != nil {
				return nil, fmt.Errorf("making a zstd encoder: %w", err)
			}
		}
		defer e.zstd.Put(w)
		return w.EncodeAll(data, dst), nil
	}
	out := bytes.NewBuffer(dst)
	w, _ := e.gzip.Get().(*gzip.Writer)
	if w == nil {
		var err error
		if w, err = gzip.NewWriterLevel(out, gzip.BestSpeed); err != nil {
			return nil, fmt.Errorf("making a gzip encoder: %w", err)
		}
	}
	defer e.gzip.Put(w)
	w.Reset(out)
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("compressing a body: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compressing a body: %w", err)
	}
	return out.Bytes(), nil
}
