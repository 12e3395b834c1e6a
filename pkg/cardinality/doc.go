// Package cardinality says what can be asked about the number of series, and what is answered. The command counts; its pages, API and subcommand show.
package cardinality
