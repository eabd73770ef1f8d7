package render

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream/upstreamtest"
)

// checked is a target with a check: a script whose $1 is the path of what is staged.
func checked(dest, text, script string) Target {
	tg := fileAt(dest, text)
	tg.Check = &Check{Command: []string{"/bin/sh", "-c", script, "check", "{{ .Path }}"}}
	return tg
}

// Ensure that a check sees new content before anybody else does, complete and with its mode, that
// what it refuses is not published, and that it does not run for what is published already.
func TestCheckDecidesWhatIsPublished(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "good 1", "crt", "good 1", "key", "k")
	tg := checked(dir+"/out/f", `{{ secret "a" }}`, `cat `+dir+`/out/f >> `+dir+`/before 2>/dev/null; stat -c %a "$1" >> `+dir+`/modes; echo "no good"; grep -q good "$1"`)
	tg.Mode, tg.Hook = 0o640, sh("echo run >> "+dir+"/hooks")
	set := pairSet(dir + "/set")
	set.Check = &Check{Command: []string{"/usr/bin/grep", "-q", "good", "{{.Path}}/tls.crt"}}
	opts := Options{Targets: []Target{tg}, Sets: []Set{set}}
	want := func(file, crt, before string, runs int) {
		t.Helper()
		wantFile(t, dir+"/out/f", file)
		wantFile(t, dir+"/set/tls.crt", crt)
		wantNames(t, dir+"/out", "f") // nothing that was refused is left
		if got, _ := os.ReadFile(dir + "/before"); string(got) != before {
			t.Errorf("published while it was checked: %q, want %q", got, before)
		}
		if got := mustRead(t, dir+"/modes"); got != strings.Repeat("640\n", runs) {
			t.Errorf("modes %q, want %d", got, runs)
		}
		if len(names(t, dir+"/set")) != 4 {
			t.Errorf("the set holds %q", names(t, dir+"/set"))
		}
	}
	for range 2 {
		mustRender(t, mustNew(t, src, opts))
		want("good 1", "good 1", "", 1)
	}
	src.put("a", "bad", "crt", "good 2")
	r := mustNew(t, src, opts)
	wantErr(t, r.RenderOnce(t.Context()), "render "+dir+"/out/f: check: command /bin/sh: exit status 1: no good")
	want("good 1", "good 1", "good 1", 2) // all or nothing
	if ok, why := r.Ready(); ok || !strings.Contains(why[0], "check: ") || r.Status()[0].State != Failed {
		t.Errorf("ready %v, %q", ok, why)
	}
	src.put("a", "good 2", "crt", "bad")
	wantErr(t, mustNew(t, src, opts).RenderOnce(t.Context()), dir+"/set: check: command /usr/bin/grep: exit status 1")
	want("good 1", "good 1", "good 1good 1", 3)
	opts.Partial = true
	if mustNew(t, src, opts).RenderOnce(t.Context()) == nil {
		t.Error("a refused set is no failure")
	}
	want("good 2", "good 1", "good 1good 1good 1", 4)
	if n := countRuns(dir + "/hooks"); n != 2 {
		t.Errorf("%d hooks, want 2", n)
	}
	diffs, err := mustNew(t, src, opts).Diff(t.Context())
	if err != nil || len(diffs) != 1 || !diffs[0].Unchecked {
		t.Errorf("%+v, %v", diffs, err)
	}
	want("good 2", "good 1", "good 1good 1good 1", 4) // Diff runs none
}

// Ensure that a check is repeated as every failure is, and for a new value.
func TestCheckIsRepeated(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "good 1")
	var events upstreamtest.Buffer
	r, stop := follow(t, src, Options{
		Targets: []Target{checked(dir+"/f", `{{ secret "a" }}`, `test -e `+dir+`/all || grep good "$1"`)},
		Observe: func(e Event) { fmt.Fprintln(&events, e.Check, e.Err) },
	})
	refused := func() bool { return strings.Contains(r.Status()[0].Error, "check: ") }
	src.put("a", "bad 1")
	eventually(t, "it is refused", refused)
	src.put("a", "good 2")
	eventually(t, "the next value is published", holds(dir+"/f", "good 2"))
	src.put("a", "bad 2")
	eventually(t, "that one is refused", refused)
	wantFile(t, dir+"/f", "good 2")
	mustWrite(t, dir+"/all", "")
	eventually(t, "it is checked again", holds(dir+"/f", "bad 2"))
	stop()
	for _, want := range []string{"true <nil>", "true check: command /bin/sh: exit status 1"} {
		if !strings.Contains(events.String(), want) {
			t.Errorf("no event %q in %s", want, events.String())
		}
	}
}

