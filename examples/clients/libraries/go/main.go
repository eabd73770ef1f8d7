// Command clients asks an agent through the Go clients of Vault and OpenBao, and as strictly typed
// programs of the AWS agent do. It prints one line a step: client | operation | result.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	vault "github.com/hashicorp/vault/api"
	bao "github.com/openbao/openbao/api/v2"
)

func step(client, operation string, ask func() (any, error)) {
	result, err := ask()
	if err != nil { // whatever it is, the application sees it
		result = "error: " + strings.Join(strings.Fields(err.Error()), " ")
	}
	fmt.Printf("%s | %s | %v\n", client, operation, result)
}

// secret is what the clients of both say of a secret.
type secret struct {
	data    map[string]any
	version int
}

func (s secret) String() string { return fmt.Sprintf("%v version %d", s.data, s.version) }

// client is what both clients do. The mount is secret.
type client interface {
	read(name string, version int) (any, error)
	readV1(name string) (any, error) // of a mount kv, of version 1
	metadata(name string) (any, error)
	list(path string) (any, error)
	logical(path string) (any, error)
	lookupSelf() (any, error)
	renewSelf() (any, error)
	health() (any, error)
	sealed() (any, error)
}

var ctx = context.Background()

func vaultClients(name string, dial func(token string) client, token string) {
	c := dial(token)
	step(name, "read", func() (any, error) { return c.read("demo/db", 0) })
	step(name, "read text", func() (any, error) { return c.read("demo/text", 0) })
	step(name, "read a@b+c=d", func() (any, error) { return c.read("demo/a@b+c=d", 0) })
	step(name, "old version", func() (any, error) { return c.read("demo/db", 1) })
	step(name, "read, KV version 1", func() (any, error) { return c.readV1("demo/db") })
	step(name, "missing, KV version 1", func() (any, error) { return c.readV1("demo/none") })
	step(name, "missing", func() (any, error) { return c.read("demo/none", 0) })
	step(name, "missing version", func() (any, error) { return c.read("demo/db", 99) })
	step(name, "missing, Logical", func() (any, error) { return c.logical("secret/data/demo/none") })
	step(name, "denied", func() (any, error) { return c.read("other/db", 0) })
	step(name, "list", func() (any, error) { return c.list("secret/metadata/demo") })
	step(name, "metadata", func() (any, error) { return c.metadata("demo/db") })
	step(name, "metadata, missing", func() (any, error) { return c.metadata("demo/none") })
	step(name, "lookup-self", c.lookupSelf)
	step(name, "renew-self", c.renewSelf)
	step(name, "health", c.health)
	step(name, "is sealed", c.sealed)
	step(name, "wrong token", func() (any, error) { return dial("wrong").read("demo/db", 0) })
}

type vaultClient struct{ *vault.Client }

func dialVault(token string) client {
	c, err := vault.NewClient(vault.DefaultConfig()) // VAULT_ADDR
	if err != nil {
		panic(err)
	}
	c.SetToken(token)
	return vaultClient{c}
}

func (c vaultClient) read(name string, version int) (any, error) {
	kv := c.KVv2("secret")
	ask := func() (*vault.KVSecret, error) { return kv.Get(ctx, name) }
	if version > 0 {
		ask = func() (*vault.KVSecret, error) { return kv.GetVersion(ctx, name, version) }
	}
	s, err := ask()
	if err != nil {
		if errors.Is(err, vault.ErrSecretNotFound) {
			return "ErrSecretNotFound", nil
		}
		return nil, err
	}
	return secret{s.Data, s.VersionMetadata.Version}, nil
}

func (c vaultClient) readV1(name string) (any, error) {
	s, err := c.KVv1("kv").Get(ctx, name)
	if errors.Is(err, vault.ErrSecretNotFound) {
		return "ErrSecretNotFound", nil
	} else if err != nil {
		return nil, err
	}
	return s.Data, nil
}

func (c vaultClient) metadata(name string) (any, error) {
	m, err := c.KVv2("secret").GetMetadata(ctx, name)
	if err != nil {
		return nil, err
	}
	return versions(m.CurrentVersion, m.Versions), nil
}

func (c vaultClient) list(path string) (any, error) {
	s, err := c.Logical().List(path)
	if err != nil || s == nil {
		return nil, err
	}
	return s.Data["keys"], nil
}

func (c vaultClient) logical(path string) (any, error) {
	s, err := c.Logical().Read(path)
	return s, err
}

func (c vaultClient) lookupSelf() (any, error) {
	s, err := c.Auth().Token().LookupSelf()
	if err != nil {
		return nil, err
	}
	return s.Data["policies"], nil
}

func (c vaultClient) renewSelf() (any, error) {
	s, err := c.Auth().Token().RenewSelf(3600)
	if err != nil {
		return nil, err
	}
	return fmt.Sprintf("renewable %v, the token again %v", s.Auth.Renewable, s.Auth.ClientToken == c.Token()), nil
}

func (c vaultClient) health() (any, error) {
	h, err := c.Sys().Health()
	if err != nil {
		return nil, err
	}
	return fmt.Sprintf("initialized %v, sealed %v", h.Initialized, h.Sealed), nil
}

func (c vaultClient) sealed() (any, error) {
	s, err := c.Sys().SealStatus()
	if err != nil {
		return nil, err
	}
	return s.Sealed, nil
}

type baoClient struct{ *bao.Client }

