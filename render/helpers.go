package render

import (
	"bytes"
	"cmp"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/template"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"github.com/Masterminds/sprig/v3"
	"github.com/goccy/go-yaml"

	"secretagent/upstream"
)

// unrepeatable are functions of sprig's hermetic set that still read the clock, the time zone
// or a random source, so that equal secrets would give other bytes each time, that make key
// material, or that print their errors into the output (seq).
var unrepeatable = []string{
	"ago", "toDate", "mustToDate", "must_date_modify", "mustDateModify", "duration", "durationRound", "unixEpoch",
	"seq", "shuffle", "randInt", "bcrypt", "htpasswd", "encryptAES", "decryptAES", "derivePassword",
	"genPrivateKey", "genCA", "genCAWithKey", "genSelfSignedCert", "genSelfSignedCertWithKey",
	"genSignedCert", "genSignedCertWithKey", "buildCustomCert",
}

// ownFuncs returns the functions that read secrets, bound to c, and those that need its text.
func (c *templateContent) ownFuncs() template.FuncMap {
	return template.FuncMap{
		"secret":          c.secret,
		"secretJSON":      c.secretJSON,
		"secretField":     c.secretField,
		"secretVersion":   c.secretVersion,
		"secretVersionId": c.secretVersionID,
		"secretOr":        c.secretOr,
		"fail":            c.fail,
	}
}

// helpers returns every other function a template may call. They keep no state; all templates
// of a Renderer share one table.
func helpers() template.FuncMap {
	funcs := sprig.HermeticTxtFuncMap()
	for _, name := range unrepeatable {
		delete(funcs, name)
	}
	// Of sprig's pairs such as regexMatch and mustRegexMatch, the first hides errors.
	for name, fn := range funcs {
		if rest, ok := strings.CutPrefix(name, "must"); ok && rest != "" {
			if lenient := strings.ToLower(rest[:1]) + rest[1:]; funcs[lenient] != nil {
				funcs[lenient] = fn
			}
		}
	}
	maps.Copy(funcs, template.FuncMap{
		"parseJSON": parseJSON, "fromJson": parseJSON, "mustFromJson": parseJSON,
		"parseYAML": parseYAML, "fromYaml": parseYAML,
		"parseTOML": parseTOML, "fromToml": parseTOML,
		"toJSON": toJSON, "toJson": toJSON, "mustToJson": toJSON, "toRawJson": toJSON, "mustToRawJson": toJSON,
		"toJSONPretty": toJSONPretty, "toPrettyJson": toJSONPretty, "mustToPrettyJson": toJSONPretty,
		"toYAML": toYAML, "toYaml": toYAML,
		"toTOML": toTOML, "toToml": toTOML,

		"base64Encode": funcs["b64enc"], "base64URLEncode": func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
		"base64Decode": decoder("base64", base64.StdEncoding.DecodeString), "b64dec": decoder("base64", base64.StdEncoding.DecodeString),
		"base64URLDecode": decoder("URL-safe base64", base64.URLEncoding.DecodeString),
		"b32dec":          decoder("base32", base32.StdEncoding.DecodeString),

		// These replace functions that print "<no value>" for what is missing, leave it out,
		// give another order each time, or allocate without a bound.
		"print": checkedPrint(fmt.Sprint), "println": checkedPrint(fmt.Sprintln), "printf": printf,
		"html": checkedPrint(template.HTMLEscaper), "js": checkedPrint(template.JSEscaper), "urlquery": checkedPrint(template.URLQueryEscaper),
		"shellQuote": ofText(shellQuote), "pgpassEscape": ofText(pgpassEscape), "iniQuote": ofText(iniQuote), "phpQuote": ofText(phpQuote),
		"propertiesEscape": ofText(func(s string) (string, error) {
			if !utf8.ValidString(s) {
				return "", errNotText
			}
			return propertiesKey(s), nil
		}),
		"toString": printable,
		"quote":    quoted(strconv.Quote), "squote": quoted(func(s string) string { return "'" + s + "'" }),
		"get": get, "keys": sortedKeys, "values": sortedValues,
		"repeat": repeat, "until": until, "untilStep": untilStep,
		"indent": indent, "nindent": func(n int, s string) (string, error) { s, err := indent(n, s); return "\n" + s, err },
		"atoi": integer, "int": integer, "int64": integer64, "float64": float,
	})
	return funcs
}

