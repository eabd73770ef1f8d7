package render

import (
	"cmp"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"secretagent/upstream"
)

// Format writes secrets without a template. Entries are sorted by name, one on a line.
type Format string

// The formats. Objects and lists inside a secret are kept in json, yaml and toml; in env, shell,
// docker and properties they are written as compact JSON text.
const (
	Env        Format = "env"        // NAME=value for every common reader of .env files; what one of them would read otherwise is refused
	Shell      Format = "shell"      // NAME=value for sh and systemd's EnvironmentFile alone, which read every value
	Docker     Format = "docker"     // NAME=value, never quoted, for docker --env-file and kubectl --from-env-file
	JSON       Format = "json"       // one object
	YAML       Format = "yaml"       // one mapping, its scalars double-quoted
	TOML       Format = "toml"       // one table
	Properties Format = "properties" // java.util.Properties, ASCII only
	Raw        Format = "raw"        // the bytes of one secret, nothing added
	PEM        Format = "pem"        // PEM blocks of one or more secrets, checked, one after the other
)

var formats = []string{string(Env), string(Shell), string(Docker), string(JSON), string(YAML), string(TOML), string(Properties), string(Raw), string(PEM)}

// formatContent writes secrets in a format.
type formatContent struct {
	format  Format
	secrets []FormatSecret
}

// pair is one named entry of a file.
type pair struct {
	name string
	raw  json.RawMessage
	from upstream.SecretRef
}

// value decodes the entry as decodeJSON does, which cannot fail: it is part of a JSON text.
func (p pair) value() any {
	v, _ := decodeJSON(p.raw)
	return v
}

// render implements content.
func (c *formatContent) render(s *secretReader) (*output, error) {
	out := &output{}
	if err := c.write(s, out); err != nil {
		return nil, err
	}
	if len(out.bytes) > maxOutput {
		return nil, refuse("the output is larger than %d bytes", maxOutput)
	}
	return out, nil
}

func (c *formatContent) write(s *secretReader, out *output) error {
	if c.format == Raw || c.format == PEM {
		return c.writeWhole(s, out)
	}
	pairs, err := c.pairs(s)
	if err != nil {
		return err
	}
	return writePairs(c.format, pairs, out)
}

// FormatTexts returns the texts, each the whole value of the secret, as a file in one of the formats that have
// names: name of the entry → text. Its errors name entry and secret, and quote no text.
func FormatTexts(format Format, texts map[string]upstream.SecretData, secretOf func(name string) upstream.SecretName) ([]byte, error) {
	var pairs []pair
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		raw, _ := toJSON(string(texts[name].Reveal())) // any text can be written
		pairs = append(pairs, pair{name, json.RawMessage(raw), upstream.SecretRef{SecretName: secretOf(name)}})
	}
	out := &output{}
	if err := writePairs(format, pairs, out); err != nil {
		return nil, err
	}
	return out.bytes, nil
}

// writePairs writes entries in a format that has names.
func writePairs(format Format, pairs []pair, out *output) error {
	switch format {
	case Env:
		return writeLines(out, pairs, variableLine(envName, dotenvQuote))
	case Shell:
		return writeLines(out, pairs, variableLine(envName, shellQuote))
	case Docker:
		return writeLines(out, pairs, variableLine(dockerName, dockerPlain))
	case Properties:
		return writeLines(out, pairs, propertiesLine)
	case TOML:
		return writeLines(out, pairs, tomlLine)
	case YAML:
		if len(pairs) == 0 {
			out.text("{}\n")
		}
		return writeLines(out, pairs, yamlLine)
	default:
		return writeJSON(out, pairs)
	}
}

// writeWhole writes secrets, or one field of each, as they are.
func (c *formatContent) writeWhole(s *secretReader, out *output) error {
	for i := range c.secrets {
		secret := &c.secrets[i]
		value, err := s.get(secret.Ref, false)
		if err != nil {
			return err
		}
		text := string(value.SecretData.Reveal())
		encoded := secret.Decode == DecodeBase64 || secret.Decode == DecodeAuto && value.SecretDataType == upstream.DataTypeBinary
		if secret.Field != "" {
			fields, err := fieldsOf(secret.Ref, value)
			if err != nil {
				return err
			}
			field, err := fields.Text(secret.Field)
			switch {
			case errors.Is(err, upstream.ErrNullField):
				return refuse("field %q of secret %s is null", secret.Field, secret.Ref)
			case err != nil:
				return refuse("secret %s has no field %q; names are case-sensitive", secret.Ref, secret.Field)
			}
			text = string(field)
		}
		if encoded {
			decoded, ok := upstream.DecodeBase64([]byte(text))
			if !ok {
				return refuse("secret %s is not base64, which decode: %s expects", secret.Ref, secret.Decode)
			}
			text = string(decoded)
		}
		if c.format == PEM {
			if !isPEM(text) {
				return refuse("secret %s does not hold PEM blocks and nothing else", secret.Ref)
			}
			text = strings.TrimRight(text, "\n") + "\n"
		}
		out.value(text)
	}
	return nil
}

