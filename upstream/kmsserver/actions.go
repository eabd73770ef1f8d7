package kmsserver

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"secretagent/upstream"
)

// action decodes the parameters of a call, makes it, and returns its answer: a value to be
// encoded as JSON, or the finished body.
type action func(ctx context.Context, c *call) (any, error)

// actions is everything that is served, by the name that requests carry. It is never
// changed.
var actions = map[string]action{
	"CreateSecret":               createSecret,
	"PutSecretValue":             putSecretValue,
	"GetSecretValue":             getSecretValue,
	"BatchGetSecretValue":        batchGetSecretValue,
	"DescribeSecret":             describeSecret,
	"ListSecrets":                listSecrets,
	"ListSecretVersionIds":       listSecretVersionIDs,
	"UpdateSecret":               updateSecret,
	"UpdateSecretVersionStage":   updateSecretVersionStage,
	"DeleteSecret":               deleteSecret,
	"RestoreSecret":              restoreSecret,
	"RotateSecret":               rotateSecret,
	"UpdateSecretRotationPolicy": updateSecretRotationPolicy,
	"GetRandomPassword":          getRandomPassword,
	"TagResource":                tagResource,
	"UntagResource":              untagResource,
	"TagResources":               tagResources,
	"UntagResources":             untagResources,
	"ListTagResources":           listTagResources,

	// Actions of the API that have no meaning here say so, instead of being unknown.
	"GetSecretPolicy":  refusePolicy,
	"SetSecretPolicy":  refusePolicy,
	"ListResourceTags": refuseKeys,
}

func createSecret(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	tags, err := c.wireTags("Tags")
	if err != nil {
		return nil, err
	}
	rotate, err := c.flag("EnableAutomaticRotation")
	if err != nil {
		return nil, err
	}
	in := upstream.CreateSecretInput{
		SecretName:              name,
		VersionID:               upstream.VersionID(c.params["VersionId"]),
		SecretData:              upstream.NewSecretData([]byte(c.params["SecretData"])),
		SecretDataType:          c.params["SecretDataType"],
		SecretType:              c.params["SecretType"],
		EncryptionKeyID:         c.params["EncryptionKeyId"],
		DKMSInstanceID:          c.params["DKMSInstanceId"],
		Description:             c.params["Description"],
		Tags:                    tags,
		ExtendedConfig:          c.params["ExtendedConfig"],
		EnableAutomaticRotation: rotate,
		RotationInterval:        c.params["RotationInterval"],
		Policy:                  c.params["Policy"],
	}
	meta, err := c.manager.CreateSecret(ctx, in)
	if err != nil {
		return nil, err
	}
	return createSecretAnswer{meta.ARN, meta.SecretName, in.VersionID, meta.SecretType, in.DKMSInstanceID, meta.Managed, c.requestID}, nil
}

func putSecretValue(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	stages, err := c.stages()
	if err != nil {
		return nil, err
	}
	version, err := c.manager.PutSecretValue(ctx, upstream.PutSecretValueInput{
		SecretName:     name,
		VersionID:      upstream.VersionID(c.params["VersionId"]),
		SecretData:     upstream.NewSecretData([]byte(c.params["SecretData"])),
		SecretDataType: c.params["SecretDataType"],
		VersionStages:  stages,
	})
	if err != nil {
		return nil, err
	}
	return putSecretValueAnswer{name, version.VersionID, stageList(version.VersionStages), c.requestID}, nil
}

func getSecretValue(ctx context.Context, c *call) (any, error) {
	dryRun, err := c.flag("DryRun")
	if err != nil {
		return nil, err
	}
	value, err := readSecretValue(ctx, c)
	if dryRun {
		return nil, dryRunFault(err)
	}
	if err != nil {
		return nil, err
	}
	value.RequestID = c.requestID
	return upstream.GetSecretValueJSON(&value), nil
}

