package config

import (
	"errors"
	"os"
	"testing"

	"gopkg.in/yaml.v3"
)

// FuzzLoad feeds any bytes to the part of Load that reads no other file: it never panics, every error is an *Error with
// a file and a remedy, and what loads can be shown.
func FuzzLoad(f *testing.F) {
	for _, path := range []string{"testdata/agent.yml", "testdata/millrace.yml", "testdata/scrape.d/b.yml"} {
		content, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	for _, text := range []string{
		"", "---\n...\n---\nmillrace: {}\n", "millrace: &a {nats: *a}\n", "millrace: &a {<<: *a}\n", "? millrace\n: {}\n",
		"a: &a [x]\nb: &b [*a, *a]\nmillrace: {nats: {prefix: *b}}\n", "*a : b\n", "global: {scrape_interval: 5x}\nremote_write: [~]\n",
		"millrace:\r  streams: {sync: 2s}\u2028global: {}\u0085", "\ufeff{millrace: {}}", "remote_write: [{url: 'http://a:b@c/?p=d'}]",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		c, doc, err := parse("c.yml", content, nil)
		if err != nil {
			all := AllErrors(err)
			if len(all) == 0 {
				t.Fatalf("%T %v is no *Error", err, err)
			}
			for _, e := range all {
				if e.File == "" || e.Message == "" || e.Remedy == "" || e.Line < 0 {
					t.Errorf("error lacks something: %+v", e)
				}
			}
			if errors.Unwrap(all[0]) == all[0] {
				t.Error("an error wraps itself")
			}
			return
		}
		c.warnings = append(c.warnings, doc.warnings(c)...)
		names := map[string]bool{}
		for _, e := range c.Endpoints {
			if names[e.Name] || !tokenPattern.MatchString(e.Name) {
				t.Errorf("endpoint name %q is no token or there twice", e.Name)
			}
			names[e.Name] = true
		}
		var back map[string]any
		if err := yaml.Unmarshal([]byte(c.Redacted()), &back); err != nil {
			t.Errorf("what is shown is no YAML: %v\n%s", err, c.Redacted())
		}
	})
}
