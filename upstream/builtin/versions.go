package builtin

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"

	"secretagent/upstream"
)

// GetSecretValue returns the version that ref names; without version and stage, the one that
// carries ACSCurrent. It fails with [upstream.ErrNotFound], with [upstream.ErrPendingDeletion],
// and with [upstream.ErrInvalidParameter] when ref names a version and a stage that marks
// another one.
func (s *Store) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	const op = "GetSecretValue"
	if err := ref.Validate(); err != nil {
		return upstream.SecretValue{}, refer(err, op, ref)
	}
	ref = ref.WithDefaults()
	var out upstream.SecretValue
	err := s.view(ctx, op, ref, func(t *tx) error {
		r, err := t.live(ref.SecretName)
		if err != nil {
			return err
		}
		v, err := r.resolve(ref)
		if err != nil {
			return err
		}
		data, err := t.value(ref.SecretName, v)
		if err != nil {
			return err
		}
		stages := r.stagesOf(v.id)
		for i, stage := range stages {
			stages[i] = detached(stage)
		}
		out = upstream.SecretValue{
			SecretName:     ref.SecretName,
			VersionID:      detached(v.id),
			VersionStages:  stages,
			SecretData:     upstream.NewSecretData(data),
			SecretDataType: v.dataType(),
			SecretType:     upstream.SecretTypeGeneric,
			CreateTime:     unixTime(v.created),
			RequestID:      newRequestID(),
		}
		return nil
	})
	if err != nil {
		return upstream.SecretValue{}, err
	}
	return out, nil
}

// newRequestID returns a UUID, version 4, in lower case. It identifies a request in logs and
// need not be hard to guess.
func newRequestID() string {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	var text [36]byte
	hex.Encode(text[0:], id[0:4])
	hex.Encode(text[9:], id[4:6])
	hex.Encode(text[14:], id[6:8])
	hex.Encode(text[19:], id[8:10])
	hex.Encode(text[24:], id[10:16])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

// PutSecretValue adds a version and moves labels to it, ACSCurrent unless the input names
// others. The same id with the same data and type succeeds and changes nothing, its labels
// included; with other data it fails with [upstream.ErrExists]. Beyond the limit of versions
// the oldest one without a label is deleted.
func (s *Store) PutSecretValue(ctx context.Context, in upstream.PutSecretValueInput) (upstream.SecretVersion, error) {
	const op = "PutSecretValue"
	ref := upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID}
	if err := in.Validate(); err != nil {
		return upstream.SecretVersion{}, refer(err, op, ref)
	}
	stages := slices.Clone(in.Stages()) // the caller may leave while the write goes on
	isBinary := in.SecretDataType == upstream.DataTypeBinary
	var out upstream.SecretVersion
	err := s.write(ctx, op, ref, func(t *tx) error {
		r, err := t.live(in.SecretName)
		if err != nil {
			return err
		}
		if i := r.find(in.VersionID); i >= 0 {
			v := &r.versions[i]
			data, err := t.value(in.SecretName, v)
			if err != nil {
				return err
			}
			if v.binary != isBinary || !bytes.Equal(data, in.SecretData.Reveal()) {
				return &upstream.Error{
					Message: fmt.Sprintf("version %q already exists with another value; versions are never rewritten, choose a new VersionId", in.VersionID),
					Err:     upstream.ErrExists,
				}
			}
			out = r.version(v)
			return nil
		}
		v := version{id: in.VersionID, created: t.now, keyID: t.keyFor(r), binary: isBinary}
		if t.keys.aead(v.keyID) == nil {
			return errUnknownKey(v.keyID)
		}
		evicted, err := r.add(v, stages, s.opts.MaxVersions)
		if err != nil {
			return err
		}
		r.updated = t.now
		if err := t.putValue(in.SecretName, r, &v, in.SecretData.Reveal()); err != nil {
			return err
		}
		for _, id := range evicted {
			if err := t.deleteValue(in.SecretName, id); err != nil {
				return err
			}
		}
		if err := t.putRecord(in.SecretName, r); err != nil {
			return err
		}
		t.change(in.SecretName)
		out = r.version(&v)
		return nil
	})
	if err != nil {
		return upstream.SecretVersion{}, err
	}
	return out, nil
}

// version returns what is told about a version.
func (r *record) version(v *version) upstream.SecretVersion {
	return upstream.SecretVersion{VersionID: v.id, CreateTime: unixTime(v.created), VersionStages: r.stagesOf(v.id)}
}

// UpdateSecretVersionStage attaches, moves or removes one label. A label that is already where
// it should go is left there, with success. Built-in labels are never removed.
func (s *Store) UpdateSecretVersionStage(ctx context.Context, in upstream.UpdateSecretVersionStageInput) error {
	const op = "UpdateSecretVersionStage"
	ref := upstream.SecretRef{SecretName: in.SecretName, VersionStage: in.VersionStage}
	if err := in.Validate(); err != nil {
		return refer(err, op, ref)
	}
	return s.write(ctx, op, ref, func(t *tx) error {
		r, err := t.live(in.SecretName)
		if err != nil {
			return err
		}
		changed, err := r.move(in.VersionStage, in.MoveToVersion, in.RemoveFromVersion)
		if err != nil || !changed {
			return err
		}
		r.updated = t.now
		t.change(in.SecretName)
		return t.putRecord(in.SecretName, r)
	})
}

// ListSecretVersionIDs returns one page of versions, newest first. Versions of a secret that is
// scheduled for deletion can be listed.
func (s *Store) ListSecretVersionIDs(ctx context.Context, in upstream.ListSecretVersionIDsInput) (upstream.ListSecretVersionIDsOutput, error) {
	const op = "ListSecretVersionIds"
	ref := secretRef(in.SecretName)
	if err := in.Validate(); err != nil {
		return upstream.ListSecretVersionIDsOutput{}, refer(err, op, ref)
	}
	page := in.Page.WithDefaults(20)
	out := upstream.ListSecretVersionIDsOutput{SecretName: in.SecretName, Page: page}
	err := s.view(ctx, op, ref, func(t *tx) error {
		r, err := t.secret(in.SecretName)
		if err != nil {
			return err
		}
		var all []upstream.SecretVersion
		for i := range slices.Backward(r.versions) {
			if v := r.version(&r.versions[i]); in.IncludeDeprecated || len(v.VersionStages) > 0 {
				all = append(all, v)
			}
		}
		first, last := page.Span()
		out.Versions, out.TotalCount = all[min(first, len(all)):min(last, len(all))], len(all)
		return nil
	})
	if err != nil {
		return upstream.ListSecretVersionIDsOutput{}, err
	}
	return out, nil
}
