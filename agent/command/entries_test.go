package command

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"secretagent/agent"
	"secretagent/upstream"
)

// TestWhatIsExportedIsImported writes texts in every format and reads them again. A file that has
// lost a byte gives other texts or an error, never one that quotes a text.
func TestWhatIsExportedIsImported(t *testing.T) {
	const marker = "hunter2"
	value := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z'"\\$#\x60 =\n\t]{0,12}`))
	rapid.Check(t, func(t *rapid.T) {
		texts := map[string]upstream.SecretData{}
		drawn := rapid.MapOfN(rapid.StringMatching(`[A-Za-z_][A-Za-z0-9_]{0,8}`), value, 1, 4).Draw(t, "texts")
		for _, name := range slices.Sorted(maps.Keys(drawn)) {
			text := drawn[name]
			at := rapid.IntRange(0, len(text)).Draw(t, "at")
			if text = text[:at] + marker + text[at:]; utf8.ValidString(text) {
				texts[name] = upstream.NewSecretData([]byte(text))
			}
		}
		for _, format := range []string{"env", "shell", "json", "yaml"} {
			file, err := agent.FormatTexts(format, texts, func(key string) upstream.SecretName { return upstream.SecretName(key) })
			if err != nil { // what not every reader would read alike
				if format == "json" || format == "yaml" || strings.Contains(err.Error(), marker) {
					t.Fatalf("%s: %v", format, err)
				}
				continue
			}
			reader := strings.Replace(format, "shell", "env", 1)
			entries, err := readEntries(reader, "file", file)
			if err != nil {
				t.Fatalf("%s: %v\n%s", format, err, file)
			}
			got := map[string]string{}
			for _, e := range entries {
				got[e.key] = string(e.value.Reveal())
			}
			for name, want := range texts {
				if got[name] != string(want.Reveal()) {
					t.Fatalf("%s: %s is %q, want %q\n%s", format, name, got[name], want.Reveal(), file)
				}
			}
			if len(entries) != len(texts) {
				t.Fatalf("%s: %d entries of %v", format, len(entries), slices.Collect(maps.Keys(texts)))
			}
			if len(file) > 0 {
				at := rapid.IntRange(0, len(file)-1).Draw(t, "lost")
				if _, err := readEntries(reader, "file", slices.Delete(slices.Clone(file), at, at+1)); err != nil && strings.Contains(err.Error(), marker) {
					t.Fatalf("%s: %v", format, err)
				}
			}
		}
	})
}
