package kmsserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth"
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
func official(t *testing.T, address string, transport *http.Transport, credential auth.Credential) *kms.Client {
	t.Helper()
	config := sdk.NewConfig()
	config.Transport = roundTripper{transport}
	client, err := kms.NewClientWithOptions("cn-hangzhou", config, credential)
	must(t, err)
	client.Domain = address
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		client.Shutdown()
	})
	return client
}

func accessKey(secret string) auth.Credential {
	return credentials.NewAccessKeyCredential(keyID, secret)
}

// try makes a call and checks how it ends: well, or with a status and code.
func try[Q, A any](t *testing.T, call func(*Q) (*A, error), request *Q, want string) *A {
	t.Helper()
	answer, err := call(request)
	got := ""
	var e sdkerrors.Error
	switch {
	case errors.As(err, &e):
		got = fmt.Sprint(e.HttpStatus(), " ", e.ErrorCode())
	case err != nil:
		got = err.Error()
	}
	if got != want {
		t.Fatalf("%T: %q, want %q: %v", request, got, want, err)
	}
	return answer
}

// understood checks what the SDK made of an answer.
func understood(t *testing.T, answer interface{ GetHttpContentString() string }, right bool) {
	t.Helper()
	if !right {
		t.Errorf("%T: %s", answer, answer.GetHttpContentString())
	}
}

func getRequest(name string) *kms.GetSecretValueRequest {
	r := kms.CreateGetSecretValueRequest()
	r.SecretName = name
	return r
}

func putRequest(version, data string) *kms.PutSecretValueRequest {
	r := kms.CreatePutSecretValueRequest()
	r.SecretName, r.VersionId, r.SecretData = "app/db", version, data
	return r
}

func TestTheOfficialSDKOverTheSocket(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	client := official(t, "kms.local", f.local.Transport.(*http.Transport), accessKey("any secret will do"))
	value := try(t, client.GetSecretValue, getRequest("app/db"), "")
	understood(t, value, value.SecretData == "first")
}

func TestTheOfficialSDKOverTLS(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	ready := httptest.NewTLSServer(nil) // for its certificate
	ready.Close()
	pool := x509.NewCertPool()
	pool.AddCert(ready.Certificate())
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: ready.TLS.Certificates})
	must(t, err)
	served := make(chan struct{})
	go func() { defer close(served); f.serve(t, ln, kmsserver.Signed) }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	client := official(t, ln.Addr().String(), transport, accessKey(keySecret))
	client.GetConfig().Scheme = "HTTPS"
	value := try(t, client.GetSecretValue, getRequest("app/db"), "")
	understood(t, value, value.SecretData == "first")

	// Two clients keep quiet, one in the handshake, one after a request. A shutdown waits for none.
	quiet, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	defer quiet.Close()
	f.shutdown(t)
	<-served
}