// builtins names the functions of text/template, for the parser.
func builtins() map[string]any {
	all := map[string]any{}
	for _, name := range []string{
		"and", "call", "html", "index", "slice", "js", "len", "not", "or", "print", "printf", "println", "urlquery",
		"eq", "ge", "gt", "le", "lt", "ne",
	} {
		all[name] = true
	}
	return all
}

// functions are the names of all functions.
var functions = sync.OnceValue(func() map[string]any {
	all := builtins()
	maps.Copy(all, helpers())
	maps.Copy(all, (&templateContent{}).ownFuncs())
	return all
})

// HasFunction reports whether a template may call the function.
func HasFunction(name string) bool { _, has := functions()[name]; return has }

// whyUnknown says what to do about a function that does not exist here.
func whyUnknown(name string) string {
	_, left := sprig.GenericFuncMap()[name]
	others := []string{"file", "key", "service", "mustEnv", "envOrDefault", "writeToFile", "plugin", "timestamp"} // of other programs
	if left || slices.Contains(others, name) {
		return "it is left out because the same secrets must always give the same file: templates read no environment, files, network, clock or random source"
	}
	return "allowed are secret, secretJSON, secretField, secretVersion, secretVersionId, secretOr, parseJSON, parseYAML, parseTOML, toJSON, toYAML, toTOML, " +
		"base64Encode, base64Decode, shellQuote, propertiesEscape, pgpassEscape, iniQuote, phpQuote, and the functions of text/template and sprig"
}

// lookup reads "name" or "name:Label", or one version of it. The source's error is shown only
// when the template spells out what it asks for: a name that is computed may come from a secret.
func (c *templateContent) lookup(name string, version *string, optional bool) (upstream.SecretRef, upstream.SecretValue, error) {
	ref, err := upstream.ParseSecretRef(name)
	if err == nil && version != nil {
		ref.VersionID = upstream.VersionID(*version)
		err = ref.VersionID.Validate()
	}
	if err != nil {
		return ref, upstream.SecretValue{}, &refusal{err.Error(), err} // these errors do not quote the text
	}
	ref.Computed = !c.spells(name) || version != nil && !c.spells(*version)
	value, err := c.secrets.get(ref, optional)
	switch {
	case err == nil:
		return ref, value, nil
	case !ref.Computed:
		return ref, value, &refusal{err.Error(), err}
	}
	err = upstream.Conceal(err)
	return ref, value, &refusal{"the secret or version whose name is computed here: " + err.Error(), err}
}

func (c *templateContent) secret(name string) (string, error) {
	_, value, err := c.lookup(name, nil, false)
	return string(value.SecretData.Reveal()), err
}

func (c *templateContent) secretVersion(name, version string) (string, error) {
	_, value, err := c.lookup(name, &version, false)
	return string(value.SecretData.Reveal()), err
}

func (c *templateContent) secretVersionID(name string) (string, error) {
	_, value, err := c.lookup(name, nil, false)
	return string(value.VersionID), err
}

func (c *templateContent) secretOr(name, fallback string) (string, error) {
	_, value, err := c.lookup(name, nil, true)
	if errors.Is(err, upstream.ErrNotFound) {
		return fallback, nil
	}
	return string(value.SecretData.Reveal()), err
}

