package e2e_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

// repository is the top of the repository, seen from here.
const repository = "../../.."

// readme is what a README holds, as far as tests look at it.
type readme struct {
	path    string // from the top of the repository
	blocks  []block
	links   []link
	anchors map[string]bool // of its headings, as GitHub makes them
	tables  []table
}

// block is a fenced piece of code.
type block struct {
	page     *readme
	line     int
	language string
	text     string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page.path, b.line) }

// link is what stands in the round brackets of one.
type link struct {
	line int
	to   string
}

// table has the first cell of each row, and the heading that it stands below.
type table struct {
	line    int
	heading string
	first   []string
}

// readmes returns all READMEs of the repository.
func readmes(t testing.TB) []*readme {
	t.Helper()
	var list []*readme
	err := filepath.WalkDir(repository, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := e.Name(); e.IsDir() && path != repository && (strings.HasPrefix(name, ".") || path == filepath.Join(repository, "data")) {
			return fs.SkipDir
		}
		if e.Name() == "README.md" {
			list = append(list, readREADME(t, path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 10 {
		t.Fatalf("found %d READMEs only", len(list))
	}
	return list
}

var (
	linkPattern    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	headingPattern = regexp.MustCompile(`^#+ +(.*?) *$`)
	codePattern    = regexp.MustCompile("`[^`]*`")
)

func readREADME(t testing.TB, path string) *readme {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name, err := filepath.Rel(repository, path)
	if err != nil {
		t.Fatal(err)
	}
	r := &readme{path: name, anchors: map[string]bool{}}
	heading, rows := "", -1 // of the table that the line is in; -1 outside
	var open *block
	for i, line := range strings.Split(string(text), "\n") {
		fence, fenced := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case open != nil && fenced:
			r.blocks, open = append(r.blocks, *open), nil
			continue
		case open != nil:
			open.text += line + "\n"
			continue
		case fenced:
			open = &block{page: r, line: i + 2, language: fence}
			continue
		}
		if m := headingPattern.FindStringSubmatch(line); m != nil {
			heading = m[1]
			r.anchors[r.freeAnchor(anchor(heading))] = true
		}
		for _, m := range linkPattern.FindAllStringSubmatch(codePattern.ReplaceAllString(line, ""), -1) {
			r.links = append(r.links, link{i + 1, m[1]})
		}
		if !strings.HasPrefix(line, "|") {
			rows = -1
			continue
		}
		if rows++; rows == 0 {
			r.tables = append(r.tables, table{line: i + 1, heading: heading})
		}
		last := &r.tables[len(r.tables)-1]
		last.first = append(last.first, strings.TrimSpace(strings.Split(line, "|")[1]))
	}
	if open != nil {
		t.Errorf("%s: the block of line %d does not end", r.path, open.line)
	}
	return r
}

// anchor makes of a heading what GitHub makes of it: small letters, digits, hyphens for spaces.
func anchor(heading string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == ' ':
			return '-'
		case c == '-', c == '_', unicode.IsLetter(c), unicode.IsDigit(c):
			return unicode.ToLower(c)
		}
		return -1
	}, heading)
}

// freeAnchor returns the anchor of a heading, which is numbered from its second use on.
func (r *readme) freeAnchor(a string) string {
	free := a
	for n := 1; r.anchors[free]; n++ {
		free = fmt.Sprintf("%s-%d", a, n)
	}
	return free
}

// TestLinksOfREADMEs follows every relative link, and its anchor where it has one.
func TestLinksOfREADMEs(t *testing.T) {
	pages := map[string]*readme{}
	for _, r := range readmes(t) {
		pages[r.path] = r
	}
	for _, r := range pages {
		for _, l := range r.links {
			if strings.Contains(l.to, "://") || strings.HasPrefix(l.to, "mailto:") {
				continue
			}
			path, fragment, _ := strings.Cut(l.to, "#")
			target := r.path
			if path != "" {
				target = filepath.Join(filepath.Dir(r.path), path)
			}
			info, err := os.Stat(filepath.Join(repository, target))
			if err != nil {
				t.Errorf("%s:%d: the link %s goes nowhere: %v", r.path, l.line, l.to, err)
				continue
			}
			if info.IsDir() {
				target = filepath.Join(target, "README.md")
			}
			if page := pages[target]; fragment != "" && (page == nil || !page.anchors[fragment]) {
				t.Errorf("%s:%d: %s has no heading for the link %s", r.path, l.line, target, l.to)
			}
		}
	}
}

