package rotation

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
)

// The pauses of the schedule.
const (
	// lookAgain is how often an upstream that tells of no changes is looked at: somebody may
	// have left a version pending.
	lookAgain = 30 * time.Minute

	// stagger spreads agents whose rotation is due at the same moment, so that most find it begun.
	stagger = 2 * time.Second

	// quiet is the least time between two looks of the schedule.
	quiet = time.Second
)

// State is what goes on with a rotation.
type State string

// The states.
const (
	Scheduled State = "scheduled" // until Next; without it, until somebody asks
	Rotating  State = "rotating"  // at Step
	Failed    State = "failed"    // at Step, and given up
)

// Status describes a rotation. It holds no value.
type Status struct {
	SecretName  upstream.SecretName
	State       State
	Step        Step               `json:",omitzero"` // being done, or that has failed
	Current     upstream.VersionID `json:"CurrentVersionId,omitzero"`
	Pending     upstream.VersionID `json:"PendingVersionId,omitzero"`
	Next        time.Time          `json:"NextRotation,omitzero"`
	Last        time.Time          `json:"LastRotation,omitzero"` // as the upstream tells it
	TookSeconds float64            `json:",omitzero"`             // of the last one that this agent has done
	Attempts    int                `json:",omitzero"`             // that have failed in a row
	Error       string             `json:",omitzero"`             // of the last of them
	ErrorAt     time.Time          `json:",omitzero"`
}

// Outcome is how a rotation has ended.
type Outcome string

// The outcomes. Followed is done by another agent.
const (
	OutcomeRotated  Outcome = "rotated"
	OutcomeFollowed Outcome = "followed"
	OutcomeFailed   Outcome = "failed"
)

// Event is a rotation that has ended.
type Event struct {
	SecretName upstream.SecretName
	Outcome    Outcome
}

// Rotator rotates secrets. Its methods are safe for concurrent use, but while it runs nothing else
// should rotate with it: make another one for what is done by hand.
type Rotator struct{ jobs []*job }

// New checks the options and prepares a rotator. It starts and asks nothing.
func New(opts Options) (*Rotator, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if opts.Observe == nil {
		opts.Observe = func(Event) {}
	}
	r := &Rotator{}
	for _, one := range opts.Rotations {
		r.jobs = append(r.jobs, &job{
			Rotation: one.withDefaults(), opts: opts, pause: firstPause, margin: margin, wake: make(chan struct{}, 1),
			log:    cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)).With("secret", string(one.Secret)),
			mine:   map[upstream.VersionID]bool{},
			others: map[upstream.VersionID]time.Time{},
			status: Status{SecretName: one.Secret, State: Scheduled},
		})
	}
	return r, nil
}

// Continue takes over what old, which must not run any more, knows of the rotations that both have:
// what it has begun is not left to others. It must be called before Run.
func (r *Rotator) Continue(old *Rotator) {
	for _, j := range r.jobs {
		if before := old.find(j.Secret); before != nil {
			j.mine, j.others, j.done = before.mine, before.others, before.done
			status := before.Status()
			j.mu.Lock() // it may be looked at already
			j.status = status
			j.mu.Unlock()
		}
	}
}

// Run rotates what is due until ctx ends. It blocks until the last command has ended, and returns nil.
func (r *Rotator) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, j := range r.jobs {
		running.Go(func() { j.run(ctx) })
	}
	running.Wait()
	return nil
}

// Wake says that versions or labels of a secret, or of [upstream.AnySecret], have changed. It does
// not block.
func (r *Rotator) Wake(name upstream.SecretName) {
	for _, j := range r.jobs {
		if name == upstream.AnySecret || name.Name() == j.Secret.Name() {
			select {
			case j.wake <- struct{}{}:
			default: // it is about to look anyway
			}
		}
	}
}

// Status describes the rotations in order of the configuration.
func (r *Rotator) Status() []Status {
	list := make([]Status, 0, len(r.jobs))
	for _, j := range r.jobs {
		list = append(list, j.Status())
	}
	return list
}

func (r *Rotator) find(name upstream.SecretName) *job {
	for _, j := range r.jobs {
		if j.Secret == name {
			return j
		}
	}
	return nil
}

// Status describes the rotation.
func (j *job) Status() Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.status
}

