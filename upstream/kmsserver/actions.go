package kmsserver

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"secretagent/upstream"
)

// actions is everything that is served, by the name that requests carry. It is never
// changed.
var actions = map[string]action{
	"CreateSecret":             createSecret,
	"PutSecretValue":           putSecretValue,
	"GetSecretValue":           getSecretValue,
	"BatchGetSecretValue":      batchGetSecretValue,
	"DescribeSecret":           describeSecret,
	"ListSecrets":              listSecrets,
	"ListSecretVersionIds":     listSecretVersionIDs,
	"UpdateSecret":             updateSecret,
	"UpdateSecretVersionStage": updateSecretVersionStage,
	"DeleteSecret":             deleteSecret,
	"RestoreSecret":            restoreSecret,
	"GetSecretPolicy":          getSecretPolicy,
	"SetSecretPolicy":          setSecretPolicy,
	"GetRandomPassword":        getRandomPassword,
	"TagResource":              tagResource,
	"UntagResource":            untagResource,
	"TagResources":             tagResources,
	"UntagResources":           untagResources,
	"ListTagResources":         listTagResources,

	// Actions of the API that have no meaning here say so, instead of being unknown.
	"RotateSecret":               refuseRotation("VersionId"),
	"UpdateSecretRotationPolicy": refuseRotation("EnableAutomaticRotation"),
	"ListResourceTags":           refuseKeys,
}

func createSecret(c *call) perform {
	c.refuseManaged() // before the name, which managed types leave to the service
	in := upstream.CreateSecretInput{
		SecretName:      c.secret("SecretName"),
		VersionID:       upstream.VersionID(c.params["VersionId"]),
		SecretData:      upstream.NewSecretData([]byte(c.params["SecretData"])),
		SecretDataType:  c.params["SecretDataType"],
		EncryptionKeyID: c.params["EncryptionKeyId"],
		DKMSInstanceID:  c.params["DKMSInstanceId"],
		Policy:          c.params["Policy"],
		Description:     c.params["Description"],
		Tags:            c.wireTags("Tags"),
	}
	return func(ctx context.Context) (any, error) {
		meta, err := c.manager.CreateSecret(ctx, in)
		return createSecretAnswer{meta.ARN, meta.SecretName, in.VersionID, meta.SecretType, meta.DKMSInstanceID, c.requestID}, err
	}
}

// managedTypes are the types of secrets that the cloud rotates.
var managedTypes = []string{"Rds", "Redis", "RAMCredentials", "ECS", "PolarDB"}

// refuseManaged refuses what only managed secrets have. ExtendedConfig is ignored, as the service
// does for a Generic secret.
func (c *call) refuseManaged() {
	switch secretType := c.params["SecretType"]; {
	case slices.Contains(managedTypes, secretType):
		c.fail(&upstream.Error{
			Message: "SecretType " + secretType + " is rotated by the cloud, where it is created; this API creates Generic secrets only",
			Err:     upstream.ErrUnsupported,
		})
	case secretType != "" && secretType != upstream.SecretTypeGeneric:
		c.invalid("SecretType", "it must be Generic")
	case c.flag("EnableAutomaticRotation"):
		c.invalid("EnableAutomaticRotation", "a Generic secret is not rotated by the service")
	case c.params["RotationInterval"] != "":
		c.invalid("RotationInterval", "a Generic secret is not rotated by the service")
	}
}

func putSecretValue(c *call) perform {
	in := upstream.PutSecretValueInput{
		SecretName:     c.secret("SecretName"),
		VersionID:      upstream.VersionID(c.params["VersionId"]),
		SecretData:     upstream.NewSecretData([]byte(c.params["SecretData"])),
		SecretDataType: c.params["SecretDataType"],
		VersionStages:  c.stages(),
	}
	return func(ctx context.Context) (any, error) {
		version, err := c.manager.PutSecretValue(ctx, in)
		return putSecretValueAnswer{in.SecretName.Name(), version.VersionID, stageList(version.VersionStages), c.requestID}, err
	}
}

