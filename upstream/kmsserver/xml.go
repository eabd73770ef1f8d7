package kmsserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// xmlContentType is spelt as the newer official SDKs compare it, letter by letter.
const xmlContentType = "text/xml;charset=utf-8"

// toXML returns an answer as an XML document with the root element. The answer is the finished
// JSON body: there is one description of each answer, and XML follows from it by three rules. A
// member becomes an element of its name, an array one element for each item, all of the name of
// the array, and null nothing. So {"VersionStages":{"VersionStage":["a","b"]}} becomes
//
//	<VersionStages><VersionStage>a</VersionStage><VersionStage>b</VersionStage></VersionStages>
//
// It fails with a fault that names the element when a text holds a character that is in no XML
// document, not even escaped.
func toXML(root string, body []byte) ([]byte, error) {
	w := xmlWriter{in: json.NewDecoder(bytes.NewReader(body))}
	w.in.UseNumber()
	w.out.WriteString(`<?xml version="1.0" encoding="UTF-8"?>`)
	w.element(root)
	return w.out.Bytes(), w.err
}

type xmlWriter struct {
	in  *json.Decoder
	out bytes.Buffer
	err error // the first
}

// next returns the next token of the body, which the server has encoded itself.
func (w *xmlWriter) next() json.Token {
	token, err := w.in.Token()
	if err != nil {
		panic(err) // becomes InternalFailure
	}
	return token
}

// element writes the value that comes next in the body.
func (w *xmlWriter) element(name string) {
	value := w.next()
	switch value {
	case nil:
		return
	case json.Delim('['):
		for w.in.More() {
			w.element(name)
		}
		w.next()
		return
	}
	w.out.WriteString("<" + name + ">")
	switch value := value.(type) {
	case json.Delim:
		for w.in.More() {
			w.element(w.next().(string))
		}
		w.next()
	case string:
		w.text(name, value)
	default: // a number or a truth value
		_, _ = fmt.Fprint(&w.out, value)
	}
	w.out.WriteString("</" + name + ">")
}

// xmlEscaper leaves no character to a parser's own mind: it would make a line feed of a carriage
// return, and end at "]]>".
var xmlEscaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#13;")

func (w *xmlWriter) text(name, text string) {
	if strings.ContainsFunc(text, notXML) && w.err == nil {
		w.err = errFormat("Format", name+" holds a character that XML cannot carry, such as a control character. Ask with Format=JSON.")
	}
	_, _ = xmlEscaper.WriteString(&w.out, text)
}

// notXML reports whether a character is in no document of XML 1.0.
func notXML(r rune) bool {
	return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == '\uFFFE' || r == '\uFFFF'
}

// withoutNotXML puts U+FFFD for the characters that XML cannot carry.
func withoutNotXML(text string) string {
	return strings.Map(func(r rune) rune {
		if notXML(r) {
			return '\uFFFD'
		}
		return r
	}, text)
}
