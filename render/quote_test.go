package render

import (
	"regexp"
	"strings"
	"testing"
)

// Ensure that format env writes each value in the way that every common reader of .env files
// reads right, found by trying them, and refuses what none of these ways carries.
func TestDotenvQuotes(t *testing.T) {
	for value, want := range map[string]string{
		"": "", "plain": "plain", "a=b": "a=b", "postgres://u:p@h:5432/db?sslmode=x": "postgres://u:p@h:5432/db?sslmode=x", "[x]": "[x]", "{x}": "{x}",
		"a~b": "a~b", "!%*^+,": "!%*^+,", "-x": "-x", "?": "?", "AAE=": "AAE=",

		"~": `"~"`, "~/x": `"~/x"`, "a:~/b": `"a:~/b"`, "a=~b": `"a=~b"`, "=x": `"=x"`, "a b": `"a b"`, " ": `" "`, "it's": `"it's"`, "#": `"#"`, "a#b": `"a#b"`, "(x)": `"(x)"`,
		"a;b": `"a;b"`, "é": `"é"`, "\u00a0": "\"\u00a0\"", "\ufeff": "\"\ufeff\"", "\t": "\"\t\"", "&|<>": `"&|<>"`, "\x01": "\"\x01\"",

		"$HOME": "'$HOME'", "$(id)": "'$(id)'", `a"b`: `'a"b'`, `"`: `'"'`, `{"a":"b"}`: `'{"a":"b"}'`, "`id`": "'`id`'", `a\b`: `'a\b'`, `a\nb`: `'a\nb'`,
		`a="b"`: `'a="b"'`, ` "x`: `' "x'`,

		"two\nlines": "", "cr\r": "", "\v": "", "\u0085": "", "\u2028": "", "a\x00": "", `it's "x"`: "", "it's $5": "", `it's \`: "", "it's `x`": "", "${HOME}": "", "a${": "",
		`a\\b`: "", `a\`: "", ` \a`: "", "\u00a0\\a": "", `a="`: "", `a="\"`: "", `"a"`: "", `""`: "",
	} {
		kind, got := renderSecret(t, Env, map[string]string{"KEY": value})
		switch {
		case want == "" && value != "":
			if kind != "error" || !strings.HasPrefix(got, "KEY, from secret s:ACSCurrent: it ") {
				t.Errorf("%q: %s %q", value, kind, got)
			}
		case kind != "want" || got != "KEY="+want+"\n":
			t.Errorf("%q: %s %q, want %s", value, kind, got, want)
		}
	}
	for _, value := range awkward {
		if kind, text := renderSecret(t, Env, map[string]string{"KEY": value}); kind == "want" && parseAsAll(t, text)["KEY"] != value {
			t.Errorf("%q is written as %s", value, text)
		}
	}
}

// parseAsAll reads a file of format env as several readers do, who must agree.
func parseAsAll(t *testing.T, text string) map[string]string {
	t.Helper()
	got := parseEnvStrictly(t, text)
	for name, want := range got {
		_, written, _ := strings.Cut(text[strings.Index("\n"+text, "\n"+name+"="):], "=")
		written, _, _ = strings.Cut(written, "\n")
		for reader, read := range dotenvReaders {
			if value := read(written); value != want {
				t.Errorf("%s reads %q in place of %q", reader, value, want)
			}
		}
	}
	return got
}

var (
	nodeValue    = regexp.MustCompile("^(?:\\s*'(?:\\\\'|[^'])*'|\\s*\"(?:\\\\\"|[^\"])*\"|\\s*`(?:\\\\`|[^`])*`|[^#\r\n]+)?\\s*(?:#.*)?$")
	pythonEscape = map[byte]*regexp.Regexp{'\'': regexp.MustCompile(`\\([\\'])`), '"': regexp.MustCompile(`\\([\\'"abfnrtv])`)}
	pythonName   = regexp.MustCompile(`\$\{([^}:]*)(?::-([^}]*))?\}`)
	djangoEscape = regexp.MustCompile(`\\(.)`)
)