func getSecretValue(c *call) perform {
	c.knows("SecretName", "VersionId", "VersionStage", "FetchExtendedConfig", "DryRun")
	if c.flag("DryRun") {
		ref := secretToRead(c)
		err := c.err
		c.err = nil // the answer says it
		return func(ctx context.Context) (any, error) {
			if err == nil {
				_, err = c.manager.GetSecretValue(ctx, ref)
			}
			return nil, dryRunFault(err)
		}
	}
	ref := secretToRead(c)
	return func(ctx context.Context) (any, error) { return c.readSecretValue(ctx, ref) }
}

func secretToRead(c *call) upstream.SecretRef {
	ref := upstream.SecretRef{
		SecretName:   c.secret("SecretName"),
		VersionID:    upstream.VersionID(c.params["VersionId"]),
		VersionStage: upstream.VersionStage(c.params["VersionStage"]),
	}
	c.flag("FetchExtendedConfig") // is for managed types; a generic secret has none to fetch
	return ref
}

func (c *call) readSecretValue(ctx context.Context, ref upstream.SecretRef) ([]byte, error) {
	value, err := c.manager.GetSecretValue(ctx, ref)
	if err != nil {
		return nil, err
	}
	value.RequestID = c.requestID
	return upstream.GetSecretValueJSON(&value), nil
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
func batchGetSecretValue(c *call) perform {
	const param = "SecretsList"
	c.knows(param)
	var list []json.RawMessage
	c.decodeJSON(param, &list)
	wanted := make([]params, len(list))
	for i, item := range list {
		wanted[i] = params{}
		if err := wanted[i].addJSON(item); err != nil {
			c.invalid(param, "it is not JSON of the documented form")
		}
	}
	if len(wanted) == 0 {
		c.missing(param)
	}
	if len(wanted) > maxBatch {
		c.invalid(param, "it names more than 20 secrets")
	}
	return func(ctx context.Context) (any, error) {
		answer := batchAnswer{SecretValues: []json.RawMessage{}, Errors: []batchError{}, RequestID: c.requestID}
		for _, w := range wanted {
			one := *c
			one.params = w
			value, err := one.run(ctx, getSecretValue)
			if err == nil {
				answer.SecretValues = append(answer.SecretValues, value)
				continue
			}
			f := faultOf(err)
			if f.cause != nil {
				return nil, err // the backend is in trouble: what the others would say is of no use
			}
			answer.Errors = append(answer.Errors, batchError{f.code, f.status, f.message, w["SecretName"]})
		}
		return answer, nil
	}
}

func describeSecret(c *call) perform {
	name, fetchTags := c.secret("SecretName"), c.flag("FetchTags")
	return func(ctx context.Context) (any, error) {
		meta, err := c.manager.DescribeSecret(ctx, name, fetchTags)
		return describeSecretAnswer{
			meta.ARN, meta.SecretName, meta.SecretType, meta.Description, meta.EncryptionKeyID, meta.DKMSInstanceID,
			upstream.WireTime(meta.CreateTime), upstream.WireTime(meta.UpdateTime), optionalTime(meta.PlannedDeleteTime),
			meta.Managed, tagList(meta.Tags, fetchTags), c.requestID,
		}, err
	}
}

func listSecrets(c *call) perform {
	in := upstream.ListSecretsInput{Page: c.page(), FetchTags: c.flag("FetchTags"), Permitted: c.key.permitted()}
	c.decodeJSON("Filters", &in.Filters)
	return func(ctx context.Context) (any, error) {
		out, err := c.manager.ListSecrets(ctx, in)
		answer := listSecretsAnswer{PageNumber: out.Page.Number, PageSize: out.Page.Size, TotalCount: out.TotalCount, RequestID: c.requestID}
		answer.SecretList.Secret = []listedSecret{}
		for _, s := range out.Secrets {
			answer.SecretList.Secret = append(answer.SecretList.Secret, listedSecret{
				s.SecretName, s.SecretType, upstream.WireTime(s.CreateTime), upstream.WireTime(s.UpdateTime),
				optionalTime(s.PlannedDeleteTime), tagList(s.Tags, in.FetchTags),
			})
		}
		return answer, err
	}
}

func listSecretVersionIDs(c *call) perform {
	in := upstream.ListSecretVersionIDsInput{SecretName: c.secret("SecretName"), IncludeDeprecated: c.flag("IncludeDeprecated"), Page: c.page()}
	return func(ctx context.Context) (any, error) {
		out, err := c.manager.ListSecretVersionIDs(ctx, in)
		answer := listVersionsAnswer{SecretName: in.SecretName.Name(), PageNumber: out.Page.Number, PageSize: out.Page.Size, TotalCount: out.TotalCount, RequestID: c.requestID}
		answer.VersionIDs.VersionID = []listedVersion{}
		for _, v := range out.Versions {
			answer.VersionIDs.VersionID = append(answer.VersionIDs.VersionID, listedVersion{v.VersionID, upstream.WireTime(v.CreateTime), stageList(v.VersionStages)})
		}
		return answer, err
	}
}

func updateSecret(c *call) perform {
	in := upstream.UpdateSecretInput{SecretName: c.secret("SecretName")}
	for name, value := range c.params {
		if strings.HasPrefix(name, "ExtendedConfig.CustomData") && value != "" && value != "{}" {
			c.invalid("ExtendedConfig.CustomData", "a Generic secret has none")
		}
	}
	if description, given := c.params["Description"]; given { // an empty one clears it
		in.Description = &description
	}
	return func(ctx context.Context) (any, error) {
		return nameAnswer{in.SecretName.Name(), c.requestID}, c.manager.UpdateSecret(ctx, in)
	}
}

func updateSecretVersionStage(c *call) perform {
	in := upstream.UpdateSecretVersionStageInput{
		SecretName:        c.secret("SecretName"),
		VersionStage:      upstream.VersionStage(c.params["VersionStage"]),
		MoveToVersion:     upstream.VersionID(c.params["MoveToVersion"]),
		RemoveFromVersion: upstream.VersionID(c.params["RemoveFromVersion"]),
	}
	return func(ctx context.Context) (any, error) {
		return nameAnswer{in.SecretName.Name(), c.requestID}, c.manager.UpdateSecretVersionStage(ctx, in)
	}
}

func deleteSecret(c *call) perform {
	in := upstream.DeleteSecretInput{SecretName: c.secret("SecretName"), ForceDeleteWithoutRecovery: c.flag("ForceDeleteWithoutRecovery")}
	if !in.ForceDeleteWithoutRecovery { // force wins over whatever window is sent with it
		in.RecoveryWindowInDays = c.number("RecoveryWindowInDays")
	}
	return func(ctx context.Context) (any, error) {
		planned, err := c.manager.DeleteSecret(ctx, in)
		return deleteSecretAnswer{in.SecretName.Name(), optionalTime(planned), c.requestID}, err
	}
}

func restoreSecret(c *call) perform {
	name := c.secret("SecretName")
	return func(ctx context.Context) (any, error) {
		return nameAnswer{name.Name(), c.requestID}, c.manager.RestoreSecret(ctx, name)
	}
}

// policyName is the only one that a policy of a secret has.
const policyName = "default"

func getSecretPolicy(c *call) perform {
	name, policy := c.secret("SecretName"), c.params["PolicyName"]
	return func(ctx context.Context) (any, error) {
		text, err := c.manager.GetSecretPolicy(ctx, name)
		if err == nil && policy != "" && policy != policyName {
			err = &upstream.Error{Message: "the only policy of a secret is " + policyName, Err: upstream.ErrNotFound}
		}
		return policyAnswer{text, c.requestID}, err
	}
}

func setSecretPolicy(c *call) perform {
	name, policy := c.secret("SecretName"), c.params["Policy"]
	if p := c.params["PolicyName"]; p != "" && p != policyName {
		c.invalid("PolicyName", "it must be "+policyName)
	}
	return func(ctx context.Context) (any, error) {
		return emptyAnswer{c.requestID}, c.manager.SetSecretPolicy(ctx, name, policy)
	}
}

func getRandomPassword(c *call) perform {
	c.knows("PasswordLength", "ExcludeCharacters", "ExcludeLowercase", "ExcludeUppercase", "ExcludeNumbers", "ExcludePunctuation", "RequireEachIncludedType")
	in := upstream.RandomPasswordInput{
		PasswordLength:          c.number("PasswordLength"),
		ExcludeCharacters:       c.params["ExcludeCharacters"],
		ExcludeLowercase:        c.flag("ExcludeLowercase"),
		ExcludeUppercase:        c.flag("ExcludeUppercase"),
		ExcludeNumbers:          c.flag("ExcludeNumbers"),
		ExcludePunctuation:      c.flag("ExcludePunctuation"),
		RequireEachIncludedType: c.flag("RequireEachIncludedType"),
	}
	return func(ctx context.Context) (any, error) {
		password, err := c.manager.GetRandomPassword(ctx, in)
		if err != nil {
			return nil, err
		}
		return passwordAnswer{string(password.Reveal()), c.requestID}, nil
	}
}

func tagResource(c *call) perform {
	names, tags := []upstream.SecretName{c.taggedSecret()}, c.wireTags("Tags")
	return func(ctx context.Context) (any, error) {
		return emptyAnswer{c.requestID}, c.manager.TagResources(ctx, names, tags)
	}
}

func untagResource(c *call) perform {
	return untag(c, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{c.taggedSecret()}, TagKeys: c.tagKeys()})
}

