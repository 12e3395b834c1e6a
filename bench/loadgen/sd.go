package loadgen

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/millrace/millrace/bench/numbered"
)

// Group is an entry of static_configs or of a file_sd file.
type Group struct {
	// Targets holds the one address.
	Targets []string `json:"targets" yaml:"targets"`
	// Labels names the target and holds its path.
	Labels map[string]string `json:"labels" yaml:"labels"`
}

// Groups returns one group for each target, for a generator that listens on address (host:port). It can be marshalled as
// static_configs or as a file_sd file.
func (g *Generator) Groups(address string) []Group {
	groups := make([]Group, 0, len(g.targets))
	for _, t := range g.targets {
		groups = append(groups, Group{
			Targets: []string{address},
			Labels: map[string]string{
				numbered.TargetLabel: t.name,
				"__metrics_path__":   "/target/" + strconv.Itoa(t.index) + "/metrics",
			},
		})
	}
	return groups
}

// WriteSDFile writes the groups of a generator that listens on address (host:port) as a JSON file for file_sd_configs. It
// replaces the file at once, so that a reader never sees half of it.
func (g *Generator) WriteSDFile(path, address string) error {
	data, err := json.MarshalIndent(g.Groups(address), "", "  ")
	if err != nil {
		return fmt.Errorf("encoding targets: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".targets-*")
	if err != nil {
		return fmt.Errorf("writing service discovery file %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing service discovery file %s: %w", path, err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(data, '\n'))
}
