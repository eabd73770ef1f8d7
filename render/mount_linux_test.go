package render

import (
	"syscall"
	"testing"

	"secretagent/upstream/upstreamtest"
)

// Ensure that a file that is mounted into its place is refused with what to do about it: before
// anything is read, where the kernel tells, and otherwise when the rename fails. A folder that is
// mounted is the way to do it.
func TestMountPoints(t *testing.T) {
	if !upstreamtest.InMountNamespace(t) {
		return
	}
	mount := func(from, to string) {
		t.Helper()
		must(t, syscall.Mount(from, to, "", syscall.MS_BIND, ""))
		t.Cleanup(func() { _ = syscall.Unmount(to, syscall.MNT_DETACH) })
	}
	dir := t.TempDir()
	for _, name := range []string{"/host/f", "/out/f", "/set/tls.key", "/good/.keep"} {
		mustWrite(t, dir+name, "host")
	}
	src := sourceOf("a", "1", "crt", "c", "key", "k")
	opts := Options{Targets: []Target{fileAt(dir+"/out/f", `{{ secret "a" }}`)}, Sets: []Set{pairSet(dir + "/set")}}
	early := mustNew(t, src, Options{Targets: opts.Targets})
	mount(dir+"/host/f", dir+"/out/f")
	mount(dir+"/host/f", dir+"/set/tls.key")
	wantErr(t, early.RenderOnce(t.Context()), dir+"/out/f is a mount point, which no rename can replace: mount the folder, not the file")
	wantNames(t, dir+"/out", "f")

	_, err := New(src, opts)
	wantErr(t, err, "templates[0].destination: "+dir+"/out/f: is a mount point, which no rename can replace: mount the folder, not the file\n"+
		"sets[0].files[1].name: tls.key: is a mount point")

	mount(dir+"/host", dir+"/good")
	opts.Targets[0].Destination, opts.Sets[0].Directory = dir+"/good/f", dir+"/good/set"
	mustRender(t, mustNew(t, src, opts))
	wantFile(t, dir+"/host/f", "1")
	mount(dir+"/out", dir+"/good/set")
	opts.Targets = nil
	mustRender(t, mustNew(t, src, opts))
}
