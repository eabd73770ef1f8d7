package builtin

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"secretagent/upstream"
)

// CreateSecret makes a secret with a first version that carries ACSCurrent. Only generic
// secrets can be made here; the fields of managed types are refused, except ExtendedConfig,
// which the service ignores for generic secrets too.
//
// It fails with [upstream.ErrExists] when the name is taken, with
// [upstream.ErrPendingDeletion] when a secret of that name is scheduled for deletion, and with
// [upstream.ErrKeyNotFound] when EncryptionKeyID is not an enabled key of the keyring.
func (s *Store) CreateSecret(ctx context.Context, in upstream.CreateSecretInput) (upstream.SecretMetadata, error) {
	const op = "CreateSecret"
	ref := secretRef(in.SecretName)
	first := version{id: in.VersionID, binary: in.SecretDataType == upstream.DataTypeBinary}
	tags, err := mergeTags(nil, in.Tags)
	if err := cmp.Or(in.Validate(), err); err != nil {
		return upstream.SecretMetadata{}, refer(err, op, ref)
	}
	key := uint32(0)
	if in.EncryptionKeyID != "" {
		var ok bool
		if key, ok = parseKeyID(in.EncryptionKeyID); !ok || key == 0 {
			return upstream.SecretMetadata{}, refer(&upstream.Error{
				Message: fmt.Sprintf("the keyring has no key %q; its key ids are decimal numbers", in.EncryptionKeyID),
				Err:     upstream.ErrKeyNotFound,
			}, op, ref)
		}
	}
	var created upstream.SecretMetadata
	err = s.write(ctx, op, ref, func(t *tx) error {
		old, err := t.stored(in.SecretName)
		switch {
		case err != nil:
			return err
		case old == nil, old.gone(t.now):
		case old.pending():
			return errPending(in.SecretName, old)
		default:
			return &upstream.Error{Message: fmt.Sprintf("the secret %q already exists", in.SecretName), Err: upstream.ErrExists}
		}
		if key != 0 && t.keys.aead(key) == nil {
			return errUnknownKey(key)
		}
		if old != nil { // not purged yet
			if err := t.remove(in.SecretName, old); err != nil {
				return err
			}
		}
		r := &record{created: t.now, updated: t.now, key: key, description: in.Description, tags: tags}
		v := first
		v.created = t.now
		if err := t.putValue(in.SecretName, r, &v, in.SecretData.Reveal()); err != nil {
			return err
		}
		if _, err := r.add(v, []upstream.VersionStage{upstream.ACSCurrent}, s.opts.MaxVersions); err != nil {
			return err
		}
		if err := t.putRecord(in.SecretName, r); err != nil {
			return err
		}
		t.change(in.SecretName)
		created = s.metadata(in.SecretName, r, false)
		return nil
	})
	if err != nil {
		return upstream.SecretMetadata{}, err
	}
	return created, nil
}

// DescribeSecret returns metadata; tags only when asked for. A secret that is scheduled for
// deletion can be described.
func (s *Store) DescribeSecret(ctx context.Context, name upstream.SecretName, fetchTags bool) (upstream.SecretMetadata, error) {
	const op = "DescribeSecret"
	if err := name.Validate(); err != nil {
		return upstream.SecretMetadata{}, refer(err, op, upstream.SecretRef{})
	}
	var out upstream.SecretMetadata
	err := s.view(ctx, op, secretRef(name), func(t *tx) error {
		r, err := t.secret(name)
		if err == nil {
			out = s.metadata(name, r, fetchTags)
		}
		return err
	})
	return out, err
}

