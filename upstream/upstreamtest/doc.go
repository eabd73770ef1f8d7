// Package upstreamtest is the test kit of everything that offers or uses an
// [upstream.Manager].
//
// [Run] is the conformance suite: every promise of package upstream and of the KMS API as a
// named sub-test. Whatever claims to be a Manager passes it, alone or behind a network:
//
//	func TestConformance(t *testing.T) {
//		upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
//			store := openStore(t)
//			return upstreamtest.Harness{Manager: store, Advance: store.clock.Advance}
//		})
//	}
//
// [Fake] is a slow and obvious Manager in memory for the tests of other packages. It passes
// the suite itself, and can be told to fail, to wait and to count:
//
//	fake := upstreamtest.NewFake()
//	fake.MustCreate(t, "app/db", "v1", "secret")
//	fake.FailNext("GetSecretValue", 2, upstream.ErrThrottled)
//
// # Design notes
//
// The suite compares errors with [errors.Is] and never looks at their text, because the same
// suite runs where errors travel as codes. Where the KMS documentation is silent the suite
// pins the choice that the product made; where two choices are equally good it accepts both.
//
// The fake is the oracle of the model tests, so it keeps versions, labels and tags in maps and lists
// of its own. What a request says by itself is checked by package upstream for all backends.
package upstreamtest
