package fleet

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/millrace/millrace/pkg/stream"
)

// View is who is alive and who owns what, at one time.
type View struct {
	// Members are in the order of their IDs.
	Members []Member
	// Leases are those that have an owner, by service and share. The owner of one that is free already may not be among the members any more.
	Leases map[string]map[int]Lease
}

// View returns what this member knows; known is false until it has read it for the first time.
func (f *Fleet) View() (v View, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v.Members = slices.SortedFunc(maps.Values(f.members), func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	v.Leases = map[string]map[int]Lease{}
	for key, l := range f.leases {
		service, share, ok := splitKey(key)
		if !ok || l.Owner == "" {
			continue
		}
		if v.Leases[service] == nil {
			v.Leases[service] = map[int]Lease{}
		}
		v.Leases[service][share] = l
	}
	return v, f.members != nil && f.leases != nil
}

// free returns how many shares nobody alive owns, by service: of the services that this process runs, and of those that have had owners before, since
// where all of their members are gone nobody else would tell. A lease of this process that it could not free, or does not know that it has, is free too: nobody works on its share.
func (f *Fleet) free() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members == nil || f.leases == nil {
		return nil
	}
	free := map[string]int{}
	for _, c := range f.claims {
		free[c.service] = c.shares
	}
	for key, l := range f.leases {
		service, share, ok := splitKey(key)
		if !ok {
			continue
		}
		_, alive := f.members[l.Owner]
		switch c := f.claims[service]; {
		case c == nil && alive:
			free[service] += 0 // all of them have owners, until one has not
		case c == nil:
			free[service]++
		case alive && share < c.shares && (l.Owner != f.cfg.Self.ID || c.holds(share)):
			free[service]--
		}
	}
	return free
}

// Look reads the buckets once, for those who are no member.
func Look(ctx context.Context, conn *stream.Conn) (View, error) {
	f := &Fleet{cfg: Config{Conn: conn}, log: slog.New(slog.DiscardHandler), changed: make(chan struct{})}
	members, leases, err := f.buckets(ctx)
	if err != nil {
		return View{}, err
	}
	following, stop := context.WithCancel(ctx)
	defer stop() // ends the subscriptions
	if _, err := f.watch(following, members, leases); err != nil {
		return View{}, err
	}
	v, _ := f.View()
	return v, nil
}
