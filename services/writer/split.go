package writer

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/pkg/remotewrite"
)

// parts is a remote_write message taken apart, so that a piece of it can be sent by itself: what all pieces need (the symbols of
// version 2.0), and the time series, each with its field's header. A time series that has exemplars only stays with the one before it, whose
// exemplars they are, so that there is one piece for each sample.
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
	last := 0 // where the last piece begins in message
	message := raw
	for len(raw) > 0 {
		at := len(message) - len(raw)
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return out, fmt.Errorf("taking a request apart: %w", protowire.ParseError(n))
		}
		m := protowire.ConsumeFieldValue(num, typ, raw[n:])
		if m < 0 {
			return out, fmt.Errorf("taking a request apart: %w", protowire.ParseError(m))
		}
		switch {
		case num != field:
			out.shared = append(out.shared, raw[:n+m]...)
		case p == remotewrite.V1 && len(out.series) > 0 && exemplarsOnly(raw[n:n+m]):
			out.series[len(out.series)-1] = message[last : at+n+m]
		default:
			out.series = append(out.series, raw[:n+m])
			last = at
		}
		raw = raw[n+m:]
	}
	if len(out.series) == 0 {
		return out, errors.New("taking a request apart: it has no time series")
	}
	return out, nil
}

// Field numbers of samples and histograms in prometheus.TimeSeries.
const (
	fieldSamplesV1    = 2
	fieldHistogramsV1 = 4
)

// exemplarsOnly reports whether a time series of version 1.0, with its length before it, has neither samples nor histograms.
func exemplarsOnly(field []byte) bool {
	series, n := protowire.ConsumeBytes(field)
	if n < 0 {
		return false
	}
	for len(series) > 0 {
		num, _, n := protowire.ConsumeField(series)
		if n < 0 || num == fieldSamplesV1 || num == fieldHistogramsV1 {
			return false
		}
		series = series[n:]
	}
	return true
}

// body returns the compressed message with the series from lo to hi.
func (x *parts) body(lo, hi int) []byte {
	raw := append([]byte(nil), x.shared...)
	for _, s := range x.series[lo:hi] {
		raw = append(raw, s...)
	}
	return s2.EncodeSnappy(nil, raw)
}
