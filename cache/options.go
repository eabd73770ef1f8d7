package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"path/filepath"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Never switches a bound of [Limits] off where its comment says so.
const Never time.Duration = -1

// Pin declares a secret: it is fetched by [Cache.Warm], kept fresh whether or not anyone
// asks for it, and never evicted.
type Pin struct {
	Ref upstream.SecretRef
	TTL time.Duration // zero: Limits.TTL
}

// Limits are the settings that can change while the cache works; see [Cache.PrepareLimits].
type Limits struct {
	// TTL is how long a value is fresh after the upstream confirmed it. It must be positive;
	// zero means 5m. A cache that keeps nothing is no cache: callers who want the upstream's
	// own answer use [Cache.RefreshNow].
	TTL time.Duration

	// MaxStale is the greatest age, counted from the last confirmation, at which a value is
	// still served while the upstream cannot answer. Zero means 24h, [Never] that no stale
	// value is served.
	MaxStale time.Duration

	// NegativeTTL is how long "no such secret" and the like are remembered, at most TTL. Zero
	// means 5s, or TTL when that is shorter, [Never] that every lookup asks again.
	NegativeTTL time.Duration

	// MaxEntries and MaxBytes bound the values that are neither pinned nor subscribed to.
	// Whichever is reached first, the least recently used value of the whole cache goes.
	// Bytes count what the secret takes in memory, the texts around it, a fixed overhead per entry,
	// and what readers keep in Answer.Derived: at least the size of one answer, and more as of the
	// next refresh when they keep more. Zero means 1000 and 64 MiB.
	MaxEntries int
	MaxBytes   int64

	// Pins are the declared secrets. They come on top of MaxEntries and MaxBytes.
	Pins []Pin
}

// Options configure [New]. The zero value of every field has a safe meaning.
type Options struct {
	Limits

	// FetchTimeout bounds one flight: the wait for a free slot and the upstream call.
	// Zero means 10s.
	FetchTimeout time.Duration

	// MaxFetches bounds upstream calls at any moment. Zero means 32.
	MaxFetches int

	// ForcedPerSecond and ForcedBurst bound the upstream calls that clients can force with
	// [Cache.RefreshNow] and [Cache.Report]. Zero means 10 and 20.
	ForcedPerSecond float64
	ForcedBurst     int

	// Sealed keeps an encrypted copy of the values on disk. Nil means memory only.
	Sealed *Sealed

	// Observe is called after every upstream call, without locks and from several
	// goroutines at once. It must not block. May be nil.
	Observe func(Fetch)

	// Wanted reports whether somebody who does not ask is to hear of changes of a secret: values of
	// it that are held are kept fresh although nobody asks. It is called with locks held: it must
	// neither block nor call the cache. May be nil.
	Wanted func(upstream.SecretName) bool

	// Logger gets failures and recoveries, never a value. Nil means none.
	Logger *slog.Logger
}

// Sealed says where the restart cache lives.
type Sealed struct {
	// Path is the file. It is created with mode 0600 in a folder of mode 0700. Beside it are a
	// lock, called like it with .lock, and while it is rewritten its successor, with .new-….
	Path string

	// Keyring is a Tink keyset in JSON. It is created with mode 0600 when it is missing, and
	// refused when group or others may read it. It belongs in another place than Path: who
	// gets both files has the secrets.
	Keyring string

	// KeyringIsCredential says that a service manager hands Keyring over, as systemd does with
	// LoadCredential=: its group may then read it. systemd gives such a file mode 0440, where
	// the bit of the group is the mask of an access list that names one user.
	KeyringIsCredential bool

	// MaxBytes bounds the records in the file: what is declared or subscribed to comes first,
	// then what was used last. Zero means 64 MiB.
	MaxBytes int64
}

// Validate returns every problem of o as [upstream.OptionErrors]. The keys are those of the
// section cache of agent.yaml, except for the pins, which are its section secrets. It reads
// the keyring when there is one, and creates nothing.
func (o Options) Validate() error {
	var p upstream.OptionErrors
	p.Add("", o.Limits.Validate())
	positive(&p, "fetchTimeout", o.FetchTimeout)
	positive(&p, "maxFetches", o.MaxFetches)
	positive(&p, "forcedRefresh.perSecond", o.ForcedPerSecond)
	positive(&p, "forcedRefresh.burst", o.ForcedBurst)
	if math.IsNaN(o.ForcedPerSecond) || o.ForcedPerSecond >= math.MaxFloat64 {
		p.Addf("forcedRefresh.perSecond", fmt.Sprint(o.ForcedPerSecond), "must be a finite number")
	}
	if o.Sealed != nil {
		p.Add("sealed", o.Sealed.validate())
	}
	return p.Err()
}

