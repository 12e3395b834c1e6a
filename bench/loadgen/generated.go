package loadgen

import (
	"math"
	"net/http"
	"strconv"
	"sync"

	"github.com/millrace/millrace/bench/numbered"
)

const textContentType = "text/plain; version=0.0.4; charset=utf-8"

// generated makes the bodies of generated targets. All targets share the lines; only values differ.
type generated struct {
	families []family
	count    int
	// churned is how many series are replaced at each scrape.
	churned      float64
	reorderEvery int
	// tokens are the compressed lines, for each family; nil if the lines or their order change.
	tokens   [][][]token
	encoders encoders
	buffers  sync.Pool
}

func newGenerated(config Config) (*generated, error) {
	g := &generated{
		count:        config.Series,
		churned:      float64(config.Series-1) * config.ChurnPercent / 100,
		reorderEvery: config.ReorderEvery,
	}
	g.buffers.New = func() any { return new(buffers) }
	var err error
	// One series is the number of the scrape.
	g.families, err = buildFamilies(config.Series-1, config.ChurnPercent > 0)
	if err == nil && config.ChurnPercent == 0 && config.ReorderEvery == 0 {
		g.compress()
	}
	return g, err
}

// compress makes the tokens of all lines.
func (g *generated) compress() {
	var before []byte
	g.tokens = make([][][]token, len(g.families))
	for i, f := range g.families {
		for _, block := range f.blocks {
			for _, s := range block {
				g.tokens[i] = append(g.tokens[i], tokenize(s.prefix, before))
				before = s.prefix
			}
		}
	}
}

// buffers are the plain and the encoded body of one request.
type buffers struct{ plain, encoded []byte }

func (g *generated) body(t *target, n uint64, _ http.Header, encoding string) (body, error) {
	b := g.buffers.Get().(*buffers)
	var data []byte
	switch {
	case encoding == "":
		b.plain = g.appendBody(b.plain[:0], t.seed, n)
		data = b.plain
	case encoding == "gzip" && g.tokens != nil:
		b.plain, b.encoded = g.appendGzip(b.plain[:0], b.encoded[:0], t.seed, n)
		data = b.encoded
	default:
		b.plain = g.appendBody(b.plain[:0], t.seed, n)
		var err error
		if b.encoded, err = g.encoders.append(b.encoded[:0], encoding, b.plain); err != nil {
			return body{}, err
		}
		data = b.encoded
	}
	return body{
		data:            data,
		contentType:     textContentType,
		contentEncoding: encoding,
		samples:         g.count,
		release:         func() { g.buffers.Put(b) },
	}, nil
}

// appendBody appends the text of scrape n.
func (g *generated) appendBody(dst []byte, seed, n uint64) []byte {
	turn := 0
	if g.reorderEvery > 0 && n%uint64(g.reorderEvery) == 0 {
		turn = int(n) / g.reorderEvery
	}
	index := 0
	for i := range g.families {
		f := &g.families[(i+turn)%len(g.families)]
		dst = append(dst, f.header...)
		for j := range f.blocks {
			block := f.blocks[(j+turn)%len(f.blocks)]
			for k := range block {
				dst = append(dst, block[k].prefix...)
				if g.churned > 0 {
					dst = strconv.AppendUint(dst, g.generation(index, n), 10)
					dst = append(dst, `"} `...)
				}
				dst = block[k].code.WithSeed(seed).Append(dst, n)
				dst = append(dst, '\n')
				index++
			}
		}
	}
	return appendScrape(dst, n)
}

// appendGzip appends the text of scrape n to plain, and its gzip encoding to encoded.
func (g *generated) appendGzip(plain, encoded []byte, seed, n uint64) ([]byte, []byte) {
	var d deflater
	d.begin(encoded)
	before := 0
	for i := range g.families {
		f := &g.families[i]
		plain = append(plain, f.header...)
		d.literals(f.header)
		tokens := g.tokens[i]
		for _, block := range f.blocks {
			for k := range block {
				start := len(plain)
				plain = append(plain, block[k].prefix...)
				d.line(tokens[0], start-before)
				before, tokens = start, tokens[1:]
				value := len(plain)
				plain = block[k].code.WithSeed(seed).Append(plain, n)
				plain = append(plain, '\n')
				d.literals(plain[value:])
			}
		}
	}
	tail := len(plain)
	plain = appendScrape(plain, n)
	d.literals(plain[tail:])
	return plain, d.end(plain)
}

// generation is how often the series at index has been replaced before scrape n. Each scrape replaces the next series in
// turn, so that every one of them lives equally long.
func (g *generated) generation(index int, n uint64) uint64 {
	return uint64(math.Floor((float64(n)*g.churned + float64(index)) / float64(g.count-1)))
}

// appendScrape appends the family that holds the number of the scrape.
func appendScrape(dst []byte, n uint64) []byte {
	dst = append(dst, "# HELP "+numbered.ScrapeMetric+" Number of this scrape of the target.\n"+
		"# TYPE "+numbered.ScrapeMetric+" gauge\n"+numbered.ScrapeMetric+" "...)
	dst = strconv.AppendUint(dst, n, 10)
	return append(dst, '\n')
}
