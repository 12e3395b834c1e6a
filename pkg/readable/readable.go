package readable

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Count writes a number for reading: whole below 10,000, with thousands separated; above with three digits and
// k, M, G or T; fractions with at most two digits.
func Count(v float64) string {
	a := math.Abs(v)
	switch {
	case a >= 1e15:
		return strconv.FormatFloat(v, 'e', 2, 64)
	case a >= 9999.5:
		unit := 0
		for a >= 999.5 && unit < 4 {
			a, v = a/1000, v/1000
			unit++
		}
		return threeDigits(v) + " " + string(" kMGT"[unit])
	case a == math.Trunc(a) || a >= 100:
		return thousands(strconv.FormatFloat(v, 'f', 0, 64))
	case a >= 10:
		return trimFraction(strconv.FormatFloat(v, 'f', 1, 64))
	}
	return trimFraction(strconv.FormatFloat(v, 'f', 2, 64))
}

// Exact writes a whole number with its thousands separated.
func Exact(n uint64) string { return thousands(strconv.FormatUint(n, 10)) }

// Bytes writes a size in B, KiB, MiB and so on, with three digits.
func Bytes(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	v, unit := float64(n), 0
	for v >= 1023.5 && unit < 6 {
		v /= 1024
		unit++
	}
	return threeDigits(v) + " " + string(" KMGTPE"[unit]) + "iB"
}

// Duration writes a duration with its two largest units: 3 d 4 h, 1.5 s, 20 ms.
func Duration(d time.Duration) string {
	switch {
	case d <= 0:
		return "0 s"
	case d < time.Millisecond:
		return "< 1 ms"
	case d < time.Second-time.Millisecond/2:
		return strconv.FormatInt(d.Round(time.Millisecond).Milliseconds(), 10) + " ms"
	case d < 10*time.Second:
		return trimFraction(strconv.FormatFloat(d.Seconds(), 'f', 1, 64)) + " s"
	}
	seconds := int64(d.Round(time.Second) / time.Second)
	units := []struct {
		name    string
		seconds int64
	}{{"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}}
	for i, u := range units {
		if seconds < u.seconds {
			continue
		}
		out := Exact(uint64(seconds/u.seconds)) + " " + u.name
		if rest := seconds % u.seconds; i+1 < len(units) && rest >= units[i+1].seconds {
			out += " " + strconv.FormatInt(rest/units[i+1].seconds, 10) + " " + units[i+1].name
		}
		return out
	}
	return "0 s"
}

// Seconds is Duration for a number of seconds of any size.
func Seconds(seconds float64) string {
	const longest = 1e9 // some 31 years
	return Duration(time.Duration(min(seconds, longest) * float64(time.Second)))
}

// Shorten cuts a text that is too long to show, at a rune.
func Shorten(s string, maxRunes int) string {
	n := 0
	for i := range s {
		if n == maxRunes {
			return s[:i] + "…"
		}
		n++
	}
	return s
}

func threeDigits(v float64) string {
	a := math.Abs(v)
	decimals := 2
	if a >= 99.95 {
		decimals = 0
	} else if a >= 9.995 {
		decimals = 1
	}
	return trimFraction(strconv.FormatFloat(v, 'f', decimals, 64))
}

func trimFraction(s string) string {
	if !strings.Contains(s, ".") {
		return s
	}
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

func thousands(digits string) string {
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	var out strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			out.WriteByte(',')
		}
		out.WriteRune(d)
	}
	return sign + out.String()
}
