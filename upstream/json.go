package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"unicode/utf8"
)

// What can be wrong with JSON. None of them quotes it.
var (
	ErrNotJSON       = errors.New("it is not JSON")
	ErrLoneSurrogate = errors.New(`it is JSON with half of a surrogate pair (\ud800 to \udfff), which is no character`)
)

// TrimBOM returns text without the byte order mark that some editors put before it, unseen.
func TrimBOM(text []byte) []byte { return bytes.TrimPrefix(text, []byte("\uFEFF")) }

// JSONText returns text, without a byte order mark, when it is one JSON text that can be decoded
// without loss. Otherwise it fails with [ErrNotJSON] or [ErrLoneSurrogate]: encoding/json would
// put U+FFFD for what is not UTF-8 and for half a pair.
func JSONText(text []byte) ([]byte, error) {
	text = TrimBOM(text)
	switch {
	case !utf8.Valid(text) || !json.Valid(text):
		return nil, ErrNotJSON
	case loneSurrogate(text):
		return nil, ErrLoneSurrogate
	}
	return text, nil
}

// loneSurrogate reports whether an escape in valid JSON is one half of a surrogate pair without
// the other.
func loneSurrogate(text []byte) bool {
	high := false // what precedes is an escaped first half
	for i := 0; i < len(text); i++ {
		unit := uint64(0)
		if text[i] == '\\' {
			i++
			if text[i] == 'u' {
				unit, _ = strconv.ParseUint(string(text[i+1:i+5]), 16, 32)
				i += 4
			}
		}
		low := unit >= 0xDC00 && unit <= 0xDFFF
		if low != high {
			return true
		}
		high = unit >= 0xD800 && unit <= 0xDBFF
	}
	return false // valid JSON does not end within a string
}
