package child

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"secretagent/upstream"
)

// maxVariableSize is what Linux allows for one NAME=value with its closing NUL
// (MAX_ARG_STRLEN).
const maxVariableSize = 128 << 10

// digest stands for the values of all variables. Digests of different recipes cannot be
// compared.
type digest [sha256.Size]byte

// environment is what one start hands to the application.
type environment struct {
	pairs  []string // NAME=value, sorted by name
	digest digest   // of the pairs that come from secrets
}

// recipe makes environments. It is read-only once made.
type recipe struct {
	variables []Variable
	spreads   []Spread
	inherited map[string]string // :: name → value
	refs      []upstream.SecretRef
	key       [32]byte // of the digests
}

// newRecipe checks the part of opts that concerns the environment. Parent is the environment
// of this process. The error holds every problem.
func newRecipe(opts Options, parent []string) (*recipe, error) {
	r := &recipe{
		variables: slices.Clone(opts.Env),
		spreads:   slices.Clone(opts.EnvFrom),
		inherited: inherit(opts, parent),
	}
	_, _ = rand.Read(r.key[:]) // never fails

	var problems []error
	named := map[string]string{} // :: folded name → what sets it
	claim := func(name, owner string) {
		if err := checkName(name); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", owner, err))
			return
		}
		if first, taken := named[foldName(name)]; taken {
			problems = append(problems, fmt.Errorf("%s: %s sets %s already: choose another name", owner, first, name))
			return
		}
		named[foldName(name)] = owner
	}
	add := func(owner string, ref *upstream.SecretRef) {
		if err := ref.Validate(); err != nil {
			problems = append(problems, fmt.Errorf("%s: secret: %w", owner, err))
			return
		}
		*ref = ref.WithDefaults()
		if !slices.Contains(r.refs, *ref) {
			r.refs = append(r.refs, *ref)
		}
	}
	for i := range r.variables {
		v := &r.variables[i]
		owner := fmt.Sprintf("env[%d]", i)
		add(owner, &v.Ref)
		claim(v.Name, owner)
	}
	for i := range r.spreads {
		s := &r.spreads[i]
		owner := fmt.Sprintf("envFrom[%d]", i)
		add(owner, &s.Ref)
		switch s.Case {
		case "", KeepCase, UpperCase, LowerCase:
		default:
			problems = append(problems, fmt.Errorf("%s.case: %q: use %s, %s or %s", owner, s.Case, KeepCase, UpperCase, LowerCase))
		}
		if s.Prefix != "" {
			if err := checkName(s.Prefix); err != nil {
				problems = append(problems, fmt.Errorf("%s.prefix: %w", owner, err))
			}
		}
		for _, key := range slices.Sorted(maps.Keys(s.Keys)) {
			claim(s.nameOf(key), fmt.Sprintf("%s.keys[%q]", owner, key))
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return r, nil
}

// unfitError says that the secrets are known but do not make an environment. Only another
// secret or another configuration can change that.
type unfitError struct{ err error }

func (e *unfitError) Error() string { return e.err.Error() }
func (e *unfitError) Unwrap() error { return e.err }

// read makes an environment of the current values. An error of src names the variables that
// need the secret; others are an [*unfitError].
func (r *recipe) read(ctx context.Context, src Source) (environment, error) {
	values := map[upstream.SecretRef]upstream.SecretValue{}
	if len(r.refs) > 0 {
		list, err := src.GetSecretValues(ctx, r.refs...)
		if err != nil {
			return environment{}, r.explain(err)
		}
		if len(list) != len(r.refs) {
			return environment{}, fmt.Errorf("%d values for %d secrets", len(list), len(r.refs))
		}
		for i, ref := range r.refs {
			values[ref] = list[i]
		}
	}
	return r.assemble(values)
}

// explain says which variables an error about one secret concerns.
func (r *recipe) explain(err error) error {
	var e *upstream.Error
	if !errors.As(err, &e) || e.Ref == (upstream.SecretRef{}) {
		return err
	}
	var users []string
	for _, v := range r.variables {
		if v.Ref == e.Ref.WithDefaults() {
			users = append(users, v.Name)
		}
	}
	for _, s := range r.spreads {
		if s.Ref == e.Ref.WithDefaults() {
			users = append(users, "the variables named by "+s.Ref.String())
		}
	}
	if len(users) == 0 {
		return err
	}
	return fmt.Errorf("%s: %w", strings.Join(users, ", "), err)
}

// assemble makes an environment of values, which hold one entry per ref. The error holds
// every problem, names variable and secret, and never quotes a value.
func (r *recipe) assemble(values map[upstream.SecretRef]upstream.SecretValue) (environment, error) {
	type entry struct{ name, value, origin string }
	var (
		problems []error
		secret   = map[string]entry{} // :: folded name → entry
		objects  = map[upstream.SecretRef]object{}
	)
	set := func(name, value, origin string) {
		if err := checkName(name); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", origin, err))
			return
		}
		if err := checkValue(name, value); err != nil {
			problems = append(problems, fmt.Errorf("%s: %s: %w", name, origin, err))
			return
		}
		if first, taken := secret[foldName(name)]; taken {
			problems = append(problems, fmt.Errorf("%s: set by %s and by %s: rename or drop one", name, first.origin, origin))
			return
		}
		secret[foldName(name)] = entry{name, value, origin}
	}
	parsed := func(ref upstream.SecretRef) (object, error) {
		if o, done := objects[ref]; done {
			return o, nil
		}
		value := values[ref]
		o, err := parseObject(value.SecretData.Reveal())
		if err == nil {
			objects[ref] = o
		}
		return o, err
	}

	for _, v := range r.variables {
		origin := "secret " + v.Ref.String()
		if v.Field == "" {
			value := values[v.Ref]
			set(v.Name, string(value.SecretData.Reveal()), origin)
			continue
		}
		origin += fmt.Sprintf(", field %q", v.Field)
		o, err := parsed(v.Ref)
		if err == nil {
			var text string
			if text, err = o.text(v.Field); err == nil {
				set(v.Name, text, origin)
				continue
			}
		}
		problems = append(problems, fmt.Errorf("%s: %s: %w", v.Name, origin, err))
	}
	for _, s := range r.spreads {
		o, err := parsed(s.Ref)
		if err != nil {
			problems = append(problems, fmt.Errorf("secret %s: %w", s.Ref, err))
			continue
		}
		keys := slices.Sorted(maps.Keys(o))
		if len(s.Keys) > 0 {
			keys = slices.Sorted(maps.Keys(s.Keys))
		}
		for _, key := range keys {
			name, origin := s.nameOf(key), fmt.Sprintf("secret %s, key %q", s.Ref, key)
			if len(s.Keys) == 0 && steersLoader(name) {
				problems = append(problems, fmt.Errorf("%s: %s: a secret may not choose a variable that makes programs load or run code: "+
					"name it in env or keys if that is meant", name, origin))
				continue
			}
			text, err := o.text(key)
			if err != nil {
				problems = append(problems, fmt.Errorf("%s: %s: %w", name, origin, err))
				continue
			}
			set(name, text, origin)
		}
	}
	if len(problems) > 0 {
		return environment{}, &unfitError{errors.Join(problems...)}
	}

	var env environment
	mac := hmac.New(sha256.New, r.key[:])
	for _, folded := range slices.Sorted(maps.Keys(secret)) {
		e := secret[folded]
		for _, part := range []string{e.name, e.value} {
			var size [8]byte
			binary.BigEndian.PutUint64(size[:], uint64(len(part)))
			_, _ = mac.Write(size[:])
			_, _ = mac.Write([]byte(part))
		}
		env.pairs = append(env.pairs, e.name+"="+e.value)
	}
	mac.Sum(env.digest[:0])
	for name, value := range r.inherited {
		if _, replaced := secret[foldName(name)]; !replaced {
			env.pairs = append(env.pairs, name+"="+value)
		}
	}
	slices.Sort(env.pairs)
	return env, nil
}

