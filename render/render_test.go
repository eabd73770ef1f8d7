package render

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// Ensure that the example of the package documentation works as a caller sees it.
func TestRenderOnce(t *testing.T) {
	src := sourceOf("app/db", `{"password":"first"}`)
	dest := filepath.Join(t.TempDir(), "new", "folder", "app.env")
	r := mustNew(t, src, Options{Targets: []Target{{Content: inline(`PASSWORD={{ secretField "app/db" "password" }}`), Destination: dest}}})
	if ok, why := r.Ready(); ok || len(why) != 1 || !strings.Contains(why[0], "not rendered yet") {
		t.Errorf("ready before the first render: %v %q", ok, why)
	}
	mustRender(t, r)
	wantFile(t, dest, "PASSWORD=first")
	for path, want := range map[string]fs.FileMode{dest: 0o600, filepath.Dir(dest): 0o700 | fs.ModeDir, filepath.Dir(filepath.Dir(dest)): 0o700 | fs.ModeDir} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, fi.Mode(), err, want)
		}
	}
	if ok, why := r.Ready(); !ok {
		t.Errorf("not ready: %q", why)
	}
	s := r.Status()[0]
	if s.Path != dest || s.State != Current || s.ChangedAt.IsZero() || len(s.Versions) != 1 || s.Versions[0] != (SecretVersion{"app/db", "v1", false}) {
		t.Errorf("status: %+v", s)
	}
	wantNames(t, filepath.Dir(dest), "app.env")
}

// Ensure that all-or-nothing publishes nothing when one template, one secret or one
// destination is bad, that equal templates for different files are different targets, and that
// Partial publishes the rest.
func TestRenderOnceAllOrNothing(t *testing.T) {
	for want, bad := range map[string]func(dir string) Target{
		"not found":         func(dir string) Target { return fileAt(dir+"/bad", `{{ secret "none" }}`) },
		"not a JSON object": func(dir string) Target { return fileAt(dir+"/bad", `{{ secretField "a" "x" }}`) },
		"is a folder": func(dir string) Target {
			mustWrite(t, dir+"/bad/x", "")
			return fileAt(dir+"/bad", `x`)
		},
		"is a file, but a folder is needed": func(dir string) Target {
			mustWrite(t, dir+"/file", "")
			return Target{Content: inline(`x`), Destination: dir + "/file/bad"}
		},
	} {
		dir := t.TempDir()
		src := sourceOf("a", "1")
		targets := []Target{fileAt(dir+"/one", `{{ secret "a" }}`), bad(dir), fileAt(dir+"/two", `{{ secret "a" }}`)}
		before := tree(t, dir)
		err := mustNew(t, src, Options{Targets: targets}).RenderOnce(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), targets[1].Destination) {
			t.Errorf("%s: error: %v", want, err)
		}
		if after := tree(t, dir); !slices.Equal(after, before) {
			t.Errorf("%s: it changed %q to %q", want, before, after)
		}
		err = mustNew(t, src, Options{Targets: targets, Partial: true}).RenderOnce(t.Context())
		wantErr(t, err, want)
		wantFile(t, dir+"/one", "1")
		wantFile(t, dir+"/two", "1")
	}
}

func TestRenderOnceReportsEveryFailure(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	src.fail("b", unavailable())
	err := mustNew(t, src, Options{Targets: []Target{
		fileAt(dir+"/1", `{{ secret "none" }}`), fileAt(dir+"/2", `{{ secret "b" }}`), fileAt(dir+"/3", `ok`),
	}}).RenderOnce(t.Context())
	if !errors.Is(err, upstream.ErrNotFound) || !errors.Is(err, upstream.ErrUnavailable) || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("got %v", err)
	}
	if code := upstream.ExitCode(err); code != upstream.ExitUnavailable {
		t.Errorf("exit code %d", code)
	}
}

// Ensure that RenderOnce waits out a temporary failure until its deadline, and only those.
func TestRenderOnceIsPatientUntilItsDeadline(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		src := sourceOf("a", "1")
		render := func(secret string) (time.Duration, error) {
			started := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/f", `{{ secret "`+secret+`" }}`)}}).RenderOnce(ctx)
			return time.Since(started), err
		}
		src.fail("a", unavailable())
		if took, err := render("a"); took != 20*time.Second || !errors.Is(err, upstream.ErrUnavailable) || upstream.ExitCode(err) != upstream.ExitUnavailable {
			t.Errorf("gave up after %s: %v", took, err)
		}
		if took, err := render("none"); took != 0 || !errors.Is(err, upstream.ErrNotFound) {
			t.Errorf("got %v after %s", err, took)
		}
		time.AfterFunc(5*time.Second, func() { src.fail("a", nil) })
		if took, err := render("a"); took < 5*time.Second || err != nil {
			t.Errorf("got %v after %s", err, took)
		}
	})
}

