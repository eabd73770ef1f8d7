package convert

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"
)

// rewriter turns one template of Vault Agent or consul-template into one of ours. It executes the
// template in the abstract: of every value it knows whether it is an answer of Vault, its data,
// or the fields of a secret. An action that changes is written anew in its place; every other byte
// stays.
type rewriter struct {
	*converter
	file   string
	src    string
	breaks []int    // the line breaks of src
	at     []action // the actions of src
	edits  []edit

	dot      value
	vars     map[string]value
	assigned map[string]bool // variables that are set again: what they hold is not known

	defined map[string]*parse.Tree
	given   map[string]value // :: template → what it is executed with
	calls   []string         // templates that are executed and were not rewritten yet
	place   func(int) int    // :: line of src → line for notes
	line    int              // of the action at hand, for notes
	bad     bool             // an action has no place in src
}

// action is the place of an action in the source, with its delimiters.
type action struct {
	start, end int
	tail       int // where the right delimiter begins, with its trim marker and the spaces before
}

type edit struct {
	start, end int
	text       string
}

// shape is what is known of a value.
type shape int

const (
	plain    shape = iota // anything
	answer                // what Vault answers: .Data.data.x in KV v2, .Data.x in v1
	data                  // its .Data
	document              // a secret of ours: .x
)

// value is what an expression of the new template gives.
type value struct {
	text     string
	operand  bool // the text needs no parentheses where an operand is wanted
	shape    shape
	v2       bool // of an answer or its data: the path was one of KV v2
	constant bool // is says which text it is
	is       string
	format   []value // of a call of printf: its arguments
}

// template rewrites a template. It notes what has no counterpart; there the new template fails,
// with a message that says what to do. file is what notes call it, place its line there.
func (c *converter) template(file string, place func(line int) int, src, left, right string) (string, error) {
	if err := checkText(file, []byte(src)); err != nil {
		return "", err
	}
	r := &rewriter{
		converter: c, file: file, src: src, place: place, line: place(1),
		assigned: map[string]bool{}, defined: map[string]*parse.Tree{}, given: map[string]value{},
	}
	main, err := parseTemplate(src, left, right, r.defined)
	if err != nil {
		return "", parseError(file, place, err)
	}
	for _, tree := range r.defined {
		r.findAssigned(tree.Root)
	}
	if left == "" {
		left = "{{"
	}
	if right == "" {
		right = "}}"
	}
	r.at = actions(src, left, right)
	for i := range len(src) {
		if src[i] == '\n' {
			r.breaks = append(r.breaks, i)
		}
	}
	r.run(main, value{text: ".", operand: true})
	for len(r.calls) > 0 {
		next := r.calls[0]
		r.calls = r.calls[1:]
		r.run(r.defined[next], r.given[next])
	}
	for _, name := range slices.Sorted(maps.Keys(r.defined)) {
		if _, called := r.given[name]; !called && r.defined[name] != main {
			r.run(r.defined[name], value{text: ".", operand: true})
		}
	}
	if r.bad {
		return "", &InputError{file, place(1), "its delimiters cannot be followed: convert it by hand"}
	}
	out := r.apply()
	// What is written must be a template again: whoever gets it should not be the first to see.
	if _, err := parseTemplate(out, left, right, map[string]*parse.Tree{}); err != nil {
		return "", &InputError{file, place(1), "cannot be written with these delimiters: convert it by hand"}
	}
	return out, nil
}

// templateName stands for the template in the errors of its parser.
const templateName = "the template itself"

func parseTemplate(src, left, right string, defined map[string]*parse.Tree) (*parse.Tree, error) {
	tree := parse.New(templateName)
	tree.Mode = parse.SkipFuncCheck
	return tree.Parse(src, left, right, defined)
}

var parsePlace = regexp.MustCompile(`^template: ` + templateName + `:(\d+): `)

// parseError keeps the line and the reason; the parser quotes a few words of the template.
func parseError(file string, place func(int) int, err error) error {
	bad := &InputError{file, place(1), err.Error()}
	if m := parsePlace.FindStringSubmatch(bad.Reason); m != nil {
		line, _ := strconv.Atoi(m[1])
		bad.Line, bad.Reason = place(line), "is not a template: "+bad.Reason[len(m[0]):]
	}
	return bad
}

