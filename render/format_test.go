package render

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"github.com/goccy/go-yaml"

	"secretagent/upstream"
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
	for name, parse := range map[string]func(*testing.T, string) map[string]string{
		"shell": parseEnvWithShell, "shell, strictly": parseEnvStrictly, "properties": parseProperties,
		"json": parseWith(json.Unmarshal), "yaml": parseWith(yaml.Unmarshal), "toml": parseWith(toml.Unmarshal),
	} {
		t.Run(name, func(t *testing.T) {
			format, _, _ := strings.Cut(name, ",")
			object := map[string]string{}
			for i, v := range awkward {
				object[fmt.Sprintf("KEY_%03d", i)] = v
				if v != "" && format != "shell" {
					object[v] = fmt.Sprint(i) // as a name
				}
			}
			if format != "shell" {
				object["nul"] = "a\x00b"
			}
			kind, text := renderSecret(t, Format(format), object)
			if kind != "want" {
				t.Fatal(text)
			}
			if got := parse(t, text); !maps.Equal(got, object) {
				for key, want := range object {
					if got[key] != want {
						t.Errorf("%q: got %q, want %q", key, got[key], want)
					}
				}
				t.Errorf("%d entries, want %d", len(got), len(object))
			}
		})
	}
}

// readers read back what each format writes.
var readers = map[Format]func(*testing.T, string) map[string]string{
	Env: parseAsAll, Shell: parseEnvStrictly, Docker: parsePlain, Properties: parseProperties,
	JSON: parseWith(json.Unmarshal), YAML: parseWith(yaml.Unmarshal), TOML: parseWith(toml.Unmarshal),
}

// Ensure that no format is without a reader: FuzzFormats tries them all. TestRawBytes and TestPEM have
// those that write no names.
func TestEveryFormatIsReadBack(t *testing.T) {
	for _, format := range formats {
		if f := Format(format); readers[f] == nil && f != Raw && f != PEM {
			t.Errorf("format %s: nothing reads back what it writes", format)
		}
	}
}

// renderSecret writes a secret in a format. kind is want or error.
func renderSecret(t *testing.T, format Format, secret any) (kind, text string) {
	t.Helper()
	data, ok := secret.(string)
	if !ok {
		b, err := json.Marshal(secret)
		must(t, err)
		data = string(b)
	}
	src := sourceOf("s", data)
	return renderContent(src, Content{Format: format, Secrets: []FormatSecret{{Ref: ref("s")}}})
}

// Ensure that numbers, lists and objects keep their meaning.
func TestFormatsKeepTypes(t *testing.T) {
	secret := `{"i":9007199254740993,"neg":-5,"f":0.1,"e":1e5,"t":true,"list":[1,"two",{"a":[]}],"o":{"k":"v: #","n":{"x":1}}}`
	want := decodeAny(t, json.Unmarshal, secret)
	for format, unmarshal := range map[Format]func([]byte, any) error{JSON: json.Unmarshal, YAML: yaml.Unmarshal, TOML: toml.Unmarshal} {
		_, text := renderSecret(t, format, secret)
		if got := decodeAny(t, unmarshal, text); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", format, got, want)
		}
		if !strings.Contains(text, "9007199254740993") {
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
	must(t, err)
	var again any
	must(t, json.Unmarshal(b, &again))
	b, _ = json.Marshal(again)
	return string(b)
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
	must(t, err)
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
		c := uint16(s[i])
		if c == '\\' {
			if i++; i == len(s) {
				t.Fatal("the line continues")
			}
			c = uint16(s[i])
			switch at := strings.IndexByte("tnrf", s[i]); {
			case at >= 0:
				c = uint16("\t\n\r\f"[at])
			case s[i] == 'u':
				n, err := strconv.ParseUint(s[i+1:i+5], 16, 16)
				must(t, err)
				c = uint16(n)
				i += 4
			}
		}
		units = append(units, c)
	}
	return string(utf16.Decode(units))
}

