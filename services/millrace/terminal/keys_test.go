package terminal

import (
	"slices"
	"testing"
)

func TestKeysAreRead(t *testing.T) {
	for _, c := range []struct {
		in   string
		keys []Key
		rest string
	}{
		{"jq", []Key{'j', 'q'}, ""},
		{"\x03\x1a\t", []Key{CtrlC, CtrlZ, Tab}, ""},
		{"\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[H\x1b[4~\x1b[Z", []Key{Up, Down, PageUp, PageDown, Home, End, BackTab}, ""},
		{"\x1b[1;5Ax", []Key{Up, 'x'}, ""},
		{"\x1b[200~é", []Key{Unknown, 'é'}, ""},
		{"a\x1b", []Key{'a'}, "\x1b"},
		{"\x1b[", nil, "\x1b["},
		{"\x1b[5", nil, "\x1b[5"},
		{"\x1bx", []Key{Unknown, 'x'}, ""},
		{"\xc3", nil, "\xc3"},
		{"\x1b[;;;;;;;;;;;;;;;;;;", []Key{Unknown}, ""},
	} {
		keys, rest := parse([]byte(c.in))
		if !slices.Equal(keys, c.keys) || string(rest) != c.rest {
			t.Errorf("%q: keys %q, rest %q", c.in, keys, rest)
		}
	}
}
