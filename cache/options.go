package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"golang.org/x/time/rate"

	"secretagent/upstream"
)

// Never switches a bound of [Limits] off where its comment says so.
const Never time.Duration = -1

// Pin declares a secret: it is fetched by [Cache.Warm], kept fresh whether or not anyone
// asks for it, and never evicted.
type Pin struct {
	Ref upstream.SecretRef
	TTL time.Duration // zero: Limits.TTL
}

// Limits are the settings that can change while the cache works; see [Cache.SetLimits].
type Limits struct {
	// TTL is how long a value is fresh after the upstream confirmed it. It must be positive;
	// zero means 5m. A cache that keeps nothing is no cache: callers who want the upstream's
	// own answer use [Cache.RefreshNow].
	TTL time.Duration

	// MaxStale is the greatest age, counted from the last confirmation, at which a value is
	// still served while the upstream cannot answer. Zero means 24h, [Never] that no stale
	// value is served.
	MaxStale time.Duration

	// NegativeTTL is how long "no such secret" and the like are remembered. Zero means 5s,
	// [Never] that every lookup asks again.
	NegativeTTL time.Duration

	// MaxEntries and MaxBytes bound the values that are neither pinned nor subscribed to.
	// Whichever is reached first, the least recently used value of the whole cache goes.
	// Bytes count the secret, the texts around it, a fixed overhead per entry, and what readers
	// keep in Answer.Memo: at least the size of one answer, and more as of the next refresh
	// when they keep more. Zero means 1000 and 64 MiB.
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

	// Patience is how long a lookup waits for a slow upstream when it could serve a stale
	// value instead. Zero means 2s.
	Patience time.Duration

	// MaxFetches bounds upstream calls at any moment, MaxRefreshes those among them that
	// nobody waits for. Zero means 32 and 8.
	MaxFetches   int
	MaxRefreshes int

	// MaxNegative bounds the remembered refusals. Zero means 1024.
	MaxNegative int

	// MaxSubscriptions bounds live subscriptions. Zero means 10000.
	MaxSubscriptions int

	// ForcedPerSecond and ForcedBurst bound the upstream calls that clients can force with
	// [Cache.RefreshNow] and [Cache.Report]. Zero means 10 and 20.
	ForcedPerSecond float64
	ForcedBurst     int

	// ReportInterval is the least time between two refreshes of one secret that
	// [Cache.Report] causes. Zero means 10s.
	ReportInterval time.Duration

	// Sealed keeps an encrypted copy of the values on disk. Nil means memory only.
	Sealed *Sealed

	// Observe is called after every upstream call, without locks and from several
	// goroutines at once. It must not block. May be nil.
	Observe func(Fetch)

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

// withDefaults returns o with zero values spelled out, or every problem of o at once.
func (o Options) withDefaults() (Options, error) {
	var errs []error
	var err error
	if o.Limits, err = o.Limits.withDefaults(); err != nil {
		errs = append(errs, err)
	}
	positive(&errs, "FetchTimeout", &o.FetchTimeout, 10*time.Second)
	positive(&errs, "Patience", &o.Patience, 2*time.Second)
	positive(&errs, "MaxFetches", &o.MaxFetches, 32)
	positive(&errs, "MaxRefreshes", &o.MaxRefreshes, 8)
	positive(&errs, "MaxNegative", &o.MaxNegative, 1024)
	positive(&errs, "MaxSubscriptions", &o.MaxSubscriptions, 10000)
	positive(&errs, "ForcedPerSecond", &o.ForcedPerSecond, 10)
	positive(&errs, "ForcedBurst", &o.ForcedBurst, 20)
	positive(&errs, "ReportInterval", &o.ReportInterval, 10*time.Second)
	if o.ForcedPerSecond > 0 && rate.Limit(o.ForcedPerSecond) == rate.Inf || math.IsNaN(o.ForcedPerSecond) {
		errs = append(errs, errors.New("ForcedPerSecond: must be a finite number"))
	}
	if o.Sealed != nil {
		sealed := *o.Sealed
		o.Sealed = &sealed
		if sealed.Path == "" {
			errs = append(errs, errors.New("Sealed.Path: must name a file"))
		}
		if sealed.Keyring == "" {
			errs = append(errs, errors.New("Sealed.Keyring: must name a file"))
		}
		if sealed.Path != "" && sealed.Path == sealed.Keyring {
			errs = append(errs, errors.New("Sealed.Keyring: must be another file than Sealed.Path"))
		}
		positive(&errs, "Sealed.MaxBytes", &o.Sealed.MaxBytes, 64<<20)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, errors.Join(errs...)
}

func (l Limits) withDefaults() (Limits, error) {
	var errs []error
	positive(&errs, "TTL", &l.TTL, 5*time.Minute)
	positive(&errs, "MaxEntries", &l.MaxEntries, 1000)
	positive(&errs, "MaxBytes", &l.MaxBytes, 64<<20)
	if l.MaxStale != Never {
		positive(&errs, "MaxStale", &l.MaxStale, 24*time.Hour)
	}
	if l.NegativeTTL != Never {
		positive(&errs, "NegativeTTL", &l.NegativeTTL, 5*time.Second)
	}
	pins := make([]Pin, len(l.Pins))
	seen := make(map[upstream.SecretRef]bool, len(l.Pins))
	for i, p := range l.Pins {
		p.Ref = p.Ref.WithDefaults()
		if err := p.Ref.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("Pins[%d].Ref: %w", i, err))
		} else if seen[p.Ref] {
			errs = append(errs, fmt.Errorf("Pins[%d].Ref: %s is declared twice", i, p.Ref))
		}
		seen[p.Ref] = true
		if p.TTL < 0 {
			errs = append(errs, fmt.Errorf("Pins[%d].TTL: %s: must not be negative", i, p.TTL))
		}
		pins[i] = p
	}
	l.Pins = pins
	return l, errors.Join(errs...)
}

// positive gives *v its default when it is zero and complains when it is negative.
func positive[T ~int | ~int64 | ~float64](errs *[]error, field string, v *T, def T) {
	switch {
	case *v == 0:
		*v = def
	case *v < 0:
		*errs = append(*errs, fmt.Errorf("%s: %v: must be positive", field, *v))
	}
}
