package bolt

import (
	"cmp"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
)

// Options says where a [Store] keeps its files. Database and Keyring are required; the zero
// value of every other field means its default.
type Options struct {
	builtin.Options // MayMakeKeyring is set by Open

	// Database is the path of the bbolt file. It is created, mode 0600 in a folder of mode
	// 0700, when it does not exist.
	Database string

	// Existing says that [Open] makes no file: it fails with [ErrNoDatabase] where there is none.
	Existing bool

	// lockTimeout is how long Open waits for another process to release the database; zero
	// means one second.
	lockTimeout time.Duration

	// freeSpace is [keyfile.FreeSpace], but for tests.
	freeSpace func(folder string) (bytes uint64, known bool)
}

// Validate checks everything that [Open] checks without creating a file, and returns
// [upstream.OptionErrors] with keys below upstream.local. It reads the keyring where it exists.
func (o Options) Validate() error {
	var problems upstream.OptionErrors
	if o.Database == "" {
		problems.Addf("database", "", "must be set: the path of the database file")
	} else if st, err := os.Stat(o.Database); err == nil && !st.Mode().IsRegular() {
		problems.Addf("database", o.Database, "must be a regular file")
	} else if err == nil {
		problems.Add("database", keyfile.CheckThere(o.Database))
	} else if !errors.Is(err, fs.ErrNotExist) {
		problems.Add("database", err)
	}
	if o.Keyring != "" && o.Database != "" && filepath.Clean(o.Database) == filepath.Clean(o.Keyring) {
		problems.Addf("keyring", o.Keyring, "must be another file than database")
		return problems
	}
	problems.Add("", o.Options.Validate())
	return problems.Err()
}

func (o Options) withDefaults() Options {
	o.lockTimeout = cmp.Or(o.lockTimeout, time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.freeSpace == nil {
		o.freeSpace = keyfile.FreeSpace
	}
	return o
}

// Sentinels beyond those of packages upstream and builtin; each also matches the sentinel of upstream that
// it is a case of.
var (
	// ErrLocked: another process has the database open. It is an [upstream.ErrUnavailable].
	ErrLocked error = builtin.NewSentinel("the database is in use by another process (a running agent?)", upstream.ErrUnavailable)

	// ErrNoDatabase: there is no database yet, and none was to be made. It is an
	// [upstream.ErrNotFound].
	ErrNoDatabase error = builtin.NewSentinel("there is no database yet", upstream.ErrNotFound)
)
