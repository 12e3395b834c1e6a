package discovery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

const (
	// readPatience is how long to wait for a message that should come before asking the server whether one is to come.
	readPatience = 2 * time.Second
	// readTimeout bounds each request to the server.
	readTimeout = 10 * time.Second

	firstReadPause, maxReadPause = 100 * time.Millisecond, 5 * time.Second
)

// storedTarget is a target that an earlier run has left in the stream.
type storedTarget struct {
	target *target.Target
	sum    uint64 // of its message
}

// readStored reads by job what the stream holds. It tries for ever; its errors are those of ctx.
func (s *Service) readStored(ctx context.Context) (map[string][]storedTarget, error) {
	s.setWaiting("the targets of the last run")
	for pause := firstReadPause; ; pause = min(2*pause, maxReadPause) {
		stored, err := s.tryReadStored(ctx)
		if err == nil {
			return stored, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s.setWaiting("the targets of the last run: " + err.Error())
		s.log.Warn("Cannot read the targets of the last run, trying again", "err", err, "next_try", pause)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (s *Service) tryReadStored(ctx context.Context) (map[string][]storedTarget, error) {
	conn := s.cfg.Conn
	consumer, err := conn.Ordered(ctx, stream.Targets, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{conn.AllTargets()}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", conn.AllTargets(), err)
	}
	stored := map[string][]storedTarget{}
	if consumer.CachedInfo().NumPending == 0 {
		return stored, nil
	}
	it, err := consumer.Messages()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", conn.AllTargets(), err)
	}
	defer it.Stop()
	for {
		msg, err := nextMessage(ctx, it)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			// A message that was to come may have reached the end of its time in the stream.
			pending, err := pending(ctx, consumer)
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", conn.AllTargets(), err)
			}
			if pending == 0 {
				return stored, nil
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", conn.AllTargets(), err)
		}
		if data := msg.Data(); len(data) > 0 {
			s.addStored(stored, msg.Subject(), data)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", msg.Subject(), err)
		}
		if meta.NumPending == 0 {
			return stored, nil
		}
	}
}

func nextMessage(ctx context.Context, it jetstream.MessagesContext) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	return it.Next(jetstream.NextContext(ctx))
}

func pending(ctx context.Context, consumer jetstream.Consumer) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	info, err := consumer.Info(ctx)
	if err != nil {
		return 0, err
	}
	return info.NumPending, nil
}

// addStored adds the target of a message. One that cannot be read stays in the stream, where the version of Millrace that wrote it
// takes care of it.
func (s *Service) addStored(stored map[string][]storedTarget, subject string, data []byte) {
	t, err := target.Decode(data)
	if err == nil {
		if want := s.cfg.Conn.Target(t.Shard(), t.ID); want != subject {
			err = fmt.Errorf("the target belongs to the subject %s", want)
		}
	}
	if err != nil {
		s.log.Error("A stored target cannot be read; it stays as it is", "subject", subject, "err", err)
		return
	}
	stored[t.Job] = append(stored[t.Job], storedTarget{target: t, sum: xxhash.Sum64(data)})
}
