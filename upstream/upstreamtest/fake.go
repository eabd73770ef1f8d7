package upstreamtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"secretagent/upstream"
)

// awaitLimit bounds [Fake.AwaitCalls], so that a broken test ends with a message.
const awaitLimit = time.Minute

// Fake is a whole [upstream.Manager] in memory. Operations are named as in the KMS API, such
// as "GetSecretValue" and "ListSecretVersionIds".
//
// A call passes the hooks in this order: it is counted, waits for [Fake.Block], waits for
// [Fake.Delay], asks [Fake.Intercept], takes the error of [Fake.FailNext], then that of
// [Fake.Fail], and only then looks at its secrets. A wait ends early with the context's
// error.
//
// All methods are safe for concurrent use. The fake starts no goroutine and sleeps only for
// a delay it was told, so it runs inside a testing/synctest bubble in which it was created.
type Fake struct {
	// MaxVersions is how many versions a secret keeps, 10 unless set before the first call.
	MaxVersions int

	// Emulate is what the fake does as the cloud does it. It is set before the first call.
	Emulate Emulation

	// Now tells the time that is recorded and at which recovery windows end, [time.Now] unless
	// set before the first call. It has nothing to do with delays.
	Now func() time.Time

	mu        sync.Mutex // guards what follows; the operations run under it
	secrets   map[upstream.SecretName]*fakeSecret
	requests  int // for request ids
	hooks     map[string]*hook
	intercept func(ctx context.Context, op string, ref upstream.SecretRef) error
	stepped   chan struct{} // closed and replaced whenever a call begins
	listeners map[int]func(upstream.SecretName)
	nextID    int                   // of a listener
	announce  []upstream.SecretName // what the operation under way has changed
}

var _ upstream.Manager = (*Fake)(nil)

// Emulation says what a backend does as the cloud does it, like the one of the built-in backend.
type Emulation struct {
	InstanceID     string
	Keys           []string
	PutMovesStages bool
}

// hook is what one operation was told and what it has counted.
type hook struct {
	calls, running, maxRunning int
	delay                      time.Duration
	blocked                    chan struct{} // nil: not blocked
	err                        error
	next                       []error // errors for the next calls, consumed from the front
}

// NewFake returns a fake without secrets whose clock is [time.Now].
func NewFake() *Fake {
	return &Fake{
		MaxVersions: 10,
		Now:         time.Now,
		secrets:     map[upstream.SecretName]*fakeSecret{},
		hooks:       map[string]*hook{},
		stepped:     make(chan struct{}),
		listeners:   map[int]func(upstream.SecretName){},
	}
}

// MustCreate makes a secret with a first version. It runs no hook and counts no call.
func (f *Fake) MustCreate(tb testing.TB, name, version, data string) {
	tb.Helper()
	in := upstream.CreateSecretInput{
		SecretName: upstream.SecretName(name),
		VersionID:  upstream.VersionID(version),
		SecretData: upstream.NewSecretData([]byte(data)),
	}
	must(tb, "create "+name, only(f.CreateSecret(quiet, in)))
}

// MustPut adds a version and moves the labels to it, ACSCurrent when none is given; then a
// missing secret is created too. It runs no hook and counts no call.
func (f *Fake) MustPut(tb testing.TB, name, version, data string, stages ...upstream.VersionStage) {
	tb.Helper()
	in := upstream.PutSecretValueInput{
		SecretName:    upstream.SecretName(name),
		VersionID:     upstream.VersionID(version),
		SecretData:    upstream.NewSecretData([]byte(data)),
		VersionStages: stages,
	}
	_, err := f.PutSecretValue(quiet, in)
	if errors.Is(err, upstream.ErrNotFound) && stages == nil {
		f.MustCreate(tb, name, version, data)
		return
	}
	must(tb, "put "+name+" version "+version, err)
}

// MustMove moves a label to a version. It runs no hook and counts no call.
func (f *Fake) MustMove(tb testing.TB, name string, stage upstream.VersionStage, version string) {
	tb.Helper()
	in := upstream.UpdateSecretVersionStageInput{
		SecretName: upstream.SecretName(name), VersionStage: stage, MoveToVersion: upstream.VersionID(version),
	}
	must(tb, "move "+string(stage)+" of "+name+" to "+version, f.UpdateSecretVersionStage(quiet, in))
}

// MustDelete deletes a secret at once. It runs no hook and counts no call.
func (f *Fake) MustDelete(tb testing.TB, name string) {
	tb.Helper()
	in := upstream.DeleteSecretInput{SecretName: upstream.SecretName(name), ForceDeleteWithoutRecovery: true}
	must(tb, "delete "+name, only(f.DeleteSecret(quiet, in)))
}

// quietContext is the context of calls that run no hook and are not counted.
type quietContext struct{ context.Context }

var quiet = quietContext{context.Background()}

func must(tb testing.TB, what string, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}

// Fail makes every following call of op fail with err; nil takes it back. An error that is
// no [*upstream.Error] is wrapped in one that names operation and reference, except context
// errors, which pass through untouched.
func (f *Fake) Fail(op string, err error) {
	f.hook(op, func(h *hook) { h.err = err })
}

// FailNext makes the next n calls of op fail with err, after those that were told to fail
// before.
func (f *Fake) FailNext(op string, n int, err error) {
	f.hook(op, func(h *hook) { h.next = append(h.next, slices.Repeat([]error{err}, n)...) })
}

