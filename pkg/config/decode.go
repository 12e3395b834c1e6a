package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	promcommon "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"
)

// decoder reads the millrace block strictly: each key that is unknown, repeated or of the wrong kind is an error of its
// own, with its line.
type decoder struct {
	file  string
	block *pair
	lines map[string]int // the lines of the keys that are set, by their path
	errs  Errors
}

// newDecoder returns a decoder for the block, nil where the file has none.
func newDecoder(file string, block *pair) *decoder {
	return &decoder{file: file, block: block, lines: map[string]int{}}
}

// decode sets in m what the block sets; the rest of m stays.
func (d *decoder) decode(m *Millrace) {
	if d.block == nil {
		return
	}
	d.lines[blockKey] = d.block.key.Line
	d.mapping(*d.block, reflect.ValueOf(m).Elem(), blockKey)
}

// fail notes an error at the line of path, or of the nearest key above it that is in the file.
func (d *decoder) fail(path, message, remedy string) {
	d.errs = append(d.errs, &Error{File: d.file, Line: d.line(path), Key: path, Message: message, Remedy: remedy})
}

func (d *decoder) line(path string) int {
	for {
		if line, ok := d.lines[path]; ok {
			return line
		}
		dot := strings.LastIndexByte(path, '.')
		if dot < 0 {
			return 0
		}
		path = path[:dot]
	}
}

// isSet tells whether the file gives the key at path a value.
func (d *decoder) isSet(path string) bool {
	_, ok := d.lines[path]
	return ok
}

// mapping fills the struct into from the mapping that p's key leads to.
func (d *decoder) mapping(p pair, into reflect.Value, path string) {
	if isNull(p.value) {
		return
	}
	node := resolve(p.value)
	fields := yamlFields(into.Type())
	if node.Kind != yaml.MappingNode {
		d.fail(path, "want keys below it, have "+describeKind(node), "the keys are "+fieldList(fields))
		return
	}
	seen := map[string]bool{}
	for _, p := range ownPairs(node) {
		if seen[p.key.Value] && p.key.Tag != "!!merge" {
			d.errs = append(d.errs, &Error{
				File: d.file, Line: p.key.Line, Key: joinKey(path, p.key.Value),
				Message: "is there twice", Remedy: "keep one",
			})
		}
		seen[p.key.Value] = true
	}
	for _, p := range allPairs(node) {
		key := p.key.Value
		at := joinKey(path, key)
		i := slices.IndexFunc(fields, func(f yamlField) bool { return f.key == key })
		if i < 0 || resolve(p.key).Kind != yaml.ScalarNode {
			d.errs = append(d.errs, d.unknown(p.key.Line, path, key, fields))
			continue
		}
		if _, again := d.lines[at]; again || isNull(p.value) {
			continue
		}
		d.lines[at] = p.key.Line
		value := into.FieldByIndex(fields[i].index)
		if value.Kind() == reflect.Struct {
			d.mapping(p, value, at)
			continue
		}
		d.scalar(p, value, at)
	}
}

// scalar reads one value.
func (d *decoder) scalar(p pair, into reflect.Value, path string) {
	node := resolve(p.value)
	want := describeType(into.Interface())
	if _, list := into.Interface().([]string); list {
		d.words(node, into, path)
		return
	}
	if node.Kind != yaml.ScalarNode {
		d.fail(path, "want "+want+", have "+describeKind(node), "write it behind the colon")
		return
	}
	// A quoted scalar is text, yet "10GiB" and 10GiB say the same.
	if err := node.Decode(into.Addr().Interface()); err != nil {
		have := fmt.Sprintf("%q", node.Value)
		if _, secret := into.Interface().(promcommon.Secret); secret {
			have = "something else"
		}
		d.fail(path, "want "+want+", have "+have, "correct the value")
	}
}

// words reads a list of texts.
func (d *decoder) words(node *yaml.Node, into reflect.Value, path string) {
	if node.Kind != yaml.SequenceNode {
		d.fail(path, "want a list, have "+describeKind(node), "write it as [one, two]")
		return
	}
	list := []string{}
	for _, item := range node.Content {
		if item = resolve(item); item.Kind != yaml.ScalarNode || isNull(item) {
			d.fail(path, "want texts in the list, have "+describeKind(item), "write it as [one, two]")
			return
		}
		list = append(list, item.Value)
	}
	into.Set(reflect.ValueOf(list))
}

func (d *decoder) unknown(line int, path, key string, fields []yamlField) *Error {
	e := &Error{File: d.file, Line: line, Key: joinKey(path, key), Message: "unknown key"}
	if slices.Contains(prometheusSections(), key) {
		e.Remedy = "it belongs at the top level of the file"
		return e
	}
	var keys []string
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	var ok bool
	if e.Remedy, ok = belongsUnder(key); ok {
		return e
	}
	if e.Remedy, ok = didYouMean(key, keys); ok {
		return e
	}
	var all []string
	for known := range millraceKeys() {
		all = append(all, known)
	}
	slices.Sort(all)
	if near, ok := didYouMean(key, all); ok {
		where, _ := belongsUnder(strings.TrimSuffix(strings.TrimPrefix(near, "did you mean "), ":?"))
		e.Remedy = near + " " + where
		return e
	}
	e.Remedy = "the keys here are " + strings.Join(keys, ", ")
	return e
}

func fieldList(fields []yamlField) string {
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	return strings.Join(keys, ", ")
}

// describeType says what a field wants.
func describeType(v any) string {
	switch v.(type) {
	case model.Duration:
		return "a duration such as 500ms or 24h"
	case ByteSize:
		return "a size such as 64MiB or a number of bytes"
	case Sync:
		return "always or a duration such as 2s"
	case bool:
		return "true or false"
	case int:
		return "a whole number"
	case float64:
		return "a number"
	}
	return "text"
}

// describeKind says what a node is.
func describeKind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "keys and values"
	}
	return "a single value"
}
