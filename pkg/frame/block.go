package frame

import (
	"encoding/binary"
	"fmt"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
)

// appendBlock writes a series list: the strings in order of first use, the metadata, then each series as numbers. It returns an error
// for what readBlock refuses.
func appendBlock(b []byte, series []Series) ([]byte, error) {
	if len(series) > MaxSeries {
		return nil, fmt.Errorf("%d series, the most is %d: split them", len(series), MaxSeries)
	}
	var check labelCheck
	t := symbolTable{index: make(map[string]uint64, 256)}
	type family struct {
		name string
		metadata.Metadata
	}
	families := map[family]uint64{{}: 0}
	var meta, rows []byte
	for i := range series {
		s := &series[i]
		f := family{s.Family, s.Metadata}
		m, ok := families[f]
		if !ok {
			m = uint64(len(families))
			families[f] = m
			for _, str := range []string{f.name, string(f.Type), f.Unit, f.Help} {
				meta = binary.AppendUvarint(meta, t.ref(str))
			}
		}
		rows = binary.AppendUvarint(rows, m)
		rows = binary.AppendUvarint(rows, uint64(s.Labels.Len()))
		check.begin()
		var err error
		s.Labels.Range(func(l labels.Label) {
			if err == nil {
				err = check.label(l.Name, l.Value)
			}
			rows = binary.AppendUvarint(rows, t.ref(l.Name))
			rows = binary.AppendUvarint(rows, t.ref(l.Value))
		})
		if err != nil {
			return nil, fmt.Errorf("series %d of %d: %w", i, len(series), err)
		}
	}
	start := len(b)
	b = binary.AppendUvarint(b, uint64(len(t.strings)))
	for _, s := range t.strings {
		b = appendString(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(families)-1))
	b = append(b, meta...)
	b = binary.AppendUvarint(b, uint64(len(series)))
	b = append(b, rows...)
	if len(b)-start > maxBlockBytes {
		return nil, fmt.Errorf("series list of %d bytes, the most is %d: split it", len(b)-start, maxBlockBytes)
	}
	return b, nil
}

// labelCheck finds label sets that a series list must not have.
type labelCheck struct {
	name       string // of the last label
	first      bool
	set, total int // bytes of the label set and of all
}

func (c *labelCheck) begin() { c.first, c.set = true, 0 }

func (c *labelCheck) label(name, value string) error {
	if !c.first && name <= c.name {
		return fmt.Errorf("label %.100q after %.100q: labels have to be sorted by name, each name once", name, c.name)
	}
	c.name, c.first = name, false
	n := labelBytes(name, value)
	if c.set += n; c.set > MaxLabelSetBytes {
		return fmt.Errorf("label set of more than %d bytes", MaxLabelSetBytes)
	}
	if c.total += n; c.total > maxLabelBytes {
		return fmt.Errorf("label sets of more than %d bytes: split them", maxLabelBytes)
	}
	return nil
}

type symbolTable struct {
	index   map[string]uint64
	strings []string
}

func (t *symbolTable) ref(s string) uint64 {
	i, ok := t.index[s]
	if !ok {
		i = uint64(len(t.strings))
		t.index[s] = i
		t.strings = append(t.strings, s)
	}
	return i
}

// readBlock reads what appendBlock wrote.
func readBlock(block []byte) ([]Series, error) {
	r := reader{b: block}
	symbols := make([]string, r.count(3)) // a length, a character (but for the empty string) and at least one use
	all := string(block)                  // one copy for all strings
	for i := range symbols {
		n := len(r.string())
		end := len(all) - len(r.b)
		if r.err != nil {
			return nil, r.err
		}
		symbols[i] = all[end-n : end]
	}
	symbol := func() string {
		i := r.uvarint()
		if i >= uint64(len(symbols)) {
			r.fail("string %d of %d", i, len(symbols))
			return ""
		}
		return symbols[i]
	}
	m := r.count(4)
	if m > MaxSeries {
		r.fail("metadata of %d families, the most is %d", m, MaxSeries)
		return nil, r.err
	}
	families := make([]Series, 1+m)
	for i := 1; i < len(families) && r.err == nil; i++ {
		f := &families[i]
		f.Family = symbol()
		f.Metadata.Type = model.MetricType(symbol())
		f.Metadata.Unit, f.Metadata.Help = symbol(), symbol()
	}
	n := r.count(2)
	if n > MaxSeries {
		r.fail("%d series, the most is %d", n, MaxSeries)
		return nil, r.err
	}
	series := make([]Series, 0, n)
	b := labels.NewScratchBuilder(16)
	var check labelCheck
	for range n {
		m := r.uvarint()
		if m >= uint64(len(families)) {
			r.fail("metadata %d of %d", m, len(families))
			break
		}
		s := families[m]
		b.Reset()
		check.begin()
		for k := r.count(2); k > 0 && r.err == nil; k-- {
			name, value := symbol(), symbol()
			if err := check.label(name, value); err != nil {
				r.fail("series %d of %d: %w", len(series), n, err)
			}
			b.Add(name, value)
		}
		if r.err != nil {
			break
		}
		s.Labels = b.Labels()
		series = append(series, s)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes after the last series", len(r.b))
	}
	if r.err != nil {
		return nil, r.err
	}
	return series, nil
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendLabels(b []byte, ls labels.Labels) []byte {
	b = binary.AppendUvarint(b, uint64(ls.Len()))
	ls.Range(func(l labels.Label) {
		b = appendString(b, l.Name)
		b = appendString(b, l.Value)
	})
	return b
}
