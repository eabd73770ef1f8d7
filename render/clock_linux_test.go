package render

import (
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"
)

// clockJumps are how far the wall clock of the host is set.
var clockJumps = []time.Duration{24 * time.Hour, -24 * time.Hour}

// setBack makes times read as they do after the wall clock was set by d: what was noted before
// keeps the old wall time, and the monotonic one.
func setBack(d time.Duration, times ...*time.Time) {
	for _, t := range times {
		if !t.IsZero() {
			wall := (*uint64)(unsafe.Pointer(t)) // 1 bit, 33 bits of seconds, 30 bits of nanoseconds
			*wall -= uint64(int64(d/time.Second)) << 30
		}
	}
}

// hookedOnce is a renderer of one secret into a file, whose hook signals the process of
// dir/pid, and into a set. It counts the runs of the hook.
func hookedOnce(t *testing.T, src Source, dir string, runs *int) *Renderer {
	return mustNew(t, src, Options{
		Targets:  []Target{hooked(dir+"/file", `{{ secret "a" }}`, &Hook{PIDFile: dir + "/pid"})},
		Sets:     []Set{{Directory: dir + "/set", NoSync: true, Files: []SetFile{{Name: "x", Content: inline(`{{ secret "a" }}`)}}}},
		StateDir: dir + "/state",
		Observe: func(e Event) {
			if e.Hook {
				*runs++
			}
		},
	})
}

// Ensure that a wall clock that is set changes no wait: not that of a change that waits for
// others, not that of a hook that is owed, and nothing is lost.
func TestClockJump(t *testing.T) {
	for _, jump := range clockJumps {
		now := time.Now()
		noted, since := now, now.Add(-55*time.Second)
		setBack(jump, &noted, &since)
		if moved := noted.Round(0).Sub(now.Round(0)); moved != -jump {
			t.Fatalf("the wall time moved by %s, want %s", moved, -jump)
		}
		tg := &target{wait: Wait{Min: 10 * time.Second, Max: time.Minute}, dirty: true, dirtySince: since}
		if got := tg.debounce(now); got != 5*time.Second {
			t.Errorf("%s: a change waits for %s more, want 5s", jump, got)
		}

		dir := t.TempDir()
		src := sourceOf("a", "1")
		runs := 0
		r := hookedOnce(t, src, dir, &runs)
		stop := start(t, r)
		eventually(t, "the hook waits for its process", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.groups[0].noProcess
		})
		r.mu.Lock()
		setBack(jump, &r.groups[0].owedSince, &r.groups[0].notBefore)
		for _, tg := range r.targets {
			setBack(jump, &tg.lastTry, &tg.lastChange, &tg.nextTry)
		}
		r.mu.Unlock()
		src.put("a", "2")
		eventually(t, "the change", holds(dir+"/file", "2"))
		mustWrite(t, dir+"/pid", listener(t, t.TempDir()))
		eventually(t, "the owed signal", func() bool { return !r.Status()[0].HookOwed })
		if stop(); runs != 1 {
			t.Errorf("%s: the hook ran %d times", jump, runs)
		}
	}
}

// Ensure that files from another time, as they lie there after the clock was set while no agent
// ran, are neither rewritten nor make an owed hook forgotten.
func TestFilesFromAnotherTime(t *testing.T) {
	for _, jump := range clockJumps {
		dir := t.TempDir()
		src := sourceOf("a", "1")
		runs := 0
		mustRender(t, hookedOnce(t, src, dir, &runs))
		at := time.Now().Add(jump)
		before := inode(t, dir+"/file") + mustLink(t, dir+"/set/..data")
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.Type()&os.ModeSymlink != 0 {
				return err
			}
			return os.Chtimes(path, at, at)
		})
		must(t, err)
		mustWrite(t, dir+"/pid", listener(t, t.TempDir()))
		r := hookedOnce(t, src, dir, &runs)
		mustRender(t, r)
		if runs != 1 || r.Status()[0].HookOwed {
			t.Errorf("%s: the owed hook ran %d times", jump, runs)
		}
		if inode(t, dir+"/file")+mustLink(t, dir+"/set/..data") != before {
			t.Errorf("%s: equal content was published again", jump)
		}
		src.put("a", "2") // a set's generations bear their time: the order of their names must not matter
		mustRender(t, r)
		wantFile(t, dir+"/set/x", "2")
	}
}