// dotenvReaders read what follows NAME= on a line, as the sources of the programs say, in what
// tells them apart. What they would not read as a value becomes "unreadable".
var dotenvReaders = map[string]func(string) string{
	"sh": func(s string) string {
		if s != "" && s[0] != '\'' && s[0] != '"' && (s[0] == '~' || strings.Contains(s, ":~")) {
			return "unreadable"
		}
		return inner(s)
	},
	"node": func(s string) string {
		if !nodeValue.MatchString(s) {
			return "unreadable"
		}
		quoted := strings.HasPrefix(s, `"`)
		if s = inner(strings.TrimSpace(s)); quoted {
			s = strings.NewReplacer(`\n`, "\n", `\r`, "\r").Replace(s)
		}
		return s
	},
	"python-dotenv": func(s string) string {
		text := inner(s)
		if s != "" && pythonEscape[s[0]] != nil {
			text = pythonEscape[s[0]].ReplaceAllString(text, "$1")
		}
		return pythonName.ReplaceAllString(text, "")
	},
	"django-environ": func(s string) string {
		if strings.HasPrefix(s, "'") {
			s = inner(s)
		}
		if len(s) > 1 && s[0] == '"' && s[len(s)-1] == '"' {
			s = djangoEscape.ReplaceAllString(inner(s), "$1")
		}
		return s
	},
	"phpdotenv": func(s string) string {
		if line := "K=" + s; strings.Contains(line, `="`) && strings.Count(line, `"`)-strings.Count(line, `\"`) < 2 {
			return "unreadable"
		}
		return inner(s)
	},
	"compose, godotenv": func(s string) string {
		if strings.HasSuffix(s, `\'`) {
			return "unreadable"
		}
		return inner(s)
	},
}

// inner returns what stands in quotes.
func inner(s string) string {
	if len(s) > 1 && strings.ContainsAny(s[:1], "'\"") && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// parsePlain reads NAME=value as docker and kubectl do: up to the end of the line.
func parsePlain(t *testing.T, text string) map[string]string {
	t.Helper()
	got := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		got[name] = value
	}
	return got
}

// Ensure that the helpers for files of other programs write what these read, take everything that
// has a text, and refuse what the file cannot carry.
func TestQuotingHelpers(t *testing.T) {
	src := sourceOf("s", `{"n":1.50,"yes":true,"text":"a\\b:c'd\"e =#!$ é","lines":"a\nb","star":"*","hash":"#x","hashes":"#a:b\\c","php":"${x}","null":null}`)
	for text, want := range map[string]string{
		`{{ (secretJSON "s").n | shellQuote }} {{ (secretJSON "s").yes | shellQuote }} {{ 5 | shellQuote }} {{ "a=b" | shellQuote }} {{ "" | shellQuote }}`: `1.50 true 5 'a=b' ''`,

		`{{ secretField "s" "text" | propertiesEscape }}`:                `a\\b\:c'd"e\ \=\#\!$\ \u00E9`,
		`{{ (secretJSON "s").n | propertiesEscape }}`:                    "1.50",
		`{{ secretField "s" "lines" | propertiesEscape }}`:               `a\nb`,
		`{{ secretField "s" "text" | pgpassEscape }}`:                    `a\\b\:c'd"e =#!$ é`,
		`{{ secretField "s" "star" | pgpassEscape }}`:                    `\*`,
		`{{ secretField "s" "hash" | pgpassEscape }}`:                    `\#x`,
		`{{ secretField "s" "hashes" | pgpassEscape }}`:                  `\#a\:b\\c`,
		`{{ secretField "s" "text" | iniQuote }}`:                        `"a\\b:c'd\"e =#!$ é"`,
		`{{ (secretJSON "s").yes | iniQuote }}`:                          `"true"`,
		`{{ secretField "s" "text" | phpQuote }}`:                        `'a\\b:c\'d"e =#!$ é'`,
		`{{ secretField "s" "lines" | phpQuote }}`:                       "'a\nb'",
		`{{ secretVersionId "s" }} {{ secretVersionId "s:ACSCurrent" }}`: string(src.values[ref("s").WithDefaults()].VersionID + " " + src.values[ref("s").WithDefaults()].VersionID),
	} {
		wantRender(t, src, text, want)
	}
	const bytes = `{{ "/w==" | base64Decode | `
	wantRender(t, src, bytes+`phpQuote }} {{ "\\ufffd \ufffd" | toJSON }}`, "'\xff' \"\\\\ufffd \ufffd\"")
	for text, want := range map[string]string{
		bytes + `toJSON }}`:                            "not UTF-8",
		bytes + `dict "a" | toYAML }}`:                 "not UTF-8",
		bytes + `dict "a" | toTOML }}`:                 "not UTF-8",
		bytes + `propertiesEscape }}`:                  "not UTF-8",
		bytes + `parseYAML }}`:                         "not YAML",
		bytes + `parseJSON }}`:                         "not JSON",
		`{{ secretField "s" "lines" | pgpassEscape }}`: "line break",
		`{{ secretField "s" "lines" | iniQuote }}`:     "line break",
		`{{ secretField "s" "php" | iniQuote }}`:       "phpQuote",
		`{{ (secretJSON "s").null | shellQuote }}`:     "null",
		`{{ secretJSON "s" | phpQuote }}`:              "is an object",
		"{{ \"a\\x00b\" | shellQuote }}":               "NUL",
		`{{ secretVersionId "gone" }}`:                 "gone",
	} {
		if kind, got := renderContent(src, inline(text)); kind != "error" || !strings.Contains(got, want) {
			t.Errorf("%s: %s %q, want %q", text, kind, got, want)
		}
	}
}
