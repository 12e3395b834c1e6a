package rules

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/relabel"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/frame"
)

// parse reads write_relabel_configs as the configuration does.
func parse(t *testing.T, text string) []*relabel.Config {
	t.Helper()
	var list []*relabel.Config
	if err := yaml.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, c := range list {
		if err := c.Validate(model.UTF8Validation); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}
	return list
}

func TestDroppedSeriesKeepTheirPlace(t *testing.T) {
	r := Rules{Relabel: parse(t, "[{source_labels: [__name__], regex: b, action: drop}]")}
	in := []frame.Series{
		{Labels: labels.FromStrings("__name__", "a"), Family: "a", Metadata: metadata.Metadata{Type: "gauge", Help: "of a"}},
		{Labels: labels.FromStrings("__name__", "b"), Family: "b"},
		{Labels: labels.FromStrings("__name__", "c"), Family: "c"},
	}
	out, tooLarge := r.Apply(in)
	want := []frame.Series{in[0], {Labels: labels.EmptyLabels(), Family: "b"}, in[2]}
	if d := cmp.Diff(want, out, cmp.Comparer(labels.Equal)); d != "" || tooLarge != 0 {
		t.Errorf("%d too large, (-want +got):\n%s", tooLarge, d)
	}
	if in[1].Labels.IsEmpty() {
		t.Error("the dictionary itself was changed")
	}
}

func TestRulesThatRemoveEveryLabelDropTheSeries(t *testing.T) {
	r := Rules{Relabel: parse(t, "[{regex: .*, action: labeldrop}]")}
	out, _ := r.Apply([]frame.Series{{Labels: labels.FromStrings("__name__", "a")}})
	if !out[0].Labels.IsEmpty() {
		t.Errorf("labels %s", out[0].Labels)
	}
}

func TestLabelSetsThatRulesMakeTooLargeAreDroppedAndCounted(t *testing.T) {
	half := strings.Repeat("x", frame.MaxLabelSetBytes/2)
	r := Rules{Relabel: parse(t, "[{source_labels: [big], regex: (.+), target_label: copy, replacement: $1}]")}
	in := []frame.Series{
		// 8+1 bytes of __name__="f", 3 and 4 of the names, and the value twice are just the most.
		{Labels: labels.FromStrings("__name__", "f", "big", half[:len(half)-8])},
		{Labels: labels.FromStrings("__name__", "does not", "big", half)},
		{Labels: labels.FromStrings("__name__", "small")},
	}
	out, tooLarge := r.Apply(in)
	if tooLarge != 1 || out[0].Labels.IsEmpty() || !out[1].Labels.IsEmpty() || out[2].Labels.IsEmpty() {
		t.Errorf("%d too large; empty are %v, %v, %v", tooLarge, out[0].Labels.IsEmpty(), out[1].Labels.IsEmpty(), out[2].Labels.IsEmpty())
	}
	if n := size(out[0].Labels); n != frame.MaxLabelSetBytes {
		t.Errorf("the label set at the limit has %d bytes, want %d", n, frame.MaxLabelSetBytes)
	}
	if _, err := frame.EncodeRelabelled(frame.DictID{}, "", out); err != nil {
		t.Errorf("what Apply returned cannot be encoded: %v", err)
	}
}

func hash(t *testing.T, r Rules) string {
	t.Helper()
	h, err := r.Hash()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// variants are rules that all do something else.
func variants(t *testing.T) []Rules {
	external := labels.FromStrings("a", "b", "c", "d")
	return []Rules{
		{},
		{External: external},
		{External: labels.FromStrings("a", "b")},
		{External: labels.FromStrings("a", "b=\"d\"\n\"c\"=d")},
		{External: labels.FromStrings("a", "d", "c", "b")},
		{Relabel: parse(t, "[{regex: a, action: labeldrop}]")},
		{Relabel: parse(t, "[{regex: a, action: labelkeep}]")},
		{Relabel: parse(t, "[{regex: b, action: labeldrop}]")},
		{Relabel: parse(t, "[{regex: a, action: labeldrop}, {regex: b, action: labeldrop}]")},
		{Relabel: parse(t, "[{regex: b, action: labeldrop}, {regex: a, action: labeldrop}]")},
		{Relabel: parse(t, "[{source_labels: [a, b], target_label: c}]")},
		{Relabel: parse(t, "[{source_labels: [b, a], target_label: c}]")},
		{Relabel: parse(t, "[{source_labels: [a, b], target_label: c, separator: ''}]")},
		{Relabel: parse(t, "[{source_labels: [a, b], target_label: c, replacement: ''}]")},
		{Relabel: parse(t, "[{source_labels: [a, b], target_label: c, replacement: x}]")},
		{Relabel: parse(t, "[{source_labels: [a], target_label: c, modulus: 8, action: hashmod}]")},
		{Relabel: parse(t, "[{source_labels: [a], target_label: c, modulus: 9, action: hashmod}]")},
		{External: external, Relabel: parse(t, "[{source_labels: [a, b], target_label: c}]")},
	}
}

func TestHashesTellRulesApart(t *testing.T) {
	seen := map[string]int{}
	for i, r := range variants(t) {
		h := hash(t, r)
		if len(h) != 16 || strings.Trim(h, "0123456789abcdef") != "" {
			t.Errorf("hash %q is not 16 hexadecimal digits", h)
		}
		if k, ok := seen[h]; ok {
			t.Errorf("variants %d and %d have the hash %s", k, i, h)
		}
		seen[h] = i
	}
	legacy := variants(t)[10]
	legacy.Relabel[0].NameValidationScheme = model.LegacyValidation
	if hash(t, legacy) == hash(t, variants(t)[10]) {
		t.Error("the validation scheme of names does not change the hash")
	}
}

// hashesEnv makes the test binary print the hashes of variants.
const hashesEnv = "MILLRACE_TEST_PRINT_HASHES"

func TestHashesAreTheSameInEveryProcess(t *testing.T) {
	var all []string
	for _, r := range variants(t) {
		all = append(all, hash(t, r))
	}
	here := strings.Join(all, " ")
	if os.Getenv(hashesEnv) != "" {
		os.Stdout.WriteString("hashes: " + here + "\n")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHashesAreTheSameInEveryProcess$")
	cmd.Env = append(os.Environ(), hashesEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "hashes: "+here+"\n") {
		t.Errorf("another process has\n%s\nthis one\n%s", out, here)
	}
	// A changed hash makes every stored dictionary be evaluated again, which a new version should not do by accident.
	if got, want := hash(t, variants(t)[17]), "a5d9512a08198b0d"; got != want {
		t.Errorf("the hash is %s, in earlier versions %s", got, want)
	}
}
