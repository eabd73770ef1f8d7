package kmsserver

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// AccessKey is a caller of a signed listener and what it may do.
type AccessKey struct {
	ID     string // 1 to 128 characters of [A-Za-z0-9_.-]
	Secret upstream.SecretData

	// SecurityToken makes the key a temporary one: requests must carry this token. Empty:
	// requests must carry none.
	SecurityToken upstream.SecretData

	// Actions and Secrets are patterns in which * stands for any characters, slashes
	// included. A call passes when its action matches one of Actions and every secret it
	// names matches one of Secrets. Actions are named as in the API, with or without the
	// prefix "kms:".
	Actions []string
	Secrets []string
}

// LoadAccessKeySecret reads the secret of an access key from a file, see
// [keyfile.AccessKeySecret]. Surrounding white space is not part of it. A file that is missing
// is made with a random secret of 130 bits.
func LoadAccessKeySecret(path string) (upstream.SecretData, error) {
	content, _, err := keyfile.AccessKeySecret.Load(path, func() []byte { return []byte(rand.Text() + "\n") })
	if err != nil {
		return upstream.SecretData{}, fmt.Errorf("access key secret: %w", err)
	}
	text := bytes.TrimSpace(content)
	if len(text) == 0 {
		return upstream.SecretData{}, fmt.Errorf("access key secret: %s: is empty: remove it to have a new secret created", path)
	}
	return upstream.NewSecretData(text), nil
}

// accessKey is an AccessKey that was checked, with its replay memory.
type accessKey struct {
	id      string
	secret  upstream.SecretData
	token   upstream.SecretData
	actions []string
	secrets []string
	nonces  *nonces
}

// checkAccessKeys returns keys by id. Replay memory is taken over from before, so that a
// request cannot be replayed by way of a reload.
func checkAccessKeys(keys []AccessKey, before map[string]*accessKey, noncesPerKey int) (map[string]*accessKey, error) {
	checked := make(map[string]*accessKey, len(keys))
	var problems []error
	for i, key := range keys {
		problem := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf("access key %d (%q): "+format, append([]any{i + 1, key.ID}, args...)...))
		}
		if !validKeyID(key.ID) {
			problem("the id is not 1 to 128 characters of A-Z a-z 0-9 _ . -")
		}
		if _, taken := checked[key.ID]; taken {
			problem("the id is used twice")
		}
		if key.Secret.Len() == 0 {
			problem("the secret is empty")
		}
		if len(key.Actions) == 0 {
			problem("actions is empty: list what the key may do, or \"*\"")
		}
		if len(key.Secrets) == 0 {
			problem("secrets is empty: list the names the key may use, or \"*\"")
		}
		var allowed []string
		for _, pattern := range key.Actions {
			pattern = strings.TrimPrefix(pattern, "kms:")
			if !matchesKnownAction(pattern) {
				problem("actions: %q matches no action", pattern)
			}
			allowed = append(allowed, pattern)
		}
		for _, pattern := range key.Secrets {
			if err := upstream.SecretName(strings.ReplaceAll(pattern, "*", "a")).Validate(); err != nil {
				problem("secrets: %q can match no name", pattern)
			}
		}
		k := &accessKey{id: key.ID, secret: key.Secret, token: key.SecurityToken, actions: allowed, secrets: slices.Clone(key.Secrets)}
		if old := before[key.ID]; old != nil {
			k.nonces = old.nonces
		} else {
			k.nonces = newNonces(noncesPerKey)
		}
		checked[key.ID] = k
	}
	return checked, errors.Join(problems...)
}

func validKeyID(id string) bool {
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r)
	}
	return id != "" && len(id) <= 128 && strings.TrimFunc(id, ok) == "" && utf8.ValidString(id)
}

func matchesKnownAction(pattern string) bool {
	for name := range actions {
		if matchPattern(pattern, name) {
			return true
		}
	}
	return false
}

// mayCall reports whether the key may call an action. A nil key is a trusted caller.
func (k *accessKey) mayCall(action string) bool {
	return k == nil || matchAny(k.actions, action)
}

// mayUse reports whether the key may use a secret. A nil key is a trusted caller.
func (k *accessKey) mayUse(name upstream.SecretName) bool {
	return k == nil || matchAny(k.secrets, string(name))
}

// mayUseAll reports whether every secret is allowed, so that nothing needs filtering.
func (k *accessKey) mayUseAll() bool {
	return k == nil || slices.Contains(k.secrets, "*")
}

func matchAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matchPattern(pattern, s) })
}

// matchPattern reports whether s has the form of pattern, in which * stands for any
// characters. It backtracks only to the last star, so its time is bounded by the product of
// both lengths.
func matchPattern(pattern, s string) bool {
	p, i := 0, 0
	star, resume := -1, 0 // where the last star is, and where to try again after it
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			resume++
			p, i = star+1, resume
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
