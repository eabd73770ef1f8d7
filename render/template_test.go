package render

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"secretagent/upstream"
)

const marker = "hunter2-MARKER-0xC0FFEE"

// Ensure that no error of any helper, and no error of the template engine, quotes a value.
func TestErrorsNeverQuoteAValue(t *testing.T) {
	src := sourceOf("plain", marker, "object", `{"password":"`+marker+`","n":null,"list":["`+marker+`"]}`, "broken", `{"password":"`+marker)
	p := `(secret "plain")`
	templates := []string{
		`{{ secretJSON "plain" }}`, `{{ secretJSON "broken" }}`, `{{ secretField "plain" "x" }}`, `{{ secretField "broken" "x" }}`,
		`{{ secretField "object" ` + p + ` }}`, `{{ secretField "object" "n" }}`, `{{ secret ` + p + ` }}`, `{{ secretOr (print "::" ` + p + `) "x" }}`,
		`{{ secretVersion "plain" (print "#" ` + p + `) }}`, `{{ secretVersion "plain" ` + p + ` }}`,
		`{{ parseJSON ` + p + ` }}`, `{{ fromJson ` + p + ` }}`, `{{ parseYAML (print "a: [" ` + p + `) }}`, `{{ parseTOML ` + p + ` }}`, `{{ toTOML ` + p + ` }}`,
		`{{ base64Decode ` + p + ` }}`, `{{ b64dec ` + p + ` }}`, `{{ b32dec ` + p + ` }}`, `{{ base64URLDecode (print "*" ` + p + `) }}`,
		`{{ fail ` + p + ` }}`, `{{ int ` + p + ` }}`, `{{ atoi ` + p + ` }}`, `{{ float64 ` + p + ` }}`, `{{ toDecimal ` + p + ` | fail }}`,
		`{{ range ` + p + ` }}{{ end }}`, `{{ index ` + p + ` 99 }}`, `{{ index ` + p + ` "x" }}`, `{{ slice ` + p + ` 1 0 }}`,
		`{{ (secretJSON "object").missing }}`, `{{ (secretJSON "object").n }}`, `{{ (secretJSON "object").password.x }}`, `{{ (secretJSON "object").list }}`, `{{ secretJSON "object" }}`,
		`{{ index (secretJSON "object") ` + p + ` }}`, `{{ get (secretJSON "object") ` + p + ` }}`, `{{ get (secretJSON "object") "x" }}`,
		`{{ call ` + p + ` }}`, `{{ len 3 }}{{ ` + p + ` | len | index "x" }}`, `{{ lt ` + p + ` 3 }}`, `{{ eq (secretJSON "object") ` + p + ` }}`,
		`{{ printf "%d" ` + p + ` }}`, `{{ printf "%s %s" ` + p + ` }}`, `{{ print (secretJSON "object").n }}`, `{{ html (secretJSON "object").n }}`,
		`{{ mustRegexMatch ` + p + ` (print "[" ` + p + `) }}`, `{{ regexMatch (print "[" ` + p + `) ` + p + ` }}`, `{{ regexReplaceAll (print "(" ` + p + `) "a" "b" }}`,
		`{{ mustRegexFindAll (print "[" ` + p + `) ` + p + ` 1 }}`, `{{ semver ` + p + ` }}`, `{{ semverCompare ` + p + ` ` + p + ` }}`,
		`{{ mustMerge ` + p + ` ` + p + ` }}`, `{{ mustSlice ` + p + ` 1 }}`, `{{ mustFirst ` + p + ` }}`, `{{ mustAppend ` + p + ` 1 }}`, `{{ mustHas 1 ` + p + ` }}`,
		`{{ mustUniq ` + p + ` }}`, `{{ mustWithout ` + p + ` 1 }}`, `{{ mustChunk 2 ` + p + ` }}`, `{{ chunk 0 ` + p + ` }}`, `{{ dig "a" ` + p + ` }}`, `{{ concat ` + p + ` }}`,
		`{{ urlParse (print "::%zz" ` + p + `) }}`, `{{ urlJoin (dict "host" ` + p + ` "scheme" 3) }}`, `{{ repeat -1 ` + p + ` }}`, `{{ indent -1 ` + p + ` }}`,
		`{{ template "none" ` + p + ` }}`, `{{ define "t" }}{{ .x.y }}{{ end }}{{ template "t" ` + p + ` }}`, `{{ define "` + "t" + `" }}{{ template "t" . }}{{ end }}{{ template "t" ` + p + ` }}`,
		`{{ $x := secretJSON "object" }}{{ $x.password.y.z }}`, `{{ with secretJSON "object" }}{{ .password 3 }}{{ end }}`, `{{ not }}`,
		`{{ mustToDuration ` + p + ` }}`, `{{ toYAML (dict "a" (parseJSON "123456789012345678901234567890")) }}`,
		`{{ substr 5 1 ` + p + ` }}`, `{{ trunc 3 (secretJSON "object") }}`, `{{ mustDeepCopy ` + p + ` | index "k" }}`, `{{ div 1 0 }}`, `{{ mod 1 0 }}`,
		`{{ dict "a" ` + p + ` | set "x" }}`, `{{ set (secretJSON "object") "a" ` + p + ` }}`, `{{ pick (secretJSON "object") ` + p + ` }}`, `{{ ternary ` + p + ` }}`,
	}
	failed := 0
	for _, text := range templates {
		kind, got := renderContent(src, inline("line one\n"+text))
		if kind == "want" {
			continue
		}
		failed++
		for _, piece := range []string{marker, "hunter2", "C0FFEE", "MARKER"} {
			if strings.Contains(got, piece) {
				t.Errorf("%s: the error quotes a value: %s", text, got)
			}
		}
		if !strings.Contains(got, ":2:") && !strings.Contains(got, "not defined") && !strings.Contains(got, ":2: ") {
			t.Errorf("%s: the error does not say where: %s", text, got)
		}
	}
	if failed < 60 {
		t.Errorf("only %d templates failed", failed)
	}
	// The Unwrap chain is printed by careless callers: it must be as quiet.
	doc, err := compile("x", `{{ index (secretJSON "object") `+p+` | fail }}`, "", "", testFuncs)
	must(t, err)
	_, err = computeOne(src, doc)
	for e := err; e != nil; e = errors.Unwrap(e) {
		if strings.Contains(fmt.Sprintf("%v %+v %#v", e, e, e), marker) {
			t.Errorf("a wrapped error quotes a value: %#v", e)
		}
	}
}