func (s *Sealed) validate() error {
	var p upstream.OptionErrors
	positive(&p, "maxBytes", s.MaxBytes)
	switch {
	case s.Path == "":
		p.Addf("path", "", "must name a file")
	case filepath.Clean(s.Path) == filepath.Clean(s.Keyring):
		p.Addf("path", s.Path, "is also the keyring")
		return p.Err()
	default:
		if err := keyfile.CheckPath(keyfile.Folder(s.Path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.Addf("path", s.Path, "%w", err)
		} else {
			p.Add("path", keyfile.CheckThere(s.Path))
		}
	}
	if s.Keyring == "" {
		p.Addf("keyring", "", "must name a file")
		return p.Err()
	}
	p.Add("keyring", keyfile.CheckKeyring(s.Keyring, s.KeyringIsCredential))
	return p.Err()
}

// Validate returns every problem of l, as [Options.Validate] does.
func (l Limits) Validate() error {
	var p upstream.OptionErrors
	positive(&p, "ttl", l.TTL)
	positive(&p, "maxEntries", l.MaxEntries)
	positive(&p, "maxBytes", l.MaxBytes)
	if l.MaxStale != Never {
		positive(&p, "maxStale", l.MaxStale)
	}
	if l.NegativeTTL != Never {
		positive(&p, "negativeTTL", l.NegativeTTL)
	}
	if ttl := l.withDefaults().TTL; l.NegativeTTL > ttl && ttl > 0 {
		p.Addf("negativeTTL", l.NegativeTTL.String(), "must not be longer than cache.ttl, %s", ttl)
	}
	seen := make(map[upstream.SecretRef]bool, len(l.Pins))
	for i, pin := range l.Pins {
		key, ref := fmt.Sprintf("pins[%d].name", i), pin.Ref.WithDefaults()
		if err := ref.Validate(); err != nil {
			p.Add(key, err)
		} else if seen[ref] {
			p.Addf(key, pin.Ref.String(), "is declared twice: keep one")
		}
		seen[ref] = true
		positive(&p, fmt.Sprintf("pins[%d].ttl", i), pin.TTL)
	}
	return p.Err()
}

// positive adds a problem when v is negative. Zero stands for the default.
func positive[T ~int | ~int64 | ~float64](p *upstream.OptionErrors, key string, v T) {
	if v < 0 {
		p.Addf(key, fmt.Sprint(v), "must be positive")
	}
}

// withDefaults returns o with zero values spelled out.
func (o Options) withDefaults() Options {
	o.Limits = o.Limits.withDefaults()
	o.FetchTimeout = cmp.Or(o.FetchTimeout, 10*time.Second)
	o.MaxFetches = cmp.Or(o.MaxFetches, 32)
	o.ForcedPerSecond = cmp.Or(o.ForcedPerSecond, 10)
	o.ForcedBurst = cmp.Or(o.ForcedBurst, 20)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.Sealed != nil {
		sealed := *o.Sealed
		sealed.MaxBytes = cmp.Or(sealed.MaxBytes, 64<<20)
		o.Sealed = &sealed
	}
	return o
}

func (l Limits) withDefaults() Limits {
	l.TTL = cmp.Or(l.TTL, 5*time.Minute)
	l.MaxStale = cmp.Or(l.MaxStale, 24*time.Hour)
	l.NegativeTTL = cmp.Or(l.NegativeTTL, min(5*time.Second, l.TTL))
	l.MaxEntries = cmp.Or(l.MaxEntries, 1000)
	l.MaxBytes = cmp.Or(l.MaxBytes, 64<<20)
	pins := make([]Pin, len(l.Pins))
	for i, p := range l.Pins {
		pins[i] = Pin{Ref: p.Ref.WithDefaults(), TTL: p.TTL}
	}
	l.Pins = pins
	return l
}