// findAssigned finds the variables that are set again.
func (r *rewriter) findAssigned(l *parse.ListNode) {
	if l == nil {
		return
	}
	branch := func(n *parse.BranchNode) {
		r.noteAssigned(n.Pipe)
		r.findAssigned(n.List)
		r.findAssigned(n.ElseList)
	}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.ActionNode:
			r.noteAssigned(n.Pipe)
		case *parse.IfNode:
			branch(&n.BranchNode)
		case *parse.WithNode:
			branch(&n.BranchNode)
		case *parse.RangeNode:
			branch(&n.BranchNode)
		}
	}
}

func (r *rewriter) noteAssigned(p *parse.PipeNode) {
	if p.IsAssign {
		for _, v := range p.Decl {
			r.assigned[v.Ident[0]] = true
		}
	}
}

// actions finds what stands between delimiters, as the lexer of text/template does.
func actions(src, left, right string) []action {
	var all []action
	for at := 0; ; {
		i := strings.Index(src[at:], left)
		if i < 0 {
			return all
		}
		a := action{start: at + i}
		at = a.start + len(left)
		inside := at
		if len(src) > at+1 && src[at] == '-' && strings.ContainsRune(" \t\r\n", rune(src[at+1])) {
			at += 2
			inside = at
		}
		if strings.HasPrefix(src[at:], "/*") {
			end := strings.Index(src[at:], "*/")
			if end < 0 {
				return all
			}
			at += end + 2
		}
		for ; ; at++ {
			if at >= len(src) {
				return all
			}
			if strings.HasPrefix(src[at:], right) {
				break
			}
			if c := src[at]; c == '"' || c == '`' || c == '\'' {
				at = quoteEnd(src, at, c)
			}
		}
		a.tail, a.end = at, at+len(right)
		if a.tail-2 >= inside && src[a.tail-1] == '-' && strings.ContainsRune(" \t\r\n", rune(src[a.tail-2])) {
			a.tail -= 2
		}
		for a.tail > inside && strings.ContainsRune(" \t\r\n", rune(src[a.tail-1])) {
			a.tail--
		}
		at = a.end
		all = append(all, a)
	}
}

// quoteEnd returns where the quoted text that begins at ends.
func quoteEnd(src string, at int, quote byte) int {
	for at++; at < len(src) && src[at] != quote; at++ {
		if src[at] == '\\' && quote != '`' {
			at++
		}
	}
	return at
}

// apply returns the source with its edits.
func (r *rewriter) apply() string {
	slices.SortFunc(r.edits, func(a, b edit) int { return a.start - b.start })
	var b strings.Builder
	at := 0
	for _, e := range r.edits {
		if e.start < at { // a template that is defined twice
			continue
		}
		b.WriteString(r.src[at:e.start] + e.text)
		at = e.end
	}
	b.WriteString(r.src[at:])
	return b.String()
}

func (r *rewriter) run(tree *parse.Tree, dot value) {
	if tree == nil || tree.Root == nil {
		return
	}
	r.dot, r.vars = dot, map[string]value{"$": dot.as("$")}
	r.list(tree.Root)
}

// as returns v under another name.
func (v value) as(text string) value {
	v.text, v.operand, v.format = text, true, nil
	return v
}

