// Package alerts holds the alert rules for Millrace itself and their runbook, README.md. Its tests run the rules through promtool, and hold rules and runbook together.
package alerts
