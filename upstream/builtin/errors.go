package builtin

import (
	"context"
	"errors"
	"fmt"

	"secretagent/upstream"
)

// Sentinels beyond those of package upstream; each also matches the sentinel of upstream that
// it is a case of.
var (
	// ErrDamaged: what is kept is not what was written. It is an [upstream.ErrInternal].
	ErrDamaged error = &sentinel{"the database is damaged", upstream.ErrInternal}

	// ErrKeyLost: the keyring lacks a key that the database needs. It is an
	// [upstream.ErrKeyNotFound].
	ErrKeyLost error = &sentinel{"the keyring lacks a key", upstream.ErrKeyNotFound}

	// ErrKeyInUse: the key cannot be removed. It is an [upstream.ErrUnsupported].
	ErrKeyInUse error = &sentinel{"the key is in use", upstream.ErrUnsupported}

	// ErrKeyringKept: the keyring file cannot be changed. It is an [upstream.ErrUnsupported].
	ErrKeyringKept error = &sentinel{"the keyring file stays as it is", upstream.ErrUnsupported}

	// ErrClosed: [Store.Close] was called. It is an [upstream.ErrUnavailable].
	ErrClosed error = &sentinel{"the built-in backend is closed", upstream.ErrUnavailable}
)

type sentinel struct {
	text  string
	class error
}

// NewSentinel returns an error that matches class, which it is a case of.
func NewSentinel(text string, class error) error { return &sentinel{text, class} }

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.class }

// Errorf returns an error of the class, a sentinel, with a message for people.
func Errorf(class error, format string, args ...any) error {
	return &upstream.Error{Message: fmt.Sprintf(format, args...), Err: class}
}

// refer gives err the operation and the reference it belongs to, and a place in the error
// table to errors that have none.
func refer(err error, op string, ref upstream.SecretRef) error {
	known, ok := errors.AsType[*upstream.Error](err)
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case ok:
		return upstream.Wrap(known, op, ref)
	case errors.Is(err, ErrClosed):
		return &upstream.Error{Op: op, Ref: ref, Message: ErrClosed.Error(), Err: ErrClosed}
	default:
		return &upstream.Error{Op: op, Ref: ref, Message: err.Error(), Err: upstream.ErrInternal}
	}
}

func secretRef(name upstream.SecretName) upstream.SecretRef {
	return upstream.SecretRef{SecretName: name}
}
