package limit

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// maxName is how long the name of a target, job, metric or label may be, in bytes. Senders choose names, which may have 128 KiB, and messages are full of them.
const maxName = 200

// clip returns a name that is short enough. A longer one ends with a hash instead, which is the same in all processes, so that two names do not become one.
func clip(name string) string {
	if len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	end := "..." + hex.EncodeToString(sum[:8])
	return strings.ToValidUTF8(name[:maxName-len(end)], "") + end // metrics have it as a label, which is not to end within a character
}

// target returns the name of the target that a series is of, by its labels; false where it has no instance.
func target(ls labels.Labels) (name string, ok bool) {
	instance := ls.Get(model.InstanceLabel)
	return clip(ls.Get(model.JobLabel) + "/" + instance), instance != ""
}

// metric returns the name of the metric that a series is of.
func metric(ls labels.Labels) string { return clip(ls.Get(model.MetricNameLabel)) }
