package remotewrite

import "slices"

// symbolTable is a V2 request's table of strings, written as it is sent. It finds a string's reference by a hash table with open
// addressing whose entries count only where their generation is the present one, so that emptying it costs nothing.
type symbolTable struct {
	fields []byte // Request.symbols
	count  uint32
	slots  []symbolSlot // a power of two of them, at most half in use
	gen    uint32
}

type symbolSlot struct {
	gen, hash  uint32
	start, end uint32 // the string in fields
	ref        uint32
}

const (
	minSymbolSlots  = 1 << 10
	keepSymbolSlots = 1 << 18
)

// reset empties the table but for the empty string, which is always reference 0.
func (t *symbolTable) reset() {
	t.fields = append(reuse(t.fields), 4<<3|wireBytes, 0)
	t.count = 1
	t.gen++
	if t.gen == 0 || len(t.slots) == 0 || len(t.slots) > keepSymbolSlots {
		t.slots, t.gen = make([]symbolSlot, minSymbolSlots), 1
	}
}

// intern returns the reference of s, which has the given hash.
func (t *symbolTable) intern(hash uint32, s string) uint32 {
	if s == "" {
		return 0
	}
	if int(t.count)*2 > len(t.slots) {
		t.grow()
	}
	mask := uint32(len(t.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		e := &t.slots[i]
		if e.gen != t.gen {
			t.fields = appendString(t.fields, 4, s)
			end := uint32(len(t.fields))
			*e = symbolSlot{gen: t.gen, hash: hash, start: end - uint32(len(s)), end: end, ref: t.count}
			t.count++
			return e.ref
		}
		if e.hash == hash && string(t.fields[e.start:e.end]) == s {
			return e.ref
		}
	}
}

func (t *symbolTable) grow() {
	old := t.slots
	t.slots = make([]symbolSlot, 2*len(old))
	mask := uint32(len(t.slots) - 1)
	for _, e := range old {
		if e.gen != t.gen {
			continue
		}
		i := e.hash & mask
		for t.slots[i].gen == t.gen {
			i = (i + 1) & mask
		}
		t.slots[i] = e
	}
}

// refCache knows, for the blocks used in a V2 request, the references that their symbols, labels and metadata have in it.
// Entries count only where their generation is the block's, so that neither a new block nor a new request has anything to
// clear.
type refCache struct {
	// The block in use, with its generation and its part of the arrays below.
	block   *Block
	gen     uint32
	symbols []symbolRef
	pairs   []pairRef
	metas   []metaRef

	used    map[*Block]refPlace
	lastGen uint32

	allSymbols []symbolRef
	allPairs   []pairRef
	allMetas   []metaRef
}

type refPlace struct {
	gen                   uint32
	symbols, pairs, metas int
}

type symbolRef struct{ ref, gen uint32 }

// pairRef is a label: its two references as varints, in the lower bytes of word.
type pairRef struct {
	word      uint64
	size, gen uint32
}

// metaSize is the most that a metadata field takes: tag, length, type, and two references of up to five bytes.
const metaSize = 16

type metaRef struct {
	bytes     [metaSize]byte
	size, gen uint32
}

// maxRefs bounds the labels that the cache knows; a request with more forgets and looks them up again by their hash.
const maxRefs = 1 << 19

func (c *refCache) reset() {
	if c.used == nil {
		c.used = make(map[*Block]refPlace)
	}
	c.forget()
}

func (c *refCache) forget() {
	clear(c.used)
	c.block, c.symbols, c.pairs, c.metas = nil, nil, nil, nil
	c.allSymbols, c.allPairs, c.allMetas = c.allSymbols[:0], c.allPairs[:0], c.allMetas[:0]
}

// use makes b the block in use.
func (c *refCache) use(b *Block) {
	if b == c.block {
		return
	}
	at, ok := c.used[b]
	if !ok {
		if len(c.allPairs)+len(b.pairs) > maxRefs || len(c.allSymbols)+len(b.hashes) > maxRefs {
			c.forget()
		}
		gen := c.nextGen()
		at = refPlace{gen: gen, symbols: len(c.allSymbols), pairs: len(c.allPairs), metas: len(c.allMetas)}
		c.allSymbols = extend(c.allSymbols, len(b.hashes))
		c.allPairs = extend(c.allPairs, len(b.pairs))
		c.allMetas = extend(c.allMetas, len(b.metas))
		c.used[b] = at
	}
	c.block, c.gen = b, at.gen
	c.symbols = c.allSymbols[at.symbols:][:len(b.hashes)]
	c.pairs = c.allPairs[at.pairs:][:len(b.pairs)]
	c.metas = c.allMetas[at.metas:][:len(b.metas)]
}

// nextGen returns a generation that no entry has.
func (c *refCache) nextGen() uint32 {
	c.lastGen++
	if c.lastGen == 0 {
		c.forget()
		clear(c.allSymbols[:cap(c.allSymbols)])
		clear(c.allPairs[:cap(c.allPairs)])
		clear(c.allMetas[:cap(c.allMetas)])
		c.lastGen = 1
	}
	return c.lastGen
}

// extend lengthens s by n elements, which hold what was there before.
func extend[E any](s []E, n int) []E { return slices.Grow(s, n)[:len(s)+n] }
