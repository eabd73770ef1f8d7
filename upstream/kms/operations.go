package kms

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	api "github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"secretagent/upstream"
)

// GetSecretValue implements [upstream.Manager]. An answer that is not the value of ref is an
// error.
func (c *Client) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	ref = ref.WithDefaults()
	var value upstream.SecretValue
	_, err := invoke(ctx, c, api.CreateGetSecretValueResponse, request{
		op: "GetSecretValue", ref: ref, invalid: ref.Validate(), valueOnly: true,
		params: params{"SecretName": string(ref.SecretName), "VersionId": string(ref.VersionID), "VersionStage": string(ref.VersionStage)},
	}, func(r *api.GetSecretValueResponse) error {
		if _, err := upstream.JSONText(r.GetHttpContentBytes()); errors.Is(err, upstream.ErrLoneSurrogate) {
			return has(false) // it was decoded to another value
		}
		value = upstream.SecretValue{
			SecretName:     upstream.SecretName(r.SecretName),
			VersionID:      upstream.VersionID(r.VersionId),
			VersionStages:  stages(r.VersionStages.VersionStage),
			SecretData:     upstream.NewSecretData([]byte(r.SecretData)),
			SecretDataType: r.SecretDataType,
			SecretType:     cmp.Or(r.SecretType, upstream.SecretTypeGeneric),
			CreateTime:     wireTime(r.CreateTime),
			RequestID:      r.RequestId,
			Managed:        managed(r.SecretType, r.AutomaticRotation, r.RotationInterval, r.NextRotationDate, r.LastRotationDate, r.ExtendedConfig),
		}
		return value.Answers(ref)
	})
	if err != nil {
		return upstream.SecretValue{}, err
	}
	value.SecretName = ref.SecretName // the service leaves the account out
	return value, nil
}

// CreateSecret implements [upstream.Manager]. The API says that a name exists, not who made
// it, so a lost answer is resolved by reading: a first version with the same data means that
// it was us.
func (c *Client) CreateSecret(ctx context.Context, in upstream.CreateSecretInput) (upstream.SecretMetadata, error) {
	p := params{
		"SecretName": string(in.SecretName), "VersionId": string(in.VersionID),
		"SecretData": string(in.SecretData.Reveal()), "SecretDataType": in.SecretDataType,
		"EncryptionKeyId": in.EncryptionKeyID, "DKMSInstanceId": in.DKMSInstanceID, "Policy": in.Policy, "Description": in.Description,
	}
	if len(in.Tags) > 0 {
		p["Tags"] = tagJSON(in.Tags)
	}
	var found upstream.SecretMetadata
	r, err := invoke(ctx, c, api.CreateCreateSecretResponse, request{
		op: "CreateSecret", ref: named(in.SecretName), params: p, hide: in.SecretData,
		invalid: in.Validate(),
		resolve: func(ctx context.Context, refusal error) (bool, error) {
			if refusal != nil && !errors.Is(refusal, upstream.ErrExists) {
				return false, nil
			}
			meta, done, err := c.created(ctx, in)
			found = meta
			return done, err
		},
	}, func(r *api.CreateSecretResponse) error { return has(r.SecretName != "") })
	if err != nil {
		return upstream.SecretMetadata{}, err
	}
	if r == nil {
		return found, nil
	}
	return upstream.SecretMetadata{
		ARN:             r.Arn,
		SecretName:      upstream.SecretName(r.SecretName),
		SecretType:      cmp.Or(r.SecretType, upstream.SecretTypeGeneric),
		Description:     in.Description,
		EncryptionKeyID: in.EncryptionKeyID,
		DKMSInstanceID:  cmp.Or(r.DKMSInstanceId, in.DKMSInstanceID),
	}, nil
}

// created finds out whether a creation whose answer was lost took place.
func (c *Client) created(ctx context.Context, in upstream.CreateSecretInput) (upstream.SecretMetadata, bool, error) {
	unknown := &upstream.Error{Err: upstream.ErrUnavailable,
		Message: "no answer came, and whether this call made the secret cannot be told: describe it before creating it again"}
	v, err := c.GetSecretValue(ctx, upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID})
	switch {
	case errors.Is(err, upstream.ErrNotFound):
		return upstream.SecretMetadata{}, false, nil
	case upstream.IsContextError(err):
		return upstream.SecretMetadata{}, false, err
	case err != nil:
		return upstream.SecretMetadata{}, false, unknown
	case !v.SecretData.Equal(in.SecretData):
		return upstream.SecretMetadata{}, false, &upstream.Error{Err: upstream.ErrExists}
	}
	meta, err := c.DescribeSecret(ctx, in.SecretName, false)
	if err != nil && !upstream.IsContextError(err) {
		// It is there and it is ours; who may not describe it learns no more.
		meta, err = upstream.SecretMetadata{SecretName: in.SecretName, SecretType: v.SecretType, Description: in.Description, CreateTime: v.CreateTime}, nil
	}
	return meta, err == nil, err
}

