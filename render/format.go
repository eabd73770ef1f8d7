package render

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"secretagent/upstream"
)

// Format writes secrets without a template. Entries are sorted by name, one on a line.
type Format string

// The formats. Objects and lists inside a secret are kept in json, yaml and toml; in env and
// properties they are written as compact JSON text.
const (
	Env        Format = "env"        // NAME=value, quoted for sh and for systemd's EnvironmentFile
	JSON       Format = "json"       // one object
	YAML       Format = "yaml"       // one mapping, its scalars double-quoted
	TOML       Format = "toml"       // one table
	Properties Format = "properties" // java.util.Properties, ASCII only
	Raw        Format = "raw"        // the bytes of one secret, nothing added
	PEM        Format = "pem"        // PEM blocks of one or more secrets, checked, one after the other
)

var formats = []Format{Env, JSON, YAML, TOML, Properties, Raw, PEM}

func (f Format) known() bool { return slices.Contains(formats, f) }

func formatNames() string {
	names := make([]string, len(formats))
	for i, f := range formats {
		names[i] = string(f)
	}
	return strings.Join(names, ", ")
}

// formatted is the document of a format.
type formatted struct {
	format  Format
	secrets []FormatSecret
}

// pair is one named entry of a file.
type pair struct {
	key   string
	value any // as decodeJSON gives it
	from  upstream.SecretRef
}

// render implements document.
func (d *formatted) render(s *scope) (*output, error) {
	if d.format == Raw || d.format == PEM {
		return d.renderWhole(s)
	}
	pairs, err := d.pairs(s)
	if err != nil {
		return nil, err
	}
	out := &output{}
	switch d.format {
	case Env:
		err = writeLines(out, pairs, envLine)
	case Properties:
		err = writeLines(out, pairs, propertiesLine)
	case JSON:
		err = writeJSON(out, pairs)
	case YAML:
		if len(pairs) == 0 {
			out.text("{}\n")
		}
		err = writeLines(out, pairs, yamlLine)
	case TOML:
		err = writeLines(out, pairs, tomlLine)
	}
	if err != nil {
		return nil, err
	}
	if len(out.bytes) > maxOutput {
		return nil, refuse("the output is larger than %d bytes", maxOutput)
	}
	return out, nil
}

// renderWhole writes secrets, or one field of each, as they are.
func (d *formatted) renderWhole(s *scope) (*output, error) {
	out := &output{}
	for i := range d.secrets {
		spec := &d.secrets[i]
		value, err := s.get(spec.Ref, false)
		if err != nil {
			return nil, err
		}
		text := string(value.SecretData.Reveal())
		if spec.Field != "" {
			object, err := decodeObject(spec.Ref, value)
			if err != nil {
				return nil, err
			}
			field, ok := object[spec.Field]
			if !ok {
				return nil, refuse("secret %s has no field %q; names are case-sensitive", spec.Ref, spec.Field)
			}
			if text, err = scalarText(field); err != nil {
				return nil, refuse("field %q of secret %s is null", spec.Field, spec.Ref)
			}
		}
		if d.format == PEM {
			if !isPEM(text) {
				return nil, refuse("secret %s does not hold PEM blocks and nothing else", spec.Ref)
			}
			text = strings.TrimRight(text, "\n") + "\n"
		}
		out.value(text)
		if len(out.bytes) > maxOutput {
			return nil, refuse("the output is larger than %d bytes", maxOutput)
		}
	}
	return out, nil
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
func (d *formatted) pairs(s *scope) ([]pair, error) {
	var all []pair
	byKey := map[string]upstream.SecretRef{}
	for i := range d.secrets {
		pairs, err := d.secrets[i].pairs(s)
		if err != nil {
			return nil, err
		}
		for _, p := range pairs {
			if other, ok := byKey[p.key]; ok {
				return nil, refuse("secrets %s and %s give an entry of the same name; rename one or set a prefix", other, p.from)
			}
			byKey[p.key] = p.from
		}
		all = append(all, pairs...)
	}
	slices.SortFunc(all, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	return all, nil
}

// pairs returns the entries of one secret, renamed as asked.
func (spec *FormatSecret) pairs(s *scope) ([]pair, error) {
	value, err := s.get(spec.Ref, false)
	if err != nil {
		return nil, err
	}
	if spec.Key != "" {
		text := string(value.SecretData.Reveal())
		if !utf8.ValidString(text) {
			return nil, refuse("secret %s is not UTF-8; only format raw can carry it", spec.Ref)
		}
		return []pair{{key: spec.name(spec.Key), value: text, from: spec.Ref}}, nil
	}
	object, err := decodeObject(spec.Ref, value)
	if err != nil {
		return nil, refuse("%s; set key to write it whole", err)
	}
	pick := spec.Pick
	if spec.Field != "" {
		pick = []string{spec.Field}
	}
	for _, key := range slices.Concat(pick, slices.Sorted(maps.Keys(spec.Rename))) {
		if _, ok := object[key]; !ok {
			return nil, refuse("secret %s has no key %q; names are case-sensitive", spec.Ref, key)
		}
	}
	if len(pick) == 0 {
		pick = slices.Sorted(maps.Keys(object))
	}
	pairs := make([]pair, len(pick))
	names := map[string]bool{}
	for i, key := range pick {
		name := key
		if to, ok := spec.Rename[key]; ok {
			name = to
		}
		name = spec.name(name)
		if names[name] {
			return nil, refuse("two keys of secret %s give an entry of the same name", spec.Ref)
		}
		names[name] = true
		pairs[i] = pair{key: name, value: object[key], from: spec.Ref}
	}
	return pairs, nil
}

// name applies prefix and case.
func (spec *FormatSecret) name(key string) string {
	key = spec.Prefix + key
	if spec.UpperCase {
		key = strings.ToUpper(key)
	}
	return key
}

// writeLines writes every pair as one entry. An error names the secret and the position of
// the entry, not its name, which may come from the secret.
func writeLines(out *output, pairs []pair, line func(*output, pair) error) error {
	for i, p := range pairs {
		if err := line(out, p); err != nil {
			return refuse("entry %d of %d in the order of names, from secret %s: %s", i+1, len(pairs), p.from, err)
		}
		out.text("\n")
	}
	return nil
}

// flatText is the text of a value in a format that knows only text.
func flatText(v any) (string, error) {
	text, err := scalarText(v)
	if err != nil {
		return "", refuse("it is null, which this format cannot carry; pick other keys")
	}
	return text, nil
}

func envLine(out *output, p pair) error {
	for i, c := range []byte(p.key) {
		if !(c == '_' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || i > 0 && c >= '0' && c <= '9') {
			return refuse("its name is not one of a variable, [A-Za-z_][A-Za-z0-9_]*; rename it")
		}
	}
	if p.key == "" {
		return refuse("its name is empty; rename it")
	}
	text, err := flatText(p.value)
	if err != nil {
		return err
	}
	if strings.ContainsRune(text, 0) {
		return refuse("it holds a NUL byte, which no variable can carry; use another format")
	}
	out.text(p.key + "=")
	out.value(envQuote(text))
	return nil
}

// envQuote quotes for sh and systemd alike. Plain text stays bare, for readers that know no
// quotes; single quotes keep everything else literal, line breaks included; what holds a
// single quote goes into double quotes with the four characters escaped that both unescape.
func envQuote(s string) string {
	bare := s != ""
	for _, c := range []byte(s) {
		bare = bare && (c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("_-./:@%+,", c) >= 0)
	}
	switch {
	case bare:
		return s
	case !strings.Contains(s, "'"):
		return "'" + s + "'"
	default:
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(s) + `"`
	}
}

// propertiesLine writes as java.util.Properties.store does, with "=" between.
func propertiesLine(out *output, p pair) error {
	text, err := flatText(p.value)
	if err != nil {
		return err
	}
	out.text(propertiesEscape(p.key, true) + "=")
	out.value(propertiesEscape(text, false))
	return nil
}

func propertiesEscape(s string, key bool) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == ' ' && (key || i == 0):
			b.WriteString(`\ `)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\f':
			b.WriteString(`\f`)
		case strings.ContainsRune(`=:#!\`, r):
			b.WriteString(`\` + string(r))
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04X`, unit)
			}
		}
	}
	return b.String()
}