func readSecretValue(ctx context.Context, c *call) (upstream.SecretValue, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return upstream.SecretValue{}, err
	}
	// Extended configuration is for managed types; a generic secret has none to fetch.
	if _, err := c.flag("FetchExtendedConfig"); err != nil {
		return upstream.SecretValue{}, err
	}
	return c.manager.GetSecretValue(ctx, upstream.SecretRef{
		SecretName:   name,
		VersionID:    upstream.VersionID(c.params["VersionId"]),
		VersionStage: upstream.VersionStage(c.params["VersionStage"]),
	})
}

// dryRunFault says how a call would have ended. A dry run never succeeds.
func dryRunFault(err error) *fault {
	if err == nil {
		return &fault{status: http.StatusBadRequest, code: "DryRunOperationError", message: "Request validation has been passed with DryRun flag set."}
	}
	f := *faultOf(err)
	switch upstream.FromCode(f.code, f.status) {
	case upstream.ErrInvalidParameter, upstream.ErrMissingParameter:
		f.code = "ValidationError"
	case upstream.ErrAccessDenied:
		f.code = "AccessDeniedError"
	}
	return &f
}

// maxBatch is how many secrets one BatchGetSecretValue may name.
const maxBatch = 20

// batchGetSecretValue reads one secret after the other; it is not one moment.
func batchGetSecretValue(ctx context.Context, c *call) (any, error) {
	const param = "SecretsList"
	var wanted []struct {
		SecretName   string
		VersionID    string `json:"VersionId"`
		VersionStage string
	}
	if err := c.decodeJSON(param, &wanted); err != nil {
		return nil, err
	}
	if len(wanted) == 0 {
		return nil, upstream.MissingParameter(param)
	}
	if len(wanted) > maxBatch {
		return nil, upstream.InvalidParameter(param, "it names more than 20 secrets")
	}
	answer := batchAnswer{SecretValues: []json.RawMessage{}, Errors: []batchError{}, RequestID: c.requestID}
	for _, w := range wanted {
		one := *c
		one.params = params{"SecretName": w.SecretName, "VersionId": w.VersionID, "VersionStage": w.VersionStage}
		value, err := readSecretValue(ctx, &one)
		if err == nil {
			value.RequestID = c.requestID
			answer.SecretValues = append(answer.SecretValues, json.RawMessage(upstream.GetSecretValueJSON(&value)))
			continue
		}
		f := faultOf(err)
		if f.cause != nil {
			return nil, err // the backend is in trouble: what the others would say is of no use
		}
		answer.Errors = append(answer.Errors, batchError{f.code, f.status, f.message, w.SecretName})
	}
	return answer, nil
}

func describeSecret(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	fetchTags, err := c.flag("FetchTags")
	if err != nil {
		return nil, err
	}
	meta, err := c.manager.DescribeSecret(ctx, name, fetchTags)
	if err != nil {
		return nil, err
	}
	return describeSecretAnswer{
		meta.ARN, meta.SecretName, meta.SecretType, meta.Description, meta.EncryptionKeyID,
		upstream.WireTime(meta.CreateTime), upstream.WireTime(meta.UpdateTime), optionalTime(meta.PlannedDeleteTime),
		tagList(meta.Tags, fetchTags), meta.Managed, c.requestID,
	}, nil
}

func listSecrets(ctx context.Context, c *call) (any, error) {
	page, err := c.page()
	if err != nil {
		return nil, err
	}
	fetchTags, err := c.flag("FetchTags")
	if err != nil {
		return nil, err
	}
	var filters []upstream.Filter
	if err := c.decodeJSON("Filters", &filters); err != nil {
		return nil, err
	}
	out, err := listPermitted(ctx, c, upstream.ListSecretsInput{Filters: filters, FetchTags: fetchTags, Page: page})
	if err != nil {
		return nil, err
	}
	answer := listSecretsAnswer{PageNumber: out.Page.Number, PageSize: out.Page.Size, TotalCount: out.TotalCount, RequestID: c.requestID}
	answer.SecretList.Secret = []listedSecret{}
	for _, s := range out.Secrets {
		answer.SecretList.Secret = append(answer.SecretList.Secret, listedSecret{
			s.SecretName, s.SecretType, upstream.WireTime(s.CreateTime), upstream.WireTime(s.UpdateTime),
			optionalTime(s.PlannedDeleteTime), tagList(s.Tags, fetchTags),
		})
	}
	return answer, nil
}

