package door

import (
	"mime"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/exp/api/remote"
)

// NewRemoteWrite checks the configuration and the files it names, and returns the handler of remote_write 1.0 and 2.0
// (https://prometheus.io/docs/specs/prw/remote_write_spec_2_0/), for a path of a server that others run.
func NewRemoteWrite(cfg Config) (http.Handler, error) {
	cfg = cfg.withDefaults(RemoteWrite)
	cfg.Listen, cfg.TLS = "", TLSFiles{}
	if err := cfg.validate(false); err != nil {
		return nil, err
	}
	d := new(remoteWrite)
	var err error
	if d.gate, err = newGate(cfg, d); err != nil {
		return nil, err
	}
	return d.gate, nil
}

type remoteWrite struct{ *gate }

func (*remoteWrite) route(r *http.Request) *failure {
	if r.Method != http.MethodPost {
		return fail(wrongMethod, "remote_write is taken by POST")
	}
	return nil
}

func (*remoteWrite) open(r *http.Request) (parcel, *failure) {
	p := parcel{coding: snappyBlock}
	contentType := r.Header.Get("Content-Type")
	var message remote.WriteMessageType
	switch contentType {
	case protobufType, "": // Prometheus takes a missing content type for 1.0, too
		message = remote.WriteV1MessageType
	default:
		t, params, err := mime.ParseMediaType(contentType)
		if err != nil || t != protobufType {
			return p, fail(unsupported, "the content type %q is not supported; send %s", clip(contentType, 100), protobufType)
		}
		if message = remote.WriteMessageType(params["proto"]); message == "" {
			message = remote.WriteV1MessageType
		}
	}
	switch message {
	case remote.WriteV1MessageType:
		p.format = RemoteWriteV1
	case remote.WriteV2MessageType:
		p.format = RemoteWriteV2
	default:
		return p, fail(unsupported, "the message %q is not supported; send %s or %s", clip(string(message), 100), remote.WriteV1MessageType, remote.WriteV2MessageType)
	}
	switch coding := r.Header.Get("Content-Encoding"); coding {
	case string(remote.SnappyBlockCompression), "": // Prometheus takes a missing one for snappy, too
		return p, nil
	default:
		return p, fail(unsupported, "the content encoding %q is not supported; send snappy (block format)", clip(coding, 100))
	}
}

// accept answers 204, or 400 where something was refused for good: that is how both versions tell a partial write.
func (*remoteWrite) accept(w http.ResponseWriter, p parcel, outcome Outcome) string {
	setWritten(w.Header(), p, outcome)
	if outcome.Refused > 0 {
		text := clip(outcome.Reason, maxMessage)
		if text == "" {
			text = strconv.Itoa(outcome.Refused) + " samples or histograms were refused"
		}
		writeText(w, http.StatusBadRequest, text)
		return "400"
	}
	w.WriteHeader(http.StatusNoContent)
	return "204"
}

func (d *remoteWrite) refuse(w http.ResponseWriter, _ *http.Request, p parcel, f *failure) string {
	status := d.setFailureHeaders(w.Header(), f)
	setWritten(w.Header(), p, Outcome{})
	writeText(w, status, clip(f.message, maxMessage))
	return f.httpCode()
}

// setWritten says what was written, which senders of 2.0 rely on.
func setWritten(h http.Header, p parcel, outcome Outcome) {
	if p.format != RemoteWriteV2 {
		return
	}
	h.Set("X-Prometheus-Remote-Write-Samples-Written", strconv.Itoa(outcome.Samples))
	h.Set("X-Prometheus-Remote-Write-Histograms-Written", strconv.Itoa(outcome.Histograms))
	h.Set("X-Prometheus-Remote-Write-Exemplars-Written", strconv.Itoa(outcome.Exemplars))
}
