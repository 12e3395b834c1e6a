package remotewrite

import "github.com/prometheus/prometheus/model/labels"

// labelNumbers numbers the distinct labels of a dictionary in the order in which they are met.
type labelNumbers struct {
	labels  []labels.Label // by number; the strings are those of the label sets
	numbers map[labels.Label]uint32
	last    []uint32 // the numbers of the last label set
	next    []uint32
}

// of returns the numbers of a label set's labels. They are valid until the call after the next.
func (n *labelNumbers) of(set labels.Labels) []uint32 {
	if n.numbers == nil {
		n.numbers = make(map[labels.Label]uint32)
	}
	n.next = n.next[:0]
	k := 0
	set.Range(func(l labels.Label) {
		// Most labels are those of the series before: to compare is faster than to hash.
		for k < len(n.last) && n.labels[n.last[k]].Name < l.Name {
			k++
		}
		if k < len(n.last) && n.labels[n.last[k]] == l {
			n.next = append(n.next, n.last[k])
			k++
			return
		}
		number, ok := n.numbers[l]
		if !ok {
			number = uint32(len(n.labels))
			n.numbers[l] = number
			n.labels = append(n.labels, l)
		}
		n.next = append(n.next, number)
	})
	n.last, n.next = n.next, n.last
	return n.last
}
