package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"secretagent/upstream"
)

// decoder walks a YAML document and the schema side by side. It never stops at a mistake.
type decoder struct {
	*problems
	schema schema
	folders
	shown map[position]bool // scalars and keys that are no secrets
}

// document decodes the body of a document into v, a struct with defaults filled in.
func (d *decoder) document(body ast.Node, v reflect.Value) {
	d.defaults(v)
	if body == nil || body.Type() == ast.NullType {
		d.requireAll(v.Type(), "", nil)
		return
	}
	d.value(body, field{typ: v.Type()}, "", v)
}

// value decodes node, the value of key, into v.
func (d *decoder) value(node ast.Node, f field, key string, v reflect.Value) {
	if key != "" {
		d.at[key] = positionOf(node)
	}
	switch node.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.addf(key, "", "YAML anchors, aliases and tags are not supported: write the value out")
		return
	}
	switch {
	case isScalar(v.Type()):
		d.scalar(node, f, key, v)
	case v.Type() == unitSecretsType:
		d.unitSecrets(node, f, key, v)
	case v.Kind() == reflect.Pointer:
		section := reflect.New(v.Type().Elem())
		d.defaults(section.Elem())
		v.Set(section)
		d.value(node, f, key, section.Elem())
	case v.Kind() == reflect.Struct:
		d.section(node, key, v)
	case v.Kind() == reflect.Slice:
		d.list(node, f, key, v)
	case v.Kind() == reflect.Map:
		d.table(node, f, key, v)
	default:
		panic("config: no YAML form for " + v.Type().String()) // a test reads every type
	}
}

func (d *decoder) section(node ast.Node, key string, v reflect.Value) {
	if node.Type() == ast.NullType { // "cache:" with everything below it commented out
		d.requireAll(v.Type(), key, nil)
		return
	}
	if short := slices.IndexFunc(d.schema.fields(v.Type()), func(f field) bool { return f.short }); short >= 0 {
		if _, _, ok := textOf(node); ok {
			f := d.schema.fields(v.Type())[short]
			d.value(node, f, joinKey(key, f.name), v.FieldByIndex(f.index))
			return
		}
	}
	pairs, ok := pairsOf(node)
	if !ok {
		d.addf(key, "", "must be a section with keys: %s", strings.Join(d.schema.names(v.Type()), ", "))
		return
	}
	given := map[string]bool{}
	fields := d.schema.fields(v.Type())
	holdsSecret := slices.ContainsFunc(fields, func(f field) bool { return f.typ == secretDataType })
	for at, pair := range pairs {
		name, pos := keyOf(pair.Key), positionOf(pair.Key)
		path := joinKey(key, name)
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if _, misspelt := upstream.Suggest(name, d.schema.names(v.Type())); i < 0 && holdsSecret && !misspelt {
			// "data: first,second" without quotes: the second half of a secret looks like a key.
			d.addAt(pos, joinKey(key, masked), "", unknownKey("", d.schema.names(v.Type()))+"; or a value with a comma lacks its quotes")
			continue
		}
		d.shown[pos] = true
		if pair.Key.Type() == ast.MergeKeyType {
			d.addAt(pos, path, "", "YAML merge keys are not supported: write the keys out")
			continue
		}
		if i < 0 {
			reason := unknownKey(name, d.schema.names(v.Type()))
			if above := d.emptyAbove(v.Type(), pairs[:at], name); above != "" {
				reason = fmt.Sprintf("unknown key here; did you mean the one of %s? Indent it further than %s", joinKey(key, above), above)
			}
			d.addAt(pos, path, "", reason)
			continue
		}
		if given[name] {
			d.addAt(pos, path, "", "is given twice: keep one")
			continue
		}
		given[name] = true
		d.value(pair.Value, fields[i], path, v.FieldByIndex(fields[i].index))
	}
	d.requireAll(v.Type(), key, given)
}

