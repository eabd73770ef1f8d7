// Package alibaba holds configurations for Alibaba Cloud KMS; this test reads all of them.
package alibaba

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

func TestConfigurationsAreValid(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no configuration found: %v", err)
	}
	for _, file := range files {
		cfg, err := config.Load(file)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if cfg.Upstream.Alibaba == nil {
			t.Errorf("%s does not use Alibaba Cloud", file)
		}
	}
}

func TestPolicyOfARotationIsJSON(t *testing.T) {
	var policy struct {
		Statement []struct {
			Action any
		}
	}
	want := `["kms:GetSecretValue","kms:ListSecretVersionIds","kms:PutSecretValue","kms:UpdateSecretVersionStage"]`
	err := json.Unmarshal([]byte(example.Read(t, "ram-policy-rotation.json")), &policy)
	if err != nil || len(policy.Statement) != 2 {
		t.Fatalf("%+v, %v", policy, err)
	}
	if got, _ := json.Marshal(policy.Statement[0].Action); string(got) != want {
		t.Errorf("actions %s", got)
	}
}

func TestPolicyIsJSON(t *testing.T) {
	var policy struct {
		Statement []struct{ Effect, Action, Resource string }
	}
	if err := json.Unmarshal([]byte(example.Read(t, "ram-policy.json")), &policy); err != nil || len(policy.Statement) != 1 || policy.Statement[0].Action != "kms:GetSecretValue" {
		t.Errorf("%+v, %v", policy, err)
	}
}