// TestTheOfficialSDK and the test after it make the calls that the SDK has for secrets, and look
// at what it understood.
func TestTheOfficialSDK(t *testing.T) {
	f := start(t)
	client := official(t, f.address, &http.Transport{}, accessKey(keySecret))
	const awkward = "{\"pwd\":\"a b*c~d+e/f=é&%\\n\u2028🔑\"}"

	create := kms.CreateCreateSecretRequest()
	create.SecretName, create.VersionId, create.SecretData = "app/db", "v1", awkward
	create.SecretDataType, create.SecretType, create.Description = "text", "Generic", "数据库"
	create.Tags, create.EnableAutomaticRotation = `[{"TagKey":"env","TagValue":"dev"}]`, requests.NewBoolean(false)
	created := try(t, client.CreateSecret, create, "")
	understood(t, created, created.SecretName == "app/db" && created.VersionId == "v1" && created.SecretType == "Generic" && created.Arn != "" && len(created.RequestId) == 36)
	try(t, client.CreateSecret, create, "409 Rejected.ResourceExist")

	get := getRequest("app/db")
	get.FetchExtendedConfig = requests.NewBoolean(true)
	value := try(t, client.GetSecretValue, get, "")
	understood(t, value, value.SecretData == awkward && value.VersionId == "v1" && value.SecretDataType == "text" && value.SecretType == "Generic" &&
		len(value.VersionStages.VersionStage) == 1 && value.VersionStages.VersionStage[0] == "ACSCurrent" && value.CreateTime != "")
	_, err := time.Parse(time.RFC3339, value.CreateTime)
	understood(t, value, err == nil)
	get.DryRun = "true"
	try(t, client.GetSecretValue, get, "400 DryRunOperationError")

	put := putRequest("v2", strings.Repeat("\"", 30720))
	put.VersionStages = `["ACSCurrent","blue"]`
	stored := try(t, client.PutSecretValue, put, "")
	understood(t, stored, stored.SecretName == "app/db" && stored.VersionId == "v2" && len(stored.VersionStages.VersionStage) == 2)
	put.SecretData = "other"
	try(t, client.PutSecretValue, put, "409 Rejected.ResourceExist")
	for range 2 { // a third version leaves v1 without a label
		try(t, client.PutSecretValue, putRequest("v3", "third"), "")
	}

	versions := kms.CreateListSecretVersionIdsRequest()
	versions.SecretName, versions.IncludeDeprecated, versions.PageNumber, versions.PageSize = "app/db", "true", requests.NewInteger(1), requests.NewInteger(100)
	listed := try(t, client.ListSecretVersionIds, versions, "")
	ids := listed.VersionIds.VersionId
	understood(t, listed, listed.TotalCount == 3 && listed.PageSize == 100 && len(ids) == 3 && ids[0].VersionId == "v3" && ids[2].VersionId == "v1" && len(ids[2].VersionStages.VersionStage) == 0)

	stage := kms.CreateUpdateSecretVersionStageRequest()
	stage.SecretName, stage.VersionStage, stage.MoveToVersion = "app/db", "ACSCurrent", "v2"
	try(t, client.UpdateSecretVersionStage, stage, "")
	previous := getRequest("app/db")
	previous.VersionStage = "ACSPrevious"
	value = try(t, client.GetSecretValue, previous, "")
	understood(t, value, value.VersionId == "v3")

	draw := kms.CreateGetRandomPasswordRequest()
	draw.PasswordLength, draw.ExcludePunctuation, draw.RequireEachIncludedType = "24", "true", "true"
	password := try(t, client.GetRandomPassword, draw, "")
	understood(t, password, len(password.RandomPassword) == 24)

	remove := kms.CreateDeleteSecretRequest()
	remove.SecretName, remove.RecoveryWindowInDays = "app/db", "7"
	removed := try(t, client.DeleteSecret, remove, "")
	planned, err := time.Parse(time.RFC3339, removed.PlannedDeleteTime)
	if left := time.Until(planned); err != nil || left < 6*24*time.Hour || left > 8*24*time.Hour {
		t.Errorf("DeleteSecret: %s", removed.GetHttpContentString())
	}
	get.DryRun = ""
	try(t, client.GetSecretValue, get, "409 Rejected.ResourceInDeleteWindow")
	restore := kms.CreateRestoreSecretRequest()
	restore.SecretName = "app/db"
	restored := try(t, client.RestoreSecret, restore, "")
	understood(t, restored, restored.SecretName == "app/db")
	try(t, client.RestoreSecret, restore, "409 Rejected.ResourceInUse")
	remove.ForceDeleteWithoutRecovery, remove.RecoveryWindowInDays = "true", "30" // as Terraform sends them
	try(t, client.DeleteSecret, remove, "")
	try(t, client.GetSecretValue, get, "404 Forbidden.ResourceNotFound")
	_, err = client.GetSecretValue(get)
	if e, ok := errors.AsType[sdkerrors.Error](err); !ok || e.Message() == "" || strings.Contains(e.Message(), "{") {
		t.Errorf("the message is %v", err)
	}
}

