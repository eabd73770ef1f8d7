package upstream_test

import (
	"testing"

	"secretagent/upstream"
)

// Ensure that the bytes of a binary secret are those that its base64 stands for, and that data
// which is not base64, or not marked, is left as it is.
func TestBytesOfASecret(t *testing.T) {
	for _, c := range []struct{ typ, data, want string }{
		{upstream.DataTypeBinary, "AAEC/w==", "\x00\x01\x02\xff"},
		{upstream.DataTypeBinary, "AAEC\nAAEC\r\n", "\x00\x01\x02\x00\x01\x02"},
		{upstream.DataTypeBinary, " AAEC\t", "\x00\x01\x02"},
		{upstream.DataTypeBinary, "AAEC/w", "AAEC/w"},
		{upstream.DataTypeBinary, "AAEC_w==", "AAEC_w=="},
		{upstream.DataTypeBinary, "not base64", "not base64"},
		{upstream.DataTypeBinary, "\n", "\n"},
		{upstream.DataTypeText, "AAEC", "AAEC"},
		{"", "AAEC", "AAEC"},
	} {
		v := upstream.SecretValue{SecretData: upstream.NewSecretData([]byte(c.data)), SecretDataType: c.typ}
		if got := string(v.RevealBytes()); got != c.want {
			t.Errorf("%s %q: %q, want %q", c.typ, c.data, got, c.want)
		}
	}
}
