package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	api "github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"secretagent/upstream"
)

// resourceType is the word of the tag operations for a secret.
const resourceType = "secret"

// GetSecretValue implements [upstream.Manager]. An answer about another secret or version than
// was asked for is an error.
func (c *Client) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	ref = ref.WithDefaults()
	request := api.CreateGetSecretValueRequest()
	request.SecretName = string(ref.SecretName)
	request.VersionId = string(ref.VersionID)
	request.VersionStage = string(ref.VersionStage)
	r, err := invoke(ctx, c, operation[*api.GetSecretValueResponse]{
		name: "GetSecretValue", ref: ref, invalid: ref.Validate(), valueOnly: true,
		request: request, response: api.CreateGetSecretValueResponse,
		complete: func(r *api.GetSecretValueResponse) bool {
			return r.RequestId != "" && r.SecretName == string(ref.SecretName) && r.VersionId != "" &&
				(ref.VersionID == "" || r.VersionId == string(ref.VersionID))
		},
	})
	if err != nil {
		return upstream.SecretValue{}, err
	}
	return upstream.SecretValue{
		SecretName:     upstream.SecretName(r.SecretName),
		VersionID:      upstream.VersionID(r.VersionId),
		VersionStages:  stages(r.VersionStages.VersionStage),
		SecretData:     upstream.NewSecretData([]byte(r.SecretData)),
		SecretDataType: r.SecretDataType,
		SecretType:     orGeneric(r.SecretType),
		CreateTime:     wireTime(r.CreateTime),
		RequestID:      r.RequestId,
		Managed:        managed(r.SecretType, r.AutomaticRotation, r.RotationInterval, r.NextRotationDate, r.LastRotationDate, r.ExtendedConfig),
	}, nil
}

// CreateSecret implements [upstream.Manager]. The API says that a name exists, not who made
// it, so a lost answer is resolved by reading: a first version with the same data means that
// it was us.
func (c *Client) CreateSecret(ctx context.Context, in upstream.CreateSecretInput) (upstream.SecretMetadata, error) {
	request := api.CreateCreateSecretRequest()
	request.SecretName = string(in.SecretName)
	request.VersionId = string(in.VersionID)
	request.SecretData = string(in.SecretData.Reveal())
	request.SecretDataType = in.SecretDataType
	request.SecretType = in.SecretType
	request.EncryptionKeyId = in.EncryptionKeyID
	request.DKMSInstanceId = in.DKMSInstanceID
	request.Description = in.Description
	request.ExtendedConfig = in.ExtendedConfig
	request.RotationInterval = in.RotationInterval
	request.Policy = in.Policy
	if in.EnableAutomaticRotation {
		request.EnableAutomaticRotation = requests.NewBoolean(true)
	}
	if len(in.Tags) > 0 {
		request.Tags = tagJSON(in.Tags)
	}

	var found upstream.SecretMetadata
	r, err := invoke(ctx, c, operation[*api.CreateSecretResponse]{
		name: "CreateSecret", ref: upstream.SecretRef{SecretName: in.SecretName}, invalid: errors.Join(in.SecretName.Validate(), in.VersionID.Validate(), validData(in.SecretData)),
		request: request, response: api.CreateCreateSecretResponse, hide: in.SecretData,
		complete: func(r *api.CreateSecretResponse) bool {
			return r.RequestId != "" && r.SecretName != ""
		},
		resolve: func(ctx context.Context, refusal error) (bool, error) {
			if refusal != nil && !errors.Is(refusal, upstream.ErrExists) {
				return false, nil
			}
			meta, done, err := c.created(ctx, in)
			found = meta
			return done, err
		},
	})
	if err != nil {
		return upstream.SecretMetadata{}, err
	}
	if r == nil {
		return found, nil
	}
	return upstream.SecretMetadata{
		ARN:             r.Arn,
		SecretName:      upstream.SecretName(r.SecretName),
		SecretType:      orGeneric(r.SecretType),
		Description:     in.Description,
		EncryptionKeyID: in.EncryptionKeyID,
		Managed:         managed(r.SecretType, r.AutomaticRotation, r.RotationInterval, r.NextRotationDate, "", r.ExtendedConfig),
	}, nil
}

