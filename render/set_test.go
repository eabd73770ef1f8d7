package render

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pairSet is a set of two files that hold the secrets crt and key.
func pairSet(dir string) Set {
	return Set{Directory: dir, NoSync: true, Files: []SetFile{
		{Name: "tls.crt", Content: inline(`{{ secret "crt" }}`)}, {Name: "tls.key", Content: inline(`{{ secret "key" }}`)},
	}}
}

func TestSet(t *testing.T) {
	dir := t.TempDir() + "/certs"
	src := newFakeSource()
	src.put("crt", "c1", "key", "k1")
	set := pairSet(dir)
	set.NoSync = false
	r := mustNew(t, src, Options{Sets: []Set{set}})
	mustRender(t, r)
	first := mustLink(t, dir+"/..data")
	wantNames(t, dir, first, "..data", "tls.crt", "tls.key")
	if got := mustRead(t, dir+"/tls.crt") + mustRead(t, dir+"/tls.key"); got != "c1k1" {
		t.Errorf("got %q", got)
	}
	if got := mustLink(t, dir+"/tls.crt"); got != "..data/tls.crt" {
		t.Errorf("the link leads to %s", got)
	}
	wantMode(t, dir, 0o700)
	wantMode(t, dir+"/"+first, 0o700)
	wantMode(t, dir+"/"+first+"/tls.key", 0o600)

	mustRender(t, r) // nothing changed
	if got := mustLink(t, dir+"/..data"); got != first {
		t.Error("equal content made a new generation")
	}

	src.put("key", "k2")
	mustRender(t, r)
	second := mustLink(t, dir+"/..data")
	wantNames(t, dir, second, "..data", "tls.crt", "tls.key") // the old generation is gone
	if got := mustRead(t, dir+"/tls.crt") + mustRead(t, dir+"/tls.key"); got != "c1k2" {
		t.Errorf("got %q", got)
	}

	// Damage is repaired without a new generation: links, modes.
	if err := os.Remove(dir + "/tls.key"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/"+second+"/tls.crt", 0o644); err != nil {
		t.Fatal(err)
	}
	mustRender(t, r)
	wantNames(t, dir, second, "..data", "tls.crt", "tls.key")
	wantMode(t, dir+"/"+second+"/tls.crt", 0o600)

	// Damage to the content makes one.
	mustWrite(t, dir+"/"+second+"/tls.crt", "other")
	mustRender(t, r)
	if got := mustRead(t, dir+"/tls.crt"); got != "c1" || mustLink(t, dir+"/..data") == second {
		t.Errorf("got %q", got)
	}

	// A file leaves the set, another joins, somebody's own file stays.
	mustWrite(t, dir+"/notes", "mine")
	set.Files = []SetFile{set.Files[0], {Name: "both", Content: inline(`{{ secret "crt" }}{{ secret "key" }}`)}}
	mustRender(t, mustNew(t, src, Options{Sets: []Set{set}}))
	wantNames(t, dir, mustLink(t, dir+"/..data"), "..data", "both", "notes", "tls.crt")
	if got := mustRead(t, dir+"/both"); got != "c1k2" {
		t.Errorf("got %q", got)
	}
}

func mustLink(t *testing.T, path string) string {
	t.Helper()
	target, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// Ensure that a set never takes over what it did not make, and leaves it untouched.
func TestSetRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir string)
		root bool
		want string
	}{
		{"a folder that is a symbolic link", func(t *testing.T, dir string) {
			mustWrite(t, dir+"/real/x", "")
			mustSymlink(t, dir+"/real", dir+"/set")
		}, false, "a symbolic link"},
		{"a folder that is a file", func(t *testing.T, dir string) { mustWrite(t, dir+"/set", "") }, false, "a file"},
		{"a file of the same name", func(t *testing.T, dir string) { mustWrite(t, dir+"/set/tls.key", "mine") }, false, "was not made by this set"},
		{"a link of the same name", func(t *testing.T, dir string) {
			mustWrite(t, dir+"/set/x", "")
			mustSymlink(t, "/etc/passwd", dir+"/set/tls.key")
		}, false, "was not made by this set"},
		{"a ..data that is a folder", func(t *testing.T, dir string) { mustWrite(t, dir+"/set/..data/x", "") }, false, "..data was not made"},
		{"a ..data that leads away", func(t *testing.T, dir string) {
			mustWrite(t, dir+"/set/x", "")
			mustSymlink(t, "../elsewhere", dir+"/set/..data")
		}, false, "..data was not made"},
		{"a parent that leads out of the root", func(t *testing.T, dir string) {
			mustWrite(t, dir+"/out/x", "")
			mustWrite(t, dir+"/root/x", "")
			mustSymlink(t, "../out", dir+"/root/sub")
		}, true, "escapes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(t, dir)
			before := tree(t, dir)
			src := newFakeSource()
			src.put("crt", "c", "key", "k")
			opts := Options{Sets: []Set{pairSet(dir + "/set")}}
			if c.root {
				opts.Root, opts.Sets[0].Directory = dir+"/root", dir+"/root/sub/set"
			}
			err := mustNew(t, src, opts).RenderOnce(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: %v, want %q", err, c.want)
			}
			if after := tree(t, dir); strings.Join(before, "\n") != strings.Join(after, "\n") {
				t.Errorf("it changed\n%q\nto\n%q", before, after)
			}
		})
	}
}

