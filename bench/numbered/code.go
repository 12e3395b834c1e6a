package numbered

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Names that the generator writes and [Of] looks for.
const (
	// ScrapeMetric is a series of every target whose value is the number of the scrape.
	ScrapeMetric = "millrace_bench_scrape"
	// ShapeLabel is the label that holds a series' shape, see [Shape].
	ShapeLabel = "shape"
	// TargetLabel is the label, given by service discovery, that names a target: "t0", "t1" ….
	TargetLabel = "target"
)

// MaxStep bounds the step of a shape, so that values stay below 2^53 for 2^24 scrapes.
const MaxStep = 1 << 24

const (
	// gaugeBits is how many bits of the scrape number a gauge keeps: its values repeat after 2^24 scrapes.
	gaugeBits = 24
	gaugeMask = 1<<gaugeBits - 1
)

// Bounds are the upper bounds of a classic histogram of shape [Histogram]; +Inf follows them.
var Bounds = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}

// Kind is the way in which a value follows from the number of the scrape.
type Kind byte

// The kinds. Below, count(n) is n*step plus a pseudo-random part smaller than step that depends on n and the target.
const (
	// Plain is n itself.
	Plain Kind = 'n'
	// Counter is count(n).
	Counter Kind = 'c'
	// Seconds is count(n) + 0.25.
	Seconds Kind = 'q'
	// Gauge is a permutation of the 24-bit numbers, divided by 4.
	Gauge Kind = 'g'
	// Histogram is, for the i-th bucket counted from 1, i*count(n); for _count the same as for the +Inf bucket;
	// for _sum a quarter of that.
	Histogram Kind = 'h'
)

// Step brings a pseudo-random step into the range that suits the kind: bytes are counted in millions, seconds in few.
func (k Kind) Step(random uint64) uint64 {
	switch k {
	case Plain:
		return 1
	case Gauge:
		return random | 1
	case Seconds:
		return random%7 + 1
	case Histogram:
		return random%997 + 1
	default:
		return random>>(random%16) + 1
	}
}

// Shape is the text of a [ShapeLabel]: the kind and its step, for example "c7340".
func Shape(kind Kind, step uint64) string {
	return string(byte(kind)) + strconv.FormatUint(step, 10)
}

// Code turns the number of a scrape into the value of one series and back. The zero Code is not valid.
type Code struct {
	kind Kind
	step uint64
	// inverse is the inverse of step modulo 2^24, for gauges.
	inverse uint64
	// times is the factor of a histogram's series.
	times uint64
	// quarter says that the value is divided by four (_sum of a histogram).
	quarter bool
	seed    uint64
}

// Of returns the code of the series whose label values get returns ("" for an absent label). It reports false for a series
// that carries no number: one without shape or target label.
func Of(get func(name string) string) (Code, bool) {
	target := get(TargetLabel)
	if target == "" {
		return Code{}, false
	}
	name := get("__name__")
	shape := get(ShapeLabel)
	if name == ScrapeMetric && shape == "" {
		shape = Shape(Plain, 1)
	}
	code, err := Parse(shape, name, get("le"))
	if err != nil {
		return Code{}, false
	}
	return code.ForTarget(target), true
}

// Parse returns the code of a series from its shape, its metric name and, for a histogram bucket, its le label. The code is
// that of no target yet; see [Code.ForTarget].
func Parse(shape, name, le string) (Code, error) {
	if shape == "" {
		return Code{}, fmt.Errorf("series %s has no %s label", name, ShapeLabel)
	}
	step, err := strconv.ParseUint(shape[1:], 10, 64)
	if err != nil || step == 0 || step > MaxStep {
		return Code{}, fmt.Errorf("shape %q of series %s: want a kind and a step of 1 to %d", shape, name, MaxStep)
	}
	c := Code{kind: Kind(shape[0]), step: step, times: 1}
	switch c.kind {
	case Plain, Counter, Seconds:
	case Gauge:
		if step%2 == 0 {
			return Code{}, fmt.Errorf("shape %q of series %s: a gauge needs an odd step", shape, name)
		}
		c.inverse = inverse(step)
	case Histogram:
		c.times = uint64(len(Bounds) + 1)
		switch {
		case strings.HasSuffix(name, "_sum"):
			c.quarter = true
		case strings.HasSuffix(name, "_bucket"):
			bound, err := strconv.ParseFloat(le, 64)
			if err != nil {
				return Code{}, fmt.Errorf("le %q of series %s: %w", le, name, err)
			}
			if !math.IsInf(bound, 1) {
				i := slices.Index(Bounds, bound)
				if i < 0 {
					return Code{}, fmt.Errorf("le %q of series %s is none of the known bounds", le, name)
				}
				c.times = uint64(i + 1)
			}
		}
	default:
		return Code{}, fmt.Errorf("shape %q of series %s: unknown kind", shape, name)
	}
	return c, nil
}

