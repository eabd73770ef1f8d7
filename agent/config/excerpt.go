package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/token"
)

// masked stands for text that is not shown.
const masked = "…"

// excerpts adds the offending line to every problem. Of the line only punctuation, keys
// and the values of keys that hold no secret are shown; whatever else stands there may be a secret.
func (d *decoder) excerpts(src []byte, tokens token.Tokens) {
	lines := maskedLines(src, tokens, d.shown)
	for _, e := range d.found {
		if e.Line > 0 && e.Line <= len(lines) {
			e.Excerpt = excerpt(lines[e.Line-1], e.Line, e.Column)
		}
	}
}

// maskedLines returns the lines of src with every token masked that is neither punctuation
// nor in shown. A masked token reaches to the start of the next one, whatever lies between.
func maskedLines(src []byte, tokens token.Tokens, shown map[position]bool) []string {
	lines := make([][]rune, 0, 64)
	for line := range strings.SplitSeq(string(src), "\n") {
		lines = append(lines, []rune(strings.TrimSuffix(line, "\r")))
	}
	// 1. Blank out what is masked with a rune that stands for nothing else.
	const blank = '\uFFFF'
	end := position{len(lines) + 1, 1}
	for i, tk := range tokens {
		if punctuation(tk) || shown[tokenPosition(tk)] {
			continue
		}
		from, to := tokenPosition(tk), end
		if i+1 < len(tokens) {
			to = tokenPosition(tokens[i+1])
		}
		for l := from.line; l <= min(to.line, len(lines)); l++ {
			line := lines[l-1]
			first, last := 0, len(line)
			if l == from.line {
				first = from.column - 1
			}
			if l == to.line {
				last = min(to.column-1, len(line))
			}
			for l != from.line && first < last && line[first] == ' ' { // its indentation stays
				first++
			}
			for c := first; c < last; c++ {
				line[c] = blank
			}
		}
	}
	// 2. Write each run of blanks as one mark.
	out := make([]string, len(lines))
	for i, line := range lines {
		var b strings.Builder
		for c, r := range line {
			switch {
			case r != blank:
				b.WriteRune(r)
			case c == 0 || line[c-1] != blank:
				b.WriteString(masked)
			default:
				b.WriteByte(' ') // keeps the columns
			}
		}
		out[i] = strings.TrimRight(b.String(), " \t")
	}
	return out
}

// punctuation reports whether tk is YAML's own and says nothing.
func punctuation(tk *token.Token) bool {
	switch tk.Type {
	case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType, token.CollectEntryType,
		token.MappingStartType, token.MappingEndType, token.SequenceStartType, token.SequenceEndType,
		token.DocumentHeaderType, token.LiteralType, token.FoldedType, token.NullType, token.ImplicitNullType:
		return true
	}
	return false
}

var (
	topLevelKey = regexp.MustCompile(`^[a-z]+:`)
	anyKey      = regexp.MustCompile(`([\pL\pN_-]+)["']?\s*:`)
	lineStart   = regexp.MustCompile(`^[ -]*([A-Za-z]+:)?`)
)

// syntaxExcerpt returns line n of a document that does not parse, so that nothing is known
// about its values. It is shown unless a key on it or before it, in the same top-level
// section, is unknown or holds a secret.
func syntaxExcerpt(src []byte, n, column int) string {
	lines := strings.Split(string(src), "\n")
	if n < 1 || n > len(lines) {
		return ""
	}
	plain := plainKeys(reflect.TypeFor[Config]())
	hidden, unclosed := false, false
	for _, line := range lines[:n] {
		if topLevelKey.MatchString(line) && !unclosed {
			hidden = false
		}
		for _, at := range anyKey.FindAllStringSubmatchIndex(line, -1) {
			if slices.Contains(plain, line[at[2]:at[3]]) {
				continue
			}
			value := line[at[1]:]
			hidden = true
			unclosed = unclosed || strings.Count(value, `"`)%2 == 1 || strings.Count(value, "'")%2 == 1
			break // the rest of the line is hidden, and counted, with it
		}
	}
	line := strings.TrimRight(lines[n-1], " \t\r")
	if text := strings.TrimLeft(line, " \t"); text != line { // to be seen
		line = strings.ReplaceAll(line[:len(line)-len(text)], "\t", "→") + text
	}
	if hidden {
		if start := lineStart.FindString(line); len(start) < len(line) {
			line = start + " " + masked
		}
	}
	return excerpt(line, n, column)
}

// plainKeys returns the names of all keys below t whose values are no secrets.
func plainKeys(t reflect.Type) []string {
	var names []string
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || isScalar(t) {
		return nil
	}
	for _, f := range fieldsOf(t) {
		if !f.hidden {
			names = append(names, f.name)
		}
		names = append(names, plainKeys(f.typ)...)
	}
	return names
}

// excerpt formats a line with its number and a mark below the column.
func excerpt(line string, number, column int) string {
	const most = 120
	runes := []rune(strings.Map(printable, line))
	column = min(column, len(runes)+1)
	prefix := ""
	if column > most {
		cut := column - most/2
		runes, column, prefix = runes[cut:], column-cut+len([]rune(masked)), masked
	}
	if len(runes) > most {
		runes = append(runes[:most:most], []rune(masked)...)
	}
	return fmt.Sprintf("%6d | %s%s\n       | %s^\n", number, prefix, string(runes), strings.Repeat(" ", column-1))
}

// printable keeps a terminal from being driven by the file.
func printable(r rune) rune {
	if r == '\t' {
		return ' '
	}
	if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
		return '\uFFFD'
	}
	return r
}
