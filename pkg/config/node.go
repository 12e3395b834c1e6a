package config

import (
	"fmt"

	"gopkg.in/yaml.v3"
)

// maxNodeDepth bounds how deep aliases and merges are followed; YAML can tie them into rings.
const maxNodeDepth = 64

// pair is a key of a mapping with its value.
type pair struct{ key, value *yaml.Node }

// resolve follows aliases to the node they stand for; nil stays nil.
func resolve(n *yaml.Node) *yaml.Node {
	for range maxNodeDepth {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// isNull tells whether a node is absent or written as null.
func isNull(n *yaml.Node) bool {
	n = resolve(n)
	return n == nil || n.Kind == 0 || (n.Kind == yaml.ScalarNode && n.Tag == "!!null")
}

// ownPairs returns the keys written in a mapping itself, in order; nil where n is no mapping.
func ownPairs(n *yaml.Node) []pair {
	n = resolve(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	pairs := make([]pair, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.AliasNode {
			if target := resolve(key); target != nil {
				named := *target
				named.Line, key = key.Line, &named
			}
		}
		pairs = append(pairs, pair{key, n.Content[i+1]})
	}
	return pairs
}

// allPairs returns a mapping's own keys and then those merged into it by "<<" that it does not have itself.
func allPairs(n *yaml.Node) []pair { return mergedPairs(n, 0) }

func mergedPairs(n *yaml.Node, depth int) []pair {
	if depth > maxNodeDepth {
		return nil
	}
	var pairs []pair
	var merges []*yaml.Node
	have := map[string]bool{}
	for _, p := range ownPairs(n) {
		if p.key.Tag == "!!merge" {
			merges = append(merges, p.value)
			continue
		}
		have[p.key.Value] = true
		pairs = append(pairs, p)
	}
	for _, m := range merges {
		sources := []*yaml.Node{m}
		if r := resolve(m); r != nil && r.Kind == yaml.SequenceNode {
			sources = r.Content
		}
		for _, source := range sources {
			for _, p := range mergedPairs(source, depth+1) {
				if !have[p.key.Value] {
					have[p.key.Value] = true
					pairs = append(pairs, p)
				}
			}
		}
	}
	return pairs
}

// lookup returns the pair that a path of keys leads to, merged ones included; its fields are nil where there is none.
func lookup(n *yaml.Node, keys ...string) pair {
	found := pair{value: n}
	for _, key := range keys {
		next := pair{}
		for _, p := range allPairs(found.value) {
			if p.key.Value == key {
				next = p
				break
			}
		}
		if next.key == nil {
			return pair{}
		}
		found = next
	}
	return found
}

// items returns the elements of a sequence; nil where n is none.
func items(n *yaml.Node) []*yaml.Node {
	n = resolve(n)
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

// walk calls visit for each scalar (keys too) below n with the path that leads to it, not following aliases.
func walk(n *yaml.Node, path string, visit func(path string, n *yaml.Node, isKey bool)) {
	switch n.Kind {
	case yaml.MappingNode:
		for _, p := range ownPairs(n) {
			below := joinKey(path, p.key.Value)
			visit(below, p.key, true)
			walk(p.value, below, visit)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			walk(item, fmt.Sprintf("%s[%d]", path, i), visit)
		}
	case yaml.ScalarNode:
		visit(path, n, false)
	}
}

// joinKey appends a key to a path.
func joinKey(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// expand copies a node with aliases replaced by what they stand for. It gives up, false, on rings and where the copy
// would grow beyond budget nodes.
func expand(n *yaml.Node, budget *int, depth int) (*yaml.Node, bool) {
	*budget--
	if *budget < 0 || depth > maxNodeDepth {
		return nil, false
	}
	if n = resolve(n); n == nil {
		return nil, false
	}
	out := *n
	out.Anchor, out.HeadComment, out.LineComment, out.FootComment = "", "", "", ""
	out.Content = make([]*yaml.Node, len(n.Content))
	for i, child := range n.Content {
		c, ok := expand(child, budget, depth+1)
		if !ok {
			return nil, false
		}
		out.Content[i] = c
	}
	return &out, true
}

// sameNode tells whether two nodes say the same on the same lines.
func sameNode(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Tag != b.Tag || a.Value != b.Value || a.Anchor != b.Anchor || a.Line != b.Line ||
		len(a.Content) != len(b.Content) {
		return false
	}
	for i := range a.Content {
		if !sameNode(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}
