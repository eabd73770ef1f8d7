package child

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"

	"secretagent/upstream"
)

// fakeSource holds values and rings its subscribers when they change.
type fakeSource struct {
	mu     sync.Mutex
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
	for _, name := range slices.Sorted(maps.Keys(data)) {
		s.put(name, data[name])
	}
	return s
}

func ref(name string) upstream.SecretRef {
	return upstream.SecretRef{SecretName: upstream.SecretName(name)}
}

func (s *fakeSource) put(name, data string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[ref(name).WithDefaults()] = upstream.SecretValue{
		SecretName: upstream.SecretName(name),
		SecretData: upstream.NewSecretData([]byte(data)),
	}
}

// set changes a value and rings.
func (s *fakeSource) set(name, data string) {
	s.put(name, data)
	s.ring()
}

func (s *fakeSource) ring() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for bell := range s.bells {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
}

func (s *fakeSource) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *fakeSource) readCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

func (s *fakeSource) subscribers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.bells)
}

func (s *fakeSource) GetSecretValues(ctx context.Context, refs ...upstream.SecretRef) ([]upstream.SecretValue, error) {
	s.mu.Lock()
	s.reads++
	n, hook := s.reads, s.onRead
	s.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, n); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	values := make([]upstream.SecretValue, len(refs))
	for i, r := range refs {
		v, found := s.values[r]
		if !found {
			return nil, &upstream.Error{Op: "GetSecretValue", Ref: r, Err: upstream.ErrNotFound}
		}
		values[i] = v
	}
	return values, nil
}

func (s *fakeSource) Subscribe(...upstream.SecretRef) (<-chan struct{}, func()) {
	bell := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bells[bell] = true
	return bell, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.bells, bell)
	}
}

func slogDiscard() *slog.Logger { return slog.New(slog.DiscardHandler) }

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
