package delta

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Header says of which messages of DELTAS a message of FRAMES was made. Its value is a list, separated by commas, with an item for each of them, in their order: the message's
// sequence number, its time in nanoseconds since 1970, and how many of the frames that follow come of it, separated by spaces. Where only the first frames of
// a message are done, there is a fourth number: how many.
const Header = "Millrace-Delta"

// step is how far a message of DELTAS is done with.
type step struct {
	seq    uint64
	time   int64 // when DELTAS stored it, in nanoseconds since 1970
	frames int   // how many were made of it
	done   int   // how many of its frames are done with; 0 means all
}

// covers reports whether the message of s, or one behind it, is that message. After the stream was made anew, sequence numbers
// begin again, but time goes on.
func (s step) covers(seq uint64, at time.Time) bool { return seq <= s.seq && at.UnixNano() <= s.time }

// formatSteps returns the value of the header.
func formatSteps(steps []step) string {
	var b strings.Builder
	for i, s := range steps {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d %d %d", s.seq, s.time, s.frames)
		if s.done > 0 {
			fmt.Fprintf(&b, " %d", s.done)
		}
	}
	return b.String()
}

// parseSteps reads what formatSteps wrote.
func parseSteps(text string) ([]step, error) {
	var steps []step
	for item := range strings.SplitSeq(text, ",") {
		fields := strings.Split(item, " ")
		if len(fields) != 3 && len(fields) != 4 {
			return nil, fmt.Errorf("header %s: %.100q has %d numbers, want 3 or 4", Header, item, len(fields))
		}
		var s step
		var errs [4]error
		s.seq, errs[0] = strconv.ParseUint(fields[0], 10, 64)
		s.time, errs[1] = strconv.ParseInt(fields[1], 10, 64)
		s.frames, errs[2] = strconv.Atoi(fields[2])
		if len(fields) == 4 {
			s.done, errs[3] = strconv.Atoi(fields[3])
		}
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("header %s: %w", Header, err)
		}
		if s.frames < 0 || s.done < 0 {
			return nil, fmt.Errorf("header %s: %.100q has a number below 0", Header, item)
		}
		steps = append(steps, s)
	}
	return steps, nil
}
