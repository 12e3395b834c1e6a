package helm

import (
	"os"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

const (
	alerts    = "../alerts/millrace.yml"
	inChart   = "millrace/alerts.yml"
	ruleKind  = "PrometheusRule"
	ruleGroup = "monitoring.coreos.com/v1"
)

// prometheusRule is what the Prometheus operator reads (https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.PrometheusRule).
type prometheusRule struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Spec map[string]any
}

// TestAlertsOfTheChart checks that the chart has the alerts of deploy/alerts, as an object of the Prometheus operator, where they are asked for.
func TestAlertsOfTheChart(t *testing.T) {
	want, err := os.ReadFile(alerts)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(inChart, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(inChart)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != string(want) {
		t.Errorf("%s is not %s: go test ./deploy/helm -update", inChart, alerts)
	}
	if strings.Contains(render(t, "metrics"), ruleKind) {
		t.Error("the chart has alerts though nobody asked for them")
	}
	for _, doc := range strings.Split(render(t, "metrics", "alerts.enabled=true", "alerts.labels.release=kube-prometheus"), "\n---\n") {
		var rule prometheusRule
		if err := yaml.Unmarshal([]byte(doc), &rule); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if rule.Kind != ruleKind {
			continue
		}
		var file map[string]any
		if err := yaml.Unmarshal(want, &file); err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(file, rule.Spec); d != "" {
			t.Errorf("the rules (-file +chart):\n%s", d)
		}
		m := rule.Metadata
		if rule.APIVersion != ruleGroup || m.Name != "metrics-millrace" || m.Namespace != "millrace" || m.Labels["release"] != "kube-prometheus" || m.Labels["app.kubernetes.io/name"] != "millrace" {
			t.Errorf("%s %+v", rule.APIVersion, m)
		}
		return
	}
	t.Error("the chart has no alerts")
}