func writeJSON(out *output, pairs []pair) error {
	out.text("{")
	for i, p := range pairs {
		key, err := toJSON(p.key)
		if err != nil {
			return err
		}
		value, err := toJSON(p.value)
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

func yamlLine(out *output, p pair) error {
	key := p.key
	if !yamlPlain.MatchString(key) || yamlReserved.MatchString(key) {
		key = doubleQuoted(key)
	}
	out.text(key + ": ")
	out.value(flow(p.value))
	return nil
}

var (
	yamlPlain    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)
	yamlReserved = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`) // YAML 1.1 and 1.2
)

// flow writes a decoded JSON value on one line. JSON is YAML once its strings are escaped
// the YAML way.
func flow(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return doubleQuoted(v)
	case map[string]any:
		parts := make([]string, 0, len(v))
		for _, key := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, doubleQuoted(key)+": "+flow(v[key]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = flow(e)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case json.Number:
		return yamlNumber(v.String())
	default:
		return fmt.Sprint(v) // bool
	}
}

// yamlNumber writes exponents the way YAML 1.1 needs them, with a point before and a sign
// after the e: readers of that version take 1e5 for text.
func yamlNumber(s string) string {
	at := strings.IndexAny(s, "eE")
	if at < 0 {
		return s
	}
	mantissa, exponent := s[:at], s[at+1:]
	if !strings.Contains(mantissa, ".") {
		mantissa += ".0"
	}
	if exponent[0] != '-' && exponent[0] != '+' {
		exponent = "+" + exponent
	}
	return mantissa + "e" + exponent
}

// doubleQuoted escapes what YAML and TOML both unescape: quotes and backslashes by a
// backslash, everything that is not printable by \u and \U.
func doubleQuoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
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

func tomlLine(out *output, p pair) error {
	value, err := tomlValue(p.value)
	if err != nil {
		return err
	}
	out.text(tomlKey(p.key) + " = ")
	out.value(value)
	return nil
}

func tomlKey(key string) string {
	bare := key != ""
	for _, c := range []byte(key) {
		bare = bare && (c == '_' || c == '-' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9')
	}
	if bare {
		return key
	}
	return doubleQuoted(key)
}

// tomlValue writes a decoded JSON value on one line, objects as inline tables.
func tomlValue(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", refuse("it is or holds a null, which TOML cannot carry; pick other keys")
	case string:
		return doubleQuoted(v), nil
	case bool:
		return strconv.FormatBool(v), nil
	case json.Number:
		return tomlNumber(v.String())
	case map[string]any:
		parts := make([]string, 0, len(v))
		for _, key := range slices.Sorted(maps.Keys(v)) {
			value, err := tomlValue(v[key])
			if err != nil {
				return "", err
			}
			parts = append(parts, tomlKey(key)+" = "+value)
		}
		return "{" + strings.Join(parts, ", ") + "}", nil
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			value, err := tomlValue(e)
			if err != nil {
				return "", err
			}
			parts[i] = value
		}
		return "[" + strings.Join(parts, ", ") + "]", nil
	default:
		return "", refuse("it has a type that TOML cannot carry")
	}
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
