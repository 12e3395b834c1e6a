package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	promconfig "github.com/prometheus/prometheus/config"
)

// millraceKeys returns for each key of the millrace block the paths under which it stands, without the key itself:
// "max_age" is under "millrace.streams.frames" and others.
var millraceKeys = sync.OnceValue(func() map[string][]string {
	keys := map[string][]string{}
	var collect func(t reflect.Type, path string)
	collect = func(t reflect.Type, path string) {
		for _, f := range yamlFields(t) {
			keys[f.key] = append(keys[f.key], path)
			if f.field.Type.Kind() == reflect.Struct {
				collect(f.field.Type, joinKey(path, f.key))
			}
		}
	}
	collect(reflect.TypeFor[Millrace](), blockKey)
	return keys
})

// prometheusSections returns the top-level keys of a Prometheus configuration, sorted.
var prometheusSections = sync.OnceValue(func() []string {
	var keys []string
	for _, f := range yamlFields(reflect.TypeFor[promconfig.Config]()) {
		keys = append(keys, f.key)
	}
	slices.Sort(keys)
	return keys
})

// prometheusKeys returns every key that stands anywhere in a Prometheus configuration, as far as its types tell, sorted.
var prometheusKeys = sync.OnceValue(func() []string {
	keys := map[string]bool{}
	seen := map[reflect.Type]bool{}
	var collect func(t reflect.Type)
	collect = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] {
			return
		}
		seen[t] = true
		for _, f := range yamlFields(t) {
			if f.key != "" {
				keys[f.key] = true
			}
			collect(f.field.Type)
		}
	}
	collect(reflect.TypeFor[promconfig.Config]())
	return slices.Sorted(maps.Keys(keys))
})

// yamlField is a field of a struct with its YAML key and its place, see [reflect.Value.FieldByIndex].
type yamlField struct {
	key   string
	index []int
	field reflect.StructField
}

// yamlFields returns the fields of a struct that YAML sets, those of inlined structs among them.
func yamlFields(t reflect.Type) []yamlField {
	var fields []yamlField
	for i := range t.NumField() {
		f := t.Field(i)
		tag, ok := f.Tag.Lookup("yaml")
		if !ok || !f.IsExported() || tag == "-" {
			continue
		}
		key, options, _ := strings.Cut(tag, ",")
		if options == "inline" && f.Type.Kind() == reflect.Struct {
			for _, inner := range yamlFields(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				fields = append(fields, inner)
			}
			continue
		}
		fields = append(fields, yamlField{key, []int{i}, f})
	}
	return fields
}

// belongsUnder says where in the millrace block a key has its place; false where it has none.
func belongsUnder(key string) (string, bool) {
	paths := millraceKeys()[key]
	if len(paths) == 0 {
		return "", false
	}
	if paths[0] == blockKey {
		return "it belongs under " + blockKey + ":", true
	}
	return "it belongs under " + strings.Join(paths, ", "), true
}

// didYouMean proposes the candidate nearest to a key; false where none is near.
func didYouMean(key string, candidates []string) (string, bool) {
	best, bestDistance := "", 0
	for _, candidate := range candidates {
		if candidate == "" {
			continue
		}
		distance := editDistance(normalKey(key), normalKey(candidate))
		if best == "" || distance < bestDistance {
			best, bestDistance = candidate, distance
		}
	}
	if best == "" || bestDistance > max(1, len(best)/4) {
		return "", false
	}
	return fmt.Sprintf("did you mean %s:?", best), true
}

// normalKey makes keys that differ in case and in - or _ only the same, and keeps long ones cheap to compare.
func normalKey(key string) string {
	if len(key) > 64 {
		key = key[:64]
	}
	return strings.ReplaceAll(strings.ToLower(key), "-", "_")
}

// editDistance is the number of bytes to insert, delete, replace or swap with their neighbour that turn a into b.
func editDistance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// checkTopLevel refuses top-level keys that neither Prometheus nor the file's own block knows.
func (d *document) checkTopLevel() Errors {
	var errs Errors
	for _, p := range ownPairs(d.root) {
		key := p.key.Value
		if p.key.Tag == "!!merge" || slices.Contains(prometheusSections(), key) {
			continue
		}
		remedy, ok := belongsUnder(key)
		if !ok {
			remedy, ok = didYouMean(key, append([]string{blockKey}, prometheusSections()...))
		}
		if !ok {
			remedy = "top-level keys are " + blockKey + ", " + strings.Join(prometheusSections(), ", ")
		}
		errs = append(errs, &Error{File: d.file, Line: p.key.Line, Key: key, Message: "unknown key", Remedy: remedy})
	}
	return errs
}