func (r *rewriter) list(l *parse.ListNode) {
	if l == nil {
		return
	}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.ActionNode:
			v := r.pipe(n.Pipe, false)
			if len(n.Pipe.Decl) == 0 {
				v = r.whole(v)
			}
			r.replace(n.Pipe, v)
		case *parse.TemplateNode:
			if n.Pipe == nil {
				r.call(n.Name, value{text: "."})
				continue
			}
			v := r.pipe(n.Pipe, false)
			r.call(n.Name, v)
			r.replace(n.Pipe, v)
		case *parse.IfNode:
			r.branch(&n.BranchNode, func() { r.replace(n.Pipe, r.pipe(n.Pipe, true)) })
		case *parse.WithNode:
			r.branch(&n.BranchNode, func() {
				v := r.pipe(n.Pipe, true)
				r.replace(n.Pipe, v)
				r.dot = v.as(".")
			})
		case *parse.RangeNode:
			r.branch(&n.BranchNode, func() {
				v := r.whole(r.pipe(n.Pipe, false))
				r.replace(n.Pipe, v)
				element := value{shape: v.inside()}
				for i, d := range n.Pipe.Decl {
					r.vars[d.Ident[0]] = value{text: d.Ident[0], operand: true}
					if i == len(n.Pipe.Decl)-1 {
						r.vars[d.Ident[0]] = element.as(d.Ident[0])
					}
				}
				r.dot = element.as(".")
			})
		}
	}
}

// branch rewrites a control structure; head rewrites what decides, and sets the dot of the body.
func (r *rewriter) branch(n *parse.BranchNode, head func()) {
	dot, vars := r.dot, r.vars
	r.vars = maps.Clone(vars)
	head()
	r.list(n.List)
	r.dot = dot
	r.list(n.ElseList)
	r.vars = vars
}

// call remembers what the template name is executed with.
func (r *rewriter) call(name string, v value) {
	v = v.as(".")
	was, called := r.given[name]
	switch {
	case !called:
		r.given[name] = v
		r.calls = append(r.calls, name)
	case was.shape != v.shape:
		r.note(r.file, r.line, `template "`+name+`"`, "is executed with values of different shapes; what it does with the second is not converted: look at it")
	}
}

// replace puts the text of v in the place of a pipeline.
func (r *rewriter) replace(p *parse.PipeNode, v value) {
	var decl []string
	for _, d := range p.Decl {
		decl = append(decl, d.String())
	}
	text := v.text
	if len(decl) > 0 {
		assign := " := "
		if p.IsAssign {
			assign = " = "
		}
		text = strings.Join(decl, ", ") + assign + text
	}
	if text == p.String() {
		return
	}
	start := int(p.Position())
	i, found := slices.BinarySearchFunc(r.at, start, func(a action, at int) int {
		switch {
		case a.end <= at:
			return -1
		case a.start > at:
			return 1
		}
		return 0
	})
	if !found || r.at[i].tail < start {
		r.bad = true
		return
	}
	r.edits = append(r.edits, edit{start, r.at[i].tail, text})
}

// pipe rewrites a pipeline. Of a lenient one a missing field counts as false, as it does there.
func (r *rewriter) pipe(p *parse.PipeNode, lenient bool) value {
	outer := r.line
	before, _ := slices.BinarySearch(r.breaks, int(p.Position()))
	r.line = r.place(1 + before)
	defer func() { r.line = outer }()
	var v value
	for i, cmd := range p.Cmds {
		missing := lenient
		for _, later := range p.Cmds[i+1:] {
			missing = missing || forgives(later)
		}
		if i == 0 {
			v = r.command(cmd, nil, missing)
		} else {
			v = r.command(cmd, &v, missing)
		}
	}
	for _, d := range p.Decl {
		r.set(d.Ident[0], v)
	}
	return v
}

// set remembers what a variable holds.
func (r *rewriter) set(name string, v value) {
	v = v.as(name)
	if r.assigned[name] {
		v.constant = false
		if was := r.vars[name]; v.shape == plain {
			v.shape, v.v2 = was.shape, was.v2 // {{ $x := "" }} before or after
		}
	}
	r.vars[name] = v
}

// forgives reports whether the command takes a value that may be missing.
func forgives(cmd *parse.CommandNode) bool {
	id, ok := cmd.Args[0].(*parse.IdentifierNode)
	return ok && slices.Contains([]string{"and", "or", "not", "default", "empty", "coalesce", "ternary"}, strings.TrimPrefix(id.Ident, "sprig_"))
}

