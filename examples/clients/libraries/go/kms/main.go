// Command kms uses the KMS API of an agent through the newest SDK of Alibaba Cloud for Go and
// through the caching client. It prints one line a step: client | operation | result.
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/client"
	kms "github.com/alibabacloud-go/kms-20160120/v3/client"
	"github.com/alibabacloud-go/tea/tea"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	cache "github.com/aliyun/aliyun-secretsmanager-client-go/sdk"
	"github.com/aliyun/aliyun-secretsmanager-client-go/sdk/logger"
	"github.com/aliyun/aliyun-secretsmanager-client-go/sdk/models"
	"github.com/aliyun/aliyun-secretsmanager-client-go/sdk/service"
)

var endpoint, keyID, keySecret = os.Getenv("KMS_ENDPOINT"), os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_ID"), os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET")

// value is what every format has to escape.
const value = " <a>&\"'\r\n\t]]> é🔑 "

func step(client, operation string, ask func() (any, error)) {
	result, err := ask()
	if err != nil { // whatever it is, the application sees it
		var newer *tea.SDKError
		var older sdkerrors.Error
		switch {
		case errors.As(err, &newer):
			result = "error: " + tea.StringValue(newer.Code)
		case errors.As(err, &older):
			result = "error: " + older.ErrorCode()
		default:
			result = "error: " + strings.Join(strings.Fields(err.Error()), " ")
		}
	}
	fmt.Printf("%s | %s | %v\n", client, operation, result)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func sdk(secret string) *kms.Client {
	ca := string(must(os.ReadFile(os.Getenv("KMS_CA"))))
	return must(kms.NewClient(&openapi.Config{
		AccessKeyId: &keyID, AccessKeySecret: &secret, Endpoint: &endpoint, Protocol: tea.String("https"), Ca: &ca,
	}))
}

func read(secret string, request kms.GetSecretValueRequest) (*kms.GetSecretValueResponseBody, error) {
	response, err := sdk(secret).GetSecretValue(&request)
	if err != nil {
		return nil, err
	}
	return response.Body, nil
}

func get(name string) kms.GetSecretValueRequest { return kms.GetSecretValueRequest{SecretName: &name} }

func texts(list []*string) []string {
	var out []string
	for _, text := range list {
		out = append(out, *text)
	}
	return out
}

func newest() {
	const client = "kms-20160120"
	name, first, second := tea.String("demo/new"), tea.String("v1"), tea.String("v2")
	step(client, "create", func() (any, error) {
		out, err := sdk(keySecret).CreateSecret(&kms.CreateSecretRequest{SecretName: name, VersionId: first, SecretData: tea.String(value)})
		if err != nil {
			return nil, err
		}
		return *out.Body.Arn, nil
	})
	step(client, "read, byte for byte", func() (any, error) {
		out, err := read(keySecret, get("demo/new"))
		if err != nil {
			return nil, err
		}
		return *out.SecretData == value, nil
	})
	step(client, "put", func() (any, error) {
		out, err := sdk(keySecret).PutSecretValue(&kms.PutSecretValueRequest{SecretName: name, VersionId: second, SecretData: tea.String("second")})
		if err != nil {
			return nil, err
		}
		return texts(out.Body.VersionStages.VersionStage), nil
	})
	step(client, "read", func() (any, error) {
		out, err := read(keySecret, get("demo/new"))
		if err != nil {
			return nil, err
		}
		return fmt.Sprint(*out.VersionId, " ", *out.SecretData, " ", texts(out.VersionStages.VersionStage)), nil
	})
	step(client, "missing", func() (any, error) { return read(keySecret, get("demo/none")) })
	step(client, "denied", func() (any, error) { return read(keySecret, get("other/db")) })
	step(client, "wrong secret of the key", func() (any, error) { return read("wrong", get("demo/db")) })
	step(client, "delete for good", func() (any, error) {
		out, err := sdk(keySecret).DeleteSecret(&kms.DeleteSecretRequest{SecretName: name, ForceDeleteWithoutRecovery: tea.String("true")})
		if err != nil {
			return nil, err
		}
		return *out.Body.SecretName, nil
	})
}

func caching() {
	const client = "aliyun-secretsmanager-client-go"
	c := must(cache.NewSecretCacheClientBuilder(service.NewDefaultSecretManagerClientBuilder().WithAccessKey(keyID, keySecret).
		AddRegionInfo(models.NewRegionInfoWithEndpoint("cn-hangzhou", endpoint)).Build()).
		WithLogger(logger.NewDefaultLogger(log.New(io.Discard, "", 0))).Build())
	step(client, "read", func() (any, error) { return c.GetStringValue("demo/db") })
	step(client, "read again", func() (any, error) { return c.GetStringValue("demo/db") })
	step(client, "refresh", func() (any, error) { return c.RefreshNow("demo/db") })
	step(client, "missing", func() (any, error) { return c.GetStringValue("demo/none") })
	step(client, "denied", func() (any, error) { return c.GetStringValue("other/db") })
}

func main() {
	newest()
	caching()
}
