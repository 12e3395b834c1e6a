// Package redact hides secrets in what people read: logs, pages, errors.
package redact
