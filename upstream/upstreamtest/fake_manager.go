package upstreamtest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"secretagent/upstream"
)

type fakeSecret struct {
	meta     upstream.SecretMetadata // without tags
	policy   string
	tags     map[string]string
	versions []upstream.SecretValue // oldest first, without labels
	labels   map[upstream.VersionStage]upstream.VersionID
}

// version returns the index of a version, -1 when there is none.
func (s *fakeSecret) version(id upstream.VersionID) int {
	return slices.IndexFunc(s.versions, func(v upstream.SecretValue) bool { return v.VersionID == id })
}

func (s *fakeSecret) stagesOf(id upstream.VersionID) []upstream.VersionStage {
	var stages []upstream.VersionStage
	for stage, holder := range s.labels {
		if holder == id {
			stages = append(stages, stage)
		}
	}
	slices.Sort(stages)
	return stages
}

// describe returns what is told about the version at index i.
func (s *fakeSecret) describe(i int) upstream.SecretVersion {
	v := s.versions[i]
	return upstream.SecretVersion{VersionID: v.VersionID, CreateTime: v.CreateTime, VersionStages: s.stagesOf(v.VersionID)}
}

// attach moves a label to a version. The old holder of ACSCurrent gets ACSPrevious.
func (s *fakeSecret) attach(stage upstream.VersionStage, id upstream.VersionID) {
	old, held := s.labels[stage]
	if held && old == id {
		return
	}
	s.labels[stage] = id
	if held && stage == upstream.ACSCurrent {
		s.labels[upstream.ACSPrevious] = old
	}
}

// relabel takes the custom labels off a version and then attaches stages, all of which end on it
// whatever their order. It reports whether that has changed anything.
func (s *fakeSecret) relabel(id upstream.VersionID, stages []upstream.VersionStage) bool {
	before := maps.Clone(s.labels)
	for _, stage := range s.stagesOf(id) {
		if !stage.BuiltIn() {
			delete(s.labels, stage)
		}
	}
	if slices.Contains(stages, upstream.ACSCurrent) {
		s.attach(upstream.ACSCurrent, id)
	}
	for _, stage := range stages {
		s.attach(stage, id)
	}
	return !maps.Equal(before, s.labels)
}

func failed(sentinel error, message string) error {
	return &upstream.Error{Message: message, Err: sentinel}
}

var (
	errTooManyLabels = failed(upstream.ErrLimitExceeded, "a secret has at most 8 labels")
	errNoVersion     = failed(upstream.ErrNotFound, "no such version")
)

// find returns a copy of a secret that still exists, scheduled for deletion or not.
func (f *Fake) find(name upstream.SecretName) (*fakeSecret, error) {
	if err := name.Validate(); err != nil {
		return nil, err
	}
	s := f.secrets[name]
	if s == nil || !s.meta.PlannedDeleteTime.IsZero() && !f.now().Before(s.meta.PlannedDeleteTime) {
		return nil, failed(upstream.ErrNotFound, "no such secret")
	}
	return &fakeSecret{meta: s.meta, policy: s.policy, tags: maps.Clone(s.tags), versions: slices.Clone(s.versions), labels: maps.Clone(s.labels)}, nil
}

// findLive returns a copy of a secret that is not scheduled for deletion.
func (f *Fake) findLive(name upstream.SecretName) (*fakeSecret, error) {
	s, err := f.find(name)
	if err == nil && !s.meta.PlannedDeleteTime.IsZero() {
		return nil, failed(upstream.ErrPendingDeletion, "")
	}
	return s, err
}

// keep stores a copy that find returned and an operation has changed.
func (f *Fake) keep(s *fakeSecret) {
	s.meta.UpdateTime = f.now()
	f.secrets[s.meta.SecretName] = s
}

// all returns the secrets that still exist, by name.
func (f *Fake) all() (all []*fakeSecret) {
	for _, name := range slices.Sorted(maps.Keys(f.secrets)) {
		if s, err := f.find(name); err == nil {
			all = append(all, s)
		}
	}
	return all
}

