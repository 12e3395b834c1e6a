package e2e_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// The hour that the tests of replays send again: two jobs, together 5,000 samples/s.
const (
	hourTargets = 10 // of each job
	hourSeries  = 250
	hourSeconds = 3600
	hourJob     = hourTargets * hourSeries // series of a job
)

var hourJobs = []string{"api", "db"}

// hourStart is when the hour begins, in milliseconds.
var hourStart = time.Now().Add(-65 * time.Minute).Truncate(time.Second).UnixMilli()

// hourValue is the value of a series in a second of the hour.
func hourValue(target, series, second int) float64 {
	return float64(second*(series+1)) + float64(target)*0.25
}

func hourLabels(job string, target, series int) labels.Labels {
	return labels.FromStrings("__name__", fmt.Sprintf("replayed_%03d_total", series), "instance", fmt.Sprintf("%s-%d:9100", job, target), "job", job)
}

// hourOnce is where the hour was written first.
var hourOnce struct {
	sync.Mutex
	dir string
}

// newHour returns a folder for a millrace process whose streams hold the hour. It is written as scrapers write it, only faster than the time passes, and
// each test gets a copy.
func newHour(t *testing.T) (dir string) {
	t.Helper()
	hourOnce.Lock()
	defer hourOnce.Unlock()
	if hourOnce.dir == "" {
		dir := filepath.Join(binDir, "hour")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		writeHour(t, dir)
		hourOnce.dir = dir
	}
	dir = t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "data"), os.DirFS(filepath.Join(hourOnce.dir, "data"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeHour(t *testing.T, dir string) {
	t.Helper()
	began := time.Now()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	server, err := stream.StartServer(stream.ServerConfig{Dir: filepath.Join(dir, "data"), SyncInterval: time.Minute, MaxMemory: 64 << 20, MaxStorage: 20 << 30, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	conn, err := stream.Connect(t.Context(), stream.Config{Names: stream.Names{Prefix: "millrace"}, Server: server, Client: "test", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	publishHour(t, conn, 1, hourSeconds)
	t.Logf("an hour of %d samples was written in %s", hourSeconds*hourJob*len(hourJobs), time.Since(began).Round(time.Millisecond))
}

// publishHour makes the streams, with four partitions, and publishes the hour from its beginning up to a second.
func publishHour(t *testing.T, conn *stream.Conn, replicas, until int) {
	t.Helper()
	const partitions = 4
	keep := stream.Keep{Age: 24 * time.Hour, Bytes: 1 << 30}
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: partitions, Replicas: replicas, LeaseTTL: 5 * time.Second, Frames: keep, Deltas: keep, Dicts: keep, Rejected: keep}); err != nil {
		t.Fatal(err)
	}
	publish := func(subject string, data []byte) {
		if _, err := conn.Publish(t.Context(), &nats.Msg{Subject: subject, Data: data}, nil); err != nil {
			t.Fatal(err)
		}
	}
	type source struct {
		frame.Frame
		number    int
		partition int
	}
	var sources []*source
	for _, job := range hourJobs {
		for target := range hourTargets {
			var series []frame.Series
			for i := range hourSeries {
				series = append(series, frame.Series{Labels: hourLabels(job, target, i)})
			}
			d, msg, err := frame.NewDictionary(job, series)
			if err != nil {
				t.Fatal(err)
			}
			s := &source{number: target}
			s.Source, s.Epoch = series[0].Labels.Hash(), 1
			s.Sections = []frame.Section{{Dict: d.ID, Series: hourSeries, Values: make([]float64, hourSeries)}}
			s.partition = stream.PartitionOf(s.Source, partitions)
			publish(conn.Dict(s.partition, d.ID), msg)
			sources = append(sources, s)
		}
	}
	var writers [partitions]frame.BatchWriter
	var sent [partitions]uint64
	var enc frame.Encoder
	var buf []byte
	seal := func(p int) {
		if n := writers[p].Header().Samples; n > 0 {
			publish(conn.Frames(p), writers[p].Seal(sent[p]))
			sent[p] += uint64(n)
		}
	}
	for second := range until {
		for _, s := range sources {
			s.Seq++
			s.Time = hourStart + int64(second)*1000
			for i := range s.Sections[0].Values {
				s.Sections[0].Values[i] = hourValue(s.number, i, second)
			}
			buf = enc.Encode(buf[:0], &s.Frame)
			writers[s.partition].Add(buf, s.Time, hourSeries)
			if writers[s.partition].Size() > 128<<10 {
				seal(s.partition)
			}
		}
	}
	for p := range partitions {
		seal(p)
	}
}

// storedOf returns what a Prometheus has stored of an instance, by metric name, without making text of it.
func storedOf(t testing.TB, p *proc, instance string) map[string][]prompb.Sample {
	t.Helper()
	read := readAll(t, p, time.UnixMilli(0), time.Now().Add(time.Hour), &prompb.LabelMatcher{Type: prompb.LabelMatcher_EQ, Name: "instance", Value: instance})
	series := map[string][]prompb.Sample{}
	b := labels.NewScratchBuilder(0)
	for _, ts := range read {
		name := ts.ToLabels(&b, nil).String()
		if series[name] != nil {
			t.Errorf("%s comes twice", name)
		}
		series[name] = ts.Samples
	}
	return series
}

// holdsExactly fails the test unless a Prometheus holds the seconds of the hour from one to before another of one job, and nothing else.
func holdsExactly(t testing.TB, p *proc, job string, from, to int) {
	t.Helper()
	wrong, samples := 0, 0
	say := func(format string, args ...any) {
		if wrong++; wrong <= 5 {
			t.Errorf(format, args...)
		}
	}
	for target := range hourTargets {
		got := storedOf(t, p, fmt.Sprintf("%s-%d:9100", job, target))
		if len(got) != hourSeries {
			say("target %d has %d series, want %d", target, len(got), hourSeries)
		}
		for i := range hourSeries {
			name := labels.NewBuilder(hourLabels(job, target, i)).Set("cluster", "demo").Labels().String()
			list := got[name]
			samples += len(list)
			if len(list) != to-from {
				say("%s has %d samples, want %d", name, len(list), to-from)
				continue
			}
			for k, s := range list {
				second := from + k
				if s.Timestamp != hourStart+int64(second)*1000 || s.Value != hourValue(target, i, second) {
					say("%s: sample %d is %v @%d, want %v @%d", name, k, s.Value, s.Timestamp, hourValue(target, i, second), hourStart+int64(second)*1000)
				}
			}
		}
	}
	var series []struct{}
	api(t, p, "/api/v1/series", url.Values{"match[]": {`{__name__=~".+"}`}, "start": {seconds(0)}}, &series)
	if len(series) != hourJob {
		say("there are %d series, want %d", len(series), hourJob)
	}
	t.Logf("%d samples of %d series compared, %d wrong", samples, len(series), wrong)
}
