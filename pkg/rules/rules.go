package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/frame"
)

// Rules are one endpoint's.
type Rules struct {
	// External are added to each series that does not have a label of the same name.
	External labels.Labels
	// Relabel are the endpoint's write_relabel_configs, applied after that.
	Relabel []*relabel.Config
	// Limits names the limits on series that hold before that; "" for none.
	Limits string
}

// Hash returns 16 hexadecimal digits that name what the rules do. Equal rules have equal hashes in every process.
func (r *Rules) Hash() (string, error) {
	h := sha256.New()
	r.External.Range(func(l labels.Label) { fmt.Fprintf(h, "%q=%q\n", l.Name, l.Value) })
	if r.Limits != "" {
		fmt.Fprintf(h, "limits %s\n", r.Limits)
	}
	for _, c := range r.Relabel {
		b, err := yaml.Marshal(c)
		if err != nil {
			return "", fmt.Errorf("hashing relabel rules: %w", err)
		}
		fmt.Fprintf(h, "%d:%s:%s\n", len(b), b, c.NameValidationScheme)
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// Apply returns the series as the endpoint gets them, in the same order, and how many the rules have made larger than
// [frame.MaxLabelSetBytes]. Those, and the ones that the rules drop, have no labels. Series without labels stay so: limits have refused them.
func (r *Rules) Apply(series []frame.Series) (out []frame.Series, tooLarge int) {
	out = make([]frame.Series, len(series))
	b := labels.NewBuilder(labels.EmptyLabels())
	for i := range series {
		if out[i] = series[i]; series[i].Labels.IsEmpty() {
			continue
		}
		b.Reset(series[i].Labels)
		r.External.Range(func(l labels.Label) {
			if b.Get(l.Name) == "" {
				b.Set(l.Name, l.Value)
			}
		})
		if keep := relabel.ProcessBuilder(b, r.Relabel...); keep {
			out[i].Labels = b.Labels()
		} else {
			out[i].Labels = labels.EmptyLabels()
			continue
		}
		if size(out[i].Labels) > frame.MaxLabelSetBytes {
			out[i].Labels = labels.EmptyLabels()
			tooLarge++
		}
	}
	return out, tooLarge
}

func size(ls labels.Labels) (n int) {
	ls.Range(func(l labels.Label) { n += len(l.Name) + len(l.Value) })
	return n
}
