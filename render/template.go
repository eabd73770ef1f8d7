package render

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"secretagent/upstream"
)

// TemplateError says where and why a template cannot be used. It never quotes a value.
type TemplateError struct {
	File   string // path of the template file, or of the destination of an inline one
	Line   int    // from 1
	Column int    // from 1, in bytes; 0 when only the line is known
	Near   string // the template's own text at that place; may be empty
	Reason string // what is wrong and what is allowed
	Err    error  // the source's error behind it; nil when it is the template's own fault
}

// Error returns file, line, column, the text there and the reason.
func (e *TemplateError) Error() string {
	s := e.File + ":" + strconv.Itoa(e.Line)
	if e.Column > 0 {
		s += ":" + strconv.Itoa(e.Column)
	}
	if e.Near != "" {
		s += ": at " + e.Near
	}
	return s + ": " + e.Reason
}

// Unwrap returns the source's error, if that is the cause.
func (e *TemplateError) Unwrap() error { return e.Err }

// refusal is an error of a helper whose text is known to quote no value.
type refusal struct {
	reason string
	err    error // the source's error; may be nil
}

func (r *refusal) Error() string { return r.reason }
func (r *refusal) Unwrap() error { return r.err }

func refuse(format string, args ...any) error {
	return &refusal{reason: fmt.Sprintf(format, args...)}
}

const (
	// templateName stands for the template in the errors of text/template, from which line
	// and column are read.
	templateName = "template"

	// printName is the function appended to every pipeline that is printed. The parser does
	// not know it, so a template cannot call it.
	printName = "_print"
)

// templateContent is a template ready to be executed, by one goroutine at a time.
type templateContent struct {
	file    string
	source  string
	tmpl    *template.Template
	printed map[parse.Pos]string // :: position of a printed pipeline → its text

	// The execution in progress.
	secrets *secretReader
	fields  map[upstream.SecretRef]upstream.Fields // of the secrets that secretField read
	out     *output
	isValue bool // the next write is the value that printName returned
}

// compile parses text, which may call funcs. file is what errors call it.
func compile(file, text, left, right string, funcs template.FuncMap) (*templateContent, error) {
	c := &templateContent{file: file, source: text, printed: map[parse.Pos]string{}}
	own := c.ownFuncs()
	trees, err := parse.Parse(templateName, text, left, right, own, funcs, builtins())
	if err != nil {
		return nil, c.explainParse(err)
	}

	// Only the functions in use are bound: a thousand templates would otherwise hold a
	// thousand copies of the whole table.
	used := template.FuncMap{printName: c.print}
	for _, tree := range trees {
		walk(tree.Root, func(n parse.Node) {
			switch n := n.(type) {
			case *parse.IdentifierNode:
				if fn, ok := own[n.Ident]; ok {
					used[n.Ident] = fn
				} else if fn, ok := funcs[n.Ident]; ok {
					used[n.Ident] = fn
				}
			case *parse.ActionNode:
				c.check(n)
			}
		})
	}
	c.tmpl = template.New(templateName).Option("missingkey=error").Funcs(used)
	for name, tree := range trees {
		if _, err := c.tmpl.AddParseTree(name, tree); err != nil {
			return nil, c.explainParse(err)
		}
	}
	if c.tmpl.Tree == nil { // nothing but definitions, or nothing at all
		if c.tmpl, err = c.tmpl.Parse(""); err != nil {
			return nil, c.explainParse(err)
		}
	}
	return c, nil
}

// check appends the printing function to the pipeline of an action that prints.
func (c *templateContent) check(n *parse.ActionNode) {
	if len(n.Pipe.Decl) > 0 {
		return
	}
	pos := n.Pipe.Position()
	c.printed[pos] = n.Pipe.String()
	ident := parse.NewIdentifier(printName).SetPos(pos)
	n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: pos, Args: []parse.Node{ident}})
}

// walk calls visit for n and everything below it.
func walk(n parse.Node, visit func(parse.Node)) {
	if n == nil || reflect.ValueOf(n).IsNil() {
		return
	}
	var below []parse.Node
	branch := func(b *parse.BranchNode) { below = []parse.Node{b.Pipe, b.List, b.ElseList} }
	switch n := n.(type) {
	case *parse.ListNode:
		below = n.Nodes
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			below = append(below, c)
		}
	case *parse.CommandNode:
		below = n.Args
	case *parse.ActionNode:
		below = []parse.Node{n.Pipe}
	case *parse.ChainNode:
		below = []parse.Node{n.Node}
	case *parse.TemplateNode:
		below = []parse.Node{n.Pipe}
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	}
	for _, c := range below {
		walk(c, visit)
	}
	visit(n)
}

// render implements content.
func (c *templateContent) render(s *secretReader) (*output, error) {
	out := &output{}
	c.secrets, c.fields, c.out, c.isValue = s, map[upstream.SecretRef]upstream.Fields{}, out, false
	defer func() { c.secrets, c.fields, c.out = nil, nil, nil }()
	if err := c.tmpl.Execute(c, nil); err != nil {
		return nil, c.explain(err)
	}
	return out, nil
}

