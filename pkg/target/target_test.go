package target

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/millrace/millrace/pkg/stream"
)

func final(more ...string) labels.Labels {
	return labels.FromStrings(append([]string{
		"__address__", "db-1:9100", "__metrics_path__", "/metrics", "__scheme__", "http", "__scrape_interval__", "15s",
		"__scrape_timeout__", "10s", "instance", "db-1:9100", "job", "node",
	}, more...)...)
}

func TestDecodeReturnsWhatWasEncoded(t *testing.T) {
	for name, want := range map[string]*Target{
		"plain":                      New("node", final(), labels.FromStrings("__address__", "db-1:9100", "__meta_x", "1"), nil),
		"nothing discovered":         New("node", final(), labels.EmptyLabels(), nil),
		"relabelling removed labels": New("node", labels.FromStrings("__address__", "a:1", "instance", "x"), final(), nil),
		"UTF-8 names":                New("größe", final("zürich.region", "東京"), final(), nil),
		"long value":                 New("node", final("z", strings.Repeat("y", 70_000)), final(), nil),
		"discovered is not UTF-8":    New("node", final(), labels.FromStrings("__meta_x", "\xfe"), nil),
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Encode(want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(labels.Equal)); diff != "" {
				t.Errorf("decoded target differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIDAndSourceFollowTheRightLabels(t *testing.T) {
	base := New("node", final(), labels.EmptyLabels(), nil)
	for name, c := range map[string]struct {
		other              *Target
		sameID, sameSource bool
	}{
		"same":               {New("node", final(), final(), nil), true, true},
		"another job":        {New("node2", final(), final(), nil), false, true},
		"a private label":    {New("node", final("__param_module", "x"), final(), nil), false, true},
		"a public label":     {New("node", final("zone", "a"), final(), nil), false, false},
		"discovered differs": {New("node", final(), final("__meta_x", "1"), nil), true, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.other.ID == base.ID; got != c.sameID {
				t.Errorf("same ID: %v, want %v", got, c.sameID)
			}
			if got := c.other.Source == base.Source; got != c.sameSource {
				t.Errorf("same Source: %v, want %v", got, c.sameSource)
			}
			if got, want := c.other.Shard(), stream.ShardOf(c.other.Source); got != want {
				t.Errorf("Shard() = %d, want %d", got, want)
			}
		})
	}
}

// The hashes name subjects and partitions, so another version of Millrace must find the same ones.
func TestHashesNeverChange(t *testing.T) {
	got := New("node", final("zone", "a", "__param_module", "m"), labels.EmptyLabels(), nil)
	const wantID, wantSource = 0x72a1ac4ce9928e5d, 0xb8e876f50310ddbf
	if got.ID != wantID || got.Source != wantSource {
		t.Errorf("ID, Source = %#x, %#x; want %#x, %#x", got.ID, got.Source, uint64(wantID), uint64(wantSource))
	}
}

func TestHashesTellWhereStringsEnd(t *testing.T) {
	a := New("j", labels.FromStrings("a", "bc"), labels.EmptyLabels(), nil)
	b := New("j", labels.FromStrings("ab", "c"), labels.EmptyLabels(), nil)
	if a.ID == b.ID || a.Source == b.Source {
		t.Errorf("{a=bc} and {ab=c} have the same hashes: %#x %#x", a.ID, a.Source)
	}
}

func TestNewLeavesOutTheConfigsParams(t *testing.T) {
	params := url.Values{"token": {"s3cret", "second"}, "module": {"http"}, "none": nil}
	ls := final("__param_token", "s3cret", "__param_module", "tcp", "__param_target", "t")
	got := New("probe", ls, ls, params)
	want := final("__param_module", "tcp", "__param_target", "t")
	if !labels.Equal(got.Labels, want) {
		t.Errorf("Labels = %s, want %s", got.Labels, want)
	}
	if !labels.Equal(got.Discovered, want) {
		t.Errorf("Discovered = %s, want %s", got.Discovered, want)
	}
	b, err := Encode(got)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "s3cret") {
		t.Errorf("the message holds the credential of params: %q", b)
	}
	if plain := New("probe", want, want, nil); plain.ID != got.ID {
		t.Error("the ID depends on params that are left out")
	}
}

func TestAbsentListsWhatRelabellingRemoved(t *testing.T) {
	for name, c := range map[string]struct {
		drop, want []string
	}{
		"nothing": {},
		"scheme":  {[]string{"__scheme__"}, []string{"__scheme__"}},
		"all":     {[]string{"job", "__metrics_path__", "__scheme__"}, []string{"job", "__scheme__", "__metrics_path__"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := New("node", labels.NewBuilder(final()).Del(c.drop...).Labels(), final(), nil)
			if diff := cmp.Diff(c.want, got.Absent); diff != "" {
				t.Errorf("Absent differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeRefusesWhatIsNotATarget(t *testing.T) {
	good, err := Encode(New("node", final(), final(), nil))
	if err != nil {
		t.Fatal(err)
	}
	body := func(v ...any) []byte {
		b, err := msgpack.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{version}, b...)
	}
	list := func(s ...string) []string { return s }
	for name, c := range map[string]struct {
		data []byte
		want error
		says string
	}{
		"empty":                   {nil, ErrMalformed, "empty"},
		"newer version":           {append([]byte{2}, good[1:]...), ErrVersion, "upgrade"},
		"version only":            {good[:1], ErrMalformed, "EOF"},
		"cut":                     {good[:len(good)-3], ErrMalformed, ""},
		"trailing bytes":          {append(good[:len(good):len(good)], 0), ErrMalformed, "follow the target"},
		"fields missing":          {body("job"), ErrMalformed, "1 fields"},
		"a nil message":           {[]byte{version, 0xc0}, ErrMalformed, "fields"},
		"odd label list":          {body("job", list("a"), list()), ErrMalformed, "1 names and values"},
		"labels out of order":     {body("job", list("b", "1", "a", "1"), list()), ErrMalformed, `"a" follows "b"`},
		"repeated label":          {body("job", list("a", "1", "a", "2"), list()), ErrMalformed, `"a" follows "a"`},
		"empty name":              {body("job", list("", "1"), list()), ErrMalformed, "follows"},
		"empty value":             {body("job", list("a", ""), list()), ErrMalformed, "no value"},
		"label not UTF-8":         {body("job", list("a", "\xff"), list()), ErrMalformed, "UTF-8"},
		"job not UTF-8":           {body("\xff", list(), list()), ErrMalformed, "UTF-8"},
		"numbers for text":        {body(1, list(), list()), ErrMalformed, "job"},
		"text of 4 GiB":           {[]byte{version, 0x93, 0xdb, 0xff, 0xff, 0xff, 0xff}, ErrMalformed, "bytes of text"},
		"label list of 4 GiB":     {[]byte{version, 0x93, 0xa1, 'j', 0xdd, 0xff, 0xff, 0xff, 0xfe}, ErrMalformed, "names and values"},
		"more than NATS can send": {append([]byte{version}, make([]byte, maxMessage)...), ErrMalformed, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode(c.data)
			if !errors.Is(err, c.want) {
				t.Fatalf("Decode() = %v, %v; want an error wrapping %q", got, err, c.want)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, t := range []*Target{
		New("node", final(), labels.EmptyLabels(), nil),
		New("node", final("__param_module", "x", "zone", "a"), final("__meta_x", "1"), nil),
		New("", labels.EmptyLabels(), labels.EmptyLabels(), nil),
	} {
		b, err := Encode(t)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{version, 0x93, 0xdb, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrVersion) && !errors.Is(err, ErrMalformed) {
				t.Errorf("error %q is of no kind", err)
			}
			return
		}
		again, err := Encode(got)
		if err != nil {
			t.Fatalf("encoding what was decoded: %v", err)
		}
		back, err := Decode(again)
		if err != nil {
			t.Fatalf("decoding again: %v", err)
		}
		if diff := cmp.Diff(got, back, cmp.Comparer(labels.Equal)); diff != "" {
			t.Errorf("decoded again it differs (-first +second):\n%s", diff)
		}
	})
}
