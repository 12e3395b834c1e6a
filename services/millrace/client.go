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

	promcommon "github.com/prometheus/common/config"
)

// client asks a running Millrace.
type client struct {
	base *url.URL
	http *http.Client
	// remedy says what to do where nobody answers.
	remedy string
}

// errUnanswered is wrapped by errors after which asking again makes sense.
var errUnanswered = errors.New("it does not answer")

func newClient(base, configFile, remedy string) (*client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, errors.New("--web.url: it is no HTTP URL; write it as http://host:9474")
	}
	cfg := &promcommon.HTTPClientConfig{FollowRedirects: true, EnableHTTP2: true}
	if configFile != "" {
		if cfg, _, err = promcommon.LoadHTTPConfigFile(configFile); err != nil {
			return nil, fmt.Errorf("--http.config.file: %w", err)
		}
	}
	c, err := promcommon.NewClientFromConfig(*cfg, "millrace")
	if err != nil {
		return nil, fmt.Errorf("--http.config.file: %w", err)
	}
	return &client{base: u, http: c, remedy: remedy}, nil
}

// maxAnswer bounds what is read of an answer, in bytes: a fleet of a thousand processes.
const maxAnswer = 64 << 20

// answer is what a Millrace has answered, in Prometheus's envelope.
type answer struct {
	Status, Error string
	Data          json.RawMessage

	// known says that it is in the envelope; else there is text.
	known bool
	text  string
	// code is the HTTP status, line the same in words.
	code int
	line string
}

// ask sends a request. An error is one of the way there.
func (c *client) ask(ctx context.Context, method, path string, query url.Values, body []byte) (*answer, error) {
	resp, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return c.read(resp)
}

// send sends a request, and leaves the answer's body to the caller.
func (c *client) send(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("--web.url: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if cause, ok := errors.AsType[*url.Error](err); ok {
			err = cause.Err // without the URL, which may hold a password
		}
		return nil, fmt.Errorf("asking Millrace at %s: %w: %w; %s", c.base.Redacted(), errUnanswered, err, c.remedy)
	}
	return resp, nil
}

// read reads an answer.
func (c *client) read(resp *http.Response) (*answer, error) {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w: %w", c.base.Redacted(), errUnanswered, err)
	}
	a := &answer{code: resp.StatusCode, line: resp.Status}
	if a.known = json.Unmarshal(text, a) == nil && a.Status != ""; !a.known {
		a.text = strings.TrimSpace(string(text))
	}
	return a, nil
}

// data returns what was asked for, or says why there is none.
func (c *client) data(path string, a *answer) (json.RawMessage, error) {
	at := c.base.Redacted()
	switch {
	case a.known && a.Status == "success" && len(a.Data) > 0:
		return a.Data, nil
	case a.known && a.Error != "":
		return nil, fmt.Errorf("%s answers: %s", at, a.Error)
	case a.code == http.StatusUnauthorized:
		return nil, fmt.Errorf("%s wants a user and a password; give them in --web.url or --http.config.file", at)
	case a.code == http.StatusNotFound:
		return nil, fmt.Errorf("%s has no %s: it is no Millrace, or an older one; give --web.url with the address of one of this version", at, path)
	}
	return nil, fmt.Errorf("%s answers %s: %.200q; is it a Millrace? Give --web.url with the address of one", at, a.line, a.text)
}

// get returns the data of an answer.
func (c *client) get(ctx context.Context, path string, query url.Values) (json.RawMessage, error) {
	a, err := c.ask(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	return c.data(path, a)
}
