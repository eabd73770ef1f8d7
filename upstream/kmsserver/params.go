package kmsserver

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"secretagent/upstream"
)

// Bounds of one request's parameters. The longest request of the API, TagResources with 50
// secrets and 20 tags in .N form, has about a hundred.
const (
	maxParams    = 512
	maxParamName = 256
)

// params are the decoded parameters of one request, by name. A name is there once: the API
// leaves open what a repeated one means, so it is refused.
type params map[string]string

// add stores a parameter unless its name is malformed or taken.
func (p params) add(name, value string) error {
	switch {
	case name == "" || len(name) > maxParamName || !utf8.ValidString(name):
		return errParse("a parameter has an empty, overlong or malformed name")
	case len(p) >= maxParams:
		return errParse("the request has more than " + strconv.Itoa(maxParams) + " parameters")
	}
	if _, taken := p[name]; taken {
		return errParse("the parameter " + strconv.Quote(name) + " is given more than once")
	}
	p[name] = value
	return nil
}

// addForm adds the pairs of a query string or form body. A plus sign is a space, as the
// official clients write it. It adds what it can and returns the first error.
func (p params) addForm(raw []byte) (err error) {
	for len(raw) > 0 {
		var pair []byte
		pair, raw, _ = bytes.Cut(raw, []byte("&"))
		if len(pair) == 0 {
			continue
		}
		err = cmp.Or(err, p.addPair(pair))
	}
	return err
}

func (p params) addPair(pair []byte) error {
	rawName, rawValue, _ := bytes.Cut(pair, []byte("="))
	name, err := url.QueryUnescape(string(rawName))
	if err != nil {
		return errParse("a parameter name has a broken percent-encoding")
	}
	value, err := url.QueryUnescape(string(rawValue))
	if err != nil {
		return errParse("the parameter " + strconv.Quote(name) + " has a broken percent-encoding")
	}
	return p.add(name, value)
}

// addJSON adds the members of a JSON object. Booleans and numbers become their text, arrays
// and objects their JSON, null counts as absent.
func (p params) addJSON(raw []byte) error {
	notObject := errParse("the body is not a JSON object")
	if !utf8.Valid(raw) {
		return errParse("the body is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return notObject
	}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return notObject
		}
		name, _ := token.(string) // an object's odd tokens are strings
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return notObject
		}
		value, present, err := textOfJSON(raw)
		if err != nil {
			return err
		}
		if !present {
			continue
		}
		if err := p.add(name, value); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return notObject
	}
	if dec.More() {
		return errParse("something follows the JSON object of the body")
	}
	return nil
}

func textOfJSON(raw json.RawMessage) (text string, present bool, err error) {
	switch raw[0] {
	case 'n':
		return "", false, nil
	case '"':
		// encoding/json would replace half a surrogate pair without a word, and store
		// another secret than the one that was sent.
		if _, err := upstream.JSONText(raw); err != nil {
			return "", false, errParse("a JSON string holds half a surrogate pair")
		}
		if err := json.Unmarshal(raw, &text); err != nil {
			return "", false, errParse("a JSON string is malformed")
		}
		return text, true, nil
	case '[', '{':
		var compact bytes.Buffer
		if err := json.Compact(&compact, raw); err != nil {
			return "", false, errParse("a JSON value is malformed")
		}
		return compact.String(), true, nil
	default:
		return string(raw), true, nil
	}
}

// canonical returns all parameters but the one named except in the form that signatures
// cover: sorted by name and percent-encoded by RFC 3986.
func (p params) canonical(except string) string {
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if name == except {
			continue
		}
		if out.Len() > 0 {
			out.WriteByte('&')
		}
		out.WriteString(percentEncode(name) + "=" + percentEncode(p[name]))
	}
	return out.String()
}

// percentEncode encodes every byte outside A-Z a-z 0-9 - _ . ~.
func percentEncode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
