package config

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"
)

// ByteSize is a number of bytes. In YAML it is a whole number with a binary unit, such as 64MiB, or a plain number of
// bytes.
type ByteSize int64

// The binary units of a [ByteSize].
const (
	KiB ByteSize = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
	PiB
)

var (
	byteUnits = []struct {
		name string
		size ByteSize
	}{{"PiB", PiB}, {"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}}
	byteSizePattern = regexp.MustCompile(`^([0-9]+)\s*([A-Za-z]*)$`)
)

// ParseByteSize reads a size such as "10GiB", "512" or "512B". Decimal units (KB, MB) are refused, because Prometheus
// reads them as binary ones and others do not.
func ParseByteSize(s string) (ByteSize, error) {
	m := byteSizePattern.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return 0, fmt.Errorf("not a size: %q", s)
	}
	unit := ByteSize(0)
	if m[2] == "" || m[2] == "B" {
		unit = 1
	}
	for _, u := range byteUnits {
		if m[2] == u.name {
			unit = u.size
		}
	}
	if unit == 0 {
		return 0, fmt.Errorf("unknown unit %q in size %q", m[2], s)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return ByteSize(n) * unit, nil
}

// String returns the size in the largest unit that gives a whole number.
func (b ByteSize) String() string {
	for _, u := range byteUnits {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (b *ByteSize) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.ScalarNode {
		return fmt.Errorf("not a size")
	}
	size, err := ParseByteSize(node.Value)
	if err != nil {
		return err
	}
	*b = size
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (b ByteSize) MarshalYAML() (any, error) {
	if b >= 0 && b < KiB {
		return int64(b), nil
	}
	return b.String(), nil
}

// Sync says when the embedded server forces what it stored to disk: the word always (before each acknowledgement), or
// the time between two forced writes. The zero value is always.
type Sync time.Duration

// SyncAlways forces every message to disk before it is acknowledged.
const SyncAlways Sync = 0

// Always tells whether every message is forced to disk before it is acknowledged.
func (s Sync) Always() bool { return s == SyncAlways }

// Interval returns the time between two forced writes, 0 when [Sync.Always] is true.
func (s Sync) Interval() time.Duration { return time.Duration(s) }

// String returns "always" or the interval as Prometheus writes durations.
func (s Sync) String() string {
	if s.Always() {
		return "always"
	}
	return model.Duration(s).String()
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *Sync) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.ScalarNode {
		return fmt.Errorf("neither always nor a duration")
	}
	if node.Value == "always" {
		*s = SyncAlways
		return nil
	}
	d, err := model.ParseDuration(node.Value)
	if err != nil || d <= 0 {
		return fmt.Errorf("neither always nor a duration above zero: %q", node.Value)
	}
	*s = Sync(d)
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (s Sync) MarshalYAML() (any, error) { return s.String(), nil }
