package main

import (
	"context"
	"embed"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/millrace/millrace/pkg/status"
)

//go:embed completions
var completionScripts embed.FS

var shells = []string{"bash", "zsh", "fish"}

// completionCommands are `millrace completion`, which prints a script for a shell, and the command that these scripts ask.
func completionCommands(app *kingpin.Application) []subcommand {
	script := app.Command("completion", "Print a script that completes this command line in a shell.")
	shell := script.Arg("shell", "The shell: "+strings.Join(shells, ", ")+".").Required().Enum(shells...)
	ask := app.Command("complete", "Print what the last of some words may become.").Hidden()
	words := ask.Arg("words", "What stands behind the command's name.").Strings()
	return []subcommand{
		{script, func(_ context.Context, stdout, _ io.Writer) error {
			text, err := completionScripts.ReadFile("completions/millrace." + *shell)
			if err == nil {
				_, err = stdout.Write(text)
			}
			return err
		}},
		{ask, func(ctx context.Context, stdout, _ io.Writer) error {
			c := completer{app: app.Model(), ask: func(words []string) *status.Document { return askedForCompletion(ctx, words) }}
			for _, s := range c.complete(*words) {
				if _, err := fmt.Fprintln(stdout, s); err != nil {
					return err
				}
			}
			return nil
		}},
	}
}

// What a completer answers where a shell completes by itself.
const (
	files = ":files"
	dirs  = ":dirs"
)

// completer completes command lines.
type completer struct {
	app *kingpin.ApplicationModel
	// ask returns how the fleet stands that a command line asks; nil, where that is not to be known at once.
	ask func(words []string) *status.Document
}

// complete returns what the last word may become: whole words, or how a shell finds them itself.
func (c *completer) complete(words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	before, last := words[:len(words)-1], words[len(words)-1]
	commands, flags, args := c.app.Commands, slices.Clone(c.app.Flags), []*kingpin.ArgModel(nil)
	var open *kingpin.FlagModel // whose value comes next
	for _, w := range before {
		switch {
		case open != nil:
			open = nil
		case strings.HasPrefix(w, "-"):
			if name, _, given := strings.Cut(strings.TrimLeft(w, "-"), "="); !given {
				if f := flagNamed(flags, name); f != nil && !f.IsBoolFlag() {
					open = f
				}
			}
		default:
			if i := slices.IndexFunc(commands, func(m *kingpin.CmdModel) bool { return m.Name == w }); i >= 0 {
				flags, args, commands = append(flags, commands[i].Flags...), commands[i].Args, commands[i].Commands
			}
		}
	}
	name, value, given := strings.Cut(last, "=")
	switch {
	case open != nil:
		return c.values(open.Name, "", last, words)
	case given && strings.HasPrefix(last, "--"):
		return c.values(name[2:], name+"=", value, words)
	case strings.HasPrefix(last, "-"):
		return withPrefix(flagWords(flags), last)
	}
	var list []string
	for _, m := range commands {
		if !m.Hidden {
			list = append(list, m.Name)
		}
	}
	for _, a := range args {
		switch a.Name {
		case "shell":
			list = append(list, shells...)
		case "file":
			return []string{files}
		}
	}
	return withPrefix(list, last)
}

func flagNamed(flags []*kingpin.FlagModel, name string) *kingpin.FlagModel {
	if i := slices.IndexFunc(flags, func(f *kingpin.FlagModel) bool { return f.Name == name || f.Short != 0 && string(f.Short) == name }); i >= 0 {
		return flags[i]
	}
	return nil
}

// flagWords are the flags as words: those that take a value end with =.
func flagWords(flags []*kingpin.FlagModel) (list []string) {
	for _, f := range flags {
		switch {
		case f.Hidden:
		case f.IsBoolFlag():
			list = append(list, "--"+f.Name)
		default:
			list = append(list, "--"+f.Name+"=")
		}
	}
	slices.Sort(list)
	return list
}

// flagValues are the values of flags that have only some.
var flagValues = map[string][]string{
	"services": allServices, "health": {"up", "down", "unknown"}, "log.level": {"debug", "info", "warn", "error"}, "log.format": {"logfmt", "json"},
	"interval": {"1s", "2s", "5s", "10s"},
}

// values returns the values that a flag may have, each behind lead.
func (c *completer) values(flag, lead, value string, words []string) []string {
	var list []string
	switch {
	case flag == "storage.path":
		return []string{dirs}
	case strings.HasSuffix(flag, "file"), flag == "nats.creds":
		return []string{files}
	case flag == "services": // a list
		if i := strings.LastIndexByte(value, ','); i >= 0 {
			have := strings.Split(value[:i], ",")
			lead, value = lead+value[:i+1], value[i+1:]
			list = slices.DeleteFunc(slices.Clone(allServices), func(s string) bool { return slices.Contains(have, s) })
			break
		}
		list = flagValues[flag]
	case flag == "endpoint", flag == "name":
		list = names(c.ask(words), flag)
	default:
		list = flagValues[flag]
	}
	list = withPrefix(list, value)
	for i := range list {
		list[i] = lead + list[i]
	}
	return list
}

// names are those of endpoints, or of replays.
func names(d *status.Document, flag string) []string {
	found := map[string]bool{}
	if d == nil {
		return nil
	}
	if flag == "name" {
		for i := range d.Replays {
			found[d.Replays[i].Name] = true
		}
	} else {
		for i := range d.Endpoints {
			found[d.Endpoints[i].Name] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// withPrefix returns those that begin with a prefix.
func withPrefix(list []string, prefix string) (out []string) {
	for _, s := range list {
		if strings.HasPrefix(s, prefix) {
			out = append(out, s)
		}
	}
	return out
}

// completionTime is how long it may take to ask for names: somebody waits at a prompt.
const completionTime = time.Second

// askedForCompletion asks the Millrace that a command line names, or the one on this machine.
func askedForCompletion(ctx context.Context, words []string) *status.Document {
	at := place{server: defaultServer}
	for i, w := range words {
		name, value, given := strings.Cut(w, "=")
		if !given && i+1 < len(words) {
			value = words[i+1]
		}
		switch name {
		case "--web.url":
			at.server = value
		case "--http.config.file":
			at.httpConfig = value
		case "--nats.url", "--storage.path":
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	asker := statusAsker{place: &at}
	defer asker.close()
	body, err := asker.ask(ctx)
	if err != nil {
		return nil // which is said where the command runs
	}
	d, err := readStatus(body)
	if err != nil {
		return nil
	}
	return d
}
