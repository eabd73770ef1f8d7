package builtin

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"secretagent/upstream"
)

// Emulate is what a [Store] does as the cloud does it, where that would be wrong or without
// meaning otherwise; see the section Emulation of the package documentation. The zero value
// emulates nothing.
type Emulate struct {
	// InstanceID is the KMS instance that CreateSecret may name, and whose secrets have policies.
	// Empty means that there is none.
	InstanceID string

	// Keys are the keys of the cloud that CreateSecret may name, each as it is named: by its id,
	// its alias or its ARN.
	Keys []string

	// PutMovesStages makes a repeated PutSecretValue, of the same data under the same id, set the
	// labels of the version where it names any.
	PutMovesStages bool
}

// validate returns every problem of the options as [upstream.OptionErrors].
func (e Emulate) validate() error {
	var problems upstream.OptionErrors
	if e.InstanceID != "" && !plainID(e.InstanceID) {
		problems.Addf("instanceId", e.InstanceID, "%s, such as kst-hzz62f1cb66fa42qo", idForm)
	}
	for i, key := range e.Keys {
		at := fmt.Sprintf("keys[%d]", i)
		if _, decimal := parseKeyID(key); decimal {
			problems.Addf(at, key, "must not be a decimal number: those are the keys of the keyring, which may be named in any case")
		} else if !plainID(key) {
			problems.Addf(at, key, "%s, such as alias/app or key-hzz62f1cb66fa42qo", idForm)
		}
	}
	return problems.Err()
}

const idForm = "must have 1 to 256 characters of A-Za-z0-9_/:.=+@-"

func plainID(id string) bool {
	return id != "" && len(id) <= 256 && !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_/:.=+@-", r)
	})
}

// judge checks what a creation asks for that only the cloud has, and returns the key of the
// keyring that it names; zero where it names none or one of the cloud.
func (e *Emulate) judge(in *upstream.CreateSecretInput) (key uint32, err error) {
	switch {
	case in.DKMSInstanceID == "":
	case e.InstanceID == "":
		return 0, upstream.InvalidParameter("DKMSInstanceId", "the built-in backend has no KMS instances; leave it out, or have one emulated with upstream.local.emulate.instanceId")
	case in.DKMSInstanceID != e.InstanceID:
		return 0, upstream.InvalidParameter("DKMSInstanceId", "it is not the instance of upstream.local.emulate.instanceId")
	}
	switch {
	case in.Policy == "":
	case e.InstanceID == "":
		return 0, upstream.InvalidParameter("Policy", "the built-in backend has no secret policies; use the access keys of its API, or have policies kept, without effect, with upstream.local.emulate.instanceId")
	default:
		if err := upstream.ValidatePolicy(in.Policy); err != nil {
			return 0, err
		}
	}
	if slices.Contains(e.Keys, in.EncryptionKeyID) {
		return 0, nil
	}
	if key, err = keyNamed(in.EncryptionKeyID); err != nil {
		return 0, Errorf(upstream.ErrKeyNotFound, "there is no key %q: the keys of the keyring have decimal numbers, and those of the cloud that may be named are in upstream.local.emulate.keys", in.EncryptionKeyID)
	}
	return key, nil
}

// policies returns an error unless secrets have policies.
func (e *Emulate) policies() error {
	if e.InstanceID == "" {
		return Errorf(upstream.ErrUnsupported, "the built-in backend has no secret policies; use the access keys of its API, or have policies kept, without effect, with upstream.local.emulate.instanceId")
	}
	return nil
}

// GetSecretPolicy returns the policy of a secret, also of one that is scheduled for deletion:
// [upstream.DefaultPolicy] where none was set. It fails with [upstream.ErrUnsupported] unless
// [Emulate.InstanceID] is set.
func (s *Store) GetSecretPolicy(ctx context.Context, name upstream.SecretName) (string, error) {
	return answer(ctx, s.view, call{"GetSecretPolicy", secretRef(name), name.Validate()}, func(t *tx) (string, error) {
		r, err := t.secret(name)
		if err == nil {
			err = s.opts.Emulate.policies()
		}
		if err != nil {
			return "", err
		}
		if r.policy == "" {
			return upstream.DefaultPolicy, nil
		}
		return r.policy, nil
	})
}

// SetSecretPolicy replaces the policy of a secret, which has no effect. It fails with
// [upstream.ErrUnsupported] unless [Emulate.InstanceID] is set.
func (s *Store) SetSecretPolicy(ctx context.Context, name upstream.SecretName, policy string) error {
	return s.write(ctx, call{"SetSecretPolicy", secretRef(name), name.Validate()}, func(t *tx) error {
		r, err := t.live(name)
		if err == nil {
			err = s.opts.Emulate.policies()
		}
		if err == nil {
			err = upstream.ValidatePolicy(policy)
		}
		if err != nil {
			return err
		}
		r.policy, r.updated = policy, t.now
		return t.putRecord(name, r)
	})
}
