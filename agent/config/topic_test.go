package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"secretagent/agent/command/help/helptest"
)

// kinds names the types of values in the topic.
var kinds = map[reflect.Type]string{
	reflect.TypeFor[bool]():          "true or false",
	reflect.TypeFor[int]():           "number",
	reflect.TypeFor[float64]():       "number",
	reflect.TypeFor[time.Duration](): "duration",
	reflect.TypeFor[ByteSize]():      "size",
	reflect.TypeFor[MemoryLimit]():   "auto, off, or a size",
	reflect.TypeFor[FileMode]():      "mode",
	reflect.TypeFor[Account]():       "name or number",
	reflect.TypeFor[Path]():          "path",
}

// TestTheTopicConfigurationHasEveryKey holds the list of "secretagent help configuration" against
// the schema.
func TestTheTopicConfigurationHasEveryKey(t *testing.T) {
	table := "| Key | Value | Default |\n|---|---|---|\n"
	eachKey(reflect.TypeFor[Config](), "", func(key string, f field) {
		if value := valueOf(f); value != "" {
			fallback := "none"
			switch {
			case f.required:
				fallback = "required"
			case f.hasDefault:
				fallback = "`" + strings.ReplaceAll(f.fallback, "|", ", ") + "`"
			}
			table += fmt.Sprintf("| `%s` | %s | %s |\n", key, value, fallback)
		}
	})
	helptest.Hold(t, "configuration", "keys", table, *update)
}

// valueOf says what a key takes; empty for a section, whose keys have rows of their own.
func valueOf(f field) string {
	typ, list := f.typ, ""
	if typ.Kind() == reflect.Slice {
		typ, list = typ.Elem(), "list of "
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	var value string
	switch kind, known := kinds[typ]; {
	case typ.Kind() == reflect.Map:
		value = "section"
	case !isScalar(typ):
		return ""
	case len(f.enum) > 0:
		value = strings.Join(f.enum, ", ")
	case known:
		value = kind
	default:
		value = "text"
	}
	if list != "" {
		value = list + value + "s"
	}
	if f.min != "" {
		value += ", " + f.min + " to " + f.max
	}
	if f.off {
		value += ", or off"
	}
	return value
}

// TestFormatsAreExplained: every format of files and every shape of answers stands in the example and
// in its help topic.
func TestFormatsAreExplained(t *testing.T) {
	for key, topic := range map[string]string{"templates[].format": "templates", "endpoint.format": "http"} {
		found := false
		eachKey(reflect.TypeFor[Config](), "", func(k string, f field) {
			if k != key {
				return
			}
			found = true
			for file, quote := range map[string]string{exampleFile: "", "../command/help/" + topic + ".md": "`"} {
				text, err := os.ReadFile(file)
				must(t, err)
				for _, word := range f.enum {
					if !strings.Contains(string(text), quote+word+quote) {
						t.Errorf("%s does not explain %s: %s", file, key, word)
					}
				}
			}
		})
		if !found {
			t.Errorf("there is no key %s", key)
		}
	}
}
