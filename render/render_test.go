package render

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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
	src := newFakeSource()
	src.put("app/db", `{"password":"first"}`)
	dest := filepath.Join(t.TempDir(), "new", "folder", "app.env")
	r := mustNew(t, src, Options{Targets: []Target{{Content: inline(`PASSWORD={{ secretField "app/db" "password" }}`), Destination: dest}}})
	if ok, why := r.Ready(); ok || len(why) != 1 || !strings.Contains(why[0], "not rendered yet") {
		t.Errorf("ready before the first render: %v %q", ok, why)
	}
	mustRender(t, r)
	if got := mustRead(t, dest); got != "PASSWORD=first" {
		t.Errorf("got %q", got)
	}
	for path, want := range map[string]fs.FileMode{dest: 0o600, filepath.Dir(dest): 0o700 | fs.ModeDir, filepath.Dir(filepath.Dir(dest)): 0o700 | fs.ModeDir} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, fi.Mode(), err, want)
		}
	}
	if ok, why := r.Ready(); !ok {
		t.Errorf("not ready: %q", why)
	}
	s := r.Status()[0]
	if s.Name != dest || s.State != Current || s.LastChange.IsZero() || len(s.Versions) != 1 || s.Versions[0] != (SecretVersion{"app/db", "v1"}) {
		t.Errorf("status: %+v", s)
	}
	wantNames(t, filepath.Dir(dest), "app.env")
}

// Ensure that all-or-nothing publishes nothing when one template, one secret or one
// destination is bad, and says everything that is.
func TestRenderOnceAllOrNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  func(dir string) Target
		want string
	}{
		{"a secret is missing", func(dir string) Target { return fileAt(dir+"/bad", `{{ secret "none" }}`) }, "not found"},
		{"a template fails", func(dir string) Target { return fileAt(dir+"/bad", `{{ secretField "a" "x" }}`) }, "not a JSON object"},
		{"a destination is a folder", func(dir string) Target {
			_ = os.Mkdir(dir+"/bad", 0o700)
			return fileAt(dir+"/bad", `x`)
		}, "is a folder"},
		{"a parent is a file", func(dir string) Target {
			_ = os.WriteFile(dir+"/file", nil, 0o600)
			return fileAt(dir+"/file/bad", `x`)
		}, "is a file, but a folder is needed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			src := newFakeSource()
			src.put("a", "1")
			targets := []Target{fileAt(dir+"/one", `{{ secret "a" }}`), c.bad(dir), fileAt(dir+"/two", `{{ secret "a" }}`)}
			before := names(t, dir)
			err := mustNew(t, src, Options{Targets: targets}).RenderOnce(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), targets[1].Destination) {
				t.Errorf("error: %v", err)
			}
			wantNames(t, dir, before...)

			err = mustNew(t, src, Options{Targets: targets, Partial: true}).RenderOnce(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("partial: error: %v", err)
			}
			if got := mustRead(t, dir+"/one") + mustRead(t, dir+"/two"); got != "11" {
				t.Errorf("partial: got %q", got)
			}
		})
	}
}

// Ensure that equal templates for different files are different targets.
func TestEqualTemplates(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	src.put("a", "1")
	same := func(name string) Target { return fileAt(dir+"/"+name, `{{ secret "a" }}`) }
	mustRender(t, mustNew(t, src, Options{Targets: []Target{same("x"), same("y")}}))
	if got := mustRead(t, dir+"/x") + mustRead(t, dir+"/y"); got != "11" {
		t.Errorf("got %q", got)
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
		src := newFakeSource()
		src.put("a", "1")
		src.fail("a", unavailable())
		time.AfterFunc(5*time.Second, func() { src.fail("a", nil) })
		ctx, cancel := contextWithTimeout(t, time.Minute)
		defer cancel()
		if err := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/1", `{{ secret "a" }}`)}}).RenderOnce(ctx); err != nil {
			t.Error(err)
		}

		src.fail("a", unavailable())
		started := time.Now()
		ctx, cancel = contextWithTimeout(t, 20*time.Second)
		defer cancel()
		err := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/2", `{{ secret "a" }}`)}}).RenderOnce(ctx)
		if !errors.Is(err, upstream.ErrUnavailable) || upstream.ExitCode(err) != upstream.ExitUnavailable {
			t.Errorf("got %v", err)
		}
		if d := time.Since(started); d != 20*time.Second {
			t.Errorf("gave up after %s", d)
		}

		started = time.Now()
		ctx, cancel = contextWithTimeout(t, 20*time.Second)
		defer cancel()
		err = mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/3", `{{ secret "none" }}`)}}).RenderOnce(ctx)
		if !errors.Is(err, upstream.ErrNotFound) || time.Since(started) != 0 {
			t.Errorf("got %v after %s", err, time.Since(started))
		}
	})
}

