package scraper

import (
	"math"
	"strconv"
	"unsafe"

	"github.com/prometheus/prometheus/model/value"
)

// exactPowers are the powers of ten that a float64 holds exactly.
var exactPowers = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

// readValue reads the value that text begins with, up to the first space or line break, and returns where it ends. It takes what
// instrumentation libraries write, in decimal notation, and returns the bits that [strconv.ParseFloat] returns; NaN is the normal one. All else is not ok: Prometheus's
// parser then has the word.
func readValue(text []byte) (v float64, end int, ok bool) {
	i, negative := 0, false
	if len(text) > 0 && text[0] == '-' {
		i, negative = 1, true
	}
	// mantissa * 10^exponent; it is exact while it has at most 19 digits.
	mantissa, exponent, digits, point := uint64(0), 0, 0, -1
	for ; i < len(text); i++ {
		c := text[i]
		if d := c - '0'; d <= 9 {
			mantissa = mantissa*10 + uint64(d)
			if mantissa > 0 || digits > 0 { // leading zeros do not count; one that has overflowed to 0 does
				digits++
			}
			continue
		}
		if c != '.' || point >= 0 {
			break
		}
		point = i + 1
	}
	from := 0
	if negative {
		from = 1
	}
	if i == from || i == from+1 && point >= 0 {
		return readRareValue(text) // no digit
	}
	if point >= 0 {
		exponent = point - i
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		n, e := readExponent(text[i+1:])
		if n == 0 {
			return readRareValue(text)
		}
		i += 1 + n
		exponent += e
	}
	if i == len(text) || text[i] != '\n' && text[i] != ' ' {
		return readRareValue(text)
	}
	if digits > 19 || mantissa > 1<<53 || exponent < -22 || exponent > 22 {
		return readRareValue(text)
	}
	// Both operands are exact, so the result is rounded once (Clinger, How to read floating point numbers accurately, 1990).
	v = float64(mantissa)
	if exponent < 0 {
		v /= exactPowers[-exponent]
	} else {
		v *= exactPowers[exponent]
	}
	if negative {
		v = -v
	}
	return v, i, true
}

// readExponent reads the digits behind an e, with their sign, and returns how many bytes it has read; none where that is no small number.
func readExponent(text []byte) (n, exponent int) {
	i, sign := 0, 1
	if len(text) > 0 && (text[0] == '+' || text[0] == '-') {
		if text[0] == '-' {
			sign = -1
		}
		i = 1
	}
	from := i
	for i < len(text) && text[i]-'0' <= 9 {
		exponent = exponent*10 + int(text[i]-'0')
		if i++; i-from > 4 {
			return 0, 0
		}
	}
	if i == from {
		return 0, 0
	}
	return i, sign * exponent
}

// readRareValue reads a value that takes more care.
func readRareValue(text []byte) (v float64, end int, ok bool) {
	const longest = 400 // digits of a float64 written out
	for end < len(text) && end < longest && text[end] != '\n' && text[end] != ' ' {
		switch c := text[end]; {
		case c-'0' <= 9, c == '.', c == '-', c == '+', c == 'e', c == 'E':
		case c == 'N', c == 'a', c == 'I', c == 'n', c == 'f':
		default:
			return 0, 0, false
		}
		end++
	}
	if end == len(text) || end == longest || end == 0 {
		return 0, 0, false
	}
	v, err := strconv.ParseFloat(unsafe.String(unsafe.SliceData(text), end), 64)
	if err != nil {
		return 0, 0, false
	}
	if math.IsNaN(v) {
		v = math.Float64frombits(value.NormalNaN)
	}
	return v, end, true
}

// readTimestamp reads the digits that text begins with, which a line break ends, and returns what follows it.
func readTimestamp(text []byte) (t int64, end int, ok bool) {
	for end < len(text) && text[end]-'0' <= 9 {
		t = t*10 + int64(text[end]-'0')
		if end++; end > 18 {
			return 0, 0, false
		}
	}
	if end == 0 || end == len(text) || text[end] != '\n' {
		return 0, 0, false
	}
	return t, end + 1, true
}
