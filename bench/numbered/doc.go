// Package numbered lets a sample's value say which scrape it comes from.
//
// The load generator numbers the scrapes of each target 1, 2, 3 …, and gives every series a [Code]: a pure, invertible
// function from the scrape's number to the value. A receiver that sees the series' labels finds the same Code with [Of] and
// reads the number back, so that it can tell lost, repeated and altered samples apart without having spoken to the generator.
//
// The values are spread like real ones: counters with irregular increments, counters of seconds, gauges that jump,
// cumulative histogram buckets. All of them are exact in a float64.
package numbered
