package endpoint_test

import (
	"encoding/json"
	"strings"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

const (
	kmsLine   = tokenLine
	awsLine   = "X-Aws-Parameters-Secrets-Token: " + token
	vaultLine = "X-Vault-Token: " + token
)

// shapeOf says whose body it is: of a value, or of an error.
func shapeOf(body string) string {
	var b map[string]json.RawMessage
	if json.Unmarshal([]byte(body), &b) != nil {
		return "text"
	}
	for _, known := range []struct{ key, shape string }{
		{"SecretData", "kms"}, {"ARN", "aws"}, {"lease_id", "vault"}, // values
		{"__type", "aws error"}, {"Code", "kms error"}, {"errors", "vault error"},
	} {
		if b[known.key] != nil {
			return known.shape
		}
	}
	return body
}

// TestOneRuleDecidesTheFamily holds the rule: whose header, then whose path, then the rest, and
// that format= decides the shape all the same.
func TestOneRuleDecidesTheFamily(t *testing.T) {
	aws := strings.Repeat("a", 32)
	r := start(t, endpoint.Options{
		Callers: []endpoint.Caller{
			callerWith(t, "all", []string{"*"}, token),
			{Name: "aws", Tokens: []endpoint.Token{mustToken(t, aws)}, Secrets: []string{"*"}, Format: endpoint.FormatAWS},
		},
		VaultMounts: []endpoint.VaultMount{{Path: "secret"}},
	})
	for _, name := range []string{"app/db", "secret/data/app/db", "secret/app/db"} {
		r.put(value(name, "v1", name, upstream.ACSCurrent))
	}
	for _, test := range []struct{ target, header, shape, holds string }{
		{"/v1/app/db", kmsLine, "kms", `"app/db"`},
		{"/v1/app/db", vaultLine, "kms", `"app/db"`}, // the header of all three families says nothing
		{"/v1/app/db", "X-KMS-Token: " + aws, "aws", `"app/db"`},
		{"/v1/app/db?format=kms", "X-KMS-Token: " + aws, "kms", `"app/db"`},
		{"/v1/app/db", awsLine, "aws", `"app/db"`},
		{"/secretsmanager/get?secretId=app/db", awsLine, "aws", `"app/db"`},
		{"/v1/app/db?format=raw", awsLine, "text", "app/db"},
		{"/v1/secret/data/app/db", vaultLine, "vault", `{"value":"app/db"}`},
		{"/v1/secret/data/app%2Fdb", kmsLine, "vault", `{"value":"app/db"}`},
		{"/v1/secret/data/app/db", "X-KMS-Token: " + aws, "vault", `{"value":"app/db"}`},
		{"/v1/secret/data/app/db?format=kms", vaultLine, "kms", `"SecretName":"app/db"`},
		{"/v1/secret/data/app/db?format=aws", vaultLine, "aws", `"Name":"app/db"`},

		// The AWS agent knows no mounts.
		{"/v1/secret/data/app/db", awsLine, "aws", `"secret/data/app/db"`},
		// Below a mount, yet none of Vault's paths.
		{"/v1/secret/app/db", kmsLine, "kms", `"secret/app/db"`},
		// A name that begins like a mount.
		{"/v1/secret%2Fdata%2Fapp%2Fdb", vaultLine, "kms", `"secret/data/app/db"`},
		{"/v1/secret/data%2Fapp/db", vaultLine, "kms", `"secret/data/app/db"`},
		{"/secretsmanager/get?secretId=secret/data/app/db", vaultLine, "kms", `"secret/data/app/db"`},

		// Errors look like the values.
		{"/v1/none", kmsLine, "kms error", "ResourceNotFound"},
		{"/v1/secret/data/none", vaultLine, "vault error", `{"errors":[]}`},
		{"/v1/secret/data/none?format=kms", vaultLine, "kms error", "ResourceNotFound"},
		{"/v1/none?format=vault", kmsLine, "vault error", `{"errors":[]}`},
		{"/v1/none?x=1", kmsLine, "kms error", "InvalidParameter"},
		{"/v1/none?x=1&format=vault", kmsLine, "vault error", `\"x\"`},
		{"/v1/secret/data/none?x=1", vaultLine, "vault error", `\"x\"`},

		// Refusals, too.
		{"/nowhere", "X-KMS-Token: " + aws, "text", "Not found"},
		{"/nowhere?format=kms", "X-KMS-Token: " + aws, "kms error", "PathNotFound"},
		{"/v1/app/db", "X-KMS-Token: no", "kms error", "TokenInvalid"},
		{"/v1/secret/data/app/db", "X-KMS-Token: no", "vault error", `{"errors":["permission denied"`},
		{"/v1/secret/data/app/db", "X-Real-Ip: a\r\n" + vaultLine, "vault error", `{"errors":["permission denied"`},
		{"/v1/secret/data/app/db", "Origin: http://a\r\n" + vaultLine, "vault error", `{"errors":["permission denied"`},
		{"/v1/secret/data/app/db", "X-Vault-Wrap-TTL: 60s\r\n" + vaultLine, "vault error", "not wrapped"},
		{"/v1/app/db", "X-Vault-Wrap-TTL: 60s\r\n" + vaultLine, "kms", `"app/db"`},
	} {
		c := r.dial(t)
		c.send(request("GET", test.target, hostLine, test.header))
		got := c.receive("GET")
		if shape := shapeOf(got.body); shape != test.shape || !strings.Contains(got.body, test.holds) {
			t.Errorf("%s with %s: %d %s, want %s with %s", test.target, test.header, got.status, got.body, test.shape, test.holds)
		}
	}
}
