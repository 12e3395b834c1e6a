package scraper

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
)

// dict is a published, or about to be published, dictionary: series[start:start+n].
type dict struct {
	id       frame.DictID
	start, n int
	msg      []byte
}

// unsealed holds the labels of a series that stands in no dictionary yet. Of one that had other metadata, or that a compaction has left, an older dictionary has them.
type unsealed struct {
	labels labels.Labels // empty where they are in a dictionary
	from   uint32        // the number of the series there
}

// key names a label set. It is two independent hashes with seeds of this process, so that nobody can make two label sets share one.
type key struct{ a, b uint64 }

// hasher makes keys. It is safe for concurrent use.
type hasher struct{ a, b maphash.Seed }

func newHasher() hasher { return hasher{maphash.MakeSeed(), maphash.MakeSeed()} }

// key returns the key of a label set.
func (h *hasher) key(ls labels.Labels) key {
	var buf [1024]byte
	b := ls.Bytes(buf[:0])
	return key{maphash.Bytes(h.a, b), maphash.Bytes(h.b, b)}
}

// labelsAt says where the labels of entry i are.
func (s *source) labelsAt(i uint32) unsealed {
	if int(i) < s.sealed {
		return unsealed{from: i}
	}
	return s.unsealed[int(i)-s.sealed]
}

// seal puts the series that stand in no dictionary yet into new ones.
func (s *source) seal() error {
	first := s.sealed == 0
	for len(s.unsealed) > 0 {
		list, err := s.nextSeries()
		if err != nil {
			return err
		}
		d, msg, err := frame.NewDictionary(s.job, list)
		for len(list) > 1 && (err != nil || len(msg) > frame.MaxDictBytes) {
			list = list[:len(list)/2]
			d, msg, err = frame.NewDictionary(s.job, list)
		}
		if err != nil {
			return err
		}
		s.dicts = append(s.dicts, dict{id: d.ID, start: s.sealed, n: len(list), msg: msg})
		s.sealed += len(list)
		clear(s.unsealed[:len(list)])
		s.unsealed = s.unsealed[len(list):]
	}
	if s.unsealed, s.former = nil, nil; first {
		s.series = slices.Clone(s.series) // without the room for more: most targets stay as they are
	}
	return nil
}

// nextSeries returns the next series for a dictionary, about as many as it should have.
func (s *source) nextSeries() ([]frame.Series, error) {
	next := s.unsealed[:min(len(s.unsealed), frame.MaxSeries)]
	if err := s.unpack(next); err != nil {
		return nil, err
	}
	list := make([]frame.Series, 0, len(next))
	size, last := 0, metric{}
	for k := range next {
		ls, m := next[k].labels, s.metricOf(uint32(s.sealed+k))
		size += ls.Len()*4 + labelBytes(ls)/4 // strings recur; the true size is not known before
		if m.name = ""; m != last {
			size += len(m.Help) + len(m.Unit)
			last = m
		}
		if len(list) > 0 && size > frame.MaxDictBytes {
			break
		}
		list = append(list, frame.Series{Labels: ls, Family: m.family, Metadata: m.Metadata})
	}
	return list, nil
}

// unpack reads the labels that are in dictionaries, one dictionary after the other.
func (s *source) unpack(list []unsealed) error {
	var packed []*unsealed
	for i := range list {
		if list[i].labels.IsEmpty() {
			packed = append(packed, &list[i])
		}
	}
	slices.SortFunc(packed, func(x, y *unsealed) int { return cmp.Compare(x.from, y.from) })
	dicts := s.dicts
	if s.former != nil {
		dicts = s.former
	}
	for i := range dicts {
		d := &dicts[i]
		n := prefix(packed, func(x **unsealed) bool { return int((*x).from) < d.start+d.n })
		if n == 0 {
			continue
		}
		read, err := frame.ReadDictionary(d.msg, d.id)
		if err != nil {
			return fmt.Errorf("reading a dictionary again: %w", err)
		}
		for _, x := range packed[:n] {
			x.labels = read.Series[int(x.from)-d.start].Labels
		}
		packed = packed[n:]
	}
	return nil
}

func labelBytes(ls labels.Labels) int {
	n := 0
	ls.Range(func(l labels.Label) { n += len(l.Name) + len(l.Value) })
	return n
}