// Delay makes every following call of op take d before it acts; zero takes it back.
func (f *Fake) Delay(op string, d time.Duration) {
	f.hook(op, func(h *hook) { h.delay = d })
}

// Block makes calls of op wait until release is called, which may be done more than once.
// A second Block before the release replaces the first for later calls.
func (f *Fake) Block(op string) (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	gate := make(chan struct{})
	f.hookLocked(op).blocked = gate
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		close(gate)
		if h := f.hookLocked(op); h.blocked == gate {
			h.blocked = nil
		}
	})
}

// Intercept calls fn before every operation acts, outside any lock of the fake; nil takes it
// back. An error of fn is the operation's result. The reference is zero for operations
// without a secret, and names the first of several.
func (f *Fake) Intercept(fn func(ctx context.Context, op string, ref upstream.SecretRef) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intercept = fn
}

// Calls returns how many calls of op have begun, failed ones included.
func (f *Fake) Calls(op string) (n int) {
	f.hook(op, func(h *hook) { n = h.calls })
	return n
}

// Running returns how many calls of op have begun and not ended.
func (f *Fake) Running(op string) (n int) {
	f.hook(op, func(h *hook) { n = h.running })
	return n
}

// MaxRunning returns the most calls of op that were ever running at once.
func (f *Fake) MaxRunning(op string) (n int) {
	f.hook(op, func(h *hook) { n = h.maxRunning })
	return n
}

// AwaitCalls blocks until at least n calls of op have begun. It ends the test after a minute.
func (f *Fake) AwaitCalls(tb testing.TB, op string, n int) {
	tb.Helper()
	timeout := time.NewTimer(awaitLimit)
	defer timeout.Stop()
	for {
		f.mu.Lock()
		calls, stepped := f.hookLocked(op).calls, f.stepped
		f.mu.Unlock()
		if calls >= n {
			return
		}
		select {
		case <-stepped:
		case <-timeout.C:
			tb.Fatalf("waited %s for %d calls of %s, saw %d", awaitLimit, n, op, calls)
		}
	}
}

// OnChange calls fn with the name of a secret after its versions, labels or existence
// changed and before the writer is answered. fn must not block. A secret whose recovery
// window ends is not announced.
func (f *Fake) OnChange(fn func(upstream.SecretName)) (cancel func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.nextID
	f.nextID++
	f.listeners[id] = fn
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.listeners, id)
	}
}

// changed notes that readers of a secret see something else when the operation is done.
func (f *Fake) changed(name upstream.SecretName) { f.announce = append(f.announce, name) }

// locked runs an operation under the lock and announces what it has changed.
func locked[T any](f *Fake, act func() (T, error)) (T, error) {
	f.mu.Lock()
	out, err := act()
	names, listeners := f.announce, slices.Collect(maps.Values(f.listeners))
	f.announce = nil
	f.mu.Unlock()
	for _, name := range names {
		for _, listener := range listeners {
			listener(name)
		}
	}
	return out, err
}

// call runs the hooks of op and then act, under the lock, and names operation and reference in
// the error.
func call[T any](ctx context.Context, f *Fake, op string, ref upstream.SecretRef, act func() (T, error)) (none T, err error) {
	if ctx != quiet {
		if err := ctx.Err(); err != nil {
			return none, err
		}
		defer f.begin(op)()
		if err := f.runHooks(ctx, op, ref); err != nil {
			var known *upstream.Error
			if !errors.As(err, &known) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
				err = &upstream.Error{Err: err}
			}
			return none, upstream.Wrap(err, op, ref)
		}
	}
	out, err := locked(f, act)
	return out, upstream.Wrap(err, op, ref)
}

// do is call for operations that answer nothing.
func (f *Fake) do(ctx context.Context, op string, ref upstream.SecretRef, act func() error) error {
	_, err := call(ctx, f, op, ref, func() (any, error) { return nil, act() })
	return err
}

// begin counts a call and returns what ends it.
func (f *Fake) begin(op string) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hookLocked(op)
	h.calls++
	h.running++
	h.maxRunning = max(h.maxRunning, h.running)
	close(f.stepped)
	f.stepped = make(chan struct{})
	return func() { f.hook(op, func(h *hook) { h.running-- }) }
}

func (f *Fake) runHooks(ctx context.Context, op string, ref upstream.SecretRef) error {
	var gate chan struct{}
	f.hook(op, func(h *hook) { gate = h.blocked })
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var delay time.Duration
	var intercept func(context.Context, string, upstream.SecretRef) error
	f.hook(op, func(h *hook) { delay, intercept = h.delay, f.intercept })
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if intercept != nil {
		if err := intercept(ctx, op, ref); err != nil {
			return err
		}
	}
	var err error
	f.hook(op, func(h *hook) {
		if err = h.err; len(h.next) > 0 {
			err, h.next = h.next[0], h.next[1:]
		}
	})
	return err
}

func (f *Fake) hook(op string, use func(*hook)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	use(f.hookLocked(op))
}

func (f *Fake) hookLocked(op string) *hook {
	h := f.hooks[op]
	if h == nil {
		h = &hook{}
		f.hooks[op] = h
	}
	return h
}

// now is the time of an operation. The KMS API counts in seconds.
func (f *Fake) now() time.Time { return f.Now().Truncate(time.Second).UTC() }

func (f *Fake) requestID() string {
	f.requests++
	return fmt.Sprintf("00000000-0000-4000-8000-%012d", f.requests)
}
