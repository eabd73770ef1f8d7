package etcd

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// until waits for a condition that comes about by itself.
func until(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("it does not come about: ", what)
		}
	}
}

// another returns options of a second agent with the same keyring.
func another(opts Options) Options { return opts }

// TestOthersHear: a change made through one store is told by the other, which then lists it too.
func TestOthersHear(t *testing.T) {
	opts := testOptions(t)
	a, b := mustOpen(t, opts), mustOpen(t, another(opts))
	must(t, only(b.ListSecrets(t.Context(), upstream.ListSecretsInput{}))) // it follows
	var heard sync.Map
	defer b.OnChange(func(name upstream.SecretName) { heard.Store(name, true) })()
	must(t, create(a, "app/db", "v1", "one"))
	until(t, "the other store hears", func() bool { _, ok := heard.Load(upstream.SecretName("app/db")); return ok })
	wantValue(t, b, "app/db", "one")
	must(t, put(b, "app/db", "v2", "two"))
	wantValue(t, a, "app/db", "two")
	if out, err := b.ListSecrets(t.Context(), upstream.ListSecretsInput{}); err != nil || out.TotalCount != 1 {
		t.Errorf("listed %+v, %v", out, err)
	}
}

// TestManyWriters lets stores write to the same secrets at the same time: each write is acknowledged
// once, versions are as many as were put, and the rules hold.
func TestManyWriters(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	opts.MaxVersions = 100
	stores := []*Store{mustOpen(t, opts), mustOpen(t, another(opts)), mustOpen(t, another(opts))}
	must(t, create(stores[0], "a", "v0", "zero"))
	var wg sync.WaitGroup
	for i, s := range stores {
		for w := range 3 {
			wg.Go(func() {
				for n := range 5 {
					id := fmt.Sprint("v", i, "-", w, "-", n)
					must(t, put(s, "a", id, id))
					must(t, s.TagResources(context.Background(), []upstream.SecretName{"a"}, []upstream.Tag{{Key: fmt.Sprint(i), Value: id}}))
				}
			})
		}
	}
	wg.Wait()
	out, err := stores[1].ListSecretVersionIDs(t.Context(), upstream.ListSecretVersionIDsInput{SecretName: "a", IncludeDeprecated: true, Page: upstream.Page{Size: 100}})
	if err != nil || out.TotalCount != 1+3*3*5 {
		t.Errorf("%d versions, %v", out.TotalCount, err)
	}
	upstreamtest.CheckRules(t, stores[2], 100)
	if conflicts := stores[0].Stats().Conflicts + stores[1].Stats().Conflicts + stores[2].Stats().Conflicts; conflicts == 0 {
		t.Error("nobody met a conflict: the test shows nothing")
	}
}

// TestOnceInEffect seeds and purges from several stores at the same time.
func TestOnceInEffect(t *testing.T) {
	t.Parallel()
	opts, clock := testOptions(t), upstreamtest.NewClock()
	opts.Now = clock.Now
	seed := func(value string) []upstream.CreateSecretInput {
		return []upstream.CreateSecretInput{{SecretName: "seeded", VersionID: "v1", SecretData: upstream.NewSecretData([]byte(value))}}
	}
	var stores []*Store
	for range 4 {
		stores = append(stores, mustOpen(t, opts))
	}
	all := func(fn func(*Store)) {
		var wg sync.WaitGroup
		for _, s := range stores {
			wg.Go(func() { fn(s) })
		}
		wg.Wait()
	}
	var seeds atomic.Int64
	all(func(s *Store) { must(t, s.Seed(context.Background(), seed(fmt.Sprint(seeds.Add(1))))) })
	first, err := stores[0].GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "seeded"})
	must(t, err)
	for _, s := range stores {
		wantValue(t, s, "seeded", string(first.SecretData.Reveal()))
	}
	for i := range 30 {
		name := fmt.Sprint("gone/", i)
		must(t, create(stores[0], name, "v1", "x"))
		must(t, only(stores[1].DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: upstream.SecretName(name), RecoveryWindowInDays: 7})))
	}
	clock.Advance(8 * 24 * time.Hour)
	all(func(s *Store) {
		for s.Purged() < 30 { // until nothing is due any more
			if next, err := s.Purge(context.Background()); err == nil && next == 0 {
				break
			}
		}
	})
	purged := uint64(0)
	for _, s := range stores {
		purged += s.Purged()
	}
	if purged != 30 {
		t.Errorf("%d purged", purged)
	}
	until(t, "only the seed is left", func() bool {
		out, err := stores[3].ListSecrets(t.Context(), upstream.ListSecretsInput{})
		return err == nil && out.TotalCount == 1
	})
	must(t, only(stores[2].DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "seeded", ForceDeleteWithoutRecovery: true})))
	all(func(s *Store) { must(t, s.Seed(context.Background(), seed("again"))) })
	wantErr(t, put(stores[1], "seeded", "v2", "x"), upstream.ErrNotFound)
}

