package render

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf16"
)

// The functions of this file write a text so that the programs they name read it back unchanged,
// or refuse it. Their errors do not quote it.

var (
	// bareWord are texts that mean themselves anywhere in a command of sh.
	bareWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,-]+$`)

	// bareValue are those that mean themselves after NAME= for every reader of .env files.
	// bareTilde are exceptions: sh puts a home directory there.
	bareValue = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,?\[\]{}!*^-][A-Za-z0-9_./:@%+,?\[\]{}!*^~=-]*$`)
	bareTilde = regexp.MustCompile(`[:=]~`)
)

// lineBreaks are the characters at which one reader or another ends a line.
const lineBreaks = "\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029"

// dotenvQuote writes what all common readers of .env files agree on. The readers, and what was
// found about them, are in examples/dotenv.
//
//  1. Bare text is read as it is.
//  2. Double quotes around text without \, ", $ and ` need no escapes, which hardly two readers
//     know alike.
//  3. Single quotes keep these four characters, except where a reader looks inside.
func dotenvQuote(s string) (string, error) {
	const instead = "; format shell carries it, for sh and systemd"
	switch {
	case strings.ContainsRune(s, 0):
		return "", refuse("it holds a NUL byte, which no variable can carry; use another format")
	case strings.ContainsAny(s, lineBreaks):
		return "", refuse("it holds a line break, which some readers of .env files end the value at" + instead)
	case s == "" || bareValue.MatchString(s) && !bareTilde.MatchString(s):
		return s, nil
	case !strings.ContainsAny(s, "\\\"$`"):
		return `"` + s + `"`, nil
	case strings.Contains(s, "'"):
		return "", refuse("it holds a ' together with a \\, \", $ or `, which no quotes keep from all readers of .env files" + instead)
	case strings.Contains(s, "${"):
		return "", refuse("it holds ${, which python-dotenv replaces also in quotes" + instead)
	case strings.Contains(s, `\\`), strings.HasSuffix(s, `\`), strings.Contains(s, `\`) && strings.TrimLeftFunc(s, unicode.IsSpace) != s:
		return "", refuse("it holds a \\ at its end, before another one, or after a space at its start, which some readers of .env files take for an escape" + instead)
	case strings.Contains(s, `="`) && strings.Count(s, `"`)-strings.Count(s, `\"`) < 2:
		return "", refuse("it holds =\" without a second \", which phpdotenv takes for the start of several lines" + instead)
	case len(s) > 1 && s[0] == '"' && s[len(s)-1] == '"':
		return "", refuse("it stands in double quotes itself, which django-environ removes" + instead)
	}
	return "'" + s + "'", nil
}

// shellQuote writes one word for sh and for systemd's EnvironmentFile: in single quotes, which
// keep everything but themselves, line breaks included; with one inside, in double quotes with the
// four characters escaped that both unescape.
func shellQuote(s string) (string, error) {
	switch {
	case strings.ContainsRune(s, 0):
		return "", refuse("it holds a NUL byte, which no variable and no argument can carry; use another format")
	case bareWord.MatchString(s):
		return s, nil
	case !strings.Contains(s, "'"):
		return "'" + s + "'", nil
	default:
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(s) + `"`, nil
	}
}

// dockerPlain refuses what docker --env-file and kubectl --from-env-file cannot hold. They take
// everything up to the end of the line as it is.
func dockerPlain(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", refuse("it holds a line break or a NUL byte, which no line of this format can carry; mount it as a file instead")
	}
	return s, nil
}

// propertiesKey and propertiesValue escape for java.util.Properties, whose files are Latin-1.
// A key may stand for a value too.
func propertiesKey(s string) string   { return propertiesEscape(s, true) }
func propertiesValue(s string) string { return propertiesEscape(s, false) }

func propertiesEscape(s string, key bool) string {
	var b strings.Builder
	for i, r := range s {
		if at := strings.IndexRune("\t\n\r\f", r); at >= 0 {
			b.WriteString(`\` + "tnrf"[at:at+1])
			continue
		}
		switch {
		case r == ' ' && (key || i == 0), strings.ContainsRune(`=:#!\`, r):
			b.WriteString(`\` + string(r))
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		default:
			for _, half := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04X`, half)
			}
		}
	}
	return b.String()
}

// pgpassEscape writes one field of a password file of PostgreSQL.
func pgpassEscape(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", refuse("it holds a line break or a NUL byte, which a password file cannot carry")
	}
	escaped := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(s)
	if s == "*" || strings.HasPrefix(s, "#") { // every host, user, …; a comment
		escaped = `\` + escaped
	}
	return escaped, nil
}

// iniQuote writes a value for option files of MySQL, for git config and for PHP's
// parse_ini_file, whose modes are normal and typed.
func iniQuote(s string) (string, error) {
	switch {
	case strings.ContainsAny(s, "\n\r\x00"):
		return "", refuse("it holds a line break or a NUL byte, which not every reader of INI files keeps")
	case strings.Contains(s, "${"):
		return "", refuse("it holds ${, which PHP replaces in an INI file; write a PHP file with phpQuote")
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`, nil
}

// phpQuote writes a string literal of PHP, which can hold every byte.
func phpQuote(s string) (string, error) {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'", nil
}
