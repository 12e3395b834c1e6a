package tail

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream"
)

const (
	// maxLabelBytes is about how much memory the labels of selected series may take.
	maxLabelBytes = 16 << 20
	// entryBytes is what a dictionary takes of which nothing is selected.
	entryBytes = 128
	// waitTime is how long a dictionary is waited for that is not there: what an endpoint gets for it comes a moment later.
	waitTime, waitPause = 2 * time.Second, 50 * time.Millisecond
	// missingTime is how long one is taken for gone for which that was too short.
	missingTime = 10 * time.Second
)

// dictionaries know the labels of the series that are selected.
type dictionaries struct {
	conn     *stream.Conn
	endpoint string
	match    replay.Selectors

	mu      sync.Mutex
	entries map[frame.DictID]*entry
	bytes   int
	failed  time.Time // when one was waited for in vain
}

// entry are the series of a dictionary that are selected; others have no labels.
type entry struct {
	series []labels.Labels // nil where none is
	bytes  int
	gone   time.Time // it was not there
}

func newDictionaries(conn *stream.Conn, endpoint string, match replay.Selectors) *dictionaries {
	return &dictionaries{conn: conn, endpoint: endpoint, match: match, entries: map[frame.DictID]*entry{}}
}

// follow forgets what an endpoint gets for a dictionary as soon as that changes, until the function that it returns is called.
func (d *dictionaries) follow() (stop func(), err error) {
	if d.endpoint == "" {
		return func() {}, nil
	}
	sub, err := d.conn.NC.Subscribe(d.conn.AllRelabelled(d.endpoint), func(m *nats.Msg) {
		if id, err := d.conn.DictOf(m.Subject); err == nil {
			d.mu.Lock()
			d.forget(id)
			d.mu.Unlock()
		}
	})
	if err != nil {
		return nil, err
	}
	return func() { _ = sub.Unsubscribe() }, nil
}

func (d *dictionaries) forget(id frame.DictID) {
	if e := d.entries[id]; e != nil {
		d.bytes -= e.bytes
		delete(d.entries, id)
	}
}

// get returns the series of a dictionary that are selected, or nil, where it is not there.
func (d *dictionaries) get(ctx context.Context, partition int, id frame.DictID) (*entry, error) {
	d.mu.Lock()
	e := d.entries[id]
	d.mu.Unlock()
	if e != nil && (e.gone.IsZero() || time.Since(e.gone) < missingTime) {
		if !e.gone.IsZero() {
			return nil, nil
		}
		return e, nil
	}
	e, err := d.load(ctx, partition, id)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(id)
	for other := range d.entries { // any: all are used with every scrape
		if d.bytes+e.bytes <= maxLabelBytes {
			break
		}
		d.forget(other)
	}
	d.entries[id], d.bytes = e, d.bytes+e.bytes
	if !e.gone.IsZero() {
		return nil, nil
	}
	return e, nil
}

// load gets a dictionary, and waits for it a moment.
func (d *dictionaries) load(ctx context.Context, partition int, id frame.DictID) (*entry, error) {
	until := time.Now().Add(waitTime)
	if time.Since(d.failed) < missingTime {
		until = time.Now() // or it would wait for each, where many are gone
	}
	for {
		series, err := d.lookup(ctx, partition, id)
		if err == nil {
			return d.choose(series), nil
		}
		if !errors.Is(err, jetstream.ErrMsgNotFound) && !errors.Is(err, frame.ErrCorrupt) {
			return nil, err
		}
		if time.Now().After(until) {
			d.failed = time.Now()
			return &entry{gone: d.failed, bytes: entryBytes}, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(waitPause):
		}
	}
}

// lookup reads the series of a dictionary.
func (d *dictionaries) lookup(ctx context.Context, partition int, id frame.DictID) ([]frame.Series, error) {
	if d.endpoint == "" {
		msg, err := d.conn.Last(ctx, stream.Dicts, d.conn.Dict(partition, id))
		if err != nil {
			return nil, err
		}
		dict, err := frame.ReadDictionary(msg.Data, id)
		if err != nil {
			return nil, err
		}
		return dict.Series, nil
	}
	msg, err := d.conn.Last(ctx, stream.Relabelled, d.conn.Relabelled(d.endpoint, partition, id))
	if err != nil {
		return nil, err
	}
	packed, err := frame.ReadRelabelled(msg.Data)
	if err != nil {
		return nil, err
	}
	return packed.Series()
}

// choose keeps the labels of the series that are selected.
func (d *dictionaries) choose(series []frame.Series) *entry {
	e := &entry{bytes: entryBytes}
	for i := range series {
		ls := series[i].Labels
		if ls.IsEmpty() || !d.match.Select(ls) {
			continue
		}
		if e.series == nil {
			e.series, e.bytes = make([]labels.Labels, len(series)), e.bytes+len(series)*24
		}
		e.series[i], e.bytes = ls.Copy(), e.bytes+int(ls.ByteSize())
	}
	return e
}
