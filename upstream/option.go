package upstream

import (
	"errors"
	"fmt"
	"strings"
)

// OptionError is one problem of the options of a part of the agent.
type OptionError struct {
	// Key is the option as agent.yaml spells it, below the section that the part belongs to:
	// "endpoints[0].host" of the cloud client.
	Key string

	Value  string // what is given; empty where that may be a secret or says nothing
	Reason string // what is wrong and what is allowed
	Err    error  // the cause; may be nil
}

// Error returns key, value and reason on one line.
func (e *OptionError) Error() string {
	var b strings.Builder
	for _, part := range []string{e.Key, e.Value} {
		if part != "" {
			b.WriteString(part)
			b.WriteString(": ")
		}
	}
	return b.String() + e.Reason
}

// Unwrap returns the cause.
func (e *OptionError) Unwrap() error { return e.Err }

// OptionErrors collects every problem of some options. The zero value is ready to use.
type OptionErrors []*OptionError

// Addf adds a problem with the value of key. The value and the reason must hold no secret. What %w
// stands for is the cause.
func (p *OptionErrors) Addf(key, value, format string, args ...any) {
	err := fmt.Errorf(format, args...)
	*p = append(*p, &OptionError{Key: key, Value: value, Reason: err.Error(), Err: errors.Unwrap(err)})
}

// Add adds err as a problem with key; nil adds nothing. Of OptionErrors it adds each, with key
// as the section before its own key.
func (p *OptionErrors) Add(key string, err error) {
	switch e := err.(type) {
	case nil:
	case OptionErrors:
		for _, one := range e {
			below := *one
			below.Key = joinKey(key, one.Key)
			*p = append(*p, &below)
		}
	default:
		*p = append(*p, &OptionError{Key: key, Reason: err.Error(), Err: err})
	}
}

func joinKey(section, key string) string {
	switch {
	case section == "":
		return key
	case key == "" || strings.HasPrefix(key, "["):
		return section + key
	}
	return section + "." + key
}

// Err returns the collected problems as an error; nil when there are none.
func (p OptionErrors) Err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// Error returns one line per problem.
func (p OptionErrors) Error() string {
	lines := make([]string, len(p))
	for i, e := range p {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the problems for [errors.Is] and [errors.As].
func (p OptionErrors) Unwrap() []error {
	errs := make([]error, len(p))
	for i, e := range p {
		errs[i] = e
	}
	return errs
}