// Ensure that a change is published, by those that use it and by no others.
func TestRunFollowsChanges(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	src.put("a", "1", "b", "1")
	var attempts atomic.Int32
	r := mustNew(t, src, Options{
		Targets: []Target{fileAt(dir+"/a", `{{ secret "a" }}`), fileAt(dir+"/b", `{{ secret "b" }}`), fileAt(dir+"/ab", `{{ secret "a" }}{{ secret "b" }}`)},
		Observe: func(Event) { attempts.Add(1) },
	})
	stop := start(t, r)
	eventually(t, "first render", func() bool { ok, _ := r.Ready(); return ok })
	attempts.Store(0)
	src.put("a", "2")
	eventually(t, "second render", func() bool { return attempts.Load() == 2 })
	if got := mustRead(t, dir+"/a") + " " + mustRead(t, dir+"/b") + " " + mustRead(t, dir+"/ab"); got != "2 1 21" {
		t.Errorf("got %q", got)
	}
	stop()
	if n := src.subscriptions(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
	wantNames(t, dir, "a", "ab", "b")
	// It can be run again.
	start(t, r)
	src.put("b", "3")
	eventually(t, "render of the second run", func() bool { return mustRead(t, dir+"/b") == "3" })
}

// Ensure that a failure keeps the old file, shows, is repeated with growing pauses, and heals
// by itself.
func TestRunRetries(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		src := newFakeSource()
		src.put("a", "1")
		var log upstreamtest.Buffer
		var pauses []time.Duration
		last := time.Now()
		r := mustNew(t, src, Options{
			Targets: []Target{fileAt(dir+"/a", `{{ secret "a" }}`)}, Logger: log.Logger(),
			Observe: func(e Event) {
				if e.Err != nil {
					pauses = append(pauses, time.Since(last))
				}
				last = time.Now()
			},
		})
		stop := start(t, r)
		synctest.Wait()
		src.fail("a", unavailable())
		synctest.Wait()
		if ok, why := r.Ready(); ok || !strings.Contains(strings.Join(why, ""), "ServiceUnavailableTemporary") {
			t.Errorf("ready during an outage: %q", why)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := mustRead(t, dir+"/a"); got != "1" {
			t.Errorf("the old content is gone: %q", got)
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
		if !strings.Contains(log.String(), "not rendered") {
			t.Errorf("log: %s", log.String())
		}
		src.mu.Lock()
		delete(src.errs, "a") // without a ring: only the retry can notice
		src.mu.Unlock()
		src.mu.Lock()
		v := src.values[ref("a")]
		v.SecretData, v.VersionID = upstream.NewSecretData([]byte("2")), "v2"
		src.values[ref("a")] = v
		src.mu.Unlock()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := mustRead(t, dir+"/a"); got != "2" {
			t.Errorf("it did not heal: %q", got)
		}
		if ok, why := r.Ready(); !ok {
			t.Errorf("not ready: %q", why)
		}
		stop()
	})
}

// Ensure that a missing secret that appears is rendered at once.
func TestRunRendersASecretThatAppears(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	r := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/a", `{{ secret "a" }}`)}})
	start(t, r)
	eventually(t, "failure", func() bool { return r.Status()[0].State == Failed })
	src.put("a", "1")
	eventually(t, "render", func() bool { return r.Status()[0].State == Current })
}

// Ensure that no change is lost between the first read and the subscription.
func TestRunSubscribesBeforeItReads(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	src.put("a", "1", "b", "1")
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
	r := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/ab", `{{ secret "a" }}{{ secret "b" }}`)}})
	stop := start(t, r)
	eventually(t, "render", func() bool { b, _ := os.ReadFile(dir + "/ab"); return string(b) == "21" })
	stop()
}

// Ensure that subscriptions follow what the template uses.
func TestRunForgetsWhatIsNotUsed(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	src.put("which", "a", "a", "1", "b", "2")
	r := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/x", `{{ secret (secret "which") }}`), fileAt(dir+"/y", `{{ secret "a" }}`)}})
	stop := start(t, r)
	eventually(t, "render", func() bool { ok, _ := r.Ready(); return ok })
	src.put("which", "b")
	eventually(t, "render", func() bool { return mustRead(t, dir+"/x") == "2" })
	eventually(t, "three subscriptions", func() bool { return src.subscriptions() == 3 }) // a is used by y
	src.put("b", "3")
	eventually(t, "render", func() bool { return mustRead(t, dir+"/x") == "3" })
	stop()
}

// The consul-template quiescence cases: changes that come close together are rendered once,
// and a stream of changes is rendered after the longest wait.
func TestWait(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		src := newFakeSource()
		src.put("a", "0")
		var renders atomic.Int32
		tg := fileAt(dir+"/a", `{{ secret "a" }}`)
		tg.Wait = Wait{Min: time.Second, Max: 3 * time.Second}
		r := mustNew(t, src, Options{Targets: []Target{tg}, Observe: func(Event) { renders.Add(1) }})
		stop := start(t, r)
		synctest.Wait()
		if renders.Load() != 1 {
			t.Fatalf("the first render waits: %d", renders.Load())
		}
		src.put("a", "1") // min
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		if renders.Load() != 1 {
			t.Error("min: rendered too early")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if renders.Load() != 2 {
			t.Error("min: not rendered")
		}
		time.Sleep(time.Minute)
		src.put("a", "2") // snooze
		time.Sleep(600 * time.Millisecond)
		src.put("a", "3")
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		if renders.Load() != 2 {
			t.Error("snooze: rendered too early")
		}
		time.Sleep(400 * time.Millisecond)
		synctest.Wait()
		if renders.Load() != 3 || mustRead(t, dir+"/a") != "3" {
			t.Errorf("snooze: %d renders", renders.Load())
		}
		time.Sleep(time.Minute)
		for range 10 { // max
			src.put("a", "4")
			time.Sleep(500 * time.Millisecond)
		}
		synctest.Wait()
		if renders.Load() != 4 {
			t.Errorf("max: %d renders in 5 s, want one after 3 s", renders.Load()-3)
		}
		stop()
	})
}

