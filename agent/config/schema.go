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

// suggest returns the candidate that was probably meant by word.
func suggest(word string, candidates []string) (string, bool) {
	best, bestDistance := "", 3
	if len(word) < 5 {
		bestDistance = 2
	}
	plain := func(s string) string {
		return strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(s, "_", ""), "-", ""))
	}
	plainWord := plain(word)
	for _, c := range candidates {
		if plain(c) == plainWord {
			return c, true
		}
		if d := editDistance(plainWord, plain(c)); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best, best != ""
}

// editDistance returns how many bytes to insert, delete, replace or swap with their
// neighbour turn a into b. Long words are not compared: they are no typing mistakes.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
