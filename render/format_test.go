package render

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"github.com/goccy/go-yaml"
)

// awkward are values that break naive escaping somewhere.
var awkward = []string{
	"", " ", "plain", " leading and trailing ", "two\nlines", "\nstarts and ends\n", "crlf\r\n", "tab\there", "quote's", `"double"`, "'", "''", `\`, `\\`, `\n`, `a\`,
	"$HOME ${HOME} $(id) `id`", "# no comment", "a=b", "a:b", "key: value", "!important", "!", "%d %s", "*", "&anchor", "- list", "[x]", "{x}", "|", ">", "@", "~", "null", "true", "yes", "0", "0x1F", "1e3", "1.5",
	"é", "漢字", "😀", "\u00a0", "\u2028\u2029", "\ufeffbom", "\u200b", "\u0085", "\x01\x1f\x7f", "\u0600", "\U000e0001", "'mix\"ed $`\\\n#=:! é😀", "=", ":", strings.Repeat("long ", 2000), "#", "a#b", "; x", "\f\v",
}

// Ensure that every value survives every format that can carry it, read by a parser that is
// not ours or, where there is none here, by one written from the format's own description.
func TestFormatsRoundTrip(t *testing.T) {
	parsers := map[Format]func(*testing.T, string) map[string]string{
		Env: parseEnvWithShell, JSON: parseWith(json.Unmarshal), YAML: parseWith(yaml.Unmarshal), TOML: parseWith(toml.Unmarshal), Properties: parseProperties,
	}
	for format, parse := range parsers {
		t.Run(string(format), func(t *testing.T) {
			object := map[string]string{}
			for i, v := range awkward {
				object[fmt.Sprintf("KEY_%03d", i)] = v
			}
			if format != Env {
				object["nul"] = "a\x00b"
				for i, key := range awkward { // as names
					if key != "" {
						object[key] = fmt.Sprint(i)
					}
				}
			}
			got := parse(t, renderFormat(t, format, object))
			for key, want := range object {
				if got[key] != want {
					t.Errorf("%q: got %q, want %q", key, got[key], want)
				}
			}
			if len(got) != len(object) {
				t.Errorf("%d entries, want %d", len(got), len(object))
			}
		})
	}
	t.Run("env, strict reader", func(t *testing.T) {
		object := map[string]string{}
		for i, v := range awkward {
			object[fmt.Sprintf("KEY_%03d", i)] = v
		}
		got := parseEnvStrictly(t, renderFormat(t, Env, object))
		for key, want := range object {
			if got[key] != want {
				t.Errorf("%q: got %q, want %q", key, got[key], want)
			}
		}
	})
}

// Ensure that numbers, lists and objects keep their meaning.
func TestFormatsKeepTypes(t *testing.T) {
	secret := `{"i":9007199254740993,"neg":-5,"f":0.1,"e":1e5,"t":true,"list":[1,"two",{"a":[]}],"o":{"k":"v: #","n":{"x":1}}}`
	want := decodeAny(t, json.Unmarshal, secret)
	for format, unmarshal := range map[Format]func([]byte, any) error{JSON: json.Unmarshal, YAML: yaml.Unmarshal, TOML: toml.Unmarshal} {
		src := newFakeSource()
		src.put("s", secret)
		_, text := renderContent(src, Content{Format: format, Secrets: []FormatSecret{{Ref: ref("s")}}})
		if got := decodeAny(t, unmarshal, text); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", format, got, want)
		}
		if format != Env && !strings.Contains(text, "9007199254740993") {
			t.Errorf("%s: the number lost digits: %s", format, text)
		}
	}
}

// decodeAny returns text in one canonical form.
func decodeAny(t *testing.T, unmarshal func([]byte, any) error, text string) string {
	t.Helper()
	var v map[string]any
	if err := unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var again any
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	b, _ = json.Marshal(again)
	return string(b)
}

