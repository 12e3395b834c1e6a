package discovery

import (
	"maps"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/target"
)

// Dropped is a target that relabelling has dropped.
type Dropped struct {
	// Job is the job_name of the scrape config.
	Job string
	// Discovered are its labels before relabelling.
	Discovered labels.Labels
}

// Status is how the service stands.
type Status struct {
	// Waiting says what the whole service waits for, such as NATS; empty where it works.
	Waiting string
	// Jobs are in the order of their names.
	Jobs []JobStatus
}

// JobStatus is how one job stands.
type JobStatus struct {
	// Job is the job_name of the scrape config.
	Job string
	// Active counts the targets to scrape, Dropped those that relabelling has dropped, Failed the malformed ones.
	Active, Dropped, Failed int
	// Held counts the active targets of an earlier run or configuration that present discovery has not found, so far.
	Held int
	// Unpublished counts the changes that are not in the stream yet.
	Unpublished int
	// Waiting says what the job waits for; empty where it has nothing to wait for.
	Waiting string
}

// view is what a job shows. It never changes.
type view struct {
	status  JobStatus
	active  []*target.Target
	dropped []Dropped
}

// show makes the job's view and sets its gauges. why is what its removals wait for.
func (j *job) show(why string) {
	v := &view{
		status: JobStatus{
			Job: j.name, Dropped: j.want.droppedCount, Failed: j.want.failed, Unpublished: len(j.todo), Waiting: why,
		},
		active:  make([]*target.Target, 0, len(j.want.order)),
		dropped: make([]Dropped, 0, len(j.want.dropped)),
	}
	for _, id := range j.want.order {
		v.active = append(v.active, j.want.byID[id].target)
	}
	if j.in.config != nil || j.in.epoch == 0 {
		for id, p := range j.published {
			if _, ok := j.want.byID[id]; !ok && !p.confirmed {
				v.active = append(v.active, p.target)
				v.status.Held++
			}
		}
	}
	for _, d := range j.want.dropped {
		v.dropped = append(v.dropped, Dropped{Job: j.name, Discovered: d})
	}
	v.status.Active = len(v.active)
	j.svc.metrics.targets.WithLabelValues(j.name).Set(float64(v.status.Active))
	j.svc.metrics.dropped.WithLabelValues(j.name).Set(float64(v.status.Dropped))
	j.view.Store(v)
}

// Targets returns the targets of all jobs, in the order of the jobs' names. dropped has at most keep_dropped_targets of a job,
// droppedCounts has all, by job. What it returns belongs to the caller, but not the targets themselves, which never change.
func (s *Service) Targets() (active []*target.Target, dropped []Dropped, droppedCounts map[string]int) {
	droppedCounts = map[string]int{}
	for _, j := range s.sorted() {
		v := j.view.Load()
		active = append(active, v.active...)
		dropped = append(dropped, v.dropped...)
		droppedCounts[j.name] = v.status.Dropped
	}
	return active, dropped, droppedCounts
}

// Status returns how service and jobs stand.
func (s *Service) Status() Status {
	st := Status{Waiting: *s.waiting.Load()}
	for _, j := range s.sorted() {
		job := j.view.Load().status
		if w := j.waiting.Load(); w != nil {
			job.Waiting = *w
		}
		st.Jobs = append(st.Jobs, job)
	}
	return st
}

func (s *Service) sorted() []*job {
	jobs := s.jobs.Load()
	if jobs == nil {
		return nil
	}
	sorted := make([]*job, 0, len(*jobs))
	for _, name := range slices.Sorted(maps.Keys(*jobs)) {
		sorted = append(sorted, (*jobs)[name])
	}
	return sorted
}
