package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"secretagent/upstream"
)

const (
	maxFileSize = 1 << 20
	maxDepth    = 32 // the schema needs 8
)

// Where [Find] looks, in this order.
const (
	fileHere    = "agent.yaml"
	fileSystem  = "/etc/secretagent/agent.yaml"
	fileExample = "agent.example.yaml" // so that a fresh clone runs
)

// EnvFile is the environment variable that names the configuration file.
const EnvFile = "SECRETAGENT_CONFIG"

// Find returns the path of the configuration file: explicit if it is set, else what
// getenv(EnvFile) says, else the first that exists of agent.yaml in dir,
// /etc/secretagent/agent.yaml and agent.example.yaml in dir. An explicit path is not checked
// for existence. The error, when nothing is found, names the places.
func Find(explicit string, getenv func(string) string, dir string) (string, error) {
	if explicit != "" {
		return explicit, nil
	}
	if path := getenv(EnvFile); path != "" {
		return path, nil
	}
	candidates := []string{filepath.Join(dir, fileHere), fileSystem, filepath.Join(dir, fileExample)}
	for _, path := range candidates {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no configuration file: looked for %s; name one with --config or %s",
		strings.Join(candidates, ", "), EnvFile)
}

// Rules are what the parts of the agent demand of a configuration beyond its shape. The error is
// [upstream.OptionErrors], with keys from the top of the file. It may be called with a
// configuration that lacks what the file has wrong.
type Rules func(*Config) error

// Load is [Source.Load] of the file at path.
func Load(path string, rules ...Rules) (*Config, error) { return Source{File: path}.Load(rules...) }

// Load reads the file and checks its shape and then the rules, so that every problem is told at
// once. The error, when there is one, is [Problems].
func (s Source) Load(rules ...Rules) (*Config, error) {
	src, err := readFile(s.File)
	if err != nil {
		return nil, unreadable(s.File, err)
	}
	return s.Parse(src, rules...)
}

// unreadable says that the file at path cannot be read because of err.
func unreadable(path string, err error) Problems {
	reason := err.Error()
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		reason = pathErr.Err.Error()
	}
	if errors.Is(err, syscall.EISDIR) {
		reason += "; docker makes one where a file that it is to mount is missing: mount the folder that the file is in"
	}
	return Problems{{File: path, Reason: reason, Err: err}}
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(src) > maxFileSize {
		err = errors.New("is larger than 1 MiB, the most that is read")
	}
	return src, err
}

// Parse checks src, the content of the file at path, which itself is not read: path serves
// messages and relative paths. Otherwise it is as [Load].
func Parse(path string, src []byte, rules ...Rules) (*Config, error) {
	return Source{File: path}.Parse(src, rules...)
}

// Parse is [Source.Load] of src, the content of the file, which itself is not read.
func (s Source) Parse(src []byte, rules ...Rules) (*Config, error) {
	found, at, err := s.find()
	if err != nil {
		return nil, Problems{{File: s.File, Reason: err.Error(), Err: err}}
	}
	body, tokens, syntaxErr := parseSyntax(s.File, src)
	if syntaxErr != nil {
		return nil, Problems{syntaxErr}
	}
	d := newDecoder(s.File, at)
	cfg := &Config{source: found}
	d.document(body, reflect.ValueOf(cfg).Elem())
	if _, ok := pairsOf(body); ok {
		cfg.check(d)
		for _, rule := range rules {
			d.addAll(rule(cfg))
		}
	}
	if len(d.found) > 0 {
		d.excerpts(src, tokens)
		return nil, d.sorted()
	}
	cfg.watched = cfg.watchedFiles(d.schema)
	return cfg, nil
}

func newDecoder(file string, folders folders) *decoder {
	return &decoder{
		problems: &problems{file: file, seen: map[string]bool{}, at: map[string]position{}},
		schema:   schema{},
		folders:  folders,
		shown:    map[position]bool{},
	}
}

// parseSyntax returns the body of the one document in src, nil when there is none.
func parseSyntax(path string, src []byte) (body ast.Node, tokens token.Tokens, problem *Error) {
	at := func(pos position, reason string) *Error {
		return &Error{
			File: path, Line: pos.line, Column: pos.column, Reason: reason,
			Excerpt: syntaxExcerpt(src, pos.line, pos.column),
		}
	}
	defer func() {
		if r := recover(); r != nil { // a parser that panics must not take the agent down on reload
			body, tokens, problem = nil, nil, at(position{1, 1}, "this is not YAML: the parser gave up")
		}
	}()
	src = upstream.TrimBOM(src)
	for i, line := range bytes.Split(src, []byte("\n")) {
		if !utf8.Valid(line) {
			return nil, nil, at(position{i + 1, 1}, "this line is not UTF-8 text")
		}
		if bytes.ContainsRune(line, 0) {
			return nil, nil, at(position{i + 1, 1}, "this line contains a NUL character")
		}
	}
	tokens = lexer.Tokenize(string(src))
	if pos, deep := tooDeep(tokens); deep {
		return nil, nil, at(pos, fmt.Sprintf("sections and lists are nested more than %d deep", maxDepth))
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		pos, reason := position{1, 1}, "this is not YAML"
		if yamlErr, ok := errors.AsType[yaml.Error](err); ok {
			pos = tokenPosition(yamlErr.GetToken())
			reason = "not YAML: " + syntaxReason(yamlErr.GetMessage(), src, pos.line)
		}
		return nil, nil, at(pos, reason)
	}
	docs := file.Docs
	for len(docs) > 0 && docs[0].Body == nil {
		docs = docs[1:]
	}
	if len(docs) == 0 {
		return nil, tokens, nil
	}
	for _, doc := range docs[1:] {
		if doc.Body != nil {
			return nil, nil, at(positionOf(doc.Body), "a second document starts here: a configuration has one")
		}
	}
	return docs[0].Body, tokens, nil
}

// syntaxReason returns a message of the parser without what it quotes from the document,
// which may be part of a secret.
func syntaxReason(msg string, src []byte, line int) string {
	if strings.Contains(msg, "found character '\t'") {
		return "a tab indents this line: use spaces"
	}
	if strings.HasSuffix(msg, "not allowed in this context") {
		if mistake := indentMistake(src, line); mistake != "" {
			return "this line " + mistake
		}
	}
	for _, prefix := range []string{"found unknown escape character", "found invalid tag character"} {
		if strings.HasPrefix(msg, prefix) {
			return prefix
		}
	}
	msg, _, _ = strings.Cut(msg, `"`)
	return strings.ReplaceAll(strings.TrimRight(msg, ": "), "\t", `\t`)
}

// tooDeep bounds the recursion of the parser.
func tooDeep(tokens token.Tokens) (position, bool) {
	flow, run, column := 0, 0, 0
	var open []int // columns of the blocks around the token
	for _, tk := range tokens {
		pos := tokenPosition(tk)
		switch tk.Type {
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			flow = max(flow-1, 0)
		}
		switch tk.Type { // indicators that nest without a line of their own: "- - - x", "? ? x"
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType, token.AliasType:
			run++
		case token.StringType, token.CommentType, token.SpaceType:
		default:
			run = 0
		}
		column = pos.column
		for len(open) > 0 && open[len(open)-1] >= column {
			open = open[:len(open)-1]
		}
		if tk.PreviousType() == token.UnknownType || tk.Prev != nil && tk.Prev.Position.Line < pos.line {
			open = append(open, column)
			run = 0
		}
		if flow+run+len(open) > maxDepth {
			return pos, true
		}
	}
	return position{}, false
}
