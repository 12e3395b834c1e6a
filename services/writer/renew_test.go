package writer

import (
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
)

func TestWhatIsPublishedAnewForADictionaryHoldsFromThenOn(t *testing.T) {
	for _, name := range []string{"1.0", "2.0"} {
		t.Run(name, func(t *testing.T) {
			r, e := newRig(t), newRecorder(t)
			cfg := e.endpoint("prod", func(e *Endpoint) {
				e.Rules.Limits = "some"
				if name == "2.0" {
					v2(e)
				}
			})
			r.start([]Endpoint{cfg})
			d := r.named("x", 3)
			r.publish(r.conn.Dict(0, d.ID), d.msg)
			give := func(refused ...int) {
				of := *d.Dictionary
				of.Series = append([]frame.Series(nil), d.Series...)
				for _, i := range refused {
					of.Series[i].Labels = labels.EmptyLabels()
				}
				r.relabelled(0, &dict{&of, d.msg}, cfg, cfg.Rules)
			}
			give(1, 2)
			r.send(0, r.floats(d, 1000, 1))
			e.wait(1)
			sent := func(at int64) (n int) {
				r.send(0, r.floats(d, at, 1))
				await.True(t, "its samples", func() bool {
					n = 0
					for _, p := range e.points() {
						if p.T == at {
							n++
						}
					}
					return n > 0
				})
				return n
			}
			// Which frame is the first to go by what was published last, nobody promises; it comes soon.
			for want, refused := range [][]int{1: {0, 2}, 2: {1}, 3: {}} {
				if want == 0 {
					continue
				}
				give(refused...)
				for at, deadline := int64(2000*want), time.Now().Add(await.Patience); sent(at) != want; at++ {
					if time.Now().After(deadline) {
						t.Fatalf("still not %d series", want)
					}
				}
			}
		})
	}
}
