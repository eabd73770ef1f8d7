package render

import (
	"encoding/base64"
	"encoding/json"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"secretagent/upstream"
)

const (
	masked = "[masked]"

	// minMasked is the shortest value that is masked. Anything shorter is found everywhere in
	// ordinary text: masking it would make the text unreadable and show, by its gaps, what
	// the value is.
	minMasked = 4
)

// masker replaces known values in text.
type masker struct{ values []string }

// newMasker knows values, each field of those that are JSON, each line of those that have
// several, the pieces between characters that often mean something, of which a program shows one
// when it cannot read a file, and the common encodings of all of them.
func newMasker(values []upstream.SecretValue) *masker {
	seen := map[string]bool{}
	add := func(s string) {
		if len(s) >= minMasked {
			seen[s] = true
		}
	}
	addAll := func(s string) { // in every encoding
		for _, line := range append(strings.Split(s, "\n"), s) {
			line = strings.TrimSpace(line)
			add(line)
			add(base64.StdEncoding.EncodeToString([]byte(line)))
			add(base64.RawURLEncoding.EncodeToString([]byte(line)))
			add(url.QueryEscape(line))
			add(unescapedMarks.Replace(url.QueryEscape(line))) // as JavaScript and jq do
			add(strings.ReplaceAll(url.QueryEscape(line), "+", "%20"))
			add(propertiesKey(line))
			add(propertiesValue(line))
			if decoded, ok := upstream.DecodeBase64([]byte(line)); ok {
				add(string(decoded))
			}
			for _, quote := range []func(string) (string, error){shellQuote, pgpassEscape, iniQuote, phpQuote, func(s string) (string, error) { return toJSON(s) }, jsonInJSON} {
				if quoted, err := quote(line); err == nil {
					add(strings.Trim(quoted, `'"`))
				}
			}
		}
	}
	addText := func(s string) {
		addAll(s)
		for piece := range strings.FieldsFuncSeq(s, separates) {
			add(piece)
		}
	}
	var fields func(v any)
	fields = func(v any) {
		switch v := v.(type) {
		case string:
			addText(v)
		case json.Number:
			add(v.String())
		case map[string]any:
			for _, e := range v {
				fields(e)
			}
		case []any:
			for _, e := range v {
				fields(e)
			}
		}
	}
	for _, value := range values {
		raw := value.SecretData.Reveal()
		if v, err := decodeJSON(raw); err == nil {
			addAll(string(raw)) // its pieces are the names of fields as well
			fields(v)
		} else {
			addText(string(raw))
		}
	}
	return &masker{values: slices.Collect(maps.Keys(seen))}
}

// unescapedMarks makes of a part of a URL as Go writes it that of encodeURIComponent.
var unescapedMarks = strings.NewReplacer("+", "%20", "%21", "!", "%27", "'", "%28", "(", "%29", ")", "%2A", "*")

// jsonInJSON returns s as it is spelled in JSON text that is a string of other JSON text, as in
// what the commands of a rotation get.
func jsonInJSON(s string) (string, error) {
	inner, err := toJSON(s)
	if err != nil {
		return "", err
	}
	return toJSON(inner[1 : len(inner)-1])
}

// separates reports whether r ends a word in the syntax of most files.
func separates(r rune) bool {
	return unicode.IsSpace(r) || strings.ContainsRune("\"'`,;#=(){}[]<>|&$\\", r)
}

// occurrences yields where part is in text, also where it overlaps itself.
func occurrences(text, part string) iter.Seq[int] {
	return func(yield func(int) bool) {
		for at := 0; ; at++ {
			i := strings.Index(text[at:], part)
			if i < 0 || !yield(at+i) {
				return
			}
			at += i
		}
	}
}

// mask returns text without the values. cut says that text was cut off at its end, where a
// piece of a value may have remained.
func (m *masker) mask(text string, cut bool) string {
	hidden := make([]bool, len(text)) // values may overlap
	hide := func(from, to int) {
		for i := from; i < to; i++ {
			hidden[i] = true
		}
	}
	// A shell's echo takes some of the backslashes of a quoted value away: they do not count.
	var bare []byte
	var origin []int // of each byte of bare, in text
	for i := range len(text) {
		if text[i] != '\\' {
			bare, origin = append(bare, text[i]), append(origin, i)
		}
	}
	plain := string(bare)
	for _, v := range m.values {
		for at := range occurrences(text, v) {
			hide(at, at+len(v))
		}
		if short := strings.ReplaceAll(v, `\`, ""); len(short) >= minMasked {
			for at := range occurrences(plain, short) {
				hide(origin[at], origin[at+len(short)-1]+1)
			}
		}
		for n := min(len(v)-1, len(text)); cut && n > 0; n-- {
			if strings.HasSuffix(text, v[:n]) {
				hide(len(text)-n, len(text))
				break
			}
		}
	}
	var b strings.Builder
	for i := range len(text) {
		switch {
		case !hidden[i]:
			b.WriteByte(text[i])
		case i == 0 || !hidden[i-1]:
			b.WriteString(masked)
		}
	}
	return b.String()
}
