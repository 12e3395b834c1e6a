package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	composeFile = "../../docker-compose.yml"
	// patience is how long tests wait for what must come. Nothing is concluded from how long it takes.
	patience = 3 * time.Minute
	// commandTime bounds one command of Docker.
	commandTime = 5 * time.Minute
)

// stack is docker-compose.yml, as it is, running under a project name of its own.
type stack struct {
	t         *recorder
	project   string
	addresses map[string]string // see address
}

// needsDocker skips the test where containers are not asked for, which CI always does: there, a missing Docker is a failure.
func needsDocker(t *testing.T) {
	t.Helper()
	if os.Getenv("CI") != "true" && os.Getenv("MILLRACE_TEST_COMPOSE") != "1" {
		t.Skip("runs a fleet in containers; MILLRACE_TEST_COMPOSE=1 or CI=true asks for it, after .ci/images")
	}
}

// up starts the stack until the test ends.
func up(t *testing.T) *stack {
	t.Helper()
	needsDocker(t)
	s := &stack{t: &recorder{T: t}, project: fmt.Sprintf("millrace-test-%d", os.Getpid()), addresses: map[string]string{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the last warnings and errors:\n%s", ends(s.logs()))
		}
		s.down()
		s.t.repeat()
	})
	s.must("up", "-d", "--no-build")
	return s
}

// down removes everything that up has made. Docker's daemon at times counts an endpoint of a container that is gone, and then keeps the network until it
// is started again: that is logged, and the volumes go all the same.
func (s *stack) down() {
	const tries = 3
	var err error
	for range tries {
		if _, err = s.compose(context.Background(), "down", "-v", "-t", "5", "--remove-orphans"); err == nil {
			return
		}
	}
	if !strings.Contains(err.Error(), "has active endpoints") {
		s.t.Error(err)
		return
	}
	s.t.Logf("the network stays: %v", err)
	volumes, err := command(context.Background(), "docker", "volume", "ls", "-q", "--filter", "label=com.docker.compose.project="+s.project)
	if err == nil {
		_, err = command(context.Background(), "docker", append([]string{"volume", "rm"}, strings.Fields(volumes)...)...)
	}
	if err != nil {
		s.t.Error(err)
	}
}

// command runs one command of Docker.
func command(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	// Ports of Docker's choice, so that the stack can run beside another one.
	cmd.Env = append(os.Environ(), "PROMETHEUS_PORT=0", "RECEIVER_PORT=0", "GRAFANA_PORT=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// compose runs docker-compose, or the plugin of that name where the command is not there.
func (s *stack) compose(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"-f", composeFile, "-p", s.project}, args...)
	if _, err := exec.LookPath("docker-compose"); err == nil {
		return command(ctx, "docker-compose", args...)
	}
	return command(ctx, "docker", append([]string{"compose"}, args...)...)
}

