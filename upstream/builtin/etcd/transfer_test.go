package etcd

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

func transfer(tb testing.TB, t builtin.Transfer) map[string]int {
	tb.Helper()
	moved, err := t.Run(context.Background())
	must(tb, err)
	results := map[string]int{}
	for _, m := range moved {
		results[m.Result]++
	}
	return results
}

// A large secret is moved to another prefix in several transactions, each of which leaves the labels where they
// belong: readers of one that is replaced never miss it.
func TestTransferOfALargeSecret(t *testing.T) {
	opts := testOptions(t)
	opts.MaxVersions = 100
	from := mustOpen(t, opts)
	others := testOptions(t)
	others.MaxVersions = 100
	to := mustOpen(t, others)
	data := func(i int) string { return strings.Repeat(fmt.Sprint(i%10), upstream.MaxSecretDataLen) }
	must(t, create(from, "large", "v0", data(0)))
	must(t, create(from, "small", "v1", "one"))
	const last = 44 // of the versions, for which three transactions are needed
	for i := 1; i <= last; i++ {
		must(t, put(from, "large", fmt.Sprintf("v%d", i), data(i)))
	}
	must(t, create(to, "large", fmt.Sprintf("v%d", last), "another one"))
	for i := 100; i < 199; i++ { // that have to go in the first one
		must(t, put(to, "large", fmt.Sprintf("v%d", i), "small"))
	}
	if got := transfer(t, builtin.Transfer{From: from, To: to}); got[builtin.Differs] != 1 || got[builtin.Copied] != 1 {
		t.Errorf("got %v", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	read := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			v, err := to.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "large"})
			if err != nil || v.VersionID != "v198" && string(v.SecretData.Reveal()) != data(last) {
				read <- fmt.Errorf("a reader got %s, %v", v.VersionID, err)
				return
			}
		}
		read <- nil
	}()
	got := transfer(t, builtin.Transfer{From: from, To: to, Replace: true})
	stop()
	must(t, <-read)
	if got[builtin.Replaced] != 1 || got[builtin.Unchanged] != 1 {
		t.Errorf("got %v", got)
	}
	must(t, builtin.Same(t.Context(), from.Store, to.Store, nil))

	// One that was interrupted between two transactions is completed.
	whole, err := from.Lookup(t.Context(), []upstream.SecretName{"large"})
	must(t, err)
	part := *whole["large"]
	part.Versions = part.Versions[30:]
	must(t, to.PutSecret(t.Context(), &part, true))
	if got := transfer(t, builtin.Transfer{From: from, To: to}); got[builtin.Copied] != 1 {
		t.Errorf("got %v", got)
	}
	must(t, builtin.Same(t.Context(), from.Store, to.Store, nil))
}

// A transfer of one moment, as a backup is, has all that was acknowledged before it began, and each secret as it was: here
// version vN has the value N and is current, and the version before it is the previous one.
func TestTransferWhileOthersWrite(t *testing.T) {
	from := mustOpen(t, testOptions(t))
	const count = 20
	for i := range count {
		must(t, create(from, fmt.Sprintf("s%02d", i), "v0", "0"))
	}
	var (
		mu           sync.Mutex
		acknowledged = map[string]int{}
		writers      sync.WaitGroup
	)
	ctx, stop := context.WithCancel(t.Context())
	for w := range 4 {
		writers.Go(func() {
			for i := 1; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("s%02d", 5*w)
				if err := put(from, name, fmt.Sprintf("v%d", i), fmt.Sprint(i)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acknowledged[name] = i
				mu.Unlock()
			}
		})
	}
	for range 3 {
		to := mustOpen(t, testOptions(t))
		time.Sleep(20 * time.Millisecond)
		mu.Lock()
		before := maps.Clone(acknowledged)
		mu.Unlock()
		moved, err := builtin.Transfer{From: from, To: to, Moment: true}.Run(t.Context())
		if err != nil || len(moved) != count {
			t.Errorf("moved %d, %v", len(moved), err)
		}
		for name, n := range before {
			v, err := to.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: upstream.SecretName(name)})
			is := 0
			_, _ = fmt.Sscan(string(v.SecretData.Reveal()), &is)
			if err != nil || is < n || v.VersionID != upstream.VersionID(fmt.Sprintf("v%d", is)) {
				t.Errorf("%s is %d as %s, %v; %d was acknowledged before", name, is, v.VersionID, err, n)
			}
			v, err = to.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: upstream.SecretName(name), VersionStage: upstream.ACSPrevious})
			if err != nil || v.VersionID != upstream.VersionID(fmt.Sprintf("v%d", is-1)) {
				t.Errorf("before v%d, %s was %s, %v", is, name, v.VersionID, err)
			}
		}
	}
	stop()
	writers.Wait()
}

// What etcd has compacted cannot be had any more as it was: a transfer goes on with another moment, unless it must not.
func TestTransferMeetsACompaction(t *testing.T) {
	s := upstreamtest.NewEtcd(t, nil) // others would meet it too
	from, to := mustOpen(t, optionsAt(t, s.URL, "/from/")), mustOpen(t, optionsAt(t, s.URL, "/to/"))
	for i := range 40 { // on several pages
		must(t, create(from, fmt.Sprintf("s%d", i), "v1", "one"))
	}
	for _, moment := range []bool{true, false} {
		compacts := &compacting{Store: from, compact: func() {
			must(t, put(from, "s0", fmt.Sprint(moment), "another"))
			raw := client(t, s)
			defer raw.Close()
			answer, err := raw.Get(t.Context(), "x")
			must(t, err)
			must(t, only(raw.Compact(t.Context(), answer.Header.Revision, clientv3.WithCompactPhysical())))
		}}
		_, err := builtin.Transfer{From: compacts, To: to, Moment: moment, Replace: true}.Run(t.Context())
		if moment {
			wantErr(t, err, builtin.ErrMomentLost)
		} else {
			must(t, err)
			must(t, builtin.Same(t.Context(), from.Store, to.Store, nil))
		}
	}
}

// compacting is a store that changes, and whose etcd is compacted, while it is read for the first time.
type compacting struct {
	*Store
	compact func()
}

func (c *compacting) Secrets(ctx context.Context, prefix string, fn func(iter.Seq2[*builtin.Secret, error]) error) error {
	return c.Store.Secrets(ctx, prefix, func(all iter.Seq2[*builtin.Secret, error]) error {
		return fn(func(yield func(*builtin.Secret, error) bool) {
			for s, err := range all {
				if c.compact != nil {
					c.compact()
					c.compact = nil
				}
				if !yield(s, err) {
					return
				}
			}
		})
	})
}
