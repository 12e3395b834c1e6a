package writer

import (
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/replay"
)

// closed makes the bucket of positions refuse entries until the returned function is called, as if nobody led it.
func (r *rig) closed() (again func()) {
	r.t.Helper()
	name := "KV_" + r.conn.Bucket("positions")
	s, err := r.conn.JS.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	set := func(size int32) {
		cfg.MaxMsgSize = size
		if _, err := r.conn.JS.UpdateStream(r.t.Context(), cfg); err != nil {
			r.t.Fatal(err)
		}
	}
	most := cfg.MaxMsgSize
	set(1)
	return func() { set(most) }
}

func TestAReplayWhoseEndCannotBeStoredSendsNothingAgain(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", small)
	want := r.jobs(10, 20, cfg)
	r.start([]Endpoint{cfg}) // begins behind them
	m := r.manager(cfg)
	e.answers(func(*request) (int, string, map[string]string) { return 503, "down", nil })
	start(t, m, replay.Spec{Name: "again", From: rfc3339(hourAgo), Endpoint: "prod"})
	await.True(t, "a request", func() bool { return len(e.requests()) > 0 })
	again := r.closed()
	e.answers(nil)
	await.True(t, "all samples", func() bool { return len(e.points()) == len(want) })
	passed(t, 3*storeAgain)
	if st, err := m.Get(t.Context(), "again"); err != nil || st.State != replay.Running {
		t.Errorf("told as %+v, %v", st, err)
	}
	again()
	if st := done(t, m, "again"); st.Sent != uint64(len(want)) {
		t.Errorf("told as %+v", st)
	}
	if d := gocmp.Diff(sorted(want), sorted(e.points())); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
}
