package convert

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/hashicorp/hcl/hcl/ast"
	hclparser "github.com/hashicorp/hcl/hcl/parser"
	hcltoken "github.com/hashicorp/hcl/hcl/token"
	jsonparser "github.com/hashicorp/hcl/json/parser"
)

// MaxInput is how many bytes a configuration or a template may have.
const MaxInput = 1 << 20

// maxDepth bounds the brackets of a configuration; the deepest that a tool knows has 5.
const maxDepth = 100

// node is a key of a configuration, with its value or the keys below it. A label of HCL counts
// as a key below: listener "tcp" {} is listener { tcp {} }, as in JSON.
type node struct {
	key    string
	line   int      // from 1; 0 when unknown
	kind   kind     //
	text   string   // of a scalar, unquoted
	number bool     // the scalar is a number, in text as it is written
	list   []string // of a list of scalars
	below  []*node  // of a block

	heredoc bool // the scalar's text begins on the line after the key
}

type kind int

const (
	scalar kind = iota
	list
	block
	other // such as a list of lists
)

// InputError says where a file is not what it should be. It never quotes a value.
type InputError struct {
	File   string
	Line   int // from 1; 0 when unknown
	Reason string
}

// Error implements error.
func (e *InputError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Reason)
	}
	return e.File + ": " + e.Reason
}

// checkText refuses what no parser should see.
func checkText(file string, src []byte) error {
	switch {
	case len(src) > MaxInput:
		return &InputError{File: file, Reason: "is larger than 1 MiB, the most that is read"}
	case bytes.IndexByte(src, 0) >= 0 || !validUTF8(src):
		return &InputError{File: file, Reason: "is not UTF-8 text"}
	}
	return nil
}

// checkDepth refuses brackets that are nested so deeply that a parser could run out of stack.
func checkDepth(file string, src []byte) error {
	depth, line := 0, 1
	for _, c := range src {
		switch c {
		case '\n':
			line++
		case '{', '[':
			depth++
		case '}', ']':
			depth = max(0, depth-1)
		}
		if depth > maxDepth {
			return &InputError{file, line, fmt.Sprintf("more than %d brackets are open", maxDepth)}
		}
	}
	return nil
}

// parseHCL reads HCL, or JSON, which the same tools take.
func parseHCL(file string, src []byte) (nodes []*node, err error) {
	// The parser panics where a number or the escapes of a text are malformed.
	defer func() {
		if recover() != nil {
			nodes, err = nil, &InputError{File: file, Reason: "a text or a number in it is malformed"}
		}
	}()
	parse := hclparser.Parse
	if bytes.HasPrefix(bytes.TrimSpace(src), []byte("{")) {
		parse = jsonparser.Parse
	}
	root, err := parse(src)
	if err != nil {
		return nil, hclError(file, err)
	}
	items, ok := root.Node.(*ast.ObjectList)
	if !ok {
		return nil, &InputError{File: file, Reason: "holds no keys"}
	}
	return hclNodes(items), nil
}

var hclPosition = regexp.MustCompile(`^(?:At )?(\d+):\d+: (?:parse error: )?`)

// hclError keeps the line and the reason of a parser's error, but no text of the file.
func hclError(file string, err error) error {
	bad := &InputError{File: file, Reason: err.Error()}
	if at, ok := errors.AsType[*hclparser.PosError](err); ok {
		bad.Line, bad.Reason = at.Pos.Line, at.Err.Error()
	} else if m := hclPosition.FindStringSubmatch(bad.Reason); m != nil {
		bad.Line, _ = strconv.Atoi(m[1])
		bad.Reason = bad.Reason[len(m[0]):]
	}
	for _, quoting := range []string{"nknown token", "The argument", "unquote"} {
		if strings.Contains(bad.Reason, quoting) {
			bad.Reason = "a key, a value or a bracket is not expected here, or a key is set twice"
		}
	}
	bad.Reason = "is not HCL or JSON: " + bad.Reason
	return bad
}

func hclNodes(items *ast.ObjectList) []*node {
	var nodes []*node
	for _, item := range items.Items {
		if len(item.Keys) == 0 {
			continue
		}
		first := &node{key: hclText(item.Keys[0].Token), line: item.Keys[0].Pos().Line}
		last := first
		for _, label := range item.Keys[1:] {
			next := &node{key: hclText(label.Token), line: label.Pos().Line}
			last.kind, last.below = block, []*node{next}
			last = next
		}
		hclValue(last, item.Val)
		nodes = append(nodes, first)
	}
	return nodes
}

