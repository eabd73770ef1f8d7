package etcd

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"testing"

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

// The largest secret is moved to another prefix in several transactions, each of which leaves the labels where they
// belong: readers of one that is replaced never miss it.
func TestTransferOfTheLargestSecret(t *testing.T) {
	opts := testOptions(t)
	opts.MaxVersions = 100
	from := mustOpen(t, opts)
	others := testOptions(t)
	others.MaxVersions = 100
	to := mustOpen(t, others)
	data := func(i int) string { return strings.Repeat(fmt.Sprint(i%10), upstream.MaxSecretDataLen) }
	must(t, create(from, "large", "v0", data(0)))
	must(t, create(from, "small", "v1", "one"))
	for i := 1; i < 100; i++ {
		must(t, put(from, "large", fmt.Sprintf("v%d", i), data(i)))
	}
	must(t, create(to, "large", "v99", "another one"))
	for i := 100; i < 199; i++ {
		must(t, put(to, "large", fmt.Sprintf("v%d", i), data(i)))
	}
	if got := transfer(t, builtin.Transfer{From: from, To: to}); got[builtin.Differs] != 1 || got[builtin.Copied] != 1 {
		t.Errorf("got %v", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	read := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			v, err := to.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "large"})
			if err != nil || v.VersionID != "v198" && string(v.SecretData.Reveal()) != data(99) {
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
	part.Versions = part.Versions[70:]
	must(t, to.PutSecret(t.Context(), &part, true))
	if got := transfer(t, builtin.Transfer{From: from, To: to}); got[builtin.Copied] != 1 {
		t.Errorf("got %v", got)
	}
	must(t, builtin.Same(t.Context(), from.Store, to.Store, nil))
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
