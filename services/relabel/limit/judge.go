package limit

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// Verdict says which series of a dictionary have a place.
type Verdict struct {
	refused, merged marks
	drop            []string
}

// Apply returns the series as rules are to see them: those that are refused without labels, those that go without labels without them.
func (v *Verdict) Apply(series []frame.Series) []frame.Series {
	if len(v.refused) == 0 && len(v.merged) == 0 {
		return series
	}
	out := slices.Clone(series)
	for i := range out {
		switch {
		case v.refused.has(i):
			out[i].Labels = labels.EmptyLabels()
		case v.merged.has(i):
			out[i].Labels = without(out[i].Labels, v.drop)
		}
	}
	return out
}

func without(ls labels.Labels, names []string) labels.Labels {
	return labels.NewBuilder(ls).Del(names...).Labels()
}

// Decision is what follows from the announcement of a dictionary.
type Decision struct {
	// Verdict is that on the dictionary.
	Verdict Verdict
	// Current reports whether all endpoints have had what follows from it, not long ago.
	Current bool
	// Others are dictionaries to judge anew, in this order: there is another series now with the labels that one of theirs goes by.
	Others []frame.DictID
}

// Judge decides on a dictionary that was announced at a time. Series that were refused before get a place where there is one now.
func (p *Partition) Judge(ctx context.Context, d *frame.Dictionary, at time.Time) (Decision, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.dicts[d.ID]
	if h != nil {
		if at.After(h.announced) {
			h.announced = at
		}
		if len(h.verdict.refused) == 0 && !p.disputed(d, h) {
			return h.decision(p), p.keep(ctx, d, h)
		}
	}
	j := judgement{Partition: p, d: d, job: clip(d.Job), old: h, drop: p.drop}
	if h != nil && len(h.verdict.merged) > 0 {
		j.drop = h.verdict.drop // a dictionary has one list
	}
	if err := j.judge(ctx); err != nil {
		p.known = 0 // it may have granted what is not taken
		return Decision{}, err
	}
	if h != nil && j.admitted == 0 && !j.revoked {
		r := h.decision(p)
		r.Others = j.others()
		return r, p.keep(ctx, d, h)
	}
	next, err := j.decide(ctx, at)
	if err != nil {
		p.known = 0
		return Decision{}, err
	}
	return Decision{Verdict: next.verdict, Others: j.others()}, nil
}

// decision is that of a verdict which stands.
func (h *held) decision(p *Partition) Decision {
	return Decision{Verdict: h.verdict, Current: time.Since(h.published) < p.cfg.DictAge/2}
}

// keep writes a verdict again before the stream forgets it.
func (p *Partition) keep(ctx context.Context, d *frame.Dictionary, h *held) error {
	if time.Since(h.written) < p.cfg.DictAge/2 {
		return nil
	}
	if err := p.journal.append(ctx, h.record(d)); err != nil {
		return err
	}
	h.written = time.Now()
	return nil
}

func (h *held) record(d *frame.Dictionary) *record {
	r := &record{Dict: d.ID[:], Series: len(d.Series), Refused: h.verdict.refused, Merged: h.verdict.merged, Stops: h.stops}
	if len(h.verdict.merged) > 0 {
		r.Drop = h.verdict.drop
	}
	return r
}