// GetSecretValue implements [upstream.Manager].
func (f *Fake) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	return call(ctx, f, "GetSecretValue", ref, func() (none upstream.SecretValue, err error) {
		if err := ref.Validate(); err != nil {
			return none, err
		}
		ref := ref.WithDefaults()
		s, err := f.findLive(ref.SecretName)
		if err != nil {
			return none, err
		}
		holder, held := s.labels[ref.VersionStage]
		if ref.VersionStage != "" && !held {
			return none, failed(upstream.ErrNotFound, "no version carries the label")
		}
		i := s.version(cmp.Or(ref.VersionID, holder))
		if i < 0 {
			return none, errNoVersion
		}
		v := s.versions[i]
		if held && holder != v.VersionID {
			return none, upstream.InvalidParameter("VersionStage", "the label marks another version than VersionId")
		}
		v.VersionStages, v.RequestID = s.stagesOf(v.VersionID), f.requestID()
		return v, nil
	})
}

// CreateSecret implements [upstream.Manager].
func (f *Fake) CreateSecret(ctx context.Context, in upstream.CreateSecretInput) (upstream.SecretMetadata, error) {
	return call(ctx, f, "CreateSecret", upstream.SecretRef{SecretName: in.SecretName}, func() (none upstream.SecretMetadata, err error) {
		if err := in.Validate(); err != nil {
			return none, err
		}
		if err := f.Emulate.check(in); err != nil {
			return none, err
		}
		if _, err := f.findLive(in.SecretName); err == nil {
			return none, failed(upstream.ErrExists, "")
		} else if upstream.Code(err) != upstream.Code(upstream.ErrNotFound) {
			return none, err
		}
		s := &fakeSecret{
			meta: upstream.SecretMetadata{
				ARN: "acs:kms:fake:0:secret/" + string(in.SecretName), SecretName: in.SecretName, SecretType: upstream.SecretTypeGeneric,
				Description: in.Description, EncryptionKeyID: in.EncryptionKeyID, DKMSInstanceID: in.DKMSInstanceID, CreateTime: f.now(),
			},
			policy: cmp.Or(in.Policy, upstream.DefaultPolicy),
			tags:   map[string]string{},
			labels: map[upstream.VersionStage]upstream.VersionID{upstream.ACSCurrent: in.VersionID},
		}
		for _, tag := range in.Tags {
			s.tags[tag.Key] = tag.Value
		}
		s.addVersion(in.VersionID, in.SecretData, in.SecretDataType, f.now())
		f.keep(s)
		f.changed(in.SecretName)
		return s.meta, nil
	})
}

// check checks what a creation asks for that only the cloud has.
func (e Emulation) check(in upstream.CreateSecretInput) error {
	if in.DKMSInstanceID != "" && in.DKMSInstanceID != e.InstanceID {
		return upstream.InvalidParameter("DKMSInstanceId", "there is no such instance")
	}
	if in.Policy != "" {
		if e.InstanceID == "" {
			return upstream.InvalidParameter("Policy", "there are no policies")
		}
		if err := upstream.ValidatePolicy(in.Policy); err != nil {
			return err
		}
	}
	if in.EncryptionKeyID != "" && !slices.Contains(e.Keys, in.EncryptionKeyID) {
		return failed(upstream.ErrKeyNotFound, "")
	}
	return nil
}

// GetSecretPolicy implements [upstream.Manager].
func (f *Fake) GetSecretPolicy(ctx context.Context, name upstream.SecretName) (string, error) {
	return call(ctx, f, "GetSecretPolicy", upstream.SecretRef{SecretName: name}, func() (string, error) {
		s, err := f.find(name)
		if err == nil && f.Emulate.InstanceID == "" {
			err = failed(upstream.ErrUnsupported, "there are no policies")
		}
		if err != nil {
			return "", err
		}
		return s.policy, nil
	})
}

// SetSecretPolicy implements [upstream.Manager].
func (f *Fake) SetSecretPolicy(ctx context.Context, name upstream.SecretName, policy string) error {
	return f.do(ctx, "SetSecretPolicy", upstream.SecretRef{SecretName: name}, func() error {
		s, err := f.findLive(name)
		if err != nil {
			return err
		}
		if f.Emulate.InstanceID == "" {
			return failed(upstream.ErrUnsupported, "there are no policies")
		}
		if err := upstream.ValidatePolicy(policy); err != nil {
			return err
		}
		s.policy = policy
		f.keep(s)
		return nil
	})
}

