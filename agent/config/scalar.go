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

var errQuote = errors.New("must be text: put it in quotes")

// parseScalar reads text into a value of the scalar type t. Paths are resolved against dir.
// Its errors never quote text.
func parseScalar(t reflect.Type, text string, form form, dir string) (reflect.Value, error) {
	v, err := scalarOf(t, text, form, dir)
	if err != nil {
		return reflect.Value{}, err
	}
	return reflect.ValueOf(v), nil
}

func scalarOf(t reflect.Type, text string, form form, dir string) (any, error) {
	switch reflect.Zero(t).Interface().(type) {
	case bool:
		if form != formBool {
			return nil, errors.New("must be true or false")
		}
		return text == "true", nil
	case int:
		n, err := strconv.ParseInt(text, 10, 0)
		if form != formInteger || err != nil {
			return nil, errors.New("must be a whole number")
		}
		return int(n), nil
	case float64:
		f, err := strconv.ParseFloat(text, 64)
		if form != formInteger && form != formFloat || err != nil {
			return nil, errors.New("must be a number")
		}
		return f, nil
	case time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil && form == formInteger {
			return nil, errors.New("must have a unit, such as 30s, 5m or 24h")
		}
		if err != nil {
			return nil, errors.New("must be a duration such as 30s, 5m or 1h30m")
		}
		return d, nil
	case ByteSize:
		return parseByteSize(text)
	case FileMode:
		if form != formText {
			return nil, errors.New(`must be in quotes, such as "0600": without them YAML reads a number`)
		}
		return parseFileMode(text)
	case Account:
		if form != formText && form != formInteger {
			return nil, errors.New("must be a name or a number")
		}
		return Account(text), nil
	}
	if form != formText {
		return nil, errQuote
	}
	switch reflect.Zero(t).Interface().(type) {
	case string:
		return text, nil
	case Path:
		if text == "" {
			return nil, errors.New("must not be empty")
		}
		if strings.ContainsRune(text, 0) {
			return nil, errors.New("must not contain a NUL character")
		}
		return resolve(dir, text), nil
	case upstream.SecretName:
		return upstream.SecretName(text), reasonOf(upstream.SecretName(text).Validate())
	case upstream.VersionID:
		return upstream.VersionID(text), reasonOf(upstream.VersionID(text).Validate())
	case upstream.VersionStage:
		return upstream.VersionStage(text), reasonOf(upstream.VersionStage(text).Validate())
	case upstream.SecretRef:
		ref, err := upstream.ParseSecretRef(text)
		return ref, reasonOf(err)
	case upstream.SecretData:
		return upstream.NewSecretData([]byte(text)), nil
	}
	return nil, fmt.Errorf("%s is not a scalar type", t)
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
	v, err := parseScalar(t, text, formOf(t), "")
	if err != nil {
		panic(fmt.Sprintf("config: tag %q of a %s: %v", text, t, err)) // a test reads every tag
	}
	return v
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
