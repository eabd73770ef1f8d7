package upstream

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxPolicyLen is the length of the longest secret policy, in bytes.
const MaxPolicyLen = 32768

// maxSidLen is the length of the longest identifier of a statement, in characters.
const maxSidLen = 128

// DefaultPolicy is the policy of a secret for which none was set: the account may do everything.
// It is that of a backend whose account is 0.
const DefaultPolicy = `{"Version":"1","Statement":[{"Sid":"kms default secret policy","Effect":"Allow",` +
	`"Principal":{"RAM":["acs:ram::0:*"]},"Action":["kms:*"],"Resource":["*"]}]}`

// ValidatePolicy checks that a secret policy has the documented form. What it means, whether its
// principals exist, and the keys of conditions are not looked at.
func ValidatePolicy(policy string) error {
	if policy == "" {
		return MissingParameter("Policy")
	}
	if why := policyFault(policy); why != "" {
		return InvalidParameter("Policy", why)
	}
	return nil
}

func policyFault(text string) (why string) {
	if len(text) > MaxPolicyLen {
		return fmt.Sprintf("it has %d bytes, at most %d are allowed", len(text), MaxPolicyLen)
	}
	if !utf8.ValidString(text) {
		return "it is not valid UTF-8"
	}
	policy, why := members([]byte(text), "Version", "Statement")
	if why != "" {
		return why
	}
	if string(policy["Version"]) != `"1"` {
		return `Version must be "1"`
	}
	var statements []json.RawMessage
	if json.Unmarshal(policy["Statement"], &statements) != nil || len(statements) == 0 {
		return "Statement must be a list of at least one statement"
	}
	for i, s := range statements {
		if why := statementFault(s); why != "" {
			return fmt.Sprintf("Statement[%d]: %s", i, why)
		}
	}
	return ""
}

func statementFault(raw json.RawMessage) (why string) {
	s, why := members(raw, "Sid", "Effect", "Principal", "Action", "Resource", "Condition")
	if why != "" {
		return why
	}
	var sid, effect string
	if raw, given := s["Sid"]; given && json.Unmarshal(raw, &sid) != nil {
		return "Sid must be a text"
	}
	if len(sid) > maxSidLen || strings.ContainsFunc(sid, func(r rune) bool { return r != ' ' && (r >= utf8.RuneSelf || !identifierByte(byte(r))) }) {
		return fmt.Sprintf("Sid must have at most %d letters, digits, spaces and _/+=.@-", maxSidLen)
	}
	if json.Unmarshal(s["Effect"], &effect) != nil || effect != "Allow" && effect != "Deny" {
		return "Effect must be Allow or Deny"
	}
	principal, why := members(s["Principal"], "RAM")
	if why != "" || len(texts(principal["RAM"])) == 0 {
		return "Principal must be an object with RAM, a list of at least one principal"
	}
	actions := texts(s["Action"])
	if len(actions) == 0 || slices.ContainsFunc(actions, func(a string) bool { return !strings.HasPrefix(a, "kms:") }) {
		return "Action must be a list of at least one action, each beginning with kms:"
	}
	if !slices.Equal(texts(s["Resource"]), []string{"*"}) {
		return `Resource must be ["*"]`
	}
	if raw, given := s["Condition"]; given {
		if why := objectFault(raw, new(map[string]json.RawMessage)); why != "" {
			return "Condition must be an object"
		}
	}
	return ""
}

// members returns the members of a JSON object that has no others than those named.
func members(raw json.RawMessage, known ...string) (object map[string]json.RawMessage, why string) {
	if why := objectFault(raw, &object); why != "" {
		return nil, why
	}
	for name := range object {
		if !slices.Contains(known, name) {
			return nil, fmt.Sprintf("it has a member besides %s", strings.Join(known, ", "))
		}
	}
	return object, ""
}

// objectFault reads a JSON object.
func objectFault(raw json.RawMessage, object *map[string]json.RawMessage) (why string) {
	if json.Unmarshal(raw, object) != nil || *object == nil {
		return "it is not a JSON object"
	}
	return ""
}

// texts returns a list of JSON texts, or the one that stands for a list of one; nil when raw is
// neither.
func texts(raw json.RawMessage) (list []string) {
	var one string
	if json.Unmarshal(raw, &one) == nil && one != "" {
		return []string{one}
	}
	if json.Unmarshal(raw, &list) != nil || slices.Contains(list, "") {
		return nil
	}
	return list
}
