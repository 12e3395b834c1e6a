package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	promcommon "github.com/prometheus/common/config"

	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/web"
)

// replayClient asks a running Millrace about replays. It is one of [replays].
type replayClient struct {
	base *url.URL
	http *http.Client
}

// askTime is how long a running Millrace may take to answer.
const askTime = 15 * time.Second

// errUnanswered is wrapped by errors after which asking again makes sense.
var errUnanswered = errors.New("it does not answer")

func newReplayClient(base, configFile string) (*replayClient, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("--web.url: it is no HTTP URL; write it as http://host:9474")
	}
	cfg := &promcommon.HTTPClientConfig{FollowRedirects: true, EnableHTTP2: true}
	if configFile != "" {
		if cfg, _, err = promcommon.LoadHTTPConfigFile(configFile); err != nil {
			return nil, fmt.Errorf("--http.config.file: %w", err)
		}
	}
	client, err := promcommon.NewClientFromConfig(*cfg, "millrace")
	if err != nil {
		return nil, fmt.Errorf("--http.config.file: %w", err)
	}
	return &replayClient{base: u, http: client}, nil
}

// Start implements [replays].
func (c *replayClient) Start(ctx context.Context, spec replay.Spec, hold bool) (st replay.Status, err error) {
	body, err := json.Marshal(web.ReplayRequest{Spec: spec, Hold: hold})
	if err != nil {
		return st, err
	}
	return c.ask(ctx, http.MethodPost, "", body)
}

// Stop implements [replays].
func (c *replayClient) Stop(ctx context.Context, name string) (replay.Status, error) {
	return c.ask(ctx, http.MethodDelete, name, nil)
}

// Get implements [replays].
func (c *replayClient) Get(ctx context.Context, name string) (replay.Status, error) {
	return c.ask(ctx, http.MethodGet, name, nil)
}

func (c *replayClient) ask(ctx context.Context, method, name string, body []byte) (st replay.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	u := c.base.JoinPath("/api/v1/replays", name)
	if name == "" {
		u = c.base.JoinPath("/api/v1/replays")
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return st, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err // without the URL, which may hold a password
		}
		return st, fmt.Errorf("asking Millrace at %s: %w: %w; start it, give --web.url, or --storage.path to replay from the storage of one that does not run", c.base.Redacted(), errUnanswered, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return st, fmt.Errorf("reading the answer of %s: %w: %w", c.base.Redacted(), errUnanswered, err)
	}
	var answer struct {
		Status, ErrorType, Error string
		Data                     json.RawMessage
	}
	known := json.Unmarshal(text, &answer) == nil && answer.Status != ""
	switch {
	case known && answer.Status == "success":
		if err := json.Unmarshal(answer.Data, &st); err != nil {
			return st, fmt.Errorf("reading the answer of %s: %w", c.base.Redacted(), err)
		}
		return st, nil
	case known && resp.StatusCode == http.StatusBadRequest:
		return st, usageError{errors.New("--" + answer.Error)}
	case known && resp.StatusCode == http.StatusNotFound:
		return st, fmt.Errorf("replay %q: %w", name, replay.ErrUnknown)
	case known && (resp.StatusCode == http.StatusConflict || resp.StatusCode == http.StatusForbidden):
		return st, usageError{errors.New(answer.Error)}
	case resp.StatusCode == http.StatusNotFound:
		return st, fmt.Errorf("%s has no replays: it is no Millrace that runs the writer service; give the address of one with --web.url", c.base.Redacted())
	case resp.StatusCode == http.StatusUnauthorized:
		return st, fmt.Errorf("%s wants a user and a password; give them in --web.url or --http.config.file", c.base.Redacted())
	case known && resp.StatusCode >= 500:
		return st, fmt.Errorf("%s: %w: %s", c.base.Redacted(), errUnanswered, answer.Error)
	}
	return st, fmt.Errorf("%s answers %s: %.200s", c.base.Redacted(), resp.Status, strings.TrimSpace(string(text)))
}
