package agent

import (
	"context"

	"secretagent/agent/config"
	"secretagent/render"
)

// FileDiff says how one rendered file would change, with values masked.
type FileDiff = render.FileDiff

// RenderDiff renders the configured files once, publishes nothing, and returns how they would
// change, without those that would not. What could not be rendered is in the error, joined,
// and does not hide the others.
func RenderDiff(ctx context.Context, cfg *config.Config, deps Deps) (diffs []FileDiff, err error) {
	err = withRenderer(ctx, cfg, deps, ExistingFiles, RenderOptions{}, func(r *render.Renderer) error {
		diffs, err = r.Diff(ctx)
		return err
	})
	return diffs, err
}
