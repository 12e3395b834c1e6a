package target

import (
	"net/url"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/stream"
)

// Target is a final target: what is left after target relabelling.
type Target struct {
	// ID is the hash of the job and all of Labels. It names the target.
	ID uint64
	// Source is the hash of the public labels, which are those of Labels without the prefix "__". Shard and partition derive from it.
	Source uint64
	// Job is the job_name of the scrape config, whatever relabelling has made of the label "job".
	Job string
	// Labels are final: relabelled, without "__meta_", with "instance". They include __address__, __scheme__,
	// __metrics_path__, __scrape_interval__, __scrape_timeout__ and those __param_ labels that differ from the scrape config's params.
	Labels labels.Labels
	// Discovered are the labels before relabelling, for people to look at. They may be empty where they were too large to send.
	Discovered labels.Labels
	// Absent lists which of job, __scheme__ and __metrics_path__ relabelling has removed, in this order. A scraper must not fill
	// them in from its scrape config.
	Absent []string
}

// New makes a target of what relabelling has left of discovered. It takes out the __param_ labels that only repeat the first value of the
// scrape config's params.
func New(job string, final, discovered labels.Labels, params url.Values) *Target {
	t := &Target{Job: job, Labels: withoutParams(final, params), Discovered: withoutParams(discovered, params)}
	t.derive()
	return t
}

// derive sets the fields that follow from Job and Labels.
func (t *Target) derive() {
	t.ID, t.Source = id(t.Job, t.Labels), source(t.Labels)
	t.Absent = nil
	for _, name := range []string{model.JobLabel, model.SchemeLabel, model.MetricsPathLabel} {
		if !t.Labels.Has(name) {
			t.Absent = append(t.Absent, name)
		}
	}
}

// Shard returns the shard that the target belongs to, from 0 to stream.Shards-1.
func (t *Target) Shard() int { return stream.ShardOf(t.Source) }

func withoutParams(ls labels.Labels, params url.Values) labels.Labels {
	if len(params) == 0 {
		return ls
	}
	b := labels.NewBuilder(ls)
	for name, values := range params {
		label := model.ParamLabelPrefix + name
		if len(values) > 0 && ls.Get(label) == values[0] {
			b.Del(label)
		}
	}
	return b.Labels()
}

// separator ends each string that is hashed. It cannot be part of one: they are valid UTF-8.
var separator = []byte{0xff}

func id(job string, ls labels.Labels) uint64 {
	d := xxhash.New()
	write(d, job)
	ls.Range(func(l labels.Label) {
		write(d, l.Name)
		write(d, l.Value)
	})
	return d.Sum64()
}

func source(ls labels.Labels) uint64 { return SourceID(ls.Range) }

// SourceID returns the identity of the series space of a target with the labels that each calls its argument with, in the order of their
// names. Labels that begin with "__" do not count.
func SourceID(each func(func(labels.Label))) uint64 {
	d := xxhash.New()
	each(func(l labels.Label) {
		if !strings.HasPrefix(l.Name, model.ReservedLabelPrefix) {
			write(d, l.Name)
			write(d, l.Value)
		}
	})
	return d.Sum64()
}

// write adds a string to the hash; writing to a digest never fails.
func write(d *xxhash.Digest, s string) {
	_, _ = d.WriteString(s)
	_, _ = d.Write(separator)
}
