package rules

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
)

func TestRulesAreTriedOneAfterTheOther(t *testing.T) {
	list, err := Parse([]byte("- {source_labels: [job], target_label: team}\n- {action: labeldrop, regex: instance}\n- {source_labels: [job], regex: web, action: drop}\n- {target_label: last, replacement: x}\n"))
	if err != nil {
		t.Fatal(err)
	}
	external, err := ParseLabels(`{cluster="c1", job="none"}`)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		`up{job="api"}`: `{"labels":{"__name__":"up","job":"api"},"result":{"__name__":"up","cluster":"c1","job":"api","last":"x","team":"api"},"steps":[` +
			`{"rule":"external_labels {cluster=\"c1\", job=\"none\"}","dropped":false,"changes":[{"name":"cluster","before":"","after":"c1"}]},` +
			`{"rule":"action: replace, source_labels: [job], target_label: team","dropped":false,"changes":[{"name":"team","before":"","after":"api"}]},` +
			`{"rule":"action: labeldrop, regex: \"instance\"","dropped":false,"changes":[]},` +
			`{"rule":"action: drop, source_labels: [job], regex: \"web\"","dropped":false,"changes":[]},` +
			`{"rule":"action: replace, target_label: last, replacement: \"x\"","dropped":false,"changes":[{"name":"last","before":"","after":"x"}]}]}`,
		`up{job="web", instance="a"}`: `"result":null`,
		`{}`:                          `"job":"none"`,
	} {
		ls, err := ParseLabels(text)
		if err != nil {
			t.Fatal(err)
		}
		trial, err := Try(external, list, ls)
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(trial)
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s: %v\n%s\nlacks\n%s", text, err, got, want)
		}
	}
}

func TestRulesThatMakeTooMuchOfLabelsAreRefused(t *testing.T) {
	for _, rules := range []string{
		"- {source_labels: [a], target_label: a, replacement: '" + strings.Repeat("$0", 200) + "'}",
		"- {action: labelmap, regex: (.*), replacement: '" + strings.Repeat("$1", 2000) + "'}",
		strings.Repeat("- {source_labels: [a], target_label: a, replacement: $0$0}\n", 100),
	} {
		list, err := Parse([]byte(rules))
		if err != nil {
			t.Fatal(err)
		}
		ls, err := ParseLabels(`{a="` + strings.Repeat("x", 1000) + `", ` + strings.Repeat("b", 200) + `="1"}`)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Try(labels.EmptyLabels(), list, ls); err == nil || !strings.Contains(err.Error(), "could make more than 131072 bytes") {
			t.Errorf("%.60s: %v", rules, err)
		}
	}
}

func TestWrongRulesAndLabelsAreNamed(t *testing.T) {
	for text, want := range map[string]string{"- {a: b}": "field a not found", "-": "rule 1 is empty", "- {action: hashmod}": "rule 1: ", "x": "write a list of rules"} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if list, err := Parse(nil); err != nil || len(list) != 0 {
		t.Errorf("no rules: %v, %v", list, err)
	}
	if _, err := ParseLabels("up{"); err == nil || !strings.Contains(err.Error(), `write them as up{job="api"}`) {
		t.Errorf("%v", err)
	}
}
