package rotation

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
)

// Step is a part of a rotation.
type Step string

// The steps, in their order. Look comes before each attempt, and wait where another agent is at work.
const (
	Look   Step = "look"
	Wait   Step = "wait"
	Make   Step = "make"
	Put    Step = "put"
	Set    Step = "set"
	Test   Step = "test"
	Finish Step = "finish"
)

// The pauses of a rotation.
const (
	firstPause  = 5 * time.Second // after a step that failed; it doubles
	lastPause   = 5 * time.Minute
	pauseJitter = 20 // percent

	// margin is how long set and test of another agent may take beyond their timeouts: their ends,
	// the calls between them, and what its clock differs.
	margin = 10 * time.Second

	// maxLooks bounds how often the state is found to have changed under one attempt.
	maxLooks = 20
)

// Error says at which step a rotation failed.
type Error struct {
	Secret   upstream.SecretName
	Step     Step
	Attempts int
	Err      error
}

// Error returns the step and the reason.
func (e *Error) Error() string {
	tried := ""
	if e.Attempts > 1 {
		tried = fmt.Sprintf(" after %d attempts", e.Attempts)
	}
	return fmt.Sprintf("%s: the rotation has failed at step %s%s: %v", e.Secret, e.Step, tried, e.Err)
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// commandError is that of a command, which may succeed the next time.
type commandError struct{ error }

func (e commandError) Unwrap() error { return e.error }

// lost reports whether a write was refused because somebody else was faster, or may have been.
func lost(err error) bool {
	return errors.Is(err, upstream.ErrExists) || errors.Is(err, upstream.ErrInvalidParameter) || errors.Is(err, upstream.ErrNotFound)
}

// Result is a rotation that was done.
type Result struct {
	SecretName  upstream.SecretName
	From        upstream.VersionID `json:"PreviousVersionId"`
	To          upstream.VersionID `json:"VersionId"`
	Followed    bool               // another agent has finished it
	TookSeconds float64
}

// job rotates one secret. One goroutine at a time works with it; its status can be read meanwhile.
type job struct {
	Rotation
	opts          Options
	pause, margin time.Duration // firstPause and margin, but in tests without virtual time
	log           *slog.Logger
	wake          chan struct{} // of size one: something has changed

	mine   map[upstream.VersionID]bool      // pending versions that we have made or taken up
	others map[upstream.VersionID]time.Time // :: pending version of others → until when it is left to them
	given  upstream.VersionID               // the pending version that we have given up on
	done   time.Time                        // when the last rotation ended that we have seen; zero: none

	mu     sync.Mutex
	status Status
}

func (j *job) upstream() Upstream { return j.opts.Upstream() }

// execute runs a command.
func (j *job) execute(ctx context.Context, e Execution) ([]byte, error) {
	e.Timeout = e.timeout()
	answer, err := j.opts.Run(ctx, e)
	clear(e.Input)
	if err != nil && ctx.Err() == nil {
		err = commandError{err}
	}
	return answer, err
}

// attempt is what one rotation remembers from one attempt to the next.
type attempt struct {
	base      upstream.VersionID                          // to be replaced; empty: what is found first
	saw       bool                                        // a version was pending
	values    map[upstream.VersionID]upstream.SecretValue // made, and put under that id, perhaps in vain
	staggered bool                                        // others may be at the same: take pauses that differ
	step      Step                                        // that is being done
}

// errDropped ends a rotation whose version somebody else has dropped.
var errDropped = errors.New("the pending version was dropped meanwhile")

// rotate replaces the current version, in as many attempts as are allowed. It goes on with what it
// finds. When base is not current any more, another has done it.
func (j *job) rotate(ctx context.Context, base upstream.VersionID, staggered bool) (Result, error) {
	began := time.Now()
	a := &attempt{base: base, values: map[upstream.VersionID]upstream.SecretValue{}, staggered: staggered}
	pauses := retry.WithJitterPercent(pauseJitter, retry.WithCappedDuration(lastPause, retry.NewExponential(j.pause)))
	for n := 1; ; n++ {
		to, followed, err := j.try(ctx, a)
		if err == nil {
			return Result{SecretName: j.Secret, From: a.base, To: to, Followed: followed, TookSeconds: time.Since(began).Seconds()}, nil
		}
		if ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
		failure := &Error{Secret: j.Secret, Step: a.step, Attempts: n, Err: err}
		j.failed(failure)
		_, ofCommand := errors.AsType[commandError](err)
		if again := ofCommand || upstream.Retryable(err) || lost(err) && (a.step == Put || a.step == Finish); !again || n >= j.MaxAttempts {
			return Result{}, failure
		}
		pause, _ := pauses.Next()
		j.log.Warn("a step of a rotation failed", "step", string(a.step), "attempt", n, "err", err, "retry_in", pause, "hint", "it is tried again")
		if !sleep(ctx, pause, nil) {
			return Result{}, ctx.Err()
		}
	}
}

// enter notes the step that is being done.
func (j *job) enter(a *attempt, step Step, pending upstream.VersionID) {
	a.step = step
	j.mu.Lock()
	defer j.mu.Unlock()
	j.status.State, j.status.Step, j.status.Pending = Rotating, step, pending
}

// try makes one attempt, and returns the version that is current after it.
func (j *job) try(ctx context.Context, a *attempt) (to upstream.VersionID, followed bool, err error) {
	for looks := 0; looks < maxLooks; looks++ {
		j.enter(a, Look, "")
		s, err := j.look(ctx)
		if err != nil {
			return "", false, err
		}
		pending := s.pending.VersionID
		a.base = cmp.Or(a.base, s.current.VersionID)
		switch {
		case s.done():
			j.enter(a, Finish, pending)
			return pending, !j.mine[pending], j.unlabel(ctx, s)
		case s.current.VersionID != a.base:
			_, ours := a.values[s.current.VersionID]
			return s.current.VersionID, !ours && !j.mine[s.current.VersionID], nil
		case s.stale():
			j.enter(a, Look, pending)
			if err := j.drop(ctx, s); err != nil {
				return "", false, err
			}
			continue
		case pending == "" && a.saw:
			return "", false, errDropped
		case pending == "":
			if err := j.put(ctx, a, s); err != nil {
				return "", false, err
			}
			continue
		}
		a.saw = true
		wait, err := j.leave(ctx, s, a)
		switch {
		case err != nil:
			return "", false, err
		case wait <= 0:
			j.mine[pending] = true
			return pending, false, j.carry(ctx, a, s)
		}
		j.enter(a, Wait, pending)
		if !sleep(ctx, min(wait, j.lease()/8), j.wake) {
			return "", false, ctx.Err()
		}
		looks--
	}
	return "", false, &upstream.Error{Message: "versions and labels change all the time: somebody else is at work", Err: upstream.ErrUnavailable}
}

// drop takes the label off a pending version that is stale.
func (j *job) drop(ctx context.Context, s *state) error {
	j.log.Warn("a pending version is dropped", "version", string(s.pending.VersionID), "hint", "nothing: it was to replace another version than the current one")
	return j.unlabel(ctx, s)
}

// lease is how long a pending version is left to whoever has made it.
func (j *job) lease() time.Duration {
	return j.Set.timeout() + j.Test.timeout() + j.margin
}

// leave returns for how long to leave the pending version of s to others; zero or less when it is ours,
// or theirs no more. A clock that is behind makes that no longer than from when the version was seen.
func (j *job) leave(ctx context.Context, s *state, a *attempt) (time.Duration, error) {
	now, id := time.Now(), s.pending.VersionID
	if value, put := a.values[id]; put && !j.mine[id] { // and the answer did not come
		there, err := j.value(ctx, id)
		if err != nil {
			return 0, err
		}
		j.mine[id] = there.SecretData.Equal(value.SecretData)
	}
	if j.mine[id] {
		return 0, nil
	}
	until, known := j.others[id]
	if !known {
		until = now.Add(j.lease())
		if from := s.pending.CreateTime; from.Before(now) {
			until = from.Add(j.lease())
		}
		if a.staggered { // so that one of those who wait begins
			until = until.Add(rand.N(j.lease()))
			if until.Before(now) {
				until = now.Add(rand.N(j.lease() / 4))
			}
		}
		j.others[id] = until
	}
	return until.Sub(now), nil
}

// put makes the next version and stores it.
func (j *job) put(ctx context.Context, a *attempt, s *state) error {
	id := s.free()
	value, kept := a.values[id]
	if !kept {
		j.enter(a, Make, "")
		current, err := j.value(ctx, s.current.VersionID)
		if err != nil {
			return err
		}
		value.SecretDataType = j.dataType(current)
		if value.SecretData, err = j.make(ctx, current); err != nil {
			return err
		}
		a.values[id] = value
	}
	j.enter(a, Put, id)
	in := upstream.PutSecretValueInput{SecretName: j.Secret, VersionID: id, SecretData: value.SecretData, SecretDataType: value.SecretDataType}
	if j.twoPhase() {
		in.VersionStages = []upstream.VersionStage{j.PendingStage}
	}
	_, err := j.upstream().PutSecretValue(ctx, in)
	switch {
	case errors.Is(err, upstream.ErrExists): // with another value: somebody was faster
		delete(a.values, id)
		return nil
	case err == nil && j.twoPhase():
		j.mine[id] = true
		j.log.Info("a new version is pending", "version", string(id))
	}
	return err
}

// carry takes the pending version through set, test and finish.
func (j *job) carry(ctx context.Context, a *attempt, s *state) error {
	current, pending, err := j.values(ctx, s)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name    Step
		command *Command
	}{{Set, j.Set}, {Test, j.Test}} {
		if step.command != nil {
			j.enter(a, step.name, s.pending.VersionID)
			if err := j.apply(ctx, *step.command, current, pending); err != nil {
				return err
			}
		}
	}
	j.enter(a, Finish, s.pending.VersionID)
	return j.finish(ctx, s)
}

