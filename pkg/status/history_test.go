package status

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/stream/streamtest"
)

// beginning is when a step begins.
var beginning = time.Unix(1_700_000_010, 0)

func at(steps int) time.Time { return beginning.Add(time.Duration(steps) * HistoryStep) }

func endpoint(lag, rate float64) []Endpoint {
	return []Endpoint{{Name: "prod", URL: "http://p/", LagSeconds: lag, SamplesPerSecond: rate}}
}

// tail are the last points.
func tail(points []float32, n int) string { return fmt.Sprint(points[len(points)-n:]) }

func TestAHistoryHasThePointsOfTheLastHour(t *testing.T) {
	var r Recorder
	if h := r.History(at(0)); len(h.Tracks) != 0 {
		t.Errorf("before anything is noted: %+v", h)
	}
	r.Note(at(0), endpoint(1, 100))
	r.Note(at(0).Add(5*time.Second), endpoint(7, 200)) // of the same step
	r.Note(at(1), endpoint(2, 10))
	r.Note(at(4), endpoint(3, 20)) // the process was held up
	r.Note(at(2), endpoint(9, 9))  // the clock was set back
	h := r.History(at(5))
	if len(h.Tracks) != 1 || len(h.Tracks[0].Lag) != HistoryPoints || !h.End.Equal(at(6)) {
		t.Fatalf("%+v", h)
	}
	if lag, rate := tail(h.Tracks[0].Lag, 7), tail(h.Tracks[0].Rate, 7); lag != "[-1 7 2 -1 -1 3 -1]" || rate != "[-1 150 10 -1 -1 20 -1]" {
		t.Errorf("lag %s, rate %s", lag, rate)
	}
	for i := 5; i < 2*HistoryPoints; i++ {
		r.Note(at(i), endpoint(float64(i), 0))
	}
	h = r.History(at(2*HistoryPoints - 1))
	for i, v := range h.Tracks[0].Lag {
		if int(v) != HistoryPoints+i {
			t.Fatalf("point %d is %v", i, v)
		}
	}
	r.Note(at(2*HistoryPoints), nil)
	if h := r.History(at(2 * HistoryPoints)); len(h.Tracks) != 1 {
		t.Error("an endpoint that is gone is forgotten at once")
	}
	r.Note(at(4*HistoryPoints), nil)
	if h := r.History(at(4 * HistoryPoints)); len(h.Tracks) != 0 {
		t.Errorf("an endpoint that is gone for an hour is still there: %+v", h)
	}
}

func TestHistoriesOfWritersAreAddedUp(t *testing.T) {
	var a, b Recorder
	for i := range 4 {
		a.Note(at(i), endpoint(float64(i), 100))
		if i != 2 {
			b.Note(at(i), endpoint(2, 10))
		}
	}
	b.Note(at(4), []Endpoint{{Name: "other"}})
	h := mergeHistories([]*History{a.History(at(3)), b.History(at(4)), {End: at(4), Tracks: []Track{{Name: "prod", URL: "http://p/", Lag: []float32{1}}}}})
	if len(h.Tracks) != 2 || h.Tracks[0].Name != "other" || !h.End.Equal(at(5)) {
		t.Fatalf("%+v", h)
	}
	if lag, rate := tail(h.Tracks[1].Lag, 6), tail(h.Tracks[1].Rate, 6); lag != "[-1 2 2 2 3 -1]" || rate != "[-1 110 110 100 110 -1]" {
		t.Errorf("lag %s, rate %s", lag, rate)
	}
}

func TestHistoriesAreCollectedFromTheWriters(t *testing.T) {
	conn := streamtest.New(t, 1)
	var own, others Recorder
	now := time.Now()
	own.Note(now, endpoint(1, 1))
	others.Note(now, endpoint(5, 10))
	answer := func(a Answers) {
		a.Failed = func(err error) { t.Error(err) }
		stop, err := Answer(conn, a)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		if err := conn.NC.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	history := func() *History { return others.History(now) }
	answer(Answers{Member: "w-1", History: history, Report: func() *Report { t.Error("a report was asked for"); return &Report{} }})
	answer(Answers{Member: "s-1"})
	answer(Answers{Member: "not-asked", History: history})
	h, err := CollectHistory(t.Context(), conn, own.History(now), []string{"w-1"})
	if err != nil || len(h.Tracks) != 1 {
		t.Fatalf("%v, %+v", err, h)
	}
	i := slices.IndexFunc(h.Tracks[0].Lag, func(v float32) bool { return v >= 0 })
	if i < 0 || h.Tracks[0].Lag[i] != 5 || h.Tracks[0].Rate[i] != 11 {
		t.Errorf("%+v", h.Tracks)
	}
	if h, err := CollectHistory(t.Context(), nil, nil, []string{"w-1"}); err != nil || len(h.Tracks) != 0 || h.End.IsZero() {
		t.Errorf("before NATS is reached: %v, %+v", err, h)
	}
}
