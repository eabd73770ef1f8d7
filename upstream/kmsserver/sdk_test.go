package kmsserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
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

// try makes a call with the fields of a request, given as JSON, and checks how it ends: well, or
// with a status and code.
func try[Q, A any](t *testing.T, call func(*Q) (*A, error), request *Q, fields, want string) *A {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(fields))
	decoder.DisallowUnknownFields()
	must(t, decoder.Decode(request))
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
		t.Fatalf("%T %s: %q, want %q: %v", request, fields, got, want, err)
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

func TestTheOfficialSDKOverTheSocket(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	client := official(t, "kms.local", f.local.Transport.(*http.Transport), accessKey("any secret will do"))
	value := try(t, client.GetSecretValue, kms.CreateGetSecretValueRequest(), `{"SecretName":"app/db"}`, "")
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
	value := try(t, client.GetSecretValue, kms.CreateGetSecretValueRequest(), `{"SecretName":"app/db"}`, "")
	understood(t, value, value.SecretData == "first")

	// Two clients keep quiet, one in the handshake, one after a request. A shutdown waits for none.
	quiet, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	defer quiet.Close()
	f.shutdown(t)
	<-served
}

// TestTheOfficialSDK makes the calls that the SDK has for secrets, and looks at what it understood.
func TestTheOfficialSDK(t *testing.T) {
	f := start(t)
	client := official(t, f.address, &http.Transport{}, accessKey(keySecret))
	get := func(fields, want string) *kms.GetSecretValueResponse {
		t.Helper()
		return try(t, client.GetSecretValue, kms.CreateGetSecretValueRequest(), fields, want)
	}
	put := func(fields, want string) *kms.PutSecretValueResponse {
		t.Helper()
		return try(t, client.PutSecretValue, kms.CreatePutSecretValueRequest(), fields, want)
	}
	const app, awkward = `{"SecretName":"app/db"}`, "{\"pwd\":\"a b*c~d+e/f=é&%\\n\u2028🔑\"}"
	secretData, err := json.Marshal(awkward)
	must(t, err)
	create := fmt.Sprintf(`{"SecretName":"app/db","VersionId":"v1","SecretData":%s,"SecretDataType":"text","SecretType":"Generic","Description":"数据库",
		"Tags":"[{\"TagKey\":\"env\",\"TagValue\":\"dev\"}]","EnableAutomaticRotation":"false"}`, secretData)
	created := try(t, client.CreateSecret, kms.CreateCreateSecretRequest(), create, "")
	understood(t, created, created.SecretName == "app/db" && created.VersionId == "v1" && created.SecretType == "Generic" && created.Arn != "" && len(created.RequestId) == 36)
	try(t, client.CreateSecret, kms.CreateCreateSecretRequest(), create, "409 Rejected.ResourceExist")

	value := get(`{"SecretName":"app/db","FetchExtendedConfig":"true"}`, "")
	_, err = time.Parse(time.RFC3339, value.CreateTime)
	understood(t, value, err == nil && value.SecretData == awkward && value.VersionId == "v1" && value.SecretDataType == "text" && value.SecretType == "Generic" &&
		slices.Equal(value.VersionStages.VersionStage, []string{"ACSCurrent"}))
	get(`{"SecretName":"app/db","DryRun":"true"}`, "400 DryRunOperationError")

	stored := put(`{"SecretName":"app/db","VersionId":"v2","SecretData":"`+strings.Repeat(`\"`, 30720)+`","VersionStages":"[\"ACSCurrent\",\"blue\"]"}`, "")
	understood(t, stored, stored.SecretName == "app/db" && stored.VersionId == "v2" && len(stored.VersionStages.VersionStage) == 2)
	put(`{"SecretName":"app/db","VersionId":"v2","SecretData":"other"}`, "409 Rejected.ResourceExist")
	for range 2 { // a third version leaves v1 without a label
		put(`{"SecretName":"app/db","VersionId":"v3","SecretData":"third"}`, "")
	}
	listed := try(t, client.ListSecretVersionIds, kms.CreateListSecretVersionIdsRequest(), `{"SecretName":"app/db","IncludeDeprecated":"true","PageNumber":"1","PageSize":"100"}`, "")
	ids := listed.VersionIds.VersionId
	understood(t, listed, listed.TotalCount == 3 && listed.PageSize == 100 && len(ids) == 3 && ids[0].VersionId == "v3" && ids[2].VersionId == "v1" && len(ids[2].VersionStages.VersionStage) == 0)
	try(t, client.UpdateSecretVersionStage, kms.CreateUpdateSecretVersionStageRequest(), `{"SecretName":"app/db","VersionStage":"ACSCurrent","MoveToVersion":"v2"}`, "")
	value = get(`{"SecretName":"app/db","VersionStage":"ACSPrevious"}`, "")
	understood(t, value, value.VersionId == "v3")
	password := try(t, client.GetRandomPassword, kms.CreateGetRandomPasswordRequest(), `{"PasswordLength":"24","ExcludePunctuation":"true","RequireEachIncludedType":"true"}`, "")
	understood(t, password, len(password.RandomPassword) == 24)

	removed := try(t, client.DeleteSecret, kms.CreateDeleteSecretRequest(), `{"SecretName":"app/db","RecoveryWindowInDays":"7"}`, "")
	planned, err := time.Parse(time.RFC3339, removed.PlannedDeleteTime)
	left := time.Until(planned)
	understood(t, removed, err == nil && left > 6*24*time.Hour && left < 8*24*time.Hour)
	get(app, "409 Rejected.ResourceInDeleteWindow")
	try(t, client.RotateSecret, kms.CreateRotateSecretRequest(), `{"SecretName":"app/db","VersionId":"v9"}`, "409 Rejected.ResourceInDeleteWindow")
	restored := try(t, client.RestoreSecret, kms.CreateRestoreSecretRequest(), app, "")
	understood(t, restored, restored.SecretName == "app/db")
	try(t, client.RestoreSecret, kms.CreateRestoreSecretRequest(), app, "409 Rejected.ResourceInUse")
	asTerraform := `{"SecretName":"app/db","ForceDeleteWithoutRecovery":"true","RecoveryWindowInDays":"30"}`
	try(t, client.DeleteSecret, kms.CreateDeleteSecretRequest(), asTerraform, "")
	get(app, "404 Forbidden.ResourceNotFound")
	missing := kms.CreateGetSecretValueRequest()
	missing.SecretName = "app/db"
	_, err = client.GetSecretValue(missing)
	if e, ok := errors.AsType[sdkerrors.Error](err); !ok || e.Message() == "" || strings.Contains(e.Message(), "{") {
		t.Errorf("the message is %v", err)
	}
}

