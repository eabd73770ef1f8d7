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
// # Who decides what when the upstream fails
//
//	setback of an entry   when this secret is asked next: by its back-off, later if the
//	                      service asked for that; a refusal is remembered for NegativeTTL
//	outage of the cache   whether the upstream as a whole is down: when three secrets fail in
//	                      a row, and not because they are refused, see [upstream.Down]. Then one
//	                      call per back-off probes, and lookups are answered with what is held.
//	                      Afterwards what was held up is spread over time, but for what the
//	                      service wants to be left alone for longer
//	both                  back off from 1s to 30s; what no call gets through to, see
//	                      [upstream.Unreached], is tried every second or oftener, and used at once
//	the client below      how often one call is tried, which endpoint rests, and how long the
//	                      service wants to be left alone, which its error tells the cache
//
// # Design notes
//
// Locks. All references to one secret are in one of 32 shards, so that an announced change, a
// batch and a contradiction between two labels are each one critical section. No lock is held
// while the upstream is asked, a bell is rung or a line is logged.
//
// Order of use is that of the whole cache. A hit only stamps its entry; the lists are put in
// order when something has to be evicted. Moving list elements on every hit made a hit in
// 100,000 entries three times as slow.
//
// Time on the hit path is one reading of the monotonic clock. A coarse clock kept by a ticker
// would save 30ns of 90 and wake an idle machine. A lifetime counts from the beginning of the
// call that confirmed the value: the upstream may have looked at any moment after that. The
// monotonic clock stands still while a machine sleeps. CLOCK_BOOTTIME does not, but Go can read
// it only with a system call, and so the first reading in a millisecond compares the monotonic
// clock with the wall clock, and asks the system when they differ. A second more on the wall
// clock counts as a second passed, because the pause of a virtual machine shows nowhere else; a
// clock that is set back changes nothing.
//
// A wall clock can be wrong when the agent starts. Ages of what the sealed file holds count from
// the newest time in it when the clock is behind that, and such values are stale for the reason
// ClockSkew. The first answer of the upstream settles it. A clock that is ahead cannot be told
// from a long time off: then nothing is served, but the file stays until the upstream answers. So it does where values
// become too old because the wall clock was set ahead.
//
// The end of MaxStale is noticed by a sweep over all entries at the time of the first end, at
// most once a second, and only while something fails.
//
// One moment. A state that two reads found unchanged held at all times between them. Every
// entry carries that interval in ticks, which are drawn before and after each upstream call,
// and a set of labels belongs to one moment when their intervals overlap. What does not
// overlap is read again. A label that moves away and back between two reads is noticed only
// by the version's own list of labels.
//
// Causes. A call to the upstream carries the [upstream.Cause] of the request that made it
// necessary, not of those who joined it, and none in the background.
//
// The sealed file is rewritten whole: a header with a random id, one record per value, each
// sealed with that id and its index, and a sealed end with their number. After a rewrite of n
// bytes the next one waits for n/1 MiB seconds, at least one, so that 64 MiB are written once
// a minute at most; when a secret is gone or denied, for an eighth of that; at a clean end, not
// at all. Without a change it is written every 64th of MaxStale, with the confirmations since then
// and the time. The time of confirmation is in each record, so an older copy of the file brings back
// nothing older than MaxStale. It can bring back, marked as stale while the upstream cannot be
// asked, a value that was replaced or deleted since; so can a kill within that pause, which
// [Cache.Restored] tells of, so that no file is made older. A database writes less at a time, takes
// twice the space and was 500 lines more.
//
// Values that are dropped lie in memory that is overwritten once nobody refers to it, see
// [upstream.Erasable]: they are shared, so the cache cannot know who reads them last.
package cache
