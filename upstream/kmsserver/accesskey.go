package kmsserver

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// AccessKey is a caller of a signed listener and what it may do.
type AccessKey struct {
	ID string // 1 to 128 letters, digits, dots, dashes and underscores

	// Secret signs the requests. Where it is empty it is read from SecretFile, see
	// [keyfile.AccessKeySecret]; surrounding white space is not part of it. A file that is
	// missing is made with a random secret of 130 bits. A key whose file is of no use is shut out,
	// see [Server.ShutOut], and keeps no other from calling.
	Secret     upstream.SecretData
	SecretFile string

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

// loadSecret returns the secret of the key. create says that a missing file is made; without
// it, a file that could be made counts as a secret.
func (k AccessKey) loadSecret(create bool) (upstream.SecretData, error) {
	if k.Secret.Len() > 0 {
		return k.Secret, nil
	}
	var content []byte
	var err error
	if create {
		content, _, err = keyfile.AccessKeySecret.Load(k.SecretFile, func() []byte { return []byte(rand.Text() + "\n") })
	} else if content, err = keyfile.AccessKeySecret.Read(k.SecretFile); errors.Is(err, fs.ErrNotExist) {
		return upstream.SecretData{}, keyfile.AccessKeySecret.Check(k.SecretFile)
	}
	if err != nil {
		return upstream.SecretData{}, err
	}
	text := bytes.TrimSpace(content)
	if len(text) == 0 {
		return upstream.SecretData{}, fmt.Errorf("%s: is empty: remove it to have a new secret created", k.SecretFile)
	}
	return upstream.NewSecretData(text), nil
}

// CheckSecretFiles returns which keys a server would shut out, and why, as [upstream.OptionErrors].
// It creates nothing.
func CheckSecretFiles(keys []AccessKey) error {
	var problems upstream.OptionErrors
	for i, key := range keys {
		_, err := key.loadSecret(false)
		problems.Add(fmt.Sprintf("accessKeys[%d].secretFile", i), err)
	}
	return problems.Err()
}

// checkAccessKeys returns every problem of the keys but those of [CheckSecretFiles].
func checkAccessKeys(keys []AccessKey) error {
	var problems upstream.OptionErrors
	ids, files := map[string]bool{}, map[string]bool{}
	for i, key := range keys {
		at := fmt.Sprintf("accessKeys[%d].", i)
		switch {
		case !validKeyID.MatchString(key.ID):
			problems.Addf(at+"id", key.ID, "must be 1 to 128 letters, digits, dots, dashes and underscores")
		case ids[key.ID]:
			problems.Addf(at+"id", key.ID, "is given to two keys: choose another")
		}
		if files[key.SecretFile] && key.SecretFile != "" {
			problems.Addf(at+"secretFile", key.SecretFile, "is shared by two keys: give each its own")
		}
		ids[key.ID], files[key.SecretFile] = true, true
		if key.Secret.Len() == 0 && key.SecretFile == "" {
			problems.Addf(at+"secretFile", "", "is missing")
		}
		if len(key.Actions) == 0 {
			problems.Addf(at+"actions", "", `must not be empty; ["*"] allows everything`)
		}
		if len(key.Secrets) == 0 {
			problems.Addf(at+"secrets", "", `must not be empty; ["*"] allows everything`)
		}
		for j, pattern := range key.Actions {
			if !matchesKnownAction(pattern) {
				problems.Addf(fmt.Sprintf("%sactions[%d]", at, j), pattern, "must be an action of the API, with * for any text")
			}
		}
		for j, pattern := range key.Secrets {
			if name := upstream.SecretName(strings.ReplaceAll(pattern, "*", "a")); name.Validate() != nil || name.Account() != "" {
				problems.Addf(fmt.Sprintf("%ssecrets[%d]", at, j), pattern, "must be the name of a secret, with * for any text")
			}
		}
	}
	return problems.Err()
}

var validKeyID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

func matchesKnownAction(pattern string) bool {
	for name := range actions {
		if matchAction(pattern, name) {
			return true
		}
	}
	return false
}

func matchAction(pattern, action string) bool {
	return !strings.Contains(pattern, "?") && upstream.Glob(strings.TrimPrefix(pattern, "kms:"), action)
}

// accessKey is an AccessKey that was checked, with its secret and its replay memory.
type accessKey struct {
	AccessKey
	nonces *nonces
	polls  *polls
}

// polls are what is known of the watching with a key.
type polls struct {
	last   atomic.Int64  // when, in nanoseconds after [changes] began; 0: never
	lapses atomic.Uint64 // how often nobody watched for too long
}

// accessKeys are the keys that may call. They are immutable, but for what is remembered.
type accessKeys struct {
	byID    map[string]*accessKey
	removed map[string]*nonces // :: id of a key that is there no more → what could still be replayed
	shutOut map[string]string  // :: id of a key without a secret → why
}

// openAccessKeys checks keys and returns them by id. Replay memory is taken over from before, also
// that of keys which are removed or shut out now, so that a request cannot be replayed by way of a reload.
func openAccessKeys(keys []AccessKey, before *accessKeys, noncesPerKey int, now time.Time) (*accessKeys, error) {
	if err := checkAccessKeys(keys); err != nil {
		return nil, err
	}
	opened := make(map[string]*accessKey, len(keys))
	known := map[string]*nonces{}
	for id, old := range before.removed {
		if !old.forgotten(now) {
			known[id] = old
		}
	}
	for id, old := range before.byID { // empty or not: it can still sign until the new keys are set
		known[id] = old.nonces
	}
	shutOut := map[string]string{}
	for _, key := range keys {
		var err error
		if key.Secret, err = key.loadSecret(true); err != nil {
			shutOut[key.ID] = err.Error()
			continue
		}
		k := &accessKey{key, known[key.ID], &polls{}}
		if k.nonces == nil {
			k.nonces = newNonces(noncesPerKey)
		}
		if old := before.byID[key.ID]; old != nil {
			k.polls = old.polls
		}
		opened[key.ID] = k
		delete(known, key.ID)
	}
	return &accessKeys{opened, known, shutOut}, nil
}

// mayCall reports whether the key may call an action. A nil key is a trusted caller.
func (k *accessKey) mayCall(action string) bool {
	return k == nil || slices.ContainsFunc(k.Actions, func(pattern string) bool { return matchAction(pattern, action) })
}

// mayUse reports whether the key may use a secret. A nil key is a trusted caller.
func (k *accessKey) mayUse(name upstream.SecretName) bool {
	return upstream.Permits(k.permitted(), name)
}

// permitted returns the globs of the secrets that the key may use; nil: all.
func (k *accessKey) permitted() []string {
	if k == nil || slices.Contains(k.Secrets, "*") {
		return nil
	}
	return k.Secrets
}
