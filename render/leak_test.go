package render

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
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

// TestComputedNamesShowNowhere has templates make names from values: of secrets that are there,
// that are not, that do not fit and that cannot be read, on a source that takes no subscriptions.
func TestComputedNamesShowNowhere(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	src.silent = true
	src.put("pointer", marker, "missing", marker+"-missing", marker, `"harmless"`, marker+":Other", "x", "spelled", "x")
	var log, printed upstreamtest.Buffer
	opts := Options{Logger: log.Logger(), Partial: true, Observe: func(e Event) { fmt.Fprintf(&printed, "%+v\n", e) }}
	for name, template := range map[string]string{
		"there":   `{{ secret (secret "pointer") }}`,
		"labels":  `{{ secret (secret "pointer") }}{{ secret "spelled" }}{{ secret (printf "%s:Other" (secret "pointer")) }}`,
		"gone":    `{{ secret (secret "missing") }}`,
		"or":      `{{ secretOr (secret "missing") "x" }}`,
		"json":    `{{ secretJSON (secret "pointer") }}`,
		"field":   `{{ secretField (secret "pointer") "x" }}`,
		"version": `{{ secretVersion "spelled" (secret "pointer") }}`,
		"invalid": `{{ secret (printf "%s !" (secret "pointer")) }}`,
	} {
		opts.Targets = append(opts.Targets, fileAt(dir+"/"+name, template))
	}
	r := mustNew(t, src, opts)
	render := func() {
		err := r.RenderOnce(t.Context())
		_, why := r.Ready()
		status := r.Status()
		for i, s := range status {
			computed := func(v SecretVersion) bool { return v.Computed }
			if name := filepath.Base(s.Path); (name == "there" || name == "labels") != slices.ContainsFunc(s.Versions, computed) && s.State == Current && name != "or" {
				t.Errorf("versions of %s: %+v", name, s.Versions)
			}
			status[i].Versions = slices.DeleteFunc(s.Versions, computed) // as who shows them does
		}
		fmt.Fprintf(&printed, "%v\n%+v\n%q\n%q\n%+v\n", err, err, err, why, status)
		for _, u := range r.targets {
			fmt.Fprintf(&printed, "%+v\n", u.failure)
		}
	}
	render()
	for _, failure := range []error{
		&upstream.Error{Err: upstream.ErrUnavailable, Message: "no way to " + marker},
		&upstream.Error{Err: upstream.ErrAccessDenied, Message: "not for " + marker},
		errors.New("defect in " + marker),
	} {
		src.fail(marker, failure)
		render()
	}
	src.fail(marker, nil)
	src.fail("spelled", &upstream.Error{Err: upstream.ErrUnavailable, Message: "spelled can be told"})
	render()
	stop := start(t, r)
	eventually(t, "the warning", func() bool { return strings.Contains(log.String(), "too many secrets are watched") })
	stop()
	for name, text := range map[string]string{"log": log.String(), "printed values": printed.String()} {
		if at := strings.Index(text, marker); at >= 0 {
			t.Errorf("%s: …%s…", name, text[max(0, at-300):min(len(text), at+60)])
		}
		for _, told := range []string{"computed", "spelled can be told"} {
			if !strings.Contains(text, told) {
				t.Errorf("%s: %q is not told", name, told)
			}
		}
	}
}
