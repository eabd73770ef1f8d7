package etcd

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// TestWhatIsRememberedDecidesNothing: whatever a store last saw of a secret, an operation does and says what it would
// on the secret as it is.
func TestWhatIsRememberedDecidesNothing(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	a, b := mustOpen(t, opts), mustOpen(t, opts)
	until(t, "it follows", func() bool { return a.Stats().WatchUp })
	move := func(to, from string) upstream.UpdateSecretVersionStageInput {
		return upstream.UpdateSecretVersionStageInput{SecretName: "s", VersionStage: "Blue", MoveToVersion: upstream.VersionID(to), RemoveFromVersion: upstream.VersionID(from)}
	}
	remove := func() error {
		return only(b.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "s", ForceDeleteWithoutRecovery: true}))
	}
	for _, test := range []struct {
		name   string
		others func() error // change the secret, of which there is v1, with the label Blue
		call   func() error
		want   error
		then   string // the version with Blue
	}{
		{"a version", func() error { return put(b, "s", "v2", "two") }, func() error { return put(a, "s", "v3", "three") }, nil, "v1"},
		{"a version with another value", func() error { return put(b, "s", "v2", "two") }, func() error { return put(a, "s", "v2", "three") }, upstream.ErrExists, "v1"},
		{"a label to a version that was not there", func() error { return put(b, "s", "v2", "two") }, func() error {
			return a.UpdateSecretVersionStage(t.Context(), move("v2", "v1"))
		}, nil, "v2"},
		{"a label that was there", func() error {
			must(t, put(b, "s", "v2", "two"))
			return b.UpdateSecretVersionStage(t.Context(), move("v2", "v1"))
		}, func() error { return a.UpdateSecretVersionStage(t.Context(), move("v1", "v2")) }, nil, "v1"},
		{"a version of a secret that is gone", remove, func() error { return put(a, "s", "v2", "two") }, upstream.ErrNotFound, ""},
		{"the same version of a secret that is gone", remove, func() error { return put(a, "s", "v1", "one") }, upstream.ErrNotFound, ""},
		{"a secret in the place of one that is gone", remove, func() error { return create(a, "s", "v2", "two") }, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			must(t, create(a, "s", "v1", "one"))
			must(t, a.UpdateSecretVersionStage(t.Context(), move("v1", "")))
			key := a.db.key(builtin.Records, []byte("s"))
			old, _ := a.db.memory.Get(key)
			must(t, test.others())
			until(t, "the change is told", func() bool { now, _ := a.db.memory.Get(key); return now != old })
			a.db.memory.Add(key, old)
			wantErr(t, test.call(), test.want)
			if test.then != "" {
				v, err := b.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "s", VersionStage: "Blue"})
				if err != nil || string(v.VersionID) != test.then {
					t.Errorf("Blue marks %q, %v; want %s", v.VersionID, err, test.then)
				}
			}
			upstreamtest.CheckRules(t, b, 100)
			_ = remove()
		})
	}
}

// TestARememberedWriteIsOneRequest: who writes a secret again asks etcd once, also when others have written it meanwhile.
func TestARememberedWriteIsOneRequest(t *testing.T) {
	opts := testOptions(t)
	s, other := mustOpen(t, opts), mustOpen(t, opts)
	until(t, "they follow", func() bool { return s.Stats().WatchUp && other.Stats().WatchUp })
	must(t, create(s, "a", "v0", "zero"))
	must(t, put(other, "a", "v1", "one"))
	key := s.db.key(builtin.Records, []byte("a"))
	until(t, "the change is told", func() bool {
		mine, _ := s.db.memory.Get(key)
		others, _ := other.db.memory.Get(key)
		return mine.GetModRevision() == others.GetModRevision()
	})
	before := transactions(t, opts)
	for i := range 3 {
		must(t, put(s, "a", fmt.Sprint("v", i+2), "x"))
	}
	if n := transactions(t, opts) - before; n != 3 {
		t.Errorf("3 writes took %d requests", n)
	}
}