// TestOutage stops the only member: reads and writes are an outage, and when it is back, what others have
// changed meanwhile is told, also where etcd has compacted it.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := upstreamtest.NewEtcd(t, nil)
	opts := optionsAt(t, server.URL, "/p/")
	opts.Timeout, opts.pulse = 500*time.Millisecond, 300*time.Millisecond
	var log upstreamtest.Buffer
	opts.Logger = log.Logger()
	server.Kill()
	s := mustOpen(t, opts) // which needs nobody
	background, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { wantErr(t, s.Run(background), nil) })
	defer running.Wait()
	defer stop()
	begin := time.Now()
	wantErr(t, create(s, "a", "v1", "one"), upstream.ErrUnavailable)
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("an outage takes %v to be told", took)
	}
	wantErr(t, only(s.ListSecrets(t.Context(), upstream.ListSecretsInput{})), upstream.ErrUnavailable)
	server.Start(t)
	until(t, "writes succeed again", func() bool { return create(s, "a", "v1", "one") == nil })
	until(t, "the watch is up", func() bool { return s.Stats().WatchUp })

	var heard atomic.Bool
	defer s.OnChange(func(upstream.SecretName) { heard.Store(true) })()
	server.Kill()
	wantErr(t, put(s, "a", "v2", "two"), upstream.ErrUnavailable)
	until(t, "the watch is told to be broken", func() bool { return !s.Stats().WatchUp })
	server.Start(t)
	other := mustOpen(t, opts)
	until(t, "the other store writes", func() bool { return put(other, "a", "v3", "three") == nil })
	until(t, "the change is told", heard.Load)
	until(t, "it is read", func() bool {
		v, err := s.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "a"})
		return err == nil && string(v.SecretData.Reveal()) == "three"
	})
	if strings.Contains(log.String(), "re-encrypted") {
		t.Errorf("the log tells of a re-encryption, and none is under way: %s", log.String())
	}
	if !strings.Contains(log.String(), "the watch of etcd is broken") {
		t.Errorf("the log does not tell: %s", log.String())
	}
}

// TestRevisionsThatGoBack: etcd was restored from an older copy, or set up anew, while the store was at work, which
// then tells what there is now.
func TestRevisionsThatGoBack(t *testing.T) {
	t.Parallel()
	server := upstreamtest.NewEtcd(t, nil)
	opts := optionsAt(t, server.URL, "/p/")
	opts.Timeout, opts.pulse = 2*time.Second, 200*time.Millisecond
	s := mustOpen(t, opts)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		must(t, create(s, name, "v1", "one"))
	}
	until(t, "it follows", func() bool { return s.Stats().WatchUp })
	server.Kill()
	server.Wipe(t)
	server.Start(t)
	other := mustOpen(t, opts)
	until(t, "the other store writes", func() bool { return create(other, "a", "v1", "anew") == nil })
	until(t, "the lists know", func() bool {
		out, err := s.ListSecrets(t.Context(), upstream.ListSecretsInput{})
		return err == nil && out.TotalCount == 1
	})
	until(t, "it is read", func() bool {
		v, err := s.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "a"})
		return err == nil && string(v.SecretData.Reveal()) == "anew"
	})
	must(t, put(s, "a", "v2", "more"))
	until(t, "a later change is told", func() bool {
		return put(other, "a", "v3", "most") == nil && s.Stats().WatchUp
	})
	wantValue(t, s, "a", "most")
}

// TestCompaction: what the watch has missed is gone from etcd, and everything is read anew.
func TestCompaction(t *testing.T) {
	opts := testOptions(t)
	s, other := mustOpen(t, opts), mustOpen(t, another(opts))
	must(t, create(s, "kept", "v1", "x"))
	must(t, create(s, "removed", "v1", "x"))
	until(t, "it follows", func() bool { return s.Stats().WatchUp })
	before := s.Stats().WatchResyncs
	var any atomic.Bool
	defer s.OnChange(func(name upstream.SecretName) {
		if name == upstream.AnySecret {
			any.Store(true)
		}
	})()
	s.db.watch.set(func() { s.db.watch.rev = 1 }) // as if it had slept since then
	must(t, only(other.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "removed", ForceDeleteWithoutRecovery: true})))
	raw := sharedClient(t)
	defer raw.Close()
	now, err := raw.Get(t.Context(), "x")
	must(t, err)
	must(t, only(raw.Compact(t.Context(), now.Header.Revision)))
	s.db.watch.set(func() { s.db.watch.rev = 1 })
	s.db.mu.Lock()
	s.db.endWatch()
	s.db.mu.Unlock()
	until(t, "everything is read anew", func() bool { return s.Stats().WatchResyncs > before && any.Load() })
	until(t, "the lists know", func() bool {
		out, err := s.ListSecrets(t.Context(), upstream.ListSecretsInput{})
		return err == nil && out.TotalCount == 1
	})
}

