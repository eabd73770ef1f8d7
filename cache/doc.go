// Package cache keeps recently used secret values in memory and keeps them fresh.
//
// A [Cache] answers from an LRU that is bounded by entries and by bytes. A missing or expired
// value is fetched once, however many callers wait for it, and [Cache.Run] refreshes values
// that are in use before they expire, so that a warm lookup never waits. While the upstream
// is down, throttled or refuses our credentials, the last good value is served for at most
// Limits.MaxStale, marked as stale; that a secret is gone or denied is an answer, and drops
// the value.
//
//	c, err := cache.New(backend, cache.Options{})
//	go c.Run(ctx)
//	answer, err := c.Lookup(ctx, upstream.SecretRef{SecretName: "app/db"})
//
// A [Cache.Subscribe] channel says that something changed, never what: ask again. A backend
// that can announce changes calls [Cache.Invalidate]. With [Options.Sealed] an encrypted copy
// on disk survives a restart.
//
// Values are shared with everyone who asks, never copied: treat them as read-only. All
// methods are safe for concurrent use.
//
// # Design notes
//
// Locks. Entries live in 32 shards by the hash of the secret's name, each with one short
// mutex and one golang-lru list. All references to one secret are in one shard, so that an
// announced change, a batch and a contradiction between two labels are each one critical
// section. No lock is held while the upstream is asked, a bell is rung or a line is logged.
//
// LRU order is that of the whole cache, not of a shard: every use stamps the entry with the
// clock reading that the freshness check needs anyway, and an eviction takes the earliest
// stamp among the oldest entries of all shards. Two uses in the same instant may change
// places. The alternative, one lock for all, was exact and slower; fixed quotas per shard
// would evict a secret in use because of its neighbours.
//
// Time on the hit path is one reading of the monotonic clock, about 20ns of a 100ns hit. A
// coarse clock kept by a ticker saved less than the benchmark's noise and would have made an
// idle agent wake up for nothing.
//
// A lifetime counts from the beginning of the call that confirmed the value, because the
// upstream may have looked at any moment after that.
//
// One moment. A state that two reads found unchanged held at all times between them. Every
// entry carries that interval in ticks that are drawn before and after each upstream call,
// and a set of labels belongs to one moment when their intervals overlap. [Cache.LookupAll]
// reads again what does not overlap. Once labels are warm the proof costs nothing. It is
// blind to a label that moves away and back between two reads, unless the version's own
// labels give it away, which is compared as well.
//
// Outages. Each failing entry has its own back-off. When several different secrets fail in
// a row the upstream as a whole is taken to be down: one call per back-off interval probes,
// everyone else is served what is held, and what is overdue afterwards is spread over time.
//
// Evicted values are not overwritten. They are shared with readers without copying, so the
// cache cannot know when the last reader is done, and Go's runtime may have copied the bytes
// anyway. Copying every answer to be able to overwrite one copy would protect nothing and
// leave more copies behind.
package cache
