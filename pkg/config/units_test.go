package config

import (
	"math"
	"testing"
)

func TestParseByteSize(t *testing.T) {
	cases := []struct {
		text string
		want ByteSize // -1: refused
	}{
		{"0", 0},
		{"512", 512},
		{"512B", 512},
		{"1KiB", 1024},
		{"64 MiB", 64 << 20},
		{" 10GiB ", 10 << 30},
		{"3TiB", 3 << 40},
		{"7PiB", 7 << 50},
		{"9223372036854775807", math.MaxInt64},
		{"9223372036854775808", -1},
		{"8192PiB", -1},
		{"", -1},
		{"GiB", -1},
		{"-1", -1},
		{"1.5GiB", -1},
		{"10GB", -1},
		{"10gib", -1},
		{"1e3", -1},
	}
	for _, c := range cases {
		got, err := ParseByteSize(c.text)
		if (err != nil) != (c.want < 0) || (err == nil && got != c.want) {
			t.Errorf("ParseByteSize(%q) = %d, %v, want %d", c.text, got, err, c.want)
		}
		if err != nil {
			continue
		}
		if back, err := ParseByteSize(got.String()); err != nil || back != got {
			t.Errorf("%q is printed as %q, which is %d, %v", c.text, got, back, err)
		}
	}
}
