// Package fleet spreads work over the processes that are alive. The work of a service is cut into shares (scrape shards, partitions), and each share
// has at most one owner.
//
//   - A member is a process. It keeps an entry in the bucket `members` alive, which JetStream forgets [Config.TTL] after it was last written.
//   - Shares are spread evenly over the live members of their service, by rendezvous hashing with bounds: a member that comes or goes moves only its own part.
//   - A lease is an entry of the bucket `leases`, taken by compare-and-set. Its revision is the owner's epoch: whoever owns a share later has a greater one.
//   - A [Claim] takes the leases of the shares that this member is to have and that no live member holds, and gives back those that another is to have.
//
// Members look at each other: each asks its two neighbours several times a second whether they are there. A killed process has no connection any more, so that NATS itself answers
// that nobody listens, and its entry is removed at once. One that hangs, or is cut off, is given up when its entry's time has passed. Taking over too early is
// harmless: readers drop what comes from an older epoch.
//
// A member whose process was paused for longer than the TTL gives up its shares as soon as it runs again. While NATS does not answer, a member goes on with what it has: nobody
// can take its leases then but by way of a server that answers, and then their epochs are greater.
package fleet
