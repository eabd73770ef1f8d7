package render

// output is rendered text that remembers which of its bytes came from a value. The rest is
// the text of a template or the punctuation and names of a format.
type output struct {
	bytes  []byte
	values []span // in order, not overlapping
}

// span is the bytes [from, to) of an output.
type span struct{ from, to int }

// text appends what is no value.
func (o *output) text(s string) { o.bytes = append(o.bytes, s...) }

// value appends a value.
func (o *output) value(s string) {
	if s == "" {
		return
	}
	from := len(o.bytes)
	o.bytes = append(o.bytes, s...)
	o.values = append(o.values, span{from, len(o.bytes)})
}

// made returns what was made of values, values that follow each other as one.
func (o *output) made() (texts []string) {
	for i := 0; i < len(o.values); {
		v := o.values[i]
		for i++; i < len(o.values) && o.values[i].from == v.to; i++ {
			v.to = o.values[i].to
		}
		texts = append(texts, string(o.bytes[v.from:v.to]))
	}
	return texts
}
