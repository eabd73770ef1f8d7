package render

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// replace ends a renderer and starts the one of opts in its place, as a reload does, but for
// what during does between.
func replace(t *testing.T, old *Renderer, stop func(), opts Options, during func(next *Renderer)) (*Renderer, func()) {
	next := mustNew(t, old.src, opts)
	next.Continue(old)
	during(next)
	stop()
	next.Continue(old)
	stop = start(t, next)
	synctest.Wait()
	return next, stop
}

// wantUnready wants that what is not ready is what names say, "" for nothing.
func wantUnready(t *testing.T, step string, r *Renderer, names ...string) {
	t.Helper()
	ok, why := r.Ready()
	if len(why) != len(names) || ok != (len(names) == 0) {
		t.Errorf("%s: ready %v: %q, want %q", step, ok, why, names)
		return
	}
	for i, name := range names {
		if !strings.Contains(why[i], name) {
			t.Errorf("%s: %q, want %q", step, why, names)
		}
	}
}

// Ensure that a reload makes unready what it changes and nothing else, however long the source hangs
// afterwards, and that a change which is noticed then counts.
func TestContinueKeepsWhatIsUnchangedReady(t *testing.T) {
	dir := t.TempDir()
	source := dir + "/template"
	mustWrite(t, source, `{{ secret "a" }}`)
	synctest.Test(t, func(t *testing.T) {
		src := sourceOf("a", "1", "b", "1", "crt", "c", "key", "k")
		opts := Options{
			Targets: []Target{
				fileAt(dir+"/one", `{{ secret "a" }}`), fileAt(dir+"/two", `{{ secret "b" }}`), fileAt(dir+"/gone", `{{ secret "a" }}`),
				{Content: Content{Source: source}, Destination: dir + "/three", NoSync: true}, fileAt(dir+"/bad", `{{ secretField "a" "x" }}`),
			},
			Sets: []Set{pairSet(dir + "/set")},
		}
		r := mustNew(t, src, opts)
		stop := start(t, r)
		synctest.Wait()
		wantUnready(t, "at first", r, "bad: failed: ")
		src.hangs.Store(true)
		must(t, os.Remove(dir+"/gone"))
		mustWrite(t, source, `{{ secret "a" }}.`)
		opts.Targets = append(opts.Targets, fileAt(dir+"/new", "x"))
		opts.Targets[1].Wait.Min = time.Second // does not change the file
		unready := []string{"gone: not rendered", "three: not rendered", "bad: failed: ", "new: not rendered"}
		r, stop = replace(t, r, stop, opts, func(next *Renderer) { wantUnready(t, "in the first moment", next, unready...) })
		unready = unready[:3] // new needs no secret
		wantUnready(t, "while the source hangs", r, unready...)
		time.Sleep(time.Hour)
		unready[0], unready[1] = "gone: failed: ", "three: failed: "
		wantUnready(t, "an hour later", r, unready...)
		if s := r.Status()[0]; s.State != Current || s.Error != "" || s.ChangedAt.IsZero() || len(s.Versions) != 1 {
			t.Errorf("a file that is as it was: %+v", s)
		}

		// Once more, with nothing changed but what the source says.
		r, stop = replace(t, r, stop, opts, func(next *Renderer) { wantUnready(t, "again", next, unready...) })
		src.put("b", "2")
		time.Sleep(time.Hour)
		wantUnready(t, "after a change", r, "two: failed: ", "gone: ", "three: ", "bad: ")
		src.hangs.Store(false)
		time.Sleep(2 * time.Minute)
		wantUnready(t, "after all", r, "bad: ")
		wantFile(t, dir+"/two", "2")
		wantFile(t, dir+"/three", "1.")
		stop()
	})
}

// Ensure that a failed hook still counts after a reload, that one which the reload interrupts does not,
// and that what happens until the renderer of before has ended is not forgotten.
func TestContinueKeepsHooks(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		src := sourceOf("a", "1")
		var refuses atomic.Bool
		child := &signals{do: func() error {
			if refuses.Load() {
				return errors.New("refused")
			}
			return nil
		}}
		opts := Options{Targets: []Target{hooked(dir+"/f", `{{ secret "a" }}`, &Hook{Child: true})}, Signal: child.send}
		r := mustNew(t, src, opts)
		stop := start(t, r)
		synctest.Wait()
		refuses.Store(true)
		r, stop = replace(t, r, stop, opts, func(*Renderer) {
			src.put("a", "2")
			synctest.Wait()
		})
		wantUnready(t, "a hook that failed during the reload", r, "refused")
		r, stop = replace(t, r, stop, opts, func(next *Renderer) {
			wantUnready(t, "in the first moment", next, "refused")
			refuses.Store(false)
			time.Sleep(time.Minute)
		})
		wantUnready(t, "a hook that succeeded during the reload", r)
		if n := child.runs.Load(); r.Status()[0].HookOwed {
			t.Errorf("owed after %d runs", n)
		}
		stop()
	})

	// The context of a hook ends with its renderer.
	src := sourceOf("a", "1")
	opts := Options{Targets: []Target{hooked(dir+"/slow", `{{ secret "a" }}`, &Hook{Child: true})}, StateDir: dir + "/state"}
	running := make(chan struct{})
	release := make(chan struct{})
	opts.Signal = func(os.Signal) error { close(running); <-release; return errors.New("interrupted") }
	r := mustNew(t, src, opts)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-running
	cancel()
	close(release)
	must(t, <-done)
	next := mustNew(t, src, opts)
	next.Continue(r)
	if s := next.Status()[0]; s.State != Current || !s.HookOwed || s.HookError != "" {
		t.Errorf("a hook that was cut short: %+v", s)
	}
}

// Ensure that a hook which is owed since before the agent started makes it unready until it has run, also
// when the file is in order before, and that it does not wait for its splay once more.
func TestHookOwedSinceBeforeTheStartIsNotReady(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1")
	opts := Options{Targets: []Target{hooked(dir+"/f", `{{ secret "a" }}`, &Hook{Child: true})}, StateDir: dir + "/state"}
	opts.Targets[0].Splay = 24 * time.Hour
	opts.Signal = func(os.Signal) error { return errors.New("killed") }
	wantErr(t, mustNew(t, src, opts).RenderOnce(t.Context()), "killed")

	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		child := &signals{do: func() error { <-release; return nil }}
		opts.Signal = child.send
		r := mustNew(t, src, opts)
		start(t, r)
		synctest.Wait()
		if s := r.Status()[0]; s.State != Current || child.runs.Load() != 1 {
			t.Errorf("after %d runs: %+v", child.runs.Load(), s)
		}
		wantUnready(t, "before it has run", r, "f: hook: signal HUP to the child process: owed since before the agent started")
		close(release)
		synctest.Wait()
		wantUnready(t, "after it has run", r)
	})
	wantNames(t, dir+"/state")
}