// Ensure that what a format cannot carry is refused and not mangled.
func TestFormatsRefuse(t *testing.T) {
	for _, c := range []struct {
		secret string
		format Format
		spec   FormatSecret
		want   string
	}{
		{`{"A":"x\u0000y"}`, Env, FormatSecret{}, "NUL"},
		{`{"A":null}`, Env, FormatSecret{}, "null"},
		{`{"A":"x\u0000y"}`, Shell, FormatSecret{}, "NUL"},
		{`{"A.b-c":"x\ny"}`, Docker, FormatSecret{}, "A.b-c, from secret s:ACSCurrent: it holds a line break"},
		{`{"1A":"x"}`, Docker, FormatSecret{}, "entry 1 of 1"},
		{`{"a":"b"}`, JSON, FormatSecret{Decode: DecodeBase64}, "must be none"},
		{`no base64`, Raw, FormatSecret{Decode: DecodeBase64}, "not base64"},
		{`{"a":"AAEC"}`, Raw, FormatSecret{Field: "a", Decode: DecodeAuto}, "type of the secret as a whole"},
		{`{"a":"\ud800"}`, JSON, FormatSecret{}, "half of a surrogate pair"},
		{`{"a":"b","c":"\udc00"}`, Raw, FormatSecret{Field: "a"}, "half of a surrogate pair"},
		{`{"A":null}`, Properties, FormatSecret{}, "null"},
		{`{"A":{"b":[null]}}`, TOML, FormatSecret{}, "null"},
		{`{"A":12345678901234567890}`, TOML, FormatSecret{}, "64 bits"},
		{`{"A":1e999}`, TOML, FormatSecret{}, "too large"},
		{`plain`, JSON, FormatSecret{}, "set key"},
		{`[1]`, JSON, FormatSecret{}, "not a JSON object"},
		{"\xff\xfe", JSON, FormatSecret{Key: "k"}, "UTF-8"},
		{`plain`, PEM, FormatSecret{}, "PEM"},
		{`{"a":1}`, Raw, FormatSecret{Field: "b"}, `no field "b"`},
		{`{"a":null}`, Raw, FormatSecret{Field: "a"}, "is null"},
		{`{"a":1}`, JSON, FormatSecret{Keys: map[string]string{"b": "c"}}, `no key "b"`},
		{`{"a":1,"A":2}`, JSON, FormatSecret{Case: UpperCase}, "same name"},
		{`{"` + marker + ` x":"` + marker + `"}`, Env, FormatSecret{}, "entry 1 of 1"},
	} {
		src := sourceOf("s", c.secret)
		c.spec.Ref = ref("s")
		kind, got := renderContent(src, Content{Format: c.format, Secrets: []FormatSecret{c.spec}})
		if kind != "error" || !strings.Contains(got, c.want) || strings.Contains(got, marker) {
			t.Errorf("%s of %s: %s %q, want %q", c.format, c.secret, kind, got, c.want)
		}
	}
}

// Ensure that raw writes the bytes that base64 stands for where that is asked for, and that auto
// goes by the type of the secret.
func TestRawBytes(t *testing.T) {
	src := sourceOf("text", "AAEC", "object", `{"p12":"AAEC"}`)
	for _, name := range []string{"binary", "marked"} {
		src.values[ref(name).WithDefaults()] = upstream.SecretValue{
			VersionID: "v1", SecretDataType: upstream.DataTypeBinary,
			SecretData: upstream.NewSecretData([]byte(map[string]string{"binary": "AAEC\n", "marked": "no base64"}[name])),
		}
	}
	for _, c := range []struct {
		secret, field string
		decode        Decode
		want          string
	}{
		{"binary", "", "", "AAEC\n"}, {"binary", "", DecodeNone, "AAEC\n"}, {"binary", "", DecodeBase64, "\x00\x01\x02"}, {"binary", "", DecodeAuto, "\x00\x01\x02"},
		{"text", "", DecodeAuto, "AAEC"}, {"text", "", DecodeBase64, "\x00\x01\x02"},
		{"object", "p12", DecodeBase64, "\x00\x01\x02"}, {"marked", "", DecodeNone, "no base64"},
		{"marked", "", DecodeAuto, "secret marked:ACSCurrent is not base64, which decode: auto expects"},
	} {
		spec := FormatSecret{Ref: ref(c.secret), Field: c.field, Decode: c.decode}
		if _, got := renderContent(src, Content{Format: Raw, Secrets: []FormatSecret{spec}}); got != c.want {
			t.Errorf("%+v: got %q", c, got)
		}
	}
	wantRender(t, src, `{{ secret "binary" | base64Decode }}`, "\x00\x01\x02")
}