func dialBao(token string) client {
	c, err := bao.NewClient(bao.DefaultConfig()) // BAO_ADDR, or VAULT_ADDR
	if err != nil {
		panic(err)
	}
	c.SetToken(token)
	return baoClient{c}
}

func (c baoClient) read(name string, version int) (any, error) {
	kv := c.KVv2("secret")
	ask := func() (*bao.KVSecret, error) { return kv.Get(ctx, name) }
	if version > 0 {
		ask = func() (*bao.KVSecret, error) { return kv.GetVersion(ctx, name, version) }
	}
	s, err := ask()
	if err != nil {
		if errors.Is(err, bao.ErrSecretNotFound) {
			return "ErrSecretNotFound", nil
		}
		return nil, err
	}
	return secret{s.Data, s.VersionMetadata.Version}, nil
}

func (c baoClient) readV1(name string) (any, error) {
	s, err := c.KVv1("kv").Get(ctx, name)
	if errors.Is(err, bao.ErrSecretNotFound) {
		return "ErrSecretNotFound", nil
	} else if err != nil {
		return nil, err
	}
	return s.Data, nil
}

func (c baoClient) metadata(name string) (any, error) {
	m, err := c.KVv2("secret").GetMetadata(ctx, name)
	if err != nil {
		return nil, err
	}
	return versions(m.CurrentVersion, m.Versions), nil
}

func (c baoClient) list(path string) (any, error) {
	s, err := c.Logical().List(path)
	if err != nil || s == nil {
		return nil, err
	}
	return s.Data["keys"], nil
}

func (c baoClient) logical(path string) (any, error) {
	s, err := c.Logical().Read(path)
	return s, err
}

func (c baoClient) lookupSelf() (any, error) {
	s, err := c.Auth().Token().LookupSelf()
	if err != nil {
		return nil, err
	}
	return s.Data["policies"], nil
}

func (c baoClient) renewSelf() (any, error) {
	s, err := c.Auth().Token().RenewSelf(3600)
	if err != nil {
		return nil, err
	}
	return fmt.Sprintf("renewable %v, the token again %v", s.Auth.Renewable, s.Auth.ClientToken == c.Token()), nil
}

func (c baoClient) health() (any, error) {
	h, err := c.Sys().Health()
	if err != nil {
		return nil, err
	}
	return fmt.Sprintf("initialized %v, sealed %v", h.Initialized, h.Sealed), nil
}

func (c baoClient) sealed() (any, error) {
	s, err := c.Sys().SealStatus()
	if err != nil {
		return nil, err
	}
	return s.Sealed, nil
}

func versions[V any](current int, all map[string]V) string {
	var ids []string
	for id := range all {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return fmt.Sprintf("current %d of %v", current, ids)
}

// awsSecret is GetSecretValue as typed programs declare it.
type awsSecret struct {
	ARN           string
	Name          string
	VersionID     string `json:"VersionId"`
	SecretString  *string
	SecretBinary  []byte
	VersionStages []string
	CreatedDate   string
}

// awsError is the body of an error.
type awsError struct {
	Type    string `json:"__type"`
	Message string `json:"message"`
}

func awsRead(query url.Values) (any, error) {
	token := os.Getenv("AWS_TOKEN")
	if path, ok := strings.CutPrefix(token, "file://"); ok {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		token = strings.TrimSpace(string(text))
	}
	req, err := http.NewRequest(http.MethodGet, os.Getenv("AGENT")+"/secretsmanager/get?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Aws-Parameters-Secrets-Token", token)
	res, err := (&http.Client{Transport: &http.Transport{}, Timeout: time.Minute}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	decode := func(into any) error {
		d := json.NewDecoder(strings.NewReader(string(body)))
		d.DisallowUnknownFields()
		return d.Decode(into)
	}
	if res.StatusCode != http.StatusOK {
		var e awsError
		if err := decode(&e); err != nil {
			return nil, fmt.Errorf("status %d: %s", res.StatusCode, body)
		}
		return nil, fmt.Errorf("status %d, %s: %s", res.StatusCode, e.Type, e.Message)
	}
	var s awsSecret
	if err := decode(&s); err != nil {
		return nil, err
	}
	if s.SecretString == nil {
		return fmt.Sprintf("%x %v", s.SecretBinary, s.VersionStages), nil
	}
	return fmt.Sprintf("%s %v", *s.SecretString, s.VersionStages), nil
}

func awsAgent() {
	for _, ask := range []struct {
		operation string
		query     url.Values
	}{
		{"read", url.Values{"secretId": {"demo/db"}}},
		{"read binary", url.Values{"secretId": {"demo/key"}}},
		{"read by ARN", url.Values{"secretId": {"arn:aws:secretsmanager:us-east-1:123456789012:secret:demo/db-AbCdEf"}}},
		{"old version", url.Values{"secretId": {"demo/db"}, "versionStage": {"AWSPREVIOUS"}}},
		{"missing", url.Values{"secretId": {"demo/none"}}},
		{"missing version", url.Values{"secretId": {"demo/db"}, "versionId": {"v99"}}},
		{"denied", url.Values{"secretId": {"other/db"}}},
	} {
		step("AWS agent, Go", ask.operation, func() (any, error) { return awsRead(ask.query) })
	}
}

func main() {
	token := os.Getenv("VAULT_TOKEN")
	vaultClients("vault/api", dialVault, token)
	vaultClients("openbao/api", dialBao, token)
	templates()
	awsAgent()
}