// created finds out whether a creation whose answer was lost took place.
func (c *Client) created(ctx context.Context, in upstream.CreateSecretInput) (upstream.SecretMetadata, bool, error) {
	unknown := &upstream.Error{Err: upstream.ErrUnavailable,
		Message: "no answer came, and whether this call made the secret cannot be told: describe it before creating it again"}
	if orGeneric(in.SecretType) != upstream.SecretTypeGeneric {
		// The service makes the data of managed types itself, so there is nothing to compare.
		switch _, err := c.DescribeSecret(ctx, in.SecretName, false); {
		case errors.Is(err, upstream.ErrNotFound):
			return upstream.SecretMetadata{}, false, nil
		case isContextError(err):
			return upstream.SecretMetadata{}, false, err
		}
		return upstream.SecretMetadata{}, false, unknown
	}
	v, err := c.GetSecretValue(ctx, upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID})
	switch {
	case errors.Is(err, upstream.ErrNotFound):
		return upstream.SecretMetadata{}, false, nil
	case isContextError(err):
		return upstream.SecretMetadata{}, false, err
	case err != nil:
		return upstream.SecretMetadata{}, false, unknown
	case !v.SecretData.Equal(in.SecretData):
		return upstream.SecretMetadata{}, false, &upstream.Error{Err: upstream.ErrExists}
	}
	meta, err := c.DescribeSecret(ctx, in.SecretName, false)
	if err != nil && !isContextError(err) {
		// It is there and it is ours; who may not describe it learns no more.
		meta, err = upstream.SecretMetadata{SecretName: in.SecretName, SecretType: v.SecretType, Description: in.Description, CreateTime: v.CreateTime}, nil
	}
	return meta, err == nil, err
}

// PutSecretValue implements [upstream.Manager].
func (c *Client) PutSecretValue(ctx context.Context, in upstream.PutSecretValueInput) (upstream.SecretVersion, error) {
	invalid := []error{in.SecretName.Validate(), in.VersionID.Validate(), validData(in.SecretData)}
	for _, s := range in.VersionStages {
		invalid = append(invalid, s.Validate())
	}
	request := api.CreatePutSecretValueRequest()
	request.SecretName = string(in.SecretName)
	request.VersionId = string(in.VersionID)
	request.SecretData = string(in.SecretData.Reveal())
	request.SecretDataType = in.SecretDataType
	if in.VersionStages != nil {
		request.VersionStages = toJSON(in.VersionStages)
	}
	r, err := invoke(ctx, c, operation[*api.PutSecretValueResponse]{
		name: "PutSecretValue", ref: upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID}, invalid: errors.Join(invalid...),
		request: request, response: api.CreatePutSecretValueResponse, hide: in.SecretData,
		complete: func(r *api.PutSecretValueResponse) bool {
			return r.RequestId != "" && r.VersionId == string(in.VersionID)
		},
	})
	if err != nil {
		return upstream.SecretVersion{}, err
	}
	return upstream.SecretVersion{VersionID: upstream.VersionID(r.VersionId), VersionStages: stages(r.VersionStages.VersionStage)}, nil
}

// UpdateSecretVersionStage implements [upstream.Manager].
func (c *Client) UpdateSecretVersionStage(ctx context.Context, in upstream.UpdateSecretVersionStageInput) error {
	request := api.CreateUpdateSecretVersionStageRequest()
	request.SecretName = string(in.SecretName)
	request.VersionStage = string(in.VersionStage)
	request.MoveToVersion = string(in.MoveToVersion)
	request.RemoveFromVersion = string(in.RemoveFromVersion)
	_, err := invoke(ctx, c, operation[*api.UpdateSecretVersionStageResponse]{
		name: "UpdateSecretVersionStage", ref: upstream.SecretRef{SecretName: in.SecretName, VersionStage: in.VersionStage}, invalid: in.SecretName.Validate(),
		request: request, response: api.CreateUpdateSecretVersionStageResponse,
		complete: func(r *api.UpdateSecretVersionStageResponse) bool { return r.RequestId != "" },
		resolve: func(ctx context.Context, refusal error) (bool, error) {
			// Removing a label from a version that has lost it already is refused.
			if !errors.Is(refusal, upstream.ErrInvalidParameter) && !errors.Is(refusal, upstream.ErrNotFound) {
				return false, nil
			}
			return c.staged(ctx, in), nil
		},
	})
	return err
}

