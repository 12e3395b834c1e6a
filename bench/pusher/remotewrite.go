package pusher

import "google.golang.org/protobuf/encoding/protowire"

// remoteWriteTemplate encodes a prometheus.WriteRequest (remote_write 1.0).
func remoteWriteTemplate(metrics []metric, width int) (*template, error) {
	b := builder{width: width}
	for _, m := range metrics {
		list, err := seriesOf(m)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			b.message(1, func(b *builder) { // TimeSeries
				for _, l := range s.labels {
					b.message(1, func(b *builder) {
						b.text(1, l.name)
						b.text(2, l.value)
					})
				}
				appendSample(b, s)
			})
		}
	}
	b.millis = true
	return &b.template, nil
}

// appendSample appends the one sample of a TimeSeries.
func appendSample(b *builder, s series) {
	b.message(2, func(b *builder) {
		b.values = append(b.values, place{at: b.fixed(1), code: s.code})
		b.millisTime(2)
	})
}

// remoteWrite2Template encodes an io.prometheus.write.v2.Request (remote_write 2.0).
func remoteWrite2Template(metrics []metric, width int) (*template, error) {
	symbols, refs := []string{""}, map[string]uint64{"": 0}
	ref := func(s string) uint64 {
		i, ok := refs[s]
		if !ok {
			i = uint64(len(symbols))
			symbols, refs[s] = append(symbols, s), i
		}
		return i
	}
	all := builder{width: width}
	for _, m := range metrics {
		list, err := seriesOf(m)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			all.message(5, func(b *builder) { // TimeSeries
				var packed []byte
				for _, l := range s.labels {
					packed = protowire.AppendVarint(protowire.AppendVarint(packed, ref(l.name)), ref(l.value))
				}
				b.raw(1, packed)
				appendSample(b, s)
				b.message(5, func(b *builder) { // Metadata
					b.varint(1, map[kind]uint64{sum: 1, gauge: 2, histogram: 3}[m.kind])
					b.varint(3, ref(m.help))
				})
			})
		}
	}
	// A receiver reads symbols before what refers to them.
	b := builder{width: width}
	for _, s := range symbols {
		b.text(4, s)
	}
	b.join(&all)
	b.millis = true
	return &b.template, nil
}