// isPEM reports whether every "-----BEGIN" of text opens a sound block and nothing but space
// follows the last one. Text before a block is allowed, as RFC 7468 does.
func isPEM(text string) bool {
	blocks := 0
	rest := []byte(text)
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		blocks++
		rest = after
	}
	return blocks > 0 && blocks == strings.Count(text, "-----BEGIN ") && strings.TrimSpace(string(rest)) == ""
}

// pairs collects the entries of all secrets, sorted by name.
func (c *formatContent) pairs(s *secretReader) ([]pair, error) {
	var all []pair
	from := map[string]upstream.SecretRef{} // :: name of an entry → its secret
	for i := range c.secrets {
		pairs, err := c.secrets[i].pairs(s)
		if err != nil {
			return nil, err
		}
		for _, p := range pairs {
			switch other, taken := from[p.name]; {
			case taken && other == p.from:
				return nil, refuse("two keys of secret %s give an entry of the same name", p.from)
			case taken:
				return nil, refuse("secrets %s and %s give an entry of the same name; rename one or set a prefix", other, p.from)
			}
			from[p.name] = p.from
		}
		all = append(all, pairs...)
	}
	slices.SortFunc(all, func(a, b pair) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

// pairs returns the entries of one secret, named as asked.
func (f *FormatSecret) pairs(s *secretReader) ([]pair, error) {
	value, err := s.get(f.Ref, false)
	if err != nil {
		return nil, err
	}
	if f.Key != "" {
		text := string(value.SecretData.Reveal())
		if !utf8.ValidString(text) {
			return nil, refuse("secret %s is not UTF-8; only format raw can carry it", f.Ref)
		}
		raw, _ := toJSON(text) // any text can be written
		return []pair{{f.name(f.Key), json.RawMessage(raw), f.Ref}}, nil
	}
	fields, err := fieldsOf(f.Ref, value)
	if err != nil {
		return nil, refuse("%s; set key to write it whole", err)
	}
	keys := f.Keys
	switch {
	case f.Field != "":
		keys = map[string]string{f.Field: ""}
	case len(keys) == 0:
		keys = make(map[string]string, len(fields))
		for key := range fields {
			keys[key] = ""
		}
	}
	pairs := make([]pair, 0, len(keys))
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		raw, ok := fields[key]
		if !ok {
			return nil, refuse("secret %s has no key %q; names are case-sensitive", f.Ref, key)
		}
		pairs = append(pairs, pair{f.name(cmp.Or(keys[key], key)), raw, f.Ref})
	}
	return pairs, nil
}

// name applies prefix, case and Sanitize.
func (f *FormatSecret) name(key string) string {
	key = f.Prefix + key
	switch f.Case {
	case UpperCase:
		key = strings.ToUpper(key)
	case LowerCase:
		key = strings.ToLower(key)
	}
	if f.Sanitize {
		key = notInName.ReplaceAllLiteralString(key, "_")
	}
	return key
}

// writeLines writes every pair as one entry. An error names secret and entry, but gives the
// position of one whose name is no variable's: it may come from the secret and be anything.
func writeLines(out *output, pairs []pair, line func(*output, pair) error) error {
	for i, p := range pairs {
		if err := line(out, p); err != nil {
			if dockerName.MatchString(p.name) {
				return refuse("%s, from secret %s: %s", p.name, p.from, err)
			}
			return refuse("entry %d of %d in the order of names, from secret %s: %s", i+1, len(pairs), p.from, err)
		}
		out.text("\n")
	}
	return nil
}

// flatText is the text of an entry in a format that knows only text.
func flatText(p pair) (string, error) {
	text, err := upstream.FieldText(p.raw)
	if err != nil {
		return "", refuse("it is null, which this format cannot carry; pick other keys")
	}
	return string(text), nil
}

var (
	notInName  = regexp.MustCompile(`[^A-Za-z0-9_]`)
	envName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	dockerName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`) // of kubectl too
	yamlBare   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)
	yamlWords  = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`) // YAML 1.1 and 1.2
	tomlBare   = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

// variableLine returns what writes NAME=value, the value as quote gives it.
func variableLine(name *regexp.Regexp, quote func(string) (string, error)) func(*output, pair) error {
	return func(out *output, p pair) error {
		if !name.MatchString(p.name) {
			return refuse("its name is not one of a variable, %s; rename it or set sanitize", strings.Trim(name.String(), "^$"))
		}
		text, err := flatText(p)
		if err != nil {
			return err
		}
		if text, err = quote(text); err != nil {
			return err
		}
		out.text(p.name + "=")
		out.value(text)
		return nil
	}
}

// propertiesLine writes as java.util.Properties.store does, with "=" between.
func propertiesLine(out *output, p pair) error {
	text, err := flatText(p)
	if err != nil {
		return err
	}
	out.text(propertiesKey(p.name) + "=")
	out.value(propertiesValue(text))
	return nil
}

func writeJSON(out *output, pairs []pair) error {
	out.text("{")
	for i, p := range pairs {
		key, _ := toJSON(p.name) // any text can be written
		value, err := toJSON(p.value())
		if err != nil {
			return err
		}
		if i > 0 {
			out.text(",")
		}
		out.text("\n  " + key + ": ")
		out.value(value)
	}
	if len(pairs) > 0 {
		out.text("\n")
	}
	out.text("}\n")
	return nil
}

func yamlLine(out *output, p pair) error { return yamlStyle.line(out, p, yamlKey(p.name)) }

func yamlKey(name string) string {
	if yamlBare.MatchString(name) && !yamlWords.MatchString(name) {
		return name
	}
	return doubleQuoted(name)
}

func tomlLine(out *output, p pair) error { return tomlStyle.line(out, p, tomlKey(p.name)) }

func tomlKey(name string) string {
	if tomlBare.MatchString(name) {
		return name
	}
	return doubleQuoted(name)
}

// inlineStyle writes decoded JSON values on one line. JSON is YAML once its strings are escaped
// the YAML way; TOML has inline tables.
type inlineStyle struct {
	assign string // between a key and its value
	key    func(string) string
	number func(string) (string, error)
	null   string // empty: refused
}

var (
	yamlStyle = inlineStyle{assign: ": ", key: doubleQuoted, number: yamlNumber, null: "null"}
	tomlStyle = inlineStyle{assign: " = ", key: tomlKey, number: tomlNumber}
)

func (w inlineStyle) line(out *output, p pair, key string) error {
	value, err := w.value(p.value())
	if err != nil {
		return err
	}
	out.text(key + w.assign)
	out.value(value)
	return nil
}

func (w inlineStyle) value(v any) (string, error) {
	var parts []string
	switch v := v.(type) {
	case nil:
		if w.null == "" {
			return "", refuse("it is or holds a null, which TOML cannot carry; pick other keys")
		}
		return w.null, nil
	case string:
		return doubleQuoted(v), nil
	case json.Number:
		return w.number(v.String())
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			value, err := w.value(v[key])
			if err != nil {
				return "", err
			}
			parts = append(parts, w.key(key)+w.assign+value)
		}
		return "{" + strings.Join(parts, ", ") + "}", nil
	case []any:
		for _, e := range v {
			value, err := w.value(e)
			if err != nil {
				return "", err
			}
			parts = append(parts, value)
		}
		return "[" + strings.Join(parts, ", ") + "]", nil
	default:
		return fmt.Sprint(v), nil // bool: JSON has no other
	}
}