// flagPattern is a flag as READMEs name it; helpPattern is one in the help, and commandPattern the line that its command begins with.
var (
	flagPattern    = regexp.MustCompile(`--[a-z][a-z0-9.-]*[a-z0-9]`)
	helpPattern    = regexp.MustCompile(`(?m)^ {2,6}(?:-\w, )?--(\[no-\])?([a-z][a-z0-9.-]*[a-z0-9])`)
	commandPattern = regexp.MustCompile(`(?m)^([a-z][a-z -]*?)(?: \[?<.*)?$`)
)

// help returns the flags of each command as `millrace --help-long` shows them, those of all commands included.
func help(t testing.TB) map[string]map[string]bool {
	t.Helper()
	out, stderr, code := runMillrace(t, "--help-long")
	if code != 0 {
		t.Fatalf("--help-long ends with %d: %s", code, stderr)
	}
	general, rest, found := strings.Cut(out, "\nCommands:\n")
	if !found {
		t.Fatalf("--help-long lists no commands:\n%s", out)
	}
	rest, _, _ = strings.Cut(rest, "\nusage: ") // the short help follows
	commands := map[string]map[string]bool{}
	name := ""
	for line := range strings.Lines(rest) {
		if m := commandPattern.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			name = m[1]
			commands[name] = map[string]bool{}
			for _, g := range helpPattern.FindAllStringSubmatch(general, -1) {
				commands[name][g[2]] = true
			}
		}
		if m := helpPattern.FindStringSubmatch(line); m != nil {
			commands[name][m[2]] = true
		}
	}
	if !commands["run"]["config.file"] || !commands["check ready"]["url"] || !commands["run"]["log.level"] {
		t.Fatalf("--help-long was not understood: %v\n%s", commands, out)
	}
	return commands
}

// TestFlagsOfREADMEs compares the flags that READMEs name with those that there are. Tables whose first column is "flag" are of the command that their
// heading names, or of any; lines of sh blocks are of the command that they run.
func TestFlagsOfREADMEs(t *testing.T) {
	commands := help(t)
	any := map[string]bool{}
	for _, flags := range commands {
		for f := range flags {
			any[f] = true
		}
	}
	for _, r := range readmes(t) {
		for _, b := range r.blocks {
			if b.language == "sh" {
				checkCommandLines(t, b, commands)
			}
		}
		if r.path != "services/millrace/README.md" {
			continue
		}
		for _, tab := range r.tables {
			if tab.first[0] != "flag" {
				continue
			}
			flags := any
			for name, own := range commands {
				if strings.EqualFold(tab.heading, name) || strings.Contains(tab.heading, "`millrace "+name+"`") {
					flags = own
				}
			}
			for _, f := range flagPattern.FindAllString(strings.Join(tab.first, " "), -1) {
				if f = f[2:]; !flags[f] && f != "nats" { // --nats.* are many
					t.Errorf("%s:%d: the table below %q has the flag --%s, which there is not", r.path, tab.line, tab.heading, f)
				}
			}
		}
		text, err := os.ReadFile(filepath.Join(repository, r.path))
		if err != nil {
			t.Fatal(err)
		}
		named := map[string]bool{}
		for _, f := range flagPattern.FindAllString(string(text), -1) {
			named[f[2:]] = true
		}
		for name, flags := range commands {
			for f := range flags {
				if !named[f] && f != "help" {
					t.Errorf("%s does not name --%s of millrace %s", r.path, f, name)
				}
			}
		}
	}
}

// checkCommandLines looks at the lines of a block that run millrace.
func checkCommandLines(t *testing.T, b block, commands map[string]map[string]bool) {
	t.Helper()
	text := strings.ReplaceAll(b.text, "\\\n", " ")
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, " #")
		_, arguments, found := strings.Cut(" "+strings.TrimSpace(line), "millrace ")
		if before := strings.TrimSuffix(line, "millrace "+arguments); !found || !strings.HasSuffix(" "+before, " ") && !strings.HasSuffix(before, "/") {
			continue
		}
		words := strings.Fields(arguments)
		flags := commands[words[0]]
		if flags == nil && len(words) > 1 {
			flags = commands[words[0]+" "+words[1]]
		}
		if flags == nil {
			continue // an image or a chart of this name
		}
		for _, f := range flagPattern.FindAllString(arguments, -1) {
			if !flags[f[2:]] && f != "--help" {
				t.Errorf("%s: %s is no flag of: %s", b, f, strings.TrimSpace(line))
			}
		}
	}
}