// values reads the current and the pending version of s, which must not be about the same
// account where accounts take turns.
func (j *job) values(ctx context.Context, s *state) (current, pending *upstream.SecretValue, err error) {
	if current, err = j.value(ctx, s.current.VersionID); err != nil {
		return nil, nil, err
	}
	if pending, err = j.value(ctx, s.pending.VersionID); err != nil || j.New.Pair == nil {
		return current, pending, err
	}
	used, err := account(current, j.New.Pair)
	if err != nil {
		return nil, nil, err
	}
	next, err := account(pending, j.New.Pair)
	if err == nil && used == next {
		err = fmt.Errorf("the pending version %s is for the account that is in use: drop it", s.pending.VersionID)
	}
	return current, pending, err
}

// apply lets a command work with both versions.
func (j *job) apply(ctx context.Context, command Command, current, pending *upstream.SecretValue) error {
	version := func(v *upstream.SecretValue) Version {
		return Version{v.VersionID, string(v.SecretData.Reveal()), v.SecretDataType}
	}
	var input bytes.Buffer
	encoder := json.NewEncoder(&input)
	encoder.SetEscapeHTML(false) // as others write JSON, and what is masked is spelled
	if err := encoder.Encode(Commands{j.Secret, version(pending), version(current)}); err != nil {
		return err
	}
	_, err := j.execute(ctx, Execution{Command: command, Input: input.Bytes(), Hide: []upstream.SecretValue{*pending, *current}})
	return err
}

// finish makes the pending version the current one.
func (j *job) finish(ctx context.Context, s *state) error {
	err := j.upstream().UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{
		SecretName: j.Secret, VersionStage: upstream.ACSCurrent, MoveToVersion: s.pending.VersionID, RemoveFromVersion: s.current.VersionID,
	})
	if err != nil {
		return err
	}
	return j.unlabel(ctx, s)
}

// sleep waits for d, or until wake. It returns false when ctx has ended.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(max(d, time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
