package status

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream"
)

// document puts together what was found.
func (f *found) document() *Document {
	d := &Document{Version: DocumentVersion, Time: f.now.UTC(), Reached: f.reached, Problems: []string{}}
	d.Members = f.members()
	d.Shares = f.shares()
	d.Streams = f.streamList()
	d.Endpoints = f.endpoints()
	d.Replays = f.replays()
	d.Problems = append(d.Problems, problems(d)...)
	for _, err := range f.errs {
		d.Problems = append(d.Problems, err.Error())
	}
	return d
}

// members joins the entries of the bucket with what the processes say of themselves.
func (f *found) members() []Member {
	byID := map[string]*Member{}
	for id, r := range f.reports {
		m := r.Member
		m.Asked = f.self != nil && id == f.self.Member.ID
		m.WaitingFor = orEmpty(m.WaitingFor)
		m.Services = slices.Clone(orEmpty(m.Services))
		for i := range m.Services {
			s := &m.Services[i]
			s.WaitingFor = orEmpty(s.WaitingFor)
			if s.Figures == nil {
				s.Figures = map[string]float64{}
			}
		}
		byID[id] = &m
	}
	for _, e := range f.view.Members {
		m := byID[e.ID]
		if m == nil {
			m = silent(e)
			byID[e.ID] = m
		}
		m.LastSeen = e.Seen.UTC()
	}
	usual := usualConfig(byID)
	list := []Member{}
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		m := byID[id]
		m.OtherConfig = m.ConfigHash != usual
		list = append(list, *m)
	}
	return list
}

// silent is a member of which there is the entry only.
func silent(e fleet.Member) *Member {
	m := &Member{
		ID: e.ID, Host: e.Host, Address: e.Address, Version: e.Version, ConfigHash: e.ConfigHash, Started: e.Started.UTC(), State: Silent,
		WaitingFor: []string{}, Services: []Service{},
	}
	for _, s := range e.Services {
		m.Services = append(m.Services, Service{Name: s, State: Silent, WaitingFor: []string{}, Figures: map[string]float64{}})
	}
	return m
}

// usualConfig returns the configuration that most members have.
func usualConfig(members map[string]*Member) string {
	count := map[string]int{}
	for _, m := range members {
		count[m.ConfigHash]++
	}
	usual := ""
	for _, hash := range slices.Sorted(maps.Keys(count)) {
		if count[hash] > count[usual] {
			usual = hash
		}
	}
	return usual
}

// order is that in which data passes the services.
var order = []string{"discovery", "scraper", "ingest", "relabel", "writer"}

// shares tells who owns what. How many shares there are follows from the streams, from what the processes say, and at last from the leases.
func (f *found) shares() []Shares {
	list := []Shares{}
	if !f.viewed {
		return list
	}
	all := map[string]int{}
	more := func(service string, n int) { all[service] = max(all[service], n) }
	for _, s := range f.streams {
		if s.name == stream.Frames && s.err == nil {
			more("discovery", 1)
			more("scraper", stream.Shards)
			more("relabel", s.state.Partitions)
			more("writer", s.state.Partitions)
		}
	}
	for _, r := range f.reports {
		for service, n := range r.Shares {
			more(service, min(n, maxShares))
		}
	}
	alive := map[string]bool{}
	for _, m := range f.view.Members {
		alive[m.ID] = true
	}
	for service, leases := range f.view.Leases {
		for share, l := range leases {
			if alive[l.Owner] {
				more(service, min(share+1, maxShares))
			}
		}
	}
	for service, n := range all {
		s := Shares{Service: service, All: n, Free: []int{}, Owners: []Owner{}}
		owners := map[string]*Owner{}
		for share := range n {
			l := f.view.Leases[service][share]
			if !alive[l.Owner] {
				s.Free = append(s.Free, share)
				continue
			}
			o := owners[l.Owner]
			if o == nil {
				o = &Owner{Member: l.Owner}
				owners[l.Owner] = o
			}
			o.Shares, o.NewestEpoch = append(o.Shares, share), max(o.NewestEpoch, l.Epoch)
		}
		for _, id := range slices.Sorted(maps.Keys(owners)) {
			s.Owners = append(s.Owners, *owners[id])
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Shares) int {
		return cmp.Or(cmp.Compare(place(a.Service), place(b.Service)), strings.Compare(a.Service, b.Service))
	})
	return list
}

// maxShares bounds what a mistaken report can have this process list.
const maxShares = 4096

func place(service string) int {
	if i := slices.Index(order, service); i >= 0 {
		return i
	}
	return len(order)
}

