package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"secretagent/upstream"
)

// entry is one key of a file of secrets.
type entry struct {
	key   string
	value upstream.SecretData
	line  int
}

// fileFormats are what files of secrets are written in.
var fileFormats = []string{"env", "json", "yaml"}

// formatOfFile returns the format that the name of a file tells; empty: none.
func formatOfFile(path string) string {
	switch name := strings.ToLower(filepath.Base(path)); {
	case name == ".env", strings.HasPrefix(name, ".env."), strings.HasSuffix(name, ".env"):
		return "env"
	case strings.HasSuffix(name, ".json"):
		return "json"
	case strings.HasSuffix(name, ".yaml"), strings.HasSuffix(name, ".yml"):
		return "yaml"
	}
	return ""
}

// lineError is a mistake in a file of secrets. It quotes nothing of the file, no key either: where a
// quote is missing, a part of a value can look like one.
func lineError(source string, line int, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", source, line, fmt.Sprintf(format, args...))
}

// readEntries returns the entries of a file in their order. The error has every mistake with its line.
func readEntries(format, source string, text []byte) ([]entry, error) {
	var entries []entry
	var err error
	switch format {
	case "env":
		entries, err = readEnv(source, string(text))
	case "json":
		entries, err = readJSON(source, text)
	default:
		entries, err = readYAML(source, text)
	}
	errs := []error{err}
	first := map[string]int{}
	for _, e := range entries {
		if line, twice := first[e.key]; twice {
			errs = append(errs, lineError(source, e.line, "the key is on line %d already", line))
		}
		first[e.key] = e.line
	}
	return entries, errors.Join(errs...)
}

var envLine = regexp.MustCompile(`^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=[ \t]*`)

// readEnv reads NAME=value: bare, in single quotes, which keep everything, or in double quotes with
// escapes. What readers of .env files take differently, it refuses: a secret must not become another
// one by being moved. Quoted values may have several lines.
func readEnv(source, text string) (entries []entry, _ error) {
	var errs []error
	text = strings.TrimPrefix(text, "\ufeff")
	for line := 1; text != ""; {
		this, rest, _ := strings.Cut(text, "\n")
		if trimmed := strings.TrimSpace(this); trimmed == "" || trimmed[0] == '#' {
			text, line = rest, line+1
			continue
		}
		m := envLine.FindStringSubmatch(this)
		if m == nil {
			errs = append(errs, lineError(source, line, "must be NAME=value, with a name of letters, digits and underscores"))
			text, line = rest, line+1
			continue
		}
		value, used, err := envValue(text[len(m[0]):])
		if err != nil {
			errs = append(errs, lineError(source, line, "%v", err))
			text, line = rest, line+1
			continue
		}
		entries = append(entries, entry{m[1], upstream.NewSecretData([]byte(value)), line})
		used += len(m[0])
		line += strings.Count(text[:used], "\n") + 1
		_, text, _ = strings.Cut(text[used:], "\n")
	}
	return entries, errors.Join(errs...)
}

// envValue returns the value at the start of text, and how much of text it and the rest of its line
// take.
func envValue(text string) (value string, used int, err error) {
	if text == "" || text[0] != '\'' && text[0] != '"' {
		line, _, _ := strings.Cut(text, "\n")
		used = len(line)
		if at := regexp.MustCompile(`(^|[ \t])#`).FindStringIndex(line); at != nil {
			line = line[:at[0]]
		}
		if line = strings.TrimSpace(line); strings.ContainsAny(line, "'\"\\`$") {
			return "", 0, errors.New("a value with a quote, \\, ` or $ in it must be in single quotes: readers differ about it")
		}
		return line, used, nil
	}
	quote := text[0]
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		c := text[i]
		switch {
		case c == quote:
			rest, _, _ := strings.Cut(text[i+1:], "\n")
			if after := strings.TrimSpace(rest); after != "" && after[0] != '#' {
				return "", 0, errors.New("there is text after the closing quote")
			}
			return b.String(), i + 1 + len(rest), nil
		case quote == '"' && c == '\\' && i+1 < len(text):
			i++
			meant, known := map[byte]byte{'n': '\n', 'r': '\r', 't': '\t', '"': '"', '\\': '\\', '$': '$', '`': '`'}[text[i]]
			if !known {
				return "", 0, errors.New(`a \ in double quotes must stand before one of n r t " \ $ and a backquote`)
			}
			b.WriteByte(meant)
		case quote == '"' && (c == '$' || c == '`'):
			return "", 0, errors.New("a $ or ` in double quotes means something else to a shell: put a \\ before it, or use single quotes")
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, errors.New("the quote is not closed")
}

// readJSON reads one object. Text is itself; what else a value is, its JSON.
func readJSON(source string, text []byte) (entries []entry, err error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	line := func() int { return bytes.Count(text[:dec.InputOffset()], []byte("\n")) + 1 }
	broken := func() ([]entry, error) { // the decoder's own words may quote the file
		rest := text[dec.InputOffset():]
		next := rest[:len(rest)-len(bytes.TrimLeft(rest, " \t\r\n:,"))]
		return nil, lineError(source, line()+bytes.Count(next, []byte("\n")), "is no JSON object")
	}
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return broken()
	}
	var errs []error
	for dec.More() {
		key, err := dec.Token()
		name, ok := key.(string)
		if err != nil || !ok {
			return broken()
		}
		at := line()
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return broken()
		}
		value, err := upstream.FieldText(raw)
		if err != nil {
			errs = append(errs, lineError(source, at, "the value is null"))
			continue
		}
		entries = append(entries, entry{name, upstream.NewSecretData(value), at})
	}
	if _, err := dec.Token(); err != nil {
		return broken()
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return broken()
	}
	return entries, errors.Join(errs...)
}

// readYAML reads one mapping. A scalar is its text as written, so that 007 stays 007; what else a value
// is, its JSON.
func readYAML(source string, text []byte) (entries []entry, _ error) {
	file, err := parser.ParseBytes(text, 0)
	if err != nil || len(file.Docs) != 1 { // the parser's own words quote the file
		line := 1
		if e, ok := errors.AsType[yaml.Error](err); ok && e.GetToken() != nil {
			line = e.GetToken().Position.Line
		}
		return nil, lineError(source, line, "is no YAML document")
	}
	var pairs []*ast.MappingValueNode
	switch body := file.Docs[0].Body.(type) {
	case *ast.MappingNode:
		pairs = body.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{body}
	default:
		return nil, lineError(source, 1, "is no YAML mapping")
	}
	var errs []error
	for _, pair := range pairs {
		token := pair.Key.GetToken()
		key, at := token.Value, token.Position.Line
		value, err := yamlText(pair.Value)
		if err != nil {
			errs = append(errs, lineError(source, at, "the value %v", err))
			continue
		}
		entries = append(entries, entry{key, upstream.NewSecretData(value), at})
	}
	return entries, errors.Join(errs...)
}

// yamlText returns the text of a value.
func yamlText(node ast.Node) ([]byte, error) {
	switch node := node.(type) {
	case *ast.StringNode:
		return []byte(node.Value), nil
	case *ast.LiteralNode:
		return []byte(node.Value.Value), nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return []byte(node.GetToken().Value), nil
	case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		var v any
		if err := yaml.NodeToValue(node, &v); err != nil {
			return nil, errors.New("is no JSON")
		}
		b, err := json.Marshal(v)
		if err != nil {
			return nil, errors.New("is no JSON")
		}
		return b, nil
	case *ast.NullNode:
		return nil, errors.New("is null")
	}
	return nil, errors.New("must be text, a mapping or a list")
}
