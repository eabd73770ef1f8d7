package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/agent/rotation"
	"secretagent/render"
	"secretagent/upstream"
)

// Names of package rotation that commands use.
type (
	RotationStep   = rotation.Step
	RotationStatus = rotation.Status
	RotationPlan   = rotation.Plan
	Rotator        = rotation.Rotator
)

// What a rotation is in: given up, and a version that is left to another agent.
const (
	RotationFailed = rotation.Failed
	RotationWait   = rotation.Wait
)

// Rotates reports whether cfg has a rotation of the secret.
func Rotates(cfg *config.Config, name upstream.SecretName) bool {
	return slices.ContainsFunc(cfg.Rotations, func(r config.Rotation) bool { return r.Secret == name })
}

// rotations turns the configuration into that of a rotator, without an upstream.
func rotations(cfg *config.Config, log *slog.Logger) rotation.Options {
	log = log.With("part", "rotation")
	opts := rotation.Options{Logger: log, Run: func(ctx context.Context, e rotation.Execution) ([]byte, error) {
		return render.Command{Argv: e.Argv, Timeout: e.Timeout, Input: e.Input, Answer: e.Answer, Hide: e.Hide}.Run(ctx, log)
	}}
	command := func(c *config.Command) *rotation.Command {
		if c == nil {
			return nil
		}
		return &rotation.Command{Argv: c.Command, Timeout: c.Timeout}
	}
	for i := range cfg.Rotations {
		r := &cfg.Rotations[i]
		one := rotation.Rotation{
			Secret: r.Secret, Every: r.Every, Jitter: r.Jitter, Set: command(r.Set), Test: command(r.Test),
			PendingStage: upstream.VersionStage(r.PendingStage), MaxAttempts: r.MaxAttempts,
		}
		if w := r.Window; w != nil {
			one.Window = &rotation.Window{From: w.From, To: w.To, Zone: w.Zone}
		}
		if len(r.New.Command) > 0 {
			one.New.Command = &rotation.Command{Argv: r.New.Command, Timeout: r.New.Timeout}
		}
		if p := r.New.Pair; p != nil {
			one.New.Pair = &rotation.Pair{Field: p.Field, Users: p.Users}
		}
		if p := r.New.Password; p != nil {
			one.New.Password = &rotation.Password{Field: p.Field, RandomPasswordInput: upstream.RandomPasswordInput{
				PasswordLength: p.Length, ExcludeCharacters: p.ExcludeCharacters,
				ExcludeLowercase: p.ExcludeLowercase, ExcludeUppercase: p.ExcludeUppercase,
				ExcludeNumbers: p.ExcludeNumbers, ExcludePunctuation: p.ExcludePunctuation,
				RequireEachIncludedType: p.RequireEachIncludedType,
			}}
		}
		opts.Rotations = append(opts.Rotations, one)
	}
	return opts
}

// CheckRotations is [Check] of the section rotations.
func CheckRotations(cfg *config.Config) error {
	var p upstream.OptionErrors
	p.Add("", rotations(cfg, slog.New(slog.DiscardHandler)).Validate())
	for i := range cfg.Rotations {
		r, key := &cfg.Rotations[i], fmt.Sprintf("rotations[%d]", i)
		if r.New.Command != nil {
			p.Add(key+".new.command", render.CheckCommand(r.New.Command, "[./new-credential]"))
		}
		if r.Set != nil {
			p.Add(key+".set.command", render.CheckCommand(r.Set.Command, "[./set-password]"))
		}
		if r.Test != nil {
			p.Add(key+".test.command", render.CheckCommand(r.Test.Command, "[./try-login]"))
		}
	}
	return p.Err()
}

// NewRotator prepares the rotations of cfg for a command, which rotates on m.
func NewRotator(cfg *config.Config, m upstream.Manager, log *slog.Logger) (*rotation.Rotator, error) {
	opts := rotations(cfg, log)
	opts.Upstream = func() rotation.Upstream { return m }
	return rotation.New(opts)
}

// newRotator prepares the rotations of cfg for the running agent.
func (a *Agent) newRotator(cfg *config.Config) (*rotation.Rotator, error) {
	opts := rotations(cfg, a.log)
	opts.Upstream, opts.Observe = a.backend.rotated, a.rotated.observe
	return rotation.New(opts)
}

// filesFirst bounds how long rotations wait at the start for rendered files.
const filesFirst = time.Minute

// awaitFiles waits until every rendered file is in order, but not for long. An agent that was down
// has not passed on the last rotation yet: a pair of accounts must not go on to the next one before,
// also where the configuration is reloaded meanwhile.
func (a *Agent) awaitFiles(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, filesFirst)
	defer cancel()
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for ready := false; !ready; {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
			ready, _ = a.renderer().Ready()
		}
	}
}

// runRotators runs a rotator until ctx ends, and each that comes over next in place of the one
// before. Each begins when the rendered files are in order.
func (a *Agent) runRotators(ctx context.Context, r *rotation.Rotator, next <-chan *rotation.Rotator) error {
	for {
		runCtx, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			a.awaitFiles(runCtx)
			done <- r.Run(runCtx)
		}()
		select {
		case <-ctx.Done():
			stop()
			return <-done
		case after := <-next:
			stop()
			if err := <-done; err != nil {
				return err
			}
			after.Continue(r)
			r = after
		}
	}
}

// sameRotations reports whether both configurations rotate the same, so that a rotation that is
// under way can be left alone.
func sameRotations(a, b *config.Config) bool { return reflect.DeepEqual(a.Rotations, b.Rotations) }

// rotationCounts counts how rotations have ended, for metrics.
type rotationCounts struct {
	mu     sync.Mutex
	counts map[rotation.Event]uint64
}

func (c *rotationCounts) observe(e rotation.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[rotation.Event]uint64{}
	}
	c.counts[e]++
}

func (c *rotationCounts) snapshot() map[rotation.Event]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.counts)
}

// rotationStatus returns what viewer may know of the rotations.
func (a *Agent) rotationStatus(viewer endpoint.Viewer, reason func(string) string) []RotationStatus {
	list := slices.DeleteFunc(a.live.Load().rotator.Status(), func(r RotationStatus) bool { return !viewer.May(r.SecretName) })
	for i := range list {
		list[i].Error = reason(list[i].Error)
	}
	return list
}

// rotations shows how the rotations of the configuration go.
func (c collector) rotations(s sink) {
	counts := c.agent.rotated.snapshot()
	for _, r := range c.agent.live.Load().rotator.Status() {
		secret := string(r.SecretName)
		for _, outcome := range []rotation.Outcome{rotation.OutcomeRotated, rotation.OutcomeFollowed, rotation.OutcomeFailed} {
			s.counter("secretagent_rotations_total", "Rotations that have ended, by outcome; followed are those that another agent has finished.",
				counts[rotation.Event{SecretName: r.SecretName, Outcome: outcome}], "secret", secret, "outcome", string(outcome))
		}
		s.gauge("secretagent_rotation_failing", "1 while a rotation that was due has failed, or a step of it is repeated.", boolean(r.Error != ""), "secret", secret)
		s.gauge("secretagent_rotation_pending", "1 while a new version is pending.", boolean(r.Pending != ""), "secret", secret)
		s.moment("secretagent_rotation_next_timestamp_seconds", "When the next rotation begins; not there while one is under way.", r.Next, "secret", secret)
		s.moment("secretagent_rotation_last_timestamp_seconds", "When the newest version was made that is or was the current one, or that a rotation has made.", r.Last, "secret", secret)
	}
}
