package render

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func countRuns(path string) int {
	b, _ := os.ReadFile(path)
	return strings.Count(string(b), "run\n")
}

// Ensure that a hook runs after a change, the first one included, and only then.
func TestHookRunsAfterAChangeOnly(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	opts := Options{Targets: []Target{hooked(dir+"/f", `{{ secret "a" }}`, sh(`cat `+dir+`/f >> `+dir+`/seen`))}, StateDir: dir + "/state"}
	pass := func(value, seen string) {
		t.Helper()
		src.put("a", value)
		mustRender(t, mustNew(t, src, opts))
		wantFile(t, dir+"/seen", seen) // the file is there before the hook
	}
	pass("1", "1")
	pass("1", "1")
	pass("2", "12")
	must(t, os.Chmod(dir+"/f", 0o644)) // a repair is no change
	pass("2", "12")
	wantNames(t, dir+"/state")
	opts.NoHooks = true // neither runs nor owes the hook
	pass("3", "12")
	opts.NoHooks = false
	pass("3", "12")
}

// Ensure that a hook that fails is owed until it succeeds, although the file no longer
// differs, and that readiness says so.
func TestHookIsOwedUntilItSucceeds(t *testing.T) {
	dir := t.TempDir()
	var heard atomic.Bool
	child := &signals{do: func() error {
		if heard.Load() {
			return nil
		}
		return errors.New("refused")
	}}
	inBubble(t, sourceOf("a", "1"), Options{Targets: []Target{hooked(dir+"/f", `{{ secret "a" }}`, &Hook{Child: true})}, Signal: child.send},
		func(t *testing.T, r *Renderer, pass func(time.Duration)) {
			pass(time.Minute)
			s := r.Status()[0]
			if ok, why := r.Ready(); ok || !strings.Contains(why[0], "refused") || s.State != Current || !s.HookOwed || child.runs.Load() < 2 {
				t.Errorf("ready %v, %q, %+v", ok, why, s)
			}
			heard.Store(true)
			pass(2 * time.Minute)
			n := child.runs.Load()
			if ok, why := r.Ready(); !ok || r.Status()[0].HookOwed {
				t.Errorf("not ready: %q", why)
			}
			if pass(time.Hour); child.runs.Load() != n {
				t.Error("it ran again")
			}
		})
}

// Ensure that an owed hook survives the agent, runs once, and is forgotten when the file it
// was owed for is not there any more.
func TestHookIsOwedAcrossRestarts(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1", "crt", "c", "key", "k")
	set := pairSet(dir + "/set")
	set.Hook = sh("echo run >> " + dir + "/setruns; test -e " + dir + "/ok")
	opts := Options{
		Targets: []Target{hooked(dir+"/f", `{{ secret "a" }}`, sh("echo run >> "+dir+"/runs; test -e "+dir+"/ok"))},
		Sets:    []Set{set}, StateDir: dir + "/state",
	}
	wantRuns := func(file, set int) {
		t.Helper()
		if a, b := countRuns(dir+"/runs"), countRuns(dir+"/setruns"); a != file || b != set {
			t.Errorf("%d and %d runs, want %d and %d", a, b, file, set)
		}
	}
	mustFail := func() {
		t.Helper()
		wantErr(t, mustNew(t, src, opts).RenderOnce(t.Context()), "exit status 1")
	}
	mustFail()
	for _, name := range names(t, dir+"/state") {
		wantMode(t, dir+"/state/"+name, 0o600)
	}
	wantMode(t, dir+"/state", 0o700)
	mustWrite(t, dir+"/ok", "")
	mustRender(t, mustNew(t, src, opts)) // no change, but owed
	mustRender(t, mustNew(t, src, opts))
	wantRuns(2, 2)
	wantNames(t, dir+"/state")

	// Run takes it over as well.
	os.Remove(dir + "/ok")
	src.put("a", "2")
	mustFail()
	mustWrite(t, dir+"/ok", "")
	r, stop := follow(t, src, opts)
	eventually(t, "the owed hook ran", func() bool { return !r.Status()[0].HookOwed })
	stop()
	wantRuns(4, 2)

	stamp, err := r.targets[1].publisher.published()
	must(t, err)
	book := newOwedBook(folder{path: opts.StateDir})
	for name, stamp := range map[string]string{
		"/f":    "1:1", // a kill between the record and the publish: the file is the old one, nothing is owed
		"/set":  stamp, // a kill between the publish and the hook: it is
		"/gone": "x",   // configured no longer
	} {
		if _, err := book.intend(dir+name, stamp); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, opts.StateDir+"/hook-owed-0000.json", "{") // damaged
	mustWrite(t, opts.StateDir+"/notes", "mine")            // not ours
	mustRender(t, mustNew(t, src, opts))
	wantRuns(4, 3)
	wantNames(t, opts.StateDir, "notes")
}

