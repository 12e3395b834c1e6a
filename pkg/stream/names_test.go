package stream

import (
	"math"
	"testing"

	"github.com/millrace/millrace/pkg/frame"
)

func TestSubjectsNameWhatTheyHold(t *testing.T) {
	n := Names{"mill_1"}
	for _, id := range []uint64{0, 1, 0xfedc_ba98_7654_3210, math.MaxUint64} {
		if got, err := n.TargetID(n.Target(7, id)); err != nil || got != id {
			t.Errorf("target %x became %x: %v", id, got, err)
		}
	}
	dict := frame.DictID{0, 1, 2, 15: 0xff}
	for _, subject := range []string{n.Dict(3, dict), n.Relabelled("prod", 3, dict)} {
		if got, err := n.DictOf(subject); err != nil || got != dict {
			t.Errorf("%s names the dictionary %s: %v", subject, got, err)
		}
	}
	for _, subject := range []string{"", "mill_1.targets.7.", "mill_1.targets.7.12", "mill_1.targets.7.xedcba9876543210", "mill_1.targets.7.0fedcba9876543210"} {
		if id, err := n.TargetID(subject); err == nil {
			t.Errorf("%q names the target %x", subject, id)
		}
		if id, err := n.DictOf(subject); err == nil {
			t.Errorf("%q names the dictionary %s", subject, id)
		}
	}
	for got, want := range map[string]string{
		n.Stream(Frames):                 "mill_1_FRAMES",
		n.Bucket(positions):              "mill_1_positions",
		n.Target(17, 10):                 "mill_1.targets.17.000000000000000a",
		n.TargetShard(17):                "mill_1.targets.17.*",
		n.AllTargets():                   "mill_1.targets.*.*",
		n.DictPartition(3):               "mill_1.dicts.3.*",
		n.RelabelledPartition("prod", 3): "mill_1.relabelled.prod.3.*",
		n.Frames(3):                      "mill_1.frames.3",
		n.Deltas(3):                      "mill_1.deltas.3",
		n.Ask(3):                         "mill_1.ask.relabel.3",
		n.Rejected("prod"):               "mill_1.rejected.prod",
		n.Dict(3, frame.DictID{}):        "mill_1.dicts.3.00000000000000000000000000000000",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestEveryShardHasSourcesOfAllPartitions(t *testing.T) {
	const partitions = 4
	seen := map[[2]int]bool{}
	for i := range uint64(64 * Shards * partitions) {
		source := i * 0x9e37_79b9_7f4a_7c15
		shard, partition := ShardOf(source), PartitionOf(source, partitions)
		if shard < 0 || shard >= Shards || partition < 0 || partition >= partitions {
			t.Fatalf("source %x is of shard %d, partition %d", source, shard, partition)
		}
		seen[[2]int{shard, partition}] = true
	}
	if len(seen) != Shards*partitions {
		t.Errorf("%d pairs of shard and partition, want %d", len(seen), Shards*partitions)
	}
}