func (s *fakeSecret) addVersion(id upstream.VersionID, data upstream.SecretData, dataType string, now time.Time) {
	s.versions = append(s.versions, upstream.SecretValue{
		SecretName: s.meta.SecretName, VersionID: id, SecretData: data, SecretDataType: cmp.Or(dataType, upstream.DataTypeText),
		SecretType: upstream.SecretTypeGeneric, CreateTime: now,
	})
}

// PutSecretValue implements [upstream.Manager].
func (f *Fake) PutSecretValue(ctx context.Context, in upstream.PutSecretValueInput) (upstream.SecretVersion, error) {
	return call(ctx, f, "PutSecretValue", upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID}, func() (none upstream.SecretVersion, err error) {
		if err := in.Validate(); err != nil {
			return none, err
		}
		s, err := f.findLive(in.SecretName)
		if err != nil {
			return none, err
		}
		if i := s.version(in.VersionID); i >= 0 {
			if v := s.versions[i]; !v.SecretData.Equal(in.SecretData) || v.SecretDataType != cmp.Or(in.SecretDataType, upstream.DataTypeText) {
				return none, failed(upstream.ErrExists, "the version holds other data")
			}
			if !f.Emulate.PutMovesStages || in.VersionStages == nil || !s.relabel(in.VersionID, in.VersionStages) {
				return s.describe(i), nil
			}
			if len(s.labels) > upstream.MaxVersionStages {
				return none, errTooManyLabels
			}
			f.keep(s)
			f.changed(in.SecretName)
			return s.describe(i), nil
		}
		s.addVersion(in.VersionID, in.SecretData, in.SecretDataType, f.now())
		s.relabel(in.VersionID, in.Stages())
		if len(s.labels) > upstream.MaxVersionStages {
			return none, errTooManyLabels
		}
		if len(s.versions) > f.MaxVersions {
			oldest := slices.IndexFunc(s.versions, func(v upstream.SecretValue) bool { return len(s.stagesOf(v.VersionID)) == 0 })
			if oldest < 0 {
				return none, failed(upstream.ErrLimitExceeded, "each version carries a label")
			}
			s.versions = slices.Delete(s.versions, oldest, oldest+1)
		}
		f.keep(s)
		f.changed(in.SecretName)
		return s.describe(len(s.versions) - 1), nil
	})
}

// UpdateSecretVersionStage implements [upstream.Manager].
func (f *Fake) UpdateSecretVersionStage(ctx context.Context, in upstream.UpdateSecretVersionStageInput) error {
	return f.do(ctx, "UpdateSecretVersionStage", upstream.SecretRef{SecretName: in.SecretName, VersionStage: in.VersionStage}, func() error {
		if err := in.Validate(); err != nil {
			return err
		}
		s, err := f.findLive(in.SecretName)
		if err != nil {
			return err
		}
		if in.MoveToVersion != "" && s.version(in.MoveToVersion) < 0 || in.RemoveFromVersion != "" && s.version(in.RemoveFromVersion) < 0 {
			return errNoVersion
		}
		if in.RemoveFromVersion != "" && s.labels[in.VersionStage] != in.RemoveFromVersion {
			return upstream.InvalidParameter("RemoveFromVersion", "the version does not carry the label")
		}
		switch in.MoveToVersion {
		case "":
			delete(s.labels, in.VersionStage)
		case s.labels[in.VersionStage]:
			return nil
		default:
			s.attach(in.VersionStage, in.MoveToVersion)
		}
		if len(s.labels) > upstream.MaxVersionStages {
			return errTooManyLabels
		}
		f.keep(s)
		f.changed(in.SecretName)
		return nil
	})
}

// ListSecretVersionIDs implements [upstream.Manager].
func (f *Fake) ListSecretVersionIDs(ctx context.Context, in upstream.ListSecretVersionIDsInput) (upstream.ListSecretVersionIDsOutput, error) {
	return call(ctx, f, "ListSecretVersionIds", upstream.SecretRef{SecretName: in.SecretName}, func() (out upstream.ListSecretVersionIDsOutput, err error) {
		if err := in.Validate(); err != nil {
			return out, err
		}
		s, err := f.find(in.SecretName)
		if err != nil {
			return out, err
		}
		var all []upstream.SecretVersion
		for i := range slices.Backward(s.versions) {
			if v := s.describe(i); len(v.VersionStages) > 0 || in.IncludeDeprecated {
				all = append(all, v)
			}
		}
		page := in.Page.WithDefaults(20)
		return upstream.ListSecretVersionIDsOutput{SecretName: in.SecretName, Versions: pageOf(all, page), Page: page, TotalCount: len(all)}, nil
	})
}