func (r *rewriter) command(cmd *parse.CommandNode, piped *value, lenient bool) value {
	if id, ok := cmd.Args[0].(*parse.IdentifierNode); ok {
		var args []value
		for _, arg := range cmd.Args[1:] {
			args = append(args, r.operand(arg, lenient || forgives(cmd)))
		}
		return r.function(id.Ident, args, piped)
	}
	v := r.operand(cmd.Args[0], lenient)
	if len(cmd.Args) == 1 && piped == nil {
		return v
	}
	// A call of a method or of what a variable holds: ours have neither.
	for _, arg := range cmd.Args[1:] {
		v.text += " " + r.operand(arg, lenient).text
	}
	if piped != nil {
		v.text = piped.text + " | " + v.text
	}
	return value{text: v.text}
}

func (r *rewriter) operand(n parse.Node, lenient bool) value {
	switch n := n.(type) {
	case *parse.DotNode:
		return r.dot
	case *parse.FieldNode:
		return r.field(r.dot, n.Ident, lenient)
	case *parse.VariableNode:
		v, known := r.vars[n.Ident[0]]
		if !known {
			v = value{text: n.Ident[0], operand: true}
		}
		return r.field(v, n.Ident[1:], lenient)
	case *parse.ChainNode:
		return r.field(r.operand(n.Node, false), n.Field, lenient)
	case *parse.PipeNode:
		v := r.pipe(n, lenient)
		v.text, v.operand = "("+v.text+")", true
		return v
	case *parse.IdentifierNode:
		v := r.function(n.Ident, nil, nil)
		if v.text != n.Ident {
			return v.enclosed()
		}
		v.operand = true
		return v
	case *parse.StringNode:
		return value{text: n.Quoted, operand: true, constant: true, is: n.Text}
	}
	return value{text: n.String(), operand: true}
}

// inside returns the shape of what is in v: of an object in a secret, fields may be missing too.
func (v value) inside() shape {
	if v.shape == document || v.shape == data && !v.v2 {
		return document
	}
	return plain
}

func (v value) enclosed() value {
	if !v.operand {
		v.text, v.operand = "("+v.text+")", true
	}
	return v
}

// field returns a field of v, by the names that the old template has for it.
func (r *rewriter) field(v value, names []string, lenient bool) value {
	if len(names) == 0 {
		return v
	}
	switch {
	case v.shape == answer && names[0] == "Data":
		v.shape = data
		return r.field(v, names[1:], lenient)
	case v.shape == answer:
		return r.fail("."+names[0], "a secret here has no lease, no request and no authentication: there is only its value")
	case v.shape == data && names[0] == "data":
		v.shape = document
		return r.field(v, names[1:], lenient)
	case v.shape == data && names[0] == "metadata":
		return r.fail(".Data.metadata", `secretVersionId "name" gives the id of the version; other metadata has no counterpart`)
	case v.shape == data && v.v2:
		return r.fail(".Data."+names[0], "the path is one of KV v2, where the fields are below .Data.data")
	}
	v = v.enclosed()
	if lenient && v.shape != plain {
		text := "dig"
		for _, name := range names {
			text += " " + strconv.Quote(name)
		}
		return value{text: text + ` "" ` + v.text, shape: document}
	}
	if v.text == "." {
		v.text = ""
	}
	return value{text: v.text + "." + strings.Join(names, "."), operand: true, shape: v.inside()}
}

// whole returns v, unless that is a part of Vault's answer that no secret of ours has.
func (r *rewriter) whole(v value) value {
	if v.shape == answer || v.shape == data && v.v2 {
		return r.fail("the whole answer of Vault", "there is only the value here: .Data.data stands for all fields")
	}
	return v
}

// fail returns an expression that stops the rendering with a message, and notes why.
func (r *rewriter) fail(what, reason string) value {
	r.note(r.file, r.line, what, reason)
	return value{text: "fail " + strconv.Quote(what+" has no counterpart: "+reason)}
}

// versionOf is what may follow the path of a secret in KV v2.
var versionOf = regexp.MustCompile(`^version=(\d{1,9})$`)