func tagResources(c *call) perform {
	names, tags := c.taggedSecrets(), c.pairs("Tag")
	return func(ctx context.Context) (any, error) {
		return emptyAnswer{c.requestID}, c.manager.TagResources(ctx, names, tags)
	}
}

func untagResources(c *call) perform {
	return untag(c, upstream.UntagResourcesInput{SecretNames: c.taggedSecrets(), TagKeys: c.list("TagKey"), All: c.flag("All")})
}

func untag(c *call, in upstream.UntagResourcesInput) perform {
	return func(ctx context.Context) (any, error) {
		return emptyAnswer{c.requestID}, c.manager.UntagResources(ctx, in)
	}
}

func listTagResources(c *call) perform {
	in := upstream.ListTagResourcesInput{SecretNames: c.taggedSecrets(), Tags: c.pairs("Tag"), NextToken: c.params["NextToken"], Permitted: c.key.permitted()}
	return func(ctx context.Context) (any, error) {
		out, err := c.manager.ListTagResources(ctx, in)
		answer := listTagsAnswer{NextToken: out.NextToken, RequestID: c.requestID}
		answer.TagResources.TagResource = []listedTag{}
		for _, row := range out.Rows {
			answer.TagResources.TagResource = append(answer.TagResources.TagResource, listedTag{"secret", row.SecretName, row.Tag.Key, row.Tag.Value})
		}
		return answer, err
	}
}

// refuseRotation answers for a Generic secret, which the service does not rotate either, and for one
// that the cloud behind this API rotates. The parameter is the other one that the action needs.
func refuseRotation(needed string) action {
	return func(c *call) perform {
		name := c.secret("SecretName")
		if c.params[needed] == "" {
			c.missing(needed)
		}
		return func(ctx context.Context) (any, error) {
			switch meta, err := c.manager.DescribeSecret(ctx, name, false); {
			case err != nil:
				return nil, err
			case !meta.PlannedDeleteTime.IsZero():
				return nil, &upstream.Error{Err: upstream.ErrPendingDeletion}
			case meta.SecretType != upstream.SecretTypeGeneric:
				return nil, &upstream.Error{
					Message: "This action is not served here; ask the cloud itself, which rotates secrets of type " + meta.SecretType + ".",
					Err:     upstream.ErrUnsupported,
				}
			}
			return nil, &upstream.Error{
				Message: "This action is not supported for Generic secrets; put a new version with PutSecretValue.",
				Err:     upstream.ErrUnsupported,
			}
		}
	}
}

func refuseKeys(c *call) perform {
	c.fail(errUnsupported("only secrets are served here, no keys."))
	return nil
}

func optionalTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return upstream.WireTime(t)
}