// Ensure that onRemoved does what it says, and only when the secret is gone.
func TestOnRemoved(t *testing.T) {
	for _, c := range []struct {
		onRemoved OnRemoved
		err       error
		stays     bool
		state     State
	}{
		{"", &upstream.Error{Err: upstream.ErrNotFound}, true, Failed},
		{Keep, &upstream.Error{Err: upstream.ErrPendingDeletion}, true, Failed},
		{Delete, &upstream.Error{Err: upstream.ErrNotFound}, false, Removed},
		{Delete, &upstream.Error{Err: upstream.ErrPendingDeletion}, false, Removed},
		{Delete, unavailable(), true, Failed},
		{Delete, &upstream.Error{Err: upstream.ErrAccessDenied}, true, Failed},
	} {
		dir := t.TempDir()
		src := newFakeSource()
		src.put("a", "1")
		tg := fileAt(dir+"/a", `{{ secret "a" }}`)
		tg.OnRemoved, tg.Backup = c.onRemoved, true
		set := Set{Directory: dir + "/set", OnRemoved: c.onRemoved, NoSync: true, Files: []SetFile{{Name: "x", Content: inline(`{{ secret "a" }}`)}}}
		r := mustNew(t, src, Options{Targets: []Target{tg}, Sets: []Set{set}})
		stop := start(t, r)
		eventually(t, "render", func() bool { ok, _ := r.Ready(); return ok })
		src.put("a", "2") // makes a backup
		eventually(t, "render", func() bool { return mustRead(t, dir+"/a") == "2" && mustRead(t, dir+"/set/x") == "2" })
		src.fail("a", c.err)
		eventually(t, string(c.state), func() bool { s := r.Status(); return s[0].State == c.state && s[1].State == c.state })
		if ok, _ := r.Ready(); ok {
			t.Errorf("%s, %v: ready", c.onRemoved, c.err)
		}
		if c.stays {
			if got := mustRead(t, dir+"/a") + mustRead(t, dir+"/set/x"); got != "22" {
				t.Errorf("%s, %v: %q", c.onRemoved, c.err, got)
			}
		} else {
			wantNames(t, dir, "set")
			wantNames(t, dir+"/set")
		}
		src.fail("a", nil)
		eventually(t, "it is back", func() bool { ok, _ := r.Ready(); return ok })
		if got := mustRead(t, dir+"/a") + mustRead(t, dir+"/set/x"); got != "22" {
			t.Errorf("%s, %v: after it came back: %q", c.onRemoved, c.err, got)
		}
		stop()
	}
}

func TestOneWorkAtATime(t *testing.T) {
	src := newFakeSource()
	src.put("a", "1")
	r := mustNew(t, src, Options{Targets: []Target{fileAt(t.TempDir()+"/a", `{{ secret "a" }}`)}})
	stop := start(t, r)
	eventually(t, "render", func() bool { ok, _ := r.Ready(); return ok })
	if err := r.RenderOnce(t.Context()); err != errBusy {
		t.Errorf("RenderOnce beside Run: %v", err)
	}
	if err := r.Run(t.Context()); err != errBusy {
		t.Errorf("Run beside Run: %v", err)
	}
	if _, err := r.Diff(t.Context()); err != errBusy {
		t.Errorf("Diff beside Run: %v", err)
	}
	stop()
	mustRender(t, r)
}

// Ensure that a source that hangs is given up, and that Run ends at once while it hangs.
func TestSlowSource(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		hang := hangingSource{newFakeSource()}
		r := mustNew(t, hang, Options{Targets: []Target{fileAt(dir+"/a", `{{ secret "a" }}`)}, Timeout: 3 * time.Second})
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
	synctest.Test(t, func(t *testing.T) {
		src := silentSource{newFakeSource()}
		src.put("a", "1")
		r := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/a", `{{ secret "a" }}`)}})
		stop := start(t, r)
		synctest.Wait()
		src.put("a", "2")
		time.Sleep(lookAgain)
		synctest.Wait()
		if got := mustRead(t, dir+"/a"); got != "2" {
			t.Errorf("got %q", got)
		}
		stop()
	})
}
