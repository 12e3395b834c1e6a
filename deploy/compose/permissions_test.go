package compose

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/rejected"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream"
)

// users are the NATS users, each of which runs the service of its name.
var users = []string{"discovery", "scraper", "ingest", "relabel", "writer"}

// everybody are they, and the user with whom people look at the fleet.
var everybody = append(slices.Clip(users), "status")

var (
	names  = stream.Names{Prefix: "millrace"}
	layout = stream.Layout{Partitions: 2, Replicas: 1, LeaseTTL: 5 * time.Second, Verdicts: true}
	// dict names the dictionary of which the tests publish something.
	dict = frame.DictID{1}
)

// startNATS runs one node with the very files that the containers have, on another port and directory and without the other nodes.
func startNATS(t *testing.T) (url string) {
	t.Helper()
	t.Setenv("NATS_NODE", "nats-1")
	opts, err := server.ProcessConfigFile("nats/nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	if !opts.SyncAlways || len(opts.Routes) != 3 || opts.Cluster.Username == "" {
		t.Errorf("nats.conf: sync always %t, %d routes, routes' user %q", opts.SyncAlways, len(opts.Routes), opts.Cluster.Username)
	}
	opts.Host, opts.Port, opts.HTTPPort, opts.StoreDir = "127.0.0.1", server.RANDOM_PORT, 0, t.TempDir()
	opts.Routes, opts.Cluster, opts.NoSigs = nil, server.ClusterOpts{}, true
	ns, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS is not ready after 10 s")
	}
	return ns.ClientURL()
}

