// Package helm holds the chart, and the tests that render it with helm and check what comes out.
package helm
