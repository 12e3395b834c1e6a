package main

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMain makes the test the command where a script of a test runs it as that.
func TestMain(m *testing.M) {
	if os.Getenv("MILLRACE_TEST_COMMAND") != "" {
		os.Exit(command(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestCommandLinesAreCompleted(t *testing.T) {
	url := serveAnswer(t, http.StatusOK, `{"status":"success","data":{"version":1,"endpoints":[{"name":"prod"},{"name":"tenant-a"}],"replays":[{"name":"incident"}]}}`)
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"st"}, "status"},
		{[]string{"t"}, "top targets tail"},
		{[]string{"check", ""}, "config ready healthy"},
		{[]string{"check", "config", ""}, ":files"},
		{[]string{"relabel", "te"}, "test"},
		{[]string{"completion", ""}, "bash zsh fish"},
		{[]string{"completion", "z"}, "zsh"},
		{[]string{"top", "--int"}, "--interval="},
		{[]string{"tail", "--js"}, "--json"},
		{[]string{"run", "--services="}, "--services=discovery --services=scraper --services=ingest --services=relabel --services=writer"},
		{[]string{"run", "--services=scraper,writer,"}, "--services=scraper,writer,discovery --services=scraper,writer,ingest --services=scraper,writer,relabel"},
		{[]string{"run", "--services", "rel"}, "relabel"},
		{[]string{"run", "--config.file", "x.yml", "--log.level=w"}, "--log.level=warn"},
		{[]string{"run", "--config.file="}, ":files"},
		{[]string{"run", "--storage.path", ""}, ":dirs"},
		{[]string{"tail", "--web.url=" + url, "--endpoint="}, "--endpoint=prod --endpoint=tenant-a"},
		{[]string{"replay", "--web.url", url, "--name", "inc"}, "incident"},
		{[]string{"replay", "--nats.url=nats://n1", "--name="}, ""},
		{[]string{"nonsense", "--nothing="}, ""},
	} {
		stdout, stderr, code := runCommandLine(t, append([]string{"complete", "--"}, c.words...)...)
		if got := strings.Join(strings.Fields(stdout), " "); code != 0 || stderr != "" || got != c.want {
			t.Errorf("%q: %q, want %q (%d %s)", c.words, got, c.want, code, stderr)
		}
	}
	if stdout, _, _ := runCommandLine(t, "complete", "--", ""); slices.Contains(strings.Fields(stdout), "complete") {
		t.Error("the hidden command is offered")
	}
}

// TestBashCompletes has a real bash complete words with the script, as it does at a prompt.
func TestBashCompletes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash")
	}
	dir := t.TempDir()
	script, _, code := runCommandLine(t, "completion", "bash")
	if code != 0 || script == "" {
		t.Fatalf("no script: %d", code)
	}
	// The command that the script asks is this test, see TestMain.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"millrace": "#!/bin/sh\nMILLRACE_TEST_COMMAND=1 exec " + self + " \"$@\"\n", "a-file.yml": "", "script": script} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ words, want string }{
		{"millrace sta", "status"},
		{"millrace run --services = scr", "scraper"},
		{"millrace run --services = scraper,wri", "scraper,writer"},
		{"millrace run --log.format =", "logfmt json"},
		{"millrace top --web.u", "--web.url="},
		{"millrace top --web.url = http : //localhost:1 --inter", "--interval="},
		{"millrace run --config.file = a-f", "a-file.yml"},
		{"millrace check config a-", "a-file.yml"},
	} {
		words := strings.Fields(c.words)
		cmd := exec.Command(bash, "--norc", "-c", `source ./script; compopt() { :; }; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _millrace; echo "${COMPREPLY[*]}"`)
		cmd.Args = append(append(cmd.Args, "bash"), words...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != c.want {
			t.Errorf("%q: %q, want %q (%v)", c.words, got, c.want, err)
		}
	}
}