// TestServicesMayDoTheirWork has each service do what it does, with the client's own calls.
func TestServicesMayDoTheirWork(t *testing.T) {
	all := fleet(t)
	ctx := t.Context()
	do := func(name, what string, f func(user) error) {
		t.Helper()
		u := all[name]
		if err := f(u); err != nil {
			t.Errorf("%s cannot %s: %v", name, what, err)
		}
		if refused := u.denied.take(); len(refused) > 0 {
			t.Errorf("%s is refused something as it is to %s: %q", name, what, refused)
		}
	}
	publish := func(subject string) func(user) error {
		return func(u user) error {
			_, err := u.Publish(ctx, &nats.Msg{Subject: subject, Data: []byte("x")}, nil)
			return err
		}
	}
	read := func(stream string, filters ...string) func(user) error {
		return func(u user) error {
			c, err := u.JS.OrderedConsumer(ctx, names.Stream(stream), jetstream.OrderedConsumerConfig{FilterSubjects: filters})
			if err != nil {
				return err
			}
			if _, err := c.Info(ctx); err != nil {
				return err
			}
			msg, err := c.Next(jetstream.FetchMaxWait(5 * time.Second))
			if err == nil && string(msg.Data()) != "x" {
				err = errors.New("another message")
			}
			return err
		}
	}
	last := func(stream, subject string) func(user) error {
		return func(u user) error {
			_, err := u.Last(ctx, stream, subject)
			return err
		}
	}
	mailbox := func(name, key, filter string) func(user) error {
		return func(u user) error {
			m, err := u.OpenMailbox(ctx, stream.MailboxConfig{Stream: name, Filter: filter, Key: key})
			if err != nil {
				return err
			}
			defer m.Close()
			msg, err := m.Next(ctx)
			if err != nil {
				return err
			}
			m.Handled(msg.Seq, 1)
			if _, err := m.Pending(ctx); err != nil {
				return err
			}
			return m.Flush(ctx)
		}
	}

	for _, name := range users {
		do(name, "check the streams", func(u user) error {
			l := layout
			l.Verdicts = name == "discovery" || name == "relabel" // nobody else looks at them
			return u.Check(ctx, l)
		})
		do(name, "see how the streams stand", func(u user) error { _, err := u.States(ctx); return err })
		do(name, "follow, take and free leases of its own", func(u user) error { return leaseAndFollow(u, stream.Leases, name+".1") })
		do(name, "be a member, and see who is one", func(u user) error { return leaseAndFollow(u, stream.Members, "host-"+name) })
		do(name, "be asked whether it is there, and answer", func(u user) error { return answered(all["writer"], u, names.Ping("host-"+name)) })
		do(name, "be asked how it stands, and answer", func(u user) error { return answered(all["status"], u, names.Status()) })
		do(name, "see how all stand", func(u user) error { return seen(u, all["relabel"]) })
		do(name, "ask a writer", func(u user) error { return toldByWriter(u, all["writer"]) })
		do(name, "find targets", func(u user) error { return targetsFound(u, all["scraper"]) })
	}
	do("status", "find targets", func(u user) error { return targetsFound(u, all["discovery"]) })
	do("status", "see how all stand", func(u user) error { return seen(u, all["writer"]) })
	do("discovery", "update the streams", func(u user) error { return u.Ensure(ctx, layout) })
	do("discovery", "publish a target", publish(names.Target(3, 7)))
	do("discovery", "read what it has left", read(stream.Targets, names.AllTargets()))
	do("scraper", "read targets", read(stream.Targets, names.AllTargets()))
	do("scraper", "read the targets of a shard", read(stream.Targets, names.TargetShard(3)))
	do("scraper", "read the targets of many shards", read(stream.Targets, names.TargetShard(3), names.TargetShard(4)))
	do("scraper", "find the sources of many shards", func(u user) error {
		kv, err := u.JS.KeyValue(ctx, names.Bucket(stream.Sources))
		if err != nil {
			return err
		}
		_, err = kv.ListKeysFiltered(ctx, "17.*", "18.*")
		return err
	})
	do("scraper", "forget a source", func(u user) error {
		kv, err := u.JS.KeyValue(ctx, names.Bucket(stream.Sources))
		if err != nil {
			return err
		}
		return kv.Purge(ctx, "17.0000000000000001")
	})
	do("scraper", "publish a dictionary", publish(names.Dict(1, dict)))
	do("scraper", "look for a dictionary", last(stream.Dicts, names.Dict(1, dict)))
	do("scraper", "publish frames", publish(names.Frames(1)))
	do("scraper", "store what it knows of sources", func(u user) error { return leaseAndFollow(u, stream.Sources, "17.0000000000000001") })
	do("ingest", "publish a dictionary", publish(names.Dict(0, dict)))
	do("ingest", "look for a dictionary", last(stream.Dicts, names.Dict(0, dict)))
	do("ingest", "publish frames", publish(names.Frames(0)))
	do("ingest", "look where a partition ends", last(stream.Frames, names.Frames(0)))
	do("ingest", "look where a partition begins", func(u user) error { _, err := u.Next(ctx, stream.Frames, names.Frames(0), 1); return err })
	do("ingest", "read the sums that it has published", read(stream.Frames, names.Frames(0)))
	do("ingest", "publish delta values", publish(names.Deltas(0)))
	do("ingest", "read delta values", mailbox(stream.Deltas, "delta.0", names.Deltas(0)))
	do("relabel", "read dictionaries", mailbox(stream.Dicts, "relabel.1", names.DictPartition(1)))
	do("relabel", "get a dictionary", last(stream.Dicts, names.Dict(1, dict)))
	do("relabel", "publish relabelled dictionaries", publish(names.Relabelled("e", 1, dict)))
	do("relabel", "publish a verdict", publish(names.Verdicts(1)))
	do("relabel", "read verdicts", read(stream.Verdicts, names.Verdicts(1)))
	do("relabel", "look where verdicts end", last(stream.Verdicts, names.Verdicts(1)))
	do("relabel", "ask for places", func(u user) error { return received(all["relabel"], u, names.Limits()) })
	do("relabel", "be asked", func(u user) error { return received(all["writer"], u, names.Ask(1)) })
	do("writer", "make a position", func(u user) error {
		return u.MakePosition(ctx, stream.MailboxConfig{Stream: stream.Frames, Filter: names.Frames(1), Key: "writer.e.1"})
	})
	do("writer", "read frames", mailbox(stream.Frames, "writer.e.1", names.Frames(1)))
	do("writer", "look where a partition begins", func(u user) error { _, err := u.Next(ctx, stream.Frames, names.Frames(1), 1); return err })
	do("writer", "look where a partition ends", last(stream.Frames, names.Frames(1)))
	do("writer", "get a relabelled dictionary", last(stream.Relabelled, names.Relabelled("e", 1, dict)))
	do("writer", "wait for a relabelled dictionary", func(u user) error { return received(all["relabel"], u, names.Relabelled("e", 1, dict)) })
	do("writer", "look for a dictionary", last(stream.Dicts, names.Dict(1, dict)))
	do("writer", "keep what is rejected", publish(names.Rejected("e")))
	do("writer", "list what is rejected, and look inside", func(u user) error {
		shelf := rejected.Shelf{Conn: u.Conn}
		p, err := shelf.List(ctx, "e", 0, 10)
		if err == nil && (len(p.Batches) != 1 || p.Batches[0].Endpoint != "e") {
			err = fmt.Errorf("%+v", p)
		}
		if err == nil {
			_, err = shelf.Open(ctx, p.Batches[0].Message, 0)
		}
		return err
	})
	do("writer", "read dictionaries, to count series", read(stream.Dicts, names.DictPartition(1)))
	do("writer", "read verdicts, to count series", read(stream.Verdicts, names.Verdicts(1)))
	do("writer", "look where verdicts end", last(stream.Verdicts, names.Verdicts(1)))
	do("writer", "read what is rejected", mailbox(stream.Rejected, "replay.x-1.0", names.Rejected("e")))
	do("writer", "replay frames", mailbox(stream.Frames, "replay.x-1.1", names.Frames(1)))
	do("writer", "ask for a replay, follow, stop and remove it", func(u user) error {
		m := &replay.Manager{Conn: u.Conn, Partitions: layout.Partitions, Endpoints: func() []string { return []string{"e"} }}
		for _, spec := range []replay.Spec{{Name: "x", From: "-1h", Endpoint: "e"}, {Name: "y", Endpoint: "e", Rejected: true}} {
			st, err := m.Start(ctx, spec, false)
			if err != nil {
				return err
			}
			if st.State != replay.Running {
				return errors.New("it has found nothing to replay")
			}
			if _, err := m.List(ctx); err != nil {
				return err
			}
			for range 2 {
				if _, err := m.Stop(ctx, spec.Name); err != nil {
					return err
				}
			}
		}
		return leaseAndFollow(u, stream.Replays, "z")
	})
}

