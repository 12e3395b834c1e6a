package writer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/stream"
)

// errNoDictionary is returned by join where the stream has lost a dictionary: its samples have no labels any more.
var errNoDictionary = errors.New("the stream does not hold the dictionary any more")

// joined is what a partition keeps of a dictionary that it has met: which final series list stands for it.
type joined struct {
	content frame.DictID
	learned uint64 // generation of the metadata that has this dictionary's families
}

// maxJoined bounds the dictionaries that a partition remembers; beyond it, it begins anew.
const maxJoined = 1 << 16

// goneFor is how long a dictionary that the stream has lost is not looked for again: each look takes seconds, and many frames may want it.
const goneFor = time.Minute

// join returns the encoded series that the endpoint gets for a dictionary. Where the relabel service has not evaluated it yet, it waits.
func (p *partition) join(ctx context.Context, id frame.DictID) (*remotewrite.Block, error) {
	generation := p.ep.generation()
	p.renew()
	if p.lastBlock != nil && p.lastDict == id && p.lastLearned == generation {
		return p.lastBlock, nil
	}
	j, ok := p.joined[id]
	if !ok {
		if at, gone := p.gone[id]; gone && time.Since(at) < goneFor {
			return nil, errNoDictionary
		}
		packed, err := p.fetch(ctx, id)
		if errors.Is(err, errNoDictionary) {
			if len(p.gone) >= maxJoined {
				clear(p.gone)
			}
			p.gone[id] = time.Now()
		}
		if err != nil {
			return nil, err
		}
		if len(p.joined) >= maxJoined {
			clear(p.joined)
		}
		j = joined{content: packed.Content}
		p.joined[id] = j
		p.ep.svc.cache.put(&entry{key: cacheKey{packed.Content, 0}, bytes: packed.Packed(), packed: packed})
	}
	block, err := p.block(ctx, id, j.content)
	if err != nil {
		return nil, err
	}
	if j.learned != generation {
		if err := p.learn(ctx, id, j.content); err != nil {
			return nil, err
		}
		p.joined[id] = joined{content: p.joined[id].content, learned: generation}
	}
	p.lastDict, p.lastBlock, p.lastLearned = id, block, generation
	return block, nil
}

// block returns the encoded series list from the cache, or makes it.
func (p *partition) block(ctx context.Context, id, content frame.DictID) (*remotewrite.Block, error) {
	c := p.ep.svc.cache
	key := cacheKey{content, p.ep.protocol}
	if e := c.get(key); e != nil {
		return e.block, nil
	}
	series, content, err := p.series(ctx, id, content)
	if err != nil {
		return nil, err
	}
	key.content = content
	block := remotewrite.NewBlock(p.ep.protocol, series)
	c.put(&entry{key: key, bytes: block.Bytes(), block: block})
	return block, nil
}

// series returns the final series list, from the packed one in the cache or from the stream, which may have another one by now, and the name of its content.
func (p *partition) series(ctx context.Context, id, content frame.DictID) ([]frame.Series, frame.DictID, error) {
	c := p.ep.svc.cache
	if e := c.get(cacheKey{content, 0}); e != nil {
		list, err := e.packed.Series()
		return list, content, err
	}
	packed, err := p.fetch(ctx, id)
	if err != nil {
		return nil, content, err
	}
	if j, ok := p.joined[id]; ok && j.content != packed.Content {
		p.joined[id] = joined{content: packed.Content}
	}
	c.put(&entry{key: cacheKey{packed.Content, 0}, bytes: packed.Packed(), packed: packed})
	list, err := packed.Series()
	return list, packed.Content, err
}

// learn tells the endpoint's metadata which families a dictionary has.
func (p *partition) learn(ctx context.Context, id, content frame.DictID) error {
	series, _, err := p.series(ctx, id, content)
	if err != nil {
		return err
	}
	p.ep.families.learn(series)
	return nil
}

const (
	// askAfter is how long a partition waits for a dictionary to be relabelled before it asks for it.
	askAfter = 2 * time.Second
	// sayAfter is how long it waits before it says so.
	sayAfter = 3 * time.Second
)

// fetch gets what the endpoint gets for a dictionary, evaluated with the endpoint's present rules, and waits until that is there.
func (p *partition) fetch(ctx context.Context, id frame.DictID) (*frame.Relabelled, error) {
	if p.part != nil && p.part.rules != nil {
		return p.part.relabel(ctx, p, id)
	}
	conn := p.ep.svc.cfg.Conn
	subject := conn.Relabelled(p.ep.name, p.number, id)
	packed, err := p.lookup(ctx, subject)
	if packed != nil || err != nil {
		return packed, err
	}
	sub, err := conn.NC.SubscribeSync(subject)
	if err != nil {
		return nil, fmt.Errorf("waiting for %s: %w", subject, err)
	}
	defer sub.Unsubscribe()
	start, asked := time.Now(), time.Now()
	for {
		if packed, err := p.lookup(ctx, subject); packed != nil || err != nil {
			p.setWaiting("")
			return packed, err
		}
		wait, cancel := context.WithTimeout(ctx, time.Second)
		_, err := sub.NextMsgWithContext(wait)
		cancel()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err == nil {
			continue
		}
		if time.Since(start) > sayAfter {
			p.setWaiting(fmt.Sprintf("waiting for the relabel service: dictionary %s", id))
		}
		if time.Since(asked) > askAfter {
			asked = time.Now()
			if err := p.ask(ctx, id); err != nil {
				return nil, err
			}
		}
	}
}

// lookup returns the relabelled dictionary where the stream has it for the endpoint's present rules; nil, nil where not.
func (p *partition) lookup(ctx context.Context, subject string) (*frame.Relabelled, error) {
	msg, err := p.ep.svc.cfg.Conn.Last(ctx, stream.Relabelled, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	packed, err := frame.ReadRelabelled(msg.Data)
	if err != nil {
		return nil, fmt.Errorf("message %d of %s: %w", msg.Seq, subject, err)
	}
	if packed.Rules != p.ep.rulesHash {
		return nil, nil
	}
	return packed, nil
}

// ask asks the relabel service for a dictionary, unless the stream has lost it.
func (p *partition) ask(ctx context.Context, id frame.DictID) error {
	conn := p.ep.svc.cfg.Conn
	_, err := conn.Last(ctx, stream.Dicts, conn.Dict(p.number, id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return errNoDictionary
	}
	if err != nil {
		return err
	}
	return conn.NC.PublishMsg(&nats.Msg{Subject: conn.Ask(p.number), Data: []byte(id.String())})
}
