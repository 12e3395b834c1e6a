package stream

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// State is what a stream holds, and who holds it.
type State struct {
	// Stream is the stream's name without the prefix.
	Stream string
	// Messages and Bytes are what is stored now; Limit is the most bytes, 0 for none.
	Messages, Bytes, Limit uint64
	// Age is how long a message is kept; 0 for ever.
	Age time.Duration
	// First and Last are sequence numbers; Oldest is when the message at First was stored.
	First, Last uint64
	Oldest      time.Time
	// Partitions is the number that the stream was made for; 0 for a bucket.
	Partitions int
	// Replicas is how many nodes are to hold it.
	Replicas int
	// Clustered says that the NATS server is one of a cluster. Then Leader names the node that takes writes, empty while there is none, and Followers are the others
	// that hold the stream.
	Clustered bool
	Leader    string
	Followers []Follower
}

// Follower is a node that holds a stream and does not lead it.
type Follower struct {
	Name string
	// Current says that it has all that the leader has, or nearly; Offline that the leader does not hear of it.
	Current, Offline bool
	// Behind is by how many messages it is behind.
	Behind uint64
}

// StreamNames lists the streams that there always are, without the prefix. Verdicts is another, where there are limits on series.
func StreamNames() []string { return []string{Targets, Dicts, Relabelled, Frames, Deltas, Rejected} }

// BucketNames lists the key-value buckets, without the prefix.
func BucketNames() []string { return []string{Members, Leases, Sources, positions, Replays} }

// States returns the state of all streams.
func (c *Conn) States(ctx context.Context) ([]State, error) {
	var states []State
	for _, name := range StreamNames() {
		s, err := c.State(ctx, name)
		if err != nil {
			return nil, err
		}
		states = append(states, s)
	}
	return states, nil
}

// State returns the state of one stream or bucket.
func (c *Conn) State(ctx context.Context, name string) (State, error) {
	full := c.Stream(name)
	if slices.Contains(BucketNames(), name) {
		full = bucketPrefix + c.Bucket(name)
	}
	s, err := c.JS.Stream(ctx, full)
	if err != nil {
		return State{}, fmt.Errorf("looking up the stream %s: %w", full, err)
	}
	return stateOf(name, s.CachedInfo()), nil
}

func stateOf(name string, info *jetstream.StreamInfo) State {
	partitions, _ := strconv.Atoi(info.Config.Metadata[metaPartitions]) // buckets have none
	st := State{
		Stream: name, Messages: info.State.Msgs, Bytes: info.State.Bytes, Limit: uint64(max(info.Config.MaxBytes, 0)), Age: info.Config.MaxAge,
		First: info.State.FirstSeq, Last: info.State.LastSeq, Oldest: info.State.FirstTime, Partitions: partitions, Replicas: info.Config.Replicas,
	}
	if c := info.Cluster; c != nil && c.Name != "" {
		st.Clustered, st.Leader = true, c.Leader
		for _, r := range c.Replicas {
			st.Followers = append(st.Followers, Follower{Name: r.Name, Current: r.Current, Offline: r.Offline, Behind: r.Lag})
		}
		slices.SortFunc(st.Followers, func(a, b Follower) int { return strings.Compare(a.Name, b.Name) })
	}
	return st
}
