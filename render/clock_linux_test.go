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

// beforeJump returns t as it reads after the wall clock was set by d: what was noted before
// keeps the old wall time, and the monotonic one.
func beforeJump(t time.Time, d time.Duration) time.Time {
	if t.IsZero() {
		return t
	}
	wall := (*uint64)(unsafe.Pointer(&t)) // 1 bit, 33 bits of seconds, 30 bits of nanoseconds
	*wall -= uint64(int64(d/time.Second)) << 30
	return t
}

// Ensure that a wall clock that is set changes no wait: not that of a change that settles, not
// that of a hook that is owed, and nothing is lost.
func TestClockJump(t *testing.T) {
	now := time.Now()
	for _, jump := range clockJumps {
		noted := beforeJump(now, jump)
		if moved := noted.Round(0).Sub(now.Round(0)); moved != -jump {
			t.Fatalf("the wall time moved by %s, want %s", moved, -jump)
		}
		u := &target{wait: Wait{Min: 10 * time.Second, Max: time.Minute}, dirty: true, dirtySince: beforeJump(now.Add(-55*time.Second), jump)}
		if got := u.debounce(now); got != 5*time.Second {
			t.Errorf("%s: a change settles for %s more, want 5s", jump, got)
		}

		dir := t.TempDir()
		src := newFakeSource()
		src.put("a", "1")
		ran := 0
		r := mustNew(t, src, Options{Targets: []Target{{
			Content: inline(`{{ secret "a" }}`), Destination: dir + "/file", NoSync: true,
			Hook: &Hook{PIDFile: dir + "/pid"},
		}}, Observe: func(e Event) {
			if e.Hook {
				ran++
			}
		}})
		stop := start(t, r)
		eventually(t, "the hook waits for its process", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.groups[0].noProcess
		})
		r.mu.Lock()
		for _, g := range r.groups {
			g.owedSince, g.notBefore = beforeJump(g.owedSince, jump), beforeJump(g.notBefore, jump)
		}
		for _, u := range r.targets {
			u.lastTry, u.lastChange, u.nextTry = beforeJump(u.lastTry, jump), beforeJump(u.lastChange, jump), beforeJump(u.nextTry, jump)
		}
		r.mu.Unlock()
		src.put("a", "2")
		eventually(t, "the change", func() bool { b, _ := os.ReadFile(dir + "/file"); return string(b) == "2" })
		process := sleeper(t)
		mustWrite(t, dir+"/pid", process)
		eventually(t, "the owed signal", func() bool { return !r.Status()[0].HookOwed })
		stop()
		if ran != 1 {
			t.Errorf("%s: the hook ran %d times", jump, ran)
		}
	}
}

// Ensure that files from another time, as they lie there after the clock was set while no agent
// ran, are neither rewritten nor make an owed hook forgotten.
func TestFilesFromAnotherTime(t *testing.T) {
	for _, jump := range clockJumps {
		dir := t.TempDir()
		src := newFakeSource()
		src.put("a", "1")
		opts := Options{
			Targets: []Target{{Content: inline(`{{ secret "a" }}`), Destination: dir + "/file", NoSync: true, Hook: &Hook{PIDFile: dir + "/pid"}}},
			Sets: []Set{{Directory: dir + "/set", NoSync: true, Files: []SetFile{
				{Name: "x", Content: inline(`{{ secret "a" }}`)}, {Name: "y", Content: inline(`{{ secret "a" }}`)},
			}}},
			StateDir: dir + "/state",
		}
		mustRender(t, mustNew(t, src, opts))
		at := time.Now().Add(jump)
		published := inode(t, dir+"/file")
		generation, err := os.Readlink(dir + "/set/..data")
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.Type()&os.ModeSymlink != 0 {
				return err
			}
			return os.Chtimes(path, at, at)
		})
		if err != nil {
			t.Fatal(err)
		}

		mustWrite(t, dir+"/pid", sleeper(t))
		ran := 0
		opts.Observe = func(e Event) {
			if e.Hook {
				ran++
			}
		}
		r := mustNew(t, src, opts)
		mustRender(t, r)
		if ran != 1 || r.Status()[0].HookOwed {
			t.Errorf("%s: the owed hook ran %d times", jump, ran)
		}
		if again, _ := os.Readlink(dir + "/set/..data"); inode(t, dir+"/file") != published || again != generation {
			t.Errorf("%s: equal content was published again", jump)
		}
		// A set's generations bear their time: the order of their names must not matter.
		src.put("a", "2")
		mustRender(t, r)
		if got := mustRead(t, dir+"/set/x"); got != "2" {
			t.Errorf("%s: set holds %q", jump, got)
		}
	}
}