func listSecretVersionIDs(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	deprecated, err := c.flag("IncludeDeprecated")
	if err != nil {
		return nil, err
	}
	page, err := c.page()
	if err != nil {
		return nil, err
	}
	out, err := c.manager.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: name, IncludeDeprecated: deprecated, Page: page})
	if err != nil {
		return nil, err
	}
	answer := listVersionsAnswer{SecretName: name, PageNumber: out.Page.Number, PageSize: out.Page.Size, TotalCount: out.TotalCount, RequestID: c.requestID}
	answer.VersionIDs.VersionID = []listedVersion{}
	for _, v := range out.Versions {
		answer.VersionIDs.VersionID = append(answer.VersionIDs.VersionID, listedVersion{v.VersionID, upstream.WireTime(v.CreateTime), stageList(v.VersionStages)})
	}
	return answer, nil
}

func updateSecret(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	in := upstream.UpdateSecretInput{SecretName: name}
	if description, given := c.params["Description"]; given { // an empty one clears it
		in.Description = &description
	}
	if in.CustomData, err = c.customData(); err != nil {
		return nil, err
	}
	if err := c.manager.UpdateSecret(ctx, in); err != nil {
		return nil, err
	}
	return nameAnswer{name, c.requestID}, nil
}

func updateSecretVersionStage(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	err = c.manager.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{
		SecretName:        name,
		VersionStage:      upstream.VersionStage(c.params["VersionStage"]),
		MoveToVersion:     upstream.VersionID(c.params["MoveToVersion"]),
		RemoveFromVersion: upstream.VersionID(c.params["RemoveFromVersion"]),
	})
	if err != nil {
		return nil, err
	}
	return nameAnswer{name, c.requestID}, nil
}

func deleteSecret(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	in := upstream.DeleteSecretInput{SecretName: name}
	if in.ForceDeleteWithoutRecovery, err = c.flag("ForceDeleteWithoutRecovery"); err != nil {
		return nil, err
	}
	if !in.ForceDeleteWithoutRecovery { // force wins over whatever window is sent with it
		if in.RecoveryWindowInDays, err = c.number("RecoveryWindowInDays", 7, 30); err != nil {
			return nil, err
		}
	}
	planned, err := c.manager.DeleteSecret(ctx, in)
	if err != nil {
		return nil, err
	}
	return deleteSecretAnswer{name, optionalTime(planned), c.requestID}, nil
}

func restoreSecret(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	if err := c.manager.RestoreSecret(ctx, name); err != nil {
		return nil, err
	}
	return nameAnswer{name, c.requestID}, nil
}

func rotateSecret(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	version := upstream.VersionID(c.params["VersionId"])
	if err := c.manager.RotateSecret(ctx, name, version); err != nil {
		return nil, err
	}
	// The rotation is done: an answer without ARN is better than a failure that is none.
	meta, _ := c.manager.DescribeSecret(ctx, name, false)
	return rotateSecretAnswer{meta.ARN, name, version, c.requestID}, nil
}

func updateSecretRotationPolicy(ctx context.Context, c *call) (any, error) {
	name, err := c.secret("SecretName")
	if err != nil {
		return nil, err
	}
	if c.params["EnableAutomaticRotation"] == "" {
		return nil, upstream.MissingParameter("EnableAutomaticRotation")
	}
	in := upstream.RotationPolicyInput{SecretName: name, RotationInterval: c.params["RotationInterval"]}
	if in.EnableAutomaticRotation, err = c.flag("EnableAutomaticRotation"); err != nil {
		return nil, err
	}
	if in.EnableAutomaticRotation && in.RotationInterval == "" {
		return nil, upstream.MissingParameter("RotationInterval")
	}
	if err := c.manager.UpdateSecretRotationPolicy(ctx, in); err != nil {
		return nil, err
	}
	return nameAnswer{name, c.requestID}, nil
}