func renderFormat(t *testing.T, format Format, object map[string]string) string {
	t.Helper()
	b, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	src := newFakeSource()
	src.put("s", string(b))
	kind, text := renderContent(src, Content{Format: format, Secrets: []FormatSecret{{Ref: ref("s")}}})
	if kind != "want" {
		t.Fatalf("%s: %s", format, text)
	}
	return text
}

func parseWith(unmarshal func([]byte, any) error) func(*testing.T, string) map[string]string {
	return func(t *testing.T, text string) map[string]string {
		got := map[string]string{}
		if err := unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		return got
	}
}

// parseEnvWithShell lets sh read the file.
func parseEnvWithShell(t *testing.T, text string) map[string]string {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh here")
	}
	file := t.TempDir() + "/env"
	mustWrite(t, file, text)
	cmd := exec.Command(sh, "-c", `set -a; . "$1"; exec env -0`, "sh", file)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, entry := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if key, value, _ := strings.Cut(entry, "="); strings.HasPrefix(key, "KEY_") {
			got[key] = value
		}
	}
	return got
}

// parseEnvStrictly reads NAME=value the way systemd's EnvironmentFile does: single quotes are
// literal, in double quotes a backslash escapes " \ $ and `.
func parseEnvStrictly(t *testing.T, text string) map[string]string {
	t.Helper()
	got := map[string]string{}
	for text != "" {
		name, rest, ok := strings.Cut(text, "=")
		if !ok || rest == "" {
			t.Fatalf("no = in %q", text)
		}
		var b strings.Builder
		switch rest[0] {
		case '\'':
			value, after, ok := strings.Cut(rest[1:], "'")
			if !ok {
				t.Fatal("open quote")
			}
			b.WriteString(value)
			rest = after
		case '"':
			i := 1
			for ; rest[i] != '"'; i++ {
				if rest[i] == '\\' && strings.IndexByte("\"\\$`", rest[i+1]) >= 0 {
					i++
				}
				b.WriteByte(rest[i])
			}
			rest = rest[i+1:]
		default:
			i := strings.IndexByte(rest, '\n')
			b.WriteString(rest[:i])
			rest = rest[i:]
		}
		if rest == "" || rest[0] != '\n' {
			t.Fatalf("something follows the value of %s", name)
		}
		got[name], text = b.String(), rest[1:]
	}
	return got
}

// parseProperties reads as java.util.Properties.load describes it: ISO 8859-1, logical lines,
// the first unescaped =, : or space ends the key.
func parseProperties(t *testing.T, text string) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		for i := range len(line) {
			if line[i] > 0x7e {
				t.Fatalf("not ASCII: %q", line)
			}
		}
		line = strings.TrimLeft(line, " \t\f")
		if line == "" || line[0] == '#' || line[0] == '!' {
			t.Fatalf("not an entry: %q", line)
		}
		end := 0
		for end < len(line) && strings.IndexByte("=: \t\f", line[end]) < 0 {
			if line[end] == '\\' {
				end++
			}
			end++
		}
		key, value := line[:end], strings.TrimLeft(line[end:], " \t\f")
		if value != "" && (value[0] == '=' || value[0] == ':') {
			value = strings.TrimLeft(value[1:], " \t\f")
		}
		got[unescapeProperties(t, key)] = unescapeProperties(t, value)
	}
	return got
}

func unescapeProperties(t *testing.T, s string) string {
	t.Helper()
	var units []uint16
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '\\' {
			units = append(units, uint16(c))
			continue
		}
		i++
		if i == len(s) {
			t.Fatal("the line continues")
		}
		switch s[i] {
		case 'u':
			n, err := strconv.ParseUint(s[i+1:i+5], 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			units = append(units, uint16(n))
			i += 4
		case 't':
			units = append(units, '\t')
		case 'n':
			units = append(units, '\n')
		case 'r':
			units = append(units, '\r')
		case 'f':
			units = append(units, '\f')
		default:
			units = append(units, uint16(s[i]))
		}
	}
	return string(utf16.Decode(units))
}

