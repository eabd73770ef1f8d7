package render

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/sethvargo/go-retry"
)

// hookGroup is one hook and the targets that share it. It is guarded by Renderer.mu.
type hookGroup struct {
	hook  *Hook
	splay time.Duration

	owing     map[*target]uint64 // :: target → number of its record in the owedBook
	owedSince time.Time
	working   int // targets that are queued or rendered now
	running   bool
	notBefore time.Time // splay, or the pause after a failure; zero: at once
	failure   error
	noProcess bool // the last run found nobody to tell
	untried   bool // owed since before this process, and not run by it yet
	backoff   retry.Backoff
	timer     *time.Timer
}

// owe makes the hook owed for t. The caller holds Renderer.mu.
func (g *hookGroup) owe(t *target, seq uint64) {
	if len(g.owing) == 0 {
		g.delay()
	}
	g.owing[t] = seq
}

// delay starts the splay of what is owed from now on. The caller holds Renderer.mu.
func (g *hookGroup) delay() {
	g.owedSince = time.Now()
	g.notBefore = g.owedSince.Add(randomUpTo(g.splay))
}

// runHook runs the hook of g once. When it succeeds, what was owed at its beginning is owed no
// longer. Something that changed meanwhile stays owed, and so does a signal that found no
// process. The caller makes sure that it does not run twice at a time.
func (r *Renderer) runHook(ctx context.Context, g *hookGroup) error {
	r.mu.Lock()
	ran := maps.Clone(g.owing)
	first := ""
	for _, t := range r.targets {
		if _, ok := ran[t]; ok {
			first = t.name
			break
		}
	}
	r.mu.Unlock()

	started := time.Now()
	err := g.hook.run(ctx, r.log, r.opts.Signal, func() *masker { return r.masker() })
	elapsed := time.Since(started)
	noProcess := errors.Is(err, errNoProcess)
	if err != nil && ctx.Err() != nil { // which says nothing about the hook
		r.log.Info("hook cut short; it stays owed", "file", first, "hook", g.hook.String(), "err", err)
		return err
	}

	r.mu.Lock()
	logged := noProcess && g.noProcess
	g.failure, g.noProcess, g.untried = err, noProcess, false
	if noProcess {
		g.failure = nil
	}
	if err == nil {
		g.backoff, g.notBefore = newBackoff(), time.Time{}
		maps.DeleteFunc(g.owing, func(t *target, seq uint64) bool { return ran[t] == seq })
		if len(g.owing) > 0 {
			g.delay()
		}
	} else {
		g.notBefore = time.Now().Add(pause(g.backoff, nil))
	}
	r.mu.Unlock()

	log := r.log.With("file", first, "hook", g.hook.String())
	switch {
	case logged:
		return nil
	case noProcess:
		log.Info("nobody is there to be told: the hook stays owed")
		return nil
	case err != nil:
		log.Warn("hook failed; it stays owed", "count", len(ran), "err", err, "hint", "it is run again; try the command by hand")
	default:
		log.Info("hook done", "count", len(ran), "took", elapsed)
		for t, seq := range ran {
			if err := r.owed.forget(t.name, seq); err != nil {
				r.log.Warn("the hook may run again after a restart", "file", t.name, "err", err, "hint", "check space and permissions of render.stateDir")
			}
		}
	}
	r.opts.Observe(Event{Name: first, Hook: true, Elapsed: elapsed, Err: err})
	return err
}
