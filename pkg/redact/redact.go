package redact

import (
	"regexp"
	"strings"
)

// Secret stands in place of one.
const Secret = "<secret>"

var (
	userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^/?#@\s"']*@`)
	query    = regexp.MustCompile(`(?i)([?&](?:[a-z0-9_.-]*(?:key|token|secret|password|passwd|signature)|sig|p)=)[^&#\s"']+`)
)

// URLs hides users, passwords and secret query parameters of each URL in a text.
func URLs(text string) string {
	if strings.Contains(text, "://") {
		text = userinfo.ReplaceAllString(text, "${1}"+Secret+"@")
	}
	return query.ReplaceAllString(text, "${1}"+Secret)
}