// TestKeyrings: an agent with another keyring serves what it can, says what it cannot, and writes nothing
// that the others cannot read.
func TestKeyrings(t *testing.T) {
	opts := testOptions(t)
	s := mustOpen(t, opts)
	must(t, create(s, "a", "v1", "one"))
	e, prefix := upstreamtest.SharedEtcd(t)
	foreign := optionsAt(t, e.URL, prefix)
	foreign.Prefix = opts.Prefix
	other := mustOpen(t, foreign)
	_, err := other.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "a"})
	wantErr(t, err, builtin.ErrKeyLost)
	wantErr(t, create(other, "b", "v1", "x"), builtin.ErrKeyLost)
	wantErr(t, put(other, "a", "v2", "x"), builtin.ErrKeyLost)
	until(t, "it says what it cannot read", func() bool { return other.Stats().Unreadable == 1 })
	if out, err := other.ListSecrets(t.Context(), upstream.ListSecretsInput{}); err != nil || out.TotalCount != 0 {
		t.Errorf("listed %+v, %v", out, err)
	}
	wantValue(t, s, "a", "one")

	// When it is given the right one, it reads all.
	right, err := os.ReadFile(opts.Keyring)
	must(t, err)
	must(t, os.WriteFile(foreign.Keyring, right, 0o600))
	commit, err := other.ReadKeyring(t.Context())
	must(t, err)
	commit()
	until(t, "everything can be read", func() bool { return other.Stats().Unreadable == 0 })
	wantValue(t, other, "a", "one")
	must(t, put(other, "a", "v2", "two"))
}

// TestCiphertextIsBound: what is sealed under one prefix, name or version opens nowhere else.
func TestCiphertextIsBound(t *testing.T) {
	opts := testOptions(t)
	s := mustOpen(t, opts)
	must(t, create(s, "a", "v1", "one"))
	must(t, create(s, "b", "v1", "two"))
	_, prefix := upstreamtest.SharedEtcd(t)
	elsewhere := opts
	elsewhere.Prefix = prefix
	raw := sharedClient(t)
	defer raw.Close()
	all, err := raw.Get(t.Context(), opts.Prefix, clientv3.WithPrefix())
	must(t, err)
	for _, kv := range all.Kvs {
		must(t, only(raw.Put(t.Context(), prefix+strings.TrimPrefix(string(kv.Key), opts.Prefix), string(kv.Value))))
		if strings.Contains(string(kv.Value), "one") {
			t.Errorf("%q is clear text", kv.Key)
		}
	}
	_, err = mustOpen(t, elsewhere).GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "a"})
	wantErr(t, err, builtin.ErrDamaged)
	value, err := raw.Get(t.Context(), opts.Prefix+"values/a\x00v1")
	must(t, err)
	must(t, only(raw.Put(t.Context(), opts.Prefix+"values/b\x00v1", string(value.Kvs[0].Value))))
	_, err = s.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "b"})
	wantErr(t, err, builtin.ErrDamaged)
}

// TestARoleWithThePrefixIsEnough runs with a user that may use nothing but the prefix, and with one that may
// use another.
func TestARoleWithThePrefixIsEnough(t *testing.T) {
	t.Parallel()
	server := upstreamtest.NewEtcd(t, nil)
	raw := client(t, server)
	defer raw.Close()
	ctx := t.Context()
	must(t, only(raw.RoleAdd(ctx, "root")))
	must(t, only(raw.UserAdd(ctx, "root", "root")))
	must(t, only(raw.UserGrantRole(ctx, "root", "root")))
	for _, name := range []string{"agent", "other"} {
		prefix := "/" + name + "/"
		must(t, only(raw.RoleAdd(ctx, name)))
		must(t, only(raw.RoleGrantPermission(ctx, name, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))))
		must(t, only(raw.UserAdd(ctx, name, "secret")))
		must(t, only(raw.UserGrantRole(ctx, name, name)))
	}
	must(t, only(raw.AuthEnable(ctx)))
	opts := optionsAt(t, server.URL, "/agent/")
	opts.User, opts.PasswordFile = "agent", opts.Keyring+".password"
	must(t, os.WriteFile(opts.PasswordFile, []byte("secret\n"), 0o600))
	s := mustOpen(t, opts)
	must(t, create(s, "a", "v1", "one"))
	must(t, put(s, "a", "v2", "two"))
	wantValue(t, s, "a", "two")
	if out, err := s.ListSecrets(ctx, upstream.ListSecretsInput{}); err != nil || out.TotalCount != 1 {
		t.Errorf("listed %+v, %v", out, err)
	}
	must(t, s.Reencrypt(ctx, nil))
	agent := newMember(t, opts) // which shows that it runs, and holds up a rotation
	must(t, only(s.RotateKey(ctx, true)))
	if n := agent.waiting(t); n != 1 {
		t.Errorf("it waits for %d agents", n)
	}
	agent.stop()
	until(t, "its watch is up", func() bool { return agent.Stats().WatchUp })
	must(t, agent.Close())
	must(t, s.CompleteRotation(ctx))
	if state, err := s.ReadKeyState(ctx); err != nil || state.Rotation != nil || state.Reencryption == nil {
		t.Errorf("an agent that has ended is waited for: %+v, %v", state, err)
	}

	denied := opts
	denied.User = "other"
	err := create(mustOpen(t, denied), "b", "v1", "x")
	wantErr(t, err, upstream.ErrUnauthenticated)
	if !contains(err, "/agent/") {
		t.Errorf("unclear: %v", err)
	}
	must(t, os.WriteFile(opts.PasswordFile, []byte("wrong"), 0o600))
	wantErr(t, create(mustOpen(t, opts), "b", "v1", "x"), upstream.ErrUnauthenticated)
}

