package kmsserver_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"secretagent/upstream/kmsserver"
)

// roundTripper keeps the SDK from changing the transport, which it does when it sees one of
// the standard library.
type roundTripper struct{ http.RoundTripper }

// official returns the official SDK's client, unmodified, with a transport that reaches the
// server.
func official(t *testing.T, address string, transport *http.Transport, secret string) *kms.Client {
	t.Helper()
	config := sdk.NewConfig()
	config.Transport = roundTripper{transport}
	client, err := kms.NewClientWithOptions("cn-hangzhou", config, credentials.NewAccessKeyCredential(keyID, secret))
	if err != nil {
		t.Fatal(err)
	}
	client.Domain = address
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		client.Shutdown()
	})
	return client
}

func serverError(t *testing.T, what string, err error, status int, code string) sdkerrors.Error {
	t.Helper()
	var e sdkerrors.Error
	if !errors.As(err, &e) || e.HttpStatus() != status || e.ErrorCode() != code {
		t.Errorf("%s: %v, want %d %s", what, err, status, code)
	}
	return e
}

func TestTheOfficialSDKOverLoopback(t *testing.T) {
	f := start(t)
	driveSDK(t, official(t, f.address, &http.Transport{}, keySecret))
}

func TestTheOfficialSDKOverTheSocket(t *testing.T) {
	f := start(t)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", f.socket)
	}
	driveSDK(t, official(t, "kms.local", &http.Transport{DialContext: dial}, "any secret will do"))
}