func (s *stack) must(args ...string) string {
	s.t.Helper()
	out, err := s.compose(s.t.Context(), args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *stack) docker(args ...string) string {
	s.t.Helper()
	out, err := command(s.t.Context(), "docker", args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// scale runs n containers of a service.
func (s *stack) scale(service string, n int) {
	s.t.Helper()
	s.must("up", "-d", "--no-build", "--no-deps", "--no-recreate", "--scale", service+"="+strconv.Itoa(n), service)
}

// containers returns the IDs of a service's containers, those that have ended included.
func (s *stack) containers(service string) []string {
	s.t.Helper()
	return strings.Fields(s.docker("ps", "-aq", "--no-trunc",
		"--filter", "label=com.docker.compose.project="+s.project, "--filter", "label=com.docker.compose.service="+service))
}

// kill sends a signal to a container's process. SIGKILL ends it without a word; it is started again as the compose file says.
func (s *stack) kill(container, signal string) { s.docker("kill", "-s", signal, container) }

// start starts a container that has ended.
func (s *stack) start(container string) { s.docker("start", container) }

// pause stops all processes of a container until unpause.
func (s *stack) pause(container string) { s.docker("pause", container) }

func (s *stack) unpause(container string) { s.docker("unpause", container) }

// cut takes a container off the network, without its noticing anything but that nothing answers any more; heal brings it back under the name of its service.
func (s *stack) cut(container string) {
	s.docker("network", "disconnect", s.project+"_default", container)
}

func (s *stack) heal(container, service string) {
	s.docker("network", "connect", "--alias", service, s.project+"_default", container)
}

// logs returns the logs of all services; args may choose.
func (s *stack) logs(args ...string) string {
	out, err := s.compose(context.Background(), append([]string{"logs", "--no-color"}, args...)...)
	if err != nil {
		return err.Error()
	}
	return out
}

// address returns where a port of a service's container, numbered from 1, can be reached from here. It is asked for once: a container that is started again
// has another one.
func (s *stack) address(service string, index, port int) string {
	s.t.Helper()
	key := fmt.Sprintf("%s/%d/%d", service, index, port)
	if s.addresses[key] == "" {
		s.addresses[key] = strings.TrimSpace(s.must("port", "--index="+strconv.Itoa(index), service, strconv.Itoa(port)))
	}
	return s.addresses[key]
}

// eventually waits until check is content.
func (s *stack) eventually(what string, check func() error) {
	s.t.Helper()
	start := time.Now()
	for {
		err := check()
		if err == nil {
			s.t.Logf("%s: after %s", what, time.Since(start).Round(100*time.Millisecond))
			return
		}
		if time.Since(start) > patience {
			s.t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		select {
		case <-s.t.Context().Done():
			s.t.Fatal(s.t.Context().Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// healthy is content when a service has n containers and all are healthy.
func (s *stack) healthy(service string, n int) func() error {
	return func() error {
		ids := s.containers(service)
		if len(ids) != n {
			return fmt.Errorf("%s has %d containers, want %d", service, len(ids), n)
		}
		for _, id := range ids {
			if state := s.docker("inspect", "-f", "{{.State.Status}} {{with .State.Health}}{{.Status}}{{else}}healthy{{end}}", id); state != "running healthy" {
				return fmt.Errorf("a container of %s is %s", service, state)
			}
		}
		return nil
	}
}

func getJSON(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// sample is one of a series, as the Prometheus has it.
type sample struct {
	at    time.Time
	value float64
}

// UnmarshalJSON reads [seconds, "value"].
func (x *sample) UnmarshalJSON(data []byte) (err error) {
	var seconds float64
	var text string
	if err := json.Unmarshal(data, &[]any{&seconds, &text}); err != nil {
		return err
	}
	x.at = time.UnixMilli(int64(math.Round(seconds * 1000))).UTC()
	x.value, err = strconv.ParseFloat(text, 64)
	return err
}

// ranges asks the Prometheus for the samples of a range of an expression's series, by a label that tells them apart.
func (s *stack) ranges(expr, label string) (map[string][]sample, error) {
	s.t.Helper()
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  *sample  // of an instant
				Values []sample // of a range
			}
		}
	}
	address := s.address("prometheus", 1, 9090)
	if err := getJSON(s.t.Context(), "http://"+address+"/api/v1/query?query="+url.QueryEscape(expr), &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	values := map[string][]sample{}
	for _, r := range answer.Data.Result {
		if r.Value != nil {
			r.Values = []sample{*r.Value}
		}
		values[r.Metric[label]] = r.Values
	}
	return values, nil
}

// vector asks the Prometheus for an expression's values, by a label that tells them apart.
func (s *stack) vector(expr, label string) (map[string]float64, error) {
	s.t.Helper()
	samples, err := s.ranges(expr, label)
	values := map[string]float64{}
	for name, list := range samples {
		values[name] = list[0].value
	}
	return values, err
}

// are is content when an expression has these values and no others, by a label that tells them apart.
func (s *stack) are(expr, label string, want map[string]float64) func() error {
	return func() error {
		got, err := s.vector(expr, label)
		if err == nil && !maps.Equal(got, want) {
			err = fmt.Errorf("%s is %v, want %v", expr, got, want)
		}
		return err
	}
}

// query asks the Prometheus for the value of an expression that has one. Without any samples it is 0.
func (s *stack) query(expr string) (float64, error) {
	values, err := s.vector(expr, "")
	return values[""], err
}

// is is content when an expression has a value.
func (s *stack) is(expr string, want float64) func() error {
	return func() error {
		got, err := s.query(expr)
		if err == nil && got != want {
			err = fmt.Errorf("%s is %g, want %g", expr, got, want)
		}
		return err
	}
}
