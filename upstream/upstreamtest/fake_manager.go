package upstreamtest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"secretagent/upstream"
)

// Limits of the KMS API that the fake applies and the suite probes.
const (
	maxSecretData  = 30720
	maxVersions    = 10
	maxLabels      = 8
	maxTags        = 20
	maxTagNames    = 50
	maxTagText     = 128
	maxDescription = 256
	maxFilters     = 10
	tagRowsPerPage = 200
	maxPageSize    = 100
)

// FakeKeyID is the only encryption key that a [Fake] knows, and its default.
const FakeKeyID = "fake-key"

type fakeSecret struct {
	meta     upstream.SecretMetadata
	tags     map[string]string
	versions []fakeVersion // oldest first
	labels   map[upstream.VersionStage]upstream.VersionID
}

type fakeVersion struct {
	id       upstream.VersionID
	data     upstream.SecretData
	dataType string
	created  time.Time
}

func (s *fakeSecret) version(id upstream.VersionID) (fakeVersion, bool) {
	for _, v := range s.versions {
		if v.id == id {
			return v, true
		}
	}
	return fakeVersion{}, false
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

// attached returns labels after stage was moved to id.
func attached(labels map[upstream.VersionStage]upstream.VersionID, stage upstream.VersionStage, id upstream.VersionID) map[upstream.VersionStage]upstream.VersionID {
	after := maps.Clone(labels)
	if after[stage] == id {
		return after
	}
	if stage == upstream.ACSCurrent {
		after[upstream.ACSPrevious] = after[upstream.ACSCurrent]
	}
	after[stage] = id
	return after
}

// findLocked returns a secret that still exists, scheduled for deletion or not.
func (f *Fake) findLocked(name upstream.SecretName) (*fakeSecret, error) {
	if err := name.Validate(); err != nil {
		return nil, err
	}
	s := f.secrets[name]
	if s != nil && !s.meta.PlannedDeleteTime.IsZero() && !f.nowLocked().Before(s.meta.PlannedDeleteTime) {
		delete(f.secrets, name)
		s = nil
	}
	if s == nil {
		return nil, &upstream.Error{Message: "no such secret", Err: upstream.ErrNotFound}
	}
	return s, nil
}

// findLiveLocked returns a secret that is not scheduled for deletion.
func (f *Fake) findLiveLocked(name upstream.SecretName) (*fakeSecret, error) {
	s, err := f.findLocked(name)
	if err == nil && !s.meta.PlannedDeleteTime.IsZero() {
		return nil, &upstream.Error{Err: upstream.ErrPendingDeletion}
	}
	return s, err
}

// GetSecretValue implements [upstream.Manager].
func (f *Fake) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (value upstream.SecretValue, err error) {
	err = f.call(ctx, "GetSecretValue", ref, func() error {
		value, err = f.getSecretValue(ref)
		return err
	})
	return value, err
}

func (f *Fake) getSecretValue(ref upstream.SecretRef) (upstream.SecretValue, error) {
	if err := ref.Validate(); err != nil {
		return upstream.SecretValue{}, err
	}
	ref = ref.WithDefaults()
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.findLiveLocked(ref.SecretName)
	if err != nil {
		return upstream.SecretValue{}, err
	}
	id := ref.VersionID
	if ref.VersionStage != "" {
		holder, ok := s.labels[ref.VersionStage]
		if !ok {
			return upstream.SecretValue{}, &upstream.Error{Message: "no version carries the label", Err: upstream.ErrNotFound}
		}
		if id == "" {
			id = holder
		}
	}
	v, ok := s.version(id)
	if !ok {
		return upstream.SecretValue{}, &upstream.Error{Message: "no such version", Err: upstream.ErrNotFound}
	}
	if ref.VersionStage != "" && s.labels[ref.VersionStage] != id {
		return upstream.SecretValue{}, upstream.InvalidParameter("VersionStage", "the label marks another version than VersionId")
	}
	return upstream.SecretValue{
		SecretName: ref.SecretName, VersionID: v.id, VersionStages: s.stagesOf(v.id),
		SecretData: v.data, SecretDataType: v.dataType, SecretType: upstream.SecretTypeGeneric,
		CreateTime: v.created, RequestID: f.requestIDLocked(),
	}, nil
}

// CreateSecret implements [upstream.Manager].
func (f *Fake) CreateSecret(ctx context.Context, in upstream.CreateSecretInput) (meta upstream.SecretMetadata, err error) {
	err = f.call(ctx, "CreateSecret", upstream.SecretRef{SecretName: in.SecretName}, func() error {
		if meta, err = f.createSecret(in); err == nil {
			f.notify(in.SecretName)
		}
		return err
	})
	return meta, err
}

func (f *Fake) createSecret(in upstream.CreateSecretInput) (upstream.SecretMetadata, error) {
	if err := checkCreate(in); err != nil {
		return upstream.SecretMetadata{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s, err := f.findLocked(in.SecretName); err == nil {
		if !s.meta.PlannedDeleteTime.IsZero() {
			return upstream.SecretMetadata{}, &upstream.Error{Err: upstream.ErrPendingDeletion}
		}
		return upstream.SecretMetadata{}, &upstream.Error{Err: upstream.ErrExists}
	}
	now := f.nowLocked()
	s := &fakeSecret{
		meta: upstream.SecretMetadata{
			ARN: "acs:kms:fake:0:secret/" + string(in.SecretName), SecretName: in.SecretName, SecretType: upstream.SecretTypeGeneric,
			Description: in.Description, EncryptionKeyID: FakeKeyID, CreateTime: now, UpdateTime: now,
		},
		tags:     map[string]string{},
		versions: []fakeVersion{{in.VersionID, in.SecretData, orText(in.SecretDataType), now}},
		labels:   map[upstream.VersionStage]upstream.VersionID{upstream.ACSCurrent: in.VersionID},
	}
	for _, tag := range in.Tags {
		s.tags[tag.Key] = tag.Value
	}
	f.secrets[in.SecretName] = s
	return s.meta, nil
}

func checkCreate(in upstream.CreateSecretInput) error {
	if err := in.SecretName.Validate(); err != nil {
		return err
	}
	if err := in.VersionID.Validate(); err != nil {
		return err
	}
	if err := checkData(in.SecretData, in.SecretDataType); err != nil {
		return err
	}
	switch in.SecretType {
	case "", upstream.SecretTypeGeneric:
	case "Rds", "Redis", "RAMCredentials", "ECS", "PolarDB":
		return &upstream.Error{Message: "SecretType " + in.SecretType + " is managed by the cloud", Err: upstream.ErrUnsupported}
	default:
		return upstream.InvalidParameter("SecretType", "it is not known")
	}
	if strings.HasPrefix(string(in.SecretName), "acs/") {
		return upstream.InvalidParameter("SecretName", "a generic secret must not start with acs/")
	}
	if in.EncryptionKeyID != "" && in.EncryptionKeyID != FakeKeyID {
		return &upstream.Error{Err: upstream.ErrKeyNotFound}
	}
	if in.DKMSInstanceID != "" {
		return upstream.InvalidParameter("DKMSInstanceId", "there is no instance")
	}
	if in.EnableAutomaticRotation {
		return upstream.InvalidParameter("EnableAutomaticRotation", "generic secrets do not rotate")
	}
	if err := checkDescription(in.Description); err != nil {
		return err
	}
	return checkTags(in.Tags)
}

func orText(dataType string) string {
	if dataType == "" {
		return upstream.DataTypeText
	}
	return dataType
}

func checkData(data upstream.SecretData, dataType string) error {
	switch {
	case data.Len() == 0:
		return upstream.MissingParameter("SecretData")
	case data.Len() > maxSecretData:
		return upstream.InvalidParameter("SecretData", "it is longer than 30720 bytes")
	case !utf8.Valid(data.Reveal()):
		return upstream.InvalidParameter("SecretData", "it is not UTF-8")
	case dataType != "" && dataType != upstream.DataTypeText && dataType != upstream.DataTypeBinary:
		return upstream.InvalidParameter("SecretDataType", "it is neither text nor binary")
	}
	return nil
}

func checkDescription(s string) error {
	if utf8.RuneCountInString(s) > maxDescription {
		return upstream.InvalidParameter("Description", "it is too long")
	}
	return nil
}

func checkTags(tags []upstream.Tag) error {
	if len(tags) > maxTags {
		return upstream.InvalidParameter("Tags", "there are more than 20")
	}
	for _, tag := range tags {
		if err := checkTagText(tag.Key); err != nil {
			return err
		}
		if tag.Key == "" || strings.HasPrefix(tag.Key, "aliyun") || strings.HasPrefix(tag.Key, "acs:") {
			return upstream.InvalidParameter("TagKey", "it is empty or reserved")
		}
		if err := checkTagText(tag.Value); err != nil {
			return err
		}
	}
	return nil
}

func checkTagText(s string) error {
	if utf8.RuneCountInString(s) > maxTagText {
		return upstream.InvalidParameter("Tag", "key or value is longer than 128 characters")
	}
	for _, r := range s {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(`/\_-.+=:@`, r) {
			return upstream.InvalidParameter("Tag", "key or value holds a character that is not allowed")
		}
	}
	return nil
}

// PutSecretValue implements [upstream.Manager].
func (f *Fake) PutSecretValue(ctx context.Context, in upstream.PutSecretValueInput) (version upstream.SecretVersion, err error) {
	err = f.call(ctx, "PutSecretValue", upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID}, func() error {
		if version, err = f.putSecretValue(in); err == nil {
			f.notify(in.SecretName)
		}
		return err
	})
	return version, err
}

func (f *Fake) putSecretValue(in upstream.PutSecretValueInput) (upstream.SecretVersion, error) {
	if err := in.VersionID.Validate(); err != nil {
		return upstream.SecretVersion{}, err
	}
	if err := checkData(in.SecretData, in.SecretDataType); err != nil {
		return upstream.SecretVersion{}, err
	}
	stages := in.VersionStages
	if stages == nil {
		stages = []upstream.VersionStage{upstream.ACSCurrent}
	}
	if len(stages) == 0 {
		return upstream.SecretVersion{}, upstream.InvalidParameter("VersionStages", "the list is empty")
	}
	for _, stage := range stages {
		if err := stage.Validate(); err != nil {
			return upstream.SecretVersion{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.findLiveLocked(in.SecretName)
	if err != nil {
		return upstream.SecretVersion{}, err
	}
	if v, ok := s.version(in.VersionID); ok {
		if !v.data.Equal(in.SecretData) || v.dataType != orText(in.SecretDataType) {
			return upstream.SecretVersion{}, &upstream.Error{Message: "the version holds other data", Err: upstream.ErrExists}
		}
		return upstream.SecretVersion{VersionID: v.id, CreateTime: v.created, VersionStages: s.stagesOf(v.id)}, nil
	}
	labels := s.labels
	for _, stage := range stages {
		labels = attached(labels, stage, in.VersionID)
	}
	if len(labels) > maxLabels {
		return upstream.SecretVersion{}, &upstream.Error{Message: "a secret has at most 8 labels", Err: upstream.ErrLimitExceeded}
	}
	now := f.nowLocked()
	s.labels = labels
	s.versions = append(s.versions, fakeVersion{in.VersionID, in.SecretData, orText(in.SecretDataType), now})
	if len(s.versions) > maxVersions {
		oldest := slices.IndexFunc(s.versions, func(v fakeVersion) bool { return len(s.stagesOf(v.id)) == 0 })
		s.versions = slices.Delete(s.versions, oldest, oldest+1)
	}
	return upstream.SecretVersion{VersionID: in.VersionID, CreateTime: now, VersionStages: s.stagesOf(in.VersionID)}, nil
}

// UpdateSecretVersionStage implements [upstream.Manager].
func (f *Fake) UpdateSecretVersionStage(ctx context.Context, in upstream.UpdateSecretVersionStageInput) error {
	return f.call(ctx, "UpdateSecretVersionStage", upstream.SecretRef{SecretName: in.SecretName, VersionStage: in.VersionStage}, func() error {
		err := f.updateSecretVersionStage(in)
		if err == nil {
			f.notify(in.SecretName)
		}
		return err
	})
}

func (f *Fake) updateSecretVersionStage(in upstream.UpdateSecretVersionStageInput) error {
	if err := in.VersionStage.Validate(); err != nil {
		return err
	}
	if in.MoveToVersion == "" && in.RemoveFromVersion == "" {
		return upstream.MissingParameter("MoveToVersion")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.findLiveLocked(in.SecretName)
	if err != nil {
		return err
	}
	for _, id := range []upstream.VersionID{in.MoveToVersion, in.RemoveFromVersion} {
		if id == "" {
			continue
		}
		if err := id.Validate(); err != nil {
			return err
		}
		if _, ok := s.version(id); !ok {
			return &upstream.Error{Message: "no such version", Err: upstream.ErrNotFound}
		}
	}
	if in.RemoveFromVersion != "" && s.labels[in.VersionStage] != in.RemoveFromVersion {
		return upstream.InvalidParameter("RemoveFromVersion", "the version does not carry the label")
	}
	if in.MoveToVersion == "" {
		if in.VersionStage.BuiltIn() {
			return upstream.InvalidParameter("VersionStage", "a built-in label cannot be removed")
		}
		delete(s.labels, in.VersionStage)
		return nil
	}
	labels := attached(s.labels, in.VersionStage, in.MoveToVersion)
	if len(labels) > maxLabels {
		return &upstream.Error{Message: "a secret has at most 8 labels", Err: upstream.ErrLimitExceeded}
	}
	s.labels = labels
	return nil
}

// ListSecretVersionIDs implements [upstream.Manager].
func (f *Fake) ListSecretVersionIDs(ctx context.Context, in upstream.ListSecretVersionIDsInput) (out upstream.ListSecretVersionIDsOutput, err error) {
	err = f.call(ctx, "ListSecretVersionIds", upstream.SecretRef{SecretName: in.SecretName}, func() error {
		page, err := checkPage(in.Page, 20)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		s, err := f.findLocked(in.SecretName)
		if err != nil {
			return err
		}
		var all []upstream.SecretVersion
		for _, v := range slices.Backward(s.versions) {
			if stages := s.stagesOf(v.id); len(stages) > 0 || in.IncludeDeprecated {
				all = append(all, upstream.SecretVersion{VersionID: v.id, CreateTime: v.created, VersionStages: stages})
			}
		}
		out = upstream.ListSecretVersionIDsOutput{SecretName: in.SecretName, Versions: pageOf(all, page), Page: page, TotalCount: len(all)}
		return nil
	})
	return out, err
}

func checkPage(page upstream.Page, size int) (upstream.Page, error) {
	if page.Number < 0 {
		return page, upstream.InvalidParameter("PageNumber", "pages count from 1")
	}
	if page.Size < 0 || page.Size > maxPageSize {
		return page, upstream.InvalidParameter("PageSize", "it is not in the range 1 to 100")
	}
	if page.Number == 0 {
		page.Number = 1
	}
	if page.Size == 0 {
		page.Size = size
	}
	return page, nil
}

func pageOf[T any](all []T, page upstream.Page) []T {
	if page.Number > len(all) { // also keeps the product below from overflowing
		return nil
	}
	start := min((page.Number-1)*page.Size, len(all))
	return all[start:min(start+page.Size, len(all))]
}

// DescribeSecret implements [upstream.Manager].
func (f *Fake) DescribeSecret(ctx context.Context, name upstream.SecretName, fetchTags bool) (meta upstream.SecretMetadata, err error) {
	err = f.call(ctx, "DescribeSecret", upstream.SecretRef{SecretName: name}, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		s, err := f.findLocked(name)
		if err != nil {
			return err
		}
		meta = s.describe(fetchTags)
		return nil
	})
	return meta, err
}

func (s *fakeSecret) describe(fetchTags bool) upstream.SecretMetadata {
	meta := s.meta
	if fetchTags {
		for _, key := range slices.Sorted(maps.Keys(s.tags)) {
			meta.Tags = append(meta.Tags, upstream.Tag{Key: key, Value: s.tags[key]})
		}
	}
	return meta
}

// ListSecrets implements [upstream.Manager]; the order is by name.
func (f *Fake) ListSecrets(ctx context.Context, in upstream.ListSecretsInput) (out upstream.ListSecretsOutput, err error) {
	err = f.call(ctx, "ListSecrets", upstream.SecretRef{}, func() error {
		page, err := checkPage(in.Page, 10)
		if err != nil {
			return err
		}
		if err := checkFilters(in.Filters); err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		var all []upstream.SecretMetadata
		for _, name := range slices.Sorted(maps.Keys(f.secrets)) {
			if s, err := f.findLocked(name); err == nil && s.matches(in.Filters) {
				all = append(all, s.describe(in.FetchTags))
			}
		}
		out = upstream.ListSecretsOutput{Secrets: pageOf(all, page), Page: page, TotalCount: len(all)}
		return nil
	})
	return out, err
}

func checkFilters(filters []upstream.Filter) error {
	if len(filters) > maxFilters {
		return upstream.InvalidParameter("Filters", "there are more than 10")
	}
	for _, filter := range filters {
		switch filter.Key {
		case "SecretName", "Description", "TagKey", "TagValue", "DKMSInstanceId", "SecretType", "Creator":
		default:
			return upstream.InvalidParameter("Filters", "a key is not known")
		}
		if len(filter.Values) > maxFilters {
			return upstream.InvalidParameter("Filters", "one has more than 10 values")
		}
	}
	return nil
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
	return f.call(ctx, "UpdateSecret", upstream.SecretRef{SecretName: in.SecretName}, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		s, err := f.findLiveLocked(in.SecretName)
		if err != nil {
			return err
		}
		if len(in.CustomData) > 0 {
			return upstream.InvalidParameter("ExtendedConfig.CustomData", "generic secrets have none")
		}
		if in.Description != nil {
			if err := checkDescription(*in.Description); err != nil {
				return err
			}
			s.meta.Description = *in.Description
			s.meta.UpdateTime = f.nowLocked()
		}
		return nil
	})
}

// DeleteSecret implements [upstream.Manager].
func (f *Fake) DeleteSecret(ctx context.Context, in upstream.DeleteSecretInput) (planned time.Time, err error) {
	err = f.call(ctx, "DeleteSecret", upstream.SecretRef{SecretName: in.SecretName}, func() error {
		if planned, err = f.deleteSecret(in); err == nil {
			f.notify(in.SecretName)
		}
		return err
	})
	return planned, err
}

func (f *Fake) deleteSecret(in upstream.DeleteSecretInput) (time.Time, error) {
	days := in.RecoveryWindowInDays
	if days == 0 {
		days = 30
	}
	if !in.ForceDeleteWithoutRecovery && (days < 7 || days > 30) {
		return time.Time{}, upstream.InvalidParameter("RecoveryWindowInDays", "it is not in the range 7 to 30")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.findLocked(in.SecretName)
	if err != nil {
		return time.Time{}, err
	}
	if in.ForceDeleteWithoutRecovery {
		delete(f.secrets, in.SecretName)
		return time.Time{}, nil
	}
	if !s.meta.PlannedDeleteTime.IsZero() {
		return time.Time{}, &upstream.Error{Err: upstream.ErrPendingDeletion}
	}
	s.meta.PlannedDeleteTime = f.nowLocked().Add(time.Duration(days) * 24 * time.Hour)
	return s.meta.PlannedDeleteTime, nil
}

// RestoreSecret implements [upstream.Manager].
func (f *Fake) RestoreSecret(ctx context.Context, name upstream.SecretName) error {
	return f.call(ctx, "RestoreSecret", upstream.SecretRef{SecretName: name}, func() error {
		if err := f.restoreSecret(name); err != nil {
			return err
		}
		f.notify(name)
		return nil
	})
}

func (f *Fake) restoreSecret(name upstream.SecretName) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.findLocked(name)
	if err != nil {
		return err
	}
	if s.meta.PlannedDeleteTime.IsZero() {
		return &upstream.Error{Err: upstream.ErrNotPendingDeletion}
	}
	s.meta.PlannedDeleteTime = time.Time{}
	return nil
}

// RotateSecret implements [upstream.Manager]. The fake holds generic secrets only.
func (f *Fake) RotateSecret(ctx context.Context, name upstream.SecretName, version upstream.VersionID) error {
	return f.call(ctx, "RotateSecret", upstream.SecretRef{SecretName: name, VersionID: version}, func() error {
		if err := version.Validate(); err != nil {
			return err
		}
		return f.refuseRotation(name)
	})
}

// UpdateSecretRotationPolicy implements [upstream.Manager]. The fake holds generic secrets
// only.
func (f *Fake) UpdateSecretRotationPolicy(ctx context.Context, in upstream.RotationPolicyInput) error {
	return f.call(ctx, "UpdateSecretRotationPolicy", upstream.SecretRef{SecretName: in.SecretName}, func() error {
		return f.refuseRotation(in.SecretName)
	})
}

func (f *Fake) refuseRotation(name upstream.SecretName) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.findLiveLocked(name); err != nil {
		return err
	}
	return &upstream.Error{Message: "generic secrets do not rotate by themselves", Err: upstream.ErrUnsupported}
}

// GetRandomPassword implements [upstream.Manager].
func (f *Fake) GetRandomPassword(ctx context.Context, in upstream.RandomPasswordInput) (password upstream.SecretData, err error) {
	err = f.call(ctx, "GetRandomPassword", upstream.SecretRef{}, func() error {
		password, err = drawPassword(in)
		return err
	})
	return password, err
}

// The four types of characters in a password.
const (
	lowercase   = "abcdefghijklmnopqrstuvwxyz"
	uppercase   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	numbers     = "0123456789"
	punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~"
)

func drawPassword(in upstream.RandomPasswordInput) (upstream.SecretData, error) {
	length := in.PasswordLength
	if length == 0 {
		length = 32
	}
	if length < 8 || length > 128 {
		return upstream.SecretData{}, upstream.InvalidParameter("PasswordLength", "it is not in the range 8 to 128")
	}
	var types []string
	for _, t := range []struct {
		chars    string
		excluded bool
	}{
		{lowercase, in.ExcludeLowercase}, {uppercase, in.ExcludeUppercase}, {numbers, in.ExcludeNumbers}, {punctuation, in.ExcludePunctuation},
	} {
		left := strings.Map(func(r rune) rune {
			if strings.ContainsRune(in.ExcludeCharacters, r) {
				return -1
			}
			return r
		}, t.chars)
		if !t.excluded && left != "" {
			types = append(types, left)
		}
	}
	alphabet := strings.Join(types, "")
	if alphabet == "" {
		return upstream.SecretData{}, upstream.InvalidParameter("ExcludeCharacters", "no character is left")
	}
	for {
		password := make([]byte, length)
		for i := range password {
			password[i] = alphabet[rand.IntN(len(alphabet))]
		}
		complete := !slices.ContainsFunc(types, func(t string) bool { return !strings.ContainsAny(string(password), t) })
		if complete || !in.RequireEachIncludedType {
			return upstream.NewSecretData(password), nil
		}
	}
}

// TagResources implements [upstream.Manager].
func (f *Fake) TagResources(ctx context.Context, names []upstream.SecretName, tags []upstream.Tag) error {
	return f.call(ctx, "TagResources", firstName(names), func() error {
		if len(tags) == 0 {
			return upstream.MissingParameter("Tag")
		}
		if err := checkTags(tags); err != nil {
			return err
		}
		return f.eachTagged(names, func(before map[string]string) (map[string]string, error) {
			after := maps.Clone(before)
			for _, tag := range tags {
				after[tag.Key] = tag.Value
			}
			if len(after) > maxTags {
				return nil, &upstream.Error{Message: "a secret has at most 20 tags", Err: upstream.ErrLimitExceeded}
			}
			return after, nil
		})
	})
}

// UntagResources implements [upstream.Manager].
func (f *Fake) UntagResources(ctx context.Context, in upstream.UntagResourcesInput) error {
	return f.call(ctx, "UntagResources", firstName(in.SecretNames), func() error {
		if len(in.TagKeys) == 0 && !in.All {
			return upstream.MissingParameter("TagKey")
		}
		if len(in.TagKeys) > maxTags {
			return upstream.InvalidParameter("TagKey", "there are more than 20")
		}
		return f.eachTagged(in.SecretNames, func(before map[string]string) (map[string]string, error) {
			after := map[string]string{}
			for key, value := range before {
				if len(in.TagKeys) > 0 && !slices.Contains(in.TagKeys, key) {
					after[key] = value
				}
			}
			return after, nil
		})
	})
}

// eachTagged replaces the tags of all secrets or of none.
func (f *Fake) eachTagged(names []upstream.SecretName, change func(map[string]string) (map[string]string, error)) error {
	if len(names) == 0 {
		return upstream.MissingParameter("ResourceId")
	}
	if len(names) > maxTagNames {
		return upstream.InvalidParameter("ResourceId", "there are more than 50")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := map[*fakeSecret]map[string]string{}
	for _, name := range names {
		s, err := f.findLiveLocked(name)
		if err != nil {
			return err
		}
		if changed[s], err = change(s.tags); err != nil {
			return err
		}
	}
	for s, tags := range changed {
		s.tags = tags
	}
	return nil
}

// ListTagResources implements [upstream.Manager]. With several tags a secret must carry all
// of them; the rows are those of the tags asked for.
func (f *Fake) ListTagResources(ctx context.Context, in upstream.ListTagResourcesInput) (out upstream.ListTagResourcesOutput, err error) {
	err = f.call(ctx, "ListTagResources", firstName(in.SecretNames), func() error {
		out, err = f.listTagResources(in)
		return err
	})
	return out, err
}

func (f *Fake) listTagResources(in upstream.ListTagResourcesInput) (upstream.ListTagResourcesOutput, error) {
	var none upstream.ListTagResourcesOutput
	if len(in.SecretNames) == 0 && len(in.Tags) == 0 {
		return none, upstream.MissingParameter("ResourceId")
	}
	if len(in.SecretNames) > maxTagNames || len(in.Tags) > maxTags {
		return none, upstream.InvalidParameter("ResourceId", "there are more than 50 names or 20 tags")
	}
	start := 0
	if in.NextToken != "" {
		var err error
		if start, err = strconv.Atoi(in.NextToken); err != nil || start < 0 {
			return none, upstream.InvalidParameter("NextToken", "it is not one that was given out")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var rows []upstream.TagRow
	for _, name := range slices.Sorted(maps.Keys(f.secrets)) {
		s, err := f.findLocked(name)
		if err != nil || len(in.SecretNames) > 0 && !slices.Contains(in.SecretNames, name) {
			continue
		}
		rows = append(rows, s.tagRows(in.Tags)...)
	}
	start = min(start, len(rows))
	out := upstream.ListTagResourcesOutput{Rows: rows[start:min(start+tagRowsPerPage, len(rows))]}
	if start+tagRowsPerPage < len(rows) {
		out.NextToken = fmt.Sprint(start + tagRowsPerPage)
	}
	return out, nil
}

func (s *fakeSecret) tagRows(wanted []upstream.Tag) []upstream.TagRow {
	for _, tag := range wanted {
		value, ok := s.tags[tag.Key]
		if !ok || tag.Value != "" && tag.Value != value {
			return nil
		}
	}
	var rows []upstream.TagRow
	for _, key := range slices.Sorted(maps.Keys(s.tags)) {
		if len(wanted) == 0 || slices.ContainsFunc(wanted, func(tag upstream.Tag) bool { return tag.Key == key }) {
			rows = append(rows, upstream.TagRow{SecretName: s.meta.SecretName, Tag: upstream.Tag{Key: key, Value: s.tags[key]}})
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
