// Package target is the message by which the discovery service tells scrapers what to scrape.
//
// A [Target] is published on the subject stream.Names.Target(t.Shard(), t.ID). The newest message of a subject is valid; one
// without data means that the target is gone, and is not for [Decode].
//
// # What names a target
//
// ID names the target: the job and every label that is left after relabelling, including those that begin with "__" (address, path,
// parameters). Source names the space of its series: the public labels alone, since they are all that a series carries. Two targets
// can share a Source (two ports of one instance, made equal by relabelling); then they share shard and partition as well, so that one scraper has both and
// their series stay in order.
//
// # Params stay at home
//
// Prometheus turns the params of a scrape config into labels "__param_<name>" before relabelling. Params may hold credentials, and
// these must not go onto a subject. So [New] leaves out each such label that has just the value of the scrape config; the scraper puts it back from
// its own file. One that discovery or relabelling has set to something else stays.
package target
