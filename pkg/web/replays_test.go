package web

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestReplaysAreStartedShownAndStopped(t *testing.T) {
	conn := streamtest.New(t, 1)
	if _, err := conn.Publish(t.Context(), &nats.Msg{Subject: conn.Frames(0), Data: []byte("x")}, nil); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, func(c *Config) {
		c.Replays = &replay.Manager{Conn: conn, Partitions: 1, Endpoints: func() []string { return []string{"prod"} }}
	})
	ask := func(method, path, body string, headers ...string) (int, string, json.RawMessage) {
		t.Helper()
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		var answer struct {
			Status, ErrorType, Error string
			Data                     json.RawMessage
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			return w.Code, w.Body.String(), nil
		}
		return w.Code, answer.ErrorType + " " + answer.Error, answer.Data
	}
	const path = "/api/v1/replays"
	state := func(method, path, body, want string) {
		t.Helper()
		code, text, data := ask(method, path, body)
		var st replay.Status
		if err := json.Unmarshal(data, &st); code != http.StatusOK || err != nil || st.State != want || st.Name != "x" || st.AllMessages != 1 {
			t.Errorf("%s %s: %d %s %s, %v; want %s", method, path, code, text, data, err, want)
		}
	}
	if code, _, data := ask("GET", path, ""); code != 200 || string(data) != "[]" {
		t.Errorf("no replays are listed as %d %s", code, data)
	}
	for _, c := range []struct {
		method, path, body string
		code               int
		text               string
	}{
		{"POST", path, `{"name":"x","from":"yesterday","endpoint":"prod"}`, 400, `bad_data from: "yesterday" is no time; write a time such as`},
		{"POST", path, `{"name":"x","from":"-1h","endpoint":"prud"}`, 400, `bad_data endpoint: there is no endpoint "prud"; choose from prod`},
		{"POST", path, `{"name":"x","form":"-1h"}`, 400, `unknown field "form"`},
		{"POST", path, `[]`, 400, "bad_data reading the request"},
		{"POST", path, `{"name":"` + strings.Repeat("x", maxReplayBytes) + `"}`, 400, "too large"},
		{"GET", path + "/x", "", 404, "not_found"},
		{"DELETE", path + "/x", "", 404, "not_found"},
		{"PUT", path + "/x", "", 405, ""},
	} {
		if code, text, _ := ask(c.method, c.path, c.body); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s %s %.80s: %d %s; want %d %s", c.method, c.path, c.body, code, text, c.code, c.text)
		}
	}
	state("POST", path, `{"name":"x","from":"-1h","endpoint":"prod","hold":true}`, replay.Stopped)
	state("POST", path, `{"name":"x"}`, replay.Running)
	if code, text, _ := ask("POST", path, `{"name":"x","from":"-2h","endpoint":"prod"}`); code != http.StatusConflict || !strings.HasPrefix(text, "conflict") {
		t.Errorf("another replay of the same name: %d %s", code, text)
	}
	toURL := func(s *Server, from, host, proxy string) int {
		t.Helper()
		r := httptest.NewRequest("POST", path, strings.NewReader(`{"name":"u","from":"-1h","url":"http://192.0.2.1/","hold":true}`))
		r.RemoteAddr, r.Host = from, host
		if proxy != "" {
			r.Header.Set("X-Forwarded-For", proxy)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code
	}
	users := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(users, []byte("basic_auth_users: {me: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	guarded := newServer(t, func(c *Config) { c.Replays, c.WebConfigFile = s.cfg.Replays, users })
	for _, c := range []struct {
		what, from, host, proxy string
		to                      *Server
		code                    int
	}{
		{"from elsewhere", "192.0.2.7:1000", "localhost:9474", "", s, 403},
		{"from this machine", "[::1]:1000", "[::1]:9474", "", s, 200},
		{"from this machine, by name", "127.0.0.1:1000", "localhost", "", s, 200},
		{"from a page whose name leads here", "127.0.0.1:1000", "evil.example:9474", "", s, 403},
		{"from a proxy", "127.0.0.1:1000", "localhost:9474", "192.0.2.7", s, 403},
		{"with a password", "192.0.2.7:1000", "millrace:9474", "", guarded, 200},
	} {
		if code := toURL(c.to, c.from, c.host, c.proxy); code != c.code {
			t.Errorf("a replay to any address, %s: %d, want %d", c.what, code, c.code)
		}
	}
	for _, method := range []string{"POST", "DELETE"} {
		target := map[string]string{"POST": path, "DELETE": path + "/x"}[method]
		if code, _, _ := ask(method, target, `{"name":"x"}`, "Sec-Fetch-Site", "cross-site"); code != http.StatusForbidden {
			t.Errorf("a page of another site gets %d for %s", code, method)
		}
	}
	state("GET", path+"/x", "", replay.Running)
	if code, _, data := ask("GET", path, ""); code != 200 || !strings.Contains(string(data), `"name":"x"`) {
		t.Errorf("listed as %d %s", code, data)
	}
	state("DELETE", path+"/x", "", replay.Stopped)
	state("DELETE", path+"/x", "", replay.Removed)
	if w := do(t, newServer(t, nil), "GET", path); w.Code != http.StatusNotFound {
		t.Errorf("without replays: %d", w.Code)
	}
}
