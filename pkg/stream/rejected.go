package stream

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
)

const rejectionVersion = 1

// ErrRejection is returned for a message of the stream REJECTED that cannot be read.
var ErrRejection = errors.New("not a rejected request")

// Rejection is a part of a request that an endpoint refused for good, with its answer. It can be sent again as it is once the cause
// is mended.
type Rejection struct {
	// Endpoint is the endpoint's name.
	Endpoint string `msgpack:"endpoint"`
	// Protocol is the remote_write version of Body: 1 or 2.
	Protocol int `msgpack:"protocol"`
	// Status and Answer are the endpoint's HTTP status and the beginning of its answer.
	Status int    `msgpack:"status"`
	Answer string `msgpack:"answer"`
	// Time is when the answer came, in milliseconds since 1970.
	Time int64 `msgpack:"time"`
	// Samples counts the samples in Body.
	Samples int `msgpack:"samples"`
	// Body is the remote_write message, snappy-compressed as it was sent.
	Body []byte `msgpack:"body"`
}

// Encode returns the message: a version byte and msgpack.
func (r *Rejection) Encode() ([]byte, error) {
	b, err := msgpack.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding a rejected request: %w", err)
	}
	return append([]byte{rejectionVersion}, b...), nil
}

// ReadRejection decodes a message of the stream REJECTED.
func ReadRejection(msg []byte) (*Rejection, error) {
	if len(msg) == 0 || msg[0] != rejectionVersion {
		return nil, fmt.Errorf("%w: it does not begin with version %d", ErrRejection, rejectionVersion)
	}
	in := bytes.NewReader(msg[1:])
	d := rejectionDecoder{in: in, dec: msgpack.NewDecoder(in)}
	r, err := d.rejection()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRejection, err)
	}
	return r, nil
}

// rejectionDecoder reads field by field, so that a length which is a lie is found out before memory is taken for it.
type rejectionDecoder struct {
	in  *bytes.Reader
	dec *msgpack.Decoder
}

func (d *rejectionDecoder) rejection() (*Rejection, error) {
	n, err := d.dec.DecodeMapLen()
	if err != nil {
		return nil, err
	}
	if n < 0 || n > 7 {
		return nil, fmt.Errorf("%d fields", n)
	}
	r := &Rejection{}
	for range n {
		key, err := d.bytes()
		if err != nil {
			return nil, err
		}
		switch string(key) {
		case "endpoint":
			err = d.text(&r.Endpoint)
		case "answer":
			err = d.text(&r.Answer)
		case "protocol":
			r.Protocol, err = d.dec.DecodeInt()
		case "status":
			r.Status, err = d.dec.DecodeInt()
		case "time":
			r.Time, err = d.dec.DecodeInt64()
		case "samples":
			r.Samples, err = d.dec.DecodeInt()
		case "body":
			r.Body, err = d.bytes()
		default:
			err = errors.New("unknown field")
		}
		if err != nil {
			return nil, fmt.Errorf("field %.20q: %w", key, err)
		}
	}
	if d.in.Len() > 0 {
		return nil, fmt.Errorf("%d bytes follow", d.in.Len())
	}
	return r, nil
}

func (d *rejectionDecoder) text(s *string) error {
	b, err := d.bytes()
	*s = string(b)
	return err
}

func (d *rejectionDecoder) bytes() ([]byte, error) {
	n, err := d.dec.DecodeBytesLen()
	if err != nil || n < 0 {
		return nil, err
	}
	if n > d.in.Len() {
		return nil, fmt.Errorf("%d bytes where %d are left", n, d.in.Len())
	}
	b := make([]byte, n)
	return b, d.dec.ReadFull(b)
}
