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
// On two cores the benchmarks cannot tell 1 shard from 32, and 128 are slower; 32 leave room
// for machines that have more.
//
// Order of use is that of the whole cache, not of a shard. A hit only stamps its entry with
// the clock reading that the freshness check needs anyway; the lists are brought up to date
// when something has to be evicted, and then the earliest stamp among the oldest entries of
// all shards goes. Moving list elements on every hit gave the same order and made a hit in
// 100,000 entries three times as slow, because each move touches two strangers' memory. Two
// uses in the same instant have no order. Quotas per shard would be simpler, and would evict
// a secret that is in use because of its neighbours.
//
// Time on the hit path is one reading of the monotonic clock, some 30ns of a hit of 90ns. A
// coarse clock kept by a ticker would save half of that, and wake an idle machine for it.
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
// History. What is worth telling about a secret (versions that came into use, runs of failed
// refreshes and of stale answers) is kept with its entry: at most 48 events each and 65,536 in
// all, and none for what nobody has a stake in. Nothing of it is on the way of a fresh hit, and
// what is evicted takes its history with it.
//
// Causes. A call to the upstream is made for one request: the one that found no flight to
// join. It carries that request's [upstream.Cause] alone; the list of all who joined has no
// bound, and their own lines have their own request ids. A refresh in the background has no
// cause, also when a lookup joins it later.
//
// The sealed file is rewritten whole: a header with a random id, one record per value, each
// sealed with id and index as associated data, and a sealed end with their number. So records
// cannot be exchanged or left out, a rename puts the new file in place of the old one, and
// damage costs values and never a start. The file does not tell which secrets it holds. The
// time of the last confirmation is inside each record, so that an older copy of the file
// brings back nothing that is older than MaxStale; that it is an older copy the file cannot
// tell. After a rewrite of n bytes the next one waits for n/1 MiB seconds, at least one, so
// that 64 MiB are written once a minute at most; when a secret is gone or denied, for an eighth
// of that; at a clean end, not at all. So a value that was replaced or deleted can come back
// from an older copy, or after a kill within that pause, while the upstream is unreachable,
// marked as stale. A database would write less, and was 600 lines more.
//
// Values that are evicted, replaced or dropped are shared with readers, so the cache cannot
// know when the last of them is done. The collector can: the bytes lie in memory that is
// overwritten when nothing refers to it any more, see [upstream.Erasable]. Copying every
// answer to be able to overwrite the original would leave more copies behind than it removes.
// Sealing and opening a record overwrite the plain text; see record.go.
package cache