func pageOf[T any](all []T, page upstream.Page) []T {
	first, last := page.Span()
	return all[min(first, len(all)):min(last, len(all))]
}

// DescribeSecret implements [upstream.Manager].
func (f *Fake) DescribeSecret(ctx context.Context, name upstream.SecretName, fetchTags bool) (upstream.SecretMetadata, error) {
	return call(ctx, f, "DescribeSecret", upstream.SecretRef{SecretName: name}, func() (meta upstream.SecretMetadata, err error) {
		s, err := f.find(name)
		if err != nil {
			return meta, err
		}
		return s.metadata(fetchTags), nil
	})
}

func (s *fakeSecret) metadata(fetchTags bool) upstream.SecretMetadata {
	meta := s.meta
	if fetchTags {
		for _, key := range slices.Sorted(maps.Keys(s.tags)) {
			meta.Tags = append(meta.Tags, upstream.Tag{Key: key, Value: s.tags[key]})
		}
	}
	return meta
}

// ListSecrets implements [upstream.Manager]; the order is by name.
func (f *Fake) ListSecrets(ctx context.Context, in upstream.ListSecretsInput) (upstream.ListSecretsOutput, error) {
	return call(ctx, f, "ListSecrets", upstream.SecretRef{}, func() (out upstream.ListSecretsOutput, err error) {
		if err := in.Validate(); err != nil {
			return out, err
		}
		var all []upstream.SecretMetadata
		for _, s := range f.all() {
			if upstream.Permits(in.Permitted, s.meta.SecretName) && s.matches(in.Filters) {
				all = append(all, s.metadata(in.FetchTags))
			}
		}
		page := in.Page.WithDefaults(10)
		return upstream.ListSecretsOutput{Secrets: pageOf(all, page), Page: page, TotalCount: len(all)}, nil
	})
}

func (s *fakeSecret) matches(filters []upstream.Filter) bool {
	for _, filter := range filters {
		var have []string
		switch filter.Key {
		case "SecretName":
			have = []string{string(s.meta.SecretName)}
		case "Description":
			have = []string{s.meta.Description}
		case "SecretType":
			have = []string{s.meta.SecretType}
		case "DKMSInstanceId":
			have = []string{s.meta.DKMSInstanceID}
		case "TagKey":
			have = slices.Collect(maps.Keys(s.tags))
		case "TagValue":
			have = slices.Collect(maps.Values(s.tags))
		}
		if !slices.ContainsFunc(have, func(h string) bool { return slices.Contains(filter.Values, h) }) {
			return false
		}
	}
	return true
}

// UpdateSecret implements [upstream.Manager].
func (f *Fake) UpdateSecret(ctx context.Context, in upstream.UpdateSecretInput) error {
	return f.do(ctx, "UpdateSecret", upstream.SecretRef{SecretName: in.SecretName}, func() error {
		if err := in.Validate(); err != nil {
			return err
		}
		s, err := f.findLive(in.SecretName)
		if err == nil && in.Description != nil {
			s.meta.Description = *in.Description
			f.keep(s)
		}
		return err
	})
}

// DeleteSecret implements [upstream.Manager].
func (f *Fake) DeleteSecret(ctx context.Context, in upstream.DeleteSecretInput) (time.Time, error) {
	return call(ctx, f, "DeleteSecret", upstream.SecretRef{SecretName: in.SecretName}, func() (none time.Time, err error) {
		if err := in.Validate(); err != nil {
			return none, err
		}
		s, err := f.find(in.SecretName)
		switch {
		case err != nil:
			return none, err
		case in.ForceDeleteWithoutRecovery:
			delete(f.secrets, in.SecretName)
		case !s.meta.PlannedDeleteTime.IsZero():
			return none, failed(upstream.ErrPendingDeletion, "")
		default:
			s.meta.PlannedDeleteTime = f.now().Add(in.Window())
			none = s.meta.PlannedDeleteTime
			f.keep(s)
		}
		f.changed(in.SecretName)
		return none, nil
	})
}