// Write takes what the execution prints. text/template writes the text of the template and
// the result of printName in separate calls.
func (c *templateContent) Write(b []byte) (int, error) {
	if err := c.secrets.ctx.Err(); err != nil {
		return 0, err
	}
	if len(c.out.bytes)+len(b) > maxOutput {
		return 0, refuse("the output is larger than %d bytes", maxOutput)
	}
	if c.isValue {
		c.out.value(string(b))
		c.isValue = false
	} else {
		c.out.text(string(b))
	}
	return len(b), nil
}

// print is printName: it turns a value into the text to write.
func (c *templateContent) print(v any) (string, error) {
	text, err := printable(v)
	c.isValue = err == nil
	return text, err
}

// runtimeMessages are the messages of text/template that hold nothing but types and the
// template's own text. Everything else may quote a value and is not shown.
var runtimeMessages = regexp.MustCompile(`^(?:` + strings.Join([]string{
	`map has no entry for key "[^"]*"`,
	`nil data; no entry for key "[^"]*"`,
	`can't evaluate field \S+ in type \S+`,
	`nil pointer evaluating \S+`,
	`wrong number of args for \S+: want (?:at least )?\d+ got \d+`,
	`wrong type for value; expected \S+; got \S+`,
	`invalid value; expected \S+`,
	`template "[^"]*" not defined`,
	`exceeded maximum template depth \(\d+\)`,
	`can't give argument to non-function \S+`,
	`\S+ has arguments but cannot be invoked as function`,
	`\S+ is not a method but has arguments`,
}, "|") + `)$`)

var (
	vaultData    = regexp.MustCompile(`field Data in type string$|entry for key "Data"$`)
	errorCalling = regexp.MustCompile(`^error calling (\S+): `)
	runtimePlace = regexp.MustCompile(`^template: ` + templateName + `:(\d+):(\d+): executing "(?:[^"\\]|\\.)*" at <`)
	parsePlace   = regexp.MustCompile(`^template: ` + templateName + `:(\d+): `)
	parseQuoted  = regexp.MustCompile(`"(?:[^"\\]|\\.)+"`)
	unknownFunc  = regexp.MustCompile(`^function "([^"]*)" not defined$`)
)

// explain turns an error of an execution into one that quotes no value.
func (c *templateContent) explain(err error) error {
	te := &TemplateError{File: c.file, Line: 1}
	message := ""
	var exec template.ExecError
	if errors.As(err, &exec) {
		message = exec.Err.Error()
		if m := runtimePlace.FindStringSubmatchIndex(message); m != nil {
			te.Line, _ = strconv.Atoi(message[m[2]:m[3]])
			column, _ := strconv.Atoi(message[m[4]:m[5]])
			te.Column = column + 1
			near, rest, _ := strings.Cut(message[m[1]:], ">: ")
			if near == printName {
				near = c.printed[c.offset(te.Line, column)]
			}
			te.Near, message = shorten(near, maxNear), rest
		}
	}
	var own *refusal
	switch {
	case errors.As(err, &own):
		te.Reason, te.Err = own.reason, own.err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		te.Reason, te.Err = "interrupted", c.secrets.ctx.Err()
	case runtimeMessages.MatchString(message):
		te.Reason = message
		switch {
		case vaultData.MatchString(message) && strings.Contains(te.Near, ".Data."):
			te.Reason += `; in a template that came from Vault, secretJSON "name" takes the place of secret, and .x that of .Data.data.x: it gives the fields of the secret themselves`
		case strings.HasPrefix(message, "map has no entry"):
			te.Reason += "; names are case-sensitive, and hasKey or dig can ask whether a key is there"
		}
	default:
		if m := errorCalling.FindStringSubmatch(message); m != nil {
			te.Reason = m[1] + " cannot work on what it was given (which is not shown: it may be secret)"
		} else {
			te.Reason = "the value does not fit here (it is not shown: it may be secret)"
		}
	}
	return te
}

// offset returns the position of a line, from 1, and a column, from 0.
func (c *templateContent) offset(line, column int) parse.Pos {
	at := 0
	for ; line > 1; line-- {
		at += strings.IndexByte(c.source[at:], '\n') + 1
	}
	return parse.Pos(at + column)
}

// explainParse turns an error of the parser, which knows the template's text only. The parser
// says the line; the column is that of the text that it quotes, where the line has it once.
func (c *templateContent) explainParse(err error) error {
	te := &TemplateError{File: c.file, Line: 1, Reason: err.Error()}
	m := parsePlace.FindStringSubmatch(te.Reason)
	if m == nil {
		return te
	}
	te.Line, _ = strconv.Atoi(m[1])
	te.Reason = te.Reason[len(m[0]):]
	line, _, _ := strings.Cut(c.source[c.offset(te.Line, 0):], "\n")
	if m := parseQuoted.FindString(te.Reason); m != "" {
		text, err := strconv.Unquote(m)
		if err == nil && strings.Count(line, text) == 1 {
			te.Column, te.Near = strings.Index(line, text)+1, shorten(line, maxNear)
		}
	}
	if m := unknownFunc.FindStringSubmatch(te.Reason); m != nil {
		te.Reason += "; " + whyUnknown(m[1])
	}
	return te
}

// maxNear is how many characters of a template are in an error.
const maxNear = 60

// shorten makes one line of s, of at most so many characters.
func shorten(s string, most int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}