// Ensure that a kill at every step of a publish leaves the old set or the new one, and that
// the next run completes it and leaves nothing behind.
func TestSetSurvivesAKillAtEachStep(t *testing.T) {
	leftover := "..2026_01_02_03_04_05.0123456789abcdef"
	for name, damage := range map[string]func(t *testing.T, dir, current string){
		"half a generation":         func(t *testing.T, dir, _ string) { mustWrite(t, dir+"/"+leftover+"/tls.crt", marker) },
		"a link that is not yet in": func(t *testing.T, dir, current string) { mustSymlink(t, current, dir+"/"+dataLinkNew) },
		"links not made":            func(t *testing.T, dir, _ string) { os.Remove(dir + "/tls.crt"); os.Remove(dir + "/tls.key") },
		"the old one not removed":   func(t *testing.T, dir, _ string) { mustWrite(t, dir+"/"+leftover+"/tls.key", marker) },
		"..data that leads nowhere": func(t *testing.T, dir, current string) { os.RemoveAll(dir + "/" + current) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir() + "/set"
			src := newFakeSource()
			src.put("crt", "c", "key", "k")
			mustRender(t, mustNew(t, src, Options{Sets: []Set{pairSet(dir)}}))
			damage(t, dir, mustLink(t, dir+"/..data"))
			mustRender(t, mustNew(t, src, Options{Sets: []Set{pairSet(dir)}}))
			wantNames(t, dir, mustLink(t, dir+"/..data"), "..data", "tls.crt", "tls.key")
			if got := mustRead(t, dir+"/tls.crt") + mustRead(t, dir+"/tls.key"); got != "ck" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// readPair opens the folder ..data once and both files relative to it, as [Set] asks.
func readPair(dir string) (crt, key []byte, err error) {
	root, err := os.OpenRoot(dir + "/..data")
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	if crt, err = root.ReadFile("tls.crt"); err != nil {
		return nil, nil, err
	}
	key, err = root.ReadFile("tls.key")
	return crt, key, err
}

// Ensure that a reader polling both files through rotations and kill -9 never sees a mix,
// that each path by itself is never torn and never gone, and that nothing is left behind.
func TestKilledAgentsNeverShowAMix(t *testing.T) {
	if testing.Short() {
		t.Skip("starts and kills processes")
	}
	dir := t.TempDir()
	var stop atomic.Bool
	kills := 0
	var killer sync.WaitGroup
	defer killer.Wait()
	defer stop.Store(true)
	killer.Go(func() {
		defer stop.Store(true)
		for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline) && !stop.Load(); kills++ {
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), victimDir+"="+dir)
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Duration(20+rand.IntN(100)) * time.Millisecond)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})

	var pairs, retries, single int
	seen := map[string]bool{}
	appeared := map[string]bool{} // :: path → it was there once, and must stay
	published := false
	for !stop.Load() {
		crt, key, err := readPair(dir + "/set")
		switch {
		case errors.Is(err, fs.ErrNotExist):
			retries++ // not published yet, or replaced in between: start again
		case err != nil:
			t.Fatal(err)
		default:
			pairs++
			seen[string(crt[:20])] = true
			if string(crt) != string(key) || len(crt) != 400*21 {
				t.Fatalf("a mix: %.20s (%d bytes) and %.20s (%d bytes)", crt, len(crt), key, len(key))
			}
			published = true
		}
		if !published {
			continue
		}
		if _, err := os.Readlink(dir + "/set/..data"); err != nil {
			t.Fatalf("nothing is published for a moment: %v", err)
		}
		for _, path := range []string{"/file", "/set/tls.crt", "/set/tls.key"} {
			b, err := os.ReadFile(dir + path)
			if errors.Is(err, fs.ErrNotExist) && !appeared[path] {
				continue // its first publish comes after that of the pair
			}
			if errors.Is(err, fs.ErrNotExist) && path != "/file" {
				// The path was resolved to a generation that was removed before the open.
				// The path itself must be there.
				if _, err := os.Lstat(dir + path); err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if len(b) != 400*21 || strings.Count(string(b), string(b[:21])) != 400 {
				t.Fatalf("%s is torn: %d bytes", path, len(b))
			}
			appeared[path] = true
			single++
		}
	}
	killer.Wait()
	t.Logf("%d kills, %d pairs read (%d different), %d reads started again, %d single reads", kills, pairs, len(seen), retries, single)
	if kills < 10 || len(seen) < 20 || single < 20 {
		t.Errorf("too little happened: %d kills, %d pairs", kills, len(seen))
	}

	src := newFakeSource()
	src.put("crt", "end", "key", "end", "seq", "end")
	mustRender(t, mustNew(t, src, Options{Sets: []Set{pairSet(dir + "/set")}, Targets: []Target{fileAt(dir+"/file", `{{ secret "seq" }}`)}}))
	wantNames(t, dir, "file", "set")
	wantNames(t, dir+"/set", mustLink(t, dir+"/set/..data"), "..data", "tls.crt", "tls.key")
}