// secretJSON decodes anew on every call: functions such as set change what they are given.
func (c *templateContent) secretJSON(name string) (any, error) {
	ref, value, err := c.lookup(name, nil, false)
	if err != nil {
		return nil, err
	}
	v, err := decodeJSON(value.SecretData.Reveal())
	if errors.Is(err, upstream.ErrNotJSON) {
		return nil, refuse("secret %s cannot be read: %s; for text as it is, call secret in place of secretJSON", ref, err)
	}
	if err != nil {
		return nil, refuse("secret %s cannot be read: %s", ref, err)
	}
	switch v.(type) {
	case map[string]any, []any:
		return v, nil
	}
	return nil, refuse("secret %s is neither a JSON object nor a list; for text as it is, call secret in place of secretJSON", ref)
}

func (c *templateContent) secretField(name, field string) (string, error) {
	ref, value, err := c.lookup(name, nil, false)
	if err != nil {
		return "", err
	}
	fields, known := c.fields[ref]
	if !known {
		if fields, err = fieldsOf(ref, value); err != nil {
			return "", err
		}
		c.fields[ref] = fields
	}
	text, err := fields.Text(field)
	switch {
	case errors.Is(err, upstream.ErrNullField):
		return "", refuse("the field of secret %s is null", ref)
	case err != nil:
		return "", c.noField(ref, field)
	}
	return string(text), nil
}

// noField names the field only when the template spells it out; it may come from a secret.
func (c *templateContent) noField(ref upstream.SecretRef, field string) error {
	if c.spells(field) {
		return refuse("secret %s has no field %q; names are case-sensitive", ref, field)
	}
	return refuse("secret %s has no such field", ref)
}

// spells reports whether the template itself holds s in quotes.
func (c *templateContent) spells(s string) bool {
	return strings.Contains(c.source, strconv.Quote(s)) || strings.Contains(c.source, "`"+s+"`")
}

// fail stops the execution. Its message is shown only when the template spells it out.
func (c *templateContent) fail(message string) (string, error) {
	if c.spells(message) {
		return "", refuse("%s", message)
	}
	return "", refuse("the template calls fail (the message is not part of the template and may be secret)")
}

// fieldsOf reads a value that must be a JSON object.
func fieldsOf(ref upstream.SecretRef, value upstream.SecretValue) (upstream.Fields, error) {
	fields, err := value.SecretData.RevealFields()
	switch {
	case err == nil:
		return fields, nil
	case errors.Is(err, upstream.ErrNotObject) && json.Valid(value.SecretData.Reveal()):
		return nil, refuse("secret %s is not a JSON object", ref)
	case errors.Is(err, upstream.ErrNotObject):
		return nil, refuse("secret %s is not JSON", ref)
	}
	return nil, refuse("secret %s cannot be read: %s", ref, err)
}

// decodeJSON reads exactly one JSON document and keeps numbers as they are written. Its errors are
// those of [upstream.JSONText].
func decodeJSON(b []byte) (v any, err error) {
	if b, err = upstream.JSONText(b); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	err = dec.Decode(&v)
	return v, err
}

func parseJSON(s string) (any, error) {
	v, err := decodeJSON([]byte(s))
	if err != nil {
		return nil, refuse("the text cannot be read: %s", err)
	}
	return v, nil
}

func parseYAML(s string) (v any, err error) {
	if err := yaml.Unmarshal(upstream.TrimBOM([]byte(s)), &v); err != nil || !utf8.ValidString(s) {
		return nil, refuse("the text is not YAML")
	}
	return v, nil
}

func parseTOML(s string) (map[string]any, error) {
	var v map[string]any
	if err := toml.Unmarshal(upstream.TrimBOM([]byte(s)), &v); err != nil {
		return nil, refuse("the text is not TOML")
	}
	return v, nil
}

var errNotText = refuse("it is or holds a text that is not UTF-8; base64Encode makes one of any bytes")

// marshalJSON is json.Marshal that leaves <, > and & alone.
func marshalJSON(v any, indent string) (string, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return "", refuse("the value cannot be written as JSON")
	}
	// The encoder puts this escape for what is not UTF-8; it writes the character itself as it is.
	if bytes.Contains(bytes.ReplaceAll(buf.Bytes(), []byte(`\\`), nil), []byte(`\ufffd`)) {
		return "", errNotText
	}
	return strings.TrimSuffix(buf.String(), "\n"), nil
}