// Ensure that a publish that fails does not make an earlier debt forgotten.
func TestOwedHookSurvivesAFailedPublish(t *testing.T) {
	book := newOwedBook(folder{path: t.TempDir()})
	first, _ := book.intend("f", "old")
	second, err := book.intend("f", "new", "old")
	must(t, err)
	must(t, book.forget("f", first)) // the hook of the first change is done late
	for _, published := range []string{"old", "new"} {
		owed, err := newOwedBook(book.dir).load(func(string) (string, bool) { return published, true })
		if err != nil || len(owed) != 1 {
			t.Errorf("%s: %v, %v", published, owed, err)
		}
	}
	must(t, book.forget("f", second))
	wantNames(t, book.dir.path)
}

// Ensure that a hook stays owed when the folder of its file cannot be looked at for a while.
func TestOwedHookSurvivesAFolderThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1")
	opts := Options{Sets: []Set{{
		Directory: dir + "/set", Files: []SetFile{{Name: "f", Content: Content{Contents: `{{ secret "a" }}`}}},
		Hook: sh("test -e " + dir + "/ok && echo run >> " + dir + "/runs"),
	}}, StateDir: dir + "/state"}
	if err := mustNew(t, src, opts).RenderOnce(t.Context()); err == nil {
		t.Fatal("the hook succeeded")
	}
	mustWrite(t, dir+"/ok", "")
	must(t, os.Rename(dir+"/set", dir+"/away"))
	mustSymlink(t, dir+"/away", dir+"/set") // refused
	if err := mustNew(t, src, opts).RenderOnce(t.Context()); err == nil {
		t.Fatal("a link was followed")
	}
	must(t, os.Remove(dir+"/set"))
	must(t, os.Rename(dir+"/away", dir+"/set"))
	mustRender(t, mustNew(t, src, opts))
	wantFile(t, dir+"/runs", "run\n")
	wantNames(t, dir+"/state")
}

// Ensure that targets with an equal hook share one run when one change makes them all
// different, and that different hooks do not.
func TestEqualHooksRunOnceForAChange(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1", "b", "1")
	var targets []Target
	for i := range 40 {
		targets = append(targets, hooked(fmt.Sprintf("%s/f%d", dir, i), `{{ secret "a" }}`, &Hook{Child: true}))
	}
	targets = append(targets, hooked(dir+"/other", `{{ secret "b" }}`, &Hook{Child: true}), hooked(dir+"/own", `{{ secret "a" }}`, &Hook{Child: true, Signal: "USR1"}))
	var shared, own signals
	send := func(s os.Signal) error {
		if s == syscall.SIGUSR1 {
			return own.send(s)
		}
		return shared.send(s)
	}
	inBubble(t, src, Options{Targets: targets, StateDir: dir + "/state", Signal: send}, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
		for n := int32(1); n <= 2; n++ {
			pass(time.Hour)
			if a, b := shared.runs.Load(), own.runs.Load(); a != n || b != n {
				t.Errorf("pass %d: %d and %d runs", n, a, b)
			}
			for _, s := range r.Status() {
				if s.State != Current || s.HookOwed {
					t.Errorf("pass %d: %+v", n, s)
				}
			}
			src.put("a", "2")
		}
	})
}

// Ensure that a hook never runs twice at a time, and that what changes while it runs is not
// forgotten.
func TestHookNeverOverlaps(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "0")
	var running atomic.Int32
	var seen string
	child := &signals{do: func() error {
		if running.Add(1) != 1 {
			t.Error("two runs at a time")
		}
		time.Sleep(50 * time.Millisecond)
		seen = mustRead(t, dir+"/f")
		running.Add(-1)
		return nil
	}}
	hook := &Hook{Child: true}
	opts := Options{Targets: []Target{hooked(dir+"/f", `{{ secret "a" }}`, hook), hooked(dir+"/g", `{{ secret "a" }}`, hook)}, Signal: child.send}
	inBubble(t, src, opts, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
		for i := range 30 {
			src.put("a", fmt.Sprint(i))
			pass(10 * time.Millisecond)
		}
		pass(time.Second)
		if s := r.Status(); s[0].HookOwed || s[1].HookOwed || seen != "29" {
			t.Errorf("the last run saw %q; %+v", seen, s)
		}
	})
}

