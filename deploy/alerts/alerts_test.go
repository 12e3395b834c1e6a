package alerts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const (
	rulesFile = "millrace.yml"
	runbook   = "README.md"
)

type rule struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func rules(t *testing.T) (list []rule) {
	t.Helper()
	content, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		list = append(list, g.Rules...)
	}
	return list
}

// TestRulesDoWhatTheySay runs promtool, from the module of Prometheus, over the rules and their tests.
func TestRulesDoWhatTheySay(t *testing.T) {
	tests, err := filepath.Glob("*_test.yml")
	if err != nil || len(tests) == 0 {
		t.Fatalf("tests %q: %v", tests, err)
	}
	for _, args := range [][]string{{"check", "rules", "--lint=all", "--lint-fatal", rulesFile}, append([]string{"test", "rules"}, tests...)} {
		if out, err := exec.Command("go", append([]string{"tool", "promtool"}, args...)...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	content, err := os.ReadFile(tests[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		if !strings.Contains(string(content), r.Alert) {
			t.Errorf("%s has no test in %s", r.Alert, tests[0])
		}
	}
}

// TestEveryAlertHasAnEntryInTheRunbook also checks that there are no other entries, and what each has to say.
func TestEveryAlertHasAnEntryInTheRunbook(t *testing.T) {
	content, err := os.ReadFile(runbook)
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{}
	for _, entry := range strings.Split(string(content), "\n## ")[1:] {
		title, text, _ := strings.Cut(entry, "\n")
		entries[title] = text
	}
	var names []string
	for _, r := range rules(t) {
		names = append(names, r.Alert)
		text, ok := entries[r.Alert]
		if !ok {
			t.Errorf("%s has no entry", r.Alert)
			continue
		}
		for _, part := range []string{"**Means.** ", "**Look.** ", "**Remedy.** ", "**Lost.** "} {
			if !strings.Contains(text, part) {
				t.Errorf("the entry of %s does not have %q", r.Alert, part)
			}
		}
		if want := "deploy/alerts/" + runbook + "#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
			t.Errorf("%s names the entry %q, want %q", r.Alert, r.Annotations["runbook"], want)
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s has the severity %q", r.Alert, s)
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s says too little: %q", r.Alert, r.Annotations)
		}
	}
	for title := range entries {
		if strings.HasPrefix(title, "Millrace") && !slices.Contains(names, title) {
			t.Errorf("the runbook has an entry of %s, which does not exist", title)
		}
	}
}

// TestTheRunbookNamesWhatThereIs looks for each metric that the runbook names in a README of a service or package.
func TestTheRunbookNamesWhatThereIs(t *testing.T) {
	files, err := filepath.Glob("../../*/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, "../../pkg/README.md")
	var all strings.Builder
	for _, file := range files {
		if strings.Contains(file, "/deploy/") {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(content)
	}
	content, err := os.ReadFile(runbook)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`millrace_[a-z_]+[a-z]`).FindAllString(string(content), -1) {
		// Tables list metrics of one kind as `millrace_writer_sent_samples_total`, `_sent_bytes_total`.
		parts := strings.SplitN(name, "_", 3)
		if !strings.Contains(all.String(), name) && !strings.Contains(all.String(), "`_"+parts[len(parts)-1]) {
			t.Errorf("no README documents %s", name)
		}
	}
}
