package remotewrite

import (
	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/prometheus/model/histogram"

	"github.com/millrace/millrace/pkg/frame"
)

// Protocol is the message that a request carries.
type Protocol uint8

// The protocols.
const (
	// V1 is remote_write 1.0, the message prometheus.WriteRequest.
	V1 Protocol = 1
	// V2 is remote_write 2.0, the message io.prometheus.write.v2.Request.
	V2 Protocol = 2
)

// ProtocolOf returns the protocol that an endpoint's protobuf_message asks for; an empty one asks for V1.
func ProtocolOf(m remoteapi.WriteMessageType) Protocol {
	if m == remoteapi.WriteV2MessageType {
		return V2
	}
	return V1
}

// String returns "1.0" or "2.0".
func (p Protocol) String() string {
	if p == V2 {
		return "2.0"
	}
	return "1.0"
}

// Carries reports whether the protocol's specification has a place for the histogram. Only V2 has one for custom buckets;
// [Request.AddHistogram] writes them for V1 too, in the field that Prometheus's message has, but Prometheus does not send
// them so.
func (p Protocol) Carries(h *frame.Histogram) bool {
	if p == V2 {
		return true
	}
	if h.Int != nil {
		return !histogram.IsCustomBucketsSchema(h.Int.Schema)
	}
	return h.Float == nil || !histogram.IsCustomBucketsSchema(h.Float.Schema)
}

func (p Protocol) contentType() string {
	if p == V2 {
		return "application/x-protobuf;proto=" + string(remoteapi.WriteV2MessageType)
	}
	return "application/x-protobuf"
}