func TestTheOfficialSDKOnDescriptions(t *testing.T) {
	f := start(t)
	client := official(t, f.address, &http.Transport{}, accessKey(keySecret))
	f.fake.MustCreate(t, "app/db", "v1", "first")

	update := kms.CreateUpdateSecretRequest()
	update.SecretName, update.Description = "acs:kms:cn-hangzhou:123456:secret/app/db", "new"
	updated := try(t, client.UpdateSecret, update, "")
	understood(t, updated, updated.SecretName == "app/db")
	update.ExtendedConfigCustomData = `{"a":"b"}`
	try(t, client.UpdateSecret, update, "400 InvalidParameter")

	tag := kms.CreateTagResourceRequest()
	tag.SecretName, tag.Tags = "app/db", `[{"TagKey":"tier","TagValue":"web"},{"TagKey":"empty","TagValue":""}]`
	try(t, client.TagResource, tag, "")
	untag := kms.CreateUntagResourceRequest()
	untag.SecretName, untag.TagKeys = "app/db", `["tier"]`
	try(t, client.UntagResource, untag, "")
	tags := kms.CreateTagResourcesRequest()
	tags.ResourceType, tags.ResourceId = "secret", &[]string{"app/db"}
	tags.Tag = &[]kms.TagResourcesTag{{Key: "team", Value: "core"}, {Key: "blank"}}
	try(t, client.TagResources, tags, "")
	untags := kms.CreateUntagResourcesRequest()
	untags.ResourceType, untags.ResourceId, untags.TagKey = "secret", &[]string{"app/db"}, &[]string{"empty", "env"}
	try(t, client.UntagResources, untags, "")
	tagList := kms.CreateListTagResourcesRequest()
	tagList.ResourceType, tagList.ResourceId = "secret", &[]string{"app/db"}
	rows := try(t, client.ListTagResources, tagList, "")
	got := ""
	for _, row := range rows.TagResources.TagResource {
		got += row.ResourceType + " " + row.ResourceId + " " + row.TagKey + "=" + row.TagValue + ";"
	}
	understood(t, rows, got == "secret app/db blank=;secret app/db team=core;" && rows.NextToken == "")

	describe := kms.CreateDescribeSecretRequest()
	describe.SecretName, describe.FetchTags = "app/db", "true"
	described := try(t, client.DescribeSecret, describe, "")
	understood(t, described, described.Description == "new" && described.SecretType == "Generic" && described.EncryptionKeyId != "" && described.PlannedDeleteTime == "" && len(described.Tags.Tag) == 2)

	list := kms.CreateListSecretsRequest()
	list.Filters, list.FetchTags = `[{"Key":"SecretName","Values":["app/db","other"]}]`, "true"
	secrets := try(t, client.ListSecrets, list, "")
	understood(t, secrets, secrets.TotalCount == 1 && secrets.PageNumber == 1 && secrets.PageSize == 10 && len(secrets.SecretList.Secret) == 1 && secrets.SecretList.Secret[0].SecretName == "app/db")
	list.Filters = `[{"Key":"SecretName","Values":["other"]}]`
	secrets = try(t, client.ListSecrets, list, "")
	understood(t, secrets, len(secrets.SecretList.Secret) == 0)
}

// The SDK compares the string to sign in the answer with its own.
func TestTheOfficialSDKTellsAWrongSecret(t *testing.T) {
	f := start(t)
	client := official(t, f.address, &http.Transport{}, accessKey("wrong"))
	try(t, client.GetSecretValue, getRequest("app/db"), "400 SignatureDoesNotMatch")
	if _, err := client.GetSecretValue(getRequest("app/db")); !strings.Contains(err.Error(), "InvalidAccessKeySecret: Please check you AccessKeySecret") {
		t.Errorf("the user reads: %v", err)
	}
	try(t, client.PutSecretValue, putRequest("v1", "MARKER"), "400 SignatureDoesNotMatch")
	if _, err := client.PutSecretValue(putRequest("v1", "MARKER")); strings.Contains(err.Error(), "MARKER") || !strings.Contains(err.Error(), "Check the AccessKeySecret") {
		t.Errorf("the user reads: %v", err)
	}
}

func TestTheOfficialSDKWithAnSTSToken(t *testing.T) {
	f := start(t, func(o *kmsserver.Tuned) { o.AccessKeys[0].SecurityToken = secretData("CAIS-token+/==") })
	f.fake.MustCreate(t, "app/db", "v1", "first")
	for token, want := range map[string]string{"CAIS-token+/==": "", "other": "400 InvalidSecurityToken.MismatchWithAccessKey"} {
		client := official(t, f.address, &http.Transport{}, credentials.NewStsTokenCredential(keyID, keySecret, token))
		value := try(t, client.GetSecretValue, getRequest("app/db"), want)
		understood(t, value, want != "" || value.SecretData == "first")
	}
}
