package tail

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"

	"github.com/millrace/millrace/pkg/replay"
)

// Query is what is to be shown.
type Query struct {
	// Match are selectors, of which a series has to match one; without any, all are shown. They see the labels that are shown.
	Match []string
	// Endpoint is whose labels are shown: after external_labels, its write_relabel_configs, and limits on series. Empty: as they were collected.
	Endpoint string
	// Limit ends it after so many samples; 0: never.
	Limit uint64
}

// endpointName is what names of endpoints, and so parts of subjects, are made of.
var endpointName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// ParseQuery reads the parameters match[], endpoint and limit.
func ParseQuery(parameters url.Values) (q Query, err error) {
	q = Query{Match: parameters["match[]"], Endpoint: parameters.Get("endpoint")}
	if text := parameters.Get("limit"); text != "" {
		if q.Limit, err = strconv.ParseUint(text, 10, 63); err != nil {
			return q, fmt.Errorf("limit: %q is no number; give a whole one, 0 for no limit", text)
		}
	}
	_, err = q.check()
	return q, err
}

// Parameters are what ParseQuery reads.
func (q *Query) Parameters() url.Values {
	v := url.Values{"match[]": q.Match}
	if q.Endpoint != "" {
		v.Set("endpoint", q.Endpoint)
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.FormatUint(q.Limit, 10))
	}
	return v
}

// check reads the selectors, and finds what is wrong.
func (q *Query) check() (replay.Selectors, error) {
	if q.Endpoint != "" && !endpointName.MatchString(q.Endpoint) {
		return nil, fmt.Errorf("endpoint: %q is no name of an endpoint; `millrace status` lists them", q.Endpoint)
	}
	match, err := replay.ParseSelectors(q.Match)
	if field, ok := errors.AsType[*replay.FieldError](err); ok {
		return nil, errors.New(field.Error())
	}
	return match, err
}