// runHook runs h by itself.
func runHook(t *testing.T, h *Hook, log *slog.Logger) error {
	return h.run(t.Context(), log, nil, func() *masker { return newMasker(nil) })
}

// Ensure that a hook that hangs is killed with all it started.
func TestHookTimeoutKillsTheGroup(t *testing.T) {
	h := sh("sleep 600")
	h.Timeout = 50 * time.Millisecond
	wantErr(t, runHook(t, h, discard), "not finished after 50ms")
	pidFile := t.TempDir() + "/pid"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		h := sh(`sleep 600 & echo $! > ` + pidFile + `; sleep 600`)
		ended <- h.run(ctx, discard, nil, nil)
	}()
	var pid int
	eventually(t, "it runs", func() bool { b, _ := os.ReadFile(pidFile); n, _ := fmt.Sscanln(string(b), &pid); return n == 1 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the grandchild is gone", func() bool { return gone(pid) })
}

// gone reports whether a process runs no longer; a zombie that nobody waits for counts.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(b), ") Z ")
}

var discard = slog.New(slog.DiscardHandler)

// Ensure that a command that leaves a daemon behind succeeds and leaves it alone.
func TestHookMayStartADaemon(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the pipe")
	}
	t.Parallel()
	pidFile := t.TempDir() + "/pid"
	must(t, runHook(t, sh(`sleep 600 & echo $! > `+pidFile), discard))
	var pid int
	if _, err := fmt.Sscan(mustRead(t, pidFile), &pid); err != nil {
		t.Fatal(err)
	}
	if gone(pid) {
		t.Error("the daemon was killed")
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// Ensure that Run ends at once while a hook runs, and that the hook stays owed.
func TestRunEndsDuringAHook(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1")
	opts := Options{Targets: []Target{hooked(dir+"/f", `{{ secret "a" }}`, sh("echo run >> "+dir+"/runs; test -e "+dir+"/ok || sleep 600"))}, StateDir: dir + "/state"}
	opts.Targets[0].Hook.Timeout = time.Hour
	stop := start(t, mustNew(t, src, opts))
	eventually(t, "the hook runs", func() bool { return countRuns(dir+"/runs") == 1 })
	stop() // or the test waits for ten minutes
	mustWrite(t, dir+"/ok", "")
	mustRender(t, mustNew(t, src, opts))
	if got := countRuns(dir + "/runs"); got != 2 {
		t.Errorf("%d runs, want 2", got)
	}
}

// Ensure that a program is not given to a shell, and that it inherits nothing secret.
func TestHookEnvironmentAndArguments(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", marker)
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", marker)
	var log upstreamtest.Buffer
	h := &Hook{Command: []string{"/usr/bin/env", "printf", "%s|", "$HOME", "a b", "*", "$(id)"}}
	must(t, runHook(t, h, log.Logger()))
	if !strings.Contains(log.String(), `$HOME|a b|*|$(id)|`) {
		t.Errorf("log: %s", log.String())
	}
	log = upstreamtest.Buffer{}
	must(t, runHook(t, &Hook{Command: []string{"/usr/bin/env"}}, log.Logger()))
	if strings.Contains(log.String(), marker) || !strings.Contains(log.String(), "PATH=") {
		t.Errorf("environment: %s", log.String())
	}
	wantErr(t, runHook(t, &Hook{Command: []string{"/no/such/program"}}, discard), "no such file")
}

// Ensure that the output of a hook is bounded and shows no value, however it is encoded and
// wherever it is cut.
func TestHookOutputIsMaskedAndBounded(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	pem := "-----BEGIN X-----\nabcdefghijklmnop\nqrstuvwxyz012345\n-----END X-----\n"
	src.put("plain", marker, "object", `{"password":"pass-`+marker+`\"quoted","port":54321}`, "pem", pem)
	var log upstreamtest.Buffer
	script := `cat ` + dir + `/f; base64 -w0 ` + dir + `/f; while read l; do echo "line: $l"; done < ` + dir + `/f; echo old-` + marker
	r := mustNew(t, src, Options{
		Targets: []Target{hooked(dir+"/f", "{{ secret \"plain\" }}\n{{ secretField \"object\" \"password\" }} {{ secret \"object\" }}\n{{ secret \"pem\" }}", sh(script))},
		Logger:  log.Logger(),
	})
	mustRender(t, r)
	for _, leak := range []string{marker, "MARKER", "abcdefghijklmnop", "qrstuvwxyz012345", "54321"} {
		if strings.Contains(log.String(), leak) {
			t.Errorf("the log shows %s: %s", leak, log.String())
		}
	}
	if !strings.Contains(log.String(), "line: ") || !strings.Contains(log.String(), masked) {
		t.Errorf("the log shows nothing: %s", log.String())
	}

	// Cut at every place of a value.
	m := newMasker(r.targets[0].values)
	for i := 1; i < len(marker); i++ {
		if got := m.mask("x="+marker[:i], true); got != "x="+masked {
			t.Fatalf("cut after %d: %q", i, got)
		}
	}
	log = upstreamtest.Buffer{}
	h := sh(`i=0; while [ $i -lt 3000 ]; do echo 0123456789; i=$((i+1)); done`)
	must(t, runHook(t, h, log.Logger()))
	if len(log.String()) > maxCommandOutput*2 || !strings.Contains(log.String(), "dropped_bytes=24808") {
		t.Errorf("%d bytes in the log", len(log.String()))
	}
}

func TestMaskOverlappingValues(t *testing.T) {
	m := &masker{values: []string{"abcd", "cdef"}}
	for in, want := range map[string]string{"abcdef": masked, "xabcdx": "x" + masked + "x", "abcdabcd": masked, "abc": "abc", "": ""} {
		if got := m.mask(in, false); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// listener starts a process that adds the signals it gets to dir/got, and returns its number.
func listener(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `trap "echo hup >> `+dir+`/got" HUP; trap "echo usr1 >> `+dir+`/got" USR1; echo > `+dir+`/ready; while :; do sleep 0.02; done`)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, "it listens", func() bool { _, err := os.Stat(dir + "/ready"); return err == nil })
	return fmt.Sprintf("%d\n", cmd.Process.Pid)
}

// Ensure that a signal reaches the process of a pid file, and that nothing else does.
func TestSignalHook(t *testing.T) {
	dir := t.TempDir()
	pidFile := dir + "/pid"
	mustWrite(t, pidFile, listener(t, dir))
	want := ""
	for _, test := range []struct{ signal, got string }{{"", "hup\n"}, {"USR1", "usr1\n"}, {"sigusr1", "usr1\n"}} {
		must(t, runHook(t, &Hook{PIDFile: pidFile, Signal: test.signal}, discard))
		want += test.got // one by one: the kernel makes one of two that wait
		eventually(t, "a signal", holds(dir+"/got", want))
	}
	for _, content := range []string{"0", "-1", "12 13", "4194304999"} {
		mustWrite(t, pidFile, content)
		wantErr(t, runHook(t, &Hook{PIDFile: pidFile}, discard), "number of a process")
	}
	mustWrite(t, pidFile, "2147483646") // more than any kernel gives out
	mustWrite(t, dir+"/empty", "\n")    // "nginx -t" leaves such a one
	for _, path := range []string{dir + "/none", dir + "/empty", pidFile} {
		if err := runHook(t, &Hook{PIDFile: path}, discard); !errors.Is(err, errNoProcess) {
			t.Errorf("%s: %v", path, err)
		}
	}
	var got os.Signal
	toChild := func(s os.Signal) error { got = s; return nil }
	if err := (&Hook{Child: true, Signal: "TERM"}).run(t.Context(), discard, toChild, nil); err != nil || got != syscall.SIGTERM {
		t.Errorf("child: %v, %v", got, err)
	}
}

// Ensure that an application that starts only when the agent is ready is waited for: a missing
// process makes nothing unready, and gets its signal once it is there.
func TestSignalHookWaitsForItsProcess(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1")
	var log upstreamtest.Buffer
	opts := Options{
		Targets:  []Target{hooked(dir+"/file", `{{ secret "a" }}`, &Hook{PIDFile: dir + "/pid"})},
		StateDir: dir + "/state", Logger: log.Logger(),
		Observe: func(e Event) {
			if e.Err != nil {
				t.Error(e.Err)
			}
		},
	}
	mustRender(t, mustNew(t, src, opts))
	r, _ := follow(t, src, opts)
	eventually(t, "it found none, in both renderers", func() bool { return strings.Count(log.String(), "nobody is there to be told") == 2 })
	if s := r.Status()[0]; !s.HookOwed || s.HookError != "" {
		t.Errorf("status: %+v", s)
	}
	mustWrite(t, dir+"/pid", listener(t, dir))
	eventually(t, "the signal", holds(dir+"/got", "hup\n"))
	eventually(t, "nothing owed", func() bool { return !r.Status()[0].HookOwed })
	if n := strings.Count(log.String(), "nobody is there to be told"); n != 2 { // one for each renderer
		t.Errorf("noted %d times", n)
	}
}

// Ensure the same of an application that is told over HTTP.
func TestHTTPHookWaitsForItsServer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := ln.Addr().String()
	must(t, ln.Close())
	dir := t.TempDir()
	var log upstreamtest.Buffer
	r, _ := follow(t, sourceOf("a", "1"), Options{
		Targets: []Target{hooked(dir+"/file", `{{ secret "a" }}`, &Hook{URL: "http://" + address + "/reload"})}, Logger: log.Logger(),
	})
	eventually(t, "it found none", func() bool { return strings.Contains(log.String(), "nobody is there to be told") })
	if s := r.Status()[0]; !s.HookOwed || s.HookError != "" {
		t.Errorf("status: %+v", s)
	}
	ln, err = net.Listen("tcp", address)
	must(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Listener.Close()
	server.Listener = ln
	server.Start()
	defer server.Close()
	eventually(t, "nothing owed", func() bool { return !r.Status()[0].HookOwed })
}

func TestHTTPHook(t *testing.T) {
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/", http.StatusFound)
		case "/hang":
			<-r.Context().Done()
		case "/" + r.Method:
			w.WriteHeader(http.StatusNoContent)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer server.Close()
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1") // must not be used
	local := strings.Replace(server.URL, "127.0.0.1", "LocalHost", 1)
	for i, h := range []*Hook{{URL: server.URL + "/POST?token=" + marker}, {URL: local + "/POST"}, {URL: server.URL + "/GET", Method: "GET"}} {
		if err := runHook(t, h, discard); err != nil || calls.Load() != int32(i+1) {
			t.Errorf("%s: %v, %d calls", h, err, calls.Load())
		}
	}
	for _, h := range []*Hook{{URL: server.URL + "/x?token=" + marker}, {URL: server.URL + "/redirect"}, {URL: server.URL + "/hang", Timeout: 50 * time.Millisecond}, {URL: "http://127.0.0.1:1/?token=" + marker}} {
		if err := runHook(t, h, discard); err == nil || strings.Contains(err.Error(), marker) {
			t.Errorf("%s: %v", h, err)
		}
	}
}

// Ensure that splay delays the hook and not the file, within its bound.
func TestSplay(t *testing.T) {
	dir := t.TempDir()
	child := &signals{}
	tg := hooked(dir+"/f", `{{ secret "a" }}`, &Hook{Child: true})
	tg.Splay = time.Hour
	inBubble(t, sourceOf("a", "1"), Options{Targets: []Target{tg}, Signal: child.send}, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
		if got := mustRead(t, dir+"/f"); got != "1" || child.runs.Load() != 0 {
			t.Errorf("the file waits or the hook does not: %q", got)
		}
		if pass(time.Hour); child.runs.Load() != 1 {
			t.Error("the hook did not run within its splay")
		}
	})
}

// Ensure that a hook does not wait for ever for a target that keeps changing.
func TestHookIsNotStarved(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1", "b", "1")
	src.before = func(refs []upstream.SecretRef) {
		if refs[0].SecretName == "b" {
			time.Sleep(8 * time.Second)
			src.mu.Lock()
			defer src.mu.Unlock()
			src.ring("b") // it is always dirty, and never different after the first time
		}
	}
	child, hook := &signals{}, &Hook{Child: true}
	opts := Options{Targets: []Target{hooked(dir+"/f", `{{ secret "a" }}`, hook), hooked(dir+"/g", `{{ secret "b" }}`, hook)}, Signal: child.send}
	inBubble(t, src, opts, func(_ *testing.T, _ *Renderer, _ func(time.Duration)) {
		time.Sleep(30 * time.Second)
		if child.runs.Load() == 0 {
			t.Error("the hook waits")
		}
	})
}
