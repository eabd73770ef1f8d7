package render

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/template"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Validate checks everything that can be known without secrets: every rule of the options,
// that programs, users and groups exist, and every template, which it reads and parses. It
// writes nothing. The error is an [upstream.OptionErrors] of all problems. Targets have the
// keys templates[i], what Root and StateDir hold those of render.
func (o Options) Validate() error { return build(o).problems.Err() }

// builder makes targets of options and collects what is wrong with these.
type builder struct {
	opts     Options
	problems upstream.OptionErrors
	root     string      // absolute; empty: none
	folders  fs.FileMode // of folders that are made for targets
	stateDir folder      // without a path: none
	targets  []*target
	groups   []*hookGroup

	funcs  template.FuncMap
	claims []claim             // of the paths that are written
	sets   []string            // directories, absolute; empty: it is none
	files  map[folder][]string // :: folder → names of the single files in it
	byHook map[string]*hookGroup
}

// claim is a path that is written and the key that says so.
type claim struct{ key, path string }

func build(o Options) *builder {
	b := &builder{opts: o, funcs: helpers(), files: map[folder][]string{}, byHook: map[string]*hookGroup{}}
	b.notNegative("timeout", o.Timeout)
	if o.Root != "" {
		b.root = b.path("render.root", o.Root)
		fi, err := os.Stat(b.root)
		switch {
		case b.root == "":
		case err != nil || !fi.IsDir():
			b.problems.Addf("render.root", b.root, "must be a folder that exists")
		case filepath.Dir(b.root) == b.root:
			b.root = "" // it holds everything, and keeps nothing in
		default:
			b.problems.Add("render.root", checkRoot(b.root))
		}
	}
	b.folders = cmp.Or(o.FolderMode, o.folderMode())
	if b.folders&0o700 != 0o700 || b.folders&0o022 != 0 {
		b.problems.Addf("render.folderMode", octal(b.folders), `must let the agent in, and nobody else write, as "0750" does`)
	}
	for i := range o.Targets {
		b.addFile(fmt.Sprintf("templates[%d]", i), &o.Targets[i])
	}
	for i := range o.Sets {
		b.addSet(fmt.Sprintf("sets[%d]", i), &o.Sets[i])
	}
	b.checkClaims()
	if o.StateDir != "" {
		b.stateDir.mode = defaultFolderMode
		b.stateDir.path = b.path("render.stateDir", o.StateDir)
		check := keyfile.CheckFolder
		if inside(b.root, b.stateDir.path) {
			b.stateDir.root, check = b.root, keyfile.CheckWritable
		}
		if b.stateDir.path != "" && len(b.groups) > 0 {
			if err := check(b.stateDir.path); err != nil {
				b.problems.Addf("render.stateDir", b.stateDir.path, "must be a directory that the agent can write to: %w", err)
			}
		}
	}
	return b
}

// folderMode is the mode of new folders where FolderMode says nothing. It is one for all, so that it
// does not matter which of the files in a folder is the first.
func (o Options) folderMode() fs.FileMode {
	others := slices.ContainsFunc(o.Targets, func(t Target) bool { return t.Mode&0o044 != 0 }) ||
		slices.ContainsFunc(o.Sets, func(s Set) bool { return s.Mode&0o011 != 0 })
	if others {
		return sharedFolderMode
	}
	return defaultFolderMode
}

