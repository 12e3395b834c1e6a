package remotewrite

import (
	"bytes"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/textparse"

	"github.com/millrace/millrace/pkg/frame"
)

// recorded reads the first of the scrapes of a real node_exporter that the package frame has.
var recorded = sync.OnceValues(func() ([]byte, error) {
	f, err := os.Open("../frame/testdata/node_exporter.txt.zst")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := zstd.NewReader(f)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	first, _, _ := bytes.Cut(text, []byte("# EOF\n"))
	return first, err
})

// recordedSeries returns the series of a node_exporter as an endpoint gets them: with the target's labels and external ones.
func recordedSeries(t testing.TB) []frame.Series {
	t.Helper()
	text, err := recorded()
	if err != nil {
		t.Fatalf("reading the recorded scrape: %v", err)
	}
	var series []frame.Series
	var meta metadata.Metadata
	for p := textparse.NewPromParser(text, labels.NewSymbolTable(), false); ; {
		entry, err := p.Next()
		if err == io.EOF {
			return series
		}
		if err != nil {
			t.Fatalf("parsing the recorded scrape: %v", err)
		}
		switch entry {
		case textparse.EntryHelp:
			_, help := p.Help()
			meta = metadata.Metadata{Help: string(help)}
		case textparse.EntryType:
			_, meta.Type = p.Type()
		case textparse.EntrySeries:
			var ls labels.Labels
			p.Labels(&ls)
			b := labels.NewBuilder(ls)
			b.Set("instance", "node-17.rack-3.example.com:9100").Set("job", "node_exporter")
			b.Set("cluster", "europe-west-1").Set("env", "production").Set("region", "eu")
			series = append(series, frame.Series{Labels: b.Labels(), Metadata: meta})
		}
	}
}
