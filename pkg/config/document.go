package config

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// blockKey is the top-level key of the millrace block.
const blockKey = "millrace"

// document is a file's text and what it says, so that things found later can be told by their line.
type document struct {
	file string
	// rest is the text for Prometheus: all of it but the millrace block, whose lines are blank.
	rest string
	// root is the first document's top level: a mapping, or nil where the file holds nothing.
	root *yaml.Node
	// further are the top levels of the documents after the first, which Prometheus does not read.
	further []*yaml.Node
	// global is the global section that the scrape configs here are completed from; nil where there is none.
	global *yaml.Node
	// isScrapeFile is set for one of scrape_config_files.
	isScrapeFile bool
}

// newDocument parses a file's text, UTF-8, into nodes.
func newDocument(file, text string) (*document, error) {
	d := &document{file: file, rest: text}
	roots, err := parseRoots(text)
	if err != nil {
		return nil, syntaxError(file, text, err)
	}
	if len(roots) > 0 {
		d.root, d.further = roots[0], roots[1:]
	}
	if isNull(d.root) {
		d.root = nil
	}
	if d.root != nil && d.root.Kind != yaml.MappingNode {
		return nil, &Error{
			File: file, Line: d.root.Line, Message: "the top level is " + describeKind(d.root),
			Remedy: "write sections such as scrape_configs: and remote_write: each on a line of its own",
		}
	}
	d.global = lookup(d.root, "global").value
	return d, nil
}

// parseRoots returns the top-level node of each document in text. Documents after a broken second one are left out:
// they do not count.
func parseRoots(text string) ([]*yaml.Node, error) {
	var roots []*yaml.Node
	decoder := yaml.NewDecoder(strings.NewReader(text))
	for {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return roots, nil
		}
		if err != nil && len(roots) > 0 {
			return roots, nil
		}
		if err != nil {
			return nil, err
		}
		if len(doc.Content) > 0 {
			roots = append(roots, doc.Content[0])
		}
	}
}

// cutMillrace returns the value of the top-level millrace key, nil where there is none, and blanks its lines in rest.
// Afterwards root no longer has the key.
func (d *document) cutMillrace() (*pair, error) {
	for _, root := range d.further {
		for _, p := range ownPairs(root) {
			if p.key.Value == blockKey {
				return nil, d.blockError(p.key.Line, "stands in the file's second or a later YAML document",
					"move it into the first one, above the line ---")
			}
		}
	}
	at := -1
	pairs := ownPairs(d.root)
	for i, p := range pairs {
		if p.key.Value != blockKey {
			continue
		}
		if at >= 0 {
			return nil, d.blockError(p.key.Line, "is there twice",
				fmt.Sprintf("join it with the one at line %d", pairs[at].key.Line))
		}
		at = i
	}
	if at < 0 {
		return nil, nil
	}
	block := pairs[at]
	remaining := *d.root
	remaining.Content = append(append([]*yaml.Node{}, d.root.Content[:2*at]...), d.root.Content[2*at+2:]...)
	if err := d.checkAnchors(block, &remaining); err != nil {
		return nil, err
	}

	next := 0 // the line at which the next key stands
	if at+1 < len(pairs) {
		next = pairs[at+1].key.Line
	}
	rest := blankLines(d.rest, block.key.Line, next)
	if d.root.Style&yaml.FlowStyle != 0 || !saysSame(rest, &remaining) {
		return nil, d.blockError(block.key.Line, "cannot be told apart from what stands around it",
			"write each top-level key of the file at the start of a line of its own, not in braces")
	}
	d.rest = rest
	d.root = &remaining
	return &block, nil
}

func (d *document) blockError(line int, message, remedy string) *Error {
	return &Error{File: d.file, Line: line, Key: blockKey, Message: message, Remedy: remedy}
}

