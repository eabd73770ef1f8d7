package upstream_test

import (
	"errors"
	"testing"

	"secretagent/upstream"
)

func TestFieldsOfASecret(t *testing.T) {
	const object = `{"text":"a\u00e9\n","empty":"","number":1.50,"big":12345678901234567890,"yes":true,"no":false,
		"object":{"b": [1, "x y"], "a":"<&>\u00e9"},"list": [ ],"null":null,"nul":"null","text2":"{\"a\":1}"}`
	for _, c := range []struct {
		data, field, want string
		err               error
	}{
		{object, "text", "aé\n", nil},
		{object, "empty", "", nil},
		{object, "number", "1.50", nil},
		{object, "big", "12345678901234567890", nil},
		{object, "yes", "true", nil},
		{object, "no", "false", nil},
		{object, "object", `{"b":[1,"x y"],"a":"<&>\u00e9"}`, nil},
		{object, "list", "[]", nil},
		{object, "null", "", upstream.ErrNullField},
		{object, "nul", "null", nil},
		{object, "text2", `{"a":1}`, nil},
		{object, "other", "", upstream.ErrNoField},
		{object, "Text", "", upstream.ErrNoField},
		{"{}", "", "", upstream.ErrNoField},
		{"", "a", "", upstream.ErrNotObject},
		{"hunter2", "a", "", upstream.ErrNotObject},
		{`["hunter2"]`, "a", "", upstream.ErrNotObject},
		{"null", "a", "", upstream.ErrNotObject},
		{`{"a":"hunter2"} {}`, "a", "", upstream.ErrNotObject},
		{`{"a":"hunter2"`, "a", "", upstream.ErrNotObject},
		{"{\"a\":\"hunter2\xff\"}", "a", "", upstream.ErrNotObject},
		{"\ufeff{\"a\":\"b\"}", "a", "b", nil},
		{"\ufeffhunter2", "a", "", upstream.ErrNotObject},
		{`{"a":"\ud83d\ude00\ud83d\ude01"}`, "a", "😀😁", nil},
		{`{"a":"\\ud800 \n\ufffd"}`, "a", `\ud800 ` + "\n\ufffd", nil},
		{`{"a":"\ud800"}`, "a", "", upstream.ErrLoneSurrogate},
		{`{"a":"\uDC00x"}`, "a", "", upstream.ErrLoneSurrogate},
		{`{"a":"\ud800\ud800\udc00"}`, "a", "", upstream.ErrLoneSurrogate},
		{`{"a":"\ud83d\\ude00"}`, "a", "", upstream.ErrLoneSurrogate},
		{`{"\udfff":1,"a":"b"}`, "a", "", upstream.ErrLoneSurrogate},
		{`["\ud800"]`, "a", "", upstream.ErrLoneSurrogate},
	} {
		fields, err := upstream.NewSecretData([]byte(c.data)).RevealFields()
		var got []byte
		if err == nil {
			got, err = fields.Text(c.field)
		}
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q of %s: %q, %v", c.field, c.data, got, err)
		}
	}
}
