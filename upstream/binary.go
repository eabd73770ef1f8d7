package upstream

import (
	"bytes"
	"encoding/base64"
)

// DecodeBase64 returns the bytes that text stands for, in memory of their own: base64 of the
// standard alphabet, padded, with line breaks anywhere and space around it, as Alibaba's
// controllers read binary secrets. It reports false for everything else, and for no bytes at all.
func DecodeBase64(text []byte) ([]byte, bool) {
	text = bytes.TrimSpace(text)
	data := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(data, text)
	return data[:n], err == nil && n > 0
}

// RevealBytes returns the content of the secret: of a binary one the bytes that its base64 stands
// for, in memory of their own; of every other, and of a binary one that is not base64, the data as
// it is, shared. Like what Reveal returns they must not reach a log, an error, a metric or a URL.
func (v *SecretValue) RevealBytes() []byte {
	if v.SecretDataType == DataTypeBinary {
		if data, ok := DecodeBase64(v.SecretData.Reveal()); ok {
			return data
		}
	}
	return v.SecretData.Reveal()
}
