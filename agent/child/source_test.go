package child

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"testing"

	"secretagent/upstream"
)

// lockable is a mutex that is locked and unlocked in one line: defer l.locked()().
type lockable struct{ mu sync.Mutex }

func (l *lockable) locked() (unlock func()) { l.mu.Lock(); return l.mu.Unlock }

// fakeSource holds values and rings its subscribers when they change.
type fakeSource struct {
	lockable
	values map[upstream.SecretRef]upstream.SecretValue
	err    error // what GetSecretValues answers instead
	reads  int
	bells  map[chan struct{}]bool

	// onRead, when set, runs before a read is answered, without the lock.
	onRead func(ctx context.Context, n int) error
}

// newSource returns a source that holds data under each name, as ACSCurrent.
func newSource(data map[string]string) *fakeSource {
	s := &fakeSource{values: map[upstream.SecretRef]upstream.SecretValue{}, bells: map[chan struct{}]bool{}}
	for name, value := range data {
		s.put(name, value)
	}
	return s
}

func ref(name string) upstream.SecretRef {
	return upstream.SecretRef{SecretName: upstream.SecretName(name)}
}

func (s *fakeSource) put(name, data string) {
	defer s.locked()()
	s.values[ref(name).WithDefaults()] = upstream.SecretValue{SecretName: upstream.SecretName(name), SecretData: upstream.NewSecretData([]byte(data))}
}

// set changes a value and rings.
func (s *fakeSource) set(name, data string) {
	s.put(name, data)
	s.ring()
}

func (s *fakeSource) ring() {
	defer s.locked()()
	for bell := range s.bells {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
}

func (s *fakeSource) fail(err error) { defer s.locked()(); s.err = err }

func (s *fakeSource) readCount() int { defer s.locked()(); return s.reads }

func (s *fakeSource) subscribers() int { defer s.locked()(); return len(s.bells) }

func (s *fakeSource) GetSecretValues(ctx context.Context, refs ...upstream.SecretRef) ([]upstream.SecretValue, error) {
	unlock := s.locked()
	s.reads++
	n, hook := s.reads, s.onRead
	unlock()
	if hook != nil {
		if err := hook(ctx, n); err != nil {
			return nil, err
		}
	}
	defer s.locked()()
	if s.err != nil {
		return nil, s.err
	}
	var values []upstream.SecretValue
	for _, r := range refs {
		v, found := s.values[r]
		if !found {
			return nil, &upstream.Error{Op: "GetSecretValue", Ref: r, Err: upstream.ErrNotFound}
		}
		values = append(values, v)
	}
	return values, nil
}

func (s *fakeSource) Subscribe(...upstream.SecretRef) (<-chan struct{}, func()) {
	bell := make(chan struct{}, 1)
	defer s.locked()()
	s.bells[bell] = true
	return bell, func() { defer s.locked()(); delete(s.bells, bell) }
}

// wantCode checks the exit code of an application that ended with err.
func wantCode(t *testing.T, err error, code int) *ExitError {
	t.Helper()
	exit, _ := errors.AsType[*ExitError](err)
	if code == 0 && err != nil || code != 0 && (exit == nil || exit.Code != code) {
		t.Errorf("ended with %v, want code %d", err, code)
	}
	return cmp.Or(exit, &ExitError{})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
