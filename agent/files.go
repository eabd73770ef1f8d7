package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"secretagent/agent/config"
	"secretagent/render"
)

// renderOptions turns the configuration into that of the renderer.
func renderOptions(cfg *config.Config, log *slog.Logger) render.Options {
	opts := render.Options{
		Root:       string(cfg.Render.Root),
		FolderMode: cfg.Render.FolderMode.Perm(),
		StateDir:   string(cfg.Render.StateDir),
		Timeout:    cfg.Endpoint.LookupTimeout,
		Logger:     log.With("part", "render"),
	}
	if len(cfg.Templates) == 0 && len(cfg.Sets) == 0 {
		opts.StateDir = "" // nothing to remember
	}
	for i := range cfg.Templates {
		t := &cfg.Templates[i]
		opts.Targets = append(opts.Targets, render.Target{
			Content:     content(&t.Content),
			Destination: string(t.Destination),
			Mode:        t.Mode.Perm(),
			User:        string(t.User),
			Group:       string(t.Group),
			Backup:      t.Backup,
			OnRemoved:   render.OnRemoved(t.OnRemoved),
			NoSync:      !t.Sync,
			Wait:        render.Wait{Min: t.Wait.Min, Max: t.Wait.Max},
			Splay:       t.Splay,
			Check:       check(t.Check),
			Hook:        hook(t.Hook),
		})
	}
	for i := range cfg.Sets {
		s := &cfg.Sets[i]
		set := render.Set{
			Directory: string(s.Directory),
			Mode:      s.Mode.Perm(),
			User:      string(s.User),
			Group:     string(s.Group),
			OnRemoved: render.OnRemoved(s.OnRemoved),
			NoSync:    !s.Sync,
			Wait:      render.Wait{Min: s.Wait.Min, Max: s.Wait.Max},
			Splay:     s.Splay,
			Check:     check(s.Check),
			Hook:      hook(s.Hook),
		}
		for j := range s.Files {
			f := &s.Files[j]
			set.Files = append(set.Files, render.SetFile{
				Content: content(&f.Content), Name: f.Name,
				Mode: f.Mode.Perm(), User: string(f.User), Group: string(f.Group),
			})
		}
		opts.Sets = append(opts.Sets, set)
	}
	return opts
}

// templateFiles returns the template files that the configuration names.
func templateFiles(cfg *config.Config) []string {
	var files []string
	add := func(c *config.Content) {
		if c.Source != "" {
			files = append(files, string(c.Source))
		}
	}
	for i := range cfg.Templates {
		add(&cfg.Templates[i].Content)
	}
	for i := range cfg.Sets {
		for j := range cfg.Sets[i].Files {
			add(&cfg.Sets[i].Files[j].Content)
		}
	}
	return files
}

func content(c *config.Content) render.Content {
	out := render.Content{
		Source: string(c.Source), Contents: c.Contents,
		LeftDelim: c.LeftDelim, RightDelim: c.RightDelim,
		Format: render.Format(c.Format),
	}
	for _, s := range c.Secrets {
		out.Secrets = append(out.Secrets, render.FormatSecret{
			Ref: s.Name, Key: s.Key, Field: s.Field, Keys: s.Keys, Prefix: s.Prefix,
			Case: render.Case(s.Case), Sanitize: s.Sanitize, Decode: render.Decode(s.Decode),
		})
	}
	return out
}

func check(c *config.Check) *render.Check {
	if c == nil {
		return nil
	}
	return &render.Check{Command: c.Command, Timeout: c.Timeout}
}

func hook(h *config.Hook) *render.Hook {
	if h == nil {
		return nil
	}
	out := &render.Hook{Command: h.Command, Timeout: h.Timeout}
	if s := h.Signal; s != nil {
		out.PIDFile, out.Child, out.Signal = string(s.PIDFile), s.Child, s.Name
	}
	if c := h.HTTP; c != nil {
		out.URL, out.Method = c.URL, c.Method
	}
	return out
}

// RenderOptions choose what [RenderOnce] does.
type RenderOptions struct {
	// Partial publishes what could be rendered although something else could not.
	Partial bool

	// NoHooks runs no hooks and owes none.
	NoHooks bool
}

// RenderOnce renders the configured files once, without serving anything, and returns what it
// could not do, as a [*FilesError]. It blocks until everything is rendered or has failed, or ctx ends.
func RenderOnce(ctx context.Context, cfg *config.Config, deps Deps, opts RenderOptions) (err error) {
	return withRenderer(ctx, cfg, deps, StartFiles, opts, func(r *render.Renderer) error { return r.RenderOnce(ctx) })
}

// withRenderer calls fn with a renderer that reads the upstream as a command does.
func withRenderer(ctx context.Context, cfg *config.Config, deps Deps, files Files, opts RenderOptions, fn func(*render.Renderer) error) (err error) {
	deps = deps.withDefaults()
	manager, closeManager, err := OpenManager(ctx, cfg, deps.Logger, files)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeManager()) }()
	c, err := newCommandCache(manager, cfg, deps.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	renderOpts := renderOptions(cfg, deps.Logger)
	renderOpts.Partial, renderOpts.NoHooks = opts.Partial, opts.NoHooks
	r, err := render.New(c, renderOpts)
	if err != nil {
		return err
	}
	return newFilesError(fn(r))
}

// renderCounts counts what the renderer did, for metrics.
type renderCounts struct {
	mu                     sync.Mutex
	renders, checks, hooks map[string]uint64    // :: outcome → how often
	failing                map[string]time.Time // :: target whose last attempt failed → first failure in a row
}

func (c *renderCounts) observe(e render.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failing == nil {
		c.renders, c.checks, c.hooks, c.failing = map[string]uint64{}, map[string]uint64{}, map[string]uint64{}, map[string]time.Time{}
	}
	outcome := "succeeded"
	if e.Err != nil {
		outcome = "failed"
	}
	switch {
	case e.Hook:
		c.hooks[outcome]++
		return
	case e.Check:
		c.checks[outcome]++
		return
	case e.Err != nil:
		c.renders["failed"]++
		if c.failing[e.Name].IsZero() {
			c.failing[e.Name] = time.Now()
		}
		return
	case e.Changed:
		c.renders["published"]++
	default:
		c.renders["unchanged"]++
	}
	delete(c.failing, e.Name)
}

// failingSince returns since when attempts at the target fail; zero when the last one did not.
func (c *renderCounts) failingSince(target string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failing[target]
}

// forget drops what is known about targets that are not among those of the renderer any more.
func (c *renderCounts) forget(targets []render.TargetStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.failing, func(name string, _ time.Time) bool {
		return !slices.ContainsFunc(targets, func(t render.TargetStatus) bool { return t.Path == name })
	})
}

// snapshot returns how often renders, checks and hooks have ended in which way.
func (c *renderCounts) snapshot() (renders, checks, hooks map[string]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.renders), maps.Clone(c.checks), maps.Clone(c.hooks)
}
