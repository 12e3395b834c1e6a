package status

import (
	"time"

	"github.com/millrace/millrace/pkg/replay"
)

// DocumentVersion is the version of [Document]. It changes when a field goes or comes to mean something else, and not when one is added.
const DocumentVersion = 1

// Document is how a fleet stands. Lists are never nil.
type Document struct {
	Version int `json:"version"`
	// Time is when it was collected, by the clock of the process that did.
	Time time.Time `json:"time"`
	// Reached says that NATS was reached. Where it was not, all that follows is what the process that was asked knows of itself.
	Reached bool `json:"reached"`
	// Problems are sentences about what needs a look, the worst first: what does not work, and what could not be found out.
	Problems []string `json:"problems"`
	// Members are the processes, in the order of their IDs.
	Members []Member `json:"members"`
	// Shares are the parts of each service's work, in the order in which data passes the services.
	Shares []Shares `json:"shares"`
	// Streams are the streams and buckets.
	Streams []Stream `json:"streams"`
	// Endpoints are the remote_write endpoints, over all writers, in the order of their names.
	Endpoints []Endpoint `json:"endpoints"`
	// Replays are what is sent again, or was, in the order of their names: those that run, and the newest of the others; as many as a process tells of. Long texts are shortened.
	Replays []replay.Status `json:"replays"`
}

// The states of members, services, streams and endpoints.
const (
	Ready    = "ready"     // a member or service at work
	Starting = "starting"  // it has not been at work yet
	Waiting  = "waiting"   // held up by something outside; it tries again by itself
	Silent   = "silent"    // a member that does not answer
	OK       = "ok"        // a stream that all nodes hold
	Degraded = "degraded"  // a stream that works, while some of the nodes do not have all of it
	NoLeader = "no leader" // a stream that takes nothing
	Unknown  = "unknown"   // a stream that could not be looked up
	Sending  = "sending"   // an endpoint that takes samples
	Idle     = "idle"      // an endpoint that has got everything
)

// Member is a process.
type Member struct {
	// ID names the process: one that starts again has another. Host is its machine, Address where it serves its page there.
	ID      string `json:"id"`
	Host    string `json:"host"`
	Address string `json:"address"`
	// Asked says that it is the process that was asked.
	Asked bool `json:"asked"`
	// Version is that of the program, ConfigHash that of its configuration. OtherConfig says that most members have another one.
	Version     string `json:"version"`
	ConfigHash  string `json:"configHash"`
	OtherConfig bool   `json:"otherConfig"`
	// Started is when it started, LastSeen its last sign of life; zero where it is no member yet.
	Started  time.Time `json:"started,omitzero"`
	LastSeen time.Time `json:"lastSeen,omitzero"`
	// State is [Ready], [Starting], [Waiting] or [Silent].
	State string `json:"state"`
	// WaitingFor is on what it or one of its services waits, a short sentence each.
	WaitingFor []string `json:"waitingFor"`
	// Services are what it runs.
	Services []Service `json:"services"`
}

// Service is a service in a process.
type Service struct {
	Name string `json:"name"`
	// State is [Ready], [Starting], [Waiting], or [Silent] where the process does not answer.
	State      string   `json:"state"`
	WaitingFor []string `json:"waitingFor"`
	// Restarts counts the restarts of its actors since the process started.
	Restarts uint64 `json:"restarts"`
	// Figures are numbers by name, which differ by service.
	Figures map[string]float64 `json:"figures"`
}

// Shares are the parts of a service's work.
type Shares struct {
	Service string `json:"service"`
	// All is how many there are, numbered from 0. Free lists those without an owner that is alive.
	All  int   `json:"all"`
	Free []int `json:"free"`
	// Owners are the members that have some, in the order of their IDs.
	Owners []Owner `json:"owners"`
}

// Owner is a member with its shares of a service.
type Owner struct {
	Member string `json:"member"`
	Shares []int  `json:"shares"`
	// NewestEpoch is the greatest epoch among their leases.
	NewestEpoch uint64 `json:"newestEpoch"`
}

// Stream is a stream of JetStream, or a key-value bucket, which is one too.
type Stream struct {
	// Name is without the prefix.
	Name   string `json:"name"`
	Bucket bool   `json:"bucket"`
	// State is [OK], [Degraded], [NoLeader] or [Unknown]. Error says why it is unknown.
	State string `json:"state"`
	Error string `json:"error,omitempty"`
	// Messages and Bytes are what it holds; MaxBytes and MaxAgeSeconds limit it, 0 for no limit.
	Messages      uint64  `json:"messages"`
	Bytes         uint64  `json:"bytes"`
	MaxBytes      uint64  `json:"maxBytes"`
	MaxAgeSeconds float64 `json:"maxAgeSeconds"`
	// Oldest is when the oldest message was stored, OldestAgeSeconds how long ago; both zero in an empty one.
	Oldest           time.Time `json:"oldest,omitzero"`
	OldestAgeSeconds float64   `json:"oldestAgeSeconds"`
	// Replicas is how many nodes are to hold it. Leader and Followers are those of a cluster.
	Replicas  int        `json:"replicas"`
	Leader    string     `json:"leader"`
	Followers []Follower `json:"followers"`
}

// Follower is a node that holds a stream and does not lead it.
type Follower struct {
	Name           string `json:"name"`
	Current        bool   `json:"current"`
	Offline        bool   `json:"offline"`
	BehindMessages uint64 `json:"behindMessages"`
}

// Endpoint is a remote_write endpoint. In the document its figures are those of all writers together: the longest lag, and the sums of the rest.
type Endpoint struct {
	Name string `json:"name"`
	// URL has its secrets hidden.
	URL      string `json:"url"`
	Protocol string `json:"protocol"`
	// State is [Sending], [Idle] or [Waiting].
	State      string   `json:"state"`
	WaitingFor []string `json:"waitingFor"`
	// LagSeconds is the age of the oldest sample that is read and not accepted, OldestUnsent its timestamp; both zero where all is sent.
	LagSeconds   float64   `json:"lagSeconds"`
	OldestUnsent time.Time `json:"oldestUnsent,omitzero"`
	// PendingMessages is how many messages the endpoint has not got all of, PendingSamples an estimate of how many samples are in them.
	PendingMessages uint64 `json:"pendingMessages"`
	PendingSamples  uint64 `json:"pendingSamples"`
	// BacklogMessages is how many of PendingMessages were passed over for newer ones, and are sent beside those (millrace.writer.fresh_first).
	BacklogMessages uint64 `json:"backlogMessages"`
	// SamplesPerSecond is what it has accepted over the last few seconds.
	SamplesPerSecond float64 `json:"samplesPerSecond"`
	// The others count samples since the writers that run now have started: accepted, sent again, refused for good and kept in REJECTED, and gone from the stream
	// before they were sent.
	SentSamples     uint64 `json:"sentSamples"`
	RetriedSamples  uint64 `json:"retriedSamples"`
	RejectedSamples uint64 `json:"rejectedSamples"`
	LostSamples     uint64 `json:"lostSamples"`
	// LastError is the newest failure or refusal, LastErrorTime when it came, and LastErrorMember to whom.
	LastError       string    `json:"lastError,omitempty"`
	LastErrorTime   time.Time `json:"lastErrorTime,omitzero"`
	LastErrorMember string    `json:"lastErrorMember,omitempty"`
}
