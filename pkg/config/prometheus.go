package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"

	promconfig "github.com/prometheus/prometheus/config"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/redact"
)

// loadPrometheus has Prometheus parse the document without its millrace block, and refuses what an agent refuses.
func (d *document) loadPrometheus(logger *slog.Logger) (*promconfig.Config, Errors) {
	cfg, err := promconfig.Load(d.rest, logger)
	if err != nil {
		return nil, d.prometheusErrors(err)
	}
	const remedy = "remove it: Millrace collects and forwards as a Prometheus agent does; "
	var errs Errors
	if len(cfg.AlertingConfig.AlertmanagerConfigs) > 0 || len(cfg.AlertingConfig.AlertRelabelConfigs) > 0 {
		errs = append(errs, d.at("alerting", -1).error("is not allowed in agent mode",
			remedy+"alerts are sent by the Prometheus that evaluates rules"))
	}
	if len(cfg.RuleFiles) > 0 {
		errs = append(errs, d.at("rule_files", -1).error("is not allowed in agent mode",
			remedy+"evaluate rules where the samples are stored"))
	}
	if len(cfg.RemoteReadConfigs) > 0 {
		errs = append(errs, d.at("remote_read", -1).error("is not allowed in agent mode",
			remedy+"query where the samples are stored"))
	}
	return cfg, errs
}

var (
	linePattern      = regexp.MustCompile(`^\s*line ([0-9]+): (.*)$`)
	notFoundPattern  = regexp.MustCompile(`^field (.+) not found in type \S+$`)
	fieldTwice       = regexp.MustCompile(`^field (.+) already set in type \S+$`)
	keyTwice         = regexp.MustCompile(`^key (".*") already set in map$`)
	wrongTypePattern = regexp.MustCompile("(?s)^cannot unmarshal !!(\\w+)(?: `(.*)`)? into (.+)$")
	scrapeFileError  = regexp.MustCompile(`(?s)^("(?:[^"\\]|\\.)*"): (.*)$`)
	quotedPattern    = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
)

// prometheusErrors gives what Prometheus's parser says a file, a line, a key and a remedy.
func (d *document) prometheusErrors(err error) Errors {
	text := err.Error()
	list, isList := strings.CutPrefix(text, "yaml: unmarshal errors:\n")
	if isList {
		var errs Errors
		for line := range strings.SplitSeq(list, "\n") {
			e := &Error{File: d.file, Message: strings.TrimSpace(line), Remedy: docsRemedy("")}
			if m := linePattern.FindStringSubmatch(line); m != nil {
				e.Line, _ = strconv.Atoi(m[1])
				d.explainType(e, m[2])
			}
			errs = append(errs, e)
		}
		return errs
	}
	if strings.HasPrefix(text, "yaml: ") {
		return Errors{yamlError(d.file, d.rest, text)}
	}
	e := d.locate(text).error(redact.URLs(text), "")
	e.Remedy, e.cause = d.remedyFor(text, e.Key), err
	return Errors{e}
}

// explainType puts what the YAML decoder says about a key or value into words.
func (d *document) explainType(e *Error, text string) {
	if m := notFoundPattern.FindStringSubmatch(text); m != nil {
		e.Key, e.Message = d.keyAt(e.Line, m[1]), "unknown key"
		e.Remedy = d.unknownKeyRemedy(m[1], e.Key)
		return
	}
	if m := fieldTwice.FindStringSubmatch(text); m != nil {
		e.Key, e.Message, e.Remedy = d.keyAt(e.Line, m[1]), "is there twice", "keep one"
		return
	}
	if m := keyTwice.FindStringSubmatch(text); m != nil {
		name, err := strconv.Unquote(m[1])
		if err != nil {
			name = m[1]
		}
		e.Key, e.Message, e.Remedy = d.keyAt(e.Line, name), "is there twice", "keep one"
		return
	}
	e.Key, e.Message, e.Remedy = d.keyAt(e.Line, ""), redact.URLs(text), "correct the value"
	if m := wrongTypePattern.FindStringSubmatch(text); m != nil {
		have := map[string]string{"seq": "a list", "map": "keys and values"}[m[1]]
		if have == "" {
			have = strconv.Quote(redact.URLs(m[2]))
		}
		e.Message = "want " + describeGoType(m[3]) + ", have " + have
	}
	if section, _, _ := strings.Cut(e.Key, "["); section != "" {
		e.Remedy += "; " + docsRemedy(e.Key)
	}
}