// yamlNumber writes exponents the way YAML 1.1 needs them, with a point before and a sign
// after the e: readers of that version take 1e5 for text.
func yamlNumber(s string) (string, error) {
	at := strings.IndexAny(s, "eE")
	if at < 0 {
		return s, nil
	}
	mantissa, exponent := s[:at], s[at+1:]
	if !strings.Contains(mantissa, ".") {
		mantissa += ".0"
	}
	if exponent[0] != '-' && exponent[0] != '+' {
		exponent = "+" + exponent
	}
	return mantissa + "e" + exponent, nil
}

// doubleQuoted escapes what YAML and TOML both unescape: quotes and backslashes by a
// backslash, everything that is not printable by \u and \U.
func doubleQuoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		if at := strings.IndexRune("\n\t\r\"\\", r); at >= 0 {
			b.WriteString(`\` + `ntr"\`[at:at+1])
			continue
		}
		switch {
		case r > 0xFFFF && !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\U%08X`, r)
		case !unicode.IsPrint(r) || r == '\uFEFF':
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// tomlNumber checks that a JSON number means the same in TOML, where integers have 64 bits.
func tomlNumber(s string) (string, error) {
	if !strings.ContainsAny(s, ".eE") {
		if _, err := strconv.ParseInt(s, 10, 64); err != nil {
			return "", refuse("it is or holds a whole number beyond 64 bits, which TOML cannot carry")
		}
		return s, nil
	}
	if f, err := strconv.ParseFloat(s, 64); err != nil || math.IsInf(f, 0) {
		return "", refuse("it is or holds a number too large for TOML")
	}
	return s, nil
}
