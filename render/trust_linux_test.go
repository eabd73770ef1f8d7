package render

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// neighbour is a user of another application.
const neighbour = 65533

func asRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to be two users")
	}
}

// Ensure that a root agent writes nothing by a path that an application could lead elsewhere,
// names the component, and does so at the check and when it publishes.
func TestRootIsNotLedElsewhere(t *testing.T) {
	asRoot(t)
	for _, c := range []struct {
		name string
		mode os.FileMode // of the folder app
		uid  int
	}{{"of another user", 0o755, neighbour}, {"open to all", 0o777, 0}, {"open to a group", 0o775, 0}} {
		dir := t.TempDir()
		app := dir + "/app"
		must(t, os.MkdirAll(app+"/files", 0o755))
		spoil := func() {
			must(t, os.Chmod(app, c.mode))
			must(t, os.Chown(app, c.uid, c.uid))
		}
		wantNames(t, app+"/files")
		hook := &Hook{Command: []string{"true"}}
		for key, o := range map[string]Options{
			"templates[0].destination": {Targets: []Target{{Content: inline(`x`), Destination: app + "/files/f"}}},
			"sets[0].directory":        {Sets: []Set{{Directory: app + "/files/set", User: strconv.Itoa(neighbour), Files: []SetFile{{Name: "f", Content: inline(`x`)}}}}},
			"render.stateDir":          {StateDir: app + "/files/state", Targets: []Target{{Content: inline(`x`), Destination: dir + "/f", Hook: hook}}},
		} {
			must(t, os.Chmod(app, 0o755))
			must(t, os.Chown(app, 0, 0))
			r := mustNew(t, newFakeSource(), o)
			spoil() // while the agent runs
			err := r.RenderOnce(t.Context())
			if key == "render.stateDir" && err == nil {
				t.Errorf("%s, %s: the hook is owed nowhere", c.name, key)
			}
			for _, err := range []error{err, o.Validate()} {
				if text := fmt.Sprint(err); !strings.Contains(text, app+" belongs to uid ") {
					t.Errorf("%s, %s: %v", c.name, key, err)
				}
			}
			if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+": ") {
				t.Errorf("%s: %v", key, err)
			}
			o.Root = "/" // keeps nothing in
			wantErr(t, o.Validate(), key+": ")
			wantNames(t, app+"/files")
			// Below a root nothing leads out, so that it may belong to anybody.
			o.Root, o.StateDir = app, strings.Replace(o.StateDir, "/state", "/state2", 1)
			if key == "render.stateDir" {
				o.Targets[0].Destination = app + "/files/f"
			}
			mustRender(t, mustNew(t, newFakeSource(), o))
			must(t, os.RemoveAll(app+"/files"))
			must(t, os.Mkdir(app+"/files", 0o755))
		}
	}
}

// Ensure that a path that is exchanged while the agent runs leads nowhere: the application owns a
// folder below the root and puts a link in its place.
func TestALinkDoesNotLeadOutOfTheRoot(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/app/files", 0o755))
	must(t, os.Mkdir(dir+"/elsewhere", 0o755))
	must(t, os.Chown(dir+"/app", neighbour, neighbour))
	src := newFakeSource()
	src.put("a", "1")
	r := mustNew(t, src, Options{Root: dir + "/app", Targets: []Target{{Content: inline(`{{ secret "a" }}`), Destination: dir + "/app/files/f"}}})
	mustRender(t, r)
	must(t, os.Rename(dir+"/app/files", dir+"/app/old"))
	must(t, os.Symlink(dir+"/elsewhere", dir+"/app/files"))
	src.put("a", "2")
	wantErr(t, r.RenderOnce(t.Context()), "escapes")
	wantNames(t, dir+"/elsewhere")
	// The root itself must not be one that the application can exchange.
	o := Options{Root: dir + "/app/old", Targets: []Target{{Content: inline(`x`), Destination: dir + "/app/old/f"}}}
	wantErr(t, o.Validate(), "render.root: "+dir+"/app belongs to uid 65533")
}

// Ensure that a folder of a set may belong to the user of the set, and to no other.
func TestSetFolderOfItsUser(t *testing.T) {
	asRoot(t)
	dir := t.TempDir() + "/set"
	set := Set{Directory: dir, User: strconv.Itoa(neighbour), Files: []SetFile{{Name: "f", Content: inline(`x`)}}}
	mustRender(t, mustNew(t, newFakeSource(), Options{Sets: []Set{set}}))
	mustRender(t, mustNew(t, newFakeSource(), Options{Sets: []Set{set}}))
	must(t, os.Chown(dir, 1, 1))
	wantErr(t, Options{Sets: []Set{set}}.Validate(), dir+" belongs to uid 1 ")
}

// Ensure that a pid file of another user signals that user's processes only, also by way of a
// link to a file of root.
func TestPIDFileOfAnotherUser(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/app", 0o755))
	must(t, os.Chown(dir+"/app", neighbour, neighbour))
	pidOf := func(uid uint32) string {
		cmd := exec.Command("sleep", "600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true}}
		must(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return strconv.Itoa(cmd.Process.Pid)
	}
	ours, theirs := pidOf(0), pidOf(neighbour)
	file := dir + "/app/pid"
	signal := func(content string) error {
		mustWrite(t, file, content)
		must(t, os.Chown(file, neighbour, neighbour))
		return runHook(t, &Hook{PIDFile: file, Signal: "CONT"}, discard)
	}
	must(t, signal(theirs))
	wantErr(t, signal(ours), file+" belongs to uid 65533 and names a process of uid 0")
	if err := signal("2147483646"); !errors.Is(err, errNoProcess) {
		t.Errorf("no process: %v", err)
	}
	mustWrite(t, dir+"/pid", ours)
	must(t, runHook(t, &Hook{PIDFile: dir + "/pid", Signal: "CONT"}, discard))
	must(t, os.Remove(file))
	must(t, os.Symlink(dir+"/pid", file))
	must(t, os.Lchown(file, neighbour, neighbour))
	wantErr(t, runHook(t, &Hook{PIDFile: file, Signal: "CONT"}, discard), dir+"/app belongs to uid 65533")
}