// Ensure that a change is published, by those that use it and by no others, that subscriptions
// follow what a template uses, and that nothing is left when Run ends.
func TestRunFollowsChanges(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1", "b", "1", "which", "a")
	var attempts atomic.Int32
	inBubble(t, src, Options{
		Targets: []Target{
			fileAt(dir+"/a", `{{ secret "a" }}`), fileAt(dir+"/b", `{{ secret "b" }}`), fileAt(dir+"/ab", `{{ secret "a" }}{{ secret "b" }}`),
			fileAt(dir+"/which", `{{ secret (secret "which") }}`), fileAt(dir+"/new", `{{ secret "new" }}`),
		},
		Observe: func(Event) { attempts.Add(1) },
	}, func(t *testing.T, r *Renderer, _ func(time.Duration)) {
		want := func(step, content string, renders int32) {
			t.Helper()
			synctest.Wait()
			got := ""
			for _, name := range []string{"/a", "/b", "/ab", "/which", "/new"} {
				b, _ := os.ReadFile(dir + name)
				got += string(b) + " "
			}
			if n := attempts.Swap(0); got != content || n != renders {
				t.Errorf("%s: %q in %d renders, want %q in %d", step, got, n, content, renders)
			}
			if n := src.subscriptions(); n != 5 {
				t.Errorf("%s: %d subscriptions, want one for each secret, and one for the computed name", step, n)
			}
		}
		want("first", "1 1 11 1  ", 5)
		src.put("a", "2")
		want("a changes", "2 1 21 2  ", 3)
		src.put("new", "n")
		want("a missing secret appears", "2 1 21 2 n ", 1)
		src.put("which", "new")
		want("another one is used", "2 1 21 n n ", 1)
		src.put("a", "3")
		want("it is not used any more", "3 1 31 n n ", 2)
	})
	if n := src.subscriptions(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
	wantNames(t, dir, "a", "ab", "b", "new", "which")
}

// Ensure that a failure keeps the old file, shows, is repeated with growing pauses, and heals
// by itself.
func TestRunRetries(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1")
	var log upstreamtest.Buffer
	var pauses []time.Duration
	var last time.Time
	inBubble(t, src, Options{
		Targets: []Target{fileAt(dir+"/a", `{{ secret "a" }}`)}, Logger: log.Logger(),
		Observe: func(e Event) {
			if e.Err != nil {
				pauses = append(pauses, time.Since(last))
			}
			last = time.Now()
		},
	}, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
		src.fail("a", unavailable())
		pass(0)
		if ok, why := r.Ready(); ok || !strings.Contains(strings.Join(why, ""), "ServiceUnavailableTemporary") {
			t.Errorf("ready during an outage: %q", why)
		}
		pass(10 * time.Minute)
		if got := mustRead(t, dir+"/a"); got != "1" || !strings.Contains(log.String(), "not rendered") {
			t.Errorf("the old content is gone: %q, log: %s", got, log.String())
		}
		if s := r.Status()[0]; s.State != Failed || s.Failures < 10 || s.NextTry.Before(time.Now()) || len(s.Versions) != 1 {
			t.Errorf("status: %+v", s)
		}
		// About 250 ms doubling to one minute, each with a fifth of jitter.
		if n := len(pauses); n < 12 || n > 25 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		for i, p := range pauses[1:] {
			want := min(retryFirst<<i, retryLast)
			if i < 8 && (p < want*79/100 || p > want*121/100) || p > retryLast*121/100 {
				t.Errorf("pause %d is %s, want about %s", i, p, want)
			}
		}
		src.mu.Lock() // without a ring: only the retry can notice
		delete(src.errs, "a")
		src.set(ref("a"), "2")
		src.mu.Unlock()
		pass(2 * time.Minute)
		if ok, why := r.Ready(); !ok || mustRead(t, dir+"/a") != "2" {
			t.Errorf("it did not heal: %q", why)
		}
	})
}

// Ensure that no change is lost between the first read and the subscription.
func TestRunSubscribesBeforeItReads(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1", "b", "1")
	changed := false
	src.before = func(refs []upstream.SecretRef) {
		src.mu.Lock()
		for _, r := range refs {
			if len(src.subs[r]) == 0 {
				t.Errorf("%s is read without a subscription", r)
			}
		}
		src.mu.Unlock()
		if !changed && refs[0].SecretName == "b" {
			changed = true
			src.put("a", "2")
		}
	}
	stop := start(t, mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/ab", `{{ secret "a" }}{{ secret "b" }}`)}}))
	eventually(t, "render", holds(dir+"/ab", "21"))
	stop()
}

// The consul-template quiescence cases: changes that come close together are rendered once,
// and a stream of changes is rendered after the longest wait.
func TestWait(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "0")
	var renders atomic.Int32
	tg := fileAt(dir+"/a", `{{ secret "a" }}`)
	tg.Wait = Wait{Min: time.Second, Max: 3 * time.Second}
	inBubble(t, src, Options{Targets: []Target{tg}, Observe: func(Event) { renders.Add(1) }}, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
		for _, step := range []struct {
			change string // empty: none
			pass   time.Duration
			want   int32 // renders after that
		}{
			{"", 0, 1}, // the first render does not wait
			{"1", 999 * time.Millisecond, 1}, {"", time.Millisecond, 2},
			{"", time.Minute, 2},
			{"2", 600 * time.Millisecond, 2}, {"3", 600 * time.Millisecond, 2}, {"", 400 * time.Millisecond, 3},
			{"", time.Minute, 3},
			{"4", 900 * time.Millisecond, 3}, {"5", 900 * time.Millisecond, 3}, {"6", 900 * time.Millisecond, 3}, {"7", 299 * time.Millisecond, 3}, {"", time.Millisecond, 4},
		} {
			if step.change != "" {
				src.put("a", step.change)
			}
			if pass(step.pass); renders.Load() != step.want {
				t.Fatalf("%+v: %d renders", step, renders.Load())
			}
		}
		wantFile(t, dir+"/a", "7")
	})
}

