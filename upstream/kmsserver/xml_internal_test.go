package kmsserver

import (
	"encoding/xml"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"secretagent/upstream"
)

// FuzzXML: what is read out of an answer is the value, byte for byte, or there is no answer but an
// error. It is read as the standard library reads it, and by hand.
func FuzzXML(f *testing.F) {
	for _, seed := range []string{
		"", "first", " \t\n a \r\n b \r ", "]]>", "<![CDATA[x]]>", "&amp;&lt;&#13;", `"'<a href="x">`, "é数🔑", "\x00", "a\x1bb", "\x7f\u0085\u2028\u009f", "\uFFFD",
		"\uFFFE", "a\uFFFF", "\U0001FFFE", "\r\r\n\n\r", "<?xml?>", "--><!--", "&", "\ufeff",
	} {
		f.Add(seed)
	}
	byHand := strings.NewReplacer("&lt;", "<", "&gt;", ">", "&#13;", "\r", "&amp;", "&")
	f.Fuzz(func(t *testing.T, value string) {
		if !utf8.ValidString(value) {
			t.Skip("no backend stores it")
		}
		document, err := toXML("GetSecretValueResponse", upstream.GetSecretValueJSON(&upstream.SecretValue{
			SecretName: "app/db", SecretData: upstream.NewSecretData([]byte(value)), VersionStages: []upstream.VersionStage{"ACSCurrent"},
		}))
		if (err != nil) != strings.ContainsFunc(value, forbidden) {
			t.Fatalf("%q: %v", value, err)
		}
		if err != nil {
			if f := (*fault)(nil); !errors.As(err, &f) || f.status != 400 || !strings.Contains(f.message, "SecretData holds a character that XML cannot carry") {
				t.Errorf("the error is %v", err)
			}
			return
		}
		var read struct {
			SecretName, SecretData string
			VersionStages          struct{ VersionStage []string }
		}
		if err := xml.Unmarshal(document, &read); err != nil || read.SecretData != value || read.SecretName != "app/db" || len(read.VersionStages.VersionStage) != 1 {
			t.Fatalf("%q is read as %q: %v", value, read, err)
		}
		_, text, _ := strings.Cut(string(document), "<SecretData>")
		text, _, _ = strings.Cut(text, "</SecretData>")
		if got := byHand.Replace(text); got != value || strings.ContainsAny(text, "<>\r") {
			t.Fatalf("%q is written as %q", value, text)
		}
	})
}

// forbidden is what the production Char of XML 1.0 leaves out.
func forbidden(r rune) bool {
	return !(r == 0x9 || r == 0xA || r == 0xD || 0x20 <= r && r <= 0xD7FF || 0xE000 <= r && r <= 0xFFFD || 0x10000 <= r && r <= 0x10FFFF)
}

func TestXMLOfEveryJSON(t *testing.T) {
	for body, want := range map[string]string{
		`{"A":"x","N":-1.5,"B":true,"Z":null}`:                     `<R><A>x</A><N>-1.5</N><B>true</B></R>`,
		`{"L":{"I":["a","b"]},"E":{"I":[]},"F":[{"x":1},{"x":2}]}`: `<R><L><I>a</I><I>b</I></L><E></E><F><x>1</x></F><F><x>2</x></F></R>`,
		`{"A":"<&>\r\"' \t\n"}`:                                    "<R><A>&lt;&amp;&gt;&#13;\"' \t\n</A></R>",
	} {
		got, err := toXML("R", []byte(body))
		if want = `<?xml version="1.0" encoding="UTF-8"?>` + want; err != nil || string(got) != want {
			t.Errorf("%s: %s, %v; want %s", body, got, err, want)
		}
	}
}