// nameOf returns the variable for a key of the secret.
func (s *Spread) nameOf(key string) string {
	if name := s.Keys[key]; name != "" {
		return name
	}
	switch s.Case {
	case UpperCase:
		key = strings.ToUpper(key)
	case LowerCase:
		key = strings.ToLower(key)
	}
	if s.Sanitize {
		key = strings.Map(func(c rune) rune {
			if c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
				return c
			}
			return '_'
		}, key)
	}
	return s.Prefix + key
}

// object is a JSON secret, its values not decoded yet.
type object map[string]json.RawMessage

// parseObject reads a JSON object. The errors of encoding/json quote what they stumble over,
// which here is part of a secret, so they are not passed on.
func parseObject(data []byte) (object, error) {
	var o object
	if !utf8.Valid(data) || json.Unmarshal(data, &o) != nil || o == nil {
		return nil, errors.New("the secret is not a JSON object")
	}
	return o, nil
}

// text returns the value of a key as [Variable].Field describes.
func (o object) text(key string) (string, error) {
	raw, found := o[key]
	switch {
	case !found:
		return "", fmt.Errorf("the secret has no key %q", key)
	case len(raw) > 0 && raw[0] == '"':
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return "", errors.New("the value is not valid JSON")
		}
		return s, nil
	case string(raw) == "null":
		return "", errors.New("the value is null")
	}
	var compact bytes.Buffer
	if json.Compact(&compact, raw) != nil {
		return "", errors.New("the value is not valid JSON")
	}
	return compact.String(), nil
}

