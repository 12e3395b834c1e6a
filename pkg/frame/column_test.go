package frame

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func columnRoundTrip(t testing.TB, values []float64) (ctrl, data []byte) {
	t.Helper()
	ctrl, data = appendColumn(nil, nil, values)
	got, err := readColumn(nil, ctrl, data)
	if err != nil {
		t.Fatalf("reading the column: %v", err)
	}
	if len(got) != len(values) {
		t.Fatalf("%d values, want %d", len(got), len(values))
	}
	for i, v := range values {
		if math.Float64bits(got[i]) != math.Float64bits(v) {
			t.Fatalf("value %d: %v (%#x), want %v (%#x)", i, got[i], math.Float64bits(got[i]), v, math.Float64bits(v))
		}
	}
	return ctrl, data
}

func TestColumnKeepsEveryBit(t *testing.T) {
	cases := []struct {
		name  string
		value float64
		size  int // bytes with the control byte; 0 if of no interest
	}{
		{"zero", 0, 1},
		{"negative zero", negZero, 9},
		{"one", 1, 2},
		{"minus one", -1, 2},
		{"largest one-byte integer", 127, 2},
		{"two-byte integer", 128, 3},
		{"stale marker", staleNaN, 1},
		{"usual NaN", math.NaN(), 9},
		{"NaN beside the stale marker", math.Float64frombits(math.Float64bits(staleNaN) + 1), 9},
		{"signalling NaN", nan(1), 9},
		{"negative NaN with payload", math.Float64frombits(0xfff8_dead_beef_0001), 9},
		{"infinity", math.Inf(1), 9},
		{"negative infinity", math.Inf(-1), 9},
		{"least subnormal", math.SmallestNonzeroFloat64, 9},
		{"greatest subnormal", math.Float64frombits(1<<52 - 1), 9},
		{"least normal", math.Float64frombits(1 << 52), 9},
		{"largest", math.MaxFloat64, 9},
		{"2^53-1", 1<<53 - 1, 8},
		{"-(2^53-1)", -(1<<53 - 1), 8},
		{"2^53", 1 << 53, 9},
		{"2^53+1, which is 2^53+2", math.Nextafter(1<<53, math.Inf(1)), 9},
		{"2^63", 1 << 63, 9},
		{"-2^63", -(1 << 63), 9},
		{"2^64", 1 << 64, 9},
		{"0.1", 0.1, 2},
		{"-0.001", -0.001, 2},
		{"12.345", 12.345, 3},
		{"1e-17", 1e-17, 2},
		{"1e-18", 1e-18, 9},
		{"0.1+0.2", 0.30000000000000004, 9},
		{"pi", math.Pi, 0},
		{"third", 1. / 3, 0},
		{"large with fraction", 1<<52 + 0.5, 0},
		{"seconds since 1970", 1767225600.123, 7},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ctrl, data := columnRoundTrip(t, []float64{c.value})
			if n := len(ctrl) + len(data); c.size != 0 && n != c.size {
				t.Errorf("%v takes %d bytes, want %d", c.value, n, c.size)
			}
		})
	}
}

func TestColumnKeepsDecimalsOfEveryExponent(t *testing.T) {
	var values []float64
	for e := -30; e <= 30; e++ {
		for _, m := range []float64{1, 7, 123, 99999, 1<<31 + 1, 1<<53 - 1} {
			values = append(values, m*math.Pow10(e), -m*math.Pow10(e), m/math.Pow10(e))
		}
	}
	columnRoundTrip(t, values)
}

func TestColumnKeepsRandomValues(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	values := make([]float64, 1000)
	for range 2000 {
		for i := range values {
			values[i] = randomFloat(rng)
		}
		columnRoundTrip(t, values)
	}
}

func TestColumnRefusesBytesThatDoNotFit(t *testing.T) {
	cases := []struct {
		name       string
		ctrl, data []byte
	}{
		{"raw value cut", []byte{ctrlRaw}, make([]byte, 7)},
		{"mantissa cut", []byte{7}, make([]byte, 6)},
		{"bytes left over", []byte{1}, make([]byte, 2)},
		{"stale marker with bytes", []byte{ctrlStale}, make([]byte, 1)},
		{"exponent too large", []byte{(maxExponent + 1) << 3}, nil},
		{"exponent of the markers", []byte{0xfd}, make([]byte, 5)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, err := readColumn(nil, c.ctrl, c.data); !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v, want %v", err, ErrCorrupt)
			}
		})
	}
}

func FuzzColumn(f *testing.F) {
	for _, s := range scrapes(f)[:3] {
		ctrl, data := appendColumn(nil, nil, s.values)
		f.Add(ctrl, data)
	}
	ctrl, data := appendColumn(nil, nil, richFrame().Sections[0].Values)
	f.Add(ctrl, data)
	f.Fuzz(func(t *testing.T, ctrl, data []byte) {
		// What the bytes say is kept from then on, however oddly they say it.
		if values, err := readColumn(nil, ctrl, data); err == nil {
			columnRoundTrip(t, values)
		} else if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error %v is not %v", err, ErrCorrupt)
		}
		// Any eight bytes are a value.
		var values []float64
		for b := range slices.Chunk(data, 8) {
			if len(b) == 8 {
				values = append(values, math.Float64frombits(binary.LittleEndian.Uint64(b)))
			}
		}
		columnRoundTrip(t, values)
	})
}
