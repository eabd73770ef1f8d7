package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"secretagent/examples/internal/example"
)

// TestKMS runs the SDKs of Alibaba Cloud on the KMS API of an agent, signed and over TLS, and
// holds the tables of README.md against what they say.
func TestKMS(t *testing.T) {
	if testing.Short() {
		t.Skip("the SDKs of two languages take seconds")
	}
	dir := t.TempDir()
	cert, key := example.Certificate(t, 1)
	ca, trusted := filepath.Join(dir, "tls", "api.crt"), filepath.Join(dir, "tls", "java.p12")
	example.Must(t, os.Mkdir(filepath.Join(dir, "tls"), 0o700))
	example.Write(t, ca, cert)
	example.Write(t, filepath.Join(dir, "tls", "api.key"), key)
	text := strings.Replace(example.Read(t, "kms.yaml"), "127.0.0.1:2026", "127.0.0.1:0", 1)
	a, _ := example.Within(t, dir, text+"process: {noDump: false}\n")
	address := a.APIAddrs()[1].String()
	_, port, _ := strings.Cut(address, ":")
	env := []string{
		"KMS_ENDPOINT=localhost:" + port, "KMS_CA=" + ca,
		"ALIBABA_CLOUD_ACCESS_KEY_ID=app", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=" + strings.TrimSpace(example.Read(t, filepath.Join(dir, "var", "keys", "app.secret"))),
		"NO_PROXY=*", "no_proxy=*", "GOPROXY=off",
	}
	if keytool, err := exec.LookPath("keytool"); err == nil {
		if out, code := example.Output(t, "", nil, keytool, "-importcert", "-noprompt", "-alias", "api", "-file", ca, "-keystore", trusted, "-storetype", "PKCS12", "-storepass", "changeit"); code != 0 {
			t.Fatal(out)
		}
	}
	report(t, env, address, []client{
		{"kms-python", ".", []string{"python3", "-c", "import alibabacloud_kms20160120, aliyunsdkkms, alibaba_cloud_secretsmanager_client"},
			[]string{"python3", "-W", "ignore", "kms_sdk.py"}},
		{"kms-java", ".", []string{"javap", "com.aliyun.kms20160120.Client", "com.aliyuncs.kms.model.v20160120.GetSecretValueRequest", "com.aliyuncs.kms.secretsmanager.client.SecretCacheClient"},
			[]string{"java", "-Djavax.net.ssl.trustStore=" + trusted, "-Djavax.net.ssl.trustStorePassword=changeit", "Kms.java"}},
		{"kms-go", "go", []string{"go", "build", "-o", os.DevNull, "./kms"}, []string{"go", "run", "./kms"}},
	})
}

// The table of README.md says which versions these are.
func TestVersionsInTheTable(t *testing.T) {
	readme := example.Read(t, "README.md")
	for file, pattern := range map[string]string{
		"libraries/requirements.txt":        `(?m)^(ali\S+)==(\S+)$`,
		"libraries/go/go.mod":               `(?m)(kms-20160120|aliyun-secretsmanager-client-go)(?:/v3)? v(\S+)$`,
		"libraries/pom.xml":                 `<groupId>com\.aliyun</groupId>\s*<artifactId>(\S+)</artifactId>\s*<version>(\S+)</version>`,
		filepath.Join("..", "..", "go.mod"): `(?m)aliyun/(alibaba-cloud-sdk-go) v(\S+)$`,
	} {
		found := regexp.MustCompile(pattern).FindAllStringSubmatch(example.Read(t, file), -1)
		if len(found) == 0 {
			t.Errorf("%s: nothing found", file)
		}
		for _, pin := range found {
			if row := "| `" + pin[1] + "` | " + pin[2] + " |"; !strings.Contains(readme, row) {
				t.Errorf("README.md has no row %s…", row)
			}
		}
	}
}
