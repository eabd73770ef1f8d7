package builtin

import (
	"cmp"
	"context"
	"time"

	"secretagent/upstream"
)

// CreateSecret makes a secret with a first version that carries ACSCurrent.
//
// It fails with [upstream.ErrExists] when the name is taken, with
// [upstream.ErrPendingDeletion] when a secret of that name is scheduled for deletion, and with
// [upstream.ErrKeyNotFound] when EncryptionKeyID is neither an enabled key of the keyring nor one
// of [Emulate].
func (s *Store) CreateSecret(ctx context.Context, in upstream.CreateSecretInput) (upstream.SecretMetadata, error) {
	key, err := s.opts.Emulate.judge(&in)
	c := call{"CreateSecret", secretRef(in.SecretName), cmp.Or(in.Validate(), err)}
	var tags []upstream.Tag
	if c.invalid == nil {
		tags, c.invalid = mergeTags(nil, in.Tags)
	}
	return answer(ctx, s.write, c, func(t *tx) (upstream.SecretMetadata, error) {
		return t.create(in, key, tags, s.opts.MaxVersions)
	})
}

// create makes the secret of a request that is valid; key is the one that it names, or zero.
func (t *tx) create(in upstream.CreateSecretInput, key uint32, tags []upstream.Tag, maxVersions int) (none upstream.SecretMetadata, err error) {
	old, err := t.stored(in.SecretName)
	switch {
	case err != nil:
		return none, err
	case old == nil, old.gone(t.now):
	case old.pending():
		return none, errPending(in.SecretName, old)
	default:
		return none, Errorf(upstream.ErrExists, "the secret %q already exists", in.SecretName)
	}
	if key != 0 && t.keys.aead(key) == nil {
		return none, errUnknownKey(key)
	}
	if err := t.claimKey(key); err != nil {
		return none, err
	}
	if old != nil { // not purged yet
		if err := t.remove(in.SecretName, old); err != nil {
			return none, err
		}
	}
	r := &record{
		created: t.now, updated: t.now, key: key, description: in.Description, tags: tags,
		encryptionKeyID: in.EncryptionKeyID, dkmsInstanceID: in.DKMSInstanceID, policy: in.Policy,
	}
	v := version{id: in.VersionID, created: t.now, binary: in.SecretDataType == upstream.DataTypeBinary}
	if err := t.putValue(in.SecretName, r, &v, in.SecretData.Reveal()); err != nil {
		return none, err
	}
	if _, err := r.add(v, []upstream.VersionStage{upstream.ACSCurrent}, maxVersions); err != nil {
		return none, err
	}
	t.change(in.SecretName)
	return metadata(in.SecretName, r, false), t.putRecord(in.SecretName, r)
}

// keyNamed returns the key that a request names; zero when it names none.
func keyNamed(id string) (uint32, error) {
	if id == "" {
		return 0, nil
	}
	key, ok := parseKeyID(id)
	if !ok || key == 0 {
		return 0, Errorf(upstream.ErrKeyNotFound, "the keyring has no key %q; its key ids are decimal numbers", id)
	}
	return key, nil
}

// DescribeSecret returns metadata; tags only when asked for. A secret that is scheduled for
// deletion can be described.
func (s *Store) DescribeSecret(ctx context.Context, name upstream.SecretName, fetchTags bool) (upstream.SecretMetadata, error) {
	return answer(ctx, s.view, call{"DescribeSecret", secretRef(name), name.Validate()}, func(t *tx) (none upstream.SecretMetadata, err error) {
		r, err := t.secret(name)
		if err != nil {
			return none, err
		}
		return metadata(name, r, fetchTags), nil
	})
}

func metadata(name upstream.SecretName, r *record, fetchTags bool) upstream.SecretMetadata {
	m := upstream.SecretMetadata{
		ARN:             Account + ":secret/" + string(name),
		SecretName:      name,
		SecretType:      upstream.SecretTypeGeneric,
		Description:     r.description,
		EncryptionKeyID: r.encryptionKeyID,
		DKMSInstanceID:  r.dkmsInstanceID,
		CreateTime:      unixTime(r.created),
		UpdateTime:      unixTime(r.updated),
	}
	if r.pending() {
		m.PlannedDeleteTime = unixTime(r.plannedDelete)
	}
	if fetchTags {
		m.Tags = r.tags
	}
	return m
}

func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

// UpdateSecret changes the description, never versions. Without a description it changes
// nothing.
func (s *Store) UpdateSecret(ctx context.Context, in upstream.UpdateSecretInput) error {
	c := call{"UpdateSecret", secretRef(in.SecretName), in.Validate()}
	if in.Description == nil {
		return s.view(ctx, c, func(t *tx) error {
			_, err := t.live(in.SecretName)
			return err
		})
	}
	description := *in.Description
	return s.write(ctx, c, func(t *tx) error {
		r, err := t.live(in.SecretName)
		if err != nil {
			return err
		}
		r.description, r.updated = description, t.now
		return t.putRecord(in.SecretName, r)
	})
}

// DeleteSecret schedules the deletion and returns when it happens; the zero time after a
// forced, immediate deletion, which is also possible while another one is scheduled. The name
// of a secret deleted by force is free at once.
func (s *Store) DeleteSecret(ctx context.Context, in upstream.DeleteSecretInput) (time.Time, error) {
	return answer(ctx, s.write, call{"DeleteSecret", secretRef(in.SecretName), in.Validate()}, func(t *tx) (none time.Time, err error) {
		r, err := t.secret(in.SecretName)
		switch {
		case err != nil:
			return none, err
		case in.ForceDeleteWithoutRecovery:
			t.change(in.SecretName)
			return none, t.remove(in.SecretName, r)
		case r.pending():
			return none, errPending(in.SecretName, r)
		}
		return unixTime(t.now).Add(in.Window()), t.planDeletion(in.SecretName, r, t.now+int64(in.Window()/time.Second))
	})
}

// RestoreSecret takes a scheduled deletion back. Versions and labels are as they were. It
// fails with [upstream.ErrNotPendingDeletion] when none is scheduled.
func (s *Store) RestoreSecret(ctx context.Context, name upstream.SecretName) error {
	return s.write(ctx, call{"RestoreSecret", secretRef(name), name.Validate()}, func(t *tx) error {
		r, err := t.secret(name)
		if err != nil {
			return err
		}
		if !r.pending() {
			return Errorf(upstream.ErrNotPendingDeletion, "the secret %q is not scheduled for deletion", name)
		}
		return t.planDeletion(name, r, 0)
	})
}

// planDeletion notes when the secret is to be purged; zero: not at all.
func (t *tx) planDeletion(name upstream.SecretName, r *record, at int64) error {
	r.plannedDelete, r.updated = at, t.now
	t.change(name)
	return t.putRecord(name, r)
}

// GetRandomPassword draws a password: every password that fits the request is equally likely.
func (s *Store) GetRandomPassword(ctx context.Context, in upstream.RandomPasswordInput) (upstream.SecretData, error) {
	if err := ctx.Err(); err != nil {
		return upstream.SecretData{}, err
	}
	password, err := in.Draw()
	return password, refer(err, "GetRandomPassword", upstream.SecretRef{})
}
