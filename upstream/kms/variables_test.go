package kms

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryVariableOfTheLibraryIsKnown reads the source of the credential library. A variable that
// it learns with a new release must be judged here: a credential, or harmless.
func TestEveryVariableOfTheLibraryIsKnown(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/aliyun/credentials-go").Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("the source of the library is not here: %v", err)
	}
	harmless := []string{
		"ALIBABA_CLOUD_CLI_PROFILE_DISABLED", "ALIBABA_CLOUD_ECS_METADATA_DISABLED", "ALIBABA_CLOUD_IMDSV1_DISABLED",
		"ALIBABA_CLOUD_ECS_IMDSV2_ENABLE", "ALIBABA_CLOUD_STS_REGION", "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED",
	}
	variable := regexp.MustCompile(`"(ALIBABA_CLOUD_\w+)"`)
	seen := map[string]bool{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range variable.FindAllStringSubmatch(string(text), -1) {
			seen[m[1]] = true
		}
		return err
	})
	if err != nil || len(seen) < 10 {
		t.Fatalf("found %d variables: %v", len(seen), err)
	}
	for name := range seen {
		if slices.Contains(CredentialVariables, name) == slices.Contains(harmless, name) {
			t.Errorf("%s is neither among the credentials nor among the harmless ones, or is both", name)
		}
	}
}

func TestTheSTSOfARegion(t *testing.T) {
	for _, c := range []struct {
		variable, envRegion, envVPC, region string
		vpc                                 bool
		want                                string
	}{
		{"", "", "", "", false, "sts.aliyuncs.com"},
		{"", "", "true", "", true, "sts.aliyuncs.com"},
		{"", "cn-beijing", "", "", false, "sts.cn-beijing.aliyuncs.com"},
		{"", "cn-beijing", "True", "", false, "sts-vpc.cn-beijing.aliyuncs.com"},
		{"", "cn-beijing", "true", "cn-hangzhou", false, "sts-vpc.cn-hangzhou.aliyuncs.com"},
		{"", "", "false", "cn-hangzhou", true, "sts-vpc.cn-hangzhou.aliyuncs.com"},
		{" sts-vpc.cn-hangzhou.aliyuncs.com ", "cn-beijing", "", "cn-beijing", false, "sts-vpc.cn-hangzhou.aliyuncs.com"},
	} {
		t.Setenv("ALIBABA_CLOUD_STS_ENDPOINT", c.variable)
		t.Setenv("ALIBABA_CLOUD_STS_REGION", c.envRegion)
		t.Setenv("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", c.envVPC)
		if got := (CredentialOptions{}).stsHost(c.region, c.vpc); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
		if got := (CredentialOptions{STSEndpoint: "named"}).stsHost(c.region, c.vpc); got != "named" {
			t.Errorf("%+v: %s in place of the one of the configuration", c, got)
		}
	}
}
