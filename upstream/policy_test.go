package upstream

import (
	"errors"
	"strings"
	"testing"
)

func TestPolicies(t *testing.T) {
	statement := func(s string) string { return `{"Version":"1","Statement":[` + s + `]}` }
	const good = `{"Effect":"Deny","Principal":{"RAM":["acs:ram::1:user/a","acs:ram::1:role/b"]},"Action":["kms:GetSecretValue","kms:List*"],"Resource":["*"]}`
	with := func(old, changed string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%s is not in the good statement", old)
		}
		return statement(strings.Replace(good, old, changed, 1))
	}
	for _, policy := range []string{
		DefaultPolicy, statement(good), statement(good + ",\n" + good),
		with(`"Effect"`, `"Sid":"Enable RAM User_/+=.@-9","Effect"`),
		with(`["*"]}`, `"*","Condition":{"IpAddress":{"acs:SourceIp":["203.0.113.1"]}}}`),
		with(`["acs:ram::1:user/a","acs:ram::1:role/b"]`, `"acs:ram::1:*"`), with(`["kms:GetSecretValue","kms:List*"]`, `"kms:*"`),
		statement(good + strings.Repeat(" ", MaxPolicyLen-len(statement(good)))),
	} {
		if err := ValidatePolicy(policy); err != nil {
			t.Errorf("%s: %v", policy, err)
		}
	}
	for policy, want := range map[string]string{
		"x": "JSON object", "null": "JSON object", "[]": "JSON object", "{}": "Version", "{\"\xff\":1}": "UTF-8",
		`{"Version":1,"Statement":[` + good + `]}`:           "Version",
		`{"Version":"2","Statement":[` + good + `]}`:         "Version",
		`{"Version":"1","Statement":[` + good + `],"Id":""}`: "member besides",
		`{"version":"1","Statement":[` + good + `]}`:         "member besides",
		`{"Version":"1"}`: "Statement must", statement(""): "Statement must", statement(good) + "}": "JSON object",
		statement(good + `,{}`):                                           "Statement[1]: Effect",
		with(`"Deny"`, `"Maybe"`):                                         "Effect",
		with(`"Effect"`, `"Sid":1,"Effect"`):                              "Sid",
		with(`"Effect"`, `"Sid":"a:b","Effect"`):                          "Sid",
		with(`"Effect"`, `"Sid":"ü","Effect"`):                            "Sid",
		with(`"Effect"`, `"NotAction":"","Effect"`):                       "member besides",
		with(`"Effect"`, `"Sid":"`+strings.Repeat("s", 129)+`","Effect"`): "Sid",
		with(`{"RAM":["acs:ram::1:user/a","acs:ram::1:role/b"]}`, `"*"`):  "Principal",
		with(`["acs:ram::1:user/a","acs:ram::1:role/b"]`, `[]`):           "Principal",
		with(`"RAM"`, `"Service"`):                                        "Principal",
		with(`"kms:List*"`, `"oss:*"`):                                    "Action",
		with(`["kms:GetSecretValue","kms:List*"]`, `[1]`):                 "Action",
		with(`["*"]`, `["acs:kms:*:*:secret/a"]`):                         "Resource",
		with(`["*"]`, `["*"],"Condition":"x"`):                            "Condition",
		statement(good + strings.Repeat(" ", MaxPolicyLen)):               "at most 32768",
	} {
		if err := ValidatePolicy(policy); !errors.Is(err, ErrInvalidParameter) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.200s: %v, want %s", policy, err, want)
		}
	}
	if err := ValidatePolicy(""); !errors.Is(err, ErrMissingParameter) {
		t.Errorf("none: %v", err)
	}
}
