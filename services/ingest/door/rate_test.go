package door

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestADebtIsPaidByTime(t *testing.T) {
	now := time.Unix(0, 0)
	r := newRates(100)
	r.now = func() time.Time { return now }
	r.charge("a", 350) // 100 of them were saved
	if got := r.wait("a"); got != 2500*time.Millisecond {
		t.Errorf("wait %v", got)
	}
	if got := r.wait("b"); got != 0 {
		t.Errorf("another sender waits %v", got)
	}
	now = now.Add(2500 * time.Millisecond)
	if got := r.wait("a"); got != 0 {
		t.Errorf("wait %v after the debt was paid", got)
	}
}

func TestTheTableOfSendersIsBounded(t *testing.T) {
	now := time.Unix(0, 0)
	r := newRates(100)
	r.now = func() time.Time { return now }
	for i := range 2 * maxSenders {
		r.charge(fmt.Sprint("sender ", i), 1)
	}
	if n := len(r.senders); n > maxSenders+1 {
		t.Errorf("%d senders", n)
	}
	if r.wait("sender beyond") == 0 {
		t.Error("those beyond the table, which pushed more than 100 together, are not limited")
	}
	// An hour later all have their allowance again, and are forgotten when the next one comes.
	now = now.Add(time.Hour)
	r.charge("new", 1)
	if n := len(r.senders); n != 1 {
		t.Errorf("%d senders after an hour", n)
	}
}

func TestSendersAreLimitedOneByOne(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, func(c *Config) {
			c.Limits.MaxSamplesPerSecond = 10
			c.TenantHeader = "X-Scope-OrgID"
		})
		r.recorder.answer = func(context.Context, *Push) (Outcome, error) {
			return Outcome{Samples: 30, Histograms: 10, Refused: 0}, nil
		}
		now := time.Unix(0, 0)
		r.gate.rates.now = func() time.Time { return now } // before the first request
		client := r.client(t)
		if code, text := r.send(t, client, bytes.NewReader(r.good(t)), identity); code != success[name] {
			t.Fatalf("%s %s", code, text)
		}
		code, text := r.send(t, client, bytes.NewReader(r.good(t)), identity)
		if code != faultCodes[name][full] || !strings.Contains(text, "max_samples_per_second") {
			t.Errorf("%s %s", code, text)
		}
		if name == OTLPGRPC {
			return
		}
		headers := []string{"Content-Type", protobufType, "X-Scope-OrgID", "another"} // which anybody may write there
		if name == RemoteWrite {
			headers = append(headers, "Content-Encoding", "snappy")
		}
		res, _ := r.post(t, bytes.NewReader(r.good(t)), headers...)
		if got := res.Header.Get("Retry-After"); res.StatusCode != 429 || got != "3" {
			t.Errorf("status %d, Retry-After %q, want 3 s for 30 samples of debt", res.StatusCode, got)
		}
	})
}

// Those who share a token are told apart by their tenants.
func TestTenantsThatAuthenticateAreLimitedOneByOne(t *testing.T) {
	for _, name := range []string{OTLPHTTP, RemoteWrite} {
		r := start(t, name, func(c *Config) {
			c.Limits.MaxSamplesPerSecond = 10
			c.TenantHeader = "X-Scope-OrgID"
			c.Auth = Auth{BearerToken: "t0ken"}
		})
		now := time.Unix(0, 0)
		r.gate.rates.now = func() time.Time { return now }
		r.recorder.answer = func(context.Context, *Push) (Outcome, error) { return Outcome{Samples: 40}, nil }
		push := func(tenant string) int {
			headers := []string{"Content-Type", protobufType, "X-Scope-OrgID", tenant, "Authorization", "Bearer t0ken"}
			if name == RemoteWrite {
				headers = append(headers, "Content-Encoding", "snappy")
			}
			res, _ := r.post(t, bytes.NewReader(r.good(t)), headers...)
			return res.StatusCode
		}
		for _, tenant := range []string{"one", "another"} {
			if first, second := push(tenant), push(tenant); first > 299 || second != 429 {
				t.Errorf("%s, tenant %s: %d, then %d", name, tenant, first, second)
			}
		}
	}
}
