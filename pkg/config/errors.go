package config

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// Error is one thing wrong with a configuration file.
type Error struct {
	// File is the path of the file at fault, as it was given; for scrape_config_files the path that was resolved.
	File string
	// Line is the line in File, from 1; 0 where no line can be named.
	Line int
	// Key is the path of the key at fault, such as "millrace.streams.partitions"; empty where no key can be named.
	Key string
	// Message says what is wrong.
	Message string
	// Remedy says what to do about it.
	Remedy string

	cause error // what errors.Is and errors.As see, where another error lies behind this one
}

// Error returns "file:line: key: message: remedy"; what is not known is left out.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(e.Line))
	}
	for _, part := range []string{e.Key, e.Message, e.Remedy} {
		if part != "" {
			b.WriteString(": ")
			b.WriteString(part)
		}
	}
	return b.String()
}

// Unwrap returns the error behind this one, nil where there is none.
func (e *Error) Unwrap() error { return e.cause }

// Errors is everything found wrong in one pass, ordered by line. [Load] returns it when there is more than one.
type Errors []*Error

// Error returns one line for each error.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.Is and errors.As each error.
func (es Errors) Unwrap() []error {
	errs := make([]error, len(es))
	for i, e := range es {
		errs[i] = e
	}
	return errs
}

// asError returns nil for none, the *Error itself for one, and the list in the order of lines for more.
func (es Errors) asError() error {
	switch len(es) {
	case 0:
		return nil
	case 1:
		return es[0]
	}
	slices.SortStableFunc(es, func(a, b *Error) int { return a.Line - b.Line })
	return es
}

// AllErrors returns every *Error that err holds, for callers that print one a line. It returns nil where there is none.
func AllErrors(err error) []*Error {
	var list Errors
	if errors.As(err, &list) {
		return list
	}
	var one *Error
	if errors.As(err, &one) {
		return []*Error{one}
	}
	return nil
}
