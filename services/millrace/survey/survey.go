// Package survey counts the series that are active: those of which the stream FRAMES has samples of the last minutes.
package survey

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/cardinality"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/services/relabel/limit"
)

// Config says what is to be counted.
type Config struct {
	// Conn reaches the streams.
	Conn *stream.Conn
	// Query is what is asked for.
	cardinality.Query
	// MaxBytes is about how much memory may be taken; 0 for [DefaultMaxBytes]. Half of it is for one partition at a time: an eighth for which series have samples, the rest for their labels; a quarter for the hashes of all
	// series that are counted, and a quarter for the sums. What there is no room for is not counted, and the report says that it is partial.
	MaxBytes int
}

// DefaultMaxBytes is enough for about 2,000,000 series, of which a partition may have 200,000 with ten labels.
const DefaultMaxBytes = 128 << 20

// Take counts.
func Take(ctx context.Context, cfg Config) (*cardinality.Report, error) {
	partitions, err := cfg.Conn.Partitions(ctx)
	if err != nil {
		return nil, err
	}
	newest, err := newestFrame(ctx, cfg.Conn, partitions)
	if err != nil {
		return nil, err
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	c := newCount(newest, newest.Add(-cfg.Since), cfg.MaxBytes)
	c.metric = cfg.Metric
	for p := range partitions {
		forMarks, forEntries := c.forMarks, c.forEntries
		live, err := c.present(ctx, cfg.Conn, p, newest.Add(-cfg.Window))
		if err != nil {
			return nil, err
		}
		if err := c.partition(ctx, cfg.Conn, p, live); err != nil {
			return nil, err
		}
		c.addUp()
		c.forMarks, c.forEntries = forMarks, forEntries
	}
	r := c.report(cfg.Top)
	r.WindowSeconds = cfg.Window.Seconds()
	return r, nil
}

// newestFrame returns when the newest message of FRAMES was stored; now, where there is none.
func newestFrame(ctx context.Context, conn *stream.Conn, partitions int) (newest time.Time, err error) {
	for p := range partitions {
		msg, err := conn.Last(ctx, stream.Frames, conn.Frames(p))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return newest, err
		}
		if msg.Time.After(newest) {
			newest = msg.Time
		}
	}
	if newest.IsZero() {
		newest = time.Now()
	}
	return newest, nil
}

// series are those of a dictionary, by their numbers.
type series []mark

// mark is what is known of the newest sample of a series: the number of its message, and whether it is a staleness marker. 0 stands for none.
type mark uint64

func newMark(seq uint64, gone bool) mark {
	m := mark(seq << 1)
	if gone {
		m |= 1
	}
	return m
}

func (m mark) seq() uint64 { return uint64(m) >> 1 }
func (m mark) gone() bool  { return m&1 != 0 }

// present returns the series of a partition that have samples since a time, by dictionary, as many as there is room for.
func (c *count) present(ctx context.Context, conn *stream.Conn, partition int, since time.Time) (map[frame.DictID]series, error) {
	live := map[frame.DictID]series{}
	var buf []byte
	var f frame.Frame
	err := conn.Past(ctx, stream.Frames, conn.Frames(partition), since, func(msg stream.Message) error {
		var err error
		buf, err = frame.Each(msg.Data, buf, &f, func(f *frame.Frame) error {
			for i := range f.Sections {
				c.note(live, f, &f.Sections[i], msg.Seq)
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading frames of partition %d: %w", partition, err)
	}
	return live, nil
}

// note notes the series of a section of a message.
func (c *count) note(live map[frame.DictID]series, f *frame.Frame, s *frame.Section, seq uint64) {
	set := live[s.Dict]
	if set == nil {
		if !c.has(&c.forMarks, dictBytes+s.Series*markBytes) {
			return
		}
		set = make(series, s.Series)
		live[s.Dict] = set
	}
	mark := func(i uint32, v float64) {
		if int(i) < len(set) {
			set[i] = newMark(seq, math.Float64bits(v) == value.StaleNaN)
		}
	}
	for k, v := range s.Values {
		i, _, _ := s.At(f, k)
		mark(i, v)
	}
	for k := range s.Histograms {
		h := &s.Histograms[k]
		if h.Int != nil {
			mark(h.Index, h.Int.Sum)
		} else if h.Float != nil {
			mark(h.Index, h.Float.Sum)
		}
	}
}

// partition counts the series of a partition.
func (c *count) partition(ctx context.Context, conn *stream.Conn, partition int, live map[frame.DictID]series) error {
	refusals, err := limit.Refusals(ctx, conn, partition)
	if err != nil {
		return err
	}
	anyNew := false // whether a dictionary is new itself
	for id, set := range live {
		msg, err := conn.Last(ctx, stream.Dicts, conn.Dict(partition, id))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			for _, at := range set {
				if at != 0 && c.metric == "" {
					c.unknown++
				}
			}
			continue
		}
		if err != nil {
			return err
		}
		d, err := frame.ReadDictionary(msg.Data, id)
		if err != nil {
			return err
		}
		isNew := stream.FirstAnnounced(msg).After(c.since)
		refused := refusals[id]
		anyNew = anyNew || isNew
		for i, at := range set[:min(len(set), len(d.Series))] {
			if at != 0 {
				c.add(d.Job, d.Series[i].Labels, at, refused != nil && refused(i), isNew)
			}
		}
	}
	if !anyNew {
		return nil
	}
	return c.known(ctx, conn, partition)
}

// known finds out which series of new dictionaries have stood in older ones.
func (c *count) known(ctx context.Context, conn *stream.Conn, partition int) error {
	err := conn.Past(ctx, stream.Dicts, conn.DictPartition(partition), time.Unix(1, 0), func(msg stream.Message) error {
		id, err := conn.DictOf(msg.Subject)
		if err != nil || stream.FirstAnnounced(msg).After(c.since) {
			return nil
		}
		d, err := frame.ReadDictionary(msg.Data, id)
		if err != nil {
			return nil // the relabel service says so
		}
		for i := range d.Series {
			if e := c.entries[c.hash(d.Series[i].Labels)]; e != nil {
				e.isNew = false
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading dictionaries of partition %d: %w", partition, err)
	}
	return nil
}