// addFile adds the target of one file.
func (b *builder) addFile(key string, spec *Target) {
	path := b.destination(key+".destination", spec.Destination)
	if spec.Backup && path != "" {
		b.claims = append(b.claims, claim{key + ".backup", path + backupSuffix})
	}
	if keyfile.MountPoint(path) {
		b.problems.Addf(key+".destination", path, keyfile.IsMountPoint)
	}
	if source, err := filepath.Abs(spec.Source); spec.Source != "" && err == nil && source == path {
		b.problems.Addf(key+".destination", path, "it is also the source")
	}
	in := folder{root: b.root, path: filepath.Dir(path), mode: b.folders, sync: !spec.NoSync}
	b.trusted(key+".destination", path, in.check)
	f := file{name: filepath.Base(path), mode: b.mode(key, spec.Mode, defaultMode), owner: b.owner(key, spec.User, spec.Group)}
	t := &target{name: path, files: []string{path}, onRemoved: spec.OnRemoved, wait: spec.Wait}
	t.contents = []content{b.content(key, &spec.Content, f.name)}
	t.publisher = publisher{&singleFile{folder: in, file: f, backup: spec.Backup}, in.path}
	if _, ok := b.files[in]; !ok {
		t.leftovers = func() error { return in.removeLeftovers(b.files[in]) }
	}
	b.files[in] = append(b.files[in], f.name)
	made := *spec
	made.Check, made.Hook, made.OnRemoved, made.Wait, made.Splay = nil, nil, "", Wait{}, 0
	t.definition = b.definition(made, t.contents)
	b.add(key, t, spec.Check, spec.Hook, spec.Splay)
}

// addSet adds the target of a set.
func (b *builder) addSet(key string, spec *Set) {
	path := b.destination(key+".directory", spec.Directory)
	b.sets = append(b.sets, path)
	set := &fileSet{
		folder: folder{root: b.root, path: path, mode: b.folders, sync: !spec.NoSync},
		mode:   b.mode(key, spec.Mode, defaultFolderMode), owner: b.owner(key, spec.User, spec.Group),
	}
	b.trusted(key+".directory", path, set.check)
	if set.mode&0o300 != 0o300 {
		b.problems.Addf(key+".mode", octal(set.mode), `must let the agent write into the directory, as "0700" does`)
	}
	if len(spec.Files) == 0 {
		b.problems.Addf(key+".files", "", "must hold at least one file")
	}
	t := &target{name: path, publisher: publisher{set, path}, leftovers: set.removeLeftovers, onRemoved: spec.OnRemoved, wait: spec.Wait}
	for i := range spec.Files {
		key, one := fmt.Sprintf("%s.files[%d]", key, i), &spec.Files[i]
		switch {
		case one.Name == "" || one.Name[0] == '.' || strings.ContainsAny(one.Name, "/\\\x00"):
			b.problems.Addf(key+".name", one.Name, "must be a file name: not empty, no slash, no leading dot")
		case len(one.Name) > 255:
			b.problems.Addf(key+".name", one.Name, "must have at most 255 bytes")
		case set.has(one.Name):
			b.problems.Addf(key+".name", one.Name, "is given to two files of the set: choose another")
		case keyfile.MountPoint(filepath.Join(path, one.Name)):
			b.problems.Addf(key+".name", one.Name, keyfile.IsMountPoint)
		}
		f := file{name: one.Name, mode: b.mode(key, one.Mode, defaultMode), owner: b.owner(key, one.User, one.Group)}
		if one.User == "" {
			f.owner.uid = set.owner.uid
		}
		if one.Group == "" {
			f.owner.gid = set.owner.gid
		}
		set.files = append(set.files, f)
		t.files = append(t.files, filepath.Join(path, one.Name))
		t.contents = append(t.contents, b.content(key, &one.Content, one.Name))
	}
	made := *spec
	made.Check, made.Hook, made.OnRemoved, made.Wait, made.Splay = nil, nil, "", Wait{}, 0
	t.definition = b.definition(made, t.contents)
	b.add(key, t, spec.Check, spec.Hook, spec.Splay)
}

// definition is equal for targets with equal options and templates.
func (b *builder) definition(options any, contents []content) [sha256.Size]byte {
	text, _ := json.Marshal([]any{b.root, options}) // of plain data, which cannot fail
	for _, c := range contents {
		if tmpl, ok := c.(*templateContent); ok && tmpl != nil {
			text = append(append(text, 0), tmpl.source...)
		}
	}
	return sha256.Sum256(text)
}