// Ensure that what a template may not do is not there, and says why.
func TestHermeticFunctions(t *testing.T) {
	for _, name := range []string{
		"env", "expandenv", "getHostByName", "now", "date", "ago", "toDate", "htmlDate", "randAlphaNum", "randBytes", "randInt", "uuidv4", "shuffle",
		"genPrivateKey", "genCA", "genSelfSignedCert", "genSignedCert", "buildCustomCert", "bcrypt", "htpasswd", "encryptAES",
	} {
		_, err := compile("x.tmpl", "a\n{{ "+name+" }}", "", "", testFuncs)
		if err == nil || !strings.Contains(err.Error(), "x.tmpl:2:4:") || !strings.Contains(err.Error(), "environment") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"file", "writeToFile", "plugin", "nonsense"} {
		if _, err := compile("x.tmpl", "{{ "+name+" }}", "", "", testFuncs); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	// The same input gives the same bytes, maps included.
	src := sourceOf("o", `{"c":1,"a":2,"b":3,"d":4,"e":5,"f":6}`)
	text := `{{ $o := secretJSON "o" }}{{ keys $o | join "," }} {{ values $o | join "," }} {{ toJSON $o }} {{ toYAML $o }} {{ range $k, $v := $o }}{{ $k }}{{ $v }}{{ end }}`
	_, first := renderContent(src, inline(text))
	for range 50 {
		wantRender(t, src, text, first)
	}
}

func TestSecretOr(t *testing.T) {
	src := newFakeSource()
	text := `{{ secretOr "a" "default" }}`
	wantRender(t, src, text, "default")
	for _, err := range []error{
		unavailable(), &upstream.Error{Err: upstream.ErrAccessDenied}, &upstream.Error{Err: upstream.ErrThrottled},
		&upstream.Error{Err: upstream.ErrPendingDeletion}, context.DeadlineExceeded,
	} {
		src.fail("a", err)
		if kind, got := renderContent(src, inline(text)); kind != "error" {
			t.Errorf("%v: the default hides it: %q", err, got)
		}
	}
	src.fail("a", nil)
	src.put("a", "value")
	wantRender(t, src, text, "value")
}

// followed is a renderer of one template whose references are known from the second render on.
func followed(t *testing.T, src Source, text string) (render func(want string)) {
	dest := t.TempDir() + "/f"
	r := mustNew(t, src, Options{Targets: []Target{fileAt(dest, text)}})
	return func(want string) {
		t.Helper()
		mustRender(t, r)
		wantFile(t, dest, want)
	}
}

// Ensure that absent secrets with a default do not keep the others from being read together,
// and that one which is needed elsewhere is still an error.
func TestSecretOrBesideOthers(t *testing.T) {
	src := sourceOf("a", "1", "b", "2")
	render := followed(t, src, `{{ secret "a" }}{{ secretOr "no" "-" }}{{ secret "b" }}{{ secretOr "none" "-" }}`)
	render("1-2-")
	render("1-2-")
	src.put("none", "3")
	render("1-23")
	if kind, _ := renderContent(src, inline(`{{ secretOr "no" "-" }}{{ secret "no" }}`)); kind != "error" {
		t.Error("a missing secret that is needed was not an error")
	}
}

// Ensure that what a template writes is made of one moment, although it learns only while it
// executes what to read, and that a source which never rests gives an error, not an endless loop
// and not a mix.
func TestOneMoment(t *testing.T) {
	for _, rotations := range []int{3, 1000} {
		src := sourceOf("a", "0", "b", "0", "c", "0")
		n := 0
		src.before = func([]upstream.SecretRef) { // every read meets a rotation
			if n < rotations {
				n++
				v := fmt.Sprint(n)
				src.put("a", v, "b", v, "c", v)
			}
		}
		kind, got := renderContent(src, inline(`{{ secret "a" }}{{ secret "b" }}{{ secret "c" }}`))
		if kind == "want" && got != strings.Repeat(got[:len(got)/3], 3) || rotations == 3 && (kind != "want" || n != 3) || n > 100 {
			t.Errorf("%d of %d rotations: %s %q", n, rotations, kind, got)
		}
	}
}

// Ensure that a template which fails only because it saw two moments is executed again.
func TestMixedMomentIsNoError(t *testing.T) {
	src := sourceOf("which", "old", "old", "x")
	once := false
	src.before = func(refs []upstream.SecretRef) {
		if refs[0].SecretName == "old" && !once { // between the two reads "old" goes away
			once = true
			src.drop("old")
			src.put("which", "new", "new", "y")
		}
	}
	// "old" is asked for although "which" says "new" by then: not found, nothing to repeat.
	text := `{{ secret (secret "which") }}`
	if kind, got := renderContent(src, inline(text)); kind != "error" || strings.Contains(got, `"old"`) {
		t.Errorf("%s %q", kind, got)
	}
	wantRender(t, src, text, "y")
}

// Ensure that a secret that is no longer needed may go away.
func TestDependencyThatIsNoLongerUsed(t *testing.T) {
	src := sourceOf("mode", "a", "a", "1", "b", "2")
	render := followed(t, src, `{{ if eq (secret "mode") "a" }}{{ secret "a" }}{{ else }}{{ secret "b" }}{{ end }}`)
	render("1")
	src.put("mode", "b")
	src.drop("a")
	render("2")
}

// Ensure that the usual render of a known template reads the source once.
func TestOneReadWhenDependenciesAreKnown(t *testing.T) {
	src := sourceOf("a", "1", "b", "2", "c", "3")
	render := followed(t, src, `{{ secret "a" }}{{ secret "b" }}{{ secret "c" }}`)
	render("123")
	src.calls = 0
	src.put("b", "4")
	if render("143"); src.calls != 1 {
		t.Errorf("%d reads, want 1", src.calls)
	}
}

// Ensure that a helper that changes an object does not change it for others.
func TestObjectsAreNotShared(t *testing.T) {
	src := sourceOf("o", `{"a":"1"}`)
	text := `{{ $x := set (secretJSON "o") "a" "2" }}{{ $x.a }}{{ (secretJSON "o").a }}{{ secretField "o" "a" }}`
	wantRender(t, src, text, "211")
	wantRender(t, src, text, "211")
}

func TestOutputIsBounded(t *testing.T) {
	src := sourceOf("a", "x")
	for _, text := range []string{
		`{{ repeat 99999999999 (secret "a") }}`, `{{ $s := repeat 1000000 "x" }}{{ range until 60000 }}{{ $s }}{{ end }}`,
		`{{ range until 99999999 }}{{ end }}`, `{{ range untilStep 0 99999999 1 }}{{ end }}`, `{{ indent 999999 "x" }}`,
	} {
		if kind, got := renderContent(src, inline(text)); kind != "error" || len(got) > 1000 {
			t.Errorf("%s: %s, %d bytes", text, kind, len(got))
		}
	}
}

func TestTemplateFiles(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir+"/x.tmpl", "\ufeff<<secret \"a\">> {{ stays }}\n")
	mustRender(t, mustNew(t, sourceOf("a", "v"), Options{Targets: []Target{{
		Content: Content{Source: dir + "/x.tmpl", LeftDelim: "<<", RightDelim: ">>"}, Destination: dir + "/out", NoSync: true,
	}}}))
	wantFile(t, dir+"/out", "v {{ stays }}\n")
	// Nor is what an editor put before a secret content.
	wantRender(t, sourceOf("a", "\ufeff{\"b\":\"c\"}"), `{{ (secretJSON "a").b }}{{ secretField "a" "b" }}{{ (parseJSON (secret "a")).b }}{{ (parseYAML (secret "a")).b }}`, "cccc")
	// An empty template, and one that only defines, render an empty file.
	wantRender(t, newFakeSource(), "{{/* nothing */}}", "")
	wantRender(t, newFakeSource(), `{{ define "x" }}y{{ end }}`, "")
}

