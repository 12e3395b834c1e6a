package readable

import (
	"testing"
	"time"
)

func TestFormats(t *testing.T) {
	for want, got := range map[string]string{
		"0": Count(0), "9,999": Count(9999), "10 k": Count(10000), "51.2 k": Count(51234),
		"1 M": Count(999_950), "123 G": Count(123e9), "1.5": Count(1.5), "12.3": Count(12.34), "0.33": Count(1. / 3),
		"-1,234": Count(-1234), "999 T": Count(999e12), "5.00e+18": Count(5e18),
		"18,446,744,073,709,551,615": Exact(1<<64 - 1),
		"1023 B":                     Bytes(1023), "1 KiB": Bytes(1024), "3.5 MiB": Bytes(3_670_016), "16 EiB": Bytes(1<<64 - 1),
		"0 s": Duration(0), "< 1 ms": Duration(time.Microsecond), "999 ms": Duration(999 * time.Millisecond),
		"1 s": Duration(999_900 * time.Microsecond), "1.5 s": Duration(1500 * time.Millisecond), "59 s": Duration(59 * time.Second),
		"1 min": Duration(60 * time.Second), "3 h 4 min": Duration(3*time.Hour + 4*time.Minute + 5*time.Second),
		"2 d": Duration(48 * time.Hour), "11,574 d 1 h": Seconds(1e300),
		"äö…": Shorten("äöü", 2), "äöü": Shorten("äöü", 3),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