// ForTarget returns the code for one target: targets with the same series have different values.
func (c Code) ForTarget(target string) Code {
	c.seed = TargetSeed(target)
	return c
}

// WithSeed is ForTarget for a caller that has called [TargetSeed] already.
func (c Code) WithSeed(seed uint64) Code {
	c.seed = seed
	return c
}

// TargetSeed is the number by which the values of a target differ from those of others.
func TargetSeed(target string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(target) {
		h = (h ^ uint64(target[i])) * 1099511628211
	}
	return h
}

// Value returns the value of the series in scrape n.
func (c Code) Value(n uint64) float64 { return float64(c.quarters(n)) / 4 }

// N returns the number of the scrape that has value v. It reports false if no scrape has it.
func (c Code) N(v float64) (uint64, bool) {
	q := v * 4
	if !(q >= 0 && q < 1<<60) || q != math.Trunc(q) {
		return 0, false
	}
	quarters := uint64(q)
	var n uint64
	switch c.kind {
	case Plain:
		n = quarters / 4
	case Counter, Seconds:
		n = quarters / 4 / c.step
	case Gauge:
		n = (quarters - c.seed) * c.inverse & gaugeMask
	case Histogram:
		if !c.quarter {
			quarters /= 4
		}
		n = quarters / c.times / c.step
	}
	return n, n > 0 && c.Value(n) == v
}

// Append appends the value of the series in scrape n to dst, written as Prometheus client libraries write it.
func (c Code) Append(dst []byte, n uint64) []byte { return appendQuarters(dst, c.quarters(n)) }

// quarters is four times the value of scrape n.
func (c Code) quarters(n uint64) uint64 {
	switch c.kind {
	case Plain:
		return 4 * n
	case Counter:
		return 4 * c.count(n)
	case Seconds:
		return 4*c.count(n) + 1
	case Gauge:
		return (n*c.step + c.seed) & gaugeMask
	default:
		v := c.count(n) * c.times
		if c.quarter {
			return v
		}
		return 4 * v
	}
}

// count is n steps and a part of the next one.
func (c Code) count(n uint64) uint64 {
	if c.step == 1 {
		return n
	}
	x := (n ^ c.seed ^ c.step<<32) * 0x9e3779b97f4a7c15
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	// The upper 32 bits as a fraction of the step: a division would cost more than all the rest.
	return n*c.step + (x>>32)*c.step>>32
}

// inverse returns x with odd*x = 1 modulo 2^24 by Newton's iteration, which doubles the right bits each time.
func inverse(odd uint64) uint64 {
	x := odd
	for range 5 {
		x *= 2 - odd*x
	}
	return x & gaugeMask
}

// appendQuarters appends q/4 as strconv.AppendFloat(dst, q/4, 'g', -1, 64) does, several times faster.
func appendQuarters(dst []byte, q uint64) []byte {
	const exponentFrom = 1_000_000 // where 'g' turns to exponents
	whole, fraction := q/4, q%4*25
	if whole < exponentFrom {
		dst = strconv.AppendUint(dst, whole, 10)
		switch fraction {
		case 25:
			return append(dst, ".25"...)
		case 50:
			return append(dst, ".5"...)
		case 75:
			return append(dst, ".75"...)
		}
		return dst
	}
	var digits [24]byte
	d := strconv.AppendUint(digits[:0], whole*100+fraction, 10)
	exponent := len(d) - 3
	for d[len(d)-1] == '0' {
		d = d[:len(d)-1]
	}
	dst = append(dst, d[0])
	if len(d) > 1 {
		dst = append(dst, '.')
		dst = append(dst, d[1:]...)
	}
	return append(dst, 'e', '+', byte('0'+exponent/10), byte('0'+exponent%10))
}