// PutSecretValue implements [upstream.Manager].
func (c *Client) PutSecretValue(ctx context.Context, in upstream.PutSecretValueInput) (upstream.SecretVersion, error) {
	p := params{"SecretName": string(in.SecretName), "VersionId": string(in.VersionID), "SecretData": string(in.SecretData.Reveal()), "SecretDataType": in.SecretDataType}
	if in.VersionStages != nil {
		p["VersionStages"] = toJSON(in.VersionStages)
	}
	r, err := invoke(ctx, c, api.CreatePutSecretValueResponse, request{
		op: "PutSecretValue", ref: upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID}, invalid: in.Validate(),
		params: p, hide: in.SecretData,
	}, func(r *api.PutSecretValueResponse) error { return has(r.VersionId == string(in.VersionID)) })
	if err != nil {
		return upstream.SecretVersion{}, err
	}
	return upstream.SecretVersion{VersionID: upstream.VersionID(r.VersionId), VersionStages: stages(r.VersionStages.VersionStage)}, nil
}

// UpdateSecretVersionStage implements [upstream.Manager].
func (c *Client) UpdateSecretVersionStage(ctx context.Context, in upstream.UpdateSecretVersionStageInput) error {
	_, err := invoke(ctx, c, api.CreateUpdateSecretVersionStageResponse, request{
		op: "UpdateSecretVersionStage", ref: upstream.SecretRef{SecretName: in.SecretName, VersionStage: in.VersionStage}, invalid: in.Validate(),
		params: params{"SecretName": string(in.SecretName), "VersionStage": string(in.VersionStage),
			"MoveToVersion": string(in.MoveToVersion), "RemoveFromVersion": string(in.RemoveFromVersion)},
		resolve: func(ctx context.Context, refusal error) (bool, error) {
			// Removing a label from a version that has lost it already is refused.
			if !errors.Is(refusal, upstream.ErrInvalidParameter) && !errors.Is(refusal, upstream.ErrNotFound) {
				return false, nil
			}
			return c.staged(ctx, in), nil
		},
	}, nil)
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
	r, err := invoke(ctx, c, api.CreateListSecretVersionIdsResponse, request{
		op: "ListSecretVersionIds", ref: named(in.SecretName), invalid: in.Validate(),
		params: params{"SecretName": string(in.SecretName), "PageNumber": number(in.Page.Number), "PageSize": number(in.Page.Size),
			"IncludeDeprecated": strconv.FormatBool(in.IncludeDeprecated)},
	}, nil)
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
	r, err := invoke(ctx, c, api.CreateDescribeSecretResponse, request{
		op: "DescribeSecret", ref: named(name), invalid: name.Validate(),
		params: params{"SecretName": string(name), "FetchTags": strconv.FormatBool(fetchTags)},
	}, func(r *api.DescribeSecretResponse) error { return has(r.SecretName != "") })
	if err != nil {
		return upstream.SecretMetadata{}, err
	}
	return upstream.SecretMetadata{
		ARN:               r.Arn,
		SecretName:        upstream.SecretName(r.SecretName),
		SecretType:        cmp.Or(r.SecretType, upstream.SecretTypeGeneric),
		Description:       r.Description,
		EncryptionKeyID:   r.EncryptionKeyId,
		DKMSInstanceID:    r.DKMSInstanceId,
		CreateTime:        wireTime(r.CreateTime),
		UpdateTime:        wireTime(r.UpdateTime),
		PlannedDeleteTime: wireTime(r.PlannedDeleteTime),
		Tags:              tags(r.Tags.Tag),
		Managed:           managed(r.SecretType, r.AutomaticRotation, r.RotationInterval, r.NextRotationDate, r.LastRotationDate, r.ExtendedConfig),
	}, nil
}

