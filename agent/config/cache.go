package config

import (
	"time"

	"secretagent/upstream"
)

// Cache is what is kept in memory, and for how long.
type Cache struct {
	MaxEntries  int           `yaml:"maxEntries" default:"1000" min:"1" max:"10000000"`
	MaxBytes    ByteSize      `yaml:"maxBytes" default:"64MiB" min:"64KiB" max:"64GiB"`
	TTL         time.Duration `yaml:"ttl" default:"5m" min:"1s" max:"168h"`
	MaxStale    time.Duration `yaml:"maxStale" default:"24h" min:"0s" max:"8760h"` // beyond ttl, while the upstream fails
	NegativeTTL time.Duration `yaml:"negativeTTL" default:"5s" min:"0s" max:"1h"`  // of "not found" and "denied"
	Forced      Forced        `yaml:"forcedRefresh"`
	Sealed      *Sealed       `yaml:"sealed"` // nil: nothing survives a restart
}

// Forced bounds the calls to the upstream that clients can cause with refreshNow and reports,
// all of them together.
type Forced struct {
	PerSecond float64 `yaml:"perSecond" default:"10" min:"0.01" max:"10000"`
	Burst     int     `yaml:"burst" default:"20" min:"1" max:"10000"`
}

// Sealed is the encrypted copy of the cache that bridges a restart without upstream.
type Sealed struct {
	Path     Path     `yaml:"path" default:"$STATE_DIRECTORY/data/cache.db" path:"write"`
	Keyring  Path     `yaml:"keyring" default:"$STATE_DIRECTORY/keys/keyring.json" path:"watch,write"` // created when missing
	MaxBytes ByteSize `yaml:"maxBytes" default:"64MiB" min:"64KiB" max:"64GiB"`
}

// Secret is a declared secret: fetched at start, never evicted, part of readiness.
type Secret struct {
	Name upstream.SecretRef `yaml:"name" required:"true"`    // with a label: name:Label
	TTL  time.Duration      `yaml:"ttl" min:"1s" max:"168h"` // zero: that of the cache
}

// check shortens the default of negativeTTL where ttl alone is set: that is no conflict.
func (c *Cache) check(p *problems) {
	if !p.has("cache.negativeTTL") {
		c.NegativeTTL = min(c.NegativeTTL, c.TTL)
	}
}