// RestoreSecret implements [upstream.Manager].
func (f *Fake) RestoreSecret(ctx context.Context, name upstream.SecretName) error {
	return f.do(ctx, "RestoreSecret", upstream.SecretRef{SecretName: name}, func() error {
		s, err := f.find(name)
		if err != nil {
			return err
		}
		if s.meta.PlannedDeleteTime.IsZero() {
			return failed(upstream.ErrNotPendingDeletion, "")
		}
		s.meta.PlannedDeleteTime = time.Time{}
		f.keep(s)
		f.changed(name)
		return nil
	})
}

// GetRandomPassword implements [upstream.Manager].
func (f *Fake) GetRandomPassword(ctx context.Context, in upstream.RandomPasswordInput) (upstream.SecretData, error) {
	return call(ctx, f, "GetRandomPassword", upstream.SecretRef{}, in.Draw)
}

// TagResources implements [upstream.Manager].
func (f *Fake) TagResources(ctx context.Context, names []upstream.SecretName, tags []upstream.Tag) error {
	return f.do(ctx, "TagResources", firstName(names), func() error {
		if err := upstream.ValidateTagResources(names, tags); err != nil {
			return err
		}
		return f.retag(names, func(have map[string]string) {
			for _, tag := range tags {
				have[tag.Key] = tag.Value
			}
		})
	})
}

// UntagResources implements [upstream.Manager].
func (f *Fake) UntagResources(ctx context.Context, in upstream.UntagResourcesInput) error {
	return f.do(ctx, "UntagResources", firstName(in.SecretNames), func() error {
		if err := in.Validate(); err != nil {
			return err
		}
		return f.retag(in.SecretNames, func(have map[string]string) {
			maps.DeleteFunc(have, func(key, _ string) bool { return len(in.TagKeys) == 0 || slices.Contains(in.TagKeys, key) })
		})
	})
}

// retag changes the tags of all secrets, by name, or of none.
func (f *Fake) retag(names []upstream.SecretName, change func(map[string]string)) error {
	var retagged []*fakeSecret
	for _, name := range slices.Sorted(slices.Values(names)) {
		s, err := f.findLive(name)
		if err != nil {
			return err
		}
		if change(s.tags); len(s.tags) > upstream.MaxTags {
			return failed(upstream.ErrLimitExceeded, "a secret has at most 20 tags")
		}
		retagged = append(retagged, s)
	}
	for _, s := range retagged {
		f.keep(s)
	}
	return nil
}

// ListTagResources implements [upstream.Manager]. With several tags a secret must carry all
// of them; the rows are those of the tags asked for.
func (f *Fake) ListTagResources(ctx context.Context, in upstream.ListTagResourcesInput) (upstream.ListTagResourcesOutput, error) {
	return call(ctx, f, "ListTagResources", firstName(in.SecretNames), func() (out upstream.ListTagResourcesOutput, err error) {
		if err := in.Validate(); err != nil {
			return out, err
		}
		start, err := strconv.Atoi(cmp.Or(in.NextToken, "0"))
		if err != nil || start < 0 {
			return out, upstream.InvalidParameter("NextToken", "it is not one that was given out")
		}
		for _, s := range f.all() {
			if upstream.Permits(in.Permitted, s.meta.SecretName) && (len(in.SecretNames) == 0 || slices.Contains(in.SecretNames, s.meta.SecretName)) {
				out.Rows = append(out.Rows, s.tagRows(in.Tags)...)
			}
		}
		end := start + upstream.TagRowsPerPage
		if end < len(out.Rows) {
			out.NextToken = strconv.Itoa(end)
		}
		out.Rows = out.Rows[min(start, len(out.Rows)):min(end, len(out.Rows))]
		return out, nil
	})
}

func (s *fakeSecret) tagRows(wanted []upstream.Tag) (rows []upstream.TagRow) {
	for _, tag := range wanted {
		value, ok := s.tags[tag.Key]
		if !ok || tag.Value != "" && tag.Value != value {
			return nil
		}
	}
	for _, tag := range s.metadata(true).Tags {
		if len(wanted) == 0 || slices.ContainsFunc(wanted, func(w upstream.Tag) bool { return w.Key == tag.Key }) {
			rows = append(rows, upstream.TagRow{SecretName: s.meta.SecretName, Tag: tag})
		}
	}
	return rows
}

func firstName(names []upstream.SecretName) upstream.SecretRef {
	if len(names) == 0 {
		return upstream.SecretRef{}
	}
	return upstream.SecretRef{SecretName: names[0]}
}
