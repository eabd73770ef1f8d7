package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"secretagent/upstream"
)

// shardCount is how many locks the cache has: enough that readers of different secrets rarely
// meet, few enough that an eviction, which looks at every shard, costs little beside the
// fetch that caused it.
const shardCount = 32

// failureMemory is how long the failure of a call makes lookups of what is held not wait for
// the next one. It is longer than the longest back-off.
const failureMemory = time.Minute

// Upstream is where values come from. Every backend of secretagent satisfies it.
//
// GetSecretValue may block; it must return promptly once ctx is done and be safe for
// concurrent use. Its errors wrap the sentinels of package upstream.
type Upstream interface {
	GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error)
}

// Cache answers from memory and keeps what it holds fresh. Make one with [New].
type Cache struct {
	up           Upstream
	log          *slog.Logger
	observe      func(Fetch)
	fetchTimeout time.Duration
	patience     time.Duration
	reportEvery  time.Duration
	maxSubs      int64

	epoch  time.Time // zero of the cache's clock
	seed   maphash.Seed
	shards [shardCount]*shard
	due    schedule
	guard  guard

	life      context.Context // of every upstream call
	endLife   context.CancelFunc
	air       airspace
	slots     chan struct{} // one per upstream call
	refreshes chan struct{} // one per refresh in the background
	forced    *rate.Limiter // upstream calls that clients force
	tick      atomic.Uint64 // orders beginnings and ends of upstream calls
	sealed    *sealedFile   // nil without restart cache
	ran       atomic.Bool

	settings sync.Mutex // one SetLimits at a time
	limits   atomic.Pointer[Limits]
	evicting sync.Mutex // one eviction at a time

	// Sums. entries and bytes are those of the LRU, held and heldBytes those outside it.
	entries, bytes, held, heldBytes atomic.Int64
	misses, negatives, errors       atomic.Uint64
	evictions, oversized            atomic.Uint64
	throttled, subsRefused          atomic.Uint64
	waiting, subscriptions          atomic.Int64
	fetches                         [outcomes]atomic.Uint64
	events                          atomic.Int64 // remembered, of all entries
}