func (s *Store) metadata(name upstream.SecretName, r *record, fetchTags bool) upstream.SecretMetadata {
	m := upstream.SecretMetadata{
		ARN:         "acs:kms:local:0:secret/" + string(name),
		SecretName:  name,
		SecretType:  upstream.SecretTypeGeneric,
		Description: r.description,
		CreateTime:  unixTime(r.created),
		UpdateTime:  unixTime(r.updated),
	}
	if current, ok := r.holder(upstream.ACSCurrent); ok {
		m.EncryptionKeyID = formatKeyID(r.versions[r.find(current)].keyID)
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
	const op = "UpdateSecret"
	if err := in.Validate(); err != nil {
		return refer(err, op, secretRef(in.SecretName))
	}
	if in.Description == nil {
		return s.view(ctx, op, secretRef(in.SecretName), func(t *tx) error {
			_, err := t.live(in.SecretName)
			return err
		})
	}
	description := *in.Description
	return s.write(ctx, op, secretRef(in.SecretName), func(t *tx) error {
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
	const op = "DeleteSecret"
	ref := secretRef(in.SecretName)
	if err := in.Validate(); err != nil {
		return time.Time{}, refer(err, op, ref)
	}
	var planned time.Time
	err := s.write(ctx, op, ref, func(t *tx) error {
		r, err := t.secret(in.SecretName)
		if err != nil {
			return err
		}
		if in.ForceDeleteWithoutRecovery {
			t.change(in.SecretName)
			return t.remove(in.SecretName, r)
		}
		if r.pending() {
			return errPending(in.SecretName, r)
		}
		r.plannedDelete = t.now + int64(in.Window()/time.Second)
		r.updated = t.now
		if err := t.putRecord(in.SecretName, r); err != nil {
			return err
		}
		t.plan(in.SecretName, r.plannedDelete)
		t.change(in.SecretName)
		planned = unixTime(r.plannedDelete)
		return nil
	})
	if err != nil {
		return time.Time{}, err
	}
	return planned, nil
}

// RestoreSecret takes a scheduled deletion back. Versions and labels are as they were. It
// fails with [upstream.ErrNotPendingDeletion] when none is scheduled.
func (s *Store) RestoreSecret(ctx context.Context, name upstream.SecretName) error {
	const op = "RestoreSecret"
	if err := name.Validate(); err != nil {
		return refer(err, op, upstream.SecretRef{})
	}
	return s.write(ctx, op, secretRef(name), func(t *tx) error {
		r, err := t.secret(name)
		if err != nil {
			return err
		}
		if !r.pending() {
			return &upstream.Error{Message: fmt.Sprintf("the secret %q is not scheduled for deletion", name), Err: upstream.ErrNotPendingDeletion}
		}
		r.plannedDelete, r.updated = 0, t.now
		if err := t.putRecord(name, r); err != nil {
			return err
		}
		t.plan(name, 0)
		t.change(name)
		return nil
	})
}

// RotateSecret fails with [upstream.ErrUnsupported]: the service rotates managed secrets only,
// and all secrets here are generic.
func (s *Store) RotateSecret(ctx context.Context, name upstream.SecretName, id upstream.VersionID) error {
	return s.refuseRotation(ctx, "RotateSecret", name, cmp.Or(name.Validate(), id.Validate()))
}

// UpdateSecretRotationPolicy fails with [upstream.ErrUnsupported], as RotateSecret does.
func (s *Store) UpdateSecretRotationPolicy(ctx context.Context, in upstream.RotationPolicyInput) error {
	return s.refuseRotation(ctx, "UpdateSecretRotationPolicy", in.SecretName, in.SecretName.Validate())
}

func (s *Store) refuseRotation(ctx context.Context, op string, name upstream.SecretName, invalid error) error {
	if invalid != nil {
		return refer(invalid, op, secretRef(name))
	}
	return s.view(ctx, op, secretRef(name), func(t *tx) error {
		if _, err := t.live(name); err != nil {
			return err
		}
		return &upstream.Error{Message: "This action is not supported for Generic secrets; put a new version with PutSecretValue.", Err: upstream.ErrUnsupported}
	})
}

// GetRandomPassword draws a password: every password that fits the request is equally likely.
func (s *Store) GetRandomPassword(ctx context.Context, in upstream.RandomPasswordInput) (upstream.SecretData, error) {
	if err := ctx.Err(); err != nil {
		return upstream.SecretData{}, err
	}
	password, err := in.Draw()
	return password, refer(err, "GetRandomPassword", upstream.SecretRef{})
}