// Ensure that onRemoved does what it says, and only when the secret is gone.
func TestOnRemoved(t *testing.T) {
	for _, c := range []struct {
		onRemoved OnRemoved
		err       error
		want      State
	}{
		{"", upstream.ErrNotFound, Failed},
		{Keep, upstream.ErrPendingDeletion, Failed},
		{Delete, upstream.ErrNotFound, Removed},
		{Delete, upstream.ErrPendingDeletion, Removed},
		{Delete, upstream.ErrUnavailable, Failed},
		{Delete, upstream.ErrAccessDenied, Failed},
	} {
		dir := t.TempDir()
		src := sourceOf("a", "1")
		tg := fileAt(dir+"/a", `{{ secret "a" }}`)
		tg.OnRemoved, tg.Backup = c.onRemoved, true
		set := Set{Directory: dir + "/set", OnRemoved: c.onRemoved, NoSync: true, Files: []SetFile{{Name: "x", Content: inline(`{{ secret "a" }}`)}}}
		inBubble(t, src, Options{Targets: []Target{tg}, Sets: []Set{set}}, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
			want := func(state State) {
				t.Helper()
				pass(0)
				ready, _ := r.Ready()
				if s := r.Status(); s[0].State != state || s[1].State != state || ready != (state == Current) {
					t.Errorf("%s, %v: want %s: ready %v, %+v", c.onRemoved, c.err, state, ready, s)
				}
				if state == Removed {
					wantNames(t, dir, "set")
					wantNames(t, dir+"/set")
				} else {
					wantFile(t, dir+"/a", "2")
					wantFile(t, dir+"/set/x", "2")
				}
			}
			src.put("a", "2") // makes a backup
			want(Current)
			src.fail("a", &upstream.Error{Err: c.err})
			want(c.want)
			src.fail("a", nil)
			want(Current)
			if c.want == Removed { // the backup goes also when somebody removed the file
				src.put("a", "1")
				pass(0)
				src.put("a", "2")
				pass(0)
				wantFile(t, dir+"/a.bak", "1")
				must(t, os.Remove(dir+"/a"))
				src.fail("a", &upstream.Error{Err: c.err})
				want(Removed)
			}
		})
	}
}

// Ensure that only one of Run, RenderOnce and Diff works at a time, and that a renderer can be
// used again.
func TestOneWorkAtATime(t *testing.T) {
	src := sourceOf("a", "1")
	r, stop := follow(t, src, Options{Targets: []Target{fileAt(t.TempDir()+"/a", `{{ secret "a" }}`)}})
	_, diff := r.Diff(t.Context())
	for _, err := range []error{r.RenderOnce(t.Context()), r.Run(t.Context()), diff} {
		if err != errBusy {
			t.Errorf("beside Run: %v", err)
		}
	}
	stop()
	src.put("a", "2")
	start(t, r)
	eventually(t, "second run", holds(r.targets[0].name, "2"))
}

// Ensure that a source that hangs is given up, and that Run ends at once while it hangs.
func TestSlowSource(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		src := newFakeSource()
		src.hangs.Store(true)
		r := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/a", `{{ secret "a" }}`)}, Timeout: 3 * time.Second})
		stop := start(t, r)
		time.Sleep(3*time.Second + time.Millisecond)
		synctest.Wait()
		if s := r.Status()[0]; s.State != Failed {
			t.Errorf("status: %+v", s)
		}
		time.Sleep(time.Second) // in the middle of the next attempt
		started := time.Now()
		stop()
		if d := time.Since(started); d != 0 {
			t.Errorf("Run ended after %s", d)
		}
	})
}

// Ensure that a source without subscriptions left is looked at from time to time.
func TestNoSubscriptionLeft(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1")
	src.silent = true
	inBubble(t, src, Options{Targets: []Target{fileAt(dir+"/a", `{{ secret "a" }}`)}}, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
		src.put("a", "2")
		pass(lookAgain)
		wantFile(t, dir+"/a", "2")
	})
}
