package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const exampleFile = "../../agent.example.yaml"

func TestExampleFileLoads(t *testing.T) {
	cfg, err := Load(exampleFile)
	must(t, err)
	root, err := filepath.Abs("../..")
	must(t, err)
	if l := cfg.Upstream.Local; l == nil || string(l.Seed[0].Data.Reveal()) != `{"username":"app","password":"first"}` ||
		l.API.Socket != Path(filepath.Join(root, "var/run/kms.sock")) || l.API.Listen != "" {
		t.Errorf("local %+v", l)
	}
	if e := cfg.Endpoint; e.Listen != "127.0.0.1:2025" || e.TokenFile != Path(filepath.Join(root, "var/run/token")) {
		t.Errorf("endpoint %+v", e)
	}
	if m := cfg.Templates[0]; m.Destination != Path(filepath.Join(root, "var/rendered/app.env")) || m.Mode != 0o600 {
		t.Errorf("template %+v", m)
	}
}

// TestExampleFileIsComplete holds that the example shows every key of the schema, and the
// default of every key that has one, once the lines that begin with "#" and no space are set.
func TestExampleFileIsComplete(t *testing.T) {
	src, err := os.ReadFile(exampleFile)
	must(t, err)
	src = regexp.MustCompile(`(?m)^( *)#([^ #\n])`).ReplaceAll(src, []byte("$1$2"))
	body, _, problem := parseSyntax(exampleFile, src)
	if problem != nil {
		t.Fatalf("%v\n%s", problem, problem.Excerpt)
	}
	// Without the checks: alternatives that exclude each other stand side by side here.
	d := newDecoder(exampleFile, folders{"/", "/var"})
	cfg := reflect.New(reflect.TypeFor[Config]()).Elem()
	d.document(body, cfg)
	if len(d.found) > 0 {
		t.Fatal(d.found.Report())
	}
	given := map[string][]reflect.Value{} // :: key without indexes → its values
	collect(d, cfg, "", given)
	seen := 0
	eachKey(cfg.Type(), "", func(key string, f field) {
		seen++
		values, ok := given[key]
		if !ok {
			t.Errorf("%s is missing", key)
			return
		}
		if !f.hasDefault {
			return
		}
		want := fallbackOf(f, folders{"/", "/var"}).Interface()
		if !slices.ContainsFunc(values, func(v reflect.Value) bool { return reflect.DeepEqual(v.Interface(), want) }) {
			t.Errorf("%s: the default, %s, is not shown", key, f.fallback)
		}
	})
	if seen < 150 {
		t.Errorf("only %d keys", seen)
	}
}

var index = regexp.MustCompile(`\[\d+\]`)

// collect walks v and notes the values of all keys that the file gives.
func collect(d *decoder, v reflect.Value, at string, given map[string][]reflect.Value) {
	switch {
	case v.Kind() == reflect.Pointer:
		if !v.IsNil() {
			collect(d, v.Elem(), at, given)
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			collect(d, v.Index(i), key("%s[%d]", at, i), given)
		}
	case v.Kind() == reflect.Struct && !isScalar(v.Type()):
		for _, f := range fieldsOf(v.Type()) {
			path := joinKey(at, f.name)
			if d.has(path) {
				plain := index.ReplaceAllString(path, "[]")
				given[plain] = append(given[plain], v.FieldByIndex(f.index))
			}
			collect(d, v.FieldByIndex(f.index), path, given)
		}
	}
}

// eachKey calls fn for every key of the schema.
func eachKey(t reflect.Type, at string, fn func(key string, f field)) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Slice {
		eachKey(t.Elem(), at+"[]", fn)
		return
	}
	if t.Kind() != reflect.Struct || isScalar(t) {
		return
	}
	for _, f := range fieldsOf(t) {
		fn(joinKey(at, f.name), f)
		eachKey(f.typ, joinKey(at, f.name), fn)
	}
}

// TestTagsAreReadable reads every tag of the schema, which the compiler cannot.
func TestTagsAreReadable(t *testing.T) {
	known := []string{"yaml", "default", "min", "max", "enum", "required", "off", "path", "show", "short", "address"}
	tags := regexp.MustCompile(`(\w+):"`)
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch {
		case isScalar(typ), typ.Kind() == reflect.Map && typ.Key().Kind() == reflect.String && (isScalar(typ.Elem()) || typ.Elem() == unitSecretsType):
		case typ.Kind() == reflect.Pointer, typ.Kind() == reflect.Slice:
			walk(typ.Elem())
		case typ.Kind() == reflect.Struct:
			for i := range typ.NumField() {
				sf := typ.Field(i)
				if sf.IsExported() && sf.Tag.Get("yaml") == "" {
					t.Errorf("%s.%s has no key", typ, sf.Name)
				}
				for _, m := range tags.FindAllStringSubmatch(string(sf.Tag), -1) {
					if !slices.Contains(known, m[1]) {
						t.Errorf("%s.%s: unknown tag %s", typ, sf.Name, m[1])
					}
				}
				if sf.IsExported() {
					walk(sf.Type)
				}
			}
		default:
			t.Errorf("no YAML form for %s", typ)
		}
	}
	walk(reflect.TypeFor[Config]())
	eachKey(reflect.TypeFor[Config](), "", func(key string, f field) {
		elem := f.typ
		if elem.Kind() == reflect.Slice {
			elem = elem.Elem()
		}
		bounded := bound(elem, f.min).IsValid() || bound(elem, f.max).IsValid()
		if !f.hasDefault {
			return
		}
		v := fallbackOf(f, folders{"/", "/var"})
		if bounded {
			must(t, checkRange(v, f.min, f.max))
		}
		if len(f.enum) > 0 && !slices.Contains(f.enum, f.fallback) {
			t.Errorf("%s: the default %s is not one of %s", key, f.fallback, strings.Join(f.enum, ", "))
		}
	})
}

// TestDocumentedConfigurationsNeedOneFolder reads what the documentation shows as the image does:
// mounted into /etc/secretagent by itself, where nothing can be written and no other file is.
func TestDocumentedConfigurationsNeedOneFolder(t *testing.T) {
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	var configurations []string
	for _, page := range []string{"../../README.md", "../command/help/configuration.md"} {
		text, err := os.ReadFile(page)
		must(t, err)
		found := block.FindAllSubmatch(text, -1)
		if len(found) == 0 {
			t.Errorf("%s shows no configuration", page)
		}
		for _, m := range found {
			configurations = append(configurations, string(m[1]))
		}
	}
	text, err := os.ReadFile(exampleFile)
	must(t, err)
	for _, src := range append(configurations, string(text), "upstream: {alibaba: {endpoints: [{region: cn-hangzhou}]}}") {
		if !strings.Contains(src, "upstream:") {
			continue // part of one
		}
		t.Setenv("STATE_DIRECTORY", stateSystem)
		cfg, err := Source{File: fileSystem}.Parse([]byte(src))
		if err != nil {
			t.Errorf("%v\n%s", err, src)
			continue
		}
		eachPath(schema{}, reflect.ValueOf(cfg), "", func(_ field, key string, path *Path) {
			if !strings.HasPrefix(string(*path), stateSystem+"/") {
				t.Errorf("%s: %s is not in the state directory:\n%s", key, *path, src)
			}
		})
	}
}
