package render

import (
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// Ensure that a secret is in the files it is meant for and nowhere else: not in the log, the
// status, the errors, the events, the state folder, a temporary file, or the printed form of
// any exported value.
func TestNothingLeaks(t *testing.T) {
	if _, err := exec.LookPath("/bin/sh"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	src := newFakeSource()
	put := func(v string) { src.put("db", `{"password":"`+marker+v+`","n":null}`, "plain", marker+v) }
	put("-1")
	var log, printed upstreamtest.Buffer
	bad := `{{ index (secretJSON "db") "password" 99 | int }}`
	opts := Options{
		Targets: []Target{
			hooked(dir+"/out/ok", `{{ secretField "db" "password" }}`, sh("cat "+dir+"/out/ok; cat "+dir+"/out/ok >&2; exit 3")),
			fileAt(dir+"/out/bad", bad),
			fileAt(dir+"/out/null", `{{ (secretJSON "db").n }}`),
			{Content: Content{Format: Env, Secrets: []FormatSecret{{Ref: ref("plain")}}}, Destination: dir + "/out/env", NoSync: true},
			{Content: Content{Format: PEM, Secrets: []FormatSecret{{Ref: ref("plain")}}}, Destination: dir + "/out/pem", NoSync: true},
			fileAt(dir+"/out/gone", `{{ secret (secret "plain") }}`),
		},
		Sets:     []Set{{Directory: dir + "/out/set", NoSync: true, Files: []SetFile{{Name: "x", Content: inline(`{{ secret "plain" }}`)}, {Name: "y", Content: inline(bad)}}}},
		StateDir: dir + "/state", Logger: log.Logger(), Partial: true,
		Observe: func(e Event) { fmt.Fprintf(&printed, "%v %+v %#v\n", e, e, e) },
	}
	r := mustNew(t, src, opts)
	printAll := func(err error) {
		for _, v := range []any{err, r.Status(), opts.Targets, opts.Sets} {
			fmt.Fprintf(&printed, "%v %+v %#v %s %q\n", v, v, v, v, v)
		}
		_, why := r.Ready()
		fmt.Fprintln(&printed, why)
		for _, u := range r.targets { // what a debugger's %+v of our own types would show
			fmt.Fprintf(&printed, "%v %+v\n", u.values, u.failure)
		}
		if m, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range m.Unwrap() {
				fmt.Fprintf(&printed, "%+v %#v\n", e, e)
			}
		}
	}
	printAll(r.RenderOnce(t.Context()))
	put("-2")
	printAll(r.RenderOnce(t.Context()))
	diffs, err := r.Diff(t.Context())
	fmt.Fprintf(&printed, "%v %+v %v\n", diffs, diffs, err)
	stop := start(t, r)
	put("-3")
	eventually(t, "render", holds(dir+"/out/ok", marker+"-3"))
	src.fail("plain", &upstream.Error{Err: upstream.ErrUnavailable})
	stop()
	printAll(nil)

	for name, text := range map[string]string{"log": log.String(), "printed values": printed.String()} {
		if at := strings.Index(text, "hunter2"); at >= 0 {
			t.Errorf("%s: …%s…", name, text[max(0, at-300):min(len(text), at+60)])
		}
		if len(text) < 500 {
			t.Errorf("%s: only %d bytes", name, len(text))
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if path != dir+"/out/ok" && strings.Contains(mustRead(t, path), "hunter2") {
			t.Errorf("%s holds the secret", path)
		}
		fi, err := d.Info()
		if err == nil && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, fi.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