// add checks what files and sets have in common and adds t, which shares the group of an equal
// hook.
func (b *builder) add(key string, t *target, check *Check, hook *Hook, splay time.Duration) {
	switch t.onRemoved {
	case "", Keep, Delete:
	default:
		b.problems.Addf(key+".onRemoved", string(t.onRemoved), "must be keep or delete")
	}
	b.notNegative(key+".wait.min", t.wait.Min)
	if t.wait.Max != 0 && t.wait.Max < t.wait.Min {
		b.problems.Addf(key+".wait.max", t.wait.Max.String(), "must not be shorter than wait.min, %s", t.wait.Min)
	}
	b.notNegative(key+".splay", splay)
	t.state, t.backoff = Pending, newBackoff()
	b.targets = append(b.targets, t)
	if t.check = check; check != nil {
		b.checkCheck(key+".check", check)
	}
	if hook == nil {
		return
	}
	b.checkHook(key+".hook", hook)
	if b.opts.NoHooks {
		return
	}
	id := hook.key(splay)
	g := b.byHook[id]
	if g == nil {
		g = &hookGroup{hook: hook, splay: splay, owing: map[*target]uint64{}, backoff: newBackoff()}
		b.byHook[id] = g
		b.groups = append(b.groups, g)
	}
	t.group = g
}

func (b *builder) notNegative(key string, d time.Duration) {
	if d < 0 {
		b.problems.Addf(key, d.String(), "must not be negative")
	}
}

// path returns path made absolute; "" when it is not one.
func (b *builder) path(key, path string) string {
	abs, err := filepath.Abs(path)
	switch {
	case path == "":
		b.problems.Addf(key, "", "must be set")
	case strings.ContainsRune(path, 0):
		b.problems.Addf(key, "", "must not contain a NUL character")
	case err != nil:
		b.problems.Add(key, err)
	default:
		return abs
	}
	return ""
}

// destination returns a path that is written, made absolute. That it lies inside the root is
// checked by name here; the check that cannot be fooled is made when it is published.
func (b *builder) destination(key, path string) string {
	abs := b.path(key, path)
	switch {
	case abs == "":
		return ""
	case os.IsPathSeparator(path[len(path)-1]):
		b.problems.Addf(key, path, "must not end in a separator: name the file or directory itself")
	case b.root != "" && !inside(b.root, abs):
		b.problems.Addf(key, abs, "is outside render.root, %s", b.root)
	}
	b.claims = append(b.claims, claim{key, abs})
	return abs
}

// trusted refuses a path that check refuses.
func (b *builder) trusted(key, path string, check func() error) {
	if path == "" {
		return
	}
	if err := check(); err != nil {
		b.problems.Addf(key, path, "%w, or set render.root to a folder that holds the path", err)
	}
}

// inside reports whether path lies below dir.
func inside(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}

// checkClaims refuses a path that is written twice, or inside the directory of a set.
func (b *builder) checkClaims() {
	first := map[string]string{} // :: path → key
	for _, c := range b.claims {
		if other, taken := first[c.path]; taken {
			b.problems.Addf(c.key, c.path, "%s writes the same path: choose another", other)
			continue
		}
		first[c.path] = c.key
		for i, dir := range b.sets {
			if dir != "" && inside(dir, c.path) {
				b.problems.Addf(c.key, c.path, "lies in the directory of sets[%d], which holds nothing else", i)
			}
		}
	}
}

// cause returns the reason in an error that repeats a path or a name.
func cause(err error) error {
	var path *fs.PathError
	var program *exec.Error
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &program):
		return program.Err
	}
	return err
}

func octal(mode fs.FileMode) string { return fmt.Sprintf("%04o", uint32(mode)) }

