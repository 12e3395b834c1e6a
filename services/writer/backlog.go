package writer

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/stream"
)

// FreshFirst says how new samples go out before a backlog, for an endpoint that takes samples out of order.
type FreshFirst struct {
	// After is how old a message is, by when it was stored, for which those behind it do not wait.
	After time.Duration
	// Share is the most of its time that a partition spends on sending the backlog; above 0, at most 1.
	Share float64
}

// gap is an interval of the stream that the reader of what is collected now has passed over.
type gap struct {
	// After and End bound the messages that are to be sent: behind After, up to End.
	After uint64 `msgpack:"after"`
	End   uint64 `msgpack:"end"`
	// Marks are how many samples publishers had published up to After, and Ends up to End, as far as that is known; 0 stands for the only publisher.
	Marks map[uint64]uint64 `msgpack:"marks,omitempty"`
	Ends  map[uint64]uint64 `msgpack:"ends,omitempty"`
	// Since is the time before which publishers can have published what Marks do not tell of, in milliseconds.
	Since int64 `msgpack:"since"`
	// Oldest is the time of the oldest sample that is not sent, in milliseconds, or shortly before.
	Oldest int64 `msgpack:"oldest"`
	// Messages is about how many are not sent.
	Messages uint64 `msgpack:"messages"`

	seen map[uint64]place // the sources' places before it; not stored
}

// maxGaps is how many gaps a partition has at most. With so many, it reads on in order until one is drained.
const maxGaps = 16

// backlogNote is what is stored beside the position. Since is when it was last moved over messages, Tails are marks from the ends of drained gaps, of publishers that were not heard of since.
type backlogNote struct {
	Gaps  []*gap            `msgpack:"gaps,omitempty"`
	Since int64             `msgpack:"since"`
	Tails map[uint64]uint64 `msgpack:"tails,omitempty"`
}

const backlogVersion = 1

// backlog is what a partition has passed over, oldest first. The reader of what is collected now adds to it, and that of gaps takes from it.
type backlog struct {
	mb     *stream.Mailbox
	change chan struct{} // has room for one

	mu   sync.Mutex
	note backlogNote
}

// openBacklog reads what earlier readers have left. Where there is nothing, and strict order is asked for, there is no backlog.
func (p *partition) openBacklog() error {
	switch {
	case p.part != nil:
		return nil
	case p.gap != nil:
		p.marks, p.readMark, p.marked, p.since = p.owner.begin(p.gap)
		return nil
	}
	b := &backlog{mb: p.mb, change: make(chan struct{}, 1)}
	stored := p.mb.Note()
	if len(stored) == 0 && p.ep.cfg.FreshFirst == nil {
		return nil
	}
	if len(stored) > 0 {
		if stored[0] != backlogVersion {
			return fmt.Errorf("the backlog of partition %d is not of version %d; it was written by a newer Millrace: upgrade this one", p.number, backlogVersion)
		}
		dec := msgpack.NewDecoder(bytes.NewReader(stored[1:]))
		dec.DisallowUnknownFields(true)
		if err := dec.Decode(&b.note); err != nil {
			return fmt.Errorf("reading the backlog of partition %d: %w", p.number, err)
		}
		p.since = time.UnixMilli(b.note.Since)
		if last := len(b.note.Gaps) - 1; last >= 0 && b.note.Gaps[last].End > p.mb.Position().Seq { // it is stored with the position
			p.log.Error("The stream was made anew, and with it went older samples that were passed over for newer ones", "messages", b.messages())
			b.note = backlogNote{Since: b.note.Since}
		}
	}
	p.back.Store(b)
	if n := b.messages(); n > 0 {
		how := "beside new samples"
		if p.ep.cfg.FreshFirst == nil {
			how = "before new samples, because order is strict now"
		}
		p.log.Info("Older samples were passed over for newer ones; they are sent "+how, "messages", n, "oldest", time.UnixMilli(b.oldest()).UTC())
	}
	return nil
}