// keyAt returns the path of the key on a line: of the one with that name, or of any where name is empty. Where there
// is none, it returns name.
func (d *document) keyAt(line int, name string) string {
	found := name
	if d.root == nil {
		return found
	}
	walk(d.root, "", func(path string, n *yaml.Node, isKey bool) {
		if n.Line == line && (isKey && n.Value == name || name == "" && path != "") {
			found = path
		}
	})
	return found
}

func (d *document) unknownKeyRemedy(name, path string) string {
	if d.isScrapeFile && !strings.Contains(path, ".") {
		return "a file of scrape_config_files holds scrape_configs: and nothing else"
	}
	if name == blockKey {
		return "the millrace block belongs at the top level of the file"
	}
	if near, ok := didYouMean(name, prometheusKeys()); ok && near != "did you mean "+name+":?" {
		return near
	} else if ok {
		return "the key exists, and not here: " + docsRemedy(path)
	}
	if strings.HasSuffix(name, "_sd_configs") {
		return "this binary has no service discovery of that name: correct the name, or use a binary built with it"
	}
	if where, ok := belongsUnder(name); ok {
		return where
	}
	return docsRemedy(path)
}

// describeGoType says what a Go type wants to be written as.
func describeGoType(name string) string {
	name = strings.TrimLeft(name, "*")
	switch {
	case strings.HasPrefix(name, "[]"):
		return "a list"
	case strings.HasPrefix(name, "map["), strings.HasSuffix(name, "plain"), strings.Contains(name, "struct {"):
		return "keys and values"
	case strings.HasPrefix(name, "int"):
		return "a whole number"
	case strings.HasPrefix(name, "uint"):
		return "a whole number, 0 or more"
	case strings.HasPrefix(name, "float"):
		return "a number"
	case name == "bool":
		return "true or false"
	case name == "string", strings.HasSuffix(name, ".Secret"), strings.HasSuffix(name, ".LabelValue"):
		return "text"
	}
	return name
}

// remedies are for what Prometheus says often. The first that fits counts.
var remedies = []struct{ says, remedy string }{
	{"found multiple scrape configs", "give each scrape config a job_name of its own"},
	{"found multiple remote write configs", "give each remote_write item a name of its own"},
	{"job_name is empty", "set job_name"},
	{"url for remote_write is empty", "set url"},
	{"empty or null", "fill in the empty item or remove it"},
	{"at most one of", "keep one of them"},
	{"is not compatible with", "keep one of them"},
	{"timeout greater than scrape interval", "lower scrape_timeout or raise scrape_interval"},
	{"duration", "write a duration such as 30s or 5m"},
	{"error parsing regexp", "correct the regular expression (RE2 syntax)"},
	{"reserved header", "remove the header: it is set for each request"},
	{"unknown anchor", "set the anchor before it is used, outside the millrace block"},
}

func (d *document) remedyFor(text, key string) string {
	for _, r := range remedies {
		if strings.Contains(text, r.says) {
			return r.remedy
		}
	}
	return docsRemedy(key)
}

// docsRemedy points to where Prometheus documents the section that a key is in.
func docsRemedy(key string) string {
	section := key
	if end := strings.IndexAny(key, "[."); end >= 0 {
		section = key[:end]
	}
	anchor := map[string]string{
		"scrape_configs": "scrape_config", "remote_write": "remote_write", "tracing": "tracing_config",
		"storage": "tsdb", "otlp": "otlp",
	}[section]
	if anchor == "" {
		anchor = "configuration-file"
	}
	return "see https://prometheus.io/docs/prometheus/latest/configuration/configuration/#" + anchor
}

