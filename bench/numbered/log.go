package numbered

import "time"

// Served is one scrape that a generator answered with status 200, or one push that was answered. Its number is its position in
// the log, counted from 1.
type Served struct {
	// At is when the request came; for a push, when it was answered.
	At time.Time `json:"at"`
	// Samples is how many samples the body holds (a native histogram counts as one); for a push, how many of them were
	// acknowledged. Nothing needs to arrive if it is 0.
	Samples int `json:"samples"`
	// Completed says that the whole body was written without an error. An agent that was killed while it read may still
	// not have got all of it. Of a push it says that all samples were acknowledged.
	Completed bool `json:"completed"`
}

// Log is what a generator served, or what of its pushes was answered: by target label, scrape or push n at index n-1.
type Log map[string][]Served