// ListSecrets implements [upstream.Manager].
func (c *Client) ListSecrets(ctx context.Context, in upstream.ListSecretsInput) (upstream.ListSecretsOutput, error) {
	p := params{"PageNumber": number(in.Page.Number), "PageSize": number(in.Page.Size), "FetchTags": strconv.FormatBool(in.FetchTags)}
	if len(in.Filters) > 0 {
		p["Filters"] = toJSON(in.Filters)
	}
	r, err := invoke(ctx, c, api.CreateListSecretsResponse, request{op: "ListSecrets", invalid: cmp.Or(in.Validate(), permitsAll(in.Permitted)), params: p}, nil)
	if err != nil {
		return upstream.ListSecretsOutput{}, err
	}
	out := upstream.ListSecretsOutput{Page: upstream.Page{Number: r.PageNumber, Size: r.PageSize}, TotalCount: r.TotalCount}
	for _, s := range r.SecretList.Secret {
		out.Secrets = append(out.Secrets, upstream.SecretMetadata{
			SecretName:        upstream.SecretName(s.SecretName),
			SecretType:        cmp.Or(s.SecretType, upstream.SecretTypeGeneric),
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
	p, always := params{"SecretName": string(in.SecretName)}, params{}
	if in.Description != nil {
		always["Description"] = *in.Description // also when empty, which clears it
	}
	_, err := invoke(ctx, c, api.CreateUpdateSecretResponse, request{
		op: "UpdateSecret", ref: named(in.SecretName), invalid: in.Validate(),
		params: p, always: always,
	}, nil)
	return err
}

// DeleteSecret implements [upstream.Manager].
func (c *Client) DeleteSecret(ctx context.Context, in upstream.DeleteSecretInput) (time.Time, error) {
	p := params{"SecretName": string(in.SecretName), "ForceDeleteWithoutRecovery": strconv.FormatBool(in.ForceDeleteWithoutRecovery)}
	if !in.ForceDeleteWithoutRecovery {
		p["RecoveryWindowInDays"] = number(in.RecoveryWindowInDays)
	}
	var planned time.Time
	r, err := invoke(ctx, c, api.CreateDeleteSecretResponse, request{
		op: "DeleteSecret", ref: named(in.SecretName), invalid: in.Validate(),
		params: p,
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
	}, nil)
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
	_, err := invoke(ctx, c, api.CreateRestoreSecretResponse, request{
		op: "RestoreSecret", ref: named(name), invalid: name.Validate(),
		params: params{"SecretName": string(name)},
		resolve: func(_ context.Context, refusal error) (bool, error) {
			return errors.Is(refusal, upstream.ErrNotPendingDeletion), nil
		},
	}, nil)
	return err
}

// GetSecretPolicy implements [upstream.Manager].
func (c *Client) GetSecretPolicy(ctx context.Context, name upstream.SecretName) (string, error) {
	r, err := invoke(ctx, c, api.CreateGetSecretPolicyResponse, request{
		op: "GetSecretPolicy", ref: named(name), invalid: name.Validate(),
		params: params{"SecretName": string(name)},
	}, func(r *api.GetSecretPolicyResponse) error { return has(r.Policy != "") })
	if err != nil {
		return "", err
	}
	return r.Policy, nil
}

// SetSecretPolicy implements [upstream.Manager]. Whether the policy is a good one is for the service
// to say.
func (c *Client) SetSecretPolicy(ctx context.Context, name upstream.SecretName, policy string) error {
	invalid := name.Validate()
	if invalid == nil && policy == "" {
		invalid = upstream.MissingParameter("Policy")
	}
	_, err := invoke(ctx, c, api.CreateSetSecretPolicyResponse, request{
		op: "SetSecretPolicy", ref: named(name), invalid: invalid,
		params: params{"SecretName": string(name), "Policy": policy},
	}, nil)
	return err
}

// GetRandomPassword implements [upstream.Manager].
func (c *Client) GetRandomPassword(ctx context.Context, in upstream.RandomPasswordInput) (upstream.SecretData, error) {
	r, err := invoke(ctx, c, api.CreateGetRandomPasswordResponse, request{
		op: "GetRandomPassword",
		params: params{
			"PasswordLength": number(in.PasswordLength), "ExcludeCharacters": in.ExcludeCharacters,
			"ExcludeLowercase": strconv.FormatBool(in.ExcludeLowercase), "ExcludeUppercase": strconv.FormatBool(in.ExcludeUppercase),
			"ExcludeNumbers": strconv.FormatBool(in.ExcludeNumbers), "ExcludePunctuation": strconv.FormatBool(in.ExcludePunctuation),
			"RequireEachIncludedType": strconv.FormatBool(in.RequireEachIncludedType),
		},
	}, func(r *api.GetRandomPasswordResponse) error { return has(r.RandomPassword != "") })
	if err != nil {
		return upstream.SecretData{}, err
	}
	return upstream.NewSecretData([]byte(r.RandomPassword)), nil
}

// TagResources implements [upstream.Manager].
func (c *Client) TagResources(ctx context.Context, names []upstream.SecretName, list []upstream.Tag) error {
	p, always := secrets(names), params{}
	for i, t := range list {
		p[fmt.Sprintf("Tag.%d.Key", i+1)] = t.Key
		always[fmt.Sprintf("Tag.%d.Value", i+1)] = t.Value
	}
	_, err := invoke(ctx, c, api.CreateTagResourcesResponse, request{
		op: "TagResources", ref: onlyName(names), invalid: upstream.ValidateTagResources(names, list),
		params: p, always: always,
	}, nil)
	return err
}

// UntagResources implements [upstream.Manager].
func (c *Client) UntagResources(ctx context.Context, in upstream.UntagResourcesInput) error {
	p := secrets(in.SecretNames)
	p["All"] = strconv.FormatBool(in.All)
	for i, key := range in.TagKeys {
		p[fmt.Sprintf("TagKey.%d", i+1)] = key
	}
	_, err := invoke(ctx, c, api.CreateUntagResourcesResponse, request{
		op: "UntagResources", ref: onlyName(in.SecretNames), invalid: in.Validate(),
		params: p,
	}, nil)
	return err
}

// ListTagResources implements [upstream.Manager].
func (c *Client) ListTagResources(ctx context.Context, in upstream.ListTagResourcesInput) (upstream.ListTagResourcesOutput, error) {
	p := secrets(in.SecretNames)
	p["NextToken"] = in.NextToken
	for i, t := range in.Tags {
		p[fmt.Sprintf("Tag.%d.Key", i+1)], p[fmt.Sprintf("Tag.%d.Value", i+1)] = t.Key, t.Value
	}
	r, err := invoke(ctx, c, api.CreateListTagResourcesResponse, request{
		op: "ListTagResources", ref: onlyName(in.SecretNames), invalid: cmp.Or(in.Validate(), permitsAll(in.Permitted)),
		params: p,
	}, nil)
	if err != nil {
		return upstream.ListTagResourcesOutput{}, err
	}
	out := upstream.ListTagResourcesOutput{NextToken: r.NextToken}
	for _, row := range r.TagResources.TagResource {
		out.Rows = append(out.Rows, upstream.TagRow{SecretName: upstream.SecretName(row.ResourceId), Tag: upstream.Tag{Key: row.TagKey, Value: row.TagValue}})
	}
	return out, nil
}

// permitsAll refuses what the service cannot select by.
func permitsAll(permitted []string) error {
	if permitted != nil {
		return &upstream.Error{Message: "the service does not list by globs over names", Err: upstream.ErrUnsupported}
	}
	return nil
}

// has returns nil when an answer holds what it must.
func has(complete bool) error {
	if complete {
		return nil
	}
	return &upstream.Error{Err: upstream.ErrUnavailable, Code: upstream.CodeInvalidAnswer, Message: errUnreadable.Error()}
}

func named(name upstream.SecretName) upstream.SecretRef { return upstream.SecretRef{SecretName: name} }

func onlyName(names []upstream.SecretName) upstream.SecretRef {
	if len(names) == 1 {
		return named(names[0])
	}
	return upstream.SecretRef{}
}

// secrets are the parameters of the tag operations that name secrets.
func secrets(names []upstream.SecretName) params {
	p := params{"ResourceType": "secret"}
	for i, n := range names {
		p[fmt.Sprintf("ResourceId.%d", i+1)] = string(n)
	}
	return p
}

// number returns n, of which zero is not sent.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
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

// wireTime reads a time of the API, which is absent where it has no meaning. A time that
// cannot be read is taken for absent: nothing depends on it but a display.
func wireTime(s string) time.Time {
	t, _ := time.Parse(time.RFC3339, s)
	return t.UTC()
}

func managed(secretType, automatic, interval, next, last, extended string) *upstream.ManagedSecret {
	if cmp.Or(secretType, upstream.SecretTypeGeneric) == upstream.SecretTypeGeneric {
		return nil
	}
	return &upstream.ManagedSecret{
		AutomaticRotation: automatic, RotationInterval: interval, NextRotationDate: next, LastRotationDate: last, ExtendedConfig: extended,
	}
}
