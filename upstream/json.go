package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"unicode/utf16"
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

// loneSurrogate reports whether an escape in valid JSON is half of a surrogate pair.
func loneSurrogate(text []byte) bool {
	for {
		at := bytes.IndexByte(text, '\\')
		if at < 0 {
			return false
		}
		text = text[at:]
		switch first := escapedUnit(text); {
		case !utf16.IsSurrogate(first): // a control character or a letter among them
			text = text[len(`\n`):]
		case utf16.DecodeRune(first, escapedUnit(text[len(`\ud800`):])) == utf8.RuneError:
			return true
		default:
			text = text[2*len(`\ud800`):]
		}
	}
}

// escapedUnit returns the code unit of the \u escape that text starts with; 0 for anything else.
func escapedUnit(text []byte) rune {
	if len(text) < len(`\ud800`) || text[0] != '\\' || text[1] != 'u' {
		return 0
	}
	unit, _ := strconv.ParseUint(string(text[2:6]), 16, 16) // valid JSON has four digits there
	return rune(unit)
}
