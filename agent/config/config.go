package config

import (
	"reflect"
	"slices"
)

// Config is a whole agent.yaml. The zero value is not useful: [Load] and [Parse] return one
// with defaults filled in. A Config is read-only and safe for concurrent use.
type Config struct {
	Upstream  Upstream   `yaml:"upstream" required:"true"`
	Cache     Cache      `yaml:"cache"`
	Endpoint  Endpoint   `yaml:"endpoint"`
	Secrets   []Secret   `yaml:"secrets"`
	Render    Render     `yaml:"render"`
	Templates []Template `yaml:"templates"`
	Sets      []Set      `yaml:"sets"`
	Exec      *Exec      `yaml:"exec"` // nil: no child process
	Log       Log        `yaml:"log"`
	Process   Process    `yaml:"process"`

	file    string
	watched []string
}

// File returns the absolute path of the file that this configuration came from.
func (c *Config) File() string { return c.file }

// Files returns the absolute paths of everything the agent reads because of this
// configuration: the file itself, then templates, tokens, certificates, credentials and
// keyrings in the order of their keys, each once. A change of any of them may change what the
// agent does. The caller must not modify the slice.
func (c *Config) Files() []string { return c.watched }

// check holds the rules that are about the file as a whole: what excludes or needs another key.
// Rules of a value belong to the part that uses it, see [Rules].
func (c *Config) check(p *problems) {
	c.Upstream.check(p)
	c.Cache.check(p)
	c.Endpoint.check(p)
	checkWrittenPaths(p, c)
	if e := &c.Endpoint; e.Listen == "" && e.Socket == "" && len(c.Templates)+len(c.Sets) == 0 && c.Exec == nil {
		p.addf("endpoint.socket", "", "must be set when endpoint.listen is off, unless there are templates, sets or exec: nobody could use the agent")
	}
}

// collectWatched returns the paths below v that are tagged path:"watch".
func collectWatched(s schema, v reflect.Value) []string {
	var files []string
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			files = collectWatched(s, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			files = append(files, collectWatched(s, v.Index(i))...)
		}
	case reflect.Struct:
		if isScalar(v.Type()) {
			return nil
		}
		for _, f := range s.fields(v.Type()) {
			fv := v.FieldByIndex(f.index)
			if !f.watched {
				files = append(files, collectWatched(s, fv)...)
			} else if fv.String() != "" && !slices.Contains(files, fv.String()) {
				files = append(files, fv.String())
			}
		}
	}
	return files
}

// checkWrittenPaths refuses two parts of the agent that would write the same file.
func checkWrittenPaths(p *problems, c *Config) {
	owner := map[Path]string{} // :: path → key that writes it
	claim := func(path Path, key string) {
		if path == "" {
			return
		}
		if first, taken := owner[path]; taken {
			p.addf(key, string(path), "%s writes the same path: choose another", first)
			return
		}
		owner[path] = key
	}
	if l := c.Upstream.Local; l != nil {
		claim(l.Database, "upstream.local.database")
		claim(l.Keyring, "upstream.local.keyring")
		claim(l.API.Socket, "upstream.local.api.socket")
	}
	if s := c.Cache.Sealed; s != nil {
		claim(s.Path, "cache.sealed.path")
		if s.Keyring != "" && (c.Upstream.Local == nil || s.Keyring != c.Upstream.Local.Keyring) {
			claim(s.Keyring, "cache.sealed.keyring") // the keyring may be shared
		}
	}
	claim(c.Endpoint.Socket, "endpoint.socket")
	claim(c.Endpoint.TokenFile, "endpoint.tokenFile")
	if a := c.Endpoint.Audit; a != nil {
		claim(a.File, "endpoint.audit.file")
	}
	for i := range c.Templates {
		claim(c.Templates[i].Destination, key("templates[%d].destination", i))
	}
	for i := range c.Sets {
		claim(c.Sets[i].Directory, key("sets[%d].directory", i))
	}
	claim(Path(c.file), "the configuration itself")
}
