package web

import (
	"math"
	"net/url"
	"strings"
	"time"
)

// Names of the services in the order in which data passes them. The status page draws the data's way from the
// [ServiceStatus] values that have these names; services of other names appear in its table only.
const (
	ServiceDiscovery = "discovery"
	ServiceScraper   = "scraper"
	ServiceIngest    = "ingest"
	ServiceRelabel   = "relabel"
	ServiceWriter    = "writer"
)

// State is what a service or an endpoint is doing, in one word. Other words than those below are shown as they are,
// without a colour.
type State string

// The states that the page knows.
const (
	StateStarting State = "starting" // not yet at work for the first time
	StateRunning  State = "running"  // a service at work
	StateSending  State = "sending"  // an endpoint taking samples
	StateIdle     State = "idle"     // nothing to do
	StateWaiting  State = "waiting"  // held up by something outside; tries again by itself
	StateFailed   State = "failed"   // not working; needs a hand, or restarts with back-off
	StateStopped  State = "stopped"  // ended on purpose
)

// Status is what a process says of itself beyond its targets. Any part may be missing.
type Status struct {
	// Started is when the process started.
	Started time.Time `json:"started,omitzero"`
	// ConfigHash names the running configuration's content.
	ConfigHash string `json:"configHash"`
	// ConfigLoaded is when the running configuration was loaded.
	ConfigLoaded time.Time `json:"configLoaded,omitzero"`
	// ConfigError says why the last reload was refused; empty when it was not.
	ConfigError string `json:"configError,omitempty"`
	// Services are the services in this process.
	Services []ServiceStatus `json:"services"`
	// Members are the processes of the fleet, this one among them.
	Members []MemberStatus `json:"members"`
	// Streams are the JetStream streams that the process uses.
	Streams []StreamStatus `json:"streams"`
	// Endpoints are the remote_write endpoints.
	Endpoints []EndpointStatus `json:"endpoints"`
}

// ServiceStatus is the state of one service in this process.
type ServiceStatus struct {
	// Name of the service, such as [ServiceScraper].
	Name string `json:"name"`
	// State in one word.
	State State `json:"state"`
	// Detail is a short sentence about the state; may be empty.
	Detail string `json:"detail,omitempty"`
	// WaitingFor is what the service needs before it can go on, one short sentence each.
	WaitingFor []string `json:"waitingFor,omitempty"`
	// Restarts counts the restarts of the service's actors since the process started.
	Restarts uint64 `json:"restarts"`
	// Figures are the one to three numbers that tell most about the service, for the picture of the data's way.
	Figures []Figure `json:"figures,omitempty"`
}

// MemberStatus is a process of the fleet.
type MemberStatus struct {
	// ID names the process, Host its machine, Address where it serves its page.
	ID      string `json:"id"`
	Host    string `json:"host"`
	Address string `json:"address"`
	// Self says that it is this process.
	Self bool `json:"self"`
	// Version and ConfigHash are those that it runs. OtherConfig says that its configuration is not this process's.
	Version     string `json:"version"`
	ConfigHash  string `json:"configHash"`
	OtherConfig bool   `json:"otherConfig"`
	// Started is when it started.
	Started time.Time `json:"started,omitzero"`
	// Shares are what it owns, by service.
	Shares []ShareStatus `json:"shares"`
}

// ShareStatus is a member's part of a service's work.
type ShareStatus struct {
	// Service is the service's name.
	Service string `json:"service"`
	// Owned counts the shares that the member owns, of All.
	Owned int `json:"owned"`
	All   int `json:"all"`
	// Epoch is the greatest epoch of its leases; 0 where it owns none.
	Epoch uint64 `json:"epoch"`
}

// Figure is a number with its name, such as 1200 "samples/s".
type Figure struct {
	// Name follows the number in the reading: "targets", "samples/s".
	Name string `json:"name"`
	// Value is the number. NaN and infinities are reported as 0.
	Value float64 `json:"value"`
}

