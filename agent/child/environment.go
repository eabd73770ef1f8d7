package child

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"

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
	inherited map[string]string // :: name → value
	withheld  []string          // names that Options.Withheld kept back
	refs      []upstream.SecretRef
	key       [32]byte // of the digests
}

// newRecipe returns the recipe of opts, which were checked. Parent is the environment of this
// process.
func newRecipe(opts Options, parent []string) *recipe {
	r := &recipe{variables: slices.Clone(opts.Env)}
	r.inherited, r.withheld = inherit(opts, parent)
	_, _ = rand.Read(r.key[:]) // never fails
	for i := range r.variables {
		v := &r.variables[i]
		v.Ref = v.Ref.WithDefaults()
		if !slices.Contains(r.refs, v.Ref) {
			r.refs = append(r.refs, v.Ref)
		}
	}
	return r
}

// unfitError says that the secrets are known but do not make an environment. Only another
// secret or another configuration can change that.
type unfitError struct{ error }

func (e *unfitError) Unwrap() error { return e.error }

// read makes an environment of the current values. An error of src names the variables that
// need the secret; others are an [*unfitError].
func (r *recipe) read(ctx context.Context, src Source) (environment, error) {
	if len(r.refs) == 0 {
		return r.assemble(nil)
	}
	values, err := src.GetSecretValues(ctx, r.refs...)
	if err != nil {
		return environment{}, r.explain(err)
	}
	return r.assemble(values)
}

// explain says which variables an error about one secret concerns.
func (r *recipe) explain(err error) error {
	e, ok := errors.AsType[*upstream.Error](err)
	if !ok {
		return err
	}
	var users []string
	for _, v := range r.variables {
		if v.Ref == e.Ref.WithDefaults() {
			users = append(users, cmp.Or(v.Name, "the variables named by "+v.Ref.String()))
		}
	}
	if len(users) == 0 {
		return err
	}
	return fmt.Errorf("%s: %w", strings.Join(users, ", "), err)
}

// entry is one variable that comes from a secret.
type entry struct{ name, value, origin string }

// assemble makes an environment of values, one for each of refs. The error holds every problem,
// names variable and secret, and never quotes a value.
func (r *recipe) assemble(values []upstream.SecretValue) (environment, error) {
	var problems []error
	set := map[string]entry{} // :: folded name → entry
	for i := range r.variables {
		v := &r.variables[i]
		entries, unfit := v.entries(values[slices.Index(r.refs, v.Ref)].SecretData)
		problems = append(problems, unfit...)
		for _, e := range entries {
			if first, taken := set[foldName(e.name)]; taken {
				problems = append(problems, fmt.Errorf("%s: set by %s and by %s: rename or drop one", e.name, first.origin, e.origin))
				continue
			}
			set[foldName(e.name)] = e
		}
	}
	if len(problems) > 0 {
		return environment{}, &unfitError{errors.Join(problems...)}
	}

	var env environment
	mac := hmac.New(sha256.New, r.key[:])
	for _, folded := range slices.Sorted(maps.Keys(set)) {
		pair := set[folded].name + "=" + set[folded].value
		_, _ = mac.Write([]byte(pair + "\x00")) // neither part contains a NUL, nor the name an equals sign
		env.pairs = append(env.pairs, pair)
	}
	mac.Sum(env.digest[:0])
	for name, value := range r.inherited {
		if _, replaced := set[foldName(name)]; !replaced {
			env.pairs = append(env.pairs, name+"="+value)
		}
	}
	slices.Sort(env.pairs)
	return env, nil
}

// entries returns what v makes of the secret's data, and what is wrong with the rest of it.
func (v *Variable) entries(data upstream.SecretData) (entries []entry, problems []error) {
	add := func(name, origin, value string, err error) {
		if nameErr := checkName(name); nameErr != nil {
			problems = append(problems, fmt.Errorf("%s: %w", origin, nameErr))
			return
		}
		if err == nil {
			err = checkValue(name, value)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %s: %w", name, origin, err))
			return
		}
		entries = append(entries, entry{name, value, origin})
	}
	secret := "secret " + v.Ref.String()
	if v.Name != "" && v.Field == "" {
		add(v.Name, secret, string(data.Reveal()), nil)
		return entries, problems
	}

	fields, err := data.RevealFields()
	if v.Name != "" {
		value := ""
		if err == nil {
			value, err = textOf(fields, v.Field)
		}
		add(v.Name, fmt.Sprintf("%s, field %q", secret, v.Field), value, err)
		return entries, problems
	}
	if err != nil {
		return nil, []error{fmt.Errorf("%s: %w", secret, err)}
	}
	keys := slices.Sorted(maps.Keys(v.Keys))
	if len(v.Keys) == 0 {
		keys = slices.Sorted(maps.Keys(fields))
	}
	for _, key := range keys {
		name := v.nameOf(key)
		value, err := textOf(fields, key)
		if len(v.Keys) == 0 && steersLoader(name) {
			err = errors.New("a secret may not choose a variable that makes programs load or run code: name it in env or keys if that is meant")
		}
		add(name, fmt.Sprintf("%s, key %q", secret, key), value, err)
	}
	return entries, problems
}

// nameOf returns the variable for a key of the secret.
func (v *Variable) nameOf(key string) string {
	if name := v.Keys[key]; name != "" {
		return name
	}
	switch v.Case {
	case UpperCase:
		key = strings.ToUpper(key)
	case LowerCase:
		key = strings.ToLower(key)
	}
	if v.Sanitize {
		key = strings.Map(func(c rune) rune {
			if c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
				return c
			}
			return '_'
		}, key)
	}
	return v.Prefix + key
}

// textOf returns a field as [Variable].Field describes.
func textOf(fields upstream.Fields, name string) (string, error) {
	text, err := fields.Text(name)
	if errors.Is(err, upstream.ErrNoField) {
		err = fmt.Errorf("the secret has no key %q", name)
	}
	return string(text), err
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

// inherit returns what the application gets of the environment of this process, and the names
// that it would get if they were not among Options.Withheld.
func inherit(opts Options, parent []string) (inherited map[string]string, withheld []string) {
	matches := func(patterns []string, name string) bool {
		return slices.ContainsFunc(patterns, func(pattern string) bool {
			ok, _ := path.Match(foldName(pattern), foldName(name)) // the patterns were checked
			return ok
		})
	}
	contains := func(names []string, name string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return foldName(n) == foldName(name) })
	}
	inherited = map[string]string{}
	for _, pair := range parent {
		// The shell of Windows keeps the folder of each drive in variables named =C: and so on.
		at := strings.IndexByte(pair[min(1, len(pair)):], '=') + 1
		if at < 1 || len(pair) == 0 {
			continue
		}
		name, value := pair[:at], pair[at+1:]
		allowed := matches(opts.Allow, name) || !opts.Pristine && len(opts.Allow) == 0
		_, twice := inherited[name] // the first counts, as it does for getenv
		if twice || !allowed || matches(opts.Deny, name) || slices.Contains(managerVariables, name) {
			continue
		}
		if contains(opts.Withheld, name) && !contains(opts.Allow, name) {
			withheld = append(withheld, name)
			continue
		}
		if name == "PWD" && opts.Dir != "" {
			value = opts.Dir
		}
		inherited[name] = value
	}
	return inherited, withheld
}
