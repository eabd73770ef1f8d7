package builtin

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Options says how a [Store] works. Keyring is required; the zero value of every other field means
// its default.
type Options struct {
	// Keyring is the path of the key file. It is created, mode 0600 in a folder of mode 0700, when
	// it does not exist, unless there are secrets already: then their keys are lost, and [Open] says so.
	Keyring string

	// KeyringIsCredential says that a service manager hands the keyring over, as systemd does
	// with LoadCredential=: its group may then read it. systemd gives such a file mode 0440,
	// where the bit of the group is the mask of an access list that names one user.
	KeyringIsCredential bool

	// MayMakeKeyring returns why a keyring that is missing is not to be made. Nil: it is made.
	MayMakeKeyring func() error

	// ReadOnly says that nothing is written: writes fail with [upstream.ErrUnsupported], and no keyring is made.
	ReadOnly bool

	// MaxVersions is how many versions a secret keeps, 2 to 100; zero means 10.
	MaxVersions int

	// Emulate is what is done as the cloud does it.
	Emulate Emulate

	// Seed is what is to be created for demonstrations and tests. [Open] checks it and no more;
	// [Store.Seed] creates it.
	Seed []upstream.CreateSecretInput

	// Logger receives warnings and what happens in the background, never a value.
	// Nil discards.
	Logger *slog.Logger

	// Now is the clock; nil means [time.Now]. It decides about creation times and
	// deletion windows. [Store.Run] sleeps in real time.
	Now func() time.Time
}

// Validate checks everything that [Open] checks without creating a file, and returns
// [upstream.OptionErrors]. It reads the keyring where it exists.
func (o Options) Validate() error {
	var problems upstream.OptionErrors
	if o.Keyring == "" {
		problems.Addf("keyring", "", "must be set: the path of the key file")
	} else if _, err := newKeys(keyfile.ReadKeyring(o.Keyring, o.KeyringIsCredential)); errors.Is(err, fs.ErrNotExist) {
		problems.Add("keyring", keyfile.KeyringFile.Check(o.Keyring)) // made where it is missing
	} else {
		problems.Add("keyring", err)
	}
	if o.MaxVersions != 0 && (o.MaxVersions < 2 || o.MaxVersions > 100) {
		problems.Addf("maxVersions", strconv.Itoa(o.MaxVersions), "must be in the range 2 to 100")
	}
	problems.Add("emulate", o.Emulate.validate())
	for i, in := range o.Seed {
		validateSeed(&problems, fmt.Sprintf("seed[%d]", i), in)
	}
	return problems.Err()
}

// validateSeed adds what is wrong with a secret of the seed, in the words of agent.yaml.
func validateSeed(problems *upstream.OptionErrors, key string, in upstream.CreateSecretInput) {
	e, ok := errors.AsType[*upstream.Error](in.Validate())
	if !ok {
		return
	}
	switch e.Parameter {
	case "SecretName":
		problems.Addf(key+".name", string(in.SecretName), "%s", e.Reason)
	case "VersionId":
		problems.Addf(key+".versionId", string(in.VersionID), "%s", e.Reason)
	case "SecretData":
		reason := e.Reason
		if n := in.SecretData.Len(); n < 1 || n > upstream.MaxSecretDataLen {
			reason = fmt.Sprintf("must have 1 to %d bytes, these are %d", upstream.MaxSecretDataLen, n)
		}
		problems.Addf(key+".data", "", "%s", reason)
	default:
		problems.Add(key, e)
	}
}

func (o Options) withDefaults() Options {
	o.MaxVersions = cmp.Or(o.MaxVersions, 10)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}