func TestTheOfficialSDKOnDescriptions(t *testing.T) {
	f := start(t)
	client := official(t, f.address, &http.Transport{}, accessKey(keySecret))
	f.fake.MustCreate(t, "app/db", "v1", "first")

	updated := try(t, client.UpdateSecret, kms.CreateUpdateSecretRequest(), `{"SecretName":"acs:kms:fake:0:secret/app/db","Description":"new"}`, "")
	understood(t, updated, updated.SecretName == "app/db")
	try(t, client.UpdateSecret, kms.CreateUpdateSecretRequest(), `{"SecretName":"app/db","ExtendedConfigCustomData":"{\"a\":\"b\"}"}`, "400 InvalidParameter")
	try(t, client.TagResource, kms.CreateTagResourceRequest(), `{"SecretName":"app/db","Tags":"[{\"TagKey\":\"tier\",\"TagValue\":\"web\"},{\"TagKey\":\"empty\",\"TagValue\":\"\"}]"}`, "")
	try(t, client.UntagResource, kms.CreateUntagResourceRequest(), `{"SecretName":"app/db","TagKeys":"[\"tier\"]"}`, "")
	const resource = `"ResourceType":"secret","ResourceId":["app/db"]`
	try(t, client.TagResources, kms.CreateTagResourcesRequest(), `{`+resource+`,"Tag":[{"Key":"team","Value":"core"},{"Key":"blank"}]}`, "")
	try(t, client.UntagResources, kms.CreateUntagResourcesRequest(), `{`+resource+`,"TagKey":["empty","env"]}`, "")
	rows := try(t, client.ListTagResources, kms.CreateListTagResourcesRequest(), `{`+resource+`}`, "")
	got := ""
	for _, row := range rows.TagResources.TagResource {
		got += row.ResourceType + " " + row.ResourceId + " " + row.TagKey + "=" + row.TagValue + ";"
	}
	understood(t, rows, got == "secret app/db blank=;secret app/db team=core;" && rows.NextToken == "")
	described := try(t, client.DescribeSecret, kms.CreateDescribeSecretRequest(), `{"SecretName":"app/db","FetchTags":"true"}`, "")
	understood(t, described, described.Description == "new" && described.SecretType == "Generic" && described.EncryptionKeyId == "" && described.PlannedDeleteTime == "" && len(described.Tags.Tag) == 2)
	for name, found := range map[string]int{"app/db": 1, "other": 0} {
		filters := fmt.Sprintf(`{"FetchTags":"true","Filters":"[{\"Key\":\"SecretName\",\"Values\":[\"%s\",\"another\"]}]"}`, name)
		secrets := try(t, client.ListSecrets, kms.CreateListSecretsRequest(), filters, "")
		understood(t, secrets, secrets.TotalCount == found && secrets.PageNumber == 1 && secrets.PageSize == 10 && len(secrets.SecretList.Secret) == found &&
			(found == 0 || secrets.SecretList.Secret[0].SecretName == name))
	}
}

