package fleet

import (
	"cmp"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// spread says which member each share is to belong to, given who owns it now ("" for nobody alive). Members that own no more than their part keep it. What is free, or too much
// for its owner, goes to those that have too little: to the one that a hash of share and member prefers (rendezvous hashing with bounds). So all
// members come to have the same number of shares, but for one, and one that comes or goes moves only its own part. All who know the same come to the same result.
func spread(service string, owners []string, members []string) []string {
	to := make([]string, len(owners))
	if len(members) == 0 {
		return to
	}
	owned := map[string][]int{}
	for share, owner := range owners {
		if slices.Contains(members, owner) {
			owned[owner] = append(owned[owner], share)
		}
	}
	room := rooms(len(owners), members, owned)
	var free []int
	for share, owner := range owners {
		if _, ok := room[owner]; !ok {
			free = append(free, share)
		}
	}
	for _, m := range members {
		mine := owned[m]
		slices.SortFunc(mine, func(a, b int) int { return cmp.Compare(weight(service, b, m), weight(service, a, m)) })
		keep := min(len(mine), room[m])
		for _, share := range mine[:keep] {
			to[share] = m
		}
		room[m] -= keep
		free = append(free, mine[keep:]...)
	}
	type pair struct {
		share  int
		member string
		weight uint64
	}
	var pairs []pair
	for _, share := range free {
		for _, m := range members {
			if room[m] > 0 {
				pairs = append(pairs, pair{share, m, weight(service, share, m)})
			}
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.share, b.share), cmp.Compare(a.member, b.member))
	})
	for _, p := range pairs {
		if to[p.share] == "" && room[p.member] > 0 {
			to[p.share] = p.member
			room[p.member]--
		}
	}
	return to
}

// rooms returns how many shares each member is to have. Where they do not come out even, those that own most now have one more.
func rooms(shares int, members []string, owned map[string][]int) map[string]int {
	order := slices.Clone(members)
	slices.SortFunc(order, func(a, b string) int { return cmp.Or(cmp.Compare(len(owned[b]), len(owned[a])), cmp.Compare(a, b)) })
	room := map[string]int{}
	for i, m := range order {
		room[m] = shares / len(members)
		if i < shares%len(members) {
			room[m]++
		}
	}
	return room
}

// weight is how much a member is preferred for a share.
func weight(service string, share int, member string) uint64 {
	var key [4]byte
	for i := range key {
		key[i] = byte(share >> (8 * i))
	}
	d := xxhash.New()
	_, _ = d.WriteString(service)
	_, _ = d.Write(key[:])
	_, _ = d.WriteString(member)
	return d.Sum64()
}
