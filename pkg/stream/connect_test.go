package stream

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/logtest"
)

func TestConnectTriesUntilItsContextEnds(t *testing.T) {
	log := &logtest.Buffer{}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := Connect(ctx, Config{URL: "nats://miller:secret@127.0.0.1:1", Logger: slog.New(slog.NewTextHandler(log, nil))})
		failed <- err
	}()
	await.True(t, "a log line about NATS", func() bool { return strings.Contains(log.String(), "Cannot reach NATS") })
	cancel()
	err := <-failed
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	if text := err.Error() + log.String(); strings.Contains(text, "secret") || !strings.Contains(text, "127.0.0.1:1") {
		t.Errorf("the password shows, or the address does not: %s", text)
	}
}

func TestConnectGivesUpWhereNATSRefusesTheCredentials(t *testing.T) {
	address := strings.TrimPrefix(talker(t, "2.11.0", true), "nats://")
	_, err := Connect(t.Context(), Config{URL: "nats://miller:secret@" + address, Logger: discard()})
	if !errors.Is(err, ErrAuth) {
		t.Fatalf("error %v, want ErrAuth", err)
	}
	if strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), address) {
		t.Errorf("the password shows, or the address does not: %v", err)
	}
}

func TestConnectNamesAMissingSeedFile(t *testing.T) {
	_, err := Connect(t.Context(), Config{URL: "nats://127.0.0.1:1", NKeySeedFile: "/no/such/seed", Logger: discard()})
	if err == nil || !strings.Contains(err.Error(), "/no/such/seed") {
		t.Errorf("error %v does not name the file", err)
	}
}

func TestURLsShowWithoutTheirUsers(t *testing.T) {
	for in, want := range map[string]string{
		"nats://a:4222":                        "nats://a:4222",
		"nats://u:p@a:4222,tls://token@b:4222": "nats://***@a:4222,tls://***@b:4222",
		"u:p@a":                                "***@a",
		"nats://u:p@ss@a":                      "nats://***@a",
		"":                                     "",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) is %q, want %q", in, got, want)
		}
	}
}

func TestConnectionsComeBack(t *testing.T) {
	o := newOutside(t)
	log := &logtest.Buffer{}
	c := connect(t, Config{URL: o.url(), Logger: slog.New(slog.NewTextHandler(log, nil))})
	o.stop()
	await.True(t, "a log line about the loss", func() bool { return strings.Contains(log.String(), "Lost the connection") })
	o.start()
	await.True(t, "a log line about the return", func() bool { return strings.Contains(log.String(), "Connected to NATS again") })
	if err := c.NC.FlushTimeout(10 * time.Second); err != nil {
		t.Error(err)
	}
}