// lastAnnounced returns when the stream got a dictionary last.
func (p *Partition) lastAnnounced(ctx context.Context, id frame.DictID) (time.Time, error) {
	msg, err := p.cfg.Conn.Last(ctx, stream.Dicts, p.cfg.Conn.Dict(p.cfg.Number, id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, nil
	}
	return msg.Time, err
}

// judgement finds places for the series of a dictionary.
type judgement struct {
	*Partition
	d   *frame.Dictionary
	job string // its name, which is short enough
	old *held  // the verdict before; nil where there is none

	fate     []fate
	hashes   []uint64          // of the final labels
	mine     map[uint64]uint64 // places that this judgement has found, with the owners of those that go without labels
	admitted int               // series that get a place which they did not have, or have it by another dictionary
	targets  map[string]int    // series that get a place, by target
	stops    map[stop]int
	by       map[int]key // the limit that has no place for a series
	drop     []string    // labels that stand-ins go without

	contested []uint64 // labels that several series would have, of which some are of this dictionary
	revoked   bool     // a series may not go without labels any more
	waiting   bool     // a series has no place because another goes by its labels
}

// fate is what becomes of a series.
type fate uint8

const (
	open     fate = iota
	admitted      // with its own labels
	merged        // without those that are dropped
	refused
)

// judge finds places, and asks the accountant for those that it has to grant.
func (j *judgement) judge(ctx context.Context) error {
	n := len(j.d.Series)
	j.fate, j.hashes = make([]fate, n), make([]uint64, n)
	j.mine, j.targets, j.stops, j.by = map[uint64]uint64{}, map[string]int{}, map[stop]int{}, map[int]key{}
	var open []int
	for i := range j.d.Series {
		j.hashes[i] = j.hash(j.d.Series[i].Labels)
		if j.old != nil && !j.old.verdict.refused.has(i) {
			j.fate[i] = admitted
			if j.old.verdict.merged.has(i) {
				j.fate[i] = merged
				j.rival(j.d.Series[i].Labels, j.drop, time.Now())
			}
			continue
		}
		open = append(open, i)
		if j.old != nil {
			j.rival(j.d.Series[i].Labels, j.drop, time.Now())
		}
	}
	open = append(open, j.revoke()...)
	rest, err := j.place(ctx, open, false)
	if err != nil {
		return err
	}
	finals := map[int]uint64{}
	for _, i := range rest {
		j.fate[i] = refused
		if final, ok := j.rival(j.d.Series[i].Labels, j.drop, time.Now()); ok {
			finals[i] = final
		}
	}
	var standIns []int
	for _, i := range rest {
		final, ok := finals[i]
		if !ok {
			continue
		}
		if j.contest.contested(final) {
			j.contested = append(j.contested, final)
			continue
		}
		if k := j.by[i].kind; k != 0 && j.cfg.Limits.rule(k).Action == DropLabel {
			standIns = append(standIns, i)
		}
	}
	if len(standIns) > 0 {
		for _, i := range standIns {
			j.hashes[i] = finals[i]
		}
		if _, err := j.place(ctx, standIns, true); err != nil {
			return err
		}
	}
	return nil
}

// revoke returns the series that went without labels and may not any more.
func (j *judgement) revoke() (list []int) {
	for i, f := range j.fate {
		if f != merged {
			continue
		}
		if final := j.hash(without(j.d.Series[i].Labels, j.drop)); j.contest.contested(final) {
			j.fate[i], j.revoked = open, true
			j.contested = append(j.contested, final)
			list = append(list, i)
		}
	}
	return list
}

// others returns the dictionaries to judge anew.
func (j *judgement) others() []frame.DictID {
	slices.Sort(j.contested)
	list := j.holders(j.d.ID, slices.Compact(j.contested))
	if j.waiting && len(list) > 0 {
		list = append(list, j.d.ID) // when its labels are free
	}
	return list
}

// place finds places for series and returns those that have found none.
func (j *judgement) place(ctx context.Context, series []int, standIns bool) (rest []int, err error) {
	var need []int
	asked := map[uint64]uint64{} // final labels that a place is looked for, with whose they are
	var same []int               // series that another entry of need is too
	for _, i := range series {
		final := j.hashes[i]
		own := j.own(i, standIns)
		_, placed := j.places[final]
		_, found := j.mine[final]
		first, again := asked[final]
		switch {
		case placed && j.owners[final] == own:
			j.settle(i, own) // by another dictionary
		case placed || found || again && first != own:
			rest = append(rest, i) // another series has these labels
			if j.owners[final] != 0 && !standIns {
				j.contest.note(final, final, time.Now())
				j.contested, j.waiting = append(j.contested, final), true
			}
		case again:
			same = append(same, i)
		default:
			asked[final] = own
			need = append(need, i)
		}
	}
	need, more := j.local(need, standIns)
	rest = append(rest, more...)
	more, err = j.granted(ctx, need, standIns)
	if err != nil {
		return nil, err
	}
	rest = append(rest, more...)
	for _, i := range same {
		if _, ok := j.mine[j.hashes[i]]; ok {
			j.settle(i, j.own(i, standIns))
			continue
		}
		for _, k := range rest {
			if j.hashes[k] == j.hashes[i] {
				j.by[i] = j.by[k]
			}
		}
		rest = append(rest, i)
	}
	slices.Sort(rest)
	return rest, nil
}

// own returns the hash of a series' own labels where it is to go without some; 0 where not.
func (j *judgement) own(i int, standIn bool) uint64 {
	if !standIn {
		return 0
	}
	return j.hash(j.d.Series[i].Labels)
}

// settle gives a series its place. own is 0 unless it goes without some labels.
func (j *judgement) settle(i int, own uint64) {
	j.fate[i] = admitted
	if own != 0 {
		j.fate[i] = merged
	}
	j.mine[j.hashes[i]] = own
	j.admitted++
}

// local sorts out the series that their targets' limit does not take. Nobody has to be asked: it counts what one partition has of a target.
func (j *judgement) local(series []int, standIns bool) (need, rest []int) {
	rule := &j.cfg.Limits.Target
	if rule.MaxSeries == 0 {
		return series, nil
	}
	for _, i := range series {
		name, ok := target(j.d.Series[i].Labels)
		if !ok {
			need = append(need, i)
			continue
		}
		n := j.have(key{Target, name}) + j.targets[name]
		if rule.room(n, 1, standIns) == 0 {
			j.stopped(i, key{Target, name}, standIns)
			rest = append(rest, i)
			continue
		}
		j.targets[name]++
		if rule.over(n+1, 1) > 0 {
			j.warned(i, key{Target, name}, 1)
		}
		need = append(need, i)
	}
	return need, rest
}

// granted asks the accountant for places, by metric.
func (j *judgement) granted(ctx context.Context, series []int, standIns bool) (rest []int, err error) {
	if len(series) == 0 {
		return nil, nil
	}
	var names []string
	groups := map[string][]int{}
	for _, i := range series {
		name := metric(j.d.Series[i].Labels)
		if groups[name] == nil {
			names = append(names, name)
		}
		groups[name] = append(groups[name], i)
	}
	grants, err := j.ask(ctx, j.job, names, groups, j.taken(), standIns)
	if err != nil {
		return nil, err
	}
	for g, name := range names {
		list := groups[name]
		n := min(grants[g].N, len(list))
		for _, i := range list[:n] {
			j.settle(i, j.own(i, standIns))
		}
		for _, o := range grants[g].Over {
			j.warned(list[0], j.keyOf(o.Kind, name), o.N)
		}
		for _, i := range list[n:] {
			if name, ok := target(j.d.Series[i].Labels); ok {
				j.targets[name]-- // it is as if it had not come
			}
			j.stopped(i, j.keyOf(grants[g].By, name), standIns)
			rest = append(rest, i)
		}
	}
	return rest, nil
}

// taken returns the numbers of series that this judgement has been granted already, beyond what the partition has, by key.
func (j *judgement) taken() map[key]int {
	taken := map[key]int{}
	seen := map[uint64]bool{}
	for i, f := range j.fate {
		_, found := j.mine[j.hashes[i]]
		_, before := j.places[j.hashes[i]]
		if f != admitted || !found || before || seen[j.hashes[i]] {
			continue
		}
		seen[j.hashes[i]] = true
		taken[key{Job, j.job}]++
		taken[key{Metric, metric(j.d.Series[i].Labels)}]++
		taken[key{All, ""}]++
	}
	return taken
}

func (j *judgement) keyOf(k Kind, metric string) key {
	switch k {
	case Job:
		return key{Job, j.job}
	case Metric:
		return key{Metric, metric}
	}
	return key{All, ""}
}

// stopped notes that a limit has no place for a series. It counts once, also where the series then finds none without some labels.
func (j *judgement) stopped(i int, k key, standIn bool) {
	if !standIn {
		j.by[i] = k
		j.warned(i, k, 1)
	}
}

// warned counts series of the metric of series i that a limit does not want.
func (j *judgement) warned(i int, k key, n int) {
	j.stops[stop{Kind: k.kind, Name: k.name, Metric: metric(j.d.Series[i].Labels)}] += n
}

// decide writes what was found and makes it hold.
func (j *judgement) decide(ctx context.Context, at time.Time) (*held, error) {
	p := j.Partition
	next := &held{announced: at, stops: j.offences()}
	if j.old != nil && j.old.announced.After(at) {
		next.announced = j.old.announced
	}
	for i, f := range j.fate {
		switch f {
		case merged:
			next.verdict.merged.set(i)
		case admitted:
		default:
			next.verdict.refused.set(i)
		}
	}
	if len(next.verdict.merged) > 0 {
		next.verdict.drop = j.drop
	}
	if err := p.journal.append(ctx, next.record(j.d)); err != nil {
		return nil, err
	}
	p.waits("")
	next.written = time.Now()
	for i := range j.d.Series {
		ls := j.d.Series[i].Labels
		switch j.fate[i] {
		case admitted:
			p.put(next, j.job, ls, p.hash(ls), 0)
		case merged:
			p.put(next, j.job, ls, p.hash(without(ls, j.drop)), p.hash(ls))
		}
	}
	p.cfg.Offenders.add(next.stops, 1)
	var changed map[key]int
	if j.old != nil {
		changed = p.take(j.d.ID) // the new verdict's places are counted already
	}
	p.dicts[j.d.ID] = next
	p.active.Store(int64(p.all.n))
	if j.revoked {
		if err := p.report(ctx, changed); err != nil {
			return nil, err
		}
	}
	p.cfg.Offenders.say(next.stops, &p.cfg.Limits, p.cfg.Logger)
	return next, nil
}

// offences returns the limits that were met, the largest first, with the label that has grown most.
func (j *judgement) offences() []stop {
	var list []stop
	for s, n := range j.stops {
		s.Series = n
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b stop) int {
		return cmp.Or(cmp.Compare(b.Series, a.Series), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Metric, b.Metric))
	})
	list = list[:min(len(list), maxStops)]
	labels := j.cfg.Offenders.grown(j.d, list)
	for i := range list {
		list[i].Label = labels[list[i].Metric]
	}
	return list
}