func TestTheOfficialSDKOverTLS(t *testing.T) {
	cert, pool := selfSigned(t)
	f := start(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", serverTLS(cert))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = f.server.Serve(ln, kmsserver.Signed) }()
	client := official(t, ln.Addr().String(), &http.Transport{TLSClientConfig: clientTLS(pool)}, keySecret)
	client.GetConfig().Scheme = "HTTPS"
	driveSDK(t, client)
}

// driveSDK makes every call that the SDK has for secrets, and looks at what it understood.
func driveSDK(t *testing.T, client *kms.Client) {
	t.Helper()
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	const awkward = "{\"pwd\":\"a b*c~d+e/f=é&%\\n\u2028🔑\"}"

	create := kms.CreateCreateSecretRequest()
	create.SecretName, create.VersionId, create.SecretData = "app/db", "v1", awkward
	create.SecretDataType, create.SecretType, create.Description = "text", "Generic", "数据库"
	create.Tags, create.EnableAutomaticRotation = `[{"TagKey":"env","TagValue":"dev"}]`, requests.NewBoolean(false)
	created, err := client.CreateSecret(create)
	ok("CreateSecret", err)
	if created.SecretName != "app/db" || created.VersionId != "v1" || created.SecretType != "Generic" || created.Arn == "" || len(created.RequestId) != 36 {
		t.Errorf("CreateSecret: %s", created.GetHttpContentString())
	}
	_, err = client.CreateSecret(create)
	serverError(t, "CreateSecret again", err, 409, "Rejected.ResourceExist")

	get := kms.CreateGetSecretValueRequest()
	get.SecretName, get.FetchExtendedConfig = "app/db", requests.NewBoolean(true)
	value, err := client.GetSecretValue(get)
	ok("GetSecretValue", err)
	if value.SecretData != awkward || value.VersionId != "v1" || value.SecretDataType != "text" || value.SecretType != "Generic" ||
		len(value.VersionStages.VersionStage) != 1 || value.VersionStages.VersionStage[0] != "ACSCurrent" || value.CreateTime == "" {
		t.Errorf("GetSecretValue: %s", value.GetHttpContentString())
	}
	if _, err := time.Parse(time.RFC3339, value.CreateTime); err != nil {
		t.Error(err)
	}
	get.DryRun = "true"
	_, err = client.GetSecretValue(get)
	serverError(t, "GetSecretValue, dry run", err, 400, "DryRunOperationError")

	put := kms.CreatePutSecretValueRequest()
	put.SecretName, put.VersionId, put.SecretData, put.VersionStages = "app/db", "v2", strings.Repeat("\"", 30720), `["ACSCurrent","blue"]`
	stored, err := client.PutSecretValue(put)
	ok("PutSecretValue", err)
	if stored.SecretName != "app/db" || stored.VersionId != "v2" || len(stored.VersionStages.VersionStage) != 2 {
		t.Errorf("PutSecretValue: %s", stored.GetHttpContentString())
	}
	put.SecretData = "other"
	_, err = client.PutSecretValue(put)
	serverError(t, "PutSecretValue, other data", err, 409, "Rejected.ResourceExist")
	for i := range 2 { // a third version leaves v1 without a label
		put = kms.CreatePutSecretValueRequest()
		put.SecretName, put.VersionId, put.SecretData = "app/db", "v3", "third"
		_, err = client.PutSecretValue(put)
		ok("PutSecretValue, try "+string(rune('1'+i)), err)
	}

	versions := kms.CreateListSecretVersionIdsRequest()
	versions.SecretName, versions.IncludeDeprecated, versions.PageNumber, versions.PageSize = "app/db", "true", requests.NewInteger(1), requests.NewInteger(100)
	listed, err := client.ListSecretVersionIds(versions)
	ok("ListSecretVersionIds", err)
	ids := listed.VersionIds.VersionId
	if listed.TotalCount != 3 || listed.PageSize != 100 || len(ids) != 3 || ids[0].VersionId != "v3" || ids[2].VersionId != "v1" || len(ids[2].VersionStages.VersionStage) != 0 {
		t.Errorf("ListSecretVersionIds: %s", listed.GetHttpContentString())
	}

	stage := kms.CreateUpdateSecretVersionStageRequest()
	stage.SecretName, stage.VersionStage, stage.MoveToVersion = "app/db", "ACSCurrent", "v2"
	_, err = client.UpdateSecretVersionStage(stage)
	ok("UpdateSecretVersionStage", err)
	previous := kms.CreateGetSecretValueRequest()
	previous.SecretName, previous.VersionStage = "app/db", "ACSPrevious"
	value, err = client.GetSecretValue(previous)
	ok("GetSecretValue by stage", err)
	if value.VersionId != "v3" {
		t.Errorf("ACSPrevious is %s", value.VersionId)
	}

	update := kms.CreateUpdateSecretRequest()
	update.SecretName, update.Description = "acs:kms:cn-hangzhou:123456:secret/app/db", "new"
	updated, err := client.UpdateSecret(update)
	ok("UpdateSecret", err)
	if updated.SecretName != "app/db" {
		t.Errorf("UpdateSecret: %s", updated.GetHttpContentString())
	}
	update.ExtendedConfigCustomData = `{"a":"b"}`
	_, err = client.UpdateSecret(update)
	serverError(t, "UpdateSecret, custom data", err, 400, "InvalidParameter")

	tag := kms.CreateTagResourceRequest()
	tag.SecretName, tag.Tags = "app/db", `[{"TagKey":"tier","TagValue":"web"},{"TagKey":"empty","TagValue":""}]`
	_, err = client.TagResource(tag)
	ok("TagResource", err)
	untag := kms.CreateUntagResourceRequest()
	untag.SecretName, untag.TagKeys = "app/db", `["tier"]`
	_, err = client.UntagResource(untag)
	ok("UntagResource", err)
	tags := kms.CreateTagResourcesRequest()
	tags.ResourceType, tags.ResourceId = "secret", &[]string{"app/db"}
	tags.Tag = &[]kms.TagResourcesTag{{Key: "team", Value: "core"}, {Key: "blank"}}
	_, err = client.TagResources(tags)
	ok("TagResources", err)
	untags := kms.CreateUntagResourcesRequest()
	untags.ResourceType, untags.ResourceId, untags.TagKey = "secret", &[]string{"app/db"}, &[]string{"empty", "env"}
	_, err = client.UntagResources(untags)
	ok("UntagResources", err)
	tagList := kms.CreateListTagResourcesRequest()
	tagList.ResourceType, tagList.ResourceId = "secret", &[]string{"app/db"}
	rows, err := client.ListTagResources(tagList)
	ok("ListTagResources", err)
	got := ""
	for _, row := range rows.TagResources.TagResource {
		got += row.ResourceType + " " + row.ResourceId + " " + row.TagKey + "=" + row.TagValue + ";"
	}
	if got != "secret app/db blank=;secret app/db team=core;" || rows.NextToken != "" {
		t.Errorf("ListTagResources: %s", rows.GetHttpContentString())
	}

	describe := kms.CreateDescribeSecretRequest()
	describe.SecretName, describe.FetchTags = "app/db", "true"
	described, err := client.DescribeSecret(describe)
	ok("DescribeSecret", err)
	if described.Description != "new" || described.SecretType != "Generic" || described.EncryptionKeyId == "" || described.PlannedDeleteTime != "" || len(described.Tags.Tag) != 2 {
		t.Errorf("DescribeSecret: %s", described.GetHttpContentString())
	}

	list := kms.CreateListSecretsRequest()
	list.Filters, list.FetchTags = `[{"Key":"SecretName","Values":["app/db","other"]}]`, "true"
	secrets, err := client.ListSecrets(list)
	ok("ListSecrets", err)
	if secrets.TotalCount != 1 || secrets.PageNumber != 1 || secrets.PageSize != 10 || len(secrets.SecretList.Secret) != 1 || secrets.SecretList.Secret[0].SecretName != "app/db" {
		t.Errorf("ListSecrets: %s", secrets.GetHttpContentString())
	}
	list.Filters = `[{"Key":"SecretName","Values":["other"]}]`
	secrets, err = client.ListSecrets(list)
	ok("ListSecrets, nothing", err)
	if len(secrets.SecretList.Secret) != 0 {
		t.Errorf("ListSecrets: %s", secrets.GetHttpContentString())
	}

	draw := kms.CreateGetRandomPasswordRequest()
	draw.PasswordLength, draw.ExcludePunctuation, draw.RequireEachIncludedType = "24", "true", "true"
	password, err := client.GetRandomPassword(draw)
	ok("GetRandomPassword", err)
	if len(password.RandomPassword) != 24 {
		t.Errorf("GetRandomPassword: %d characters", len(password.RandomPassword))
	}

	rotate := kms.CreateRotateSecretRequest()
	rotate.SecretName, rotate.VersionId = "app/db", "v9"
	_, err = client.RotateSecret(rotate)
	serverError(t, "RotateSecret", err, 400, "UnsupportedOperation")
	policy := kms.CreateUpdateSecretRotationPolicyRequest()
	policy.SecretName, policy.EnableAutomaticRotation = "app/db", requests.NewBoolean(false)
	_, err = client.UpdateSecretRotationPolicy(policy)
	serverError(t, "UpdateSecretRotationPolicy", err, 400, "UnsupportedOperation")
	getPolicy := kms.CreateGetSecretPolicyRequest()
	getPolicy.SecretName = "app/db"
	_, err = client.GetSecretPolicy(getPolicy)
	serverError(t, "GetSecretPolicy", err, 400, "UnsupportedOperation")
	setPolicy := kms.CreateSetSecretPolicyRequest()
	setPolicy.SecretName, setPolicy.Policy = "app/db", "{}"
	_, err = client.SetSecretPolicy(setPolicy)
	serverError(t, "SetSecretPolicy", err, 400, "UnsupportedOperation")
	resourceTags := kms.CreateListResourceTagsRequest()
	resourceTags.KeyId = "k"
	_, err = client.ListResourceTags(resourceTags)
	serverError(t, "ListResourceTags", err, 400, "UnsupportedOperation")
	_, err = client.ListKeys(kms.CreateListKeysRequest())
	serverError(t, "ListKeys", err, 404, "InvalidApi.NotFound")

	remove := kms.CreateDeleteSecretRequest()
	remove.SecretName, remove.RecoveryWindowInDays = "app/db", "7"
	removed, err := client.DeleteSecret(remove)
	ok("DeleteSecret", err)
	planned, err := time.Parse(time.RFC3339, removed.PlannedDeleteTime)
	if left := time.Until(planned); err != nil || left < 6*24*time.Hour || left > 8*24*time.Hour {
		t.Errorf("DeleteSecret: %s", removed.GetHttpContentString())
	}
	get.DryRun = ""
	_, err = client.GetSecretValue(get)
	serverError(t, "GetSecretValue in the window", err, 409, "Rejected.ResourceInDeleteWindow")
	restore := kms.CreateRestoreSecretRequest()
	restore.SecretName = "app/db"
	restored, err := client.RestoreSecret(restore)
	ok("RestoreSecret", err)
	if restored.SecretName != "app/db" {
		t.Errorf("RestoreSecret: %s", restored.GetHttpContentString())
	}
	_, err = client.RestoreSecret(restore)
	serverError(t, "RestoreSecret again", err, 409, "Rejected.ResourceInUse")
	remove.ForceDeleteWithoutRecovery, remove.RecoveryWindowInDays = "true", "30" // as Terraform sends them
	_, err = client.DeleteSecret(remove)
	ok("DeleteSecret by force", err)
	_, err = client.GetSecretValue(get)
	e := serverError(t, "GetSecretValue after all", err, 404, "Forbidden.ResourceNotFound")
	if e != nil && (e.Message() == "" || strings.Contains(e.Message(), "{")) {
		t.Errorf("the message is %q", e.Message())
	}
}

// The SDK compares the string to sign in the answer with its own.
func TestTheOfficialSDKTellsAWrongSecret(t *testing.T) {
	f := start(t)
	client := official(t, f.address, &http.Transport{}, "wrong")
	get := kms.CreateGetSecretValueRequest()
	get.SecretName = "app/db"
	_, err := client.GetSecretValue(get)
	serverError(t, "GetSecretValue", err, 400, "SignatureDoesNotMatch")
	if err == nil || !strings.Contains(err.Error(), "InvalidAccessKeySecret: Please check you AccessKeySecret") {
		t.Errorf("the user reads: %v", err)
	}
	put := kms.CreatePutSecretValueRequest()
	put.SecretName, put.VersionId, put.SecretData = "app/db", "v1", "MARKER"
	_, err = client.PutSecretValue(put)
	serverError(t, "PutSecretValue", err, 400, "SignatureDoesNotMatch")
	if err == nil || strings.Contains(err.Error(), "MARKER") || !strings.Contains(err.Error(), "Check the AccessKeySecret") {
		t.Errorf("the user reads: %v", err)
	}
}

func TestTheOfficialSDKWithAnSTSToken(t *testing.T) {
	f := start(t, func(o *kmsserver.Options) { o.AccessKeys[0].SecurityToken = secretData("CAIS-token+/==") })
	f.fake.MustCreate(t, "app/db", "v1", "first")
	for token, code := range map[string]string{"CAIS-token+/==": "", "other": "InvalidSecurityToken.MismatchWithAccessKey"} {
		transport := &http.Transport{}
		config := sdk.NewConfig()
		config.Transport = roundTripper{transport}
		client, err := kms.NewClientWithOptions("cn-hangzhou", config, credentials.NewStsTokenCredential(keyID, keySecret, token))
		if err != nil {
			t.Fatal(err)
		}
		client.Domain = f.address
		get := kms.CreateGetSecretValueRequest()
		get.SecretName = "app/db"
		value, err := client.GetSecretValue(get)
		if code != "" {
			serverError(t, token, err, 400, code)
		} else if err != nil || value.SecretData != "first" {
			t.Errorf("with the right token: %v", err)
		}
		transport.CloseIdleConnections()
		client.Shutdown()
	}
}
