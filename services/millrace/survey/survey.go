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

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/services/relabel/limit"
)

// Config says what is to be counted.
type Config struct {
	// Conn reaches the streams.
	Conn *stream.Conn
	// Window is the time before the newest sample in which a series has to have one. A staleness marker ends it.
	Window time.Duration
	// Since is the time before the newest sample in which a series has to have appeared to be a new one.
	Since time.Duration
	// Top is how many of each list are reported; 0 for all.
	Top int
}

// Take counts.
func Take(ctx context.Context, cfg Config) (*Report, error) {
	partitions, err := cfg.Conn.Partitions(ctx)
	if err != nil {
		return nil, err
	}
	newest, err := newestFrame(ctx, cfg.Conn, partitions)
	if err != nil {
		return nil, err
	}
	c := newCount(newest, newest.Add(-cfg.Since))
	for p := range partitions {
		live, err := present(ctx, cfg.Conn, p, newest.Add(-cfg.Window))
		if err != nil {
			return nil, err
		}
		if err := c.partition(ctx, cfg.Conn, p, live); err != nil {
			return nil, err
		}
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

// series are those of a dictionary that have samples, by their numbers.
type series map[uint32]last

// last is what is known of the newest sample of a series.
type last struct {
	seq  uint64 // number of its message
	gone bool   // it is a staleness marker
}

// present returns the series of a partition that have samples since a time, by dictionary.
func present(ctx context.Context, conn *stream.Conn, partition int, since time.Time) (map[frame.DictID]series, error) {
	live := map[frame.DictID]series{}
	var buf []byte
	var f frame.Frame
	err := conn.Past(ctx, stream.Frames, conn.Frames(partition), since, func(msg stream.Message) error {
		batch, err := frame.OpenBatch(msg.Data, buf)
		if errors.Is(err, frame.ErrCorrupt) {
			return nil // the writer says so
		}
		if err != nil {
			return err
		}
		for {
			ok, err := batch.Next(&f)
			if errors.Is(err, frame.ErrCorrupt) {
				continue
			}
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			for i := range f.Sections {
				note(live, &f.Sections[i], msg.Seq)
			}
		}
		buf = batch.Buffer()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading frames of partition %d: %w", partition, err)
	}
	return live, nil
}

// note notes the series of a section of a message.
func note(live map[frame.DictID]series, s *frame.Section, seq uint64) {
	set := live[s.Dict]
	if set == nil {
		set = series{}
		live[s.Dict] = set
	}
	mark := func(i uint32, v float64) { set[i] = last{seq, math.Float64bits(v) == value.StaleNaN} }
	for k, v := range s.Values {
		i := uint32(k)
		if s.Present != nil {
			i = s.Present[k]
		}
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
	fresh := map[uint64]*entry{} // series of dictionaries that are new themselves
	for id, set := range live {
		if len(set) == 0 {
			continue
		}
		msg, err := conn.Last(ctx, stream.Dicts, conn.Dict(partition, id))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			c.unknown += len(set)
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
		for i, at := range set {
			if int(i) >= len(d.Series) {
				continue
			}
			e := c.add(d.Job, d.Series[i].Labels, at, refused != nil && refused(int(i)), isNew)
			if isNew {
				fresh[c.hash(d.Series[i].Labels)] = e
			}
		}
	}
	return c.known(ctx, conn, partition, fresh)
}

// known finds out which series of new dictionaries have stood in older ones.
func (c *count) known(ctx context.Context, conn *stream.Conn, partition int, fresh map[uint64]*entry) error {
	if len(fresh) == 0 {
		return nil
	}
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
			if e := fresh[c.hash(d.Series[i].Labels)]; e != nil {
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