// checkAnchors refuses anchors set in the block and used outside, which Prometheus would no longer find.
func (d *document) checkAnchors(block pair, remaining *yaml.Node) error {
	inside := map[*yaml.Node]bool{}
	var collect func(n *yaml.Node)
	collect = func(n *yaml.Node) {
		if n.Anchor != "" {
			inside[n] = true
		}
		for _, child := range n.Content {
			collect(child)
		}
	}
	collect(block.key)
	collect(block.value)
	var check func(n *yaml.Node) error
	check = func(n *yaml.Node) error {
		if n.Kind == yaml.AliasNode && inside[n.Alias] {
			return d.blockError(n.Line, fmt.Sprintf("anchor &%s is set inside the block and used outside it", n.Value),
				"write the value out here, or set the anchor in another section")
		}
		for _, child := range n.Content {
			if err := check(child); err != nil {
				return err
			}
		}
		return nil
	}
	return check(remaining)
}

// blankLines empties the lines of text from the line first up to, not including, the line next; next 0 means up to the
// end of the first YAML document. Line breaks stay as they are.
func blankLines(text string, first, next int) string {
	var b strings.Builder
	b.Grow(len(text))
	ended := false
	for line := 1; len(text) > 0; line++ {
		content, lineBreak, after := nextLine(text)
		text = after
		if line > first && next == 0 && isDocumentMark(content) {
			ended = true
		}
		if line < first || (next > 0 && line >= next) || ended {
			b.WriteString(content)
		}
		b.WriteString(lineBreak)
	}
	return b.String()
}

// nextLine cuts the first line off text at what YAML 1.1 takes for a line break.
func nextLine(text string) (content, lineBreak, rest string) {
	for i, r := range text {
		switch r {
		case '\n', '\u0085', '\u2028', '\u2029':
			end := i + utf8.RuneLen(r)
			return text[:i], text[i:end], text[end:]
		case '\r':
			end := i + 1
			if strings.HasPrefix(text[end:], "\n") {
				end++
			}
			return text[:i], text[i:end], text[end:]
		}
	}
	return text, "", ""
}

// isDocumentMark tells whether a line ends a YAML document.
func isDocumentMark(line string) bool {
	for _, mark := range []string{"---", "..."} {
		if after, ok := strings.CutPrefix(line, mark); ok && (after == "" || after[0] == ' ' || after[0] == '\t') {
			return true
		}
	}
	return false
}

// saysSame tells whether text, parsed, is the mapping want with every node at its line.
func saysSame(text string, want *yaml.Node) bool {
	roots, err := parseRoots(text)
	if err != nil {
		return false
	}
	if len(want.Content) == 0 {
		return len(roots) == 0 || isNull(roots[0])
	}
	if len(roots) == 0 || roots[0].Kind != yaml.MappingNode || len(roots[0].Content) != len(want.Content) {
		return false
	}
	for i := range want.Content {
		if !sameNode(roots[0].Content[i], want.Content[i]) {
			return false
		}
	}
	return true
}

// place is a spot in a document, for errors and warnings.
type place struct {
	file string
	line int
	key  string
}

// at returns the place of a top-level key, or of an item of it where one is given (-1: none).
func (d *document) at(key string, item int) place {
	p := lookup(d.root, key)
	if p.key == nil {
		return place{file: d.file, key: key}
	}
	list := items(p.value)
	if item < 0 || item >= len(list) {
		return place{file: d.file, line: p.key.Line, key: key}
	}
	return place{file: d.file, line: list[item].Line, key: fmt.Sprintf("%s[%d]", key, item)}
}

// below returns the place of a key beneath a node that stands at p, or p itself where there is no such key.
func (p place) below(n *yaml.Node, keys ...string) place {
	if found := lookup(n, keys...); found.key != nil {
		return place{file: p.file, line: found.key.Line, key: joinKey(p.key, strings.Join(keys, "."))}
	}
	return p
}

func (p place) error(message, remedy string) *Error {
	return &Error{File: p.file, Line: p.line, Key: p.key, Message: message, Remedy: remedy}
}

func (p place) warning(message string) string {
	return p.error(message, "").Error()
}
