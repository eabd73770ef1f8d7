package config

import (
	"bytes"
	"reflect"

	"github.com/goccy/go-yaml/ast"
)

// Reach is what a client of a running agent needs of the configuration file.
type Reach struct {
	Endpoint // what cannot be read has its default

	// APISocket is that of the KMS API, which answers the operator of the agent as well; empty: none is known.
	APISocket Path

	// Said is true when Listen and Socket are known to be right: the file says one of them, or has no mistake.
	Said bool

	// Err is what is wrong with the shape of the file, as [Problems]; nil: nothing.
	Err error
}

// ReadReach reads as much of the file as a client needs. It never fails: the agent may
// run with what the file held before, and no mistake in it may keep a client from asking. In a
// file that is not YAML it reads each key that is YAML by itself. Without a file it gives defaults.
func (s Source) ReadReach() Reach {
	if s.File == "" {
		return s.parseReach(nil)
	}
	src, err := readFile(s.File)
	if err != nil {
		return s.parseReach(nil, unreadable(s.File, err)...)
	}
	return s.parseReach(src)
}

// parseReach is [Source.ReadReach] of the content of the file, in which problems are known already.
func (s Source) parseReach(src []byte, problems ...*Error) Reach {
	path := s.File
	_, in, _ := s.find()
	body, _, problem := parseSyntax(path, src)
	if problem != nil {
		problems = append(problems, problem)
	}
	if _, ok := pairsOf(body); !ok {
		body = &ast.MappingNode{BaseNode: &ast.BaseNode{}, Values: readable(src, "endpoint", salvageDepth)}
	}
	cfg, d := &Config{}, newDecoder(path, in)
	d.document(body, reflect.ValueOf(cfg).Elem())
	cfg.Endpoint.findToken(d.problems)
	says := func(key string) bool { return d.has(key) && !d.seen[key] }
	r := Reach{Endpoint: cfg.Endpoint}
	if api, _ := cfg.Upstream.API(); api != nil {
		r.APISocket = api.Socket
	}
	r.Said = says("endpoint.listen") && r.Listen != "" || says("endpoint.socket") && r.Socket != ""
	if len(problems) == 0 { // otherwise what d found has no place in the file
		problems = d.sorted()
	}
	if len(problems) > 0 && path != "" {
		r.Err = Problems(problems)
	}
	r.Said = r.Said || r.Err == nil
	return r
}

// How many levels of sections are looked into for what can be read, and how many keys of each.
const (
	salvageDepth = 3
	salvageKeys  = 100
)

// readable returns the keys of src, in block style, that have name in them and are YAML by themselves.
// Of a section that is not, it returns the keys below it that are.
func readable(src []byte, name string, depth int) (keys []*ast.MappingValueNode) {
	tried := 0
	for _, block := range blocks(src) {
		header, below, _ := bytes.Cut(block, []byte("\n"))
		if !bytes.Contains(header, []byte(name)) || tried == salvageKeys {
			continue
		}
		tried++
		body, _, _ := parseSyntax("", block)
		pairs, ok := pairsOf(body)
		if !ok && depth > 0 && len(below) > 0 {
			body, _, _ = parseSyntax("", header)
			if pairs, ok = pairsOf(body); ok && pairs[0].Value.Type() == ast.NullType {
				pairs[0].Value = &ast.MappingNode{BaseNode: &ast.BaseNode{}, Values: readable(below, "", depth-1)}
			}
		}
		keys = append(keys, pairs...)
	}
	return keys
}

// blocks splits src before each line that is indented least, unless that goes on with a list or
// a comment. What stands between the end of a document and such a line is left out.
func blocks(src []byte) (list [][]byte) {
	lines := bytes.SplitAfter(src, []byte("\n"))
	indent := func(line []byte) int { return len(line) - len(bytes.TrimLeft(line, " ")) }
	least := len(src)
	for _, line := range lines {
		if text := bytes.TrimSpace(line); len(text) > 0 && text[0] != '#' && text[0] != '-' {
			least = min(least, indent(line))
		}
	}
	var block []byte
	ended := false
	for _, line := range lines {
		text := bytes.TrimSpace(line)
		begins := len(text) > 0 && indent(line) == least && !bytes.ContainsAny(text[:1], "#-}]")
		if ends := string(text) == "---" || string(text) == "..."; ends || begins {
			list = append(list, block)
			block, ended = nil, ends
		}
		if !ended {
			block = append(block, line...)
		}
	}
	return append(list, block)
}
