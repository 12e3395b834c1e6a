package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	promconfig "github.com/prometheus/prometheus/config"
)

// Config is one loaded configuration file. It is read-only: several goroutines may read it, nobody may write to it.
type Config struct {
	// Path is the file's path as given to Load.
	Path string
	// Prometheus is everything outside the millrace block as Prometheus parsed it, environment variables in external
	// labels replaced and relative file names made relative to the file's folder.
	Prometheus *promconfig.Config
	// ScrapeConfigs are those of the file, then those of its scrape_config_files.
	ScrapeConfigs []*promconfig.ScrapeConfig
	// Endpoints are the remote_write items, in the order of the file.
	Endpoints []Endpoint
	// Millrace is the millrace block with its defaults filled in.
	Millrace Millrace
	// Hash is the hex SHA-256 over the file and the scrape_config_files it resolved to, for comparing members. It does
	// not cover what the environment gives to external labels.
	Hash string

	warnings []string
}

// Override changes the decoded millrace block before its defaults are filled in and it is validated, as a command-line
// flag does.
type Override func(*Millrace)

// Load reads, parses and validates the file at path with its scrape_config_files. What is wrong is returned as an
// [*Error], or as [Errors] where there is more than one; [AllErrors] lists them. The logger gets what Prometheus's own
// parser logs (empty environment variables); nil discards it.
func Load(path string, logger *slog.Logger, overrides ...Override) (*Config, error) {
	content, err := readFile(path)
	if err != nil {
		return nil, err
	}
	c, doc, err := parse(path, content, logger, overrides...)
	if err != nil {
		return nil, err
	}
	if err := c.resolveScrapeConfigFiles(doc, content); err != nil {
		return nil, err
	}
	c.warnings = append(c.warnings, doc.warnings(c)...)
	return c, nil
}

// Defaults is [Load] of an empty file: for commands that are told all they need by flags. path stands in errors, in the place of the file's.
func Defaults(path string, logger *slog.Logger, overrides ...Override) (*Config, error) {
	c, _, err := parse(path, nil, logger, overrides...)
	return c, err
}

// Warnings returns one line for each part of the file that is understood and has no effect here, in the form
// "file:line: key: why".
func (c *Config) Warnings() []string { return slices.Clone(c.warnings) }

// readFile reads path and names what keeps it from being read.
func readFile(path string) ([]byte, error) {
	failed := func(err error, message, remedy string) error {
		return &Error{File: path, Message: message, Remedy: remedy, cause: err}
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failed(err, "no such file", "give the path of a YAML file")
	}
	if err == nil && info.IsDir() {
		return nil, failed(nil, "is a directory", "give the path of a YAML file in it")
	}
	var content []byte
	if err == nil {
		content, err = os.ReadFile(path)
	}
	if err != nil {
		var pathErr *fs.PathError
		reason := err
		if errors.As(err, &pathErr) {
			reason = pathErr.Err
		}
		return nil, failed(err, "cannot be read: "+reason.Error(), "check the file's owner and permissions")
	}
	return content, nil
}

// parse makes a Config of the file's content without reading any other file. The document is returned for what comes
// after: the lines of things.
func parse(path string, content []byte, logger *slog.Logger, overrides ...Override) (*Config, *document, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if err := checkText(path, content); err != nil {
		return nil, nil, err
	}
	doc, err := newDocument(path, string(content))
	if err != nil {
		return nil, nil, err
	}
	block, err := doc.cutMillrace()
	if err != nil {
		return nil, nil, err
	}
	errs := doc.checkTopLevel()

	dec := newDecoder(path, block)
	m := baseMillrace()
	dec.decode(&m)
	for _, override := range overrides {
		override(&m)
	}
	m.fillDefaults()
	if len(dec.errs) == 0 {
		dec.validate(&m)
	}
	errs = append(errs, dec.errs...)

	prom, promErrs := doc.loadPrometheus(logger)
	for _, e := range promErrs {
		// A misplaced top-level key is known already, and better.
		if !slices.ContainsFunc(errs, func(known *Error) bool { return known.Line == e.Line && e.Line > 0 }) {
			errs = append(errs, e)
		}
	}
	if err := errs.asError(); err != nil {
		return nil, nil, err
	}
	dir := filepath.Dir(path)
	prom.SetDirectory(dir)
	m.setDirectory(dir)
	endpoints, errs := doc.endpoints(prom)
	if len(errs) == 0 {
		dec.validateFreshFirst(&m.Writer.FreshFirst, endpoints)
		errs = append(errs, dec.errs...)
	}
	if err := errs.asError(); err != nil {
		return nil, nil, err
	}
	return &Config{
		Path:       path,
		Prometheus: prom,
		Endpoints:  endpoints,
		Millrace:   m,
		warnings:   dec.warnings(&m),
	}, doc, nil
}

// checkText refuses what is not UTF-8 text and names the line.
func checkText(path string, content []byte) error {
	if utf8.Valid(content) {
		return nil
	}
	remedy := "save the file as UTF-8"
	for _, mark := range []string{"\xff\xfe", "\xfe\xff"} {
		if strings.HasPrefix(string(content), mark) {
			remedy = "it looks like UTF-16: " + remedy
		}
	}
	line := 1
	for rest := content; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		if r == utf8.RuneError && size == 1 {
			break
		}
		if r == '\n' {
			line++
		}
		rest = rest[size:]
	}
	return &Error{File: path, Line: line, Message: "not UTF-8 text", Remedy: remedy}
}

// resolveScrapeConfigFiles fills in ScrapeConfigs and Hash.
func (c *Config) resolveScrapeConfigFiles(doc *document, content []byte) error {
	scrapeConfigs, err := c.Prometheus.GetScrapeConfigs()
	if err != nil {
		return doc.scrapeConfigFileErrors(err).asError()
	}
	c.ScrapeConfigs = scrapeConfigs

	// Each part is preceded by its length, so that content moved from one file to the next gives another hash.
	hash := sha256.New()
	add := func(part []byte) {
		hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		hash.Write(part)
	}
	add(content)
	for i, pattern := range c.Prometheus.ScrapeConfigFiles {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return doc.at("scrape_config_files", i).error(err.Error(), "correct the pattern")
		}
		if len(files) == 0 {
			c.warnings = append(c.warnings, doc.at("scrape_config_files", i).warning("no file matches "+pattern))
		}
		for _, file := range files {
			b, err := readFile(file)
			if err != nil {
				return err
			}
			add(b)
		}
	}
	c.Hash = hex.EncodeToString(hash.Sum(nil))
	return nil
}
