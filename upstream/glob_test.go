package upstream

import (
	"strings"
	"testing"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "app/db", true}, {"app/*", "app/db", true}, {"app/*", "app/", true}, {"app/*", "app", false}, {"app/*", "xapp/db", false},
		{"*/db", "app/db", true}, {"*/db", "a/b/db", true}, {"*/db", "app/db2", false}, {"a*b*c", "abbbc", true}, {"a*b*c", "acb", false},
		{"a**c", "abc", true}, {"abc", "abc", true}, {"abc", "ab", false}, {"", "", true}, {"", "a", false}, {"*a*a*a", "aaaa", true}, {"*ab", "aab", true},
		{"Get*", "GetSecretValue", true}, {"Get*", "PutSecretValue", false}, {"app/?", "app/x", true}, {"app/?", "app/", false}, {"app.[x]", "app.x", false},
	} {
		if got := Glob(c.pattern, c.s); got != c.want {
			t.Errorf("%q on %q: %t", c.pattern, c.s, got)
		}
	}
	if Glob(strings.Repeat("*a", 90)+"b", strings.Repeat("a", 192)) {
		t.Error("matches")
	}
	if !Permits(nil, "a") || Permits([]string{}, "a") || !Permits([]string{"b", "a*"}, "a") || Permits([]string{"b"}, "a") {
		t.Error("Permits")
	}
	const arn = "acs:kms:cn-hangzhou:1:secret/app/db"
	for pattern, want := range map[string]bool{
		"*": true, arn: true, "acs:kms:*:1:secret/app/*": true, "acs:kms:cn-hangzhou:1:secret/*": true,
		"app/*": false, "*/db": false, "**": false, "*:secret/*": false, "acs*": false,
		"acs:kms:cn-hangzhou:2:secret/*": false, "acs:kms:cn-beijing:*:secret/*": false, "acs:kms:*:2:secret/*": false,
	} {
		if got := Permits([]string{pattern}, arn); got != want {
			t.Errorf("%q permits an ARN: %t", pattern, got)
		}
		if got := Permits([]string{pattern}, "app/db"); got != !strings.Contains(pattern, ":") && !strings.HasPrefix(pattern, "acs") {
			t.Errorf("%q permits a name: %t", pattern, got)
		}
	}
}
