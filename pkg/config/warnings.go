package config

// withoutEffect are the keys of Prometheus's configuration that an agent, or Prometheus's server, acts on and Millrace
// does not.
var withoutEffect = []struct {
	keys []string
	why  string
}{
	{[]string{"global", "query_log_file"}, "without effect: Millrace answers no queries"},
	{[]string{"storage"}, "without effect: samples are held in the streams (millrace.streams)"},
	{[]string{"tracing"}, "without effect: Millrace does not trace itself"},
	{[]string{"runtime", "gogc"}, "without effect: set the environment variable GOGC"},
	{[]string{"runtime", "log_level"}, "without effect: use the flag --log.level"},
}

// warnings lists what of the document outside the millrace block has no effect.
func (d *document) warnings(c *Config) []string {
	var warnings []string
	root := place{file: d.file}
	for _, w := range withoutEffect {
		found := lookup(d.root, w.keys...)
		if found.key == nil || isNull(found.value) {
			continue
		}
		warnings = append(warnings, root.below(d.root, w.keys...).warning(w.why))
	}
	warnings = append(warnings, d.queueWarnings()...)
	if len(c.Endpoints) == 0 {
		p := root.below(d.root, "remote_write")
		p.key = "remote_write"
		warnings = append(warnings, p.warning("there is no endpoint: samples stay in the streams until their retention passes"))
	}
	if len(d.further) > 0 {
		p := place{file: d.file, line: d.further[0].Line}
		warnings = append(warnings, p.warning("what follows the file's first YAML document is not read"))
	}
	return warnings
}

// warnings lists what of the millrace block has no effect.
func (d *decoder) warnings(m *Millrace) []string {
	if m.NATS.IsEmbedded() {
		return nil
	}
	var warnings []string
	for _, path := range []string{"millrace.nats.embedded", "millrace.streams.sync"} {
		if d.isSet(path) {
			p := place{file: d.file, line: d.line(path), key: path}
			warnings = append(warnings, p.warning("without effect: nats.url is set, and the NATS servers' own configuration says it"))
		}
	}
	return warnings
}
