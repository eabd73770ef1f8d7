package render

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
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

// The defaults and bounds of [Options].
const (
	DefaultMode        fs.FileMode = 0o600
	DefaultFolderMode  fs.FileMode = 0o700
	DefaultTimeout                 = 30 * time.Second // of one read of the source
	DefaultHookTimeout             = 30 * time.Second
	DefaultWorkers                 = 4

	maxTemplate = 1 << 20  // bytes of a template file
	maxOutput   = 16 << 20 // bytes of one rendered file
)

// Options says what to render. Targets and Sets are what exists; every other field may be
// left zero.
type Options struct {
	Targets []Target
	Sets    []Set

	// Root, when set, is the folder that every destination must be inside, also after
	// symbolic links are followed. It must exist.
	Root string

	// StateDir remembers which hooks are owed, so that a restart does not forget them. It is
	// created 0700 where missing. Empty: owed hooks are forgotten when the process ends.
	StateDir string

	// Signal sends a signal to the supervised child process, for hooks with Child set.
	Signal func(os.Signal) error

	// Partial lets RenderOnce publish what could be rendered although something else could
	// not. The zero value is all or nothing.
	Partial bool

	// NoHooks publishes files but runs no hooks and owes none, for a container that prepares
	// files before the application exists.
	NoHooks bool

	// Timeout bounds one read of the source for one target; zero means DefaultTimeout.
	Timeout time.Duration

	// Workers is how many targets are rendered at the same time; zero means DefaultWorkers.
	Workers int

	// Observe, when set, hears of every attempt, for metrics. It is called from several
	// goroutines and must not block or call the Renderer.
	Observe func(Event)

	// Logger hears of changes, failures and hooks, never of values; nil discards.
	Logger *slog.Logger
}

// Event is one attempt to bring a target up to date, or one run of a hook.
type Event struct {
	Name    string // of the target or set; of the first one when several share a hook
	Hook    bool   // a hook ran; otherwise the target was rendered
	Changed bool   // something was published
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
	// formats it is short for Pick with one element.
	Field string

	// Pick limits the entries to these keys of the object; a missing one is an error. Empty:
	// all of them.
	Pick []string

	// Rename gives keys of the object another name. A missing one is an error.
	Rename map[string]string

	// Prefix is put before every name, after Rename.
	Prefix string

	// UpperCase turns names, prefix included, to upper case.
	UpperCase bool
}

// OnRemoved says what becomes of a file when a secret that it needs is deleted upstream.
type OnRemoved string

// The values of OnRemoved.
const (
	Keep   OnRemoved = "keep"   // the file stays as it is; the target is not ready
	Delete OnRemoved = "delete" // the file is deleted, and its hook runs; Run only
)

// Wait is how long to let changes settle before rendering.
type Wait struct {
	// Min is the quiet time that must pass after the latest change. Zero: none.
	Min time.Duration

	// Max bounds the wait after the first change. Zero: four times Min.
	Max time.Duration
}

// Target is one file.
type Target struct {
	Content

	// Destination is the path of the file. Folders are created 0700 where missing. A
	// symbolic link, a folder or any other special file in its place is refused.
	Destination string

	Mode  fs.FileMode // permission bits; zero means DefaultMode
	User  string      // name or number of the owner; empty: the agent's own
	Group string      // name or number of the group; empty: the agent's own

	// Backup keeps the previous content, mode 0600, as Destination with ".bak" added.
	Backup bool

	OnRemoved OnRemoved // empty means Keep

	// NoSync leaves out fsync of file and folder. It is meant for tmpfs, where there is
	// nothing to sync.
	NoSync bool

	Wait Wait

	// Splay delays the hook by a random time up to this, so that a fleet does not reload at
	// once. The file itself is not delayed.
	Splay time.Duration

	// Hook runs after a change; nil: none.
	Hook *Hook
}

// Set is a folder of files that belong together. All of them are made of values from one
// moment of the source and are published by one rename:
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

	// Mode is that of the folders the set makes; zero means DefaultFolderMode. User and Group
	// own them, and the files unless these say otherwise.
	Mode  fs.FileMode
	User  string
	Group string

	OnRemoved OnRemoved     // as in Target, for all files together
	NoSync    bool          // as in Target
	Wait      Wait          // as in Target
	Splay     time.Duration // as in Target
	Hook      *Hook         // as in Target
}