// mode returns the mode, or the default for zero.
func (b *builder) mode(key string, mode, zero fs.FileMode) fs.FileMode {
	key += ".mode"
	switch {
	case mode == 0:
		return zero
	case mode&^fs.ModePerm != 0:
		b.problems.Addf(key, octal(mode), `must be permission bits, such as "0600"`)
	case mode&0o400 == 0:
		b.problems.Addf(key, octal(mode), `must let the owner read, as "0400" does`)
	case mode&0o002 != 0:
		b.problems.Addf(key, octal(mode), "must not let everyone write")
	}
	return mode
}

// owner resolves names or numbers; empty ones mean "leave it".
func (b *builder) owner(key, userName, groupName string) owner {
	return owner{
		uid: b.account(key+".user", userName, keyfile.UserID),
		gid: b.account(key+".group", groupName, keyfile.GroupID),
	}
}

func (b *builder) account(key, name string, idOf func(string) (int, error)) int {
	id, err := idOf(name)
	switch {
	case name != "" && runtime.GOOS == "windows":
		b.problems.Addf(key, name, "cannot be set on Windows: leave it out")
	case err != nil:
		b.problems.Addf(key, name, "is not known here: name an existing one or give its number")
	}
	return id
}

// content makes what c says for the file called name.
func (b *builder) content(key string, c *Content, name string) content {
	switch count(c.Source != "", c.Contents != "", c.Format != "") {
	case 0:
		b.problems.Addf(key, "", "must have source, contents or format")
	case 1:
	default:
		b.problems.Addf(key, "", "must have only one of source, contents and format")
	}
	if (c.LeftDelim == "") != (c.RightDelim == "") {
		b.problems.Addf(key, "", "must have both leftDelim and rightDelim, or none")
	}
	if c.Format != "" {
		b.checkFormat(key, c)
		return &formatContent{format: c.Format, secrets: c.Secrets}
	}
	if len(c.Secrets) > 0 {
		b.problems.Addf(key+".secrets", "", "belongs to format; a template names its secrets itself")
	}
	file, text := name+" (inline template)", c.Contents
	if c.Source == "" {
		key += ".contents"
	} else {
		key += ".source"
		if file = b.path(key, c.Source); file == "" {
			return nil
		}
		read, err := keyfile.ReadFile(file, maxTemplate)
		if err != nil {
			b.problems.Addf(key, file, "cannot be read: %v", cause(err))
			return nil
		}
		text = string(upstream.TrimBOM(read))
	}
	made, err := compile(file, text, c.LeftDelim, c.RightDelim, b.funcs)
	b.problems.Add(key, err)
	return made
}

// count returns how many are true.
func count(all ...bool) (n int) {
	for _, one := range all {
		if one {
			n++
		}
	}
	return n
}

func (b *builder) checkFormat(key string, c *Content) {
	switch {
	case !slices.Contains(formats, string(c.Format)):
		b.problems.Addf(key+".format", string(c.Format), "must be one of %s", strings.Join(formats, ", "))
	case len(c.Secrets) == 0:
		b.problems.Addf(key+".secrets", "", "must name what format %s writes", c.Format)
	case c.Format == Raw && len(c.Secrets) > 1:
		b.problems.Addf(key+".secrets", "", "must be one secret: format raw writes its bytes and nothing else")
	}
	for i := range c.Secrets {
		key, s := fmt.Sprintf("%s.secrets[%d]", key, i), &c.Secrets[i]
		b.problems.Add(key+".name", s.Ref.Validate())
		if !slices.Contains([]Case{"", KeepCase, UpperCase, LowerCase}, s.Case) {
			b.problems.Addf(key+".case", string(s.Case), "must be keep, upper or lower")
		}
		if !slices.Contains([]Decode{"", DecodeNone, DecodeBase64, DecodeAuto}, s.Decode) {
			b.problems.Addf(key+".decode", string(s.Decode), "must be none, base64 or auto")
		}
		if c.Format == Raw || c.Format == PEM {
			given := []bool{s.Key != "", len(s.Keys) > 0, s.Prefix != "", s.Case != "" && s.Case != KeepCase, s.Sanitize}
			for i, name := range []string{"key", "keys", "prefix", "case", "sanitize"} {
				if given[i] {
					b.problems.Addf(key+"."+name, "", "has no use with format %s, which writes no names; field picks a part", c.Format)
				}
			}
			if s.Decode == DecodeAuto && s.Field != "" {
				b.problems.Addf(key+".decode", string(s.Decode), "must be base64 or none with field: auto goes by the type of the secret as a whole")
			}
			continue
		}
		if s.Decode != "" && s.Decode != DecodeNone {
			b.problems.Addf(key+".decode", string(s.Decode), "must be none with format %s, which writes text; raw and pem write bytes", c.Format)
		}
		switch {
		case s.Key != "" && s.Field != "":
			b.problems.Addf(key+".field", "", "must not be combined with key")
		case s.Key != "" && len(s.Keys) > 0:
			b.problems.Addf(key+".keys", "", "must not be combined with key")
		case s.Field != "" && len(s.Keys) > 0:
			b.problems.Addf(key+".keys", "", "must not be combined with field")
		}
	}
}

