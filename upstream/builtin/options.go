package builtin

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"
)

// Options says where a [Store] keeps its files. Database and Keyring are required; the zero
// value of every other field means its default.
type Options struct {
	// Database is the path of the bbolt file. It is created, mode 0600 in a folder of mode
	// 0700, when it does not exist.
	Database string

	// Keyring is the path of the key file. It is created like Database, unless the
	// database already holds secrets: then its keys are lost, and [Open] says so.
	Keyring string

	// KeyringIsCredential says that a service manager hands the keyring over, as systemd does
	// with LoadCredential=: its group may then read it. systemd gives such a file mode 0440,
	// where the bit of the group is the mask of an access list that names one user.
	KeyringIsCredential bool

	// MaxVersions is how many versions a secret keeps, 2 to 100; zero means 10.
	MaxVersions int

	// Region and AccountID appear in ARNs; empty means "local" and "0".
	Region    string
	AccountID string

	// LockTimeout is how long [Open] waits for another process to release the database,
	// at most a minute; zero means one second.
	LockTimeout time.Duration

	// Logger receives warnings and what happens in the background, never a value.
	// Nil discards.
	Logger *slog.Logger

	// Now is the clock; nil means [time.Now]. It decides about creation times and
	// deletion windows. [Store.Run] sleeps in real time.
	Now func() time.Time
}

func (o Options) withDefaults() (Options, error) {
	var problems []error
	bad := func(field, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if o.Database == "" {
		bad("Database", "is needed: the path of the database file")
	}
	if o.Keyring == "" {
		bad("Keyring", "is needed: the path of the key file, on another volume than the database where possible")
	}
	if o.Database != "" && filepath.Clean(o.Database) == filepath.Clean(o.Keyring) {
		bad("Keyring", "must be another file than Database")
	}
	if o.MaxVersions == 0 {
		o.MaxVersions = 10
	}
	if o.MaxVersions < 2 || o.MaxVersions > 100 {
		bad("MaxVersions", "%d is not in the range 2 to 100", o.MaxVersions)
	}
	if o.Region == "" {
		o.Region = "local"
	}
	if o.AccountID == "" {
		o.AccountID = "0"
	}
	for _, part := range []struct{ field, value string }{{"Region", o.Region}, {"AccountID", o.AccountID}} {
		if strings.ContainsAny(part.value, ":/ ") {
			bad(part.field, "%q must not contain ':', '/' or a space: it is part of an ARN", part.value)
		}
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = time.Second
	}
	if o.LockTimeout < 0 || o.LockTimeout > time.Minute {
		bad("LockTimeout", "%s is not in the range 0 to 1m", o.LockTimeout)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if len(problems) > 0 {
		return o, fmt.Errorf("local backend: %w", errors.Join(problems...))
	}
	return o, nil
}
