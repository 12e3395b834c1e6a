package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/stream"
)

// Source is where [Collect] finds what it tells.
type Source struct {
	// Conn reaches NATS; nil while the process that is asked does not.
	Conn *stream.Conn
	// View returns who is a member and who owns what.
	View func(ctx context.Context) (fleet.View, error)
	// Self is what the process that is asked says of itself; nil where the fleet is looked at from outside.
	Self *Report
}

// streamTime is how long JetStream may take to tell of one stream. One that has no leader does not answer.
const streamTime = 2 * time.Second

// found is what a document is made of.
type found struct {
	now     time.Time
	self    *Report
	reached bool // NATS
	view    fleet.View
	viewed  bool // view is known
	reports map[string]*Report
	streams []streamFound
	errs    []error
}

// streamFound is what is known of one stream.
type streamFound struct {
	name   string
	bucket bool
	state  stream.State
	err    error
}

// missing reports whether the stream is known not to exist.
func (s *streamFound) missing() bool { return errors.Is(s.err, jetstream.ErrStreamNotFound) }

// ErrNothing is returned by [Collect] where NATS answers and knows neither streams nor processes.
var ErrNothing = errors.New("there are no streams and no processes of Millrace")

// Collect asks for everything at once. What cannot be found out is said in the document's problems; only where there is nothing at all it returns [ErrNothing], or why nothing could be asked.
func Collect(ctx context.Context, src Source) (*Document, error) {
	f := found{now: time.Now(), self: src.Self, reports: map[string]*Report{}}
	if src.Conn != nil {
		f.reached = src.Conn.NC.IsConnected()
		f.collect(ctx, src)
	}
	if src.Self != nil {
		f.reports[src.Self.Member.ID] = src.Self
	}
	if len(f.reports) == 0 && len(f.view.Members) == 0 {
		nothing := true
		for _, s := range f.streams {
			nothing = nothing && s.missing()
		}
		if nothing {
			return nil, ErrNothing
		}
	}
	return f.document(), nil
}

func (f *found) collect(ctx context.Context, src Source) {
	names, buckets := append(stream.StreamNames(), stream.Verdicts), stream.BucketNames()
	for _, n := range names {
		f.streams = append(f.streams, streamFound{name: n})
	}
	for _, n := range buckets {
		f.streams = append(f.streams, streamFound{name: n, bucket: true})
	}
	var asking sync.WaitGroup
	defer func() {
		asking.Wait()
		f.streams = slices.DeleteFunc(f.streams, func(s streamFound) bool { return s.name == stream.Verdicts && s.missing() }) // there are no limits
	}()
	for i := range f.streams {
		asking.Go(func() {
			s := &f.streams[i]
			ctx, cancel := context.WithTimeout(ctx, streamTime)
			defer cancel()
			s.state, s.err = src.Conn.State(ctx, s.name)
		})
	}
	looking, cancel := context.WithTimeout(ctx, streamTime)
	defer cancel()
	var err error
	if f.view, err = src.View(looking); err != nil && !errors.Is(err, jetstream.ErrBucketNotFound) { // missing streams are told of
		f.errs = append(f.errs, fmt.Errorf("the members and their shares cannot be read: %w", err))
	}
	f.viewed = err == nil
	var ids []string
	for _, m := range f.view.Members {
		if src.Self == nil || m.ID != src.Self.Member.ID {
			ids = append(ids, m.ID)
		}
	}
	reports, unread, err := ask(ctx, src.Conn, ids)
	f.errs = append(f.errs, unread...)
	if err != nil {
		f.errs = append(f.errs, err)
	}
	for id, r := range reports {
		f.reports[id] = r
	}
}
