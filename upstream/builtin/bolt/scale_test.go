package bolt

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"secretagent/upstream"
)

// fill creates n secrets, each with a description and three tags: env, which ten share out, team,
// a hundred, and serial, which is its own.
func fill(tb testing.TB, s *Store, n int) {
	tb.Helper()
	s.db.bolt.NoSync = true
	defer func() { s.db.bolt.NoSync = false }()
	writers, ctx := errgroup.WithContext(context.Background())
	for w := range maxBatch {
		writers.Go(func() error {
			for i := w; i < n; i += maxBatch {
				_, err := s.CreateSecret(ctx, upstream.CreateSecretInput{
					SecretName: filled(i), VersionID: "v1", SecretData: secret("value"), Description: fmt.Sprint("secret number ", i),
					Tags: []upstream.Tag{
						{Key: "env", Value: fmt.Sprint(i % 10)}, {Key: "team", Value: fmt.Sprint(i % 100)}, {Key: "serial", Value: fmt.Sprint(i)},
					},
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(tb, writers.Wait())
}

// filled is the name of the secret of that number.
func filled(i int) upstream.SecretName {
	return upstream.SecretName(fmt.Sprintf("app/%03d/secret-%06d", i%1000, i))
}

// filters selects secrets whose keys have those values.
func filters(keysAndValues ...string) (all []upstream.Filter) {
	for i := 0; i < len(keysAndValues); i += 2 {
		all = append(all, upstream.Filter{Key: keysAndValues[i], Values: []string{keysAndValues[i+1]}})
	}
	return all
}

// BenchmarkScale shows what reading costs in small databases and in large ones. A page that is
// "cold" is the first one of its filters, or the first one after a change.
func BenchmarkScale(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		if n > 1_000 && testing.Short() {
			continue
		}
		s := mustOpen(b, testOptions(b))
		fill(b, s, n)
		s = reopen(b, s) // what was read in order lies in order
		bench := func(name string, fn func(i int) error) {
			b.Run(fmt.Sprintf("%s/secrets=%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if err := fn(i); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		ctx := context.Background()
		list := func(in upstream.ListSecretsInput) func(int) error {
			return func(i int) error {
				if in.Page.Number == 0 { // another page each time
					p := in
					p.Page.Number = i*7919%max(1, n/in.Page.Size) + 1
					return only(s.ListSecrets(ctx, p))
				}
				return only(s.ListSecrets(ctx, in))
			}
		}
		// cold asks for something else each time, with the same answer.
		cold := func(in upstream.ListSecretsInput) func(int) error {
			return func(i int) error {
				p, other := in, fmt.Sprint("none/", i)
				if len(p.Filters) > 0 {
					f := p.Filters[0]
					p.Filters = append([]upstream.Filter{{Key: f.Key, Values: append(slices.Clone(f.Values), other)}}, p.Filters[1:]...)
				} else {
					p.Permitted = append(slices.Clone(p.Permitted), other)
				}
				return only(s.ListSecrets(ctx, p))
			}
		}
		coldTags := func(tag upstream.Tag) func(int) error {
			return func(i int) error {
				return only(s.ListTagResources(ctx, upstream.ListTagResourcesInput{Tags: []upstream.Tag{tag}, Permitted: []string{"*", fmt.Sprint("none/", i)}}))
			}
		}
		page := upstream.Page{Size: 100}
		first := upstream.Page{Number: 1, Size: 100}
		bench("GetSecretValue", func(i int) error {
			return only(s.GetSecretValue(ctx, upstream.SecretRef{SecretName: filled(i * 7919 % n)}))
		})
		bench("DescribeSecret", func(i int) error { return only(s.DescribeSecret(ctx, filled(i*7919%n), true)) })
		bench("page/of=all", list(upstream.ListSecretsInput{Page: page}))
		bench("page/of=permitted", list(upstream.ListSecretsInput{Page: page, Permitted: []string{"app/*"}}))
		bench("page/of=tag", list(upstream.ListSecretsInput{Page: first, Filters: filters("TagKey", "env", "TagValue", "3")}))
		for name, f := range map[string][]upstream.Filter{
			"name":        filters("SecretName", string(filled(n/2))),
			"tag":         filters("TagKey", "env", "TagValue", "3"),
			"everyTag":    filters("TagKey", "env"),
			"serial":      filters("TagValue", fmt.Sprint(n-1)),
			"description": filters("Description", fmt.Sprint("secret number ", n/2)),
		} {
			bench("page/cold/of="+name, cold(upstream.ListSecretsInput{Page: first, Filters: f}))
		}
		bench("page/cold/of=permitted", cold(upstream.ListSecretsInput{Page: first, Permitted: []string{"app/*", "other/*"}}))
		bench("page/cold/of=permittedTag", cold(upstream.ListSecretsInput{Page: first, Permitted: []string{"app/*-*9", "other/*"}, Filters: filters("TagKey", "env")}))
		bench("tags/of=team", coldTags(upstream.Tag{Key: "team", Value: "7"}))
		bench("tags/of=serial", coldTags(upstream.Tag{Key: "serial", Value: fmt.Sprint(n - 1)}))
		bench("Purge", func(int) error { return only(s.Purge(ctx)) })
		b.Run(fmt.Sprintf("Open/secrets=%d", n), func(b *testing.B) {
			must(b, s.Close())
			opts := s.opts
			s = nil
			before := heap()
			b.ReportAllocs()
			for b.Loop() {
				if s != nil {
					must(b, s.Close())
				}
				var err error
				s, err = Open(opts)
				must(b, err)
			}
			defer s.Close()
			b.ReportMetric(float64(heap()-before)/float64(n), "heap-B/secret")
		})
	}
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