func getRandomPassword(ctx context.Context, c *call) (any, error) {
	in := upstream.RandomPasswordInput{ExcludeCharacters: c.params["ExcludeCharacters"]}
	var err error
	if in.PasswordLength, err = c.number("PasswordLength", 8, 128); err != nil {
		return nil, err
	}
	for param, target := range map[string]*bool{
		"ExcludeLowercase": &in.ExcludeLowercase, "ExcludeUppercase": &in.ExcludeUppercase,
		"ExcludeNumbers": &in.ExcludeNumbers, "ExcludePunctuation": &in.ExcludePunctuation,
		"RequireEachIncludedType": &in.RequireEachIncludedType,
	} {
		if *target, err = c.flag(param); err != nil {
			return nil, err
		}
	}
	password, err := c.manager.GetRandomPassword(ctx, in)
	if err != nil {
		return nil, err
	}
	return passwordAnswer{string(password.Reveal()), c.requestID}, nil
}

func tagResource(ctx context.Context, c *call) (any, error) {
	name, err := c.taggedSecret()
	if err != nil {
		return nil, err
	}
	tags, err := c.wireTags("Tags")
	if err != nil {
		return nil, err
	}
	if len(tags) == 0 {
		return nil, upstream.MissingParameter("Tags")
	}
	return c.done(c.manager.TagResources(ctx, []upstream.SecretName{name}, tags))
}

func untagResource(ctx context.Context, c *call) (any, error) {
	name, err := c.taggedSecret()
	if err != nil {
		return nil, err
	}
	keys, err := c.tagKeys()
	if err != nil {
		return nil, err
	}
	return c.done(c.manager.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{name}, TagKeys: keys}))
}

func tagResources(ctx context.Context, c *call) (any, error) {
	names, err := c.taggedSecrets()
	if err != nil {
		return nil, err
	}
	tags, err := c.pairs("Tag")
	if err != nil {
		return nil, err
	}
	return c.done(c.manager.TagResources(ctx, names, tags))
}

func untagResources(ctx context.Context, c *call) (any, error) {
	names, err := c.taggedSecrets()
	if err != nil {
		return nil, err
	}
	keys, err := c.list("TagKey")
	if err != nil {
		return nil, err
	}
	all, err := c.flag("All")
	if err != nil {
		return nil, err
	}
	return c.done(c.manager.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: names, TagKeys: keys, All: all}))
}

func listTagResources(ctx context.Context, c *call) (any, error) {
	names, err := c.taggedSecrets()
	if err != nil {
		return nil, err
	}
	tags, err := c.pairs("Tag")
	if err != nil {
		return nil, err
	}
	out, err := tagsPermitted(ctx, c, upstream.ListTagResourcesInput{SecretNames: names, Tags: tags, NextToken: c.params["NextToken"]})
	if err != nil {
		return nil, err
	}
	answer := listTagsAnswer{NextToken: out.NextToken, RequestID: c.requestID}
	answer.TagResources.TagResource = []listedTag{}
	for _, row := range out.Rows {
		answer.TagResources.TagResource = append(answer.TagResources.TagResource, listedTag{"secret", row.SecretName, row.Tag.Key, row.Tag.Value})
	}
	return answer, nil
}

func refusePolicy(context.Context, *call) (any, error) {
	return nil, errUnsupported("secret policies exist in KMS instances only. Restrict access keys instead.")
}

func refuseKeys(context.Context, *call) (any, error) {
	return nil, errUnsupported("only secrets are served here, no keys.")
}

// done is the answer of actions that say nothing else.
func (c *call) done(err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return emptyAnswer{c.requestID}, nil
}

func optionalTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return upstream.WireTime(t)
}
