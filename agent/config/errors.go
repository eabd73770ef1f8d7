package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"secretagent/upstream"
)

// Error is one mistake in a configuration file.
type Error struct {
	File   string
	Line   int    // from 1; 0 when the file could not be read at all
	Column int    // from 1, in characters; 0 as above
	Key    string // such as templates[0].mode; empty for a mistake that belongs to no key
	Value  string // what the file says; empty where that may be a secret or says nothing
	Reason string // what is wrong and what is allowed

	// Excerpt is the offending line with a mark below it, ready to print, without secrets.
	Excerpt string

	Err error // the cause; may be nil
}

// Error returns position, key, value and reason on one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	for _, part := range []string{e.Key, e.Value, e.Reason} {
		if part != "" {
			b.WriteString(": ")
			b.WriteString(part)
		}
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Problems is every mistake of one file, in the order of the file. It is never empty.
type Problems []*Error

// Error returns one line per mistake.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, e := range p {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the mistakes for [errors.Is] and [errors.As].
func (p Problems) Unwrap() []error {
	errs := make([]error, len(p))
	for i, e := range p {
		errs[i] = e
	}
	return errs
}

// Report returns the mistakes for people: each with the line it is on. It ends with a
// newline.
func (p Problems) Report() string {
	var b strings.Builder
	for _, e := range p {
		b.WriteString(e.Error())
		b.WriteByte('\n')
		b.WriteString(e.Excerpt)
	}
	return b.String()
}

// maxProblems bounds the report of a file that is mistaken from end to end.
const maxProblems = 200

// position is a place in the source, both counted from 1.
type position struct{ line, column int }

// problems collects mistakes while a file is read and checked.
type problems struct {
	file  string
	found Problems
	seen  map[string]bool     // keys that have a problem; one each is enough
	at    map[string]position // :: key → where its value stands, or the key where it has none
}

// addf records that something is wrong with the value of key. A key that is not in the file
// is reported where its section stands. Only the first problem of a key is kept: the others
// follow from it more often than not.
func (p *problems) addf(key, value, format string, args ...any) {
	pos := position{1, 1}
	for section := key; section != ""; section = parentKey(section) {
		if at, ok := p.at[section]; ok {
			pos = at
			break
		}
	}
	if !p.seen[key] {
		p.seen[key] = true
		p.addAt(pos, key, value, fmt.Sprintf(format, args...))
	}
}

// addAll records the problems that err, of a rule, consists of.
func (p *problems) addAll(err error) {
	var list upstream.OptionErrors
	list.Add("", err)
	for _, e := range list {
		p.addf(e.Key, e.Value, "%s", e.Reason)
	}
}

// addAt records a problem of a key itself, wherever else that key stands.
func (p *problems) addAt(pos position, key, value, reason string) {
	if len(p.found) > maxProblems {
		return
	}
	if len(p.found) == maxProblems {
		key, value, reason = "", "", "more problems than these: repair some first"
	}
	p.found = append(p.found, &Error{
		File: p.file, Line: pos.line, Column: pos.column, Key: key, Value: oneLine(value), Reason: reason,
	})
}

// has reports whether the file gives key.
func (p *problems) has(key string) bool {
	_, ok := p.at[key]
	return ok
}

// sorted returns what was collected, in the order of the file.
func (p *problems) sorted() Problems {
	slices.SortStableFunc(p.found, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return p.found
}

// parentKey returns the key of the section that holds key.
func parentKey(key string) string {
	return key[:max(strings.LastIndexByte(key, '.'), strings.LastIndexByte(key, '['), 0)]
}

func joinKey(section, name string) string {
	if section == "" {
		return name
	}
	return section + "." + name
}

// key formats the key of an element of a list.
func key(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// oneLine shortens a value to what fits into a message.
func oneLine(s string) string {
	const most = 80
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i] + "…"
	}
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}
