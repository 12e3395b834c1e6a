package scraper

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/await"
)

// plainLoop returns a loop with the scrape config of the job "plain".
func (r *rig) plainLoop(number int) *loop {
	cfg := *differentialConfig(r.t).ScrapeConfigs[0]
	return r.newTestLoop(&cfg, number)
}

func TestAlikeExpositionsShareTheirTemplate(t *testing.T) {
	r := newRig(t)
	body := recordedExposition(t, 1).text()
	a, b := r.plainLoop(1), r.plainLoop(2)
	for _, l := range []*loop{a, b} {
		r.give(l, step{body: body, contentType: plainText}, 1000)
	}
	if a.view.template != b.view.template || len(a.view.template.lines) < 500 {
		t.Errorf("two targets with the same exposition have templates of %d and %d lines", len(a.view.template.lines), len(b.view.template.lines))
	}
	was := a.view.template
	r.give(a, step{body: strings.Replace(body, "\ngo_goroutines 7\n", "\ngo_goroutines 1.2345e+06\n", 1), contentType: plainText}, 2000)
	r.give(b, step{body: body + "one_more 1\n", contentType: plainText}, 2000)
	if a.view.template != was {
		t.Error("other values made another template")
	}
	if b.view.template == was || len(b.view.template.lines) != len(was.lines)+1 {
		t.Errorf("one more line made a template of %d lines, before %d", len(b.view.template.lines), len(was.lines))
	}
}

func TestTemplatesThatNobodyUsesAreForgotten(t *testing.T) {
	r := newRig(t)
	l := r.plainLoop(1)
	for i := range 20 {
		r.give(l, step{body: fmt.Sprintf("series_%d 1\n", i), contentType: plainText}, int64(1000+i))
	}
	await.True(t, "only the last template", func() bool {
		runtime.GC()
		r.templates.mu.Lock()
		defer r.templates.mu.Unlock()
		return len(r.templates.byHash) <= 1
	})
	runtime.KeepAlive(l)
}

// TestTargetsThatShrinkLeaveNoHugeTemplate has a huge template followed by a short body, for which as much memory was made.
func TestTargetsThatShrinkLeaveNoHugeTemplate(t *testing.T) {
	var d draft
	d.reserve(&template{text: strings.Repeat("x", hugeTemplate+1), lines: make([]templateLine, 1000)})
	if cap(d.text) <= hugeTemplate || cap(d.lines) < 1000 || cap(d.series) < 1000 {
		t.Fatalf("room for %d bytes, %d lines and %d series", cap(d.text), cap(d.lines), cap(d.series))
	}
	d.text = append(d.text, "x "...)
	d.add(templateLine{metEnd: 1}, 0, false, 0)
	if series := d.takeSeries(); cap(series) > 100 || d.series == nil {
		t.Errorf("the series have room for %d", cap(series))
	}
	if made := d.template(formatText); made.text != "x " || d.text == nil {
		t.Errorf("the template %q has the memory of the draft", made.text)
	}
}