// emptyAbove returns the last key of pairs that t knows, where it is an empty section with the key name: that was
// probably meant to stand below it.
func (d *decoder) emptyAbove(t reflect.Type, pairs []*ast.MappingValueNode, name string) string {
	for _, pair := range slices.Backward(pairs) {
		above := keyOf(pair.Key)
		i := slices.IndexFunc(d.schema.fields(t), func(f field) bool { return f.name == above })
		if i < 0 {
			continue // misplaced as well
		}
		section := d.schema.fields(t)[i].typ
		for section.Kind() == reflect.Pointer {
			section = section.Elem()
		}
		if pair.Value.Type() == ast.NullType && section.Kind() == reflect.Struct && !isScalar(section) && slices.Contains(d.schema.names(section), name) {
			return above
		}
		break
	}
	return ""
}

// requireAll reports the required keys of a section that are not given.
func (d *decoder) requireAll(t reflect.Type, key string, given map[string]bool) {
	for _, f := range d.schema.fields(t) {
		if f.required && !given[f.name] {
			d.addf(joinKey(key, f.name), "", "is missing: it must be set")
		}
	}
}

func (d *decoder) list(node ast.Node, f field, key string, v reflect.Value) {
	if node.Type() == ast.NullType {
		return
	}
	seq, ok := node.(*ast.SequenceNode)
	if !ok {
		hint := ""
		if text, _, _ := textOf(node); strings.Contains(text, " ") {
			hint = "; no shell splits text at its spaces"
		}
		d.addf(key, "", "must be a list, written [a, b] or with one \"- \" line per element%s", hint)
		return
	}
	items := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	f.typ = v.Type().Elem()
	for i, value := range seq.Values {
		item := items.Index(i)
		path := fmt.Sprintf("%s[%d]", key, i)
		if value.Type() == ast.NullType {
			d.at[path] = positionOf(value)
			d.addf(path, "", "is an empty element: fill it in or remove it")
			continue
		}
		if item.Kind() == reflect.Struct && !isScalar(item.Type()) {
			d.defaults(item)
		}
		d.value(value, f, path, item)
	}
	v.Set(items)
}

func (d *decoder) table(node ast.Node, f field, key string, v reflect.Value) {
	if node.Type() == ast.NullType {
		return
	}
	pairs, ok := pairsOf(node)
	if !ok {
		d.addf(key, "", "must be a section of names and values, written {a: b}")
		return
	}
	entries := reflect.MakeMap(v.Type())
	f.typ = v.Type().Elem()
	for _, pair := range pairs {
		name, pos := keyOf(pair.Key), positionOf(pair.Key)
		path := joinKey(key, name)
		d.shown[pos] = true
		if entries.MapIndex(reflect.ValueOf(name)).IsValid() {
			d.addAt(pos, path, "", "is given twice: keep one")
			continue
		}
		entry := reflect.New(f.typ).Elem()
		d.value(pair.Value, f, path, entry)
		entries.SetMapIndex(reflect.ValueOf(name), entry)
	}
	v.Set(entries)
}

var unitSecretsType = reflect.TypeFor[UnitSecrets]()

// unitSecrets decodes either form of UnitSecrets.
func (d *decoder) unitSecrets(node ast.Node, f field, key string, v reflect.Value) {
	var all UnitSecrets
	if _, ok := pairsOf(node); ok {
		named := map[string]string{}
		d.table(node, f, key, reflect.ValueOf(&named).Elem())
		for _, credential := range slices.Sorted(maps.Keys(named)) {
			all = append(all, UnitSecret{credential, named[credential]})
		}
	} else {
		var list []string
		d.list(node, f, key, reflect.ValueOf(&list).Elem())
		for _, secret := range list {
			all = append(all, UnitSecret{"", secret})
		}
	}
	v.Set(reflect.ValueOf(all))
}