func (f *found) streamList() []Stream {
	list := []Stream{}
	for _, s := range f.streams {
		if s.err != nil {
			list = append(list, Stream{Name: s.name, Bucket: s.bucket, State: Unknown, Error: s.err.Error(), Followers: []Follower{}})
			continue
		}
		st := s.state
		out := Stream{
			Name: s.name, Bucket: s.bucket, State: OK, Messages: st.Messages, Bytes: st.Bytes, MaxBytes: st.Limit, MaxAgeSeconds: st.Age.Seconds(),
			Replicas: st.Replicas, Leader: st.Leader, Followers: []Follower{},
		}
		if st.Messages > 0 {
			out.Oldest, out.OldestAgeSeconds = st.Oldest.UTC(), max(f.now.Sub(st.Oldest), 0).Seconds()
		}
		for _, r := range st.Followers {
			out.Followers = append(out.Followers, Follower{Name: r.Name, Current: r.Current, Offline: r.Offline, BehindMessages: r.Behind})
			if r.Offline || !r.Current {
				out.State = Degraded
			}
		}
		if st.Clustered && len(st.Followers)+1 < st.Replicas {
			out.State = Degraded
		}
		if st.Clustered && st.Leader == "" {
			out.State = NoLeader
		}
		list = append(list, out)
	}
	return list
}

// endpoints adds up what each writer says of them. Processes with different configurations may have different endpoints of one name: those stay apart.
func (f *found) endpoints() []Endpoint {
	type key struct{ name, url string }
	byKey := map[key]*Endpoint{}
	for _, r := range inOrder(f.reports) {
		for _, e := range r.Endpoints {
			if e.LastError != "" {
				e.LastErrorMember = r.Member.ID
			}
			e.WaitingFor = slices.Clone(orEmpty(e.WaitingFor))
			k := key{e.Name, e.URL}
			if byKey[k] == nil {
				byKey[k] = &e
				continue
			}
			byKey[k].add(&e)
		}
	}
	list := []Endpoint{}
	for _, e := range byKey {
		list = append(list, *e)
	}
	slices.SortFunc(list, func(a, b Endpoint) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.URL, b.URL)) })
	return list
}

// add adds what another writer says of the endpoint.
func (e *Endpoint) add(o *Endpoint) {
	for _, s := range []string{Waiting, Sending} {
		if e.State == s || o.State == s {
			e.State = s
			break
		}
	}
	for _, w := range o.WaitingFor {
		if !slices.Contains(e.WaitingFor, w) {
			e.WaitingFor = append(e.WaitingFor, w)
		}
	}
	e.LagSeconds = max(e.LagSeconds, o.LagSeconds)
	if !o.OldestUnsent.IsZero() && (e.OldestUnsent.IsZero() || o.OldestUnsent.Before(e.OldestUnsent)) {
		e.OldestUnsent = o.OldestUnsent
	}
	e.PendingMessages += o.PendingMessages
	e.PendingSamples += o.PendingSamples
	e.BacklogMessages += o.BacklogMessages
	e.SamplesPerSecond += o.SamplesPerSecond
	e.SentSamples += o.SentSamples
	e.RetriedSamples += o.RetriedSamples
	e.RejectedSamples += o.RejectedSamples
	e.LostSamples += o.LostSamples
	if o.LastErrorTime.After(e.LastErrorTime) {
		e.LastError, e.LastErrorTime, e.LastErrorMember = o.LastError, o.LastErrorTime, o.LastErrorMember
	}
}

// replays are those that any writer tells of. All read the same bucket, one after the other: what was read last has got furthest.
func (f *found) replays() []replay.Status {
	byName := map[string]replay.Status{}
	for _, r := range inOrder(f.reports) {
		for _, st := range shortened(r.Replays) {
			if have, ok := byName[st.Name]; !ok || later(&st, &have) {
				byName[st.Name] = st
			}
		}
	}
	list := []replay.Status{}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		list = append(list, byName[name])
	}
	return list
}

// later reports whether a tells more of a replay than b.
func later(a, b *replay.Status) bool {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c > 0 // another one has got the name
	}
	return a.Messages > b.Messages || a.Messages == b.Messages && a.State == replay.Done && b.State != replay.Done
}

// problems are what a person should look at first.
func problems(d *Document) []string {
	var list []string
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	var unknown []string
	why := ""
	for _, s := range d.Streams {
		switch s.State {
		case NoLeader:
			say("%s has no leader: nothing is stored in it until one is elected", s.what())
		case Unknown:
			unknown, why = append(unknown, s.Name), cmp.Or(why, s.Error)
		case Degraded:
			say("%s is not whole on all of its %d nodes", s.what(), s.Replicas)
		}
	}
	if len(unknown) > 0 {
		say("it is not known how %s stand: %s", strings.Join(unknown, ", "), why)
	}
	configs := map[string]bool{}
	for _, m := range d.Members {
		configs[m.ConfigHash] = true
		if m.State == Silent {
			say("%s does not answer; its last sign of life came %s", m.ID, ago(d.Time, m.LastSeen))
		}
	}
	for _, s := range d.Shares {
		if n := len(s.Free); n > 0 {
			say("nobody owns %d of the %d shares of %s", n, s.All, s.Service)
		}
	}
	if len(configs) > 1 {
		say("the members have %d different configurations", len(configs))
	}
	for _, e := range d.Endpoints {
		if e.LostSamples > 0 {
			say("%d samples are lost for %s: the stream's retention has passed them", e.LostSamples, e.Name)
		}
	}
	return list
}

func (s *Stream) what() string {
	if s.Bucket {
		return "the bucket " + s.Name
	}
	return "the stream " + s.Name
}

func ago(now, then time.Time) string {
	return fmt.Sprintf("%d s ago", int64(max(now.Sub(then), 0).Seconds()))
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