// Ensure that a check that hangs ends with its time or with the agent, with all it started and
// all that was staged, and that the end of the agent is no failure of the content.
func TestCheckThatHangs(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1", "crt", "c", "key", "k")
	script := `sleep 600 & echo $! > ` + dir + `/pid; sleep 600`
	tg := checked(dir+"/out/f", `{{ secret "a" }}`, script)
	set := pairSet(dir + "/set")
	set.Check = &Check{Command: tg.Check.Command, Timeout: 50 * time.Millisecond}
	var log upstreamtest.Buffer
	wantErr(t, mustNew(t, src, Options{Sets: []Set{set}}).RenderOnce(t.Context()), "check: command /bin/sh: not finished after 50ms")
	wantNames(t, dir+"/set")

	var pid int
	_ = os.Remove(dir + "/pid")
	stop := start(t, mustNew(t, src, Options{Targets: []Target{tg}, Logger: log.Logger()}))
	eventually(t, "it runs", func() bool { b, _ := os.ReadFile(dir + "/pid"); n, _ := fmt.Sscanln(string(b), &pid); return n == 1 })
	stop() // or the test waits for ten minutes
	eventually(t, "what it started is gone", func() bool { return gone(pid) })
	wantNames(t, dir+"/out")
	if log.String() != "" {
		t.Errorf("log: %s", log.String())
	}
}

// Ensure that checks that hang hold up no target that has none.
func TestCheckHoldsUpNobody(t *testing.T) {
	dir := t.TempDir()
	var targets []Target
	for i := range maxWorkers + maxChecks {
		targets = append(targets, checked(fmt.Sprintf("%s/f%d", dir, i), "x", "sleep 600"))
	}
	stop := start(t, mustNew(t, sourceOf("a", "1"), Options{Targets: append(targets, fileAt(dir+"/last", `{{ secret "a" }}`))}))
	eventually(t, "the one without is published", holds(dir+"/last", "1"))
	stop()
	wantNames(t, dir, "last")
}

// Ensure that targets that wait until their check can run hold no folder open.
func TestWaitingForACheckHoldsNothing(t *testing.T) {
	dir := t.TempDir()
	const waiting = 20
	var targets []Target
	for i := range maxChecks + waiting {
		targets = append(targets, checked(fmt.Sprintf("%s/d%d/f", dir, i), "x", "sleep 600"))
	}
	stop := start(t, mustNew(t, sourceOf("a", "1"), Options{Targets: targets}))
	eventually(t, "all are staged, and no folder is open", func() bool {
		staged, err := filepath.Glob(dir + "/d*/" + tempPrefix + "*")
		if err != nil || len(staged) != len(targets) {
			return false
		}
		open, _ := filepath.Glob("/proc/self/fd/*")
		return !slices.ContainsFunc(open, func(fd string) bool {
			path, _ := os.Readlink(fd)
			return strings.HasPrefix(path, dir)
		})
	})
	stop()
}

// Ensure that a check that shows what it cannot read shows no part of a value, neither of the one
// that is not published nor in pieces.
func TestCheckOutputIsMasked(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	src.put("a", "first; password", "object", `{"password":"hunter2-head;hunter2-tail {hunter2-more}"}`)
	var log upstreamtest.Buffer
	r := mustNew(t, src, Options{Logger: log.Logger(), Targets: []Target{
		checked(dir+"/f", "a {{ secret \"a\" }}\n{{ secretField \"object\" \"password\" }}\n", `cat "$1"; tr -s '; {}' '\n' < "$1"; echo unknown directive; exit 1`),
	}})
	err := r.RenderOnce(t.Context())
	wantErr(t, err, "unknown directive")
	for name, text := range map[string]string{"log": log.String(), "error": err.Error(), "status": r.Status()[0].Error} {
		if text == "" || strings.Contains(text, "hunter2") || strings.Contains(text, "first") || strings.Contains(text, "password") {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// TestWhatATemplateMakesOfAValueIsMasked in the output of checks and hooks, whatever the helpers
// have made of it, also for the output of a hook of another target.
func TestWhatATemplateMakesOfAValueIsMasked(t *testing.T) {
	const template = `name = "{{ secret "a" | upper }}"
short = {{ secret "a" | b64enc | trunc 12 }}
{{ range splitList "" (secret "a" | trunc 9) }}{{ . }}{{ end }}.
{{ range splitList "X" (secret "a") }}part {{ . }}
{{ end }}`
	shown := []string{"HUNTER", "aHVu", "hunter", "Tail", "Xt"}
	wantMasked := func(name, text string) {
		t.Helper()
		for _, s := range shown {
			if strings.Contains(text, s) {
				t.Errorf("%s: %s", name, text)
			}
		}
		if !strings.Contains(text, "short = [masked]") {
			t.Errorf("%s: the text of the template is not there: %s", name, text)
		}
	}
	for name, second := range map[string]func(dir string) Target{
		"check": func(dir string) Target { return checked(dir+"/g", template, `cat "$1"; exit 1`) },
		"hook":  func(dir string) Target { return hooked(dir+"/g", "x", sh("cat "+dir+"/f; exit 1")) },
	} {
		dir := t.TempDir()
		var log upstreamtest.Buffer
		r := mustNew(t, sourceOf("a", "hunterAXtailTailXhunterB"), Options{Logger: log.Logger(), Targets: []Target{fileAt(dir+"/f", template), second(dir)}})
		err := r.RenderOnce(t.Context())
		wantErr(t, err, "exit status 1: ")
		s := r.Status()[1]
		if !s.Printed || r.Status()[0].Printed {
			t.Errorf("%s: %+v", name, r.Status())
		}
		wantMasked(name+", log", log.String())
		wantMasked(name+", error", err.Error())
		wantMasked(name+", status", s.Error+s.HookError)
	}
}
