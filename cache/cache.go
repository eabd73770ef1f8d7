package cache

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"secretagent/upstream"
)

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
	wanted       func(upstream.SecretName) bool
	fetchTimeout time.Duration

	clock  *clock
	seed   maphash.Seed
	shards [shardCount]*shard
	due    schedule
	ends   ends
	outage outage

	life      context.Context // of every upstream call
	endLife   context.CancelFunc
	calls     calls
	slots     chan struct{} // one per upstream call
	refreshes chan struct{} // one per refresh in the background
	forced    *rate.Limiter // upstream calls that clients force
	tick      atomic.Uint64 // orders beginnings and ends of upstream calls
	sealed    *sealedFile   // nil without restart cache
	ran       atomic.Bool

	settings sync.Mutex // one SetLimits at a time
	limits   atomic.Pointer[Limits]
	evicting sync.Mutex // one eviction at a time

	// Sums.
	entries, bytes            [kinds]atomic.Int64 // :: why they are kept → how many, and their size; nothing for keptNot
	misses, negatives, errors atomic.Uint64
	evictions, oversized      atomic.Uint64
	throttled, subsRefused    atomic.Uint64
	waiting, subscriptions    atomic.Int64
	fetches                   [outcomes]atomic.Uint64
	events                    atomic.Int64 // remembered, of all entries
	reasons                   reasons
}

// New returns a cache in front of up. It starts no goroutine and calls no upstream; with
// [Options.Sealed] it reads the sealed file and keeps it open until [Cache.Run] or
// [Cache.Close] closes it. A sealed file that is damaged, foreign or in use is logged and
// never an error; options that make no sense, and a keyring that cannot or must not be
// used, are.
func New(up Upstream, opts Options) (*Cache, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if up == nil {
		return nil, errors.New("cache: no upstream")
	}
	opts = opts.withDefaults()
	c := &Cache{
		up:           up,
		log:          opts.Logger,
		observe:      opts.Observe,
		wanted:       opts.Wanted,
		fetchTimeout: opts.FetchTimeout,
		clock:        newClock(),
		seed:         maphash.MakeSeed(),
		due:          schedule{wake: newBell()},
		slots:        make(chan struct{}, opts.MaxFetches),
		refreshes:    make(chan struct{}, maxRefreshes),
		forced:       rate.NewLimiter(rate.Limit(opts.ForcedPerSecond), opts.ForcedBurst),
	}
	for i := range c.shards {
		c.shards[i] = newShard(c)
	}
	c.life, c.endLife = context.WithCancel(context.Background())
	if opts.Sealed != nil {
		var err error
		if c.sealed, err = openSealed(*opts.Sealed, c.log); err != nil {
			return nil, err
		}
	}
	c.limits.Store(&Limits{})
	c.applyLimits(&opts.Limits)
	c.loadSealed()
	return c, nil
}

// now returns the time on the cache's clock.
func (c *Cache) now() int64 { return c.clock.now() }

// lock locks the shard of the secret called name.
func (c *Cache) lock(name upstream.SecretName) lockedShard {
	return c.shards[maphash.String(c.seed, string(name))%shardCount].lock()
}

// Invalidate says that the backend announced a change of the secret called name. After it
// returns, no [Cache.Peek] or [Cache.Lookup] answers with what was held before as if it were
// fresh, and no call that was already under way can bring it back; [Cache.Run] fetches
// everything held of that secret at once and rings its subscribers when it differs.
//
// [upstream.AnySecret] says so of every secret.
//
// It never blocks and never calls the upstream, so it may be called from the backend's own
// announcement.
func (c *Cache) Invalidate(name upstream.SecretName) {
	c.outage.success(c.now()) // a backend that announces is not down
	if name == upstream.AnySecret {
		for _, s := range c.shards {
			sh := s.lock()
			sh.each(sh.expire)
			sh.unlock()
		}
		return
	}
	sh := c.lock(name)
	defer sh.unlock()
	for e := sh.secrets[name]; e != nil; e = e.next {
		sh.expire(e)
	}
}

// Changed says that the secret called name was changed by way of this agent, as [Cache.Invalidate]
// does, whatever the account that it is asked for with. It is the word of a client: it says nothing
// of whether the upstream is down, and is limited like the calls that clients force.
func (c *Cache) Changed(name upstream.SecretName) error {
	if err := c.force(upstream.SecretRef{SecretName: name}); err != nil {
		return err
	}
	for _, s := range c.shards {
		sh := s.lock()
		sh.each(func(e *entry) {
			if e.ref.SecretName.Name() == name.Name() {
				sh.expire(e)
			}
		})
		sh.unlock()
	}
	return nil
}

// PrepareLimits returns set, which replaces the limits, or an error that names every problem
// of them. Values that are held follow at once: lifetimes are counted anew from the last
// confirmation, what is too much is evicted, secrets that are no longer pinned may be
// evicted and newly pinned ones are fetched by [Cache.Run].
func (c *Cache) PrepareLimits(limits Limits) (set func(), err error) {
	if err := limits.Validate(); err != nil {
		return nil, err
	}
	limits = limits.withDefaults()
	return func() {
		c.settings.Lock()
		defer c.settings.Unlock()
		c.applyLimits(&limits)
	}, nil
}

func (c *Cache) applyLimits(limits *Limits) {
	before := c.limits.Swap(limits)
	pins := make(map[upstream.SecretRef]bool, len(limits.Pins))
	for _, p := range limits.Pins {
		pins[p.Ref] = true
		sh := c.lock(p.Ref.SecretName)
		e := sh.obtain(p.Ref)
		e.pinned, e.ttl, e.idle = true, p.TTL, false
		c.due.ensure(e, c.now())
		sh.unlock()
	}
	for _, p := range before.Pins {
		if !pins[p.Ref] {
			sh := c.lock(p.Ref.SecretName)
			e := sh.obtain(p.Ref)
			e.pinned, e.ttl = false, 0
			sh.unlock()
		}
	}
	for _, s := range c.shards {
		sh := s.lock()
		sh.each(sh.renew)
		sh.unlock()
	}
	c.evict()
	c.ends.soon(c.clock, 0)
	if before.MaxStale != 0 && before.MaxStale != limits.MaxStale {
		c.sealed.changed(false)
	}
}

// renew counts the lifetime of e's value anew.
func (sh lockedShard) renew(e *entry) {
	if e.value == nil || e.expires == 0 {
		return
	}
	ttl := sh.ttlOf(e)
	expires := e.fetchedAt + int64(ttl)
	if expires == e.expires {
		return
	}
	e.expires, e.idle = expires, false
	sh.c.due.set(e, e.fetchedAt+refreshAfter(ttl, e.took))
}

// ttlOf returns the lifetime of e's value.
func (sh lockedShard) ttlOf(e *entry) time.Duration {
	if e.ttl > 0 {
		return e.ttl
	}
	return sh.c.limits.Load().TTL
}