// checkHook checks everything about h but what it does.
func (b *builder) checkHook(key string, h *Hook) {
	sends, calls := h.PIDFile != "" || h.Child || h.Signal != "", h.URL != "" || h.Method != ""
	switch count(h.Command != nil, sends, calls) {
	case 0:
		b.problems.Addf(key, "", "must have command, signal or http")
	case 1:
	default:
		b.problems.Addf(key, "", "must have only one of command, signal and http")
	}
	b.notNegative(key+".timeout", h.Timeout)
	if h.Command != nil {
		b.checkCommand(key+".command", h.Command, `[kill, -HUP, "1"]`, b.opts.NoHooks)
	}
	if sends {
		if h.Child == (h.PIDFile != "") {
			b.problems.Addf(key+".signal", "", "must have either child: true or pidFile")
		}
		if h.Child && b.opts.Signal == nil && !b.opts.NoHooks {
			b.problems.Addf(key+".signal.child", "true", "needs exec, which starts the child")
		}
		if _, err := parseSignal(h.signal()); err != nil {
			b.problems.Addf(key+".signal.name", h.signal(), "%v", err)
		}
	}
	if calls {
		_, err := loopbackURL(h.URL)
		b.problems.Add(key+".http.url", err)
		if m := h.method(); m != http.MethodGet && m != http.MethodPost {
			b.problems.Addf(key+".http.method", m, "must be GET or POST")
		}
	}
}

// checkCheck checks everything about c but what it finds.
func (b *builder) checkCheck(key string, c *Check) {
	b.notNegative(key+".timeout", c.Timeout)
	b.checkCommand(key+".command", c.Command, `[nginx, -t, -c, "{{ .Path }}"]`, false)
	if len(c.Command) > 0 && !slices.ContainsFunc(c.Command[1:], stagedPath.MatchString) {
		b.problems.Addf(key+".command", c.Command[0], `must have an argument with {{ .Path }}, which stands for the new file, or the new folder of a set: without it, the program looks at what is there already`)
	}
}

// checkCommand checks a program, which it looks for as a run would unless it may be missing,
// and its arguments.
func (b *builder) checkCommand(key string, argv []string, example string, mayBeMissing bool) {
	for i, arg := range argv {
		if strings.ContainsRune(arg, 0) {
			b.problems.Addf(fmt.Sprintf("%s[%d]", key, i), "", "must not contain a NUL character")
			return
		}
	}
	if len(argv) == 0 || argv[0] == "" {
		b.problems.Addf(key, "", "must start with a program, such as %s", example)
		return
	}
	if _, err := exec.LookPath(argv[0]); err != nil && !mayBeMissing {
		b.problems.Addf(key, argv[0], "%s", upstream.NoProgram(argv[0], cause(err)))
	}
}
