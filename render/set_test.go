package render

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	src := sourceOf("crt", "c1", "key", "k1")
	set := pairSet(dir)
	set.NoSync = false
	r := mustNew(t, src, Options{Sets: []Set{set}})
	// render publishes once more and returns the generation.
	render := func(crt, key string, others ...string) string {
		t.Helper()
		mustRender(t, r)
		generation := mustLink(t, dir+"/..data")
		wantNames(t, dir, append([]string{generation, "..data", "tls.crt", "tls.key"}, others...)...) // an old generation is gone
		if got := mustRead(t, dir+"/tls.crt") + mustRead(t, dir+"/tls.key"); got != crt+key || mustLink(t, dir+"/tls.crt") != "..data/tls.crt" {
			t.Errorf("got %q", got)
		}
		wantMode(t, dir, 0o700)
		wantMode(t, dir+"/"+generation, 0o700)
		wantMode(t, dir+"/"+generation+"/tls.key", 0o600)
		return generation
	}
	first := render("c1", "k1")
	if render("c1", "k1") != first {
		t.Error("equal content made a new generation")
	}
	src.put("key", "k2")
	second := render("c1", "k2")
	// Damage to links and modes is repaired without a new generation; damage to the content
	// makes one.
	must(t, errors.Join(os.Remove(dir+"/tls.crt"), os.Chmod(dir+"/"+second+"/tls.key", 0o644)))
	if render("c1", "k2") != second || second == first {
		t.Error("the repair made a new generation, or the change none")
	}
	mustWrite(t, dir+"/"+second+"/tls.crt", "other")
	if render("c1", "k2") == second {
		t.Error("damaged content made no new generation")
	}
	mustWrite(t, dir+"/notes", "mine")
	render("c1", "k2", "notes")
	// A file leaves the set, another joins, somebody's own file stays.
	set.Files = []SetFile{set.Files[0], {Name: "both", Content: inline(`{{ secret "crt" }}{{ secret "key" }}`)}}
	mustRender(t, mustNew(t, src, Options{Sets: []Set{set}}))
	wantNames(t, dir, mustLink(t, dir+"/..data"), "..data", "both", "notes", "tls.crt")
	wantFile(t, dir+"/both", "c1k2")
}

func mustLink(t *testing.T, path string) string {
	t.Helper()
	target, err := os.Readlink(path)
	must(t, err)
	return target
}

// Ensure that a set never takes over what it did not make, and leaves it untouched.
func TestSetRefuses(t *testing.T) {
	for _, c := range []struct {
		name, to string // what is there before; to: the link that it is, or empty
		root     string
		want     string
	}{
		{"/real/x", "", "", "a symbolic link"}, // beside the link /set → real
		{"/set", "", "", "a file"},
		{"/set/tls.key", "", "", "was not made by this set"},
		{"/set/tls.key", "/etc/passwd", "", "was not made by this set"},
		{"/set/..data/x", "", "", "..data was not made"},
		{"/set/..data", "../elsewhere", "", "..data was not made"},
		{"/root/sub", "../out", "/root", "escapes"},
	} {
		dir := t.TempDir()
		mustWrite(t, dir+"/out/x", "")
		switch {
		case c.to != "":
			mustWrite(t, filepath.Dir(dir+c.name)+"/notes", "")
			mustSymlink(t, c.to, dir+c.name)
		default:
			mustWrite(t, dir+c.name, "mine")
		}
		if c.name == "/real/x" {
			mustSymlink(t, dir+"/real", dir+"/set")
		}
		before := tree(t, dir)
		src := sourceOf("crt", "c", "key", "k")
		opts := Options{Sets: []Set{pairSet(dir + "/set")}}
		if c.root != "" {
			opts.Root, opts.Sets[0].Directory = dir+c.root, dir+c.name+"/set"
		}
		wantErr(t, mustNew(t, src, opts).RenderOnce(t.Context()), c.want)
		if after := tree(t, dir); !slices.Equal(before, after) {
			t.Errorf("%s: it changed\n%q\nto\n%q", c.name, before, after)
		}
	}
}

