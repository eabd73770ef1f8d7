package agent_test

import (
	"strings"
	"testing"
)

// TestAnARNIsAnsweredByItsAccountAlone asks an agent on the built-in backend, whose account is
// acs:kms:local:0.
func TestAnARNIsAnsweredByItsAccountAlone(t *testing.T) {
	const own, foreign = "acs:kms:local:0:secret/demo/db", "acs:kms:cn-hangzhou:123456:secret/demo/db"
	w := start(t, shortTempDir(t), basic)
	if status, body := w.get("/v1/" + own + "?format=raw"); status != 200 || !strings.Contains(body, marker) {
		t.Errorf("by our own ARN: %d %s", status, body)
	}
	if status, body := w.get("/v1/" + foreign + "?format=raw"); status != 404 || strings.Contains(body, marker) {
		t.Errorf("by the ARN of another account: %d %s", status, body)
	}

	// A change is seen under both names.
	w.put("demo/db", "v2", `{"password":"second"}`)
	for _, name := range []string{"demo/db", own} {
		if _, body := w.get("/v1/" + name + "?format=raw"); !strings.Contains(body, "second") {
			t.Errorf("%s after the change: %s", name, body)
		}
	}
}