// failed notes that a step has failed.
func (j *job) failed(err *Error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.status.Step, j.status.Attempts = err.Step, err.Attempts
	j.status.Error, j.status.ErrorAt = err.Err.Error(), time.Now()
}

// rest notes what the schedule waits for.
func (j *job) rest(s *state, next time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	st := &j.status
	st.State, st.Step, st.Next = Scheduled, "", next
	st.Current, st.Pending, st.Last = s.current.VersionID, s.pending.VersionID, s.last
	st.Attempts, st.Error, st.ErrorAt = 0, "", time.Time{}
}

// run is the schedule of one secret.
func (j *job) run(ctx context.Context) {
	unreachable := func() retry.Backoff {
		return retry.WithJitterPercent(pauseJitter, retry.WithCappedDuration(10*time.Minute, retry.NewExponential(10*time.Second)))
	}
	pauses := unreachable()
	for ctx.Err() == nil {
		wait, err := j.turn(ctx)
		if err != nil && ctx.Err() == nil {
			wait, _ = pauses.Next()
			j.failed(&Error{Secret: j.Secret, Step: Look, Attempts: j.Status().Attempts + 1, Err: err})
			j.log.Warn("the versions of a secret that is to be rotated cannot be read", "err", err, "retry_in", wait, "hint", "check the name and the rights of the agent: it needs kms:ListSecretVersionIds")
		} else {
			pauses = unreachable()
		}
		if !sleep(ctx, quiet, nil) || !sleep(ctx, wait-quiet, j.wake) {
			return
		}
	}
}

// turn does what there is to do and returns when to look again. An error is one of looking.
func (j *job) turn(ctx context.Context) (time.Duration, error) {
	s, err := j.look(ctx)
	if err != nil {
		return 0, err
	}
	pending := s.pending.VersionID
	switch {
	case s.stale():
		return 0, j.drop(ctx, s)
	case s.done():
		return 0, j.unlabel(ctx, s)
	case pending != "" && pending == j.given:
		return lookAgain, nil
	case pending == "" && j.Every == 0:
		j.rest(s, time.Time{})
		return lookAgain, nil
	case pending == "":
		now := time.Now()
		next := j.next(s.last, now)
		if early := j.done.Add(j.Every / 2); !next.After(now) && now.Before(early) {
			next = j.fit(early) // our clock is ahead of that of the upstream, which says that it was long ago
		}
		if next.After(now) {
			j.rest(s, next)
			return min(next.Sub(now), lookAgain), nil
		}
		if !sleep(ctx, rand.N(stagger), nil) {
			return 0, nil
		}
	}
	return j.begin(ctx, s), nil
}

// begin carries out a rotation that is due, or goes on with one.
func (j *job) begin(ctx context.Context, s *state) (again time.Duration) {
	j.mu.Lock()
	j.status.Current, j.status.Last, j.status.Next = s.current.VersionID, s.last, time.Time{}
	j.mu.Unlock()
	began := time.Now()
	result, err := j.rotate(ctx, s.current.VersionID, true)
	took := time.Since(began)
	switch {
	case ctx.Err() != nil:
		return 0
	case errors.Is(err, errDropped):
		j.log.Info("the pending version was dropped")
		return 0
	case err != nil:
		j.opts.Observe(Event{j.Secret, OutcomeFailed})
		failure, _ := errors.AsType[*Error](err)
		j.log.Error("a rotation has failed; the current version stays", "step", string(failure.Step), "attempt", failure.Attempts, "err", failure.Err,
			"hint", "secretagent secret rotate goes on with the pending version, and with --abandon drops it")
		j.mu.Lock()
		j.status.State = Failed
		if _, ofCommand := errors.AsType[commandError](err); ofCommand {
			j.given, again = j.status.Pending, lookAgain
		} else {
			again = lastPause // the upstream may have come back by itself
		}
		j.mu.Unlock()
		return again
	case result.Followed:
		j.opts.Observe(Event{j.Secret, OutcomeFollowed})
		j.log.Info("another agent has rotated the secret", "version", string(result.To), "took", took)
	default:
		j.opts.Observe(Event{j.Secret, OutcomeRotated})
		j.log.Info("the secret was rotated", "version", string(result.To), "took", took)
		j.mu.Lock()
		j.status.TookSeconds = result.TookSeconds
		j.mu.Unlock()
	}
	j.given, j.done = "", time.Now()
	return 0
}
