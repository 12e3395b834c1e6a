package stream

import (
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
	var r Rejection
	if err := msgpack.Unmarshal(msg[1:], &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRejection, err)
	}
	return &r, nil
}