func TestPEM(t *testing.T) {
	block := func(typ string) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: []byte(strings.Repeat("x", 100))}))
	}
	cert, key := block("CERTIFICATE"), block("PRIVATE KEY")
	for text, want := range map[string]string{
		cert: "want", cert + key: "want", "subject=x\n" + cert: "want", strings.TrimSuffix(cert, "\n"): "want", cert + "\n\n": "want",
		"": "error", "\n": "error", cert[:100]: "error", cert + key[:80]: "error", cert + "trailing": "error", key[:80] + "\n" + cert: "error",
		strings.Replace(cert, "END CERTIFICATE", "END KEY", 1): "error", strings.Replace(cert, "eHh4", "e*h4", 1): "error",
	} {
		if kind, got := renderSecret(t, PEM, text); kind != want {
			t.Errorf("%q: %s %s", text, kind, got)
		}
	}
	src := sourceOf("cert", strings.TrimSuffix(cert, "\n"), "key", `{"pem":`+strconv.Quote(key)+`}`)
	_, got := renderContent(src, Content{Format: PEM, Secrets: []FormatSecret{{Ref: ref("cert")}, {Ref: ref("key"), Field: "pem"}}})
	if got != cert+key {
		t.Errorf("got %q", got)
	}
}

func TestKeyRules(t *testing.T) {
	src := sourceOf("s", `{"user":"u","pass":"p","port":1}`, "t", "tok")
	for _, c := range []struct {
		secrets []FormatSecret
		want    string
	}{
		{[]FormatSecret{{Ref: ref("s")}}, "pass=p\nport=1\nuser=u\n"},
		{[]FormatSecret{{Ref: ref("s"), Keys: map[string]string{"user": ""}}}, "user=u\n"},
		{[]FormatSecret{{Ref: ref("s"), Field: "user", Prefix: "the_"}}, "the_user=u\n"},
		{[]FormatSecret{{Ref: ref("s"), Keys: map[string]string{"user": "name", "pass": ""}, Prefix: "db_", Case: UpperCase}}, "DB_NAME=u\nDB_PASS=p\n"},
		{[]FormatSecret{{Ref: ref("s"), Keys: map[string]string{"user": "The.User"}, Prefix: "A-", Case: LowerCase, Sanitize: true}}, "a_the_user=u\n"},
		{[]FormatSecret{{Ref: ref("s"), Keys: map[string]string{"port": ""}}, {Ref: ref("t"), Key: "token", Case: UpperCase}}, "TOKEN=tok\nport=1\n"},
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
		object := map[string]string{key: value}
		for format, parse := range readers {
			kind, text := renderSecret(t, format, object)
			switch {
			case kind == "error" && format != Env && format != Shell && format != Docker:
				t.Errorf("%s refuses %q: %q: %s", format, key, value, text)
			case kind == "want" && !maps.Equal(parse(t, text), object):
				t.Errorf("%s: %q: %q became\n%s", format, key, value, text)
			}
		}
		if kind, text := renderSecret(t, Raw, value); kind != "want" || text != value {
			t.Errorf("raw: %q", text)
		}
	})
}