func (d *decoder) scalar(node ast.Node, f field, key string, v reflect.Value) {
	text, form, ok := textOf(node)
	if ok && !f.hidden {
		d.shown[positionOf(node)] = true
	}
	if node.Type() == ast.NullType { // the same as leaving the key out
		if f.required {
			d.addf(key, "", "is empty: it must be set")
		}
		return
	}
	if !ok {
		d.addf(key, "", "must be a single value, not a section or list")
		return
	}
	shown := text
	if f.hidden {
		shown = ""
	}
	if f.address && form == formInteger {
		d.addf(key, shown, "is a port without a host: write \"127.0.0.1:%s\"", text)
		return
	}
	if f.off && (text == "" || text == "off") && form == formText {
		v.SetZero()
		return
	}
	parsed, err := parseScalar(v.Type(), text, form, d.folders)
	if err != nil {
		d.addf(key, shown, "%v", err)
		return
	}
	if len(f.enum) > 0 && !slices.Contains(f.enum, text) {
		hint := ""
		if meant, ok := upstream.Suggest(text, f.enum); ok {
			hint = fmt.Sprintf("; did you mean %s?", meant)
		}
		d.addf(key, shown, "must be one of %s%s", strings.Join(f.enum, ", "), hint)
		return
	}
	if f.min != "" || f.max != "" {
		if err := checkRange(parsed, f.min, f.max); err != nil {
			d.addf(key, shown, "%v", err)
			return
		}
	}
	v.Set(parsed)
}

// defaults fills the fields of a section, and of the sections in it, that have a default.
func (d *decoder) defaults(v reflect.Value) {
	for _, f := range d.schema.fields(v.Type()) {
		fv := v.FieldByIndex(f.index)
		switch {
		case f.hasDefault:
			fv.Set(fallbackOf(f, d.folders))
		case fv.Kind() == reflect.Struct && !isScalar(f.typ):
			d.defaults(fv)
		}
	}
}

// fallbackOf returns the default of f.
func fallbackOf(f field, in folders) reflect.Value {
	if f.typ.Kind() == reflect.Slice {
		list := reflect.MakeSlice(f.typ, 0, 4)
		for text := range strings.SplitSeq(f.fallback, "|") {
			list = reflect.Append(list, mustScalar(f.typ.Elem(), text, in))
		}
		return list
	}
	return mustScalar(f.typ, f.fallback, in)
}

func mustScalar(t reflect.Type, text string, in folders) reflect.Value {
	v, err := parseScalar(t, text, formOf(t), in)
	if err != nil {
		panic(fmt.Sprintf("config: tag %q of a %s: %v", text, t, err)) // a test reads every tag
	}
	return v
}

func unknownKey(name string, allowed []string) string {
	if meant, ok := upstream.Suggest(name, allowed); ok {
		return fmt.Sprintf("unknown key; did you mean %s?", meant)
	}
	return "unknown key; allowed here: " + strings.Join(allowed, ", ")
}

// pairsOf returns the keys and values of a mapping.
func pairsOf(node ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

// keyOf returns the text of a key; that of a key that is no scalar fits no schema.
func keyOf(node ast.MapKeyNode) string {
	if s, ok := node.(*ast.StringNode); ok {
		return s.Value
	}
	return oneLine(strings.TrimSpace(node.GetToken().Value))
}

// textOf returns a scalar as text and how it was written; not ok for sections and lists.
func textOf(node ast.Node) (text string, written form, ok bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, formText, true
	case *ast.LiteralNode:
		return n.Value.Value, formText, true
	case *ast.IntegerNode:
		return n.Token.Value, formInteger, true
	case *ast.FloatNode:
		return n.Token.Value, formFloat, true
	case *ast.BoolNode:
		return fmt.Sprint(n.Value), formBool, true
	case *ast.InfinityNode, *ast.NanNode:
		return node.GetToken().Value, formText, true // no key takes them as a number
	case *ast.NullNode:
		return "", formText, true
	}
	return "", formText, false
}

// positionOf returns where node starts.
func positionOf(node ast.Node) position {
	tk := node.GetToken()
	switch n := node.(type) {
	case *ast.MappingNode: // the token of a block mapping is the first colon
		if !n.IsFlowStyle && len(n.Values) > 0 {
			tk = n.Values[0].Key.GetToken()
		}
	case *ast.MappingValueNode:
		tk = n.Key.GetToken()
	}
	return tokenPosition(tk)
}

func tokenPosition(tk *token.Token) position {
	if tk == nil || tk.Position == nil {
		return position{1, 1}
	}
	return position{max(tk.Position.Line, 1), max(tk.Position.Column, 1)}
}
