package stream

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace/millrace/pkg/frame"
)

// Streams and buckets, without the prefix.
const (
	Targets    = "TARGETS"
	Dicts      = "DICTS"
	Relabelled = "RELABELLED"
	Frames     = "FRAMES"
	Deltas     = "DELTAS"
	Rejected   = "REJECTED"
	Verdicts   = "VERDICTS"

	// Members holds the processes of the fleet, Leases who owns what, Sources what scrapers know of sources, Replays what is to be sent again.
	Members = "members"
	Leases  = "leases"
	Sources = "sources"
	Replays = "replays"

	positions = "positions"
)

// Shards is the number of shards that targets are spread over. A shard is the unit in which scrapers own targets.
const Shards = 256

// Names makes the names of subjects, streams and buckets. All begin with the prefix, so that several fleets can share a cluster.
type Names struct {
	Prefix string // letters, digits, - and _
}

// Stream returns the full name of a stream: "millrace_FRAMES".
func (n Names) Stream(name string) string { return n.Prefix + "_" + name }

// Bucket returns the full name of a key-value bucket: "millrace_positions".
func (n Names) Bucket(name string) string { return n.Prefix + "_" + name }

// Target returns the subject of one target: "millrace.targets.17.<id>". The ID names the target; the shard follows from its source.
func (n Names) Target(shard int, id uint64) string {
	return fmt.Sprintf("%s.targets.%d.%016x", n.Prefix, shard, id)
}

// TargetShard returns the filter for all targets of a shard.
func (n Names) TargetShard(shard int) string { return fmt.Sprintf("%s.targets.%d.*", n.Prefix, shard) }

// AllTargets returns the filter for the targets of all shards.
func (n Names) AllTargets() string { return n.Prefix + ".targets.*.*" }

// TargetID returns the ID of the target that a subject of [Names.Target] names.
func (n Names) TargetID(targetSubject string) (uint64, error) {
	last := targetSubject[strings.LastIndexByte(targetSubject, '.')+1:]
	id, err := strconv.ParseUint(last, 16, 64)
	if err != nil || len(last) != 16 {
		return 0, fmt.Errorf("subject %q does not end in the 16 hexadecimal digits of a target's ID", targetSubject)
	}
	return id, nil
}

// Ping returns the subject on which a member of the fleet answers that it is there.
func (n Names) Ping(member string) string { return n.Prefix + ".ping." + member }

// Status returns the subject on which every process is asked how it stands. It answers to the subject that the question names.
func (n Names) Status() string { return n.Prefix + ".status" }

// StatusTargets returns the subject on which those who scrape or discover targets are asked for them, like [Names.Status].
func (n Names) StatusTargets() string { return n.Prefix + ".status.targets" }

// Dict returns the subject of a dictionary: "millrace.dicts.3.<dictionary>".
func (n Names) Dict(partition int, id frame.DictID) string {
	return fmt.Sprintf("%s.dicts.%d.%s", n.Prefix, partition, id)
}

// DictPartition returns the filter for all dictionaries of a partition.
func (n Names) DictPartition(partition int) string {
	return fmt.Sprintf("%s.dicts.%d.*", n.Prefix, partition)
}

// DictOf returns the dictionary that the subject of a dictionary or relabelled dictionary names.
func (n Names) DictOf(subject string) (frame.DictID, error) {
	return frame.ParseDictID(subject[strings.LastIndexByte(subject, '.')+1:])
}

// Relabelled returns the subject of what an endpoint gets for a dictionary: "millrace.relabelled.<endpoint>.3.<dictionary>".
func (n Names) Relabelled(endpoint string, partition int, id frame.DictID) string {
	return fmt.Sprintf("%s.relabelled.%s.%d.%s", n.Prefix, endpoint, partition, id)
}

// RelabelledPartition returns the filter for what an endpoint gets of a partition.
func (n Names) RelabelledPartition(endpoint string, partition int) string {
	return fmt.Sprintf("%s.relabelled.%s.%d.*", n.Prefix, endpoint, partition)
}

// AllRelabelled returns the filter for all that an endpoint gets.
func (n Names) AllRelabelled(endpoint string) string {
	return n.Prefix + ".relabelled." + endpoint + ".*.*"
}

// Frames returns the subject of a partition's batches: "millrace.frames.3".
func (n Names) Frames(partition int) string { return fmt.Sprintf("%s.frames.%d", n.Prefix, partition) }

// AllFrames returns the filter for the batches of all partitions.
func (n Names) AllFrames() string { return n.Prefix + ".frames.*" }

// PartitionIn returns the partition that the subject of a batch names.
func (n Names) PartitionIn(framesSubject string) (int, error) {
	p, err := strconv.Atoi(framesSubject[strings.LastIndexByte(framesSubject, '.')+1:])
	if err != nil || p < 0 {
		return 0, fmt.Errorf("subject %q does not end in the number of a partition", framesSubject)
	}
	return p, nil
}

// Deltas returns the subject of a partition's batches of delta values, which wait to become cumulative: "millrace.deltas.3".
func (n Names) Deltas(partition int) string { return fmt.Sprintf("%s.deltas.%d", n.Prefix, partition) }

// Ask returns the subject on which a writer asks for a dictionary of a partition to be relabelled again. It is not stored.
func (n Names) Ask(partition int) string {
	return fmt.Sprintf("%s.ask.relabel.%d", n.Prefix, partition)
}

// AskWriter returns the subject on which writers are asked for what only their NATS users may find out, such as "rejected". It is not stored; one of them answers.
func (n Names) AskWriter(what string) string { return n.Prefix + ".ask.writer." + what }

// Verdicts returns the subject on which stands which series of a partition have a place within the limits: "millrace.verdicts.3".
func (n Names) Verdicts(partition int) string {
	return fmt.Sprintf("%s.verdicts.%d", n.Prefix, partition)
}

// Limits returns the subject on which partitions ask for places within limits that hold for the whole fleet. It is not stored.
func (n Names) Limits() string { return n.Prefix + ".limits" }

// Rejected returns the subject of what an endpoint refused: "millrace.rejected.<endpoint>".
func (n Names) Rejected(endpoint string) string { return n.Prefix + ".rejected." + endpoint }

// Inbox returns the beginning of the subjects on which a process that runs these services gets its answers: "_INBOX.millrace.scraper". NATS
// users that may hear this one alone cannot listen to what others are answered.
func (n Names) Inbox(services ...string) string {
	return "_INBOX." + n.Prefix + "." + strings.Join(services, "-")
}

// ShardOf returns the shard of a source.
func ShardOf(source uint64) int { return int(source % Shards) }

// PartitionOf returns the partition of a source. It takes other bits than [ShardOf], so that every shard has sources of all partitions.
func PartitionOf(source uint64, partitions int) int {
	return int((source >> 32) % uint64(partitions))
}
