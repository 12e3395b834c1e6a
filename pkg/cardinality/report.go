package cardinality

import "time"

// Report is what a survey has counted. Lists begin with the largest.
type Report struct {
	// Time is that of the newest sample's message; Since is the time after which a series counts as new.
	Time  time.Time `json:"time"`
	Since time.Time `json:"since"`
	// WindowSeconds is the time before Time in which a series has to have a sample.
	WindowSeconds float64 `json:"window_seconds"`
	// Metric is the metric whose series are counted; empty: those of all.
	Metric string `json:"metric,omitempty"`
	// Series are the active series, New those of them that are new, and Refused those that limits keep from the endpoints.
	Series  int `json:"series"`
	New     int `json:"new"`
	Refused int `json:"refused"`
	// Unknown are series whose dictionary the stream has lost.
	Unknown int `json:"unknown"`
	// Partial says that there is more than there was memory for: what is counted is a part, and every number may be too low.
	Partial bool `json:"partial"`

	Metrics []Group `json:"metrics"`
	Labels  []Label `json:"labels"`
	Jobs    []Group `json:"jobs"`
	Targets []Group `json:"targets"`
}

// Group are the series of a metric, job or target.
type Group struct {
	// Name is the metric's or the job's; of a target, the job's, and Instance is set.
	Name     string `json:"name"`
	Instance string `json:"instance,omitempty"`
	Series   int    `json:"series"`
	New      int    `json:"new"`
	Refused  int    `json:"refused"`
}

// Label is a label of any series.
type Label struct {
	Name string `json:"name"`
	// Series have it, with so many Values, of which New are had by new series only.
	Series int `json:"series"`
	Values int `json:"values"`
	New    int `json:"new"`
}
