package config

import (
	"reflect"
	"strings"

	"secretagent/upstream"
)

// field is one key of a section, as declared by the tags of a struct field.
type field struct {
	name       string
	index      []int // for reflect.Value.FieldByIndex
	typ        reflect.Type
	fallback   string // the default, as it would stand in YAML
	hasDefault bool
	min, max   string
	enum       []string
	required   bool
	off        bool // "off" or "" is allowed and means the zero value
	watched    bool // a file that the agent reads
	written    bool // a path that the agent writes, and nobody else may
	hidden     bool // the value may hold a secret and is not shown
	address    bool // host:port, to listen on
	short      bool // a section with no other key may be written as this value alone
}

// schema remembers what the tags of each section say. It is not safe for concurrent use.
type schema map[reflect.Type][]field

// fields is fieldsOf, remembered.
func (s schema) fields(t reflect.Type) []field {
	f, ok := s[t]
	if !ok {
		f = fieldsOf(t)
		s[t] = f
	}
	return f
}

// names returns the keys of a section.
func (s schema) names(t reflect.Type) []string {
	var names []string
	for _, f := range s.fields(t) {
		names = append(names, f.name)
	}
	return names
}

// fieldsOf returns the keys of a section in the order they are declared.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		sf := t.Field(i)
		name, option, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if option == "inline" {
			for _, f := range fieldsOf(sf.Type) {
				f.index = append([]int{i}, f.index...)
				fields = append(fields, f)
			}
			continue
		}
		if name == "" {
			continue
		}
		f := field{
			name: name, index: []int{i}, typ: sf.Type,
			min: sf.Tag.Get("min"), max: sf.Tag.Get("max"),
			required: sf.Tag.Get("required") == "true",
			off:      sf.Tag.Get("off") == "true",
			watched:  strings.Contains(sf.Tag.Get("path"), "watch"),
			address:  sf.Tag.Get("address") == "true",
			short:    sf.Tag.Get("short") == "true",
			written:  strings.Contains(sf.Tag.Get("path"), "write"),
			hidden:   sf.Tag.Get("show") == "never" || sf.Type == secretDataType,
		}
		f.fallback, f.hasDefault = sf.Tag.Lookup("default")
		if enum := sf.Tag.Get("enum"); enum != "" {
			f.enum = strings.Split(enum, "|")
		}
		fields = append(fields, f)
	}
	return fields
}

var secretDataType = reflect.TypeFor[upstream.SecretData]()
