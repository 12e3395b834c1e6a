package compose

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// dashboardMetrics returns the names of the metrics that the dashboards use, having parsed every expression.
func dashboardMetrics(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("dashboards %q: %v", files, err)
	}
	var names []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard struct {
			UID, Title string
			Panels     []struct {
				ID      int
				Type    string
				Title   string
				GridPos struct{ X, Y, W, H int }
				Targets []struct{ RefID, Expr string }
			}
		}
		if err := json.Unmarshal(b, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		ids := map[int]bool{}
		for _, p := range dashboard.Panels {
			if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: panel %d %q: its number is repeated, or it is too wide, or empty", file, p.ID, p.Title)
			}
			ids[p.ID] = true
			for _, target := range p.Targets {
				expr := strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h").Replace(target.Expr)
				e, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
				if err != nil {
					t.Errorf("%s: panel %q: %v", file, p.Title, err)
					continue
				}
				parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
					if s, ok := n.(*parser.VectorSelector); ok {
						i := slices.IndexFunc(s.LabelMatchers, func(m *labels.Matcher) bool { return m.Name == model.MetricNameLabel })
						names = append(names, s.LabelMatchers[i].Value)
					}
					return nil
				})
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// sometimes are metrics that a healthy fleet of docker-compose.yml does not have. That Millrace has them is shown by services/millrace/e2e, for all that dashboards and alerts use.
var sometimes = []string{
	"millrace_relabel_active_series", "millrace_relabel_limited_series", // with limits on series
	"millrace_ingest_requests_total",                                                                                                                          // once something was pushed
	"millrace_ingest_delta_points_total", "millrace_ingest_delta_dropped_points_total", "millrace_ingest_delta_lag_messages", "millrace_ingest_delta_streams", // with deltas
}

// TestDashboardsCanBeRead parses the dashboards and their expressions, so that it is known before a Grafana runs.
func TestDashboardsCanBeRead(t *testing.T) {
	if names := dashboardMetrics(t); len(names) < 80 {
		t.Errorf("the dashboards use %q only", names)
	}
}