func toJSON(v any) (string, error)       { return marshalJSON(v, "") }
func toJSONPretty(v any) (string, error) { return marshalJSON(v, "  ") }

func toYAML(v any) (string, error) {
	v, err := nativeNumbers(v, true)
	if err != nil {
		return "", err
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		return "", refuse("the value cannot be written as YAML")
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

func toTOML(v any) (string, error) {
	if _, ok := v.(map[string]any); !ok {
		return "", refuse("TOML needs an object at the top")
	}
	v, err := nativeNumbers(v, false)
	if err != nil {
		return "", err
	}
	var buf bytes.Buffer
	enc := toml.NewEncoder(&buf)
	enc.Indent = ""
	if err := enc.Encode(v); err != nil {
		return "", refuse("the value cannot be written as TOML")
	}
	return strings.TrimSuffix(buf.String(), "\n"), nil
}

// nativeNumbers copies v with json.Number replaced by the Go number that is exactly as large. It
// refuses a text that is not UTF-8.
func nativeNumbers(v any, mayBeNull bool) (_ any, err error) {
	switch v := v.(type) {
	case string:
		if !utf8.ValidString(v) {
			return nil, errNotText
		}
		return v, nil
	case nil:
		if !mayBeNull {
			return nil, refuse("TOML has no null; remove it with omit or unset")
		}
		return nil, nil
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return n, nil
		}
		if n, err := strconv.ParseUint(v.String(), 10, 64); err == nil {
			return n, nil
		}
		f, err := strconv.ParseFloat(v.String(), 64)
		if err != nil || f == math.Trunc(f) && math.Abs(f) >= 1<<53 {
			return nil, refuse("a number is too large to be kept exact; quote it in the secret")
		}
		return f, nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			if out[k], err = nativeNumbers(e, mayBeNull); err != nil {
				return nil, err
			}
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			if out[i], err = nativeNumbers(e, mayBeNull); err != nil {
				return nil, err
			}
		}
		return out, nil
	default:
		return v, nil
	}
}

// decoder wraps a decoding whose error may quote its input.
func decoder(name string, decode func(string) ([]byte, error)) func(string) (string, error) {
	return func(s string) (string, error) {
		b, err := decode(s)
		if err != nil {
			return "", refuse("the text is not %s", name)
		}
		return string(b), nil
	}
}

// printable returns the text of a value, and refuses what has none that anybody would want
// in a file.
func printable(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", refuse("the value is null or missing")
	case string:
		return v, nil
	case []byte:
		return string(v), nil
	case fmt.Stringer, error:
		if rv := reflect.ValueOf(v); rv.Kind() == reflect.Pointer && rv.IsNil() {
			return "", refuse("the value is null or missing")
		}
		return fmt.Sprint(v), nil
	}
	switch reflect.ValueOf(v).Kind() {
	case reflect.Map, reflect.Struct:
		return "", refuse("the value is an object; name one of its fields, or use toJSON, toYAML or toTOML")
	case reflect.Slice, reflect.Array:
		return "", refuse("the value is a list; use range, index, join or toJSON")
	case reflect.Pointer, reflect.Func, reflect.Chan, reflect.Interface, reflect.UnsafePointer:
		return "", refuse("the value has no text")
	}
	return fmt.Sprint(v), nil
}

// ofText makes a helper of fn that takes whatever has a text, numbers and booleans among it.
func ofText(fn func(string) (string, error)) func(any) (string, error) {
	return func(v any) (string, error) {
		text, err := printable(v)
		if err != nil {
			return "", err
		}
		return fn(text)
	}
}