// staged reports whether the label is where in wants it.
func (c *Client) staged(ctx context.Context, in upstream.UpdateSecretVersionStageInput) bool {
	out, err := c.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{
		SecretName: in.SecretName, Page: upstream.Page{Size: 100}, // holds every version that has a label
	})
	if err != nil {
		return false
	}
	var holder upstream.VersionID
	for _, v := range out.Versions {
		if slices.Contains(v.VersionStages, in.VersionStage) {
			holder = v.VersionID
		}
	}
	if in.MoveToVersion != "" {
		return holder == in.MoveToVersion
	}
	return holder == ""
}

// ListSecretVersionIDs implements [upstream.Manager].
func (c *Client) ListSecretVersionIDs(ctx context.Context, in upstream.ListSecretVersionIDsInput) (upstream.ListSecretVersionIDsOutput, error) {
	request := api.CreateListSecretVersionIdsRequest()
	request.SecretName = string(in.SecretName)
	request.PageNumber, request.PageSize = pageParams(in.Page)
	if in.IncludeDeprecated {
		request.IncludeDeprecated = "true"
	}
	r, err := invoke(ctx, c, operation[*api.ListSecretVersionIdsResponse]{
		name: "ListSecretVersionIds", ref: upstream.SecretRef{SecretName: in.SecretName}, invalid: in.SecretName.Validate(),
		request: request, response: api.CreateListSecretVersionIdsResponse,
		complete: func(r *api.ListSecretVersionIdsResponse) bool { return r.RequestId != "" },
	})
	if err != nil {
		return upstream.ListSecretVersionIDsOutput{}, err
	}
	out := upstream.ListSecretVersionIDsOutput{
		SecretName: in.SecretName,
		Page:       upstream.Page{Number: r.PageNumber, Size: r.PageSize},
		TotalCount: r.TotalCount,
	}
	for _, v := range r.VersionIds.VersionId {
		out.Versions = append(out.Versions, upstream.SecretVersion{
			VersionID: upstream.VersionID(v.VersionId), CreateTime: wireTime(v.CreateTime), VersionStages: stages(v.VersionStages.VersionStage),
		})
	}
	return out, nil
}

// DescribeSecret implements [upstream.Manager].
func (c *Client) DescribeSecret(ctx context.Context, name upstream.SecretName, fetchTags bool) (upstream.SecretMetadata, error) {
	request := api.CreateDescribeSecretRequest()
	request.SecretName = string(name)
	request.FetchTags = strconv.FormatBool(fetchTags)
	r, err := invoke(ctx, c, operation[*api.DescribeSecretResponse]{
		name: "DescribeSecret", ref: upstream.SecretRef{SecretName: name}, invalid: name.Validate(),
		request: request, response: api.CreateDescribeSecretResponse,
		complete: func(r *api.DescribeSecretResponse) bool { return r.RequestId != "" && r.SecretName != "" },
	})
	if err != nil {
		return upstream.SecretMetadata{}, err
	}
	return upstream.SecretMetadata{
		ARN:               r.Arn,
		SecretName:        upstream.SecretName(r.SecretName),
		SecretType:        orGeneric(r.SecretType),
		Description:       r.Description,
		EncryptionKeyID:   r.EncryptionKeyId,
		CreateTime:        wireTime(r.CreateTime),
		UpdateTime:        wireTime(r.UpdateTime),
		PlannedDeleteTime: wireTime(r.PlannedDeleteTime),
		Tags:              tags(r.Tags.Tag),
		Managed:           managed(r.SecretType, r.AutomaticRotation, r.RotationInterval, r.NextRotationDate, r.LastRotationDate, r.ExtendedConfig),
	}, nil
}