// Ensure that what a format cannot carry is refused and not mangled.
func TestFormatsRefuse(t *testing.T) {
	for _, c := range []struct {
		name, secret string
		content      Content
		want         string
	}{
		{"NUL in env", `{"A":"x\u0000y"}`, Content{Format: Env, Secrets: []FormatSecret{{Ref: ref("s")}}}, "NUL"},
		{"null in env", `{"A":null}`, Content{Format: Env, Secrets: []FormatSecret{{Ref: ref("s")}}}, "null"},
		{"null in properties", `{"A":null}`, Content{Format: Properties, Secrets: []FormatSecret{{Ref: ref("s")}}}, "null"},
		{"null in toml", `{"A":{"b":[null]}}`, Content{Format: TOML, Secrets: []FormatSecret{{Ref: ref("s")}}}, "null"},
		{"large number in toml", `{"A":12345678901234567890}`, Content{Format: TOML, Secrets: []FormatSecret{{Ref: ref("s")}}}, "64 bits"},
		{"number beyond float in toml", `{"A":1e999}`, Content{Format: TOML, Secrets: []FormatSecret{{Ref: ref("s")}}}, "too large"},
		{"no object", `plain`, Content{Format: JSON, Secrets: []FormatSecret{{Ref: ref("s")}}}, "set key"},
		{"list", `[1]`, Content{Format: JSON, Secrets: []FormatSecret{{Ref: ref("s")}}}, "not a JSON object"},
		{"not UTF-8", "\xff\xfe", Content{Format: JSON, Secrets: []FormatSecret{{Ref: ref("s"), Key: "k"}}}, "UTF-8"},
		{"no PEM", `plain`, Content{Format: PEM, Secrets: []FormatSecret{{Ref: ref("s")}}}, "PEM"},
		{"missing field of raw", `{"a":1}`, Content{Format: Raw, Secrets: []FormatSecret{{Ref: ref("s"), Field: "b"}}}, `no field "b"`},
		{"null field of raw", `{"a":null}`, Content{Format: Raw, Secrets: []FormatSecret{{Ref: ref("s"), Field: "a"}}}, "is null"},
		{"missing key", `{"a":1}`, Content{Format: JSON, Secrets: []FormatSecret{{Ref: ref("s"), Keys: map[string]string{"b": "c"}}}}, `no key "b"`},
		{"two of one name", `{"a":1,"A":2}`, Content{Format: JSON, Secrets: []FormatSecret{{Ref: ref("s"), UpperCase: true}}}, "same name"},
		{"name with a space in env", `{"` + marker + ` x":"` + marker + `"}`, Content{Format: Env, Secrets: []FormatSecret{{Ref: ref("s")}}}, "entry 1 of 1"},
	} {
		src := newFakeSource()
		src.put("s", c.secret)
		kind, got := renderContent(src, c.content)
		if kind != "error" || !strings.Contains(got, c.want) || strings.Contains(got, marker) {
			t.Errorf("%s: %s %q, want %q", c.name, kind, got, c.want)
		}
	}
}

func TestPEM(t *testing.T) {
	block := func(typ string) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: []byte(strings.Repeat("x", 100))}))
	}
	cert, key := block("CERTIFICATE"), block("PRIVATE KEY")
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{cert, true}, {cert + key, true}, {"subject=x\n" + cert, true}, {strings.TrimSuffix(cert, "\n"), true}, {cert + "\n\n", true},
		{"", false}, {"\n", false}, {cert[:100], false}, {cert + key[:80], false}, {cert + "trailing", false},
		{strings.Replace(cert, "END CERTIFICATE", "END KEY", 1), false}, {strings.Replace(cert, "eHh4", "e*h4", 1), false},
		{key[:80] + "\n" + cert, false},
	} {
		src := newFakeSource()
		src.put("s", c.text)
		kind, got := renderContent(src, Content{Format: PEM, Secrets: []FormatSecret{{Ref: ref("s")}}})
		if kind == "want" != c.ok {
			t.Errorf("%q: %s %s", c.text, kind, got)
		}
	}
	src := newFakeSource()
	src.put("cert", strings.TrimSuffix(cert, "\n"), "key", `{"pem":`+strconv.Quote(key)+`}`)
	_, got := renderContent(src, Content{Format: PEM, Secrets: []FormatSecret{{Ref: ref("cert")}, {Ref: ref("key"), Field: "pem"}}})
	if got != cert+key {
		t.Errorf("got %q", got)
	}
}