// StreamStatus is the content of one JetStream stream.
type StreamStatus struct {
	// Name of the stream.
	Name string `json:"name"`
	// Messages held.
	Messages uint64 `json:"messages"`
	// Bytes held.
	Bytes uint64 `json:"bytes"`
	// MaxBytes is the limit of Bytes; 0 or less: none.
	MaxBytes int64 `json:"maxBytes"`
	// MaxAgeSeconds is how long a message is kept; 0: for ever.
	MaxAgeSeconds float64 `json:"maxAgeSeconds"`
	// Oldest is when the oldest message held was stored; zero when there is none.
	Oldest time.Time `json:"oldest,omitzero"`
	// LastError says why the stream's state is unknown; empty when it is known.
	LastError string `json:"lastError,omitempty"`
}

// EndpointStatus is how far one remote_write endpoint has got, over all partitions.
type EndpointStatus struct {
	// Name of the endpoint.
	Name string `json:"name"`
	// URL of the endpoint. Passwords and the values of query parameters are redacted before they are shown.
	URL string `json:"url"`
	// Protocol is the remote_write message, such as "remote_write 2.0".
	Protocol string `json:"protocol"`
	// State in one word.
	State State `json:"state"`
	// StateDetail follows the state in the reading: "503 Service Unavailable, next try in 3 s".
	StateDetail string `json:"stateDetail,omitempty"`
	// SentSamples counts samples that the endpoint took since the process started.
	SentSamples uint64 `json:"sentSamples"`
	// RejectedSamples counts samples that the endpoint refused for good.
	RejectedSamples uint64 `json:"rejectedSamples"`
	// RetriedSamples counts samples sent again, once per try.
	RetriedSamples uint64 `json:"retriedSamples"`
	// LagSeconds is the age of the oldest sample not yet taken; 0 when all are.
	LagSeconds float64 `json:"lagSeconds"`
	// LagMessages counts the stream's messages not yet taken.
	LagMessages uint64 `json:"lagMessages"`
	// OldestUnsent is the time of the oldest sample not yet taken; zero when all are.
	OldestUnsent time.Time `json:"oldestUnsent,omitzero"`
	// LastError is the endpoint's last bad answer; empty when there was none.
	LastError string `json:"lastError,omitempty"`
	// LastErrorTime is when LastError came.
	LastErrorTime time.Time `json:"lastErrorTime,omitzero"`
}

// presentable returns a copy that may be shown to anyone and can be encoded as JSON: secrets redacted, lists not nil,
// numbers finite. The receiver and its slices stay as they are.
func (s Status) presentable() Status {
	services := make([]ServiceStatus, len(s.Services))
	for i, service := range s.Services {
		figures := make([]Figure, len(service.Figures))
		for j, f := range service.Figures {
			figures[j] = Figure{Name: f.Name, Value: finite(f.Value)}
		}
		service.Figures = figures
		services[i] = service
	}
	streams := make([]StreamStatus, len(s.Streams))
	for i, stream := range s.Streams {
		stream.MaxAgeSeconds = finite(stream.MaxAgeSeconds)
		streams[i] = stream
	}
	endpoints := make([]EndpointStatus, len(s.Endpoints))
	for i, e := range s.Endpoints {
		e.LagSeconds = finite(e.LagSeconds)
		redacted := RedactURL(e.URL)
		if redacted != e.URL {
			// An HTTP client's errors quote the URL that it was asked for.
			e.LastError = strings.ReplaceAll(e.LastError, e.URL, redacted)
			e.StateDetail = strings.ReplaceAll(e.StateDetail, e.URL, redacted)
			e.URL = redacted
		}
		endpoints[i] = e
	}
	s.Services, s.Streams, s.Endpoints = services, streams, endpoints
	s.Members = append([]MemberStatus{}, s.Members...)
	return s
}

func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// RedactURL hides what a URL may carry as a secret: the password and the values of query parameters. A URL that cannot
// be parsed is hidden whole.
func RedactURL(raw string) string {
	const hidden = "xxxxx"
	u, err := url.Parse(raw)
	if err != nil {
		return hidden
	}
	if u.RawQuery != "" {
		pairs := strings.Split(u.RawQuery, "&")
		for i, pair := range pairs {
			if name, _, found := strings.Cut(pair, "="); found {
				pairs[i] = name + "=" + hidden
			} else {
				// A bare word may itself be the token.
				pairs[i] = hidden
			}
		}
		u.RawQuery = strings.Join(pairs, "&")
	}
	return u.Redacted()
}
