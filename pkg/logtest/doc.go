// Package logtest gives tests a log that they can look into.
package logtest
