package agent

import (
	"log/slog"

	"secretagent/agent/config"
	"secretagent/cache"
)

// cacheOptions turns the configuration into that of the cache.
func cacheOptions(cfg *config.Config, log *slog.Logger) cache.Options {
	opts := cache.Options{
		Limits:       cacheLimits(cfg),
		FetchTimeout: cfg.Endpoint.LookupTimeout,
		Logger:       log.With("part", "cache"),

		ForcedPerSecond: cfg.Cache.Forced.PerSecond,
		ForcedBurst:     cfg.Cache.Forced.Burst,
	}
	kindOf(&cfg.Upstream).tune(&opts)
	if s := cfg.Cache.Sealed; s != nil {
		opts.Sealed = &cache.Sealed{Path: string(s.Path), Keyring: string(s.Keyring), KeyringIsCredential: isCredential(s.Keyring), MaxBytes: int64(s.MaxBytes)}
	}
	return opts
}

// newCommandCache makes the cache of a command, which holds only what the command asks for. The
// sealed cache belongs to the agent, which may be running.
func newCommandCache(up cache.Upstream, cfg *config.Config, log *slog.Logger) (*cache.Cache, error) {
	opts := cacheOptions(cfg, log)
	opts.Sealed, opts.Pins = nil, nil
	c, err := cache.New(up, opts)
	return c, ofCache(err)
}

// cacheLimits are the settings of the cache that can change while it works.
func cacheLimits(cfg *config.Config) cache.Limits {
	limits := cache.Limits{
		TTL:         cfg.Cache.TTL,
		MaxStale:    cfg.Cache.MaxStale,
		NegativeTTL: cfg.Cache.NegativeTTL,
		MaxEntries:  cfg.Cache.MaxEntries,
		MaxBytes:    cacheBytes(cfg),
	}
	// Zero means "off" in the configuration and "the default" in the cache.
	if limits.MaxStale == 0 {
		limits.MaxStale = cache.Never
	}
	if limits.NegativeTTL == 0 {
		limits.NegativeTTL = cache.Never
	}
	for _, s := range cfg.Secrets {
		limits.Pins = append(limits.Pins, cache.Pin{Ref: s.Name, TTL: s.TTL})
	}
	return limits
}