// secret rewrites a read of Vault.
func (r *rewriter) secret(args []value) value {
	switch {
	case len(args) == 0:
		return r.fail("secret", "it names no path")
	case len(args) > 1:
		return r.fail("secret with parameters", "it makes Vault issue something; store a value as a secret and read that")
	case args[0].constant:
		path, query, _ := strings.Cut(args[0].is, "?")
		name, v2, reason := r.secretName(path)
		if reason != "" {
			return r.fail("secret "+strconv.Quote(path), reason)
		}
		v := value{text: "secretJSON " + strconv.Quote(name), shape: answer, v2: v2}
		if query == "" || query == "version=0" {
			return v
		}
		m := versionOf.FindStringSubmatch(query)
		if m == nil {
			return r.fail("secret "+strconv.Quote(path), "of its parameters only version is known")
		}
		v.text = "secretVersion " + strconv.Quote(name) + " " + strconv.Quote(m[1]) + " | parseJSON"
		r.note(r.file, r.line, "?version="+m[1], "asks for the version with the id "+strconv.Quote(m[1])+": store it under this id")
		return v
	case len(args[0].format) > 0 && args[0].format[0].constant:
		// The mount stands in the format; what follows is computed.
		format := strings.TrimPrefix(args[0].format[0].is, "/")
		fixed, _, _ := strings.Cut(format, "%")
		if mount := r.mountOf(fixed + "x"); mount != "" && strings.HasPrefix(fixed, mount+"/") {
			prefix, v2 := r.mounts[strings.TrimSuffix(mount, "/data")], strings.HasSuffix(mount, "/data")
			name := prefix + strings.TrimPrefix(format[len(mount):], "/")
			text := "printf " + strconv.Quote(name)
			for _, arg := range args[0].format[1:] {
				text += " " + arg.enclosed().text
			}
			r.named(format, name)
			return value{text: "secretJSON (" + text + ")", shape: answer, v2: v2}
		}
	}
	return r.fail("secret of a computed path", `write it as secretJSON (printf "NAME/%s" …), without the mount`)
}

// oneField returns the secret and the field, if any, that are all what a template prints.
func (c *converter) oneField(src, left, right string) (name, field string, ok bool) {
	main, err := parseTemplate(src, left, right, map[string]*parse.Tree{})
	if err != nil || main.Root == nil {
		return "", "", false
	}
	dot := value{text: "."}
	nodes := printing(main.Root)
	r := &rewriter{converter: newConverter(c.file, c.opts), place: func(int) int { return 0 }, vars: map[string]value{}}
	if len(nodes) == 1 {
		if with, is := nodes[0].(*parse.WithNode); is && with.ElseList == nil {
			dot = r.pipe(with.Pipe, false)
			nodes = printing(with.List)
		}
	}
	if len(nodes) != 1 {
		return "", "", false
	}
	action, is := nodes[0].(*parse.ActionNode)
	if !is || len(action.Pipe.Cmds) != 1 || len(action.Pipe.Decl) > 0 {
		return "", "", false
	}
	r.dot = dot.as(".")
	text := strings.TrimPrefix(r.pipe(action.Pipe, false).text, "(")
	if dot.text != "." {
		text = dot.text + ")" + text
	}
	m := wholeSecret.FindStringSubmatch(text)
	if m == nil {
		m = oneFieldOf.FindStringSubmatch(text)
	}
	if m == nil || len(r.notes) > 0 {
		return "", "", false
	}
	for _, path := range r.order {
		c.named(path, r.names[path])
	}
	return m[1], strings.Join(m[2:], ""), true
}

var (
	wholeSecret = regexp.MustCompile(`^secret "([^"]+)"$`)
	oneFieldOf  = regexp.MustCompile(`^secretJSON "([^"]+)"\)\.([A-Za-z0-9_]+)$`)
)

// printing returns the nodes of a list that are not only space.
func printing(l *parse.ListNode) []parse.Node {
	var nodes []parse.Node
	for _, n := range l.Nodes {
		if text, ok := n.(*parse.TextNode); !ok || strings.TrimSpace(string(text.Text)) != "" {
			nodes = append(nodes, n)
		}
	}
	return nodes
}