// Ensure that a kill at every step of a publish leaves the old set or the new one, and that
// the next run completes it and leaves nothing behind.
func TestSetSurvivesAKillAtEachStep(t *testing.T) {
	leftover := "..2026_01_02_03_04_05.0123456789abcdef"
	for _, damage := range map[string]func(dir, current string){
		"half a generation":         func(dir, _ string) { mustWrite(t, dir+"/"+leftover+"/tls.crt", marker) },
		"a link that is not yet in": func(dir, current string) { mustSymlink(t, current, dir+"/"+dataLinkNew) },
		"links not made":            func(dir, _ string) { os.Remove(dir + "/tls.crt"); os.Remove(dir + "/tls.key") },
		"the old one not removed":   func(dir, _ string) { mustWrite(t, dir+"/"+leftover+"/tls.key", marker) },
		"..data that leads nowhere": func(dir, current string) { os.RemoveAll(dir + "/" + current) },
	} {
		dir := t.TempDir() + "/set"
		src := sourceOf("crt", "c", "key", "k")
		mustRender(t, mustNew(t, src, Options{Sets: []Set{pairSet(dir)}}))
		damage(dir, mustLink(t, dir+"/..data"))
		mustRender(t, mustNew(t, src, Options{Sets: []Set{pairSet(dir)}}))
		wantNames(t, dir, mustLink(t, dir+"/..data"), "..data", "tls.crt", "tls.key")
		wantFile(t, dir+"/tls.crt", "c")
		wantFile(t, dir+"/tls.key", "k")
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
	t.Parallel()
	dir := t.TempDir()
	var kills atomic.Int32
	var stop atomic.Bool
	var killer sync.WaitGroup
	defer killer.Wait()
	defer stop.Store(true)
	killer.Go(func() {
		for ; !stop.Load(); kills.Add(1) {
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
	seen := map[string]bool{}  // content that a pair was read with
	single := map[string]int{} // :: path → reads of that file
	deadline := time.Now().Add(5 * time.Minute)
	for kills.Load() < 15 || len(seen) < 20 || single["/file"]+single["/set/tls.key"] < 20 {
		if t.Failed() || time.Now().After(deadline) {
			t.Fatalf("too little happened: %d kills, %d different pairs, %v reads", kills.Load(), len(seen), single)
		}
		crt, key, err := readPair(dir + "/set")
		switch {
		case err == nil:
			if string(crt) != string(key) || len(crt) != 400*21 {
				t.Fatalf("a mix: %.20s (%d bytes) and %.20s (%d bytes)", crt, len(crt), key, len(key))
			}
			seen[string(crt[:20])] = true
		case !errors.Is(err, fs.ErrNotExist): // not published yet, or replaced in between
			t.Fatal(err)
		}
		if len(seen) > 0 {
			readSingly(t, dir, single)
		}
	}
	stop.Store(true)
	killer.Wait()

	src := sourceOf("crt", "end", "key", "end", "seq", "end")
	mustRender(t, mustNew(t, src, Options{Sets: []Set{pairSet(dir + "/set")}, Targets: []Target{fileAt(dir+"/file", `{{ secret "seq" }}`)}}))
	wantNames(t, dir, "file", "set")
	wantNames(t, dir+"/set", mustLink(t, dir+"/set/..data"), "..data", "tls.crt", "tls.key")
}

// readSingly reads each file by its path, once the set was published, and counts what it read.
func readSingly(t *testing.T, dir string, reads map[string]int) {
	for _, path := range []string{"/set/..data", "/set/tls.crt", "/set/tls.key"} {
		if _, err := os.Lstat(dir + path); err != nil {
			t.Fatalf("nothing is published for a moment: %v", err)
		}
	}
	for _, path := range []string{"/file", "/set/tls.crt", "/set/tls.key"} {
		b, err := os.ReadFile(dir + path)
		if errors.Is(err, fs.ErrNotExist) && (path != "/file" || reads[path] == 0) {
			continue // the path led to a generation that was removed before the open, or /file is yet to come
		}
		if err != nil || len(b) != 400*21 || strings.Count(string(b), string(b[:21])) != 400 {
			t.Fatalf("%s is torn: %d bytes, %v", path, len(b), err)
		}
		reads[path]++
	}
}