// TestServicesMayDoNothingElse tries for each service what belongs to the others, and what nobody may.
func TestServicesMayDoNothingElse(t *testing.T) {
	all := fleet(t)
	owner := map[string][]string{ // who may publish
		names.Target(3, 7):                        {"discovery"},
		names.Dict(1, dict):                       {"scraper", "ingest"},
		names.Frames(1):                           {"scraper", "ingest"},
		names.Deltas(1):                           {"ingest"},
		names.Relabelled("e", 1, dict):            {"relabel"},
		names.Rejected("e"):                       {"writer"},
		names.Ask(1):                              {"writer"},
		names.AskWriter("rejected"):               users,
		names.Status():                            everybody,
		names.StatusTargets():                     everybody,
		names.Ping("host-writer"):                 users,
		"$KV.millrace_members.host-writer":        users,
		names.Verdicts(1):                         {"relabel"},
		names.Limits():                            {"relabel"},
		"$JS.API.STREAM.CREATE.millrace_VERDICTS": {"discovery"},
		"$JS.API.CONSUMER.CREATE.millrace_VERDICTS.c." + names.Verdicts(1):         {"relabel", "writer"},
		"$JS.API.STREAM.DELETE.millrace_VERDICTS":                                  nil,
		"$KV.millrace_leases.discovery.0":                                          {"discovery"},
		"$KV.millrace_leases.scraper.200":                                          {"scraper"},
		"$KV.millrace_leases.ingest.3":                                             {"ingest"},
		"$KV.millrace_leases.relabel.3":                                            {"relabel"},
		"$KV.millrace_leases.writer.3":                                             {"writer"},
		"$KV.millrace_positions.relabel.1":                                         {"relabel"},
		"$KV.millrace_positions.writer.e.1":                                        {"writer"},
		"$KV.millrace_positions.delta.1":                                           {"ingest"},
		"$KV.millrace_positions.published.1":                                       nil,
		"$KV.millrace_sources.17.0000000000000001":                                 {"scraper"},
		"$JS.API.STREAM.CREATE.millrace_FRAMES":                                    {"discovery"},
		"$JS.API.STREAM.UPDATE.millrace_FRAMES":                                    {"discovery"},
		"$JS.API.STREAM.UPDATE.KV_millrace_leases":                                 {"discovery"},
		"$JS.API.STREAM.CREATE.millrace_DELTAS":                                    {"discovery"},
		"$JS.API.STREAM.UPDATE.millrace_DELTAS":                                    {"discovery"},
		"$JS.API.STREAM.CREATE.millrace_OTHER":                                     nil,
		"$JS.API.STREAM.NAMES":                                                     nil,
		"$JS.API.STREAM.LIST":                                                      nil,
		"$JS.API.STREAM.INFO.other_FRAMES":                                         nil,
		"$JS.API.STREAM.PURGE.millrace_FRAMES":                                     nil,
		"$JS.API.STREAM.DELETE.millrace_FRAMES":                                    nil,
		"$JS.API.STREAM.DELETE.KV_millrace_leases":                                 nil,
		"$JS.API.STREAM.PURGE.millrace_DELTAS":                                     nil,
		"$JS.API.STREAM.DELETE.millrace_DELTAS":                                    nil,
		"$JS.API.STREAM.MSG.DELETE.millrace_FRAMES":                                nil,
		"$JS.API.STREAM.MSG.GET.millrace_FRAMES":                                   nil,
		"$JS.API.STREAM.MSG.GET.millrace_REJECTED":                                 nil,
		"$JS.API.STREAM.SNAPSHOT.millrace_FRAMES":                                  nil,
		"$JS.API.STREAM.RESTORE.millrace_FRAMES":                                   nil,
		"$JS.API.STREAM.LEADER.STEPDOWN.millrace_FRAMES":                           nil,
		"$JS.API.DIRECT.GET.millrace_REJECTED":                                     {"writer"},
		"$JS.API.DIRECT.GET.millrace_REJECTED." + names.Rejected("e"):              nil,
		"$JS.API.DIRECT.GET.millrace_FRAMES":                                       {"ingest", "writer"},
		"$JS.API.STREAM.UPDATE.millrace_OTHER":                                     nil,
		"$JS.API.DIRECT.GET.millrace_FRAMES." + names.Frames(1):                    {"ingest", "writer"},
		"$JS.API.DIRECT.GET.millrace_DICTS":                                        nil,
		"$JS.API.DIRECT.GET.millrace_DELTAS":                                       nil,
		"$JS.API.DIRECT.GET.millrace_DICTS." + names.Dict(1, dict):                 {"scraper", "ingest", "relabel", "writer"},
		"$JS.API.DIRECT.GET.KV_millrace_positions.$KV.millrace_positions.delta.1":  {"ingest"},
		"$JS.API.DIRECT.GET.KV_millrace_sources.$KV.millrace_sources.17.1":         {"scraper"},
		"$JS.API.DIRECT.GET.millrace_RELABELLED." + names.Relabelled("e", 1, dict): {"writer"},
		"$JS.API.CONSUMER.CREATE.millrace_FRAMES.c." + names.Frames(1):             {"ingest", "writer"},
		"$JS.API.CONSUMER.CREATE.millrace_FRAMES.c":                                nil,
		"$JS.API.CONSUMER.CREATE.millrace_FRAMES":                                  nil,
		"$JS.API.CONSUMER.DURABLE.CREATE.millrace_FRAMES.c":                        nil,
		"$JS.API.CONSUMER.CREATE.millrace_DICTS.c." + names.DictPartition(1):       {"relabel", "writer"},
		"$JS.API.CONSUMER.CREATE.millrace_REJECTED.c." + names.Rejected("e"):       {"writer"},
		"$JS.API.CONSUMER.CREATE.millrace_REJECTED.c":                              nil,
		"$KV.millrace_positions.replay.x-1.1":                                      {"writer"},
		"$KV.millrace_replays.x":                                                   {"writer"},
		"$JS.API.STREAM.PURGE.KV_millrace_replays":                                 nil,
		"$JS.API.CONSUMER.CREATE.millrace_DELTAS.c." + names.Deltas(1):             {"ingest"},
		"$JS.API.CONSUMER.CREATE.millrace_DELTAS.c":                                nil,
		"$JS.API.CONSUMER.CREATE.millrace_DELTAS":                                  nil,
		"$JS.API.CONSUMER.CREATE.millrace_TARGETS.c." + names.AllTargets():         {"discovery", "scraper"},
		"$JS.API.CONSUMER.MSG.NEXT.millrace_DELTAS.c":                              {"ingest"},
		"$JS.API.CONSUMER.NAMES.millrace_FRAMES":                                   nil,
		"$JS.API.CONSUMER.LIST.millrace_TARGETS":                                   nil,
		"$JS.API.CONSUMER.MSG.NEXT.millrace_FRAMES.c":                              {"ingest", "writer"},
		"$JS.API.ACCOUNT.PURGE.MILLRACE":                                           nil,
		"$SYS.REQ.SERVER.PING":                                                     nil,
		"_INBOX.millrace.writer.x":                                                 nil,
		"other.frames.1":                                                           nil,
	}
	for subject, may := range owner {
		for _, name := range everybody {
			if got, want := all[name].said(subject), slices.Contains(may, name); got != want {
				t.Errorf("%s may publish to %s: %t, want %t", name, subject, got, want)
			}
		}
	}
	listeners := map[string][]string{
		">":                              nil,
		"millrace.>":                     nil,
		"*.*.*":                          nil,
		names.Frames(1):                  nil,
		names.Deltas(1):                  nil,
		names.Target(3, 7):               nil,
		names.Rejected("e"):              nil,
		names.Dict(1, dict):              nil,
		names.Relabelled("e", 1, dict):   {"writer"},
		names.Ask(1):                     {"relabel"},
		names.AskWriter("rejected"):      {"writer"},
		names.Limits():                   {"relabel"},
		names.Verdicts(1):                nil,
		names.Status():                   users,
		names.StatusTargets():            {"discovery", "scraper"},
		names.Inbox("status") + ".>":     {"status"},
		"$KV.millrace_leases.>":          nil,
		"$JS.API.>":                      nil,
		"_INBOX.>":                       nil,
		"_INBOX.*":                       nil,
		names.Inbox("discovery") + ".>":  {"discovery"},
		names.Inbox("scraper") + ".>":    {"scraper"},
		names.Inbox("ingest") + ".>":     {"ingest"},
		names.Inbox("relabel") + ".>":    {"relabel"},
		names.Inbox("writer") + ".a.b.c": {"writer"},
		"$SYS.>":                         nil,
	}
	for subject, may := range listeners {
		for _, name := range everybody {
			if got, want := all[name].heard(subject), slices.Contains(may, name); got != want {
				t.Errorf("%s may subscribe to %s: %t, want %t", name, subject, got, want)
			}
		}
	}
}