// noNull refuses arguments that fmt would print as <nil>.
func noNull(args []any) error {
	for i, arg := range args {
		if arg == nil {
			return refuse("argument %d is null or missing", i+1)
		}
	}
	return nil
}

func checkedPrint(print func(...any) string) func(...any) (string, error) {
	return func(args ...any) (string, error) {
		if err := noNull(args); err != nil {
			return "", err
		}
		return print(args...), nil
	}
}

func printf(format string, args ...any) (string, error) {
	if err := noNull(args); err != nil {
		return "", err
	}
	text := fmt.Sprintf(format, args...)
	// A verb that does not fit is printed as %!verb(…). Data may hold "%!" as well, so only
	// one that neither the format nor an argument brought counts.
	if strings.Contains(text, "%!") && !strings.Contains(format, "%%!") &&
		!slices.ContainsFunc(args, func(a any) bool { return strings.Contains(fmt.Sprint(a), "%!") }) {
		return "", refuse("printf: a verb does not fit its argument, or their numbers differ")
	}
	return text, nil
}

// quoted replaces sprig's quoting, which leaves nulls out.
func quoted(quote func(string) string) func(...any) (string, error) {
	return func(args ...any) (string, error) {
		out := make([]string, len(args))
		for i, arg := range args {
			text, err := printable(arg)
			if err != nil {
				return "", err
			}
			out[i] = quote(text)
		}
		return strings.Join(out, " "), nil
	}
}

// get replaces sprig's, which returns "" for a missing key.
func get(object map[string]any, key string) (any, error) {
	v, ok := object[key]
	if !ok {
		return nil, refuse("the object has no such key; hasKey or dig can ask whether it is there")
	}
	return v, nil
}

func sortedKeys(objects ...map[string]any) []string {
	var all []string
	for _, object := range objects {
		all = append(all, slices.Sorted(maps.Keys(object))...)
	}
	return all
}

func sortedValues(object map[string]any) []any {
	all := make([]any, 0, len(object))
	for _, key := range slices.Sorted(maps.Keys(object)) {
		all = append(all, object[key])
	}
	return all
}

func repeat(count int, s string) (string, error) {
	if count < 0 || len(s) > 0 && count > maxOutput/len(s) {
		return "", refuse("repeat: the result must have 0 to %d bytes", maxOutput)
	}
	return strings.Repeat(s, count), nil
}

// maxSteps bounds lists that are made from a number.
const maxSteps = 1 << 16

func until(count int) ([]int, error) { return untilStep(0, count, cmp.Compare(count, 0)) }

func untilStep(start, stop, step int) ([]int, error) {
	var list []int
	if step == 0 {
		return list, nil
	}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(list) == maxSteps {
			return nil, refuse("the list would have more than %d numbers", maxSteps)
		}
		list = append(list, i)
	}
	return list, nil
}

func indent(spaces int, s string) (string, error) {
	if spaces < 0 || spaces > 1000 {
		return "", refuse("indent: 0 to 1000 spaces are allowed")
	}
	pad := strings.Repeat(" ", spaces)
	if int64(len(pad))*int64(strings.Count(s, "\n")+1) > maxOutput {
		return "", refuse("indent: the result is larger than %d bytes", maxOutput)
	}
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad), nil
}

// integer, integer64 and float replace sprig's, which turn text that is no number into 0.
func integer(v any) (int, error) {
	n, err := integer64(v)
	if err == nil && int64(int(n)) != n {
		return 0, refuse("the number is too large")
	}
	return int(n), err
}

func integer64(v any) (int64, error) {
	if rv := reflect.ValueOf(v); rv.IsValid() && rv.CanFloat() && math.Abs(rv.Float()) < 1<<63 {
		return int64(rv.Float()), nil
	}
	text, err := printable(v) // json.Number and text among them
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, refuse("the value is not a whole number")
	}
	return n, nil
}

func float(v any) (float64, error) {
	text, err := printable(v)
	if err != nil {
		return 0, err
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, refuse("the value is not a number")
	}
	return f, nil
}