// Ensure that exactly the bytes that came from an action or from a secret count as values, in
// every line of a value.
func TestValuesAreKnownByPlace(t *testing.T) {
	src := sourceOf("a", "AA", "b", "", "s", `{"A":"one\ntwo's\n\n3","B":"b"}`)
	template, err := compile("x", `x={{ secret "a" }};y={{ secret "a" | lower }}{{ secret "b" }};{{ define "t" }}[{{ . }}]{{ end }}{{ template "t" (secret "a") }}{{ $v := secret "a" }}`, "", "", testFuncs)
	must(t, err)
	for format, want := range map[Format]string{
		"": "x=[masked];y=[masked];[[masked]]", Shell: "A=[masked]/[masked]/[masked]/[masked]/B=[masked]", JSON: `{/  "A": [masked],/  "B": [masked]/}`,
		YAML: "A: [masked]/B: [masked]", TOML: "A = [masked]/B = [masked]", Properties: "A=[masked]/B=[masked]",
	} {
		c := content(template)
		if format != "" {
			c = &formatContent{format: format, secrets: []FormatSecret{{Ref: ref("s")}}}
		}
		out, err := computeOne(src, c)
		must(t, err)
		var got []string
		for _, l := range out.lines() {
			got = append(got, l.String())
		}
		if strings.Join(got, "/") != want {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
}

// FuzzTemplate holds that a template of any text never makes an error that quotes a secret,
// and never panics.
func FuzzTemplate(f *testing.F) {
	const canary = "QxZcanaryZxQ"
	shapes := []string{canary, `{"a":"` + canary + `"}`, `["` + canary + `",1,null]`, `{"a":{"b":["` + canary + `"]}}`, `{"` + canary, "-1" + canary}
	for _, seed := range []string{
		`{{ secret "a" }}`, `{{ (secretJSON "a").b }}`, `{{ range secretJSON "a" }}{{ . }}{{ end }}`, `{{ printf "%d" (secret "a") }}`, `{{ index (secret "a") 100 }}`,
		`{{ secretField "a" "b" | int }}`, `{{ fail (secret "a") }}`, `{{ secretVersion "a" (secret "a") }}`, `{{ parseYAML (secret "a") | toTOML }}`, `{{ dict "x" (secret "a") | toJSON | b64dec }}`,
	} {
		for i := range shapes {
			f.Add(seed, byte(i))
		}
	}
	f.Fuzz(func(t *testing.T, text string, shape byte) {
		if len(text) > 300 || strings.Contains(text, "range") && strings.ContainsAny(text, "0123456789") {
			t.Skip("a loop over a number takes as long as it says")
		}
		src := sourceOf("a", shapes[int(shape)%len(shapes)])
		if kind, got := renderContent(src, inline(text)); kind == "error" && strings.Contains(got, "QxZ") && !strings.Contains(text, "QxZ") {
			t.Errorf("%q: %s", text, got)
		}
	})
}
