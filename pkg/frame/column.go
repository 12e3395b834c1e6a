package frame

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/value"
)

// A column of float64 values is two runs of bytes: a control byte per value, then the values' bytes.
//
// Most exposed values are integers or decimals with few digits, and a decimal m·10^-e whose m is an exact float64 is restored bit for bit by
// one division, since division rounds correctly. The control byte holds e in its upper five bits and the number of
// bytes of m (zigzag, little endian) in its lower three. Everything else (other NaNs, -0, infinities, subnormals, long fractions) is kept as
// its eight raw bytes. Control bytes of a scrape hardly change from one target to the next, which is what zstd lives on.
const (
	ctrlRaw   = 0xff // eight raw bytes follow
	ctrlStale = 0xfe // Prometheus's staleness marker; no bytes follow

	maxExponent = 17
	maxMantissa = 1 << 53
)

var pow10 = [maxExponent + 1]float64{
	1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17,
}

// appendColumn appends the values' control bytes to ctrl and their bytes to data.
func appendColumn(ctrl, data []byte, values []float64) ([]byte, []byte) {
	for _, v := range values {
		bits := math.Float64bits(v)
		if m := int64(v); float64(m) == v && m < maxMantissa && m > -maxMantissa && (m != 0 || bits == 0) {
			ctrl, data = appendMantissa(ctrl, data, m, 0)
			continue
		}
		if bits == value.StaleNaN {
			ctrl = append(ctrl, ctrlStale)
			continue
		}
		if m, e, ok := decimal(v); ok {
			ctrl, data = appendMantissa(ctrl, data, m, e)
			continue
		}
		ctrl = append(ctrl, ctrlRaw)
		data = binary.LittleEndian.AppendUint64(data, bits)
	}
	return ctrl, data
}

// decimal finds m and e with float64(m)/10^e == v, bit for bit.
func decimal(v float64) (m int64, e int, ok bool) {
	if a := math.Abs(v); a < 1e-17 || a >= maxMantissa || a != a {
		return 0, 0, false
	}
	for e := 1; e <= maxExponent; e++ {
		x := math.RoundToEven(v * pow10[e])
		if x >= maxMantissa || x <= -maxMantissa {
			return 0, 0, false
		}
		if x/pow10[e] == v {
			return int64(x), e, true
		}
	}
	return 0, 0, false
}

func appendMantissa(ctrl, data []byte, m int64, e int) ([]byte, []byte) {
	u := zigzag(m)
	start := len(data)
	for u != 0 {
		data = append(data, byte(u))
		u >>= 8
	}
	return append(ctrl, byte(e<<3|(len(data)-start))), data
}

// zigzag maps numbers near 0 of either sign to small ones.
func zigzag(d int64) uint64 { return uint64(d<<1) ^ uint64(d>>63) }

func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// readColumn appends one value for each control byte to values. It returns an error where data is too short or too long.
func readColumn(values []float64, ctrl, data []byte) ([]float64, error) {
	pos := 0
	for _, c := range ctrl {
		switch c {
		case ctrlStale:
			values = append(values, math.Float64frombits(value.StaleNaN))
			continue
		case ctrlRaw:
			if pos+8 > len(data) {
				return values, fmt.Errorf("%w: value column ends early", ErrCorrupt)
			}
			values = append(values, math.Float64frombits(binary.LittleEndian.Uint64(data[pos:])))
			pos += 8
			continue
		}
		e, n := int(c>>3), int(c&7)
		if e > maxExponent || pos+n > len(data) {
			return values, fmt.Errorf("%w: value column: control byte %#x at byte %d of %d", ErrCorrupt, c, pos, len(data))
		}
		var u uint64
		if pos+8 <= len(data) {
			u = binary.LittleEndian.Uint64(data[pos:]) & (1<<(8*n) - 1)
		} else {
			for i := range n {
				u |= uint64(data[pos+i]) << (8 * i)
			}
		}
		pos += n
		m := unzigzag(u)
		if e == 0 {
			values = append(values, float64(m))
		} else {
			values = append(values, float64(m)/pow10[e])
		}
	}
	if pos != len(data) {
		return values, fmt.Errorf("%w: value column has %d bytes too many", ErrCorrupt, len(data)-pos)
	}
	return values, nil
}