// transactions returns how many an etcd has answered.
func transactions(t *testing.T, opts Options) (n int) {
	answer, err := http.Get(opts.Endpoints[0] + "/metrics")
	must(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	must(t, err)
	_, rest, _ := strings.Cut(string(body), `grpc_server_handled_total{grpc_code="OK",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} `)
	must(t, only(fmt.Sscan(rest, &n)))
	return n
}

// TestNothingOlderIsTold lets a store hear of what it and others have committed as it may come about: of its own
// changes at some time after each, of all in order by the watch, and of everything by a resync. Of no secret is
// something older told after something newer, and in the end the newest is.
func TestNothingOlderIsTold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDB(Options{})
		defer d.cancel()
		told := map[upstream.SecretName]int64{}
		d.Observe(func(notices []builtin.Notice) {
			if notices[0].All {
				clear(told)
			}
			for _, r := range notices[0].Records {
				var rev int64
				_, err := fmt.Sscan(string(r.Sealed), &rev)
				must(t, err)
				if !notices[0].All && rev <= told[r.Name] {
					t.Fatalf("%s: told of %d after %d", r.Name, rev, told[r.Name])
				}
				told[r.Name] = rev
			}
		})
		type commit struct {
			names []string
			rev   int64
		}
		var (
			log     []commit              // all commits: the revision is the place, from 1
			untold  []commit              // own ones whose writers have not told yet
			watched int                   // commits that the watch has brought
			mine    = map[string]commit{} // :: secret → own change whose writer was answered
		)
		names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 2, rapid.ID[string])
		watch := func(upTo int) {
			var events []*clientv3.Event
			for ; watched < upTo; watched++ {
				for _, name := range log[watched].names {
					events = append(events, &clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{
						Key: []byte("secrets/" + name), Value: fmt.Append(nil, log[watched].rev), ModRevision: log[watched].rev,
					}})
				}
			}
			d.tell("secrets/", events)
		}
		t.Repeat(map[string]func(*rapid.T){
			"others commit": func(t *rapid.T) { log = append(log, commit{names.Draw(t, "names"), int64(len(log) + 1)}) },
			"it commits": func(t *rapid.T) {
				c := commit{names.Draw(t, "names"), int64(len(log) + 1)}
				log, untold = append(log, c), append(untold, c)
			},
			"a writer tells": func(t *rapid.T) {
				if len(untold) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(untold)-1).Draw(t, "which")
				c := untold[i]
				untold = append(untold[:i:i], untold[i+1:]...)
				var records []builtin.SealedRecord
				for _, name := range c.names {
					records = append(records, builtin.SealedRecord{Name: upstream.SecretName(name), Sealed: fmt.Append(nil, c.rev)})
					if c.rev > mine[name].rev {
						mine[name] = c
					}
				}
				d.tellOwn(c.rev, records)
			},
			"the watch tells": func(t *rapid.T) { watch(rapid.IntRange(watched, len(log)).Draw(t, "up to")) },
			"a resync": func(t *rapid.T) {
				upTo := rapid.IntRange(int(d.watch.rev), len(log)).Draw(t, "up to")
				newest := map[string]int64{}
				for _, c := range log[:upTo] {
					for _, name := range c.names {
						newest[name] = c.rev
					}
				}
				var records []builtin.SealedRecord
				for name, rev := range newest {
					records = append(records, builtin.SealedRecord{Name: upstream.SecretName(name), Sealed: fmt.Append(nil, rev)})
				}
				d.tellAll(int64(upTo), records)
			},
			"": func(t *rapid.T) {
				if d.watch.rev < d.watch.due {
					return // lists wait
				}
				for name, c := range mine {
					if told[upstream.SecretName(name)] < c.rev {
						t.Fatalf("%s: a list would show %d, and its writer was told of %d", name, told[upstream.SecretName(name)], c.rev)
					}
				}
			},
		})
		watch(len(log))
		for i, c := range log {
			for _, name := range c.names {
				if told[upstream.SecretName(name)] < int64(i+1) {
					t.Fatalf("%s: told of %d, there is %d", name, told[upstream.SecretName(name)], i+1)
				}
			}
		}
		if len(d.watch.ahead) != 0 || d.watch.rev < d.watch.due {
			t.Fatalf("left: %+v", d.watch)
		}
	})
}
