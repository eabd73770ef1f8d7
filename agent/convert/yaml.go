package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

func validUTF8(b []byte) bool { return utf8.Valid(b) }

// mapping is a section of agent.yaml, in the order in which it is made.
type mapping struct {
	keys   []string
	values map[string]any // string, bool, int, time.Duration, []string, contents, *mapping or []*mapping
}

// contents is the text of a template.
type contents string

// set gives key a value, in place of the one that it has.
func (m *mapping) set(key string, value any) {
	if m.values == nil {
		m.values = map[string]any{}
	}
	if _, has := m.values[key]; !has {
		m.keys = append(m.keys, key)
	}
	m.values[key] = value
}

// rename gives the key name and value, in its place.
func (m *mapping) rename(key, name string, value any) {
	m.keys[slices.Index(m.keys, key)] = name
	delete(m.values, key)
	m.values[name] = value
}

func (m *mapping) remove(key string) {
	m.keys = slices.DeleteFunc(m.keys, func(k string) bool { return k == key })
	delete(m.values, key)
}

func (m *mapping) has(key string) bool { _, has := m.values[key]; return has }

// in returns the section key of m, which it makes where it is missing.
func (m *mapping) in(key string) *mapping {
	if sub, ok := m.values[key].(*mapping); ok {
		return sub
	}
	sub := &mapping{}
	m.set(key, sub)
	return sub
}

// add appends an element to the list key of m.
func (m *mapping) add(key string, element *mapping) {
	elements, _ := m.values[key].([]*mapping)
	m.set(key, append(elements, element))
}

// write writes m, its first line after first, the others after the spaces rest.
func (m *mapping) write(b *strings.Builder, first, rest string) {
	for i, key := range m.keys {
		indent := rest
		if i == 0 {
			indent = first
		}
		b.WriteString(indent + key + ":")
		switch v := m.values[key].(type) {
		case *mapping:
			if len(v.keys) == 0 {
				b.WriteString(" {}\n")
				continue
			}
			b.WriteString("\n")
			v.write(b, rest+"  ", rest+"  ")
		case []*mapping:
			b.WriteString("\n")
			for _, element := range v {
				element.write(b, rest+"  - ", rest+"    ")
			}
		case contents:
			b.WriteString(" " + literal(string(v), rest+"  ") + "\n")
		case []string:
			quoted := make([]string, len(v))
			for i, s := range v {
				quoted[i] = yamlText(s)
			}
			b.WriteString(" [" + strings.Join(quoted, ", ") + "]\n")
		case string:
			b.WriteString(" " + yamlText(v) + "\n")
		case time.Duration:
			b.WriteString(" " + shortDuration(v) + "\n")
		default:
			fmt.Fprintf(b, " %v\n", v)
		}
	}
}

var (
	plainText = regexp.MustCompile(`^[./A-Za-z][A-Za-z0-9_./=@+-]*$`)
	notText   = regexp.MustCompile(`(?i)^(true|false|null|yes|no|on|off|y|n|\.nan|[-+.]*\.?inf)$`)
)

// yamlText writes a text in one line.
func yamlText(s string) string {
	if plainText.MatchString(s) && !notText.MatchString(s) {
		return s
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b) // what JSON quotes is read by YAML as it is
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)
	return strings.TrimSuffix(b.String(), "\n")
}

// literal writes a text of several lines for people to read, or where YAML would change it there,
// in one line.
func literal(s, indent string) string {
	body := strings.TrimRight(s, "\n")
	printable := func(r rune) bool { return r == '\n' || r == '\t' || unicode.IsPrint(r) }
	if body == "" || strings.ContainsFunc(body, func(r rune) bool { return !printable(r) }) ||
		strings.HasPrefix(body, "\n") || strings.HasPrefix(body, "\t") {
		return yamlText(s)
	}
	mark := "|"
	if strings.HasPrefix(body, " ") {
		mark = "|2"
	}
	switch strings.Count(s[len(body):], "\n") {
	case 0:
		mark += "-"
		if !strings.Contains(body, "\n") {
			return yamlText(s)
		}
	case 1:
	default:
		return yamlText(s)
	}
	lines := strings.Split(body, "\n")
	for i, line := range lines {
		if strings.TrimRight(line, " \t") != line { // invisible, and not kept by every editor
			return yamlText(s)
		}
		if line != "" {
			lines[i] = indent + line
		}
	}
	return mark + "\n" + strings.Join(lines, "\n")
}

func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// comment writes a text as comments of YAML, so that none of it can be a key.
func comment(b *strings.Builder, indent, text string) {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\ufeff' {
			return ' '
		}
		return r
	}, text)
	const width = 100
	line := "#" + indent
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > width && strings.TrimLeft(line, "# ") != "" {
			b.WriteString(line + "\n")
			line = "#" + indent + "  "
		}
		if !strings.HasSuffix(line, " ") {
			line += " "
		}
		line += word
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}