// SetFile is one file of a [Set].
type SetFile struct {
	Content

	Name  string      // without a folder; must not begin with ".."
	Mode  fs.FileMode // as in Target
	User  string      // empty: that of the set
	Group string      // empty: that of the set
}

// logger, timeout and workers supply the defaults of the zero value.
func (o *Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

func (o *Options) timeout() time.Duration {
	if o.Timeout == 0 {
		return DefaultTimeout
	}
	return o.Timeout
}

func (o *Options) workers() int {
	if o.Workers == 0 {
		return DefaultWorkers
	}
	return o.Workers
}

// orMode returns mode, or the default for zero.
func orMode(mode, or fs.FileMode) fs.FileMode {
	if mode == 0 {
		return or
	}
	return mode
}

// problems collects everything that is wrong with Options, each with the key it is about.
type problems []error

func (p *problems) add(key, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
}

// addErr adds err, unless it is nil.
func (p *problems) addErr(key string, err error) {
	if err != nil {
		p.add(key, "%w", err)
	}
}

func (p problems) err() error { return errors.Join(p...) }

// validate checks what can be checked without reading a template, and makes paths absolute.
func (o *Options) validate() error {
	var p problems
	if o.Workers < 0 {
		p.add("workers", "%d is negative; leave it out for %d", o.Workers, DefaultWorkers)
	}
	if o.Timeout < 0 {
		p.add("timeout", "%s is negative; leave it out for %s", o.Timeout, DefaultTimeout)
	}
	p.path("root", &o.Root, true)
	p.path("stateDir", &o.StateDir, true)
	taken := map[string]string{} // :: path → key of what is written there
	claim := func(key, path string) {
		if path == "" {
			return
		}
		if other, ok := taken[path]; ok {
			p.add(key, "%s is already written by %s; give each its own", path, other)
			return
		}
		taken[path] = key
	}
	o.Targets = append([]Target(nil), o.Targets...)
	for i := range o.Targets {
		t := &o.Targets[i]
		key := fmt.Sprintf("templates[%d]", i)
		p.path(key+".destination", &t.Destination, false)
		p.inside(key+".destination", o.Root, t.Destination)
		claim(key+".destination", t.Destination)
		if t.Backup && t.Destination != "" {
			claim(key+".backup", t.Destination+backupSuffix)
		}
		p.content(key, &t.Content)
		p.mode(key+".mode", t.Mode)
		p.common(key, t.OnRemoved, t.Wait, t.Splay)
		p.hook(key+".hook", t.Hook, o)
	}
	o.Sets = append([]Set(nil), o.Sets...)
	for i := range o.Sets {
		s := &o.Sets[i]
		key := fmt.Sprintf("sets[%d]", i)
		p.path(key+".directory", &s.Directory, false)
		p.inside(key+".directory", o.Root, s.Directory)
		claim(key+".directory", s.Directory)
		p.mode(key+".mode", s.Mode)
		if s.Mode != 0 && s.Mode&0o300 != 0o300 {
			p.add(key+".mode", "%#o does not let the agent write into its own folder; add 0300", s.Mode)
		}
		p.common(key, s.OnRemoved, s.Wait, s.Splay)
		p.hook(key+".hook", s.Hook, o)
		if len(s.Files) == 0 {
			p.add(key+".files", "a set needs at least one file")
		}
		names := map[string]bool{}
		for j := range s.Files {
			f := &s.Files[j]
			fkey := fmt.Sprintf("%s.files[%d]", key, j)
			p.addErr(fkey+".name", checkSetName(f.Name))
			if names[f.Name] {
				p.add(fkey+".name", "%q is there twice", f.Name)
			}
			names[f.Name] = true
			p.content(fkey, &f.Content)
			p.mode(fkey+".mode", f.Mode)
		}
	}
	for i := range o.Sets {
		dir := o.Sets[i].Directory + string(filepath.Separator)
		for path, key := range taken {
			if o.Sets[i].Directory != "" && strings.HasPrefix(path, dir) {
				p.add(key, "%s is inside sets[%d].directory; only the set may write there", path, i)
			}
		}
	}
	return p.err()
}

// path makes *path absolute and refuses what no file can be called.
func (p *problems) path(key string, path *string, optional bool) {
	switch {
	case *path == "":
		if !optional {
			p.add(key, "a path is needed")
		}
		return
	case strings.ContainsRune(*path, 0):
		p.add(key, "a path cannot hold a NUL byte")
		return
	case !optional && os.IsPathSeparator((*path)[len(*path)-1]):
		p.add(key, "%s ends in a separator; name the file or folder itself", *path)
		return
	}
	abs, err := filepath.Abs(*path)
	if err != nil {
		p.add(key, "%w", err)
		return
	}
	*path = abs
}

// inside is the check by name. The one that cannot be fooled is made when a file is
// published.
func (p *problems) inside(key, root, path string) {
	if root == "" || path == "" {
		return
	}
	if rel, err := filepath.Rel(root, path); err != nil || rel == "." || !filepath.IsLocal(rel) {
		p.add(key, "%s is outside of root %s", path, root)
	}
}

func (p *problems) mode(key string, mode fs.FileMode) {
	if mode&^fs.ModePerm != 0 {
		p.add(key, "%#o has more than permission bits; 0 to 0777 is allowed", uint32(mode))
	}
}

func (p *problems) common(key string, removed OnRemoved, wait Wait, splay time.Duration) {
	switch removed {
	case "", Keep, Delete:
	default:
		p.add(key+".onRemoved", "%q is not one of keep, delete", removed)
	}
	if wait.Min < 0 {
		p.add(key+".wait.min", "%s is negative", wait.Min)
	}
	if wait.Max != 0 && wait.Max < wait.Min {
		p.add(key+".wait.max", "%s is less than wait.min, %s", wait.Max, wait.Min)
	}
	if splay < 0 {
		p.add(key+".splay", "%s is negative", splay)
	}
}

func (p *problems) content(key string, c *Content) {
	given := 0
	for _, set := range []bool{c.Source != "", c.Contents != "", c.Format != ""} {
		if set {
			given++
		}
	}
	if given != 1 {
		p.add(key, "exactly one of source, contents and format is needed, %d are given", given)
	}
	if (c.LeftDelim == "") != (c.RightDelim == "") {
		p.add(key+".leftDelim", "leftDelim and rightDelim are needed together")
	}
	p.path(key+".source", &c.Source, true)
	if c.Format == "" {
		if len(c.Secrets) > 0 {
			p.add(key+".secrets", "only a format reads this; a template names its secrets itself")
		}
		return
	}
	if !c.Format.known() {
		p.add(key+".format", "%q is not one of %s", c.Format, formatNames())
		return
	}
	if len(c.Secrets) == 0 {
		p.add(key+".secrets", "format %s needs at least one secret", c.Format)
	}
	for i := range c.Secrets {
		p.formatSecret(fmt.Sprintf("%s.secrets[%d]", key, i), c, &c.Secrets[i])
	}
}

func (p *problems) formatSecret(key string, c *Content, s *FormatSecret) {
	p.addErr(key+".ref", s.Ref.Validate())
	whole := c.Format == Raw || c.Format == PEM
	if whole && (s.Key != "" || len(s.Pick) > 0 || len(s.Rename) > 0 || s.Prefix != "" || s.UpperCase) {
		p.add(key, "format %s has no names; only field may be used", c.Format)
	}
	if s.Field != "" && (len(s.Pick) > 0 || s.Key != "") {
		p.add(key+".field", "field cannot be combined with pick or key")
	}
	if s.Key != "" && (len(s.Pick) > 0 || len(s.Rename) > 0) {
		p.add(key+".key", "key writes the secret whole; it cannot be combined with pick or rename")
	}
	picked := map[string]bool{}
	for _, k := range s.Pick {
		picked[k] = true
	}
	for from, to := range s.Rename {
		if to == "" {
			p.add(key+".rename", "the new name of %q is empty", from)
		}
		if len(s.Pick) > 0 && !picked[from] {
			p.add(key+".rename", "%q is renamed but not picked", from)
		}
	}
	if c.Format == Raw && len(c.Secrets) > 1 {
		p.add(key, "format raw writes exactly one secret")
	}
}
