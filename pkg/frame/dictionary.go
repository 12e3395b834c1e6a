package frame

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/vmihailenco/msgpack/v5"
)

const (
	dictVersion       = 1
	relabelledVersion = 1
)

// Series is an entry of a dictionary.
type Series struct {
	// Labels is the label set, sorted by name. Empty means dropped, in a [Relabelled] only.
	Labels labels.Labels
	// Family is the metric family's name where the metadata is known.
	Family string
	// Metadata is the family's type, unit and help; the zero value where unknown.
	Metadata metadata.Metadata
}

// Dictionary is an immutable list of series.
type Dictionary struct {
	ID     DictID
	Job    string // scrape job or sender, for people
	Series []Series
}

// dictEnvelope is a dictionary's message after the version byte, in msgpack.
type dictEnvelope struct {
	Job    string `msgpack:"job"`
	Series int    `msgpack:"n"`
	Size   int    `msgpack:"size"` // bytes of the unpacked block
	Block  []byte `msgpack:"block"`
}

// NewDictionary names a list of series by its content and returns it with its message. It refuses what [ReadDictionary] would refuse: too
// many series, label sets that are too large, empty, not sorted or have a name twice.
func NewDictionary(job string, series []Series) (*Dictionary, []byte, error) {
	if err := checkNotEmpty(series); err != nil {
		return nil, nil, fmt.Errorf("making a dictionary of %q: %w", job, err)
	}
	block, err := appendBlock(nil, series)
	if err != nil {
		return nil, nil, fmt.Errorf("making a dictionary of %q: %w", job, err)
	}
	d := &Dictionary{ID: blockID(block), Job: job, Series: series}
	msg, err := seal(dictVersion, &dictEnvelope{Job: job, Series: len(series), Size: len(block), Block: compress(nil, block)})
	return d, msg, err
}

// ReadDictionary decodes a dictionary's message and checks that the content has the name that it goes by.
func ReadDictionary(msg []byte, id DictID) (*Dictionary, error) {
	var env dictEnvelope
	if err := open(msg, dictVersion, "dictionary", map[string]any{
		"job": &env.Job, "n": &env.Series, "size": &env.Size, "block": &env.Block,
	}); err != nil {
		return nil, err
	}
	block, err := decompress(nil, env.Block, env.Size, maxBlockBytes)
	if err != nil {
		return nil, fmt.Errorf("unpacking dictionary %s: %w", id, err)
	}
	if got := blockID(block); got != id {
		return nil, fmt.Errorf("%w: dictionary %s has the content of %s", ErrCorrupt, id, got)
	}
	series, err := readBlock(block)
	if err != nil {
		return nil, fmt.Errorf("decoding dictionary %s: %w", id, err)
	}
	if len(series) != env.Series {
		return nil, fmt.Errorf("%w: dictionary %s has %d series, %d announced", ErrCorrupt, id, len(series), env.Series)
	}
	if err := checkNotEmpty(series); err != nil {
		return nil, fmt.Errorf("%w: dictionary %s: %w", ErrCorrupt, id, err)
	}
	return &Dictionary{ID: id, Job: env.Job, Series: series}, nil
}

// checkNotEmpty returns an error where a label set is empty, which a dictionary must not have: in a [Relabelled] it means dropped.
func checkNotEmpty(series []Series) error {
	for i := range series {
		if series[i].Labels.IsEmpty() {
			return fmt.Errorf("series %d of %d has no labels", i, len(series))
		}
	}
	return nil
}

// Relabelled is what one endpoint gets for a dictionary: the same series in the same order, with their final labels.
type Relabelled struct {
	// Dict names the dictionary.
	Dict DictID
	// Rules is the hash of the rules that made it.
	Rules string
	// Content is the hash of the final series list, the same for all endpoints that get the same.
	Content DictID
	// Size is the series block's size in bytes, unpacked.
	Size int
	// Kept counts the series that are not dropped.
	Kept int

	block []byte // packed
}

type relabelledEnvelope struct {
	Dict    []byte `msgpack:"dict"`
	Rules   string `msgpack:"rules"`
	Content []byte `msgpack:"content"`
	Kept    int    `msgpack:"kept"`
	Size    int    `msgpack:"size"`
	Block   []byte `msgpack:"block"`
}

// EncodeRelabelled returns the message that gives an endpoint's final series, evaluated by the named rules, for a dictionary.
// It refuses what [Relabelled.Series] would refuse: too many series, label sets that are too large, not sorted or have a name twice.
func EncodeRelabelled(dict DictID, rules string, series []Series) ([]byte, error) {
	block, err := appendBlock(nil, series)
	if err != nil {
		return nil, fmt.Errorf("relabelling dictionary %s: %w", dict, err)
	}
	content := blockID(block)
	return seal(relabelledVersion, &relabelledEnvelope{
		Dict: dict[:], Rules: rules, Content: content[:], Kept: countKept(series), Size: len(block), Block: compress(nil, block),
	})
}

