package render

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"secretagent/upstream"
)

// Source is where values come from. It must be safe for concurrent use.
type Source interface {
	// GetSecretValues returns the values of refs, in their order, from one consistent
	// moment: two labels of one secret never mix two rotations. It returns all of them or an
	// error that wraps the sentinels of upstream and quotes no value.
	GetSecretValues(ctx context.Context, refs ...upstream.SecretRef) ([]upstream.SecretValue, error)

	// Subscribe returns a channel of size one on which the source says, without blocking,
	// that one of refs may have changed, appeared or gone since. It calls back nothing.
	// A nil channel says that the source takes no more subscriptions: Run then looks once a
	// minute. cancel ends the subscription.
	Subscribe(refs ...upstream.SecretRef) (changed <-chan struct{}, cancel func())
}

// Restoring is a [Source] that may begin with values from before a crash, which lack what changed just before it.
// What [Renderer.Run] finds published is not replaced by an older one then.
type Restoring interface {
	// Restored returns as of when the values are that the source began with, zero where there were none, and
	// whether one of refs is among them and not confirmed yet. The source rings when that is confirmed.
	Restored(refs ...upstream.SecretRef) (asOf time.Time, unconfirmed bool)
}

// The defaults and bounds of [Options].
const (
	defaultMode        fs.FileMode = 0o600
	defaultFolderMode  fs.FileMode = 0o700
	sharedFolderMode   fs.FileMode = 0o711
	defaultTimeout                 = 30 * time.Second // of one read of the source
	defaultHookTimeout             = 30 * time.Second

	maxWorkers  = 4        // targets that are rendered at the same time
	maxTemplate = 1 << 20  // bytes of a template file
	maxOutput   = 16 << 20 // bytes of one rendered file
)

// Options says what to render: Targets and Sets. Every other field may be left zero.
type Options struct {
	Targets []Target
	Sets    []Set

	// Root, when set, is the folder that every destination must be inside, also after
	// symbolic links are followed. It must exist. What is below it may belong to anybody;
	// elsewhere root writes only by paths that nobody else could lead away, see
	// [keyfile.CheckPath].
	Root string

	// FolderMode is that of folders that are missing on the way to a destination. Zero: 0700, or
	// 0711 where others than the owner may read one of the files, and then get to it by its name.
	FolderMode fs.FileMode

	// StateDir remembers which hooks are owed, so that a restart does not forget them. It is
	// created 0700 where missing. Empty: owed hooks are forgotten when the process ends.
	StateDir string

	// Signal sends a signal to the supervised child process, for hooks with Child set.
	Signal func(os.Signal) error

	// Partial lets RenderOnce publish what could be rendered although something else could
	// not. The zero value is all or nothing.
	Partial bool

	// NoHooks publishes files but runs no hooks and owes none, for a container that prepares
	// files before the application exists. Checks run all the same.
	NoHooks bool

	// Timeout bounds one read of the source for one target; zero means 30 s.
	Timeout time.Duration

	// Observe, when set, hears of every attempt, for metrics. It is called from several
	// goroutines and must not block or call the Renderer.
	Observe func(Event)

	// Logger hears of changes, failures and hooks, never of values; nil discards.
	Logger *slog.Logger
}

// Event is one attempt to bring a target up to date, or one run of a hook or a check.
type Event struct {
	Name    string // of the target; of the first one when several share a hook
	Hook    bool   // a hook ran
	Check   bool   // a check ran; without both, the target was rendered
	Changed bool   // something was published or deleted
	Elapsed time.Duration
	Err     error // nil: it succeeded
}

// Content says what is in a file: exactly one of a template file, an inline template, or a
// format with the secrets to put into it.
type Content struct {
	// Source is the path of a template file. It is read once, by New.
	Source string

	// Contents is an inline template.
	Contents string

	// LeftDelim and RightDelim replace {{ and }}; both or none.
	LeftDelim, RightDelim string

	// Format needs no template. It writes Secrets, merged in their order.
	Format  Format
	Secrets []FormatSecret
}