func hclValue(n *node, value ast.Node) {
	switch value := value.(type) {
	case *ast.LiteralType:
		n.kind, n.text = scalar, hclText(value.Token)
		n.number, n.heredoc = value.Token.Type == hcltoken.NUMBER, value.Token.Type == hcltoken.HEREDOC
	case *ast.ObjectType:
		n.kind, n.below = block, hclNodes(value.List)
	case *ast.ListType:
		n.kind = list
		for _, element := range value.List {
			switch element := element.(type) {
			case *ast.LiteralType:
				n.list = append(n.list, hclText(element.Token))
			case *ast.ObjectType: // env_template = [{…}]
				n.kind = block
				n.below = append(n.below, hclNodes(element.List)...)
			default:
				n.kind = other
				return
			}
		}
	default:
		n.kind = other
	}
}

// hclText returns the text of a token; of a number as it is written: 0600 stays that.
func hclText(t hcltoken.Token) string {
	switch t.Type {
	case hcltoken.STRING, hcltoken.HEREDOC:
		return t.Value().(string)
	}
	return t.Text
}

// parseTOML reads TOML.
func parseTOML(file string, src []byte) ([]*node, error) {
	var root map[string]any
	meta, err := toml.Decode(string(src), &root)
	if err != nil {
		bad := &InputError{File: file, Reason: "is not TOML"}
		if at, ok := errors.AsType[toml.ParseError](err); ok {
			bad.Line = at.Position.Line
		}
		return nil, bad
	}
	order := map[string]int{}
	for i, key := range meta.Keys() {
		if _, known := order[key.String()]; !known {
			order[key.String()] = i
		}
	}
	return tomlNodes(root, nil, order, tomlLines(src)), nil
}

var (
	tomlTable = regexp.MustCompile(`^\s*\[+\s*([A-Za-z0-9_.-]+)\s*\]`)
	tomlKey   = regexp.MustCompile(`^\s*([A-Za-z0-9_.-]+)\s*=`)
)

// tomlLines returns the lines of keys and tables, as far as they are written plainly.
func tomlLines(src []byte) map[string]int {
	lines, table := map[string]int{}, ""
	for i, text := range strings.Split(string(src), "\n") {
		if m := tomlTable.FindStringSubmatch(text); m != nil {
			table = m[1] + "."
			lines[m[1]] = i + 1
		} else if m := tomlKey.FindStringSubmatch(text); m != nil {
			lines[table+m[1]] = i + 1
		}
	}
	return lines
}

func tomlNodes(table map[string]any, above toml.Key, order, lines map[string]int) []*node {
	var nodes []*node
	for name, value := range table {
		key := append(slices.Clone(above), name)
		n := &node{key: name, line: lines[strings.Join(key, ".")]}
		switch value := value.(type) {
		case map[string]any:
			n.kind, n.below = block, tomlNodes(value, key, order, lines)
		case []any:
			n.kind = list
			for _, element := range value {
				n.list = append(n.list, fmt.Sprint(element))
			}
		case string, bool, int64, float64:
			n.text = fmt.Sprint(value)
			_, n.number = value.(int64)
		default:
			n.kind = other
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b *node) int {
		return order[append(slices.Clone(above), a.key).String()] - order[append(slices.Clone(above), b.key).String()]
	})
	return nodes
}

// texts returns the list, or the one text in place of a list.
func (n *node) texts() []string {
	if n.kind == scalar {
		return []string{n.text}
	}
	return n.list
}

// child returns what stands below under a key, or nil.
func (n *node) child(key string) *node {
	for _, c := range n.below {
		if strings.EqualFold(c.key, key) {
			return c
		}
	}
	return nil
}

// duration reads a duration of Go, or a number of seconds.
func (n *node) duration() (time.Duration, bool) {
	if d, err := time.ParseDuration(n.text); err == nil && d >= 0 {
		return d, true
	}
	seconds, err := strconv.ParseInt(n.text, 10, 32)
	return time.Duration(seconds) * time.Second, err == nil && seconds >= 0
}
