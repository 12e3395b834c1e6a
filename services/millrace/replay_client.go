package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/web"
)

// replayClient asks a running Millrace about replays. It is one of [replays].
type replayClient struct{ *client }

// askTime is how long a running Millrace may take to answer.
const askTime = 15 * time.Second

func newReplayClient(base, configFile string) (*replayClient, error) {
	c, err := newClient(base, configFile, "start it, give --web.url, or --storage.path to replay from the storage of one that does not run")
	if err != nil {
		return nil, err
	}
	return &replayClient{c}, nil
}

// Start implements [replays].
func (c *replayClient) Start(ctx context.Context, spec replay.Spec, hold bool) (st replay.Status, err error) {
	body, err := json.Marshal(web.ReplayRequest{Spec: spec, Hold: hold})
	if err != nil {
		return st, err
	}
	return c.status(ctx, http.MethodPost, "", body)
}

// Stop implements [replays].
func (c *replayClient) Stop(ctx context.Context, name string) (replay.Status, error) {
	return c.status(ctx, http.MethodDelete, name, nil)
}

// Get implements [replays].
func (c *replayClient) Get(ctx context.Context, name string) (replay.Status, error) {
	return c.status(ctx, http.MethodGet, name, nil)
}

func (c *replayClient) status(ctx context.Context, method, name string, body []byte) (st replay.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	path := "/api/v1/replays"
	if name != "" {
		path += "/" + name
	}
	a, err := c.ask(ctx, method, path, nil, body)
	if err != nil {
		return st, err
	}
	switch {
	case a.known && a.code == http.StatusBadRequest:
		return st, usageError{errors.New("--" + a.Error)}
	case a.known && a.code == http.StatusNotFound:
		return st, fmt.Errorf("replay %q: %w", name, replay.ErrUnknown)
	case a.known && (a.code == http.StatusConflict || a.code == http.StatusForbidden):
		return st, usageError{errors.New(a.Error)}
	case a.known && a.code >= 500:
		return st, fmt.Errorf("%s: %w: %s", c.base.Redacted(), errUnanswered, a.Error)
	case a.code == http.StatusNotFound:
		return st, fmt.Errorf("%s has no replays: it is no Millrace that runs the writer service; give the address of one with --web.url", c.base.Redacted())
	}
	data, err := c.data(path, a)
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("reading the answer of %s: %w", c.base.Redacted(), err)
	}
	return st, nil
}
