package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"secretagent/upstream"
)

// errUnknown is the error of what is asked about a secret without a rotation.
func errUnknown(name upstream.SecretName) error {
	return &upstream.Error{
		Ref: upstream.SecretRef{SecretName: name}, Err: upstream.ErrNotFound,
		Message: "no element of rotations in the configuration is about this secret",
	}
}

// Plan is what a rotation would do now.
type Plan struct {
	SecretName upstream.SecretName
	Current    upstream.VersionID `json:"CurrentVersionId"`
	Pending    upstream.VersionID `json:"PendingVersionId,omitzero"`
	Steps      []Step             // in their order; none of them has been done
	Commands   map[Step]string    `json:",omitempty"` // the programs of those that have one
	LeftFor    string             `json:",omitzero"`  // how long the pending version is left to another agent first
}

// Look asks the upstream when the last rotation of a secret was and when the next one begins, and
// whether a version is pending. What an agent does meanwhile it cannot tell.
func (r *Rotator) Look(ctx context.Context, name upstream.SecretName) (Status, error) {
	j := r.find(name)
	if j == nil {
		return Status{}, errUnknown(name)
	}
	s, err := j.look(ctx)
	if err != nil {
		return Status{}, err
	}
	next := time.Time{}
	if j.Every > 0 {
		next = j.next(s.last, time.Now())
	}
	j.rest(s, next)
	return j.Status(), nil
}

// Rotate replaces the current version of a secret now, whenever that is due, and waits until it
// is done or has failed, which is an [*Error]. A pending version is gone on with; one that another
// agent has just made is left to that first.
func (r *Rotator) Rotate(ctx context.Context, name upstream.SecretName) (Result, error) {
	j := r.find(name)
	if j == nil {
		return Result{}, errUnknown(name)
	}
	return j.rotate(ctx, "", false)
}

// Plan looks what Rotate would do. It changes nothing and runs nothing.
func (r *Rotator) Plan(ctx context.Context, name upstream.SecretName) (Plan, error) {
	j := r.find(name)
	if j == nil {
		return Plan{}, errUnknown(name)
	}
	s, err := j.look(ctx)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{SecretName: name, Current: s.current.VersionID, Pending: s.pending.VersionID, Commands: map[Step]string{}}
	add := func(step Step, c *Command) {
		p.Steps = append(p.Steps, step)
		if c != nil {
			p.Commands[step] = c.Argv[0]
		}
	}
	switch {
	case s.done():
		add(Finish, nil)
		return p, nil
	case p.Pending == "" || s.stale():
		add(Make, j.New.Command)
		add(Put, nil)
	default:
		left, err := j.leave(ctx, s, &attempt{})
		if err != nil {
			return Plan{}, err
		}
		if left > 0 {
			add(Wait, nil)
			p.LeftFor = left.Round(time.Second).String()
		}
	}
	if j.Set != nil {
		add(Set, j.Set)
	}
	if j.Test != nil {
		add(Test, j.Test)
	}
	if j.twoPhase() || p.Pending != "" {
		add(Finish, nil)
	}
	return p, nil
}

// Abandon takes the label off the pending version of a secret, and returns its id; empty when
// none was pending. The version stays, without a label. What set may have done in the target stays as well.
func (r *Rotator) Abandon(ctx context.Context, name upstream.SecretName) (upstream.VersionID, error) {
	j := r.find(name)
	if j == nil {
		return "", errUnknown(name)
	}
	s, err := j.look(ctx)
	if err != nil || s.pending.VersionID == "" {
		return "", err
	}
	return s.pending.VersionID, j.unlabel(ctx, s)
}

// Force does one step with the pending version of a secret, Set, Test or Finish, whatever the
// steps before it say, once and at once. Finish makes the version current.
func (r *Rotator) Force(ctx context.Context, name upstream.SecretName, step Step) (Result, error) {
	j := r.find(name)
	if j == nil {
		return Result{}, errUnknown(name)
	}
	command := map[Step]*Command{Set: j.Set, Test: j.Test}[step]
	if command == nil && step != Finish {
		return Result{}, upstream.InvalidParameter("step", fmt.Sprintf("the rotation of %s has no step %s", name, step))
	}
	s, err := j.look(ctx)
	switch {
	case err != nil:
		return Result{}, err
	case s.pending.VersionID == "":
		return Result{}, &upstream.Error{Ref: upstream.SecretRef{SecretName: name, VersionStage: j.PendingStage}, Err: upstream.ErrNotFound, Message: "no version is pending"}
	}
	result := Result{SecretName: name, From: s.current.VersionID, To: s.pending.VersionID}
	if step == Finish {
		if s.done() {
			err = j.unlabel(ctx, s)
		} else {
			err = j.finish(ctx, s)
		}
	} else if s.done() {
		err = errors.New("the pending version is current already: only its label is left")
	} else {
		current, pending, failed := j.values(ctx, s)
		if err = failed; err == nil {
			err = j.apply(ctx, *command, current, pending)
		}
	}
	if err != nil {
		return Result{}, &Error{Secret: name, Step: step, Err: err}
	}
	return result, nil
}
