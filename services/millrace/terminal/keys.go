package terminal

import (
	"strings"
	"unicode/utf8"
)

// Key is a key: a character, or one of those below.
type Key rune

// Keys that are no characters.
const (
	Up Key = -1 - iota
	Down
	PageUp
	PageDown
	Home
	End
	BackTab
	Unknown // one that means nothing here
)

// Characters with names.
const (
	CtrlC Key = 3
	Tab   Key = 9
	CtrlL Key = 12
	CtrlZ Key = 26
)

// sequences are what terminals send for keys, after the escape character.
var sequences = map[string]Key{
	"[A": Up, "OA": Up, "[B": Down, "OB": Down, "[5~": PageUp, "[6~": PageDown,
	"[H": Home, "OH": Home, "[1~": Home, "[7~": Home, "[F": End, "OF": End, "[4~": End, "[8~": End, "[Z": BackTab,
}

// read reads keys until the terminal has gone.
func (t *Terminal) read() {
	defer close(t.keys)
	var held []byte
	buf := make([]byte, 256)
	for {
		n, err := t.in.Read(buf)
		if err != nil || n == 0 {
			return
		}
		var keys []Key
		keys, held = parse(append(held, buf[:n]...))
		for _, k := range keys {
			if k == CtrlZ {
				t.signals.suspend()
				continue
			}
			t.keys <- k
		}
	}
}

// parse reads keys, and returns what may be the beginning of another.
func parse(b []byte) (keys []Key, rest []byte) {
	for len(b) > 0 {
		if b[0] == 0x1b {
			n, key, whole := parseSequence(b[1:])
			if !whole {
				return keys, b
			}
			keys, b = append(keys, key), b[1+n:]
			continue
		}
		if !utf8.FullRune(b) {
			return keys, b
		}
		r, n := utf8.DecodeRune(b)
		keys, b = append(keys, Key(r)), b[n:]
	}
	return keys, nil
}

// parseSequence reads what follows an escape character: its length, and whether all of it is there.
func parseSequence(b []byte) (n int, key Key, whole bool) {
	if len(b) == 0 {
		return 0, 0, false
	}
	if b[0] != '[' && b[0] != 'O' {
		return 0, Unknown, true // the escape key, and another after it
	}
	for i := 1; i < len(b); i++ {
		if c := b[i]; c >= '@' && c <= '~' {
			s := string(b[:i+1])
			if key, ok := sequences[s]; ok {
				return i + 1, key, true
			}
			// With a modifier, as in [1;5A, it is the same key.
			if start, end := strings.IndexByte(s, ';'), s[len(s)-1:]; start > 0 && end != "~" {
				if key, ok := sequences["["+end]; ok {
					return i + 1, key, true
				}
			}
			return i + 1, Unknown, true
		}
	}
	if len(b) > 16 {
		return len(b), Unknown, true // no key is that long
	}
	return 0, 0, false
}
