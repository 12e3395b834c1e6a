package writer

import (
	"container/list"
	"sync"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
)

// cache holds final series lists by their content, so that endpoints which get the same labels share them: packed, as they stand in the
// stream, and encoded for the wire. Both are bounded together; what was used longest ago goes first, encoded blocks before
// packed ones of the same age, since a packed list makes a block again without asking the stream.
type cache struct {
	limit int

	mu    sync.Mutex
	bytes int
	order *list.List // of *entry, most recently used first
	items map[cacheKey]*list.Element
}

type cacheKey struct {
	content  frame.DictID
	protocol remotewrite.Protocol // 0: packed
}

type entry struct {
	key    cacheKey
	bytes  int
	packed *frame.Relabelled
	block  *remotewrite.Block
}

func newCache(limit int) *cache {
	return &cache{limit: limit, order: list.New(), items: map[cacheKey]*list.Element{}}
}

func (c *cache) get(key cacheKey) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	c.keepPacked(key)
	return e.Value.(*entry)
}

// keepPacked moves a list's packed form before the block that was just used.
func (c *cache) keepPacked(key cacheKey) {
	if packed, ok := c.items[cacheKey{key.content, 0}]; ok {
		c.order.MoveToFront(packed)
	}
}

func (c *cache) put(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.items[e.key]; ok {
		c.remove(old)
	}
	c.items[e.key] = c.order.PushFront(e)
	c.keepPacked(e.key)
	c.bytes += e.bytes
	for c.bytes > c.limit && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(el *list.Element) {
	e := el.Value.(*entry)
	c.order.Remove(el)
	delete(c.items, e.key)
	c.bytes -= e.bytes
}

// size returns the bytes held.
func (c *cache) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}
