package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
)

// What can be wrong with a field of a secret. None of them quotes the value or the field.
var (
	ErrNotObject = errors.New("the secret is not a JSON object")
	ErrNoField   = errors.New("the secret has no such field")
	ErrNullField = errors.New("the value is null")
)

// Fields are the top-level fields of a secret that is a JSON object, each as the object spells
// it. Like what Reveal returns they must not reach a log, an error, a metric or a URL.
type Fields map[string]json.RawMessage

// RevealFields returns copies of the fields. It fails with [ErrLoneSurrogate] for such JSON, with
// ErrNotObject for everything else that is not one JSON object. The errors of encoding/json are
// not passed on: they quote what they stumble over.
func (d SecretData) RevealFields() (Fields, error) {
	text, err := JSONText(d.Reveal())
	if err == ErrLoneSurrogate {
		return nil, err
	}
	var f Fields
	if err != nil || json.Unmarshal(text, &f) != nil || f == nil {
		return nil, ErrNotObject
	}
	return f, nil
}

// Text returns a field as text, in bytes of its own: a string as it is, a number or boolean as
// the object spells it, an object or array as compact JSON. Null has no text, it is ErrNullField;
// a field that is not there is ErrNoField.
func (f Fields) Text(name string) ([]byte, error) {
	raw, found := f[name]
	if !found {
		return nil, ErrNoField
	}
	return FieldText(raw)
}

// FieldText is the text of one of [Fields]. It returns no error but ErrNullField.
func FieldText(raw json.RawMessage) ([]byte, error) {
	switch raw[0] {
	case 'n':
		return nil, ErrNullField
	case '"':
		var text string
		_ = json.Unmarshal(raw, &text) // cannot fail: it was parsed with the object
		return []byte(text), nil
	}
	var compact bytes.Buffer
	_ = json.Compact(&compact, raw) // cannot fail either
	return compact.Bytes(), nil
}
