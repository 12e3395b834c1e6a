package config

import (
	"log/slog"
	"regexp"
	"strconv"
	"strings"

	promconfig "github.com/prometheus/prometheus/config"
)

var (
	yamlErrorPattern = regexp.MustCompile(`(?s)^yaml: (?:line ([0-9]+): )?(.*)$`)
	// parserErrors are those the YAML parser finds one step after its scanner; their lines are counted from 0.
	parserErrors = regexp.MustCompile(`^(did not find expected (key|'-' indicator|',' or|node content|<document start>|<stream-start>)` +
		`|found undefined tag handle|found duplicate %|found incompatible YAML)`)
)

// syntaxError explains a text that is no YAML. Of the two decoders at hand, the one that Prometheus uses names the line
// where reading stopped, the other one often the line where the surrounding list or mapping began.
func syntaxError(file, text string, err error) error {
	if _, promErr := promconfig.Load(text, slog.New(slog.DiscardHandler)); promErr != nil {
		if s := promErr.Error(); strings.HasPrefix(s, "yaml: ") && !strings.HasPrefix(s, "yaml: unmarshal errors") {
			err = promErr
		}
	}
	return yamlError(file, text, err.Error())
}

// yamlError gives the text of a YAML decoder's error a line and a remedy.
func yamlError(file, text, message string) *Error {
	e := &Error{File: file, Line: 1, Message: "broken YAML: " + message}
	if m := yamlErrorPattern.FindStringSubmatch(message); m != nil {
		e.Message = "broken YAML: " + m[2]
		if m[1] != "" {
			e.Line, _ = strconv.Atoi(m[1])
			if parserErrors.MatchString(m[2]) {
				e.Line++
			}
		}
		message = m[2]
	}
	e.Line = min(e.Line, max(1, countLines(text)))
	switch {
	case strings.Contains(message, "control characters"):
		e.Line, e.Remedy = controlLine(text), "remove the character that cannot be seen"
	case strings.Contains(message, "cannot start any token"):
		e.Remedy = "indent with spaces, not tabs; put values that begin with @, ` or % in quotes"
	case strings.Contains(message, "anchor"):
		e.Line = anchorLine(text, message)
		e.Remedy = "set the anchor (&name) above the line that uses it (*name)"
	case strings.Contains(message, "mapping values are not allowed"):
		e.Remedy = "put a value that contains a colon and a space in quotes, or correct the indentation"
	default:
		e.Remedy = "look here and just above for wrong indentation, an open quote or bracket, or a missing colon"
	}
	return e
}

func countLines(text string) int {
	lines := 0
	for len(text) > 0 {
		_, _, text = nextLine(text)
		lines++
	}
	return lines
}

// controlLine returns the line of the first character that YAML does not allow.
func controlLine(text string) int {
	for line := 1; len(text) > 0; line++ {
		content, _, rest := nextLine(text)
		for _, r := range content {
			if r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 || r == 0xfffe || r == 0xffff {
				return line
			}
		}
		text = rest
	}
	return 1
}

var anchorName = regexp.MustCompile(`anchor '([^']+)'`)

// anchorLine returns the first line that uses the anchor an error speaks of, 0 where it cannot be told.
func anchorLine(text, message string) int {
	m := anchorName.FindStringSubmatch(message)
	if m == nil {
		return 0
	}
	for line := 1; len(text) > 0; line++ {
		content, _, rest := nextLine(text)
		if strings.Contains(content, "*"+m[1]) {
			return line
		}
		text = rest
	}
	return 0
}
