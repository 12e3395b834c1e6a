package writer

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/pkg/remotewrite"
)

// parts is a remote_write message taken apart, so that a piece of it can be sent by itself: what all pieces need (the symbols of
// version 2.0), and the time series, each with its field's header.
type parts struct {
	shared []byte
	series [][]byte
}

// Field numbers of the time series in prometheus.WriteRequest and io.prometheus.write.v2.Request.
const (
	fieldSeriesV1 = 1
	fieldSeriesV2 = 5
)

func takeApart(p remotewrite.Protocol, raw []byte) (parts, error) {
	field := protowire.Number(fieldSeriesV1)
	if p == remotewrite.V2 {
		field = fieldSeriesV2
	}
	var out parts
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return out, fmt.Errorf("taking a request apart: %w", protowire.ParseError(n))
		}
		m := protowire.ConsumeFieldValue(num, typ, raw[n:])
		if m < 0 {
			return out, fmt.Errorf("taking a request apart: %w", protowire.ParseError(m))
		}
		if num == field {
			out.series = append(out.series, raw[:n+m])
		} else {
			out.shared = append(out.shared, raw[:n+m]...)
		}
		raw = raw[n+m:]
	}
	if len(out.series) == 0 {
		return out, errors.New("taking a request apart: it has no time series")
	}
	return out, nil
}

// body returns the compressed message with the series from lo to hi.
func (x *parts) body(lo, hi int) []byte {
	raw := append([]byte(nil), x.shared...)
	for _, s := range x.series[lo:hi] {
		raw = append(raw, s...)
	}
	return s2.EncodeSnappy(nil, raw)
}
