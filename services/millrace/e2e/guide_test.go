package e2e_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"gopkg.in/yaml.v3"
)

// migrations is the folder with the examples for those who come from elsewhere.
const migrations = "deploy/migrate"

// sections are the top-level keys of a configuration.
var sections = []string{"global", "scrape_configs", "scrape_config_files", "remote_write", "otlp", "millrace"}

// completed makes a whole configuration of what a README shows. It may be one already; a list of scrape configs, of endpoints or of relabelling rules;
// or keys of one scrape config or one endpoint. Alerting rules, and the configuration of a Prometheus server, are read as Prometheus does, and the result is empty.
func completed(text string) (string, error) {
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(text), &root); err != nil || len(root.Content) == 0 {
		return "", fmt.Errorf("is no YAML: %w", err)
	}
	keys := keysOf(root.Content[0])
	has := func(some ...string) bool {
		return slices.ContainsFunc(some, func(key string) bool { return slices.Contains(keys, key) })
	}
	isList := root.Content[0].Kind == yaml.SequenceNode
	switch {
	case has("groups"):
		if _, errs := rulefmt.Parse([]byte(text), false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler)); len(errs) > 0 {
			return "", fmt.Errorf("alerting rules: %w", errs[0])
		}
		return "", nil
	case has("rule_files", "alerting", "remote_read"):
		if _, err := promconfig.Load(text, slog.New(slog.DiscardHandler)); err != nil {
			return "", fmt.Errorf("the configuration of a Prometheus server: %w", err)
		}
		return "", nil
	case !isList && has(sections...):
		return text, nil
	case isList && has("job_name"):
		return "scrape_configs:\n" + text, nil
	case isList && has("url"):
		return "remote_write:\n" + text, nil
	case isList && has("source_labels", "target_label", "regex", "action"):
		return "scrape_configs:\n- job_name: fragment\n  relabel_configs:\n" + indented(text, 2), nil
	case !isList && has("url", "write_relabel_configs", "queue_config", "send_exemplars"):
		return "remote_write:\n- name: fragment\n" + unless(has("url"), "  url: http://localhost:9090/api/v1/write\n") + indented(text, 2), nil
	case !isList && len(keys) > 0:
		return "scrape_configs:\n- " + unless(has("job_name"), "job_name: fragment\n  ") + strings.TrimLeft(indented(text, 2), " "), nil
	}
	return "", fmt.Errorf("has keys that are of no part of a configuration: %q", keys)
}

func unless(there bool, text string) string {
	if there {
		return ""
	}
	return text
}

func indented(text string, by int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			b.WriteString(strings.Repeat(" ", by))
		}
		b.WriteString(line)
	}
	return b.String()
}

// keysOf returns the keys of a mapping, or of a list's first item.
func keysOf(n *yaml.Node) []string {
	if n.Kind == yaml.SequenceNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	var keys []string
	if n.Kind == yaml.MappingNode {
		for i := 0; i < len(n.Content); i += 2 {
			keys = append(keys, n.Content[i].Value)
		}
	}
	return keys
}

