package limit

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// Config configures a [Partition].
type Config struct {
	// Conn reaches the streams.
	Conn *stream.Conn
	// Number is the partition's, and Lease the epoch of its lease.
	Number int
	Lease  uint64
	// Limits are those of the fleet.
	Limits Limits
	// DictAge is how long the stream keeps dictionaries and verdicts.
	DictAge time.Duration
	// Accountant returns the accountant's epoch, which is that of the lease of partition 0; 0 where nobody has it.
	Accountant func() uint64
	// Offenders are told what meets a limit.
	Offenders *Offenders
	// Logger receives log lines. Waiting is told on what the partition waits; "" when it goes on.
	Logger  *slog.Logger
	Waiting func(string)
}

// Partition knows which series of a partition's dictionaries have a place. What it decides is in the stream VERDICTS before anybody hears of it, so the next owner of the partition decides
// the same. Its methods are safe for concurrent use.
type Partition struct {
	cfg     Config
	journal journal
	drop    []string // labels

	mu      sync.Mutex
	dicts   map[frame.DictID]*held
	places  map[uint64]place  // by the hash of the final labels
	owners  map[uint64]uint64 // series that go without labels, by the hashes of the final and of their own ones
	contest contest
	targets map[string]*tally
	jobs    map[string]*tally
	metrics map[string]*tally
	all     tally

	session uint64
	known   uint64      // epoch of the accountant that knows what the partition has; 0 for none
	pending map[key]int // series that the judgement under way has been granted before
	buf     []byte      // of labels

	active atomic.Int64
}

// held is a dictionary whose series may have places.
type held struct {
	verdict   Verdict
	places    []uint64
	announced time.Time // when a source was last known to use it
	written   time.Time // when its verdict was stored
	published time.Time // when all endpoints got what follows from it; zero where that is not known
	stops     []stop
}

// place is a series that counts.
type place struct {
	refs                int32 // how many dictionaries have the series
	target, job, metric *tally
}

// tally is how many series there are of a target, job or metric.
type tally struct {
	name string
	n    int
}

// hashSeed makes the hashes of label sets, which never leave the process, unguessable to those who choose labels.
var hashSeed = maphash.MakeSeed()

func (p *Partition) hash(ls labels.Labels) uint64 {
	p.buf = ls.Bytes(p.buf)
	return maphash.Bytes(hashSeed, p.buf)
}

// Open reads what the partition has decided before, and makes this process the one that decides from now on.
func Open(ctx context.Context, cfg Config) (*Partition, error) {
	p := &Partition{
		cfg: cfg, drop: cfg.Limits.dropped(), session: rand.Uint64() | 1,
		dicts: map[frame.DictID]*held{}, places: map[uint64]place{}, owners: map[uint64]uint64{},
		targets: map[string]*tally{}, jobs: map[string]*tally{}, metrics: map[string]*tally{}, contest: newContest(cfg.Limits.FreeAfter),
	}
	p.journal = journal{conn: cfg.Conn, subject: cfg.Conn.Verdicts(cfg.Number), owner: p.session, waiting: func(err error) { p.waits("the stream: " + err.Error()) }}
	defer p.waits("")
	live, err := p.journal.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the verdicts of partition %d: %w", cfg.Number, err)
	}
	err = cfg.Conn.Past(ctx, stream.Dicts, cfg.Conn.DictPartition(cfg.Number), time.Unix(1, 0), func(msg stream.Message) error {
		id, err := cfg.Conn.DictOf(msg.Subject)
		if err != nil || live[id] == nil {
			return nil
		}
		d, err := frame.ReadDictionary(msg.Data, id)
		if err != nil || len(d.Series) != live[id].Series {
			cfg.Logger.Error("Ignoring the verdict on a dictionary that cannot be read", "dictionary", id, "err", err)
			return nil
		}
		p.restore(d, live[id], msg.Time)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the dictionaries of partition %d: %w", cfg.Number, err)
	}
	p.active.Store(int64(p.all.n))
	return p, nil
}

// restore takes a dictionary as it was decided on.
func (p *Partition) restore(d *frame.Dictionary, w *written, announced time.Time) {
	if p.dicts[d.ID] != nil {
		return
	}
	h := &held{verdict: Verdict{refused: w.Refused, merged: w.Merged, drop: w.Drop}, announced: announced, written: w.at, stops: w.Stops}
	job := clip(d.Job)
	for i := range d.Series {
		ls := d.Series[i].Labels
		switch {
		case h.verdict.refused.has(i):
			p.rival(ls, p.drop, announced)
		case h.verdict.merged.has(i):
			p.rival(ls, h.verdict.drop, announced)
			p.put(h, job, ls, p.hash(without(ls, h.verdict.drop)), p.hash(ls))
		default:
			p.put(h, job, ls, p.hash(ls), 0)
		}
	}
	p.dicts[d.ID] = h
	p.cfg.Offenders.add(h.stops, 1)
}