// ListSecrets implements [upstream.Manager].
func (c *Client) ListSecrets(ctx context.Context, in upstream.ListSecretsInput) (upstream.ListSecretsOutput, error) {
	request := api.CreateListSecretsRequest()
	request.PageNumber, request.PageSize = pageParams(in.Page)
	request.FetchTags = strconv.FormatBool(in.FetchTags)
	if len(in.Filters) > 0 {
		request.Filters = toJSON(in.Filters)
	}
	r, err := invoke(ctx, c, operation[*api.ListSecretsResponse]{
		name: "ListSecrets", request: request, response: api.CreateListSecretsResponse,
		complete: func(r *api.ListSecretsResponse) bool { return r.RequestId != "" },
	})
	if err != nil {
		return upstream.ListSecretsOutput{}, err
	}
	out := upstream.ListSecretsOutput{Page: upstream.Page{Number: r.PageNumber, Size: r.PageSize}, TotalCount: r.TotalCount}
	for _, s := range r.SecretList.Secret {
		out.Secrets = append(out.Secrets, upstream.SecretMetadata{
			SecretName:        upstream.SecretName(s.SecretName),
			SecretType:        orGeneric(s.SecretType),
			CreateTime:        wireTime(s.CreateTime),
			UpdateTime:        wireTime(s.UpdateTime),
			PlannedDeleteTime: wireTime(s.PlannedDeleteTime),
			Tags:              tags(s.Tags.Tag),
		})
	}
	return out, nil
}

// UpdateSecret implements [upstream.Manager].
func (c *Client) UpdateSecret(ctx context.Context, in upstream.UpdateSecretInput) error {
	request := api.CreateUpdateSecretRequest()
	request.SecretName = string(in.SecretName)
	extra := map[string]string{}
	if in.Description != nil {
		extra["Description"] = *in.Description // also when empty, which clears it
	}
	if in.CustomData != nil {
		request.ExtendedConfigCustomData = toJSON(in.CustomData)
	}
	_, err := invoke(ctx, c, operation[*api.UpdateSecretResponse]{
		name: "UpdateSecret", ref: upstream.SecretRef{SecretName: in.SecretName}, invalid: in.SecretName.Validate(),
		request: request, extra: extra, response: api.CreateUpdateSecretResponse,
		complete: func(r *api.UpdateSecretResponse) bool { return r.RequestId != "" },
	})
	return err
}

// DeleteSecret implements [upstream.Manager].
func (c *Client) DeleteSecret(ctx context.Context, in upstream.DeleteSecretInput) (time.Time, error) {
	request := api.CreateDeleteSecretRequest()
	request.SecretName = string(in.SecretName)
	if in.ForceDeleteWithoutRecovery {
		request.ForceDeleteWithoutRecovery = "true"
	} else if in.RecoveryWindowInDays != 0 {
		request.RecoveryWindowInDays = strconv.Itoa(in.RecoveryWindowInDays)
	}
	var planned time.Time
	r, err := invoke(ctx, c, operation[*api.DeleteSecretResponse]{
		name: "DeleteSecret", ref: upstream.SecretRef{SecretName: in.SecretName}, invalid: in.SecretName.Validate(),
		request: request, response: api.CreateDeleteSecretResponse,
		complete: func(r *api.DeleteSecretResponse) bool { return r.RequestId != "" },
		resolve: func(ctx context.Context, refusal error) (bool, error) {
			switch {
			case in.ForceDeleteWithoutRecovery:
				return errors.Is(refusal, upstream.ErrNotFound), nil
			case errors.Is(refusal, upstream.ErrPendingDeletion):
				meta, err := c.DescribeSecret(ctx, in.SecretName, false)
				planned = meta.PlannedDeleteTime
				return err == nil && !planned.IsZero(), nil
			}
			return false, nil
		},
	})
	if err != nil {
		return time.Time{}, err
	}
	if r != nil && !in.ForceDeleteWithoutRecovery {
		planned = wireTime(r.PlannedDeleteTime)
	}
	return planned, nil
}

// RestoreSecret implements [upstream.Manager].
func (c *Client) RestoreSecret(ctx context.Context, name upstream.SecretName) error {
	request := api.CreateRestoreSecretRequest()
	request.SecretName = string(name)
	_, err := invoke(ctx, c, operation[*api.RestoreSecretResponse]{
		name: "RestoreSecret", ref: upstream.SecretRef{SecretName: name}, invalid: name.Validate(),
		request: request, response: api.CreateRestoreSecretResponse,
		complete: func(r *api.RestoreSecretResponse) bool { return r.RequestId != "" },
		resolve: func(_ context.Context, refusal error) (bool, error) {
			return errors.Is(refusal, upstream.ErrNotPendingDeletion), nil
		},
	})
	return err
}