func TestTheOfficialSDKOnKMSInstances(t *testing.T) {
	f := start(t)
	f.fake.Emulate = upstreamtest.Emulation{InstanceID: "kst-1", Keys: []string{"alias/app"}}
	client := official(t, f.address, &http.Transport{}, accessKey(keySecret))
	get := func(fields, want string) *kms.GetSecretPolicyResponse {
		t.Helper()
		return try(t, client.GetSecretPolicy, kms.CreateGetSecretPolicyRequest(), fields, want)
	}
	set := func(fields, want string) {
		t.Helper()
		try(t, client.SetSecretPolicy, kms.CreateSetSecretPolicyRequest(), fields, want)
	}
	const app = `{"SecretName":"app/db"}`
	const good = `{\"Version\":\"1\",\"Statement\":[{\"Sid\":\"ours\",\"Effect\":\"Deny\",\"Principal\":{\"RAM\":[\"*\"]},\"Action\":[\"kms:*\"],\"Resource\":[\"*\"]}]}`
	get(app, "404 Forbidden.ResourceNotFound")
	set(`{"SecretName":"app/db","Policy":"`+good+`"}`, "404 Forbidden.ResourceNotFound")
	create := func(more, want string) *kms.CreateSecretResponse {
		t.Helper()
		return try(t, client.CreateSecret, kms.CreateCreateSecretRequest(), `{"SecretName":"app/db","VersionId":"v1","SecretData":"x",`+more+`}`, want)
	}
	create(`"DKMSInstanceId":"kst-2"`, "400 InvalidParameter")
	create(`"EncryptionKeyId":"alias/other"`, "404 Forbidden.KeyNotFound")
	create(`"Policy":"`+strings.Replace(good, "ours", "数", 1)+`"`, "400 InvalidParameter")
	created := create(`"DKMSInstanceId":"kst-1","EncryptionKeyId":"alias/app","Policy":"`+good+`"`, "")
	understood(t, created, created.DKMSInstanceId == "kst-1")
	described := try(t, client.DescribeSecret, kms.CreateDescribeSecretRequest(), app, "")
	understood(t, described, described.DKMSInstanceId == "kst-1" && described.EncryptionKeyId == "alias/app")
	for _, fields := range []string{app, `{"SecretName":"acs:kms:fake:0:secret/app/db","PolicyName":"default"}`} {
		answer := get(fields, "")
		understood(t, answer, answer.Policy == strings.ReplaceAll(good, `\`, ""))
	}
	get(`{"SecretName":"app/db","PolicyName":"mine"}`, "404 Forbidden.ResourceNotFound")
	set(app, "400 MissingParameter")
	set(`{"SecretName":"app/db","Policy":"{}"}`, "400 InvalidParameter")
	set(`{"SecretName":"app/db","PolicyName":"mine","Policy":"`+good+`"}`, "400 InvalidParameter")
	set(`{"SecretName":"app/db","PolicyName":"default","Policy":"`+strings.Replace(good, "Deny", "Allow", 1)+`"}`, "")
	answer := get(app, "")
	understood(t, answer, strings.Contains(answer.Policy, `"Effect":"Allow"`))
	try(t, client.DeleteSecret, kms.CreateDeleteSecretRequest(), app, "")
	set(`{"SecretName":"app/db","Policy":"`+good+`"}`, "409 Rejected.ResourceInDeleteWindow")
	get(app, "")
}

// The SDK compares the string to sign in the answer with its own.
func TestTheOfficialSDKTellsAWrongSecret(t *testing.T) {
	f := start(t)
	client := official(t, f.address, &http.Transport{}, accessKey("wrong"))
	get, put := kms.CreateGetSecretValueRequest(), kms.CreatePutSecretValueRequest()
	try(t, client.GetSecretValue, get, `{"SecretName":"app/db"}`, "400 SignatureDoesNotMatch")
	if _, err := client.GetSecretValue(get); !strings.Contains(err.Error(), "InvalidAccessKeySecret: Please check you AccessKeySecret") {
		t.Errorf("the user reads: %v", err)
	}
	try(t, client.PutSecretValue, put, `{"SecretName":"app/db","VersionId":"v1","SecretData":"MARKER"}`, "400 SignatureDoesNotMatch")
	if _, err := client.PutSecretValue(put); strings.Contains(err.Error(), "MARKER") || !strings.Contains(err.Error(), "Check the AccessKeySecret") {
		t.Errorf("the user reads: %v", err)
	}
}
