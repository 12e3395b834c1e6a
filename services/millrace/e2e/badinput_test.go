package e2e_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const smallConfig = `
scrape_configs:
- job_name: a
  static_configs: [{targets: ["127.0.0.1:1"]}]
`

// runToEnd runs `millrace run` in a folder to its end, which has to come by itself, and returns its log and exit code.
func runToEnd(t *testing.T, dir, config string, args ...string) (log string, code int) {
	t.Helper()
	writeFile(t, filepath.Join(dir, "millrace.yml"), config)
	args = append([]string{
		"run", "--config.file=" + filepath.Join(dir, "millrace.yml"), "--storage.path=" + filepath.Join(dir, "data"),
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", freePort(t)),
	}, args...)
	_, log, code = runMillrace(t, args...)
	return log, code
}

// says fails the test unless a text has all the words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not said in:\n%s", w, tail(text, 12))
		}
	}
}

func TestBadConfigIsRefusedWithItsPlaceAndARemedy(t *testing.T) {
	for _, tc := range []struct {
		name, config string
		says         []string
	}{
		{"broken YAML", "scrape_configs:\n- job_name: a\n  static_configs: [{targets: [\"a:1\"}]\n", []string{"millrace.yml:3"}},
		{"a tab", "scrape_configs:\n\t- job_name: a\n", []string{"millrace.yml:2"}},
		{"unknown key at the top", smallConfig + "scrape_confgs: []\n", []string{"millrace.yml:5", "scrape_confgs", "scrape_configs"}},
		{"unknown key in a scrape config", "scrape_configs:\n- job_name: a\n  scrape_intervall: 5s\n", []string{"millrace.yml:3", "scrape_intervall"}},
		{"unknown key in the millrace block", smallConfig + "millrace:\n  streams:\n    partition: 3\n", []string{"millrace.yml:7", "partition", "partitions"}},
		{"key of the wrong block", smallConfig + "partitions: 3\n", []string{"millrace.yml:5", "partitions", "millrace.streams"}},
		{"wrong kind of value", smallConfig + "millrace:\n  streams: {partitions: many}\n", []string{"millrace.yml:6", "millrace.streams.partitions", "many"}},
		{
			"two endpoints of one name", "remote_write:\n- {name: a, url: \"http://a/w\"}\n- {name: a, url: \"http://b/w\"}\n",
			[]string{"millrace.yml:3", `"a"`, "name"},
		},
		{"an endpoint without URL", "remote_write:\n- {name: a}\n", []string{"millrace.yml:2", "url"}},
		{"a file that is not there", "remote_write:\n- url: http://a/w\n  tls_config: {ca_file: nowhere.pem}\n", []string{"millrace.yml", "nowhere.pem"}},
		{"not UTF-8", "scrape_configs: []\n# \xff\n", []string{"millrace.yml:2", "UTF-8"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			log, code := runToEnd(t, dir, tc.config)
			if code != 2 {
				t.Errorf("run: exit code %d, want 2", code)
			}
			says(t, log, tc.says...)
			stdout, stderr, code := runMillrace(t, "check", "config", filepath.Join(dir, "millrace.yml"))
			if code != 2 || strings.Contains(stdout, "ok") {
				t.Errorf("check config: exit code %d, want 2: %s", code, stdout)
			}
			says(t, stderr, tc.says...)
		})
	}
}

func TestMissingConfigFileIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nowhere.yml")
	for _, args := range [][]string{{"run", "--config.file=" + path}, {"check", "config", path}} {
		_, stderr, code := runMillrace(t, args...)
		if code != 2 {
			t.Errorf("%s: exit code %d, want 2", args[0], code)
		}
		says(t, stderr, path, "no such file", "give the path")
	}
}