// checkName refuses what no environment can carry, and control characters, which would let a
// name forge further lines in the output of env and the like.
func checkName(name string) error {
	if name == "" {
		return errors.New("the name of the variable is empty")
	}
	if i := strings.IndexFunc(name, func(c rune) bool { return c == '=' || c < 0x20 || c == 0x7f }); i >= 0 {
		return fmt.Errorf("%q cannot be the name of a variable: %q is not allowed in it", name, name[i])
	}
	return nil
}

func checkValue(name, value string) error {
	if strings.IndexByte(value, 0) >= 0 {
		return errors.New("the value contains a NUL byte, which no variable can carry: use a file instead")
	}
	if size := len(name) + len(value) + 2; size > maxVariableSize {
		return fmt.Errorf("name and value take %d bytes, at most %d are possible: use a file instead", size, maxVariableSize)
	}
	return nil
}

// foldName returns the form in which names are compared.
func foldName(name string) string {
	if runtime.GOOS == "windows" {
		return strings.ToUpper(name)
	}
	return name
}

// managerVariables are how a service manager speaks to this process. An application that
// inherits them would answer in our place.
var managerVariables = []string{
	"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "FDSTORE", "MAINPID",
}

// inherit returns what the application gets of the environment of this process.
func inherit(opts Options, parent []string) map[string]string {
	matches := func(patterns []string, name string) bool {
		for _, p := range patterns {
			if ok, _ := path.Match(foldName(p), foldName(name)); ok { // the patterns were checked
				return true
			}
		}
		return false
	}
	inherited := map[string]string{}
	for _, pair := range parent {
		// The shell of Windows keeps the folder of each drive in variables named =C: and so on.
		at := strings.IndexByte(pair[min(1, len(pair)):], '=') + 1
		if at < 1 || len(pair) == 0 {
			continue
		}
		name, value := pair[:at], pair[at+1:]
		allowed := matches(opts.Allow, name) || !opts.Pristine && len(opts.Allow) == 0
		if !allowed || matches(opts.Deny, name) || slices.Contains(managerVariables, name) {
			continue
		}
		if _, twice := inherited[name]; twice {
			continue // the first counts, as it does for getenv
		}
		if name == "PWD" && opts.Dir != "" {
			value = opts.Dir
		}
		inherited[name] = value
	}
	return inherited
}