// TestNoServiceRemovesLeasesOfAnother tries what a permission for a subject does not stop: a message of one key that takes the place of all others.
func TestNoServiceRemovesLeasesOfAnother(t *testing.T) {
	all := fleet(t)
	ctx := t.Context()
	for _, bucket := range []struct{ name, writers, by, others string }{
		{stream.Leases, "writer.1", "scraper", "scraper.1"}, {"positions", "writer.e.1", "relabel", "relabel.1"},
		{stream.Leases, "writer.2", "ingest", "ingest.1"}, {"positions", "writer.e.2", "ingest", "delta.1"},
	} {
		kv, err := all["writer"].JS.KeyValue(ctx, names.Bucket(bucket.name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Put(ctx, bucket.writers, []byte("the writer's")); err != nil {
			t.Fatal(err)
		}
		for _, rollup := range []string{"all", "sub"} {
			answer, err := all[bucket.by].NC.RequestMsg(&nats.Msg{
				Subject: "$KV." + names.Bucket(bucket.name) + "." + bucket.others, Header: nats.Header{"Nats-Rollup": {rollup}},
			}, 5*time.Second)
			if err != nil || !strings.Contains(string(answer.Data), "rollup not permitted") {
				t.Errorf("%s: a roll-up of %q: %v %s", bucket.name, rollup, err, answer.Data)
			}
		}
		if e, err := kv.Get(ctx, bucket.writers); err != nil || string(e.Value()) != "the writer's" {
			t.Errorf("%s: the writer's entry after roll-ups by %s: %v", bucket.name, bucket.by, err)
		}
	}
}
