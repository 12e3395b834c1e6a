package numbered

import "time"

// Served is one scrape that a generator answered with status 200. Its number is its position in the log, counted from 1.
type Served struct {
	// At is when the request came.
	At time.Time `json:"at"`
	// Samples is how many samples the body holds (a native histogram counts as one).
	Samples int `json:"samples"`
	// Completed says that the whole body was written without an error. An agent that was killed while it read may still
	// not have got all of it.
	Completed bool `json:"completed"`
}

// Log is what a generator served: by target label, scrape n at index n-1.
type Log map[string][]Served