// TestSteadyScrapesAllocateLittle shows that what a sample costs does not grow with garbage.
func TestSteadyScrapesAllocateLittle(t *testing.T) {
	r := newRig(t)
	l := r.plainLoop(1)
	text := recordedExposition(t, 1).text()
	x := &exposition{}
	if err := r.answer(x, step{body: text, contentType: plainText}, math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	defer x.close()
	now := int64(1000)
	scrape := func() {
		now += 1000
		c := r.collector()
		c.begin(l, now)
		if err := c.collect(x); err != nil {
			t.Fatal(err)
		}
		c.rollback()
		r.release(c)
	}
	scrape()
	if n := testing.AllocsPerRun(50, scrape); n > 5 && !raceDetector {
		t.Errorf("reading a body of known lines allocates %v times", n)
	}
	r.packFrom = 0
	scrape()
	if l.view.packed == nil {
		t.Fatal("the template is not packed")
	}
	if n := testing.AllocsPerRun(50, scrape); n > 5 && !raceDetector {
		t.Errorf("reading a body of known lines against a packed template allocates %v times", n)
	}
}

// TestMetadataFollowsTheComments shows that changed comments reach known series in the scrape that shows them.
func TestMetadataFollowsTheComments(t *testing.T) {
	for format, text := range map[string]string{
		plainText:   "# HELP a_total %s\n# TYPE a_total %s\na_total 1\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\nlonely 1\n",
		openMetrics: "# HELP a_total %s\n# TYPE a_total %s\na_total 1\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n# TYPE lonely unknown\nlonely 1\n# EOF\n",
	} {
		r := newRig(t)
		l := r.plainLoop(1)
		check := func(help, kind string) {
			t.Helper()
			src := l.source
			for i, ls := range labelsOf(t, src) {
				if src.series[i].moved != 0 {
					continue
				}
				f := src.metricOf(uint32(i))
				switch name := ls.Get("__name__"); name {
				case "a_total":
					if f.family != "a_total" || f.Help != help || string(f.Type) != kind {
						t.Errorf("%s: %s is described by %+v, want %q, %s", format, name, f, help, kind)
					}
				case "h_bucket", "h_sum", "h_count":
					if f.family != "h" || string(f.Type) != "histogram" {
						t.Errorf("%s: %s is described by %+v", format, name, f)
					}
				}
			}
		}
		now := int64(1000)
		for _, says := range [][2]string{{"One.", "counter"}, {"One.", "counter"}, {"Two.", "counter"}, {"Two.", "gauge"}, {"Two.", "gauge"}} {
			now += 1000
			r.give(l, step{body: fmt.Sprintf(text, says[0], says[1]), contentType: format}, now)
			check(says[0], says[1])
		}
	}
}

// TestMetadataOfPiecesBefore has new series in a body that comes in pieces: one without HELP first, and pieces later others whose comments the last body had too.
func TestMetadataOfPiecesBefore(t *testing.T) {
	body := func(scrape int, helpless bool) string {
		var b strings.Builder
		b.WriteString("# TYPE first gauge\nfirst 1\n")
		if helpless {
			b.WriteString("helpless{new=\"1\"} 1\n")
		}
		for i := range 20 {
			fmt.Fprintf(&b, "# HELP family_%02d Help of %d.\n# TYPE family_%02d counter\n", i, i, i)
			for k := range 12 {
				fmt.Fprintf(&b, "family_%02d{k=\"%d\"} %d\n", i, k, scrape)
			}
			if scrape > 0 {
				fmt.Fprintf(&b, "family_%02d{new=\"1\"} 1\n", i)
			}
			if scrape > 0 && i > 0 { // behind another family
				fmt.Fprintf(&b, "family_%02d{new=\"2\"} 1\n", i-1)
			}
		}
		return b.String()
	}
	for i, n := range []int{piece, piece, 700, 700, 100, 100} {
		helpless := i%2 == 1
		r := newRig(t)
		r.piece = n
		l := r.plainLoop(1)
		r.give(l, step{body: body(0, false), contentType: plainText}, 1000)
		r.give(l, step{body: body(1, helpless), contentType: plainText}, 2000)
		checked := 0
		for i, ls := range labelsOf(t, l.source) {
			name := ls.Get("__name__")
			number, ok := strings.CutPrefix(name, "family_")
			if !ok {
				continue
			}
			checked++
			family, _ := strconv.Atoi(number)
			if f := l.source.metricOf(uint32(i)); f.family != name || f.Type != model.MetricTypeCounter || f.Help != fmt.Sprintf("Help of %d.", family) {
				t.Errorf("in pieces of %d bytes, with a series without HELP: %t, %s is described by %+v", n, helpless, ls, f)
			}
		}
		if checked != 20*12+20+19 {
			t.Errorf("%d series", checked)
		}
	}
}

// TestMetadataOfCommentsFarBefore has a new series behind families whose comments are as they were, and its own family's before those.
func TestMetadataOfCommentsFarBefore(t *testing.T) {
	const known = "# TYPE x gauge\nx 1\n# HELP a Of a.\n# TYPE a gauge\na 1\n# HELP b Of b.\n# TYPE b gauge\nb 1\n"
	for _, n := range []int{piece, 60} {
		r := newRig(t)
		r.piece = n
		l := r.plainLoop(1)
		r.give(l, step{body: known, contentType: plainText}, 1000)
		r.give(l, step{body: known + "a{new=\"1\"} 1\n", contentType: plainText}, 2000)
		for i, ls := range labelsOf(t, l.source) {
			if f := l.source.metricOf(uint32(i)); ls.Get("__name__") == "a" && (f.family != "a" || f.Type != model.MetricTypeGauge || f.Help != "Of a.") {
				t.Errorf("in pieces of %d bytes, %s is described by %+v", n, ls, f)
			}
		}
	}
}

// TestMetadataBehindConvertedSeries has comments behind series in bodies that are parsed as a whole: the next scrape tells of them.
func TestMetadataBehindConvertedSeries(t *testing.T) {
	r := newRig(t)
	for _, cfg := range differentialConfig(t).ScrapeConfigs {
		if cfg.JobName != "convert" {
			continue
		}
		l := r.newTestLoop(cfg, 1)
		for n := range 2 {
			r.give(l, step{body: "# TYPE a gauge\na 1\n# HELP a Of a.\n", contentType: plainText}, int64(1000+1000*n))
		}
		for i, ls := range labelsOf(t, l.source) {
			if f := l.source.metricOf(l.source.resolve(uint32(i))); ls.Get("__name__") == "a" && f.Help != "Of a." {
				t.Errorf("it is described by %+v", f)
			}
		}
	}
}

// TestCompactionRenumbersWhatLoopsKnow has a target that churns until its source is compacted, beside another that shares the source.
func TestCompactionRenumbersWhatLoopsKnow(t *testing.T) {
	r := newRig(t)
	cfg := *differentialConfig(t).ScrapeConfigs[0]
	churning, steady := r.newTestLoop(&cfg, 1), r.newTestLoop(&cfg, 1)
	if churning.source != steady.source {
		t.Fatal("two targets with the same labels have two sources")
	}
	now, compactions, before := int64(1000), 0, 0
	for round := range 200 {
		now += 1000
		body := "lasting 1\n"
		for i := range 50 {
			body += fmt.Sprintf("passing{round=\"%d\",i=\"%d\"} 1\n", round/2, i)
		}
		got := r.give(churning, step{body: body, contentType: plainText}, now)
		markers := 0
		for _, s := range got.Samples {
			if math.Float64bits(s.V) == math.Float64bits(staleNaN) {
				markers++
			}
		}
		if want := 50 * (1 - round%2); round > 0 && markers != want {
			t.Fatalf("round %d has %d staleness markers, want %d", round, markers, want)
		}
		other := r.give(steady, step{body: "steady 1\nafter 2\n", contentType: plainText}, now+1)
		if n := len(other.Samples); n != 2+5 {
			t.Fatalf("round %d: the steady target has %d samples: %v", round, n, other.Samples)
		}
		if len(churning.source.series) < before {
			compactions++
		}
		before = len(churning.source.series)
	}
	if compactions == 0 {
		t.Error("the source was not compacted")
	}
	got := r.give(steady, step{}, now+1000)
	if n := len(got.Samples); n != 2+5 {
		t.Errorf("an empty body leaves %v, want two staleness markers", got.Samples)
	}
}

func readReference(text string) (v float64, end int, ok bool) {
	end = strings.IndexAny(text, " \n")
	if end < 0 {
		return 0, 0, false
	}
	p := textparse.NewPromParser([]byte("x "+text[:end]+"\n"), nil, false)
	if entry, err := p.Next(); err != nil || entry != textparse.EntrySeries {
		return 0, 0, false
	}
	_, t, v := p.Series()
	return v, end, t == nil
}

func checkValue(t *testing.T, text string) {
	t.Helper()
	v, end, ok := readValue([]byte(text))
	if !ok {
		return // the parser has the word
	}
	want, wantEnd, wantOK := readReference(text)
	if !wantOK || end != wantEnd || math.Float64bits(v) != math.Float64bits(want) {
		t.Errorf("%q is %v, ends at %d; want %v, %d (%t)", text, v, end, want, wantEnd, wantOK)
	}
}

func TestValuesAreThoseOfTheParser(t *testing.T) {
	for _, v := range oddValues {
		checkValue(t, v+"\n")
		checkValue(t, v+" 1700000000000\n")
		checkValue(t, "-"+v+"\n")
		checkValue(t, v)
	}
	for _, text := range multiplesOfTwoTo64() {
		checkValue(t, text+"\n")
		if got, _, ok := readValue([]byte(text + "\n")); ok {
			if want, err := strconv.ParseFloat(text, 64); err != nil || got != want {
				t.Errorf("%s is %v; strconv has %v, %v", text, got, want, err)
			}
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	formats := []byte{'e', 'f', 'g', 'E', 'G'}
	for range 200_000 {
		v := math.Float64frombits(rnd.Uint64())
		if rnd.IntN(2) == 0 {
			v = float64(rnd.Int64N(1<<60)) / math.Pow10(rnd.IntN(20))
		}
		text := strconv.FormatFloat(v, formats[rnd.IntN(len(formats))], rnd.IntN(25)-1, 64)
		checkValue(t, text+"\n")
		if _, _, ok := readValue([]byte(text + "\n")); !ok && len(text) < 300 && text != "-2e+308" && text != "2e+308" {
			t.Errorf("%s is left to the parser", text)
		}
	}
}

// multiplesOfTwoTo64 returns numbers whose digits make 0 of 64 bits, or do so before their end, in several notations.
func multiplesOfTwoTo64() (list []string) {
	two := new(big.Int).Lsh(big.NewInt(1), 64)
	for k := int64(1); k <= 200; k++ {
		digits := new(big.Int).Mul(two, big.NewInt(k)).String()
		list = append(list, digits, "-"+digits, "000"+digits, "0.000"+digits)
		for _, zeros := range []string{"0", "00", "00000000"} {
			list = append(list, digits+zeros, digits+"."+zeros, digits+"."+zeros+"e-3")
		}
		for _, at := range []int{1, 5, len(digits) - 1} {
			list = append(list, digits[:at]+"."+digits[at:], digits[:at]+"."+digits[at:]+"e+19", digits[:at]+"."+digits[at:]+"e-7")
		}
		list = append(list, digits+"7", digits+"e5", digits+"E-22", digits+"e-30")
	}
	return list
}

// FuzzNumber compares with what strconv makes of the text up to a space or line break.
func FuzzNumber(f *testing.F) {
	for _, v := range oddValues {
		f.Add(v)
	}
	for _, v := range []string{"9007199254740993", "1.7976931348623159e308", "2.2250738585072011e-308", "4.9406564584124654e-324", "6631236846766476e-316", "8.5e22", "123456789012345678e-22"} {
		f.Add(v)
	}
	for _, v := range multiplesOfTwoTo64()[:40] {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, end, ok := readValue([]byte(text + "\n"))
		if !ok {
			return // the parser has the word
		}
		want, err := strconv.ParseFloat(text[:end], 64)
		if math.IsNaN(want) {
			want = math.Float64frombits(value.NormalNaN)
		}
		if err != nil || math.Float64bits(got) != math.Float64bits(want) || strings.ContainsAny(text[:end], " \n") || end < len(text) && text[end] != ' ' && text[end] != '\n' {
			t.Errorf("%q is %v up to %d; strconv has %v, %v", text, got, end, want, err)
		}
	})
}

func FuzzReadValue(f *testing.F) {
	for _, v := range oddValues {
		f.Add(v + "\n")
	}
	f.Fuzz(checkValue)
}

// FuzzTemplates compares a loop that reads bodies against templates with one that has Prometheus's parser read each of them as a whole.
func FuzzTemplates(f *testing.F) {
	rnd := rand.New(rand.NewPCG(8, 8))
	for i := range 8 {
		data := make([]byte, 400+i%2)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		f.Add(data)
	}
	cfg := differentialConfig(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &choices{data[:min(len(data), 1<<12)]}
		s := c.sequences(t, cfg, 1)[0]
		var job promconfig.ScrapeConfig
		for _, j := range cfg.ScrapeConfigs {
			if j.JobName == s.job {
				job = *j
			}
		}
		with, without := newRig(t), newRig(t)
		if len(data)%2 == 1 {
			with.packFrom = 0
		}
		a, b := with.newTestLoop(&job, 1), without.newTestLoop(&job, 1)
		for k, step := range s.steps {
			now := int64(1_750_000_000_000 + k*1000)
			got := with.give(a, step, now)
			b.view.dissolve()
			want := without.give(b, step, now)
			if d := gocmp.Diff(want, got, exact); d != "" {
				t.Fatalf("scrape %d of %d differs (-parsed +against the template):\n%s\nbodies:\n%s", k+1, len(s.steps), d, s.show(k))
			}
		}
	})
}

// dissolve makes the view one that has never seen a line, but knows the series.
func (v *view) dissolve() {
	spare := map[string]uint32{}
	for k := range v.template.lines {
		if v.series[k] != unknown && v.series[k] != created {
			spare[v.template.met(k)] = v.series[k]
		}
	}
	for met, series := range v.spare {
		if _, ok := spare[met]; !ok {
			spare[met] = series
		}
	}
	v.template, v.series, v.spare = noTemplate, nil, spare
}