func TestKeyRules(t *testing.T) {
	src := newFakeSource()
	src.put("s", `{"user":"u","pass":"p","port":1}`, "t", "tok")
	for _, c := range []struct {
		secrets []FormatSecret
		want    string
	}{
		{[]FormatSecret{{Ref: ref("s")}}, "pass=p\nport=1\nuser=u\n"},
		{[]FormatSecret{{Ref: ref("s"), Keys: map[string]string{"user": ""}}}, "user=u\n"},
		{[]FormatSecret{{Ref: ref("s"), Field: "user", Prefix: "the_"}}, "the_user=u\n"},
		{[]FormatSecret{{Ref: ref("s"), Keys: map[string]string{"user": "name", "pass": ""}, Prefix: "db_", UpperCase: true}}, "DB_NAME=u\nDB_PASS=p\n"},
		{[]FormatSecret{{Ref: ref("s"), Keys: map[string]string{"port": ""}}, {Ref: ref("t"), Key: "token", UpperCase: true}}, "TOKEN=tok\nport=1\n"},
		{[]FormatSecret{{Ref: ref("s"), Key: "all"}}, "all='{\"user\":\"u\",\"pass\":\"p\",\"port\":1}'\n"},
	} {
		if _, got := renderContent(src, Content{Format: Env, Secrets: c.secrets}); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.secrets, got, c.want)
		}
	}
}

// FuzzFormats holds that any text survives every format, or is refused.
func FuzzFormats(f *testing.F) {
	for _, v := range awkward {
		f.Add("k", v)
		f.Add(v, "v")
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			t.Skip("a secret in JSON cannot hold this text")
		}
		b, err := json.Marshal(map[string]string{key: value})
		if err != nil {
			t.Fatal(err)
		}
		src := newFakeSource()
		src.put("s", string(b))
		for format, parse := range map[Format]func(*testing.T, string) map[string]string{
			Env: parseEnvStrictly, JSON: parseWith(json.Unmarshal), YAML: parseWith(yaml.Unmarshal), TOML: parseWith(toml.Unmarshal), Properties: parseProperties,
		} {
			kind, text := renderContent(src, Content{Format: format, Secrets: []FormatSecret{{Ref: ref("s")}}})
			if kind == "error" {
				if format != Env {
					t.Errorf("%s refuses %q: %q: %s", format, key, value, text)
				}
				continue
			}
			if got := parse(t, text); len(got) != 1 || got[key] != value {
				t.Errorf("%s: %q: %q became %q in\n%s", format, key, value, got, text)
			}
		}
		if kind, text := renderContent(src, Content{Format: Raw, Secrets: []FormatSecret{{Ref: ref("s")}}}); kind != "want" || text != string(b) {
			t.Errorf("raw: %q", text)
		}
	})
}

// Ensure that a value of many lines is masked in every one of them.
func TestFormattedValuesAreKnownByPlace(t *testing.T) {
	src := newFakeSource()
	src.put("s", `{"A":"one\ntwo's\n","B":"b"}`)
	for format, want := range map[Format][]string{
		Env: {"A=[masked]", "[masked]", "[masked]", "B=[masked]"}, JSON: {"{", `  "A": [masked],`, `  "B": [masked]`, "}"}, YAML: {"A: [masked]", "B: [masked]"},
		TOML: {"A = [masked]", "B = [masked]"}, Properties: {"A=[masked]", "B=[masked]"},
	} {
		out, err := computeOne(src, &formatContent{format: format, secrets: []FormatSecret{{Ref: ref("s")}}})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range out.lines() {
			got = append(got, l.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
}
