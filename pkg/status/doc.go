// Package status tells how a whole fleet stands, from any one place: members, shares, streams and endpoints, as one [Document].
//
// What only a process itself knows, such as the last error of an endpoint, it tells when it is asked: every process answers on one subject, see [Answer]. The rest stands in the
// buckets of the fleet and in JetStream. [Collect] asks for all of it at once. Nothing is sent while nobody asks.
//
// Targets are too many for a document. Who has some is asked for those that are wanted, on a subject of its own, see [FindTargets].
//
// The document is for programs as well as for people: its JSON is documented in the README of the command. How it looks on a terminal is no matter of this package.
package status