// New returns a cache in front of up. It starts no goroutine and calls no upstream; with
// [Options.Sealed] it reads the sealed file and keeps it open until [Cache.Run] or
// [Cache.Close] closes it. A sealed file that is damaged, foreign or in use is logged and
// never an error; options that make no sense, and a keyring that cannot or must not be
// used, are.
func New(up Upstream, opts Options) (*Cache, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	if up == nil {
		return nil, errors.New("cache: no upstream")
	}
	c := &Cache{
		up:           up,
		log:          opts.Logger,
		observe:      opts.Observe,
		fetchTimeout: opts.FetchTimeout,
		patience:     opts.Patience,
		reportEvery:  opts.ReportInterval,
		maxSubs:      int64(opts.MaxSubscriptions),
		epoch:        time.Now(),
		seed:         maphash.MakeSeed(),
		due:          schedule{wake: make(chan struct{}, 1)},
		air:          airspace{empty: make(chan struct{})},
		slots:        make(chan struct{}, opts.MaxFetches),
		refreshes:    make(chan struct{}, opts.MaxRefreshes),
		forced:       rate.NewLimiter(rate.Limit(opts.ForcedPerSecond), opts.ForcedBurst),
	}
	for i := range c.shards {
		c.shards[i] = newShard(max(1, opts.MaxNegative/shardCount))
	}
	c.life, c.endLife = context.WithCancel(context.Background())
	if opts.Sealed != nil {
		if c.sealed, err = openSealed(*opts.Sealed, c.log); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	c.limits.Store(&Limits{})
	c.applyLimits(&opts.Limits)
	c.loadSealed()
	return c, nil
}

// now returns the time on the cache's clock, which never jumps.
func (c *Cache) now() int64 { return int64(time.Since(c.epoch)) }

// at returns t on the cache's clock.
func (c *Cache) at(t time.Time) int64 { return int64(t.Sub(c.epoch)) }

func (c *Cache) shardOf(name upstream.SecretName) *shard {
	return c.shards[maphash.String(c.seed, string(name))%shardCount]
}

// Peek returns the value of ref when it is held and fresh. It never waits for the upstream
// and allocates nothing. It counts as a use of the value; a false result counts as nothing,
// because a [Cache.Lookup] follows.
func (c *Cache) Peek(ref upstream.SecretRef) (answer upstream.Answer, ok bool) {
	ref = ref.WithDefaults()
	now := c.now()
	sh := c.shardOf(ref.SecretName)
	sh.mu.Lock()
	if e := sh.find(ref); e != nil && now < e.expires {
		c.touch(sh, e, now)
		sh.hits++
		answer, ok = e.answer(), true
	}
	sh.mu.Unlock()
	return answer, ok
}

// answer returns the value of e as a hit.
func (e *entry) answer() upstream.Answer {
	return upstream.Answer{Value: e.value, Memo: e.memo, FetchedAt: e.fetchedAt}
}

// Lookup returns the value of ref: a fresh one from memory, or one that the upstream gives
// now, shared with everyone who asks at the same time, or, when the upstream cannot answer,
// the last good one, marked [upstream.Stale] with the reason. Once a call has failed, lookups
// of that value do not wait for the next call.
//
// It returns the error of ctx as soon as ctx is done, without disturbing others who wait for
// the same value. Other errors wrap the sentinels of package upstream: what the upstream
// said about the secret, at most [Limits.NegativeTTL] ago, or its outage when no value young
// enough is held.
func (c *Cache) Lookup(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	if answer, ok := c.Peek(ref); ok {
		return answer, nil
	}
	if err := ctx.Err(); err != nil {
		return upstream.Answer{}, err
	}
	ref = ref.WithDefaults()
	if err := ref.Validate(); err != nil {
		return upstream.Answer{}, upstream.Wrap(err, opGet, ref)
	}
	limits := c.limits.Load()
	sh := c.shardOf(ref.SecretName)
	sh.mu.Lock()
	e := sh.obtain(ref)
	now := c.now()
	if now < e.expires { // another caller was faster
		c.touch(sh, e, now)
		sh.hits++
		answer := e.answer()
		sh.mu.Unlock()
		return answer, nil
	}
	c.touch(sh, e, now)
	if answer, err, ok := c.withoutUpstream(ctx, sh, e, now, limits); ok {
		c.settle(sh, e)
		sh.mu.Unlock()
		return answer, err
	}
	f, err := c.join(sh, e, false, upstream.CauseOf(ctx))
	patient := e.value == nil
	if err != nil {
		answer, err := c.instead(sh, e, err, limits)
		c.settle(sh, e)
		sh.mu.Unlock()
		return answer, err
	}
	sh.mu.Unlock()
	return c.await(ctx, sh, e, f, patient)
}

// withoutUpstream answers a lookup of a value that is not fresh where asking the upstream is
// known to be in vain. The caller holds the shard.
func (c *Cache) withoutUpstream(ctx context.Context, sh *shard, e *entry, now int64, limits *Limits) (answer upstream.Answer, err error, ok bool) {
	if e.fail != nil && now < e.fail.until {
		if upstream.Outage(e.fail.err) {
			answer, err = c.instead(sh, e, e.fail.err, limits)
		} else {
			err = e.fail.err
			c.negatives.Add(1)
		}
		return answer, err, true
	}
	// During an outage nobody waits who can be served something. Someone has to notice that
	// it is over, though, so the upstream is asked behind the lookup.
	reason, down := c.guard.outage()
	until, _ := c.guard.blocked()
	if e.fail != nil && e.fail.until != 0 && upstream.Outage(e.fail.err) && time.Since(e.fail.at) < failureMemory+c.fetchTimeout {
		reason, down, until = upstream.Code(e.fail.err), true, max(until, e.fail.until)
	}
	if !down || e.value == nil || !c.servable(e, limits) {
		return answer, nil, false
	}
	if now >= until {
		if _, err := c.join(sh, e, false, upstream.CauseOf(ctx)); err == nil {
			c.guard.begin(now, c.fetchTimeout)
		}
	}
	return c.staleAnswer(sh, e, reason), nil, true
}

// await waits for f. An impatient caller is served what is held when the upstream is slow.
func (c *Cache) await(ctx context.Context, sh *shard, e *entry, f *flight, patient bool) (upstream.Answer, error) {
	c.waiting.Add(1)
	defer c.waiting.Add(-1)
	var enough <-chan time.Time
	if !patient {
		timer := time.NewTimer(c.patience)
		defer timer.Stop()
		enough = timer.C
	}
	for {
		select {
		case <-f.done:
			if f.err == nil {
				c.misses.Add(1)
				return f.answer, nil
			}
			if !upstream.Outage(f.err) {
				c.negatives.Add(1)
				return upstream.Answer{}, f.err
			}
			sh.mu.Lock()
			defer sh.mu.Unlock()
			answer, err := c.instead(sh, e, f.err, c.limits.Load())
			c.settle(sh, e)
			return answer, err
		case <-ctx.Done():
			return upstream.Answer{}, ctx.Err()
		case <-enough:
			sh.mu.Lock()
			if e.value != nil && c.servable(e, c.limits.Load()) {
				answer := c.staleAnswer(sh, e, upstream.Code(upstream.ErrUnavailable))
				sh.mu.Unlock()
				return answer, nil
			}
			sh.mu.Unlock()
			enough = nil
		}
	}
}

// instead answers a lookup that an outage stopped: with the held value, or, when there is
// none young enough, with an error. The caller holds the shard and settles e.
func (c *Cache) instead(sh *shard, e *entry, outage error, limits *Limits) (upstream.Answer, error) {
	if e.value != nil && c.servable(e, limits) {
		return c.staleAnswer(sh, e, upstream.Code(outage)), nil
	}
	c.errors.Add(1)
	switch {
	case e.value != nil:
		if e.fail == nil {
			e.fail = &failure{err: outage, at: time.Now(), backoff: newBackoff()}
		}
		c.lapse(e)
		return upstream.Answer{}, c.failureError(e, limits)
	case e.fail != nil:
		return upstream.Answer{}, c.failureError(e, limits)
	default:
		return upstream.Answer{}, outage
	}
}

// staleAnswer returns the value of e marked as stale and counts it. The caller holds the
// shard.
func (c *Cache) staleAnswer(sh *shard, e *entry, reason string) upstream.Answer {
	sh.stale[reason]++
	c.noteStale(e, reason)
	answer := e.answer()
	answer.Freshness, answer.Reason = upstream.Stale, reason
	return answer
}

// servable reports whether the value of e is young enough to be served during an outage.
// A clock that was set back makes nothing younger, a machine that slept makes things older.
func (c *Cache) servable(e *entry, limits *Limits) bool {
	if limits.MaxStale == Never {
		return false
	}
	now := time.Now()
	age := max(now.Sub(e.fetchedAt), now.Round(0).Sub(e.fetchedAt.Round(0)))
	return age <= limits.MaxStale
}

// failureError returns why there is no value in e, whose last call failed.
func (c *Cache) failureError(e *entry, limits *Limits) error {
	if upstream.Outage(e.fail.err) && !e.fail.lapsed.IsZero() {
		return c.tooOldError(e, limits, e.fail.lapsed)
	}
	return e.fail.err
}

// tooOldError says since when the upstream has not confirmed the value of e.
func (c *Cache) tooOldError(e *entry, limits *Limits, fetched time.Time) error {
	err := &upstream.Error{Op: opGet, Ref: e.ref, Err: upstream.ErrUnavailable}
	bound := "no stale value may be served"
	if limits.MaxStale != Never {
		bound = fmt.Sprintf("the last good value may be served for %s", limits.MaxStale)
	}
	err.Message = fmt.Sprintf("the upstream has not confirmed it since %s and %s", fetched.UTC().Format(time.RFC3339), bound)
	if e.fail != nil {
		err.Message += "; last failure: " + upstream.Code(e.fail.err)
		var detail *upstream.Error
		if errors.As(e.fail.err, &detail) {
			err.RequestID, err.Endpoint, err.RetryAfter = detail.RequestID, detail.Endpoint, detail.RetryAfter
		}
	}
	return err
}

// GetSecretValue returns the value of [Cache.Lookup], fresh or stale.
func (c *Cache) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	answer, err := c.Lookup(ctx, ref)
	if err != nil {
		return upstream.SecretValue{}, err
	}
	return *answer.Value, nil
}

