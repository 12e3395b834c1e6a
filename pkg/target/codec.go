package target

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/vmihailenco/msgpack/v5"
)

var (
	// ErrVersion is wrapped by the error of [Decode] for a message of another version than this Millrace knows.
	ErrVersion = errors.New("unknown version of a target message")
	// ErrMalformed is wrapped by the error of [Decode] for bytes that are not a target.
	ErrMalformed = errors.New("malformed target message")
)

const (
	version = 1

	// maxMessage is the most bytes that Decode looks at. NATS takes 1 MiB unless its max_payload is raised, and 64 MiB at most.
	maxMessage = 64 << 20
	// fields is the number of fields of a message.
	fields = 3
)

// Encode returns the message for a target: a version byte, then a msgpack array of the job, the labels, and the discovered labels. Each
// label set is an array of names and values in turn, in the order of the names. The same target always gives the same bytes.
// ID, Source and Absent follow from the rest and are not sent.
func Encode(t *Target) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(64 + 32*(t.Labels.Len()+t.Discovered.Len()))
	buf.WriteByte(version)
	enc := msgpack.NewEncoder(&buf)
	err := errors.Join(enc.EncodeArrayLen(fields), enc.EncodeString(t.Job), encodeLabels(enc, t.Labels), encodeLabels(enc, t.Discovered))
	if err != nil {
		return nil, fmt.Errorf("encoding the target %s of job %q: %w", t.Labels, t.Job, err)
	}
	return buf.Bytes(), nil
}

func encodeLabels(enc *msgpack.Encoder, ls labels.Labels) error {
	if err := enc.EncodeArrayLen(2 * ls.Len()); err != nil {
		return err
	}
	return ls.Validate(func(l labels.Label) error {
		if err := enc.EncodeString(l.Name); err != nil {
			return err
		}
		return enc.EncodeString(l.Value)
	})
}

// Decode reads a message of [Encode]. Its errors wrap [ErrVersion] or [ErrMalformed]. What it allocates is bounded by a small multiple of
// len(b), which the result does not refer to.
func Decode(b []byte) (*Target, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrMalformed)
	}
	if b[0] != version {
		return nil, fmt.Errorf("%w: %d, this Millrace reads %d; upgrade it to the version of the one that runs discovery", ErrVersion, b[0], version)
	}
	if len(b) > maxMessage {
		return nil, fmt.Errorf("%w: %d bytes are more than %d", ErrMalformed, len(b), maxMessage)
	}
	d := decoder{r: bytes.NewReader(b[1:])}
	d.dec = msgpack.NewDecoder(d.r)
	t, err := d.target()
	if err != nil {
		return nil, fmt.Errorf("%w: at byte %d: %w", ErrMalformed, len(b)-d.r.Len(), err)
	}
	t.derive()
	return t, nil
}

type decoder struct {
	r   *bytes.Reader
	dec *msgpack.Decoder
}

func (d *decoder) target() (*Target, error) {
	n, err := d.dec.DecodeArrayLen()
	if err != nil {
		return nil, err
	}
	if n != fields {
		return nil, fmt.Errorf("%d fields instead of %d", n, fields)
	}
	t := &Target{}
	if t.Job, err = d.text(); err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	if !utf8.ValidString(t.Job) {
		return nil, fmt.Errorf("job %q is not UTF-8", t.Job)
	}
	if t.Labels, err = d.labels(true); err != nil {
		return nil, fmt.Errorf("labels: %w", err)
	}
	if t.Discovered, err = d.labels(false); err != nil {
		return nil, fmt.Errorf("discovered labels: %w", err)
	}
	if d.r.Len() > 0 {
		return nil, fmt.Errorf("%d bytes follow the target", d.r.Len())
	}
	return t, nil
}

// labels reads a label set. Discovered labels are as their source gave them, final ones are UTF-8.
func (d *decoder) labels(final bool) (labels.Labels, error) {
	n, err := d.dec.DecodeArrayLen()
	if err != nil {
		return labels.EmptyLabels(), err
	}
	// Each string takes at least the byte of its length.
	if n < 0 || n%2 != 0 || n > d.r.Len() {
		return labels.EmptyLabels(), fmt.Errorf("%d names and values in %d bytes", n, d.r.Len())
	}
	b := labels.NewScratchBuilder(n / 2)
	last := ""
	for range n / 2 {
		name, err := d.text()
		if err != nil {
			return labels.EmptyLabels(), err
		}
		value, err := d.text()
		if err != nil {
			return labels.EmptyLabels(), fmt.Errorf("value of %q: %w", name, err)
		}
		switch {
		case name <= last:
			return labels.EmptyLabels(), fmt.Errorf("label %q follows %q", name, last)
		case value == "":
			return labels.EmptyLabels(), fmt.Errorf("label %q has no value", name)
		case final && !(utf8.ValidString(name) && utf8.ValidString(value)):
			return labels.EmptyLabels(), fmt.Errorf("label %q=%q is not UTF-8", name, value)
		}
		b.Add(name, value)
		last = name
	}
	return b.Labels(), nil
}

// text reads a string, whose length is checked before it is allocated.
func (d *decoder) text() (string, error) {
	n, err := d.dec.DecodeBytesLen()
	if err != nil {
		return "", err
	}
	if n < 0 || n > d.r.Len() {
		return "", fmt.Errorf("%d bytes of text where %d are left", n, d.r.Len())
	}
	s := make([]byte, n)
	if err := d.dec.ReadFull(s); err != nil {
		return "", err
	}
	return string(s), nil
}