// locate finds the place that a validation error without a line speaks of, by having Prometheus parse parts of the
// document: the section that alone gives the same error, then its first item that does, then the one value in it that
// the error quotes.
func (d *document) locate(text string) place {
	budget := 200_000 // nodes; enough for any real file, and too few for aliases that multiply
	global := d.expandOrNil(d.global, &budget)
	if global != nil && loadError("", nil, global) == text {
		return d.quoted(text, place{file: d.file, line: d.global.Line, key: "global"}, d.global)
	}
	for _, p := range allPairs(d.root) {
		section := d.expandOrNil(p.value, &budget)
		if section == nil || p.key.Value == "global" || loadError(p.key.Value, section, global) != text {
			continue
		}
		list := items(p.value)
		part := func(n int) *yaml.Node {
			cut := *section
			cut.Content = section.Content[:n]
			return &cut
		}
		at := sort.Search(len(list), func(i int) bool {
			return loadError(p.key.Value, part(i+1), global) == text
		})
		if at == len(list) {
			return d.quoted(text, d.at(p.key.Value, -1), p.value)
		}
		return d.quoted(text, d.at(p.key.Value, at), list[at])
	}
	return d.quoted(text, place{file: d.file}, d.root)
}

func (d *document) expandOrNil(n *yaml.Node, budget *int) *yaml.Node {
	if n == nil {
		return nil
	}
	expanded, ok := expand(n, budget, 0)
	if !ok {
		return nil
	}
	return expanded
}

// loadError returns what Prometheus says to a document of global and one section, or of global alone where key is
// empty.
func loadError(key string, section, global *yaml.Node) string {
	root := &yaml.Node{Kind: yaml.MappingNode}
	if global != nil {
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "global"}, global)
	}
	if key != "" {
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, section)
	}
	text, err := yaml.Marshal(root)
	if err != nil {
		return ""
	}
	if _, err = promconfig.Load(string(text), slog.New(slog.DiscardHandler)); err != nil {
		return err.Error()
	}
	return ""
}

// quoted narrows a place down to the one value below n that the error quotes; it stays where there is none or several.
func (d *document) quoted(text string, p place, n *yaml.Node) place {
	if n == nil {
		return p
	}
	for _, quote := range quotedPattern.FindAllString(text, -1) {
		value, err := strconv.Unquote(quote)
		if err != nil || value == "" {
			continue
		}
		var hits []place
		walk(n, p.key, func(path string, n *yaml.Node, isKey bool) {
			if !isKey && n.Value == value {
				hits = append(hits, place{file: d.file, line: n.Line, key: path})
			}
		})
		if len(hits) == 1 {
			return hits[0]
		}
	}
	return p
}

// scrapeConfigFileErrors gives what is wrong with one of the scrape_config_files that file and its line.
func (d *document) scrapeConfigFileErrors(err error) Errors {
	m := scrapeFileError.FindStringSubmatch(err.Error())
	if m == nil {
		return Errors{d.at("scrape_config_files", -1).error(err.Error(), "correct the pattern")}
	}
	file, unquoteErr := strconv.Unquote(m[1])
	if unquoteErr != nil {
		file = m[1]
	}
	failed := func(err error) Errors {
		var known *Error
		if errors.As(err, &known) {
			return Errors{known}
		}
		return Errors{{File: file, Message: err.Error(), Remedy: docsRemedy("scrape_configs"), cause: err}}
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return Errors{d.at("scrape_config_files", -1).error(
			fmt.Sprintf("a pattern matches %s, which is a directory", file), "narrow it to files, such as *.yml")}
	}
	content, readErr := readFile(file)
	if readErr != nil {
		return failed(readErr)
	}
	if err := checkText(file, content); err != nil {
		return failed(err)
	}
	part, parseErr := newDocument(file, string(content))
	if parseErr != nil {
		return failed(parseErr)
	}
	part.global, part.isScrapeFile = d.global, true
	return part.prometheusErrors(errors.New(m[2]))
}