func TestWrongFlagsAreRefused(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "millrace.yml")
	writeFile(t, config, smallConfig)
	for _, tc := range []struct {
		args []string
		says []string
	}{
		{[]string{"walk"}, []string{"walk", "--help"}},
		{[]string{"run", "--confg.file=x"}, []string{"--confg.file", "--help"}},
		{[]string{"run", "--log.level=loud"}, []string{"loud", "--help"}},
		{[]string{"run", "--log.format=xml"}, []string{"xml", "--help"}},
		{[]string{"run", "--services=scraper,reader", "--config.file=" + config}, []string{`"reader"`, "discovery, scraper, ingest, relabel, writer"}},
		{[]string{"run", "--services=", "--config.file=" + config}, []string{"--services", "discovery"}},
		{[]string{"run", "--web.listen-address=here", "--config.file=" + config, "--storage.path=" + dir}, []string{"here", "--web.listen-address"}},
		{[]string{"run", "--web.config.file=nowhere.yml", "--config.file=" + config, "--storage.path=" + dir}, []string{"nowhere.yml"}},
		{[]string{"run", "extra"}, []string{"extra"}},
		{[]string{"check", "config"}, []string{"file"}},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			_, stderr, code := runMillrace(t, tc.args...)
			if code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			says(t, stderr, tc.says...)
		})
	}
}

func TestWebAddressInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	log, code := runToEnd(t, dir, smallConfig, "--web.listen-address="+l.Addr().String())
	if code != 1 && code != 2 {
		t.Errorf("exit code %d", code)
	}
	says(t, log, l.Addr().String(), "in use", "--web.listen-address")
}

// waitingFor polls /-/ready until it answers that the process waits for something, and returns what it says.
func waitingFor(t *testing.T, p *proc, what string) {
	t.Helper()
	eventually(t, 30*time.Second, "/-/ready names "+what, func() error {
		res, err := http.Get(p.URL + "/-/ready")
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("status %d", res.StatusCode)
		}
		if _, body := p.Get("/-/ready"); !strings.Contains(string(body), what) {
			return fmt.Errorf("it says %q", body)
		}
		return nil
	})
}

func TestUnreachableNATSIsWaitedFor(t *testing.T) {
	url := "nats://user:secret@" + refusingAddress(t)
	p := startMillrace(t, smallConfig, withArgs("--nats.url="+url), withoutWaiting())
	waitingFor(t, p, "NATS at")
	eventually(t, 30*time.Second, "a second try", func() error {
		if n := strings.Count(p.Logs(), "Cannot reach NATS, trying again"); n < 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	says(t, p.Logs(), "refused", "next_try")
	for _, path := range []string{"/", "/process", "/-/ready", "/api/v1/status/config", "/api/v1/targets"} {
		if _, body := p.Get(path); strings.Contains(string(body), "secret@") {
			t.Errorf("%s tells the password", path)
		}
	}
	if strings.Contains(p.Logs(), "secret@") {
		t.Error("the log tells the password")
	}
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// oldNATS plays a NATS server of an old version, as far as a client's connect needs it.
func oldNATS(t *testing.T, version string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "INFO {\"server_id\":\"OLD\",\"server_name\":\"old\",\"version\":%q,\"proto\":1,\"headers\":true,\"max_payload\":1048576}\r\n", version)
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					if strings.HasPrefix(lines.Text(), "PING") {
						fmt.Fprint(c, "PONG\r\n")
					}
				}
			}()
		}
	}()
	return "nats://" + l.Addr().String()
}

func TestOldNATSServerIsRefused(t *testing.T) {
	log, code := runToEnd(t, t.TempDir(), smallConfig, "--nats.url="+oldNATS(t, "2.10.29"))
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, log, "2.10.29", "2.11", "too old")
}

func TestOtherPartitionCountIsRefused(t *testing.T) {
	dir := t.TempDir()
	p := startMillrace(t, smallConfig, inDir(dir))
	if code := p.Stop(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	log, code := runToEnd(t, dir, smallConfig+"millrace:\n  streams: {partitions: 7}\n")
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	says(t, log, "partitions", `"2"`, `"7"`, "millrace.streams.partitions", "choose another")
	startMillrace(t, smallConfig, inDir(dir)) // nothing was changed
}
