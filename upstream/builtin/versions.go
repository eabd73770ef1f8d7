package builtin

import (
	"bytes"
	"context"
	"slices"

	"secretagent/upstream"
)

// GetSecretValue returns the version that ref names; without version and stage, the one that
// carries ACSCurrent. It fails with [upstream.ErrNotFound], with [upstream.ErrPendingDeletion],
// and with [upstream.ErrInvalidParameter] when ref names a version and a stage that marks
// another one.
func (s *Store) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	invalid := ref.Validate()
	ref = ref.WithDefaults()
	return answer(ctx, s.view, call{"GetSecretValue", ref, invalid}, func(t *tx) (none upstream.SecretValue, err error) {
		r, err := t.live(ref.SecretName)
		if err != nil {
			return none, err
		}
		v, err := r.resolve(ref)
		if err != nil {
			return none, err
		}
		data, err := t.value(ref.SecretName, v)
		if err != nil {
			return none, err
		}
		stages := r.stagesOf(v.id)
		for i, stage := range stages {
			stages[i] = detached(stage)
		}
		return upstream.SecretValue{
			SecretName:     ref.SecretName,
			VersionID:      detached(v.id),
			VersionStages:  stages,
			SecretData:     upstream.NewSecretData(data),
			SecretDataType: v.dataType(),
			SecretType:     upstream.SecretTypeGeneric,
			CreateTime:     unixTime(v.created),
			RequestID:      upstream.NewRequestID(),
		}, nil
	})
}

// PutSecretValue adds a version and moves labels to it, ACSCurrent unless the input names
// others. The same id with the same data and type succeeds and changes nothing, its labels
// included, unless [Emulate.PutMovesStages] is set; with other data it fails with
// [upstream.ErrExists]. Beyond the limit of versions the oldest one without a label is deleted.
func (s *Store) PutSecretValue(ctx context.Context, in upstream.PutSecretValueInput) (upstream.SecretVersion, error) {
	relabels := in.VersionStages != nil && s.opts.Emulate.PutMovesStages
	in.VersionStages = slices.Clone(in.Stages()) // the write may go on without its caller
	ref := upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID}
	return answer(ctx, s.write, call{"PutSecretValue", ref, in.Validate()}, func(t *tx) (none upstream.SecretVersion, err error) {
		r, err := t.live(in.SecretName)
		if err != nil {
			return none, err
		}
		v := version{id: in.VersionID, created: t.now, binary: in.SecretDataType == upstream.DataTypeBinary}
		if i := r.find(in.VersionID); i >= 0 {
			old := &r.versions[i]
			if err := t.sameValue(in.SecretName, old, &v, in.SecretData); err != nil || !relabels {
				return r.version(old), err
			}
			if changed, err := r.relabel(old.id, in.VersionStages); err != nil || !changed {
				return r.version(old), err
			}
			return r.version(old), t.putVersions(in.SecretName, r)
		}
		if v.keyID, err = t.keyFor(r); err != nil {
			return none, err
		}
		evicted, err := r.add(v, in.VersionStages, s.opts.MaxVersions)
		if err != nil {
			return none, err
		}
		if err := t.putValue(in.SecretName, r, &v, in.SecretData.Reveal()); err != nil {
			return none, err
		}
		for _, id := range evicted {
			if err := t.delete(Values, valueKey(in.SecretName, id)); err != nil {
				return none, err
			}
		}
		return r.version(&v), t.putVersions(in.SecretName, r)
	})
}

// putVersions stores r, of which versions or labels have changed.
func (t *tx) putVersions(name upstream.SecretName, r *record) error {
	r.updated = t.now
	t.change(name)
	return t.putRecord(name, r)
}

// sameValue refuses to put a version again with another value.
func (t *tx) sameValue(name upstream.SecretName, old, again *version, data upstream.SecretData) error {
	stored, err := t.value(name, old)
	if err != nil {
		return err
	}
	if old.binary != again.binary || !bytes.Equal(stored, data.Reveal()) {
		return Errorf(upstream.ErrExists, "version %q already exists with another value; versions are never rewritten, choose a new VersionId", old.id)
	}
	return nil
}

// version returns what is told about a version.
func (r *record) version(v *version) upstream.SecretVersion {
	return upstream.SecretVersion{VersionID: v.id, CreateTime: unixTime(v.created), VersionStages: r.stagesOf(v.id)}
}

// UpdateSecretVersionStage attaches, moves or removes one label. A label that is already where
// it should go is left there, with success. Built-in labels are never removed.
func (s *Store) UpdateSecretVersionStage(ctx context.Context, in upstream.UpdateSecretVersionStageInput) error {
	ref := upstream.SecretRef{SecretName: in.SecretName, VersionStage: in.VersionStage}
	return s.write(ctx, call{"UpdateSecretVersionStage", ref, in.Validate()}, func(t *tx) error {
		r, err := t.live(in.SecretName)
		if err != nil {
			return err
		}
		changed, err := r.move(in.VersionStage, in.MoveToVersion, in.RemoveFromVersion)
		if err != nil || !changed {
			return err
		}
		return t.putVersions(in.SecretName, r)
	})
}

// ListSecretVersionIDs returns one page of versions, newest first. Versions of a secret that is
// scheduled for deletion can be listed.
func (s *Store) ListSecretVersionIDs(ctx context.Context, in upstream.ListSecretVersionIDsInput) (upstream.ListSecretVersionIDsOutput, error) {
	c := call{"ListSecretVersionIds", secretRef(in.SecretName), in.Validate()}
	return answer(ctx, s.view, c, func(t *tx) (out upstream.ListSecretVersionIDsOutput, err error) {
		r, err := t.secret(in.SecretName)
		if err != nil {
			return out, err
		}
		var all []upstream.SecretVersion
		for i := range slices.Backward(r.versions) {
			if v := r.version(&r.versions[i]); in.IncludeDeprecated || len(v.VersionStages) > 0 {
				all = append(all, v)
			}
		}
		page := in.Page.WithDefaults(20)
		first, last := page.Span()
		return upstream.ListSecretVersionIDsOutput{
			SecretName: in.SecretName, Versions: all[min(first, len(all)):min(last, len(all))], Page: page, TotalCount: len(all),
		}, nil
	})
}
