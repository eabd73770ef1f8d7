package config

import (
	"fmt"
	"net"
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
	Rotations []Rotation `yaml:"rotations"`
	Log       Log        `yaml:"log"`
	Metrics   Metrics    `yaml:"metrics"`
	Process   Process    `yaml:"process"`

	// ReadyWhen is when systemd is told that the service is ready: when it serves, or when declared
	// secrets and files are there.
	ReadyWhen string `yaml:"readyWhen" default:"serving" enum:"serving|rendered"`

	source  Source // with absolute paths
	watched []string
}

// File returns the absolute path of the file that this configuration came from.
func (c *Config) File() string { return c.source.File }

// StateDir returns the absolute path of the state directory, which holds what the file does not
// place elsewhere. It may not exist.
func (c *Config) StateDir() string { return c.source.StateDir }

// Source returns what reads the file again as this configuration was read: a state directory that was
// found once stays.
func (c *Config) Source() Source { return c.source }

// Files returns the absolute paths of everything the agent reads because of this
// configuration: the file itself, then templates, tokens, certificates, credentials and
// keyrings in the order of their keys, each once. A change of any of them may change what the
// agent does. The caller must not modify the slice.
func (c *Config) Files() []string { return c.watched }

// check holds the rules that are about the file as a whole: what excludes or needs another key.
// Rules of a value belong to the part that uses it, see [Rules].
func (c *Config) check(d *decoder) {
	if keyring := Path(c.source.Keyring); keyring != "" {
		eachPath(d.schema, reflect.ValueOf(c), "", func(f field, _ string, path *Path) {
			if f.name == "keyring" {
				*path = keyring
			}
		})
	}
	c.Upstream.check(d.problems)
	c.Cache.check(d.problems)
	c.Endpoint.check(d.problems)
	c.Metrics.check(d.problems)
	c.checkWrittenPaths(d)
	c.checkAddresses(d.problems)
	if e := &c.Endpoint; e.Listen == "" && e.Socket == "" && e.Credentials == nil && len(c.Templates)+len(c.Sets)+len(c.Rotations) == 0 && c.Exec == nil {
		d.addf("endpoint.socket", "", "must be set when endpoint.listen is off, unless there are credentials, templates, sets, exec or rotations: nobody could use the agent")
	}
}

// eachPath calls fn for every path below v that is set, with its field and key.
func eachPath(s schema, v reflect.Value, key string, fn func(f field, key string, path *Path)) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			eachPath(s, v.Elem(), key, fn)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachPath(s, v.Index(i), fmt.Sprintf("%s[%d]", key, i), fn)
		}
	case reflect.Struct:
		if isScalar(v.Type()) {
			return
		}
		for _, f := range s.fields(v.Type()) {
			fv, key := v.FieldByIndex(f.index), joinKey(key, f.name)
			if path, ok := fv.Addr().Interface().(*Path); ok && *path != "" {
				fn(f, key, path)
			}
			eachPath(s, fv, key, fn)
		}
	}
}

// checkWrittenPaths refuses two parts of the agent that would write the same file.
func (c *Config) checkWrittenPaths(d *decoder) {
	owner := map[Path]string{} // :: path → key that writes it
	eachPath(d.schema, reflect.ValueOf(c), "", func(f field, key string, p *Path) {
		path := *p
		switch first := owner[path]; {
		case !f.written:
		case path == Path(c.File()):
			d.addf(key, c.File(), "is the configuration itself: choose another")
		case first == "":
			owner[path] = key
		case key == "cache.sealed.keyring" && first == "upstream.local.keyring": // may be shared
		default:
			d.addf(key, string(path), "%s writes the same path: choose another", first)
		}
	})
}

// checkAddresses refuses two parts of the agent that would listen on one port of an address.
func (c *Config) checkAddresses(p *problems) {
	type listener struct{ key, address string }
	all := []listener{{"endpoint.listen", c.Endpoint.Listen}, {"metrics.listen", c.Metrics.Listen}}
	if api, section := c.Upstream.API(); api != nil {
		all = append(all, listener{section + ".listen", api.Listen})
	}
	for i, l := range all {
		for _, other := range all[:i] {
			if sameAddress(l.address, other.address) {
				p.addf(l.key, l.address, "%s is %s: choose another port", other.key, other.address)
			}
		}
	}
}

// sameAddress reports whether one host cannot listen on both. Port 0 is a free one each time.
func sameAddress(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	every := func(host string) bool { return host == "" || net.ParseIP(host).IsUnspecified() }
	return errA == nil && errB == nil && portA == portB && portA != "0" && (hostA == hostB || every(hostA) || every(hostB))
}

// watchedFiles returns the files that the configuration names and the agent reads.
func (c *Config) watchedFiles(s schema) []string {
	files := []string{c.File()}
	eachPath(s, reflect.ValueOf(c), "", func(f field, _ string, path *Path) {
		if f.watched && !slices.Contains(files[1:], string(*path)) {
			files = append(files, string(*path))
		}
	})
	return files
}
