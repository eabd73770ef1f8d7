package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"secretagent/upstream"
)

// form is how a scalar is written in YAML, which decides what it may become.
type form int

const (
	formText form = iota
	formInteger
	formFloat
	formBool
)

// scalarParser reads the text of a scalar as it is written. Paths begin in one of the folders. Its
// errors never quote text.
type scalarParser func(text string, form form, in folders) (any, error)

// scalars are the types that are written as one YAML scalar.
var scalars = map[reflect.Type]scalarParser{
	reflect.TypeFor[bool]():                parseBool,
	reflect.TypeFor[int]():                 parseInt,
	reflect.TypeFor[float64]():             parseFloat,
	reflect.TypeFor[time.Duration]():       parseDuration,
	reflect.TypeFor[ByteSize]():            func(text string, _ form, _ folders) (any, error) { return parseByteSize(text) },
	reflect.TypeFor[MemoryLimit]():         func(text string, _ form, _ folders) (any, error) { return parseMemoryLimit(text) },
	reflect.TypeFor[FileMode]():            parseQuotedMode,
	reflect.TypeFor[Account]():             parseAccount,
	reflect.TypeFor[string]():              quoted(func(text string, _ folders) (any, error) { return text, nil }),
	reflect.TypeFor[Path]():                quoted(parsePath),
	reflect.TypeFor[upstream.SecretName](): quoted(parseName[upstream.SecretName]),
	reflect.TypeFor[upstream.VersionID]():  quoted(parseName[upstream.VersionID]),
	reflect.TypeFor[upstream.SecretRef](): quoted(func(text string, _ folders) (any, error) {
		ref, err := upstream.ParseSecretRef(text)
		return ref, reasonOf(err)
	}),
	secretDataType: quoted(func(text string, _ folders) (any, error) { return upstream.NewSecretData([]byte(text)), nil }),
}

// isScalar reports whether a value of type t is written as one YAML scalar.
func isScalar(t reflect.Type) bool { return scalars[t] != nil }

// parseScalar reads text into a value of the scalar type t.
func parseScalar(t reflect.Type, text string, form form, in folders) (reflect.Value, error) {
	v, err := scalars[t](text, form, in)
	if err != nil {
		return reflect.Value{}, err
	}
	return reflect.ValueOf(v), nil
}

// quoted makes a parser of text that YAML must not take for something else.
func quoted(parse func(text string, in folders) (any, error)) scalarParser {
	return func(text string, form form, in folders) (any, error) {
		if form != formText {
			return nil, errors.New("must be text: put it in quotes")
		}
		return parse(text, in)
	}
}

func parseBool(text string, form form, _ folders) (any, error) {
	if form != formBool {
		return nil, errors.New("must be true or false")
	}
	return text == "true", nil
}

func parseInt(text string, form form, _ folders) (any, error) {
	n, err := strconv.ParseInt(text, 10, 0)
	if form != formInteger || err != nil {
		return nil, errors.New("must be a whole number")
	}
	return int(n), nil
}

func parseFloat(text string, form form, _ folders) (any, error) {
	f, err := strconv.ParseFloat(text, 64)
	if form != formInteger && form != formFloat || err != nil {
		return nil, errors.New("must be a number")
	}
	return f, nil
}

func parseDuration(text string, form form, _ folders) (any, error) {
	d, err := time.ParseDuration(text)
	if err != nil && form == formInteger {
		return nil, errors.New("must have a unit, such as 30s, 5m or 24h")
	}
	if err != nil {
		return nil, errors.New("must be a duration such as 30s, 5m or 1h30m")
	}
	return d, nil
}

func parseQuotedMode(text string, form form, _ folders) (any, error) {
	if form != formText {
		return nil, errors.New(`must be in quotes, such as "0600": without them YAML reads a number`)
	}
	return parseFileMode(text)
}

func parseAccount(text string, form form, _ folders) (any, error) {
	if form != formText && form != formInteger {
		return nil, errors.New("must be a name or a number")
	}
	return Account(text), nil
}

func parsePath(text string, in folders) (any, error) {
	if text == "" {
		return nil, errors.New("must not be empty")
	}
	if strings.ContainsRune(text, 0) {
		return nil, errors.New("must not contain a NUL character")
	}
	return in.resolve(text)
}

func parseName[T interface {
	~string
	Validate() error
}](text string, _ folders) (any, error) {
	return T(text), reasonOf(T(text).Validate())
}

// reasonOf returns what is wrong with an identifier, without the words of the KMS API around
// it.
func reasonOf(err error) error {
	if err == nil {
		return nil
	}
	msg := err.Error()
	if errors.Is(err, upstream.ErrMissingParameter) {
		return errors.New("must not be empty")
	}
	if _, reason, ok := strings.Cut(msg, "is not valid: "); ok {
		msg = strings.TrimSuffix(reason, ".")
	}
	return errors.New("is no valid name: " + msg)
}

// checkRange reports how v, a number of any kind, leaves the range between min and max, which
// are written as in YAML; an empty one does not limit.
func checkRange(v reflect.Value, min, max string) error {
	low, high := bound(v.Type(), min), bound(v.Type(), max)
	if (!low.IsValid() || compare(v, low) >= 0) && (!high.IsValid() || compare(v, high) <= 0) {
		return nil
	}
	zero := reflect.Zero(v.Type())
	sign := ""
	if low.IsValid() && compare(v, low) < 0 {
		switch {
		case compare(low, zero) == 0:
			return errors.New("must not be negative")
		case compare(v, zero) <= 0:
			sign = "positive, "
		}
	}
	switch {
	case !high.IsValid():
		return fmt.Errorf("must be %sat least %s", sign, min)
	case !low.IsValid():
		return fmt.Errorf("must be %sat most %s", sign, max)
	}
	return fmt.Errorf("must be %sfrom %s to %s", sign, min, max)
}

// bound reads the text of a min or max tag; invalid when there is none.
func bound(t reflect.Type, text string) reflect.Value {
	if text == "" {
		return reflect.Value{}
	}
	return mustScalar(t, text, folders{})
}

// formOf returns how the tags of this package write a value of type t.
func formOf(t reflect.Type) form {
	switch t.Kind() {
	case reflect.Bool:
		return formBool
	case reflect.Int:
		return formInteger
	case reflect.Float64:
		return formFloat
	default:
		return formText
	}
}

func compare(a, b reflect.Value) int {
	if a.CanFloat() {
		return cmp.Compare(a.Float(), b.Float())
	}
	return cmp.Compare(a.Int(), b.Int())
}