// stale reports whether new samples are not to wait for a message.
func (p *partition) stale(msg stream.Message) bool {
	f := p.ep.cfg.FreshFirst
	return f != nil && p.gap == nil && p.part == nil && time.Since(msg.Time) > f.After && time.Now().After(p.notBefore) && !p.back.Load().full()
}

// newTime is how old messages may be that still go out at once: what is scraped after an endpoint's return, and before a writer has found out by its next try, is among them.
const newTime = 5 * time.Second

// jump moves the position near the end of the stream, and makes what lies between a gap. msg is the first message of it. Nothing is under way then, so that
// the position is not moved over what is neither sent nor noted.
func (p *partition) jump(ctx, work context.Context, msg stream.Message) (bool, error) {
	if p.current != nil {
		if err := p.flush(work); err != nil {
			return false, err
		}
	}
	var free []*remotewrite.Request
	defer func() {
		for _, r := range free {
			p.free <- r
		}
	}()
	for range requests {
		select {
		case r := <-p.free:
			free = append(free, r)
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	end, isNew, err := p.backlogEnd(ctx)
	if err != nil && ctx.Err() == nil {
		p.notBefore = time.Now().Add(3 * endTime)
		p.log.Warn("Cannot find where the backlog ends; new samples wait for it, until that is tried again", "err", err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if end <= msg.Seq {
		return false, nil
	}
	g := &gap{
		After: p.mb.Position().Seq, End: end, Marks: maps.Clone(p.marks), Ends: map[uint64]uint64{}, Since: p.since.UnixMilli(),
		Oldest: msg.Time.UnixMilli(), Messages: 1 + msg.Pending, seen: maps.Clone(p.seen),
	}
	if p.marked {
		g.Marks[0] = p.readMark
	}
	if n, err := p.mb.Pending(ctx); err == nil {
		g.Messages = 1 + n
	}
	g.Messages -= min(g.Messages, isNew)
	if h, err := frame.ReadHeader(msg.Data); err == nil {
		g.Oldest = min(g.Oldest, h.MinTime)
	}
	now := time.Now()
	p.back.Load().add(g, now)
	p.log.Info("The endpoint is behind: new samples go out at once, and older ones beside them", "messages", g.Messages, "oldest", time.UnixMilli(g.Oldest).UTC())
	p.marks, p.readMark, p.marked, p.since = map[uint64]uint64{}, 0, false, now
	p.reading.Store(0)
	p.behind.Store(0)
	return true, p.mb.Reread(ctx)
}

// endTime is how long it may take to find where a backlog ends. A consumer on a NATS server that is lost then may not answer before the server is back.
const endTime = 10 * time.Second

// backlogEnd returns the number of the last message that is not new, and how many are.
func (p *partition) backlogEnd(ctx context.Context) (end, isNew uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	conn := p.conn()
	last, err := conn.Last(ctx, stream.Frames, conn.Frames(p.number))
	if err != nil {
		return 0, 0, err
	}
	cut, err := conn.CutAt(ctx, stream.Frames, conn.Frames(p.number), time.Now().Add(-min(newTime, p.ep.cfg.FreshFirst.After/2)))
	if err != nil {
		return 0, 0, err
	}
	if cut.Later > 0 {
		return cut.Before, cut.Later, nil
	}
	return last.Seq, 0, nil
}

// add moves the position behind a new gap. Where nothing was read since the last one, that grows.
func (b *backlog) add(g *gap, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := &b.note
	for publisher, mark := range n.Tails {
		if _, known := g.Marks[publisher]; !known {
			g.Marks[publisher] = mark
		}
	}
	n.Tails = nil
	n.Since = now.UnixMilli()
	if last := len(n.Gaps) - 1; last >= 0 && n.Gaps[last].End == g.After {
		n.Gaps[last].End, n.Gaps[last].Ends = g.End, g.Ends
		n.Gaps[last].Messages += g.Messages
	} else {
		n.Gaps = append(n.Gaps, g)
	}
	b.mb.Move(g.End, b.encode())
	select {
	case b.change <- struct{}{}:
	default:
	}
}

func (b *backlog) encode() []byte {
	body, err := msgpack.Marshal(&b.note)
	if err != nil {
		panic(err) // numbers
	}
	return append([]byte{backlogVersion}, body...)
}

// heard notes the first message of a publisher behind the newest gap: it tells how much the publisher has published up to there.
func (b *backlog) heard(publisher uint64, began time.Time, first uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.note.Gaps) == 0 || began.UnixMilli() > b.note.Since {
		return
	}
	g := b.note.Gaps[len(b.note.Gaps)-1]
	if _, known := g.Ends[publisher]; known {
		return
	}
	putMark(&g.Ends, publisher, first)
	if _, known := g.Marks[publisher]; !known && publisher != 0 && began.UnixMilli() > g.Since {
		putMark(&g.Marks, publisher, 0)
	}
	b.mb.SetNote(b.encode())
}

// maxMarks is how many publishers' marks a gap keeps; those of the publishers that began longest ago go first.
const maxMarks = 1024

func putMark(marks *map[uint64]uint64, publisher, n uint64) {
	if *marks == nil {
		*marks = map[uint64]uint64{}
	}
	(*marks)[publisher] = n
	if len(*marks) > maxMarks {
		delete(*marks, slices.Min(slices.Collect(maps.Keys(*marks))))
	}
}

// tail returns how much a publisher had published at the end of a gap that is drained, where it was not heard of since.
func (p *partition) tail(publisher uint64) (samples uint64, known bool) {
	b := p.back.Load()
	if b == nil {
		return 0, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	samples, known = b.note.Tails[publisher]
	return samples, known
}

// first returns a copy of the oldest gap; nil where there is none.
func (b *backlog) first() *gap {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.note.Gaps) == 0 {
		return nil
	}
	g := *b.note.Gaps[0]
	return &g
}

// begin returns the marks from which a reader of the oldest gap begins to count what is lost.
func (b *backlog) begin(g *gap) (marks map[uint64]uint64, mark uint64, marked bool, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if marks = maps.Clone(b.note.Gaps[0].Marks); marks == nil {
		marks = map[uint64]uint64{}
	}
	mark, marked = marks[0]
	delete(marks, 0)
	return marks, mark, marked, time.UnixMilli(g.Since)
}

// handled notes that a request with messages of the oldest gap is accepted.
func (b *backlog) handled(x *parcel) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.note.Gaps[0]
	g.After = x.seq
	if x.mark != 0 {
		putMark(&g.Marks, 0, x.mark)
	}
	for publisher, mark := range x.marks {
		putMark(&g.Marks, publisher, mark)
	}
	g.Messages -= min(uint64(x.messages), g.Messages)
	g.Oldest = max(g.Oldest, x.oldest)
	b.mb.SetNote(b.encode())
}

// finish removes the oldest gap where it is drained, and returns how many of its samples the stream has lost unread.
func (b *backlog) finish() (done bool, lost uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := &b.note
	g := n.Gaps[0]
	if g.After < g.End {
		return false, 0 // it has grown meanwhile
	}
	for publisher, end := range g.Ends {
		if mark, known := g.Marks[publisher]; known && mark < end {
			lost += end - mark
		}
	}
	n.Gaps = n.Gaps[1:]
	rest := &n.Tails
	if len(n.Gaps) > 0 {
		rest = &n.Gaps[0].Marks
	}
	for publisher, mark := range g.Marks {
		_, ended := g.Ends[publisher]
		if _, known := (*rest)[publisher]; !ended && !known {
			putMark(rest, publisher, mark)
		}
	}
	b.mb.SetNote(b.encode())
	return true, lost
}

// full reports whether there are as many gaps as there may be.
func (b *backlog) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.note.Gaps) >= maxGaps
}

// messages returns about how many messages are not sent; never 0 while there are any. A nil backlog has none.
func (b *backlog) messages() (n uint64) {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.note.Gaps {
		n += max(g.Messages, 1)
	}
	return n
}

// oldest returns the time of the oldest sample that is not sent, in milliseconds; 0 for none.
func (b *backlog) oldest() int64 {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.note.Gaps) == 0 {
		return 0
	}
	return b.note.Gaps[0].Oldest
}