// FormatSecret is a secret that a [Format] writes. A JSON object gives one entry for each of
// its keys; any other value gives one entry, whose name is Key.
type FormatSecret struct {
	Ref upstream.SecretRef

	// Key names the entry of a secret that is written whole. Empty: the secret must be a
	// JSON object, unless the format is raw or pem.
	Key string

	// Field picks one key of a JSON object. In raw and pem it is what is written; in other
	// formats it is short for Keys with one element.
	Field string

	// Keys limits the entries to these keys of the object, each with the name of its entry, ""
	// for the key itself. A missing key is an error. Empty: all keys, under their own names.
	Keys map[string]string

	// Prefix is put before every name.
	Prefix string

	// Case turns names, prefix included, to upper or lower case; empty means KeepCase.
	Case Case

	// Sanitize replaces every character of a name that is not a letter of ASCII, a digit or '_'
	// by '_'.
	Sanitize bool

	// Decode says what the text that raw and pem write stands for; empty means DecodeNone.
	Decode Decode
}

// Case says how names are spelled.
type Case string

// The values of Case.
const (
	KeepCase  Case = "keep"
	UpperCase Case = "upper"
	LowerCase Case = "lower"
)

// Decode says what a text stands for.
type Decode string

// The values of Decode.
const (
	DecodeNone   Decode = "none"   // itself
	DecodeBase64 Decode = "base64" // the bytes of its base64; an error when it is none
	DecodeAuto   Decode = "auto"   // DecodeBase64 for a secret of type binary, else DecodeNone
)

// OnRemoved says what becomes of a file when a secret that it needs is deleted upstream.
type OnRemoved string

// The values of OnRemoved.
const (
	Keep   OnRemoved = "keep"   // the file stays as it is; the target is not ready
	Delete OnRemoved = "delete" // the file is deleted, and its hook runs; Run only
)

// Wait says how long to wait for further changes before rendering.
type Wait struct {
	// Min is the quiet time that must pass after the latest change. Zero: none.
	Min time.Duration

	// Max bounds the wait after the first change. Zero: four times Min.
	Max time.Duration
}

// Target is a target of one file.
type Target struct {
	Content

	// Destination is the path of the file. Folders are created 0700 where missing. A
	// symbolic link, a folder, a mount point or any other special file in its place is refused.
	Destination string

	Mode  fs.FileMode // permission bits; zero means 0600
	User  string      // name or number of the owner; empty: the agent's own
	Group string      // name or number of the group; empty: the agent's own

	// Backup keeps the previous content, mode 0600, as Destination with ".bak" added. Of a
	// file that the agent cannot read nothing is kept.
	Backup bool

	OnRemoved OnRemoved // empty means Keep

	// NoSync leaves out fsync of file and folder. It is meant for tmpfs, where there is
	// nothing to sync.
	NoSync bool

	Wait Wait

	// Splay delays the hook by a random time up to this, so that a fleet does not reload at
	// once. The file itself is not delayed.
	Splay time.Duration

	// Check looks at new content before it is published; nil: nothing does.
	Check *Check

	// Hook runs after a change; nil: none.
	Hook *Hook
}

// Set is a target of several files that belong together, in a folder of their own. All of them
// are made of values from one moment of the source and are published by one rename:
//
//	Directory/tls.crt → ..data/tls.crt
//	Directory/tls.key → ..data/tls.key
//	Directory/..data  → ..2026_01_31_12_00_00.0123456789abcdef
//	Directory/..2026_01_31_12_00_00.0123456789abcdef/tls.crt, tls.key
//
// Each file by itself is old or new, never torn, and its path never disappears. A reader that
// needs files of one generation opens the folder Directory/..data once and opens the files
// relative to it (openat), or reads the link ..data once and uses the path it gives. It then
// sees files of one generation only. A reader that opens two files by their paths under
// Directory may meet the swap between the two and see one of each.
//
// The old generation is removed right after the swap. An open that had already followed the
// link to it, and one relative to its folder, then fails with "no such file": the reader
// starts again and finds the new one.
type Set struct {
	// Directory is the folder. It is created where missing and must not be a symbolic link.
	Directory string

	Files []SetFile

	// Mode is that of the folders the set makes; zero means 0700. User and Group
	// own them, and the files unless these say otherwise.
	Mode  fs.FileMode
	User  string
	Group string

	OnRemoved OnRemoved     // as in Target, for all files together
	NoSync    bool          // as in Target
	Wait      Wait          // as in Target
	Splay     time.Duration // as in Target
	Check     *Check        // as in Target
	Hook      *Hook         // as in Target
}

// SetFile is one file of a [Set].
type SetFile struct {
	Content

	Name  string      // without a folder; must not begin with a dot
	Mode  fs.FileMode // as in Target
	User  string      // empty: that of the set
	Group string      // empty: that of the set
}