// Invalidate says that the backend announced a change of the secret called name. After it
// returns, no [Cache.Peek] or [Cache.Lookup] answers with what was held before as if it were
// fresh, and no call that was already under way can bring it back; [Cache.Run] fetches
// everything held of that secret at once and rings its subscribers when it differs.
//
// It never blocks and never calls the upstream, so it may be called from the backend's own
// announcement.
func (c *Cache) Invalidate(name upstream.SecretName) {
	c.guard.success() // a backend that announces is not down
	sh := c.shardOf(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for e := sh.secrets[name]; e != nil; e = e.next {
		c.distrust(e)
	}
}

// ttlOf returns the lifetime of e's value.
func (c *Cache) ttlOf(e *entry, limits *Limits) time.Duration {
	if e.ttl > 0 {
		return e.ttl
	}
	return limits.TTL
}

// SetLimits replaces the limits, all of them or, with an error that names every problem,
// none. Values that are held follow at once: lifetimes are counted anew from the last
// confirmation, what is too much is evicted, secrets that are no longer pinned may be
// evicted and newly pinned ones are fetched by [Cache.Run].
func (c *Cache) SetLimits(limits Limits) error {
	set, err := c.PrepareLimits(limits)
	if err != nil {
		return err
	}
	set()
	return nil
}

// PrepareLimits is the half of [Cache.SetLimits] that can fail; set is the other one.
func (c *Cache) PrepareLimits(limits Limits) (set func(), err error) {
	limits, err = limits.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return func() {
		c.settings.Lock()
		defer c.settings.Unlock()
		c.applyLimits(&limits)
	}, nil
}

func (c *Cache) applyLimits(limits *Limits) {
	before := c.limits.Swap(limits)
	pins := make(map[upstream.SecretRef]time.Duration, len(limits.Pins))
	for _, p := range limits.Pins {
		pins[p.Ref] = p.TTL
		c.pin(p.Ref, p.TTL)
	}
	for _, p := range before.Pins {
		if _, still := pins[p.Ref]; !still {
			c.unpin(p.Ref)
		}
	}
	for _, sh := range c.shards {
		sh.mu.Lock()
		for _, e := range sh.secrets {
			for ; e != nil; e = e.next {
				c.renew(e, limits)
			}
		}
		sh.mu.Unlock()
	}
	c.evict()
}

func (c *Cache) pin(ref upstream.SecretRef, ttl time.Duration) {
	sh := c.shardOf(ref.SecretName)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.obtain(ref)
	e.pinned, e.ttl, e.idle = true, ttl, false
	c.settle(sh, e)
	c.due.ensure(e, c.now())
}

func (c *Cache) unpin(ref upstream.SecretRef) {
	sh := c.shardOf(ref.SecretName)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if e := sh.find(ref); e != nil {
		e.pinned, e.ttl = false, 0
		c.settle(sh, e)
	}
}

// renew counts the lifetime of e's value anew. The caller holds the shard.
func (c *Cache) renew(e *entry, limits *Limits) {
	if e.value == nil || e.expires == 0 {
		return
	}
	confirmed, ttl := c.at(e.fetchedAt), c.ttlOf(e, limits)
	expires := confirmed + int64(ttl)
	if expires == e.expires {
		return
	}
	e.expires, e.idle = expires, false
	c.due.set(e, confirmed+refreshAfter(ttl, e.took))
}