// TestNoSpace fills the quota of etcd.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	server := upstreamtest.NewEtcd(t, nil, "--quota-backend-bytes", "2000000")
	s := mustOpen(t, optionsAt(t, server.URL, "/p/"))
	must(t, create(s, "a", "v0", "zero"))
	var err error
	for i := 1; err == nil && i < 1000; i++ {
		err = put(s, "a", fmt.Sprint("v", i), strings.Repeat("x", upstream.MaxSecretDataLen))
	}
	wantErr(t, err, upstream.ErrUnavailable)
	if !contains(err, "NOSPACE") || !contains(err, "unknown") { // etcd says so of a write that it has made, too
		t.Errorf("unclear: %v", err)
	}
	must(t, only(s.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "a"})))
}

// TestTheLargestSecret: no legal secret is too large for a transaction.
func TestTheLargestSecret(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	opts.MaxVersions = 100
	s := mustOpen(t, opts)
	data := strings.Repeat("x", upstream.MaxSecretDataLen)
	must(t, create(s, "a", "v0", data))
	for i := range 100 {
		must(t, put(s, "a", fmt.Sprint("v", i+1), data))
	}
	must(t, only(s.RotateKey(t.Context(), false)))
	must(t, s.Reencrypt(t.Context(), nil))
	keys, err := s.Keys(t.Context())
	if err != nil || len(keys) != 2 || keys[0].Values != 0 || keys[1].Values != 100 {
		t.Errorf("keys %+v, %v", keys, err)
	}
	upstreamtest.CheckRules(t, s, 100)
	must(t, only(s.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "a", ForceDeleteWithoutRecovery: true})))
	raw := sharedClient(t)
	defer raw.Close()
	left, err := raw.Get(t.Context(), opts.Prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	must(t, err)
	for _, kv := range left.Kvs {
		if !strings.HasPrefix(string(kv.Key), opts.Prefix+"key") {
			t.Errorf("left behind: %q", kv.Key)
		}
	}
}

func TestBadOptions(t *testing.T) {
	good := func() Options { return optionsAt(t, "http://127.0.0.1:1", "/p/") }
	must(t, good().Validate())
	for _, test := range []struct {
		name   string
		mutate func(*Options)
		want   string
	}{
		{"no endpoints", func(o *Options) { o.Endpoints = nil }, "endpoints: must be set"},
		{"plain text to others", func(o *Options) { o.Endpoints = []string{"http://etcd-0:2379"} }, "endpoints: http://etcd-0:2379: must be https"},
		{"no URL", func(o *Options) { o.Endpoints = []string{"etcd-0:2379"} }, "endpoints: each must be a URL"},
		{"both schemes", func(o *Options) { o.Endpoints = append(o.Endpoints, "https://etcd-1:2379") }, "endpoints: https://etcd-1:2379: must have the scheme"},
		{"a prefix without end", func(o *Options) { o.Prefix = "/p" }, "prefix: /p: must have"},
		{"a prefix within another", func(o *Options) { o.Prefix = "/p/secrets/" }, "prefix: /p/secrets/: must have no part \"secrets\""},
		{"half a certificate", func(o *Options) { o.CertFile = "x" }, "tls: certFile and keyFile"},
		{"half a user", func(o *Options) { o.User = "x" }, "user: x: user and passwordFile"},
		{"no keyring", func(o *Options) { o.Keyring += ".none" }, "keyring: "},
	} {
		opts := good()
		test.mutate(&opts)
		if err := opts.Validate(); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
		if _, err := Open(opts); err == nil {
			t.Errorf("%s: opened", test.name)
		}
	}
}