// RotateSecret implements [upstream.Manager].
func (c *Client) RotateSecret(ctx context.Context, name upstream.SecretName, version upstream.VersionID) error {
	request := api.CreateRotateSecretRequest()
	request.SecretName = string(name)
	request.VersionId = string(version)
	_, err := invoke(ctx, c, operation[*api.RotateSecretResponse]{
		name: "RotateSecret", ref: upstream.SecretRef{SecretName: name, VersionID: version}, invalid: errors.Join(name.Validate(), version.Validate()),
		request: request, response: api.CreateRotateSecretResponse,
		complete: func(r *api.RotateSecretResponse) bool { return r.RequestId != "" },
	})
	return err
}

// UpdateSecretRotationPolicy implements [upstream.Manager].
func (c *Client) UpdateSecretRotationPolicy(ctx context.Context, in upstream.RotationPolicyInput) error {
	request := api.CreateUpdateSecretRotationPolicyRequest()
	request.SecretName = string(in.SecretName)
	request.EnableAutomaticRotation = requests.NewBoolean(in.EnableAutomaticRotation)
	request.RotationInterval = in.RotationInterval
	_, err := invoke(ctx, c, operation[*api.UpdateSecretRotationPolicyResponse]{
		name: "UpdateSecretRotationPolicy", ref: upstream.SecretRef{SecretName: in.SecretName}, invalid: in.SecretName.Validate(),
		request: request, response: api.CreateUpdateSecretRotationPolicyResponse,
		complete: func(r *api.UpdateSecretRotationPolicyResponse) bool { return r.RequestId != "" },
	})
	return err
}

// GetRandomPassword implements [upstream.Manager].
func (c *Client) GetRandomPassword(ctx context.Context, in upstream.RandomPasswordInput) (upstream.SecretData, error) {
	request := api.CreateGetRandomPasswordRequest()
	if in.PasswordLength != 0 {
		request.PasswordLength = strconv.Itoa(in.PasswordLength)
	}
	request.ExcludeCharacters = in.ExcludeCharacters
	request.ExcludeLowercase = strconv.FormatBool(in.ExcludeLowercase)
	request.ExcludeUppercase = strconv.FormatBool(in.ExcludeUppercase)
	request.ExcludeNumbers = strconv.FormatBool(in.ExcludeNumbers)
	request.ExcludePunctuation = strconv.FormatBool(in.ExcludePunctuation)
	request.RequireEachIncludedType = strconv.FormatBool(in.RequireEachIncludedType)
	r, err := invoke(ctx, c, operation[*api.GetRandomPasswordResponse]{
		name: "GetRandomPassword", request: request, response: api.CreateGetRandomPasswordResponse,
		complete: func(r *api.GetRandomPasswordResponse) bool { return r.RequestId != "" && r.RandomPassword != "" },
	})
	if err != nil {
		return upstream.SecretData{}, err
	}
	return upstream.NewSecretData([]byte(r.RandomPassword)), nil
}

// TagResources implements [upstream.Manager].
func (c *Client) TagResources(ctx context.Context, names []upstream.SecretName, list []upstream.Tag) error {
	request := api.CreateTagResourcesRequest()
	request.ResourceType = resourceType
	request.ResourceId = resourceIDs(names)
	var wire []api.TagResourcesTag
	extra := map[string]string{}
	for i, t := range list {
		wire = append(wire, api.TagResourcesTag{Key: t.Key, Value: t.Value})
		if t.Value == "" {
			extra[fmt.Sprintf("Tag.%d.Value", i+1)] = ""
		}
	}
	request.Tag = &wire
	_, err := invoke(ctx, c, operation[*api.TagResourcesResponse]{
		name: "TagResources", ref: onlyName(names), invalid: validNames(names),
		request: request, extra: extra, response: api.CreateTagResourcesResponse,
		complete: func(r *api.TagResourcesResponse) bool { return r.RequestId != "" },
	})
	return err
}

// UntagResources implements [upstream.Manager].
func (c *Client) UntagResources(ctx context.Context, in upstream.UntagResourcesInput) error {
	request := api.CreateUntagResourcesRequest()
	request.ResourceType = resourceType
	request.ResourceId = resourceIDs(in.SecretNames)
	request.TagKey = &in.TagKeys
	if in.All {
		request.All = requests.NewBoolean(true)
	}
	_, err := invoke(ctx, c, operation[*api.UntagResourcesResponse]{
		name: "UntagResources", ref: onlyName(in.SecretNames), invalid: validNames(in.SecretNames),
		request: request, response: api.CreateUntagResourcesResponse,
		complete: func(r *api.UntagResourcesResponse) bool { return r.RequestId != "" },
	})
	return err
}