// put gives a series of a dictionary its place, by the hash of its final labels. owner is the hash of its own where it goes without some.
func (p *Partition) put(h *held, job string, ls labels.Labels, final, owner uint64) {
	h.places = append(h.places, final)
	x, ok := p.places[final]
	if x.refs++; !ok {
		x.job, x.metric = p.tally(p.jobs, job), p.tally(p.metrics, metric(ls))
		if name, ok := target(ls); ok {
			x.target = p.tally(p.targets, name)
		}
		for _, t := range []*tally{x.target, x.job, x.metric, &p.all} {
			if t != nil {
				t.n++
			}
		}
		if owner != 0 {
			p.owners[final] = owner
		}
	}
	p.places[final] = x
}

func (p *Partition) tally(of map[string]*tally, name string) *tally {
	t := of[name]
	if t == nil {
		t = &tally{name: name}
		of[name] = t
	}
	return t
}

// take takes a dictionary's places away. It returns the numbers of series that have changed.
func (p *Partition) take(id frame.DictID) (changed map[key]int) {
	h := p.dicts[id]
	delete(p.dicts, id)
	p.cfg.Offenders.add(h.stops, -1)
	changed = map[key]int{}
	for _, final := range h.places {
		x := p.places[final]
		if x.refs--; x.refs > 0 {
			p.places[final] = x
			continue
		}
		delete(p.places, final)
		delete(p.owners, final)
		p.all.n--
		drop(p.targets, x.target)
		drop(p.jobs, x.job)
		drop(p.metrics, x.metric)
		changed[key{Job, x.job.name}], changed[key{Metric, x.metric.name}], changed[key{All, ""}] = x.job.n, x.metric.n, p.all.n
	}
	return changed
}

func drop(of map[string]*tally, t *tally) {
	if t == nil {
		return
	}
	if t.n--; t.n == 0 {
		delete(of, t.name)
	}
}

// have returns how many series the partition has of a key.
func (p *Partition) have(k key) int {
	var t *tally
	switch k.kind {
	case Job:
		t = p.jobs[k.name]
	case Metric:
		t = p.metrics[k.name]
	case Target:
		t = p.targets[k.name]
	default:
		t = &p.all
	}
	if t == nil {
		return 0
	}
	return t.n
}

// Active returns how many series have a place.
func (p *Partition) Active() int { return int(p.active.Load()) }

// Newest returns the newest verdict that was found by [Open], and its dictionary; false where that has no places any more. The owner before may have been killed
// before endpoints got what follows from it.
func (p *Partition) Newest() (id frame.DictID, v Verdict, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.dicts[p.journal.newest]
	if h == nil {
		return id, v, false
	}
	return p.journal.newest, h.verdict, true
}

// Published notes that all endpoints have what follows from the newest verdict on a dictionary.
func (p *Partition) Published(id frame.DictID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.dicts[id]; h != nil {
		h.published = time.Now()
	}
}

// Close tells that the partition ends here: what it knows is not shown any more.
func (p *Partition) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.dicts {
		p.cfg.Offenders.add(h.stops, -1)
	}
	p.dicts = map[frame.DictID]*held{}
	p.active.Store(0)
}

// Sweep takes the places of dictionaries that no source uses any more.
func (p *Partition) Sweep(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.contest.sweep()
	before := time.Now().Add(-p.cfg.Limits.FreeAfter)
	var freed []byte
	var ids []frame.DictID
	for id, h := range p.dicts {
		if h.announced.After(before) {
			continue
		}
		// That this partition has not read of it for so long may be its own fault.
		at, err := p.lastAnnounced(ctx, id)
		if err != nil {
			return err
		}
		if h.announced = at; at.After(before) {
			continue
		}
		freed, ids = append(freed, id[:]...), append(ids, id)
		if len(freed) >= p.journal.most() {
			break
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if err := p.journal.append(ctx, &record{Freed: freed}); err != nil {
		return err
	}
	p.waits("")
	series := p.all.n
	changed := map[key]int{}
	for _, id := range ids {
		for k, n := range p.take(id) {
			changed[k] = n
		}
	}
	p.active.Store(int64(p.all.n))
	p.cfg.Logger.Debug("Series that are gone have freed their places", "dictionaries", len(ids), "series", series-p.all.n)
	return p.report(ctx, changed)
}