// ReadRelabelled decodes the envelope and leaves the series packed: [Relabelled.Series] unpacks them.
func ReadRelabelled(msg []byte) (*Relabelled, error) {
	var env relabelledEnvelope
	if err := open(msg, relabelledVersion, "relabelled dictionary", map[string]any{
		"dict": &env.Dict, "rules": &env.Rules, "content": &env.Content, "kept": &env.Kept, "size": &env.Size, "block": &env.Block,
	}); err != nil {
		return nil, err
	}
	r := &Relabelled{Rules: env.Rules, Size: env.Size, Kept: env.Kept, block: env.Block}
	if len(env.Dict) != len(r.Dict) || len(env.Content) != len(r.Content) {
		return nil, fmt.Errorf("%w: relabelled dictionary with names of %d and %d bytes", ErrCorrupt, len(env.Dict), len(env.Content))
	}
	if env.Kept < 0 || env.Kept > MaxSeries || env.Size < 0 || env.Size > maxBlockBytes {
		return nil, fmt.Errorf("%w: relabelled dictionary of %d series, %d bytes", ErrCorrupt, env.Kept, env.Size)
	}
	copy(r.Dict[:], env.Dict)
	copy(r.Content[:], env.Content)
	return r, nil
}

// Series unpacks the final series and checks that they are the announced ones.
func (r *Relabelled) Series() ([]Series, error) {
	block, err := decompress(nil, r.block, r.Size, maxBlockBytes)
	if err != nil {
		return nil, fmt.Errorf("unpacking the relabelled dictionary %s: %w", r.Dict, err)
	}
	if got := blockID(block); got != r.Content {
		return nil, fmt.Errorf("%w: relabelled dictionary %s has the content of %s instead of %s", ErrCorrupt, r.Dict, got, r.Content)
	}
	series, err := readBlock(block)
	if err != nil {
		return nil, fmt.Errorf("decoding the relabelled dictionary %s: %w", r.Dict, err)
	}
	if kept := countKept(series); kept != r.Kept {
		return nil, fmt.Errorf("%w: relabelled dictionary %s keeps %d series, %d announced", ErrCorrupt, r.Dict, kept, r.Kept)
	}
	return series, nil
}

func countKept(series []Series) (kept int) {
	for i := range series {
		if !series[i].Labels.IsEmpty() {
			kept++
		}
	}
	return kept
}

func seal(version byte, env any) ([]byte, error) {
	b, err := msgpack.Marshal(env)
	if err != nil {
		return nil, err
	}
	return append([]byte{version}, b...), nil
}

// open reads an envelope: a version byte and a msgpack map whose fields go where the pointers (*string, *int, *[]byte) point. The fields
// are read one by one, because the msgpack package's own struct decoding trusts a length before it has the bytes.
func open(msg []byte, version byte, what string, fields map[string]any) error {
	if len(msg) == 0 {
		return fmt.Errorf("%w: empty %s", ErrCorrupt, what)
	}
	if msg[0] != version {
		return fmt.Errorf("%s of version %d, this build reads version %d: %w", what, msg[0], version, ErrVersion)
	}
	src := bytes.NewReader(msg[1:])
	dec := msgpack.NewDecoder(src)
	n, err := dec.DecodeMapLen()
	for ; err == nil && n > 0; n-- {
		err = readField(dec, src, fields)
	}
	if err == nil && src.Len() > 0 {
		err = fmt.Errorf("%d bytes after the last field", src.Len())
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, what, err)
	}
	return nil
}

func readField(dec *msgpack.Decoder, src *bytes.Reader, fields map[string]any) error {
	name, err := readBytes(dec, src)
	if err != nil {
		return err
	}
	switch p := fields[string(name)].(type) {
	case *int:
		*p, err = dec.DecodeInt()
	case *[]byte:
		*p, err = readBytes(dec, src)
	case *string:
		var b []byte
		b, err = readBytes(dec, src)
		*p = string(b)
	default:
		err = errors.New("unknown field")
	}
	if err != nil {
		return fmt.Errorf("field %.20q: %w", name, err)
	}
	return nil
}

// readBytes reads a string or binary value, after a look at whether that many bytes are there.
func readBytes(dec *msgpack.Decoder, src *bytes.Reader) ([]byte, error) {
	n, err := dec.DecodeBytesLen()
	if err != nil {
		return nil, err
	}
	if n > src.Len() {
		return nil, fmt.Errorf("%d bytes wanted, %d are left", n, src.Len())
	}
	b := make([]byte, max(n, 0)) // nil has length -1
	return b, dec.ReadFull(b)
}

func blockID(block []byte) (id DictID) {
	sum := sha256.Sum256(block)
	copy(id[:], sum[:])
	return id
}

// Packed returns the bytes that the packed series take in memory.
func (r *Relabelled) Packed() int { return len(r.block) + 128 }
