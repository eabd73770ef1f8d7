package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// TokenVariables are where the agents of Alibaba Cloud and of AWS find their token, in the order in
// which the first that is set counts: the token itself, or file:///path.
var TokenVariables = []string{
	"KMS_TOKEN", "KMS_SESSION_TOKEN", "KMS_CONTAINER_AUTHORIZATION_TOKEN",
	"AWS_TOKEN", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
}

// credentialBeside are variables beside which one of TokenVariables holds a part of a credential of
// AWS, which applications must not send to whoever listens at the address of the agent, and which
// ends long before the agent. As a file:// such a variable is none.
var credentialBeside = map[string][]string{
	"AWS_SESSION_TOKEN":                 {"AWS_ACCESS_KEY_ID"},
	"AWS_CONTAINER_AUTHORIZATION_TOKEN": {"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"},
}

// TokenVariable returns the one of [TokenVariables] that says what the token is, where the
// configuration does not: TokenFile is then the file that it names, or empty when the variable
// holds the token itself. It is empty when none says it.
func (e *Endpoint) TokenVariable() string { return e.tokenVariable }

// TokenPassedOver returns the one of [TokenVariables] that is not taken, because it holds a
// credential; empty: none.
func (e *Endpoint) TokenPassedOver() string { return e.tokenPassedOver }

// findToken looks for the token in the environment where the file says neither where it is nor who
// may ask.
func (e *Endpoint) findToken(p *problems) {
	for _, key := range []string{"callers", "tokenFile", "tokenMode", "tokenGroup"} {
		if p.has("endpoint." + key) {
			return
		}
	}
	for _, name := range TokenVariables {
		value := os.Getenv(name)
		path, isFile := strings.CutPrefix(value, "file://")
		switch {
		case value == "":
		case isFile && !filepath.IsAbs(path):
			p.addf("endpoint.tokenFile", "", "the variable %s must be the token itself or file:// and an absolute path", name)
			return
		case isFile:
			e.tokenVariable, e.TokenFile = name, Path(filepath.Clean(path))
			return
		case slices.ContainsFunc(credentialBeside[name], func(beside string) bool { return os.Getenv(beside) != "" }):
			e.tokenPassedOver = name
		default:
			e.tokenVariable, e.TokenFile = name, ""
			return
		}
	}
}