// ListTagResources implements [upstream.Manager].
func (c *Client) ListTagResources(ctx context.Context, in upstream.ListTagResourcesInput) (upstream.ListTagResourcesOutput, error) {
	request := api.CreateListTagResourcesRequest()
	request.ResourceType = resourceType
	request.ResourceId = resourceIDs(in.SecretNames)
	request.NextToken = in.NextToken
	var wire []api.ListTagResourcesTag
	for _, t := range in.Tags {
		wire = append(wire, api.ListTagResourcesTag{Key: t.Key, Value: t.Value})
	}
	request.Tag = &wire
	r, err := invoke(ctx, c, operation[*api.ListTagResourcesResponse]{
		name: "ListTagResources", ref: onlyName(in.SecretNames), invalid: validNames(in.SecretNames),
		request: request, response: api.CreateListTagResourcesResponse,
		complete: func(r *api.ListTagResourcesResponse) bool { return r.RequestId != "" },
	})
	if err != nil {
		return upstream.ListTagResourcesOutput{}, err
	}
	out := upstream.ListTagResourcesOutput{NextToken: r.NextToken}
	for _, row := range r.TagResources.TagResource {
		out.Rows = append(out.Rows, upstream.TagRow{SecretName: upstream.SecretName(row.ResourceId), Tag: upstream.Tag{Key: row.TagKey, Value: row.TagValue}})
	}
	return out, nil
}

// validData refuses what the wire cannot carry: SecretData is text there.
func validData(d upstream.SecretData) error {
	switch {
	case d.Len() == 0:
		return upstream.MissingParameter("SecretData")
	case !utf8.Valid(d.Reveal()):
		return upstream.InvalidParameter("SecretData", "it is not UTF-8; encode binary data, for example as base64")
	}
	return nil
}

func validNames(names []upstream.SecretName) error {
	var err error
	for _, n := range names {
		err = errors.Join(err, n.Validate())
	}
	return err
}

// first returns the first of the joined errors with operation and reference.
func first(err error, op string, ref upstream.SecretRef) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return first(joined.Unwrap()[0], op, ref)
	}
	return upstream.Wrap(err, op, ref)
}

func onlyName(names []upstream.SecretName) upstream.SecretRef {
	if len(names) == 1 {
		return upstream.SecretRef{SecretName: names[0]}
	}
	return upstream.SecretRef{}
}

func resourceIDs(names []upstream.SecretName) *[]string {
	ids := make([]string, len(names))
	for i, n := range names {
		ids[i] = string(n)
	}
	return &ids
}

func pageParams(p upstream.Page) (number, size requests.Integer) {
	if p.Number != 0 {
		number = requests.NewInteger(p.Number)
	}
	if p.Size != 0 {
		size = requests.NewInteger(p.Size)
	}
	return number, size
}

func tagJSON(list []upstream.Tag) string {
	type tag struct{ TagKey, TagValue string }
	wire := make([]tag, len(list))
	for i, t := range list {
		wire[i] = tag{t.Key, t.Value}
	}
	return toJSON(wire)
}

// toJSON encodes strings, and slices, maps and structs of them, which cannot fail.
func toJSON(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func tags(wire []api.Tag) []upstream.Tag {
	var list []upstream.Tag
	for _, t := range wire {
		list = append(list, upstream.Tag{Key: t.TagKey, Value: t.TagValue})
	}
	return list
}

func stages(wire []string) []upstream.VersionStage {
	var list []upstream.VersionStage
	for _, s := range wire {
		list = append(list, upstream.VersionStage(s))
	}
	slices.Sort(list)
	return list
}

func orGeneric(t string) string {
	if t == "" {
		return upstream.SecretTypeGeneric
	}
	return t
}

// wireTime reads a time of the API, which is absent where it has no meaning. A time that
// cannot be read is taken for absent: nothing depends on it but a display.
func wireTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

func managed(secretType, automatic, interval, next, last, extended string) *upstream.ManagedSecret {
	if orGeneric(secretType) == upstream.SecretTypeGeneric {
		return nil
	}
	return &upstream.ManagedSecret{
		AutomaticRotation: automatic, RotationInterval: interval, NextRotationDate: next, LastRotationDate: last, ExtendedConfig: extended,
	}
}