// TestConfigurationsOfREADMEs has `millrace check config` read every block of YAML in a README, and every configuration in a file that a README links to
// or that lies in the folders of examples.
func TestConfigurationsOfREADMEs(t *testing.T) {
	dir := t.TempDir()
	args, from := []string{"check", "config"}, map[string]string{}
	add := func(where, text string) {
		whole, err := completed(text)
		if err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if whole == "" {
			return
		}
		file := filepath.Join(dir, fmt.Sprintf("%03d.yml", len(from)))
		writeFile(t, file, whole)
		args, from[file] = append(args, file), where
	}
	files := map[string]bool{}
	for _, pattern := range []string{"deploy/*/*.yml", migrations + "/*/*.yml"} {
		found, err := filepath.Glob(filepath.Join(repository, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			files[f] = true
		}
	}
	for _, r := range readmes(t) {
		for _, b := range r.blocks {
			if b.language == "yaml" || b.language == "yml" {
				add(b.String(), b.text)
			}
		}
		for _, l := range r.links {
			if e := filepath.Ext(l.to); (e == ".yml" || e == ".yaml") && !strings.Contains(l.to, "://") {
				files[filepath.Join(repository, filepath.Dir(r.path), l.to)] = true
			}
		}
	}
	blocks := len(from)
	for f := range files {
		name, err := filepath.Rel(repository, f)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Error(err)
			continue
		}
		var top map[string]yaml.Node
		if strings.HasPrefix(name, migrations+"/vmagent/") && filepath.Base(name) != "prometheus.yml" || yaml.Unmarshal(text, &top) != nil {
			continue // vmagent's own, see TestWhatVmagentAloneReads; or no mapping, so no configuration
		}
		if slices.ContainsFunc(sections, func(s string) bool { _, ok := top[s]; return ok }) {
			add(name, string(text))
		}
	}
	if blocks < 3 || len(from)-blocks < 8 {
		t.Fatalf("found %d blocks and %d files", blocks, len(from)-blocks)
	}
	if stdout, stderr, code := runMillrace(t, args...); code != 0 {
		for file, where := range from {
			stderr = strings.ReplaceAll(stderr, file, where)
		}
		t.Errorf("check config ends with %d:\n%s%s", code, stdout, stderr)
	} else if n := strings.Count(stdout, ": ok: "); n != len(from) {
		t.Errorf("%d of %d are ok:\n%s", n, len(from), stdout)
	}
	t.Logf("%d blocks, %d files", blocks, len(from)-blocks)
}

// TestBlocksOfTheMigrationGuide shows that each of its blocks is a part of one of the files beside it, which other tests run: nothing in it is only text.
func TestBlocksOfTheMigrationGuide(t *testing.T) {
	files := map[string]string{}
	for _, pattern := range []string{"*/*.yml", "*/*.alloy"} {
		found, err := filepath.Glob(filepath.Join(repository, migrations, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			files[f] = "\n" + string(text)
		}
	}
	shown := 0
	for _, b := range readREADME(t, filepath.Join(repository, migrations, "README.md")).blocks {
		if b.language != "yaml" && b.language != "alloy" {
			continue
		}
		shown++
		if !isPartOfOne(b.text, files) {
			t.Errorf("%s: the block is in no file beside it:\n%s", b, b.text)
		}
	}
	if shown < 10 {
		t.Errorf("%d blocks only", shown)
	}
}

// isPartOfOne says whether one of the files has the text as consecutive lines, indented by some spaces.
func isPartOfOne(text string, files map[string]string) bool {
	for by := 0; by <= 12; by += 2 {
		for _, file := range files {
			if strings.Contains(file, "\n"+indented(text, by)) {
				return true
			}
		}
	}
	return false
}

// TestWhatVmagentAloneReads is what the guide says of vmagent's files: each key that only vmagent knows is named with its line.
func TestWhatVmagentAloneReads(t *testing.T) {
	file := filepath.Join(repository, migrations, "vmagent", "scrape.yml")
	_, stderr, code := runMillrace(t, "check", "config", file)
	for _, key := range []string{"series_limit", "metric_relabel_configs[0].if"} {
		if code != 2 || !strings.Contains(stderr, "scrape_configs[0]."+key+": unknown key") {
			t.Errorf("check config ends with %d and does not name %s:\n%s", code, key, stderr)
		}
	}
	// Its list of rules is a list of write_relabel_configs, but for what vmagent adds to rules.
	rules, err := os.ReadFile(filepath.Join(repository, migrations, "vmagent", "relabel.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	if err := yaml.NewDecoder(bytes.NewReader(rules)).Decode(&list); err != nil || len(list) != 2 {
		t.Errorf("%d rules: %v", len(list), err)
	}
}
