package render

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/sethvargo/go-retry"
)

// hookGroup is one hook and the units that share it. It is guarded by Renderer.mu.
type hookGroup struct {
	hook  *Hook
	splay time.Duration

	owing     map[*unit]uint64 // :: unit → number of its record in the owedBook
	owedSince time.Time
	working   int // units that are queued or rendered now
	running   bool
	notBefore time.Time // splay, or the pause after a failure; zero: at once
	failure   error
	alone     bool // the last run found no process to signal
	backoff   retry.Backoff
	timer     *time.Timer
}

// owe makes the hook owed for u. The caller holds Renderer.mu.
func (g *hookGroup) owe(u *unit, seq uint64) {
	if len(g.owing) == 0 {
		g.owedSince = time.Now()
		g.notBefore = g.owedSince.Add(randomUpTo(g.splay))
	}
	g.owing[u] = seq
}

func (g *hookGroup) owes(mu *sync.Mutex) bool {
	mu.Lock()
	defer mu.Unlock()
	return len(g.owing) > 0
}

// runHook runs the hook of g once and settles what it owed when it began. Something that
// changed meanwhile stays owed, and so does a signal that found no process. The caller makes
// sure that it does not run twice at a time.
func (r *Renderer) runHook(ctx context.Context, g *hookGroup) error {
	r.mu.Lock()
	settled := maps.Clone(g.owing)
	first := ""
	for _, u := range r.units {
		if _, ok := settled[u]; ok {
			first = u.name
			break
		}
	}
	r.mu.Unlock()

	started := time.Now()
	err := g.hook.run(ctx, r.log, r.opts.Signal, r.masker)
	elapsed := time.Since(started)
	alone := errors.Is(err, errNoProcess)

	r.mu.Lock()
	noted := alone && g.alone
	g.failure, g.alone = err, alone
	if alone {
		g.failure = nil
	}
	if err == nil {
		g.backoff, g.notBefore = newBackoff(), time.Time{}
		for u, seq := range settled {
			if g.owing[u] == seq {
				delete(g.owing, u)
			}
		}
		if len(g.owing) > 0 {
			g.owedSince = time.Now()
			g.notBefore = g.owedSince.Add(randomUpTo(g.splay))
		}
	} else {
		g.notBefore = time.Now().Add(pause(g.backoff, nil))
	}
	r.mu.Unlock()

	if alone {
		if !noted {
			r.log.Info("no process to signal: the hook stays owed", "file", first, "hook", g.hook.String())
		}
		return nil
	}
	if err != nil {
		r.log.Warn("hook failed; it stays owed", "file", first, "hook", g.hook.String(), "count", len(settled), "err", err,
			"hint", "it is run again; try the command by hand")
	} else {
		r.log.Info("hook done", "file", first, "hook", g.hook.String(), "count", len(settled), "took", elapsed)
		for u, seq := range settled {
			if err := r.owed.settle(u.name, seq); err != nil {
				r.log.Warn("the hook may run again after a restart", "file", u.name, "err", err, "hint", "check space and permissions of render.stateDir")
			}
		}
	}
	r.observe(Event{Name: first, Hook: true, Elapsed: elapsed, Err: err})
	return err
}
