package kmsserver

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFormDecoding(t *testing.T) {
	for raw, want := range map[string]params{
		"":                             {},
		"&&":                           {},
		"a=1&b=2":                      {"a": "1", "b": "2"},
		"a=b=c":                        {"a": "b=c"},
		"a":                            {"a": ""},
		"a+b=c+d%2B%20":                {"a b": "c d+ "},
		"a=;b=1":                       {"a": ";b=1"},
		"%E6%95%B0=%e6%8d%ae":          {"数": "据"},
		"Tag.1.Key=x":                  {"Tag.1.Key": "x"},
		"a=%00%ff":                     {"a": "\x00\xff"},
		"n=" + strings.Repeat("x", 99): {"n": strings.Repeat("x", 99)},
	} {
		got := params{}
		if err := got.addForm([]byte(raw)); err != nil || !maps.Equal(got, want) {
			t.Errorf("%.30q: %v, %v", raw, got, err)
		}
	}
	many := strings.Builder{}
	for i := range maxParams + 1 {
		many.WriteString("&" + strings.Repeat("n", i%200+1) + string(rune('a'+i/200)) + "=")
	}
	for _, raw := range []string{"=1", "a=1&a=1", "a=%", "a=%4", "a=%4g", "%=1", "a=1&%61=2", "%ff=1", strings.Repeat("n", maxParamName+1) + "=", many.String()} {
		if err := (params{}).addForm([]byte(raw)); err == nil {
			t.Errorf("%.30q is accepted", raw)
		}
	}
}

func TestJSONDecoding(t *testing.T) {
	for raw, want := range map[string]params{
		`{}`:                                     {},
		` { "a" : "x" , "b" : true, "c":12.5 } `: {"a": "x", "b": "true", "c": "12.5"},
		`{"a":null,"b":false}`:                   {"b": "false"},
		`{"a":["x", {"k":  1}],"b":{"c": []}}`:   {"a": `["x",{"k":1}]`, "b": `{"c":[]}`},
		`{"a":"\ud83d\udd11\u00e9\\ud83d\"\n"}`:  {"a": "🔑é\\ud83d\"\n"},
		`{"a":"\ufffd"}`:                         {"a": "\ufffd"},
		`{"n":12345678901234567890}`:             {"n": "12345678901234567890"},
	} {
		got := params{}
		if err := got.addJSON([]byte(raw)); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v", raw, got, err)
		}
	}
	for _, raw := range []string{
		``, `[]`, `"x"`, `{`, `{"a"}`, `{"a":}`, `{"a":1`, `{"a":1}x`, `{"a":1}{}`, `{"a":1,"a":1}`, `{"a":1,"\u0061":1}`, `{"":1}`,
		`{"a":"\ud83d"}`, `{"a":"\ud83dx"}`, `{"a":"\udd11"}`, `{"a":"\udd11\ud83d"}`, `{"a":"\ud83d\n\udd11"}`, "{\"a\":\"\xff\"}", "{\"a\":\"\n\"}", `{a:1}`,
	} {
		if err := (params{}).addJSON([]byte(raw)); err == nil {
			t.Errorf("%s is accepted", raw)
		}
	}
}

// What is decoded must encode canonically to something that decodes to the same.
func FuzzForm(f *testing.F) {
	for _, seed := range []string{"a=1&b=2", "a+b=%2B", "%E6%95%B0=%e6", "a=%", "=&&=", "SecretData=%7B%22a%22%3A%22b+c%22%7D&Tag.1.Key=k", "a=%C3%A9%2A~%2B&%00=%FF"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := params{}
		if err := p.addForm(raw); err != nil {
			return
		}
		canonical := p.canonical("")
		again := params{}
		if err := again.addForm([]byte(canonical)); err != nil || !maps.Equal(p, again) {
			t.Fatalf("%q decodes to %v, whose form %q decodes to %v, %v", raw, p, canonical, again, err)
		}
		if strings.ContainsAny(canonical, "+* ") || again.canonical("") != canonical {
			t.Fatalf("%q is not canonical", canonical)
		}
	})
}

// Strings must come out of a JSON body as the standard library reads them, and never
// altered.
func FuzzJSON(f *testing.F) {
	for _, seed := range []string{`{"a":"b"}`, `{"a":"\ud83d\udd11"}`, `{"a":"\ud83d"}`, `{"a":{"b":[1,true,null]}}`, `{"a":1e400}`, "{\"a\":\"\xff\"}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := params{}
		if err := p.addJSON(raw); err != nil {
			return
		}
		var standard map[string]any
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.UseNumber()
		if err := dec.Decode(&standard); err != nil {
			t.Fatalf("%q is accepted: %v", raw, err)
		}
		for name, value := range p {
			if !utf8.ValidString(value) {
				t.Fatalf("%q: %q is not UTF-8", raw, value)
			}
			if want, ok := standard[name].(string); ok && want != value {
				t.Fatalf("%q: %s is %q, want %q", raw, name, value, want)
			}
			encoded, _ := json.Marshal(map[string]string{name: value})
			again := params{}
			if err := again.addJSON(encoded); err != nil || again[name] != value {
				t.Fatalf("%q does not survive: %q, %v", value, again[name], err)
			}
		}
	})
}
