package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	fleets "github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/inquiry"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/stream"
)

// user is a connection with the rights of one service.
type user struct {
	*stream.Conn
	t      *testing.T
	name   string
	denied *denials
}

// denials are what NATS has refused.
type denials struct {
	mu   sync.Mutex
	list []string
}

func (d *denials) Write(b []byte) (int, error) {
	if s := string(b); strings.Contains(s, "ermissions") {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.list = append(d.list, s)
	}
	return len(b), nil
}

// take returns what was refused since the last call.
func (d *denials) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.list
	d.list = nil
	return list
}

func login(t *testing.T, url, name string) user {
	t.Helper()
	password, err := os.ReadFile("secrets/" + name)
	if err != nil {
		t.Fatal(err)
	}
	d := &denials{}
	conn, err := stream.Connect(t.Context(), stream.Config{
		Names: names, URL: url, Username: name, Password: strings.TrimSpace(string(password)), Inbox: names.Inbox(name), Client: name,
		Logger: slog.New(slog.NewTextHandler(io.MultiWriter(d), nil)),
	})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(conn.NC.Close)
	return user{conn, t, name, d}
}

// fleet logs all users in and has discovery make the streams.
func fleet(t *testing.T) map[string]user {
	t.Helper()
	url := startNATS(t)
	all := map[string]user{}
	for _, name := range everybody {
		all[name] = login(t, url, name)
	}
	if err := all["discovery"].Ensure(t.Context(), layout); err != nil {
		t.Fatalf("discovery makes the streams: %v; refused: %q", err, all["discovery"].denied.take())
	}
	return all
}

// said publishes something and says whether NATS took it.
func (u user) said(subject string) bool {
	u.t.Helper()
	if err := u.NC.Publish(subject, nil); err != nil {
		u.t.Fatal(err)
	}
	return u.settled(subject, "Publish")
}

// heard subscribes and says whether NATS let it.
func (u user) heard(subject string) bool {
	u.t.Helper()
	sub, err := u.NC.SubscribeSync(subject)
	if err != nil {
		u.t.Fatal(err)
	}
	defer sub.Unsubscribe()
	return u.settled(subject, "Subscription")
}

// settled waits until NATS has handled what was sent before, and says whether none of it was refused.
func (u user) settled(subject, what string) bool {
	u.t.Helper()
	if err := u.NC.FlushTimeout(5 * time.Second); err != nil {
		u.t.Fatal(err)
	}
	err := u.NC.LastError()
	return err == nil || !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), `"`+subject+`"`)
}

// leaseAndFollow follows a bucket and writes, changes and deletes an entry of it.
func leaseAndFollow(u user, bucket, key string) error {
	ctx := u.t.Context()
	kv, err := u.JS.KeyValue(ctx, names.Bucket(bucket))
	if err != nil {
		return err
	}
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return err
	}
	defer w.Stop()
	revision, err := kv.Create(ctx, key, []byte("mine"))
	if err != nil {
		return err
	}
	if revision, err = kv.Update(ctx, key, []byte("still mine"), revision); err != nil {
		return err
	}
	if _, err := kv.Get(ctx, key); err != nil {
		return err
	}
	if err := kv.Delete(ctx, key, jetstream.LastRevision(revision)); err != nil {
		return err
	}
	for {
		select {
		case e := <-w.Updates():
			if e != nil && e.Key() == key && e.Operation() == jetstream.KeyValueDelete {
				return nil
			}
		case <-time.After(5 * time.Second):
			return errors.New("the change does not come")
		}
	}
}

// received has one user publish what the other is subscribed to.
func received(from, to user, subject string) error {
	sub, err := to.NC.SubscribeSync(subject)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	if err := to.NC.FlushTimeout(5 * time.Second); err != nil {
		return err
	}
	if err := from.NC.Publish(subject, []byte("x")); err != nil {
		return err
	}
	_, err = sub.NextMsg(5 * time.Second)
	return err
}

// answered has one user ask and the other answer.
func answered(from, to user, subject string) error {
	sub, err := to.NC.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond(nil) })
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	if err := to.NC.FlushTimeout(5 * time.Second); err != nil {
		return err
	}
	_, err = from.NC.Request(subject, nil, 5*time.Second)
	return err
}

// seen has one user collect how the fleet stands, which is another alone.
func seen(u, other user) error {
	silence, err := status.Answer(other.Conn, status.Answers{
		Report: func() *status.Report { return &status.Report{Member: status.Member{ID: "other"}} }, Failed: func(err error) { u.t.Error(err) },
	})
	if err != nil {
		return err
	}
	defer silence()
	if err := other.NC.FlushTimeout(5 * time.Second); err != nil {
		return err
	}
	d, err := status.Collect(u.t.Context(), status.Source{Conn: u.Conn, View: func(ctx context.Context) (fleets.View, error) { return fleets.Look(ctx, u.Conn) }})
	if err != nil {
		return err
	}
	for _, s := range d.Streams {
		if s.State != status.OK {
			return fmt.Errorf("%s is %s: %s", s.Name, s.State, s.Error)
		}
	}
	if len(d.Members) != 1 || d.Members[0].ID != "other" || len(d.Shares) == 0 {
		return fmt.Errorf("members %v, shares %v", d.Members, d.Shares)
	}
	return nil
}

// toldByWriter has one user ask a writer something.
func toldByWriter(u, writer user) error {
	desk := inquiry.NewDesk(writer.Conn, func(err error) { u.t.Error(err) })
	defer desk.Close()
	subject := names.AskWriter("rejected")
	err := inquiry.Answer(desk, subject, 5*time.Second, func(_ context.Context, n int) (int, error) { return n + 1, nil })
	if err != nil {
		return err
	}
	if err := writer.NC.FlushTimeout(5 * time.Second); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(u.t.Context(), 5*time.Second)
	defer cancel()
	n, err := inquiry.Ask[int, int](ctx, u.Conn, subject, 1)
	if err == nil && n != 2 {
		err = fmt.Errorf("told %d", n)
	}
	return err
}

// targetsFound has one user find the targets of which another tells.
func targetsFound(u, other user) error {
	silence, err := status.AnswerTargets(other.Conn, func() *status.TargetHolder {
		return &status.TargetHolder{Member: "other", Dropped: map[string]int{"pool": 3}}
	}, func(err error) { u.t.Error(err) })
	if err != nil {
		return err
	}
	defer silence()
	if err := other.NC.FlushTimeout(5 * time.Second); err != nil {
		return err
	}
	p, err := status.FindTargets(u.t.Context(), status.TargetSource{Conn: u.Conn, Holders: []string{"other"}}, &status.TargetQuery{})
	if err == nil && (len(p.Problems) > 0 || p.All.Dropped != 3) {
		err = fmt.Errorf("%+v", p)
	}
	return err
}
