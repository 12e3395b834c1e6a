package door

import (
	"mime"
	"net/http"
)

const (
	metricsPath  = "/v1/metrics"
	protobufType = "application/x-protobuf"
	jsonType     = "application/json"
)

// HTTP is the door of OTLP over HTTP: POST /v1/metrics with protobuf or JSON, as
// https://opentelemetry.io/docs/specs/otlp/#otlphttp says. Its methods are safe for concurrent use.
type HTTP struct{ listener }

// NewHTTP checks the configuration and the files it names. It does not listen yet.
func NewHTTP(cfg Config) (*HTTP, error) {
	cfg = cfg.withDefaults(OTLPHTTP)
	d := new(HTTP)
	if err := d.init(cfg, "millrace.ingest.otlp.http.listen", func(g *gate) protocol { return otlpHTTP{g} }); err != nil {
		return nil, err
	}
	return d, nil
}

type otlpHTTP struct{ *gate }

func (otlpHTTP) route(r *http.Request) *failure {
	switch {
	case r.URL.Path != metricsPath:
		return fail(unknownPath, "nothing is at this path; metrics are taken at POST %s", metricsPath)
	case r.Method != http.MethodPost:
		return fail(wrongMethod, "metrics are taken by POST")
	}
	return nil
}

func (otlpHTTP) open(r *http.Request) (parcel, *failure) {
	p := parcel{format: OTLP}
	switch mediaType(r) {
	case protobufType:
	case jsonType:
		p.json = true
	default:
		return p, fail(unsupported, "the content type %q is not supported; send %s or %s", clip(r.Header.Get("Content-Type"), 100), protobufType, jsonType)
	}
	var ok bool
	if p.coding, ok = contentCoding(r.Header.Get("Content-Encoding")); !ok {
		return p, fail(unsupported, "the content encoding %q is not supported; send gzip, zstd or identity", clip(r.Header.Get("Content-Encoding"), 100))
	}
	return p, nil
}

func (otlpHTTP) accept(w http.ResponseWriter, p parcel, outcome Outcome) string {
	response := exportResponse(outcome)
	var body []byte
	var err error
	contentType := protobufType
	switch {
	case p.json && response == nil:
		contentType, body = jsonType, []byte("{}")
	case p.json:
		contentType = jsonType
		body, err = response.MarshalJSON()
	case response != nil:
		body, err = response.MarshalProto()
	}
	if err != nil {
		body = nil // what was taken is safe; without a body it is plain success
	}
	writeBody(w, http.StatusOK, contentType, body)
	return "200"
}

// refuse answers in the encoding of the request, and in plain text where that is none that is known.
func (d otlpHTTP) refuse(w http.ResponseWriter, r *http.Request, _ parcel, f *failure) string {
	status := d.setFailureHeaders(w.Header(), f)
	switch contentType := mediaType(r); contentType {
	case protobufType, jsonType:
		writeBody(w, status, contentType, marshalStatus(f, contentType == jsonType))
	default:
		writeText(w, status, clip(f.message, maxMessage))
	}
	return f.httpCode()
}

// mediaType is the request's content type without parameters, empty where it is missing or malformed.
func mediaType(r *http.Request) string {
	header := r.Header["Content-Type"]
	if len(header) != 1 {
		return ""
	}
	switch header[0] {
	case protobufType, jsonType: // nearly all, and they need no parsing
		return header[0]
	}
	t, _, err := mime.ParseMediaType(header[0])
	if err != nil {
		return ""
	}
	return t
}
